"""Whether a score, and a gain over the reference, holds on perturbed documents: paired by source document."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.analysis.design import Design, Floats
from pipeline.analysis.estimate import Difference, Estimate
from pipeline.analysis.persistence import Persistence, persistence
from pipeline.analysis.repeats import mean_difference, mean_score
from pipeline.analysis.scores import CellScores, Doc, positions


@dataclass(frozen=True)
class Sources:
    """Scores of one row on perturbed documents and on their sources (each (n,)), and those of the reference."""

    docs: tuple[Doc, ...]
    design: Design
    plain: Floats
    perturbed: Floats
    reference: tuple[Floats, Floats] | None  # plain and perturbed
    chance: float  # score of guessing on the perturbed documents

    def on(self, docs: Sequence[Doc]) -> "Sources":
        """On some of the documents."""
        kept = positions(self.docs, docs)
        reference = None if self.reference is None else (self.reference[0][kept], self.reference[1][kept])
        plain, perturbed, design = self.plain[kept], self.perturbed[kept], self.design.subset(kept)
        return Sources(tuple(docs), design, plain, perturbed, reference, self.chance)


@dataclass(frozen=True)
class Robustness:
    """One row on a perturbed benchmark, over the perturbed documents and their sources.

    `drop` is perturbed - plain; `persistence` has the gains over the reference, None where that is missing.
    """

    plain: Estimate
    perturbed: Estimate
    drop: Difference
    persistence: Persistence | None

    @property
    def gain_plain(self) -> Difference | None:
        return self.persistence.gain_plain if self.persistence else None

    @property
    def gain(self) -> Difference | None:
        return self.persistence.gain if self.persistence else None

    @property
    def change(self) -> Difference | None:
        return self.persistence.change if self.persistence else None


SHARES = ("plain", "perturbed")  # fields of a Robustness: scores
CHANGES = ("drop", "gain_plain", "gain", "change")  # and differences of scores
MEASURES = SHARES + CHANGES


def beside_their_sources(cells: Sequence[CellScores | None], chance: float) -> Sources | None:
    """Perturbed documents beside their sources, on those that all cells have; None where there are none.

    Args:
        cells: plain and perturbed of a row, then plain and perturbed of the reference, where there is one.
        chance: score of guessing on the perturbed documents.
    """
    plain, perturbed = cells[:2]
    if plain is None or perturbed is None:
        return None
    known = [cell for cell in cells if cell is not None]
    used = known if len(known) == 4 else known[:2]
    plains, variants = [set(cell.docs) for cell in used[::2]], [set(cell.docs) for cell in used[1::2]]
    docs = [
        doc
        for doc in perturbed.docs
        if all(doc in have for have in variants) and all((*doc[:2], 0) in have for have in plains)
    ]
    if not docs:
        return None
    sources: list[Doc] = [(*doc[:2], 0) for doc in docs]
    scores = [
        cell.score[positions(cell.docs, sources if i % 2 == 0 else docs)] for i, cell in enumerate(used)
    ]
    reference = (scores[2], scores[3]) if len(scores) == 4 else None
    return Sources(tuple(docs), perturbed.on(docs).design, scores[0], scores[1], reference, chance)


def robustness(found: Sequence[Sources]) -> Robustness | None:
    """Plain against perturbed documents of one row in one family, or its mean over several; None if none is shared."""
    have = set(found[0].docs).intersection(*(one.docs for one in found[1:]))
    docs = [doc for doc in found[0].docs if doc in have]
    if not docs:
        return None
    shared = [one.on(docs) for one in found]
    design, chance = shared[0].design, shared[0].chance
    plain, perturbed = (np.stack([getattr(one, name) for one in shared]) for name in SHARES)
    references = [one.reference for one in shared if one.reference is not None]
    persisting = None
    if len(references) == len(shared):
        old_plain, old_perturbed = (np.stack([pair[i] for pair in references]) for i in (0, 1))
        persisting = persistence(old_plain, plain, old_perturbed, perturbed, design, chance, level=None)
    return Robustness(
        mean_score(plain, design),
        mean_score(perturbed, design),
        mean_difference(perturbed - plain, design, level=None),
        persisting,
    )
