"""Made-up paired answers in clusters, many experiments at once, by each method that was compared."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from benchmarks.draws import Array
from pipeline.analysis import intervals
from pipeline.analysis.design import Blocks, robust_variance
from pipeline.analysis.power import LEVEL
from pipeline.analysis.signflip import sign_flip, smallest_p

Ends = tuple[Array, Array]


class Clustered:
    """Mean difference, spread and variance of each experiment, from the counts of its clusters.

    Args:
        counts: (experiments, clusters, 2) gained and lost documents.
        sizes: (clusters,) documents of each.
    """

    def __init__(self, counts: Array, sizes: Array) -> None:
        self.n, self.sizes = float(sizes.sum()), sizes.astype(float)
        self.net = (counts[..., 0] - counts[..., 1]).astype(float)
        self.mean, self.square = self.net.sum(axis=-1) / self.n, counts.sum(axis=(1, 2)) / self.n
        self.blocks = Blocks(self.sizes / self.n, self.sizes / self.n**2, np.zeros(len(sizes), dtype=int))
        self.variance, self.freedom = robust_variance(self.net / self.n, self.blocks, rare=True)

    # ---- ours: that of pipeline.analysis.paired.change ----

    def size(self, confidence: ArrayLike) -> Array:
        alike = self.n**2 / np.square(self.sizes).sum()
        spread = self.square - self.mean**2
        return intervals.effective_size(spread, [(self.variance, self.freedom)], self.n, confidence, alike)

    @cached_property
    def flipped(self) -> Array:
        """p of the sign-flip test over clusters."""
        return np.array([sign_flip(net) for net in self.net])

    def by_counts(self) -> Ends:
        """The interval at the effective size, before it is brought together with the test."""
        return intervals.paired(self.mean, self.square, self.size(0.95))

    def ours(self) -> Ends:
        low, high = self.by_counts()
        to_zero = (self.flipped >= LEVEL) & (smallest_p(len(self.sizes)) < LEVEL)
        return np.where(to_zero, np.minimum(low, 0), low), np.where(to_zero, np.maximum(high, 0), high)

    def stars(self, level: float = LEVEL) -> Array:
        """Whether the test at this level and the interval at 95 % both leave zero out."""
        return (self.flipped < level) & without_zero(self.by_counts())

    def stars_at_one_level(self, level: float = LEVEL) -> Array:
        """The same with the interval at the level of the test."""
        return (self.flipped < level) & (intervals.p_value(self.mean, self.square, self.size) < level)

    # ---- others ----

    def students(self) -> Ends:
        """CR2 with Bell and McCaffrey's degrees of freedom; for clusters of one size G - 1."""
        half = stdtrit(len(self.sizes) - 1.0, 0.975) * np.sqrt(self.variance)
        return self.mean - half, self.mean + half

    def wider(self) -> Ends:
        """The hull of Student's interval and of Bonett and Price's over documents."""
        n, low, high = self.n, *self.students()
        centre = self.mean * n / (n + 2)
        half = 1.959964 * np.sqrt(((self.square * n + 2) / (n + 2) - centre**2) / (n + 2))
        return np.minimum(low, centre - half), np.maximum(high, centre + half)

    def accepts_by_flipping(self, truth: float) -> Array:
        """Whether the sign-flip test over clusters accepts this mean: whether its inversion would hold it."""
        return np.array([sign_flip(net) >= LEVEL for net in self.net - truth * self.sizes])

    def accepts_by_either(self, truth: float) -> Array:
        """Whether the sign-flip test accepts this mean, or the interval of independent documents holds it."""
        alone = intervals.paired(self.mean, self.square, self.n)
        return self.accepts_by_flipping(truth) | holding(alone, truth)

    def accepts_by_bootstrap(self, truth: float, rng: np.random.Generator, draws: int = 399) -> Array:
        """The wild cluster bootstrap with the null imposed and Webb's six weights (Webb 2023; CGM 2008)."""
        points = np.sqrt(np.array([0.5, 1.0, 1.5]))
        weights = rng.choice(np.concatenate([points, -points]), size=(len(self.sizes), draws))
        net = self.net - truth * self.sizes
        found, drawn = net.sum(axis=1), net @ weights
        own = np.square(net).sum(axis=1) - found**2 / len(self.sizes)
        theirs = np.square(net) @ np.square(weights) - drawn**2 / len(self.sizes)
        t, t_star = found**2 / np.maximum(own, 1e-9), drawn**2 / np.maximum(theirs, 1e-9)
        return (t_star >= t[:, None] - 1e-9).mean(axis=1) >= LEVEL


def holding(ends: Ends, truth: float) -> Array:
    return (ends[0] <= truth + 1e-12) & (truth <= ends[1] + 1e-12)


def without_zero(ends: Ends) -> Array:
    return (ends[0] > 0) | (ends[1] < 0)


def covered(ends: Ends, truth: float) -> float:
    return float(np.mean(holding(ends, truth)))
