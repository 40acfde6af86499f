"""Means over repetitions (seeds of a random control, independently trained families) on the same documents.

    against_seeds(v, seeds, design)            +v against random vectors, a sample of seeds
    mean_difference(differences, design)       differences of k families, averaged
    mean_score(scores, design)                 scores of k families, averaged
    place(gain, gains)                         how many of the seeds are as far from zero

Repetitions and documents are both samples, crossed with each other. The variance of the mean is the one between
repetitions plus the one between documents, less the part that both hold (two-way clustering; Cameron, Gelbach and
Miller 2011). Each keeps its own degrees of freedom: two seeds say little, however many documents there are. One
repetition has no spread: its interval is that of the documents alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from pipeline.analysis import intervals
from pipeline.analysis.design import Blocks, Design, robust_variance
from pipeline.analysis.estimate import Difference, Estimate
from pipeline.analysis.intervals import CONFIDENCE, Floats
from pipeline.analysis.paired import agree, change, score
from pipeline.analysis.power import LEVEL, detectable

Parts = list[tuple[Floats, Floats]]  # variances with their degrees of freedom


@dataclass(frozen=True)
class Place:
    """Where one value stands among a sample of others: `as_far` of `of` are at least as far from zero.

    `p` is the chance of that place if the value were one more of the sample: never below 1 / (of + 1).
    """

    as_far: int
    of: int
    p: float


def against_seeds(
    scores: ArrayLike,
    seeds: ArrayLike,
    design: Design,
    level: float | None = LEVEL,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Scores (n,) less the mean over seeds of a control (k, n), as an estimate for any seed and document."""
    d = np.asarray(scores, dtype=float) - np.asarray(seeds, dtype=float)
    return mean_difference(d, design, level=level, confidence=confidence)


def mean_difference(
    differences: ArrayLike,
    design: Design,
    scale: float = 1.0,
    level: float | None = LEVEL,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Mean of differences (k, n) over repetitions and documents, against zero.

    `p` is the smallest level at which the interval of `change` with this variance leaves zero out.
    """
    x = np.asarray(differences, dtype=float)
    alone = change(x.mean(axis=0), design, scale, None if len(x) > 1 else level, confidence)
    if len(x) < 2:
        return alone
    x = x / scale
    mean, square = design.mean(x.mean(axis=0)), design.mean(np.square(x.mean(axis=0)))
    spread, parts = square - mean**2, crossed(x, design, rare=True)

    def size_at(asked: ArrayLike) -> Floats:
        return intervals.effective_size(spread, parts, design.effective, asked, design.alike)

    size = float(size_at(confidence))
    p = float(intervals.p_value(mean, square, size_at))
    found = agree(intervals.paired(mean, square, size, confidence), p, p, confidence=confidence)
    at_level = size_at(1.0 - (LEVEL if level is None else level))
    smallest = detectable(float(at_level), square, level)
    return replace(
        alone,
        se=scale * math.sqrt(sum(float(variance) for variance, _ in parts)),
        low=scale * found.low,
        high=scale * found.high,
        p=found.p,
        p_test=found.p,
        test="t over repetitions and documents",
        detectable=scale * smallest.effect,
        freedom=float(parts[0][1]),
        effective=size,
        assumed=smallest.discordance,
    )


def mean_score(scores: ArrayLike, design: Design, confidence: float = CONFIDENCE) -> Estimate:
    """Mean of scores (k, n), each in [0, 1], over repetitions and documents, with Agresti and Coull's interval."""
    x = np.asarray(scores, dtype=float)
    alone = score(x.mean(axis=0), design, confidence)
    if len(x) < 2:
        return alone
    parts = crossed(x, design)
    size = intervals.effective_size(
        alone.value * (1.0 - alone.value), parts, math.inf, confidence, design.alike
    )
    if np.isinf(size):
        return alone  # the repetitions do not differ
    low, high = (float(end) for end in intervals.share(alone.value, size, confidence))
    se = max(math.sqrt(sum(float(variance) for variance, _ in parts)), alone.se)
    return replace(alone, se=se, low=min(low, alone.low), high=max(high, alone.high))


def place(value: float, others: ArrayLike) -> Place:
    """The place of a value among others by distance from zero: a randomisation test over seeds."""
    sizes = np.abs(np.asarray(others, dtype=float))
    as_far = int((sizes >= abs(value) - 1e-12).sum())
    return Place(as_far, len(sizes), (as_far + 1) / (len(sizes) + 1))


def crossed(x: Floats, design: Design, rare: bool = False) -> Parts:
    """`crossed_variance` of values (k, n) on the design's documents."""
    return crossed_variance(np.stack([design.sums(row) for row in x]), design.blocks, rare)


def crossed_variance(sums: Floats, blocks: Blocks, rare: bool = False) -> Parts:
    """Parts of the variance of a mean: between repetitions, and between documents beyond what those hold.

    Args:
        sums: (..., k, units) weighted sums of the values by repetition and unit; k > 1.
        rare: as in `design.robust_variance`.
    """
    k, units = sums.shape[-2:]
    means = sums.sum(axis=-1, keepdims=True)
    typical = sums.mean(axis=-2, keepdims=True)
    repetitions = means[..., 0].var(axis=-1, ddof=1) / k
    documents, freedom = robust_variance(typical[..., 0, :], blocks, rare)
    residual = sums - typical - (means - means.mean(axis=-2, keepdims=True)) * blocks.weight
    shared = np.square(residual).sum(axis=(-2, -1)) * units / (max(units - 1, 1) * (k - 1) * k)
    return [
        (repetitions, np.full(repetitions.shape, k - 1.0)),
        (np.maximum(documents - shared, 0.0), freedom),
    ]
