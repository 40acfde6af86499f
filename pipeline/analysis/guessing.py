"""What a model scores that knows nothing: chance, and one answer to all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pipeline.analysis.design import codes


@dataclass(frozen=True)
class Guessing:
    """Scores without knowledge, as fractions, averaged over strata.

    `chance`: of guessing each answer as often as it is right (0 where every document has an answer of its own);
    `majority`: of giving each stratum its most frequent answer.
    """

    chance: float
    majority: float


def guessing(targets: Sequence[str], strata: ArrayLike | None = None) -> Guessing:
    """Chance and majority score of right answers (n,), read within their strata where there are some.

    Chance is estimated without the pair of a document with itself, so that distinct answers give 0.
    """
    answers = codes(np.asarray(targets, dtype=str))
    parts = np.zeros(len(answers), dtype=np.intp) if strata is None else codes(strata)
    chances, majorities = [], []
    for part in range(int(parts.max()) + 1):
        counts = np.bincount(answers[parts == part]).astype(float)
        n = counts.sum()
        chances.append(float((counts * (counts - 1)).sum() / (n * (n - 1))) if n > 1 else 0.0)
        majorities.append(float(counts.max() / n))
    return Guessing(float(np.mean(chances)), float(np.mean(majorities)))


def sameness(answers: Sequence[str], strata: ArrayLike | None = None) -> float:
    """Share of a model's answers (n,) that are its most frequent one, averaged over strata: 1 is one answer to all."""
    return guessing(answers, strata).majority
