"""Paired answers drawn at random, for the simulations of coverage.py and for the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

Array = Any  # arrays of floats


def draw(
    rng: np.random.Generator, experiments: int, sizes: Array, gain: float, loss: float, rho: float
) -> Array:
    """Counts (experiments, clusters, 2) of gained and lost documents.

    An ordinal probit model with a random effect of the cluster: a document is gained, lost or unchanged as a
    normal variable falls above, below or between two thresholds; ``rho`` is its correlation within clusters.
    """
    effect = rng.standard_normal((experiments, len(sizes), 1)) * np.sqrt(rho)
    cuts = np.array([ndtri(1 - gain), -ndtri(loss)])  # of a gain, and of a loss seen from the other side
    chances = ndtr((effect * [1, -1] - cuts) / np.sqrt(1 - rho))
    chances = np.concatenate([chances, 1 - chances.sum(axis=-1, keepdims=True)], axis=-1)
    return rng.multinomial(np.broadcast_to(sizes, effect.shape[:2]), np.clip(chances, 0, 1))[..., :2]


def draw_bursts(
    rng: np.random.Generator, experiments: int, sizes: Array, gain: float, loss: float, rho: float
) -> Array:
    """As `draw`, with Dirichlet shares by cluster: at correlation ``rho`` few clusters change, and those altogether."""
    strength = np.array([gain, loss, 1 - gain - loss]) * (1 - rho) / rho
    shares = rng.standard_gamma(np.broadcast_to(strength, (experiments, len(sizes), 3))) + 1e-300
    chances = shares / shares.sum(axis=-1, keepdims=True)
    return rng.multinomial(np.broadcast_to(sizes, chances.shape[:2]), chances)[..., :2]


def beta(rng: np.random.Generator, mean: float, spread: float, size: int) -> Array:
    """Skills of groups around a mean; ``spread`` is the correlation of two documents of one group."""
    if not spread:
        return np.full(size, mean)
    strength = (1 - spread) / spread
    return rng.beta(mean * strength, (1 - mean) * strength, size)


def by_document(sizes: Array, gains: Array, losses: Array) -> Array:
    """Differences by document, clusters one after the other."""
    counts = np.stack([gains, losses, sizes - gains - losses], axis=-1)
    return np.repeat(np.tile([1.0, -1.0, 0.0], len(sizes)), counts.ravel())


def crossed_differences(
    rng: np.random.Generator,
    experiments: int,
    k: int,
    n: int,
    discordance: float,
    of_seed: float,
    shared: float,
) -> Array:
    """Differences (experiments, k, n): seeds shift the balance by ``of_seed`` standard errors of a mean."""
    latent = np.sqrt(shared) * rng.standard_normal((experiments, 1, n))
    latent = latent + np.sqrt(1 - shared) * rng.standard_normal((experiments, k, n))
    shift = rng.standard_normal((experiments, k, 1)) * of_seed * np.sqrt(discordance / n)
    shift = np.clip(shift, -discordance, discordance) / 2
    up = -ndtri(np.maximum(discordance / 2 + shift, 1e-12))
    down = -ndtri(np.maximum(discordance / 2 - shift, 1e-12))
    return (latent > up) * 1.0 - (latent < -down) * 1.0
