"""Donor pairs side by side: the effect of v by family, its mean over pairs, and whether the pairs differ.

    for found in pairs(results):
        found.benchmark, found.effects, found.mean, found.heterogeneity

Families of one published size (or of none) are held against each other on the documents that all of them have.
"""

from dataclasses import dataclass, replace

from pipeline.analysis.comparisons import SIGNIFICANT, gains
from pipeline.analysis.estimate import Difference
from pipeline.analysis.heterogeneity import Heterogeneity, heterogeneity
from pipeline.analysis.holm import holm
from pipeline.analysis.repeats import mean_difference
from pipeline.analysis.results import Results, Row
from pipeline.analysis.scores import average, common


@dataclass(frozen=True)
class PairEffect:
    """What one donor pair does on a benchmark; None where the run has no such cells.

    `gain` is v against Baseline, `p_holm` its p in every table (`comparisons.gains`); `donors` is the RL donor against the SFT donor, `loss` −v against Baseline, `noise` v against random vectors of equal norm.
    """

    family: str
    gain: Difference
    p_holm: float
    donors: Difference | None
    loss: Difference | None
    noise: Difference | None


@dataclass(frozen=True)
class Pairs:
    """All pairs of one size on a benchmark: their effects, the mean over pairs and documents, and their spread."""

    size: str | None
    benchmark: str
    effects: tuple[PairEffect, ...]
    mean: Difference
    heterogeneity: Heterogeneity
    p_spread: float  # of equal effects, after Holm's correction over every size and benchmark

    @property
    def differ(self) -> bool:
        """Whether the pairs are shown to differ."""
        return self.p_spread < SIGNIFICANT


def pairs(results: Results) -> list[Pairs]:
    """Every size and plain benchmark on which two families or more have v."""
    return results.remembered("pairs", lambda: _pairs(results))


def _pairs(results: Results) -> list[Pairs]:
    vector = results.row("vector", 1)
    if vector is None or len(results.families) < 2:
        return []
    sizes = list(dict.fromkeys(entry.published_size for entry in results.families.values()))
    groups = []
    for size in sizes:
        for benchmark in results.plain():
            having = [
                family
                for family, entry in results.families.items()
                if entry.published_size == size
                and results.pairs(family, vector, results.reference, benchmark)
            ]
            if len(having) > 1:
                groups.append((size, benchmark, having))
    p_values = {
        (pairing.family, pairing.benchmark): found.p_holm
        for pairing, found in gains(results).items()
        if (pairing.new, pairing.reference) == (vector.name, results.reference.name)
    }
    found = [
        one
        for size, benchmark, families in groups
        if (one := _of(results, vector, size, benchmark, families, p_values))
    ]
    adjusted = holm([one.heterogeneity.p for one in found]).tolist()
    return [replace(one, p_spread=p) for one, p in zip(found, adjusted, strict=True)]


def _of(
    results: Results,
    vector: Row,
    size: str | None,
    benchmark: str,
    families: list[str],
    p_values: dict[tuple[str, str], float],
) -> Pairs | None:
    cells = []
    for family in families:
        found = results.pairs(family, vector, results.reference, benchmark)
        cells += [average([new for new, _ in found]), average([old for _, old in found])]
    shared = common(cells)
    if not shared[0].docs:
        return None
    changes = [new.score - old.score for new, old in zip(shared[::2], shared[1::2], strict=True)]
    effects = tuple(_effect(results, vector, family, benchmark, p_values) for family in families)
    spread = heterogeneity(changes, shared[0].design)
    return Pairs(
        size,
        benchmark,
        effects,
        mean_difference(changes, shared[0].design, level=None),
        spread,
        spread.p,
    )


def _effect(
    results: Results, vector: Row, family: str, benchmark: str, p_values: dict[tuple[str, str], float]
) -> PairEffect:
    def difference(new: Row | None, reference: Row | None) -> Difference | None:
        return results.difference(family, new, reference, benchmark) if new and reference else None

    gain = difference(vector, results.reference)
    assert gain is not None, "the cells are there"
    return PairEffect(
        family,
        gain,
        p_values[family, benchmark],
        donors=difference(results.row("grpo"), results.row("sft")),
        loss=difference(results.row("vector", -1), results.reference),
        noise=difference(vector, results.row("random", 1)),
    )
