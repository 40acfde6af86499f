"""What a run found, in one object that tables, the page and the terminal read.

    findings = find(read_results(manifest, folder))
    findings.gains           every main and control row against Baseline, each with one p value
    findings.verdicts        each claim of the abstract, like with like
    findings.behaviours      how each row writes its answers; findings.decompositions: what of each gain is form
    findings.persisting      what is left of each gain on perturbed documents

Differences are fractions. The sentences that are made of it: pipeline/report/sentences.py.
"""

from dataclasses import dataclass

from pipeline.analysis.behaviour import Behaviour, Decomposition, behaviour, decompositions
from pipeline.analysis.comparisons import SIGNIFICANT, gains
from pipeline.analysis.estimate import Difference, Estimate
from pipeline.analysis.judging import judge
from pipeline.analysis.persisting import Persisting, persisting
from pipeline.analysis.published import PublishedFigure, published_figures
from pipeline.analysis.results import Results, Row, in_order
from pipeline.analysis.verdicts import Verdict, is_ruined, verdicts


@dataclass(frozen=True)
class Gain:
    """One tested comparison with Baseline: a row on a benchmark or a variant.

    `difference` has the interval, n and the number of independent units; `marks` are keys of results.MARKS.
    """

    family: str
    row: Row
    benchmark: str
    difference: Difference
    p_holm: float
    is_significant: bool
    outcome: str  # of its verdict where a claim names it, else as a rise that nothing is published of
    score: Estimate  # of the row itself
    is_ruined: bool  # hardly an answer is right any more
    figures: tuple[PublishedFigure, ...]  # the paper's, for this size, benchmark and condition
    marks: str

    @property
    def adds_v(self) -> bool:
        """Whether the row adds a vector, rather than being a donor, a prompt or noise."""
        return any(term.seed is None for term in self.row.entry.terms)


@dataclass(frozen=True)
class Written:
    """How a row writes its answers on a benchmark."""

    family: str
    row: Row
    benchmark: str
    behaviour: Behaviour


@dataclass(frozen=True)
class Findings:
    """All that is said of a run; everything in the order of the manifest."""

    gains: tuple[Gain, ...]
    verdicts: tuple[Verdict, ...]
    behaviours: tuple[Written, ...]
    decompositions: tuple[Decomposition, ...]
    persisting: tuple[Persisting, ...]

    def gain(self, family: str, row: str, benchmark: str) -> Gain | None:
        """By the row's name."""
        return next(
            (g for g in self.gains if (g.family, g.row.name, g.benchmark) == (family, row, benchmark)), None
        )

    def decomposition(self, family: str, row: str, benchmark: str) -> Decomposition | None:
        """By the row's name."""
        return next(
            (d for d in self.decompositions if (d.family, d.row, d.benchmark) == (family, row, benchmark)),
            None,
        )


def find(results: Results) -> Findings:
    """All that is said of a run, found once."""
    return results.remembered(
        "findings",
        lambda: Findings(
            tuple(_gains(results)),
            tuple(verdicts(results)),
            tuple(_behaviours(results)),
            tuple(decompositions(results)),
            tuple(persisting(results)),
        ),
    )


def _gains(results: Results) -> list[Gain]:
    rows = {row.name: row for row in results.rows("main", "control")}
    judged = {
        (verdict.family, one.condition, one.benchmark): one.outcome
        for verdict in verdicts(results)
        for one in verdict.comparisons
        if one.reference == results.reference.name and one.persistence is None
    }
    found = []
    for pairing, compared in gains(results).items():
        family, name, _, benchmark = pairing
        score = results.value(family, rows[name], benchmark)
        assert score is not None, "what is compared was measured"
        outcome = judged.get((family, name, benchmark))
        if outcome is None:
            level = SIGNIFICANT / compared.tests
            outcome = judge(compared.difference, compared.p_holm, 1, None, None, level).outcome
        marks = (results.marks(family, row, benchmark) for row in (rows[name], results.reference))
        found.append(
            Gain(
                family,
                rows[name],
                benchmark,
                compared.difference,
                compared.p_holm,
                compared.is_significant,
                outcome,
                score,
                is_ruined(results, family, rows[name], benchmark),
                tuple(published_figures(results, family, rows[name], benchmark)),
                in_order("".join(marks) + results.header_marks(benchmark)),
            )
        )
    return found


def _behaviours(results: Results) -> list[Written]:
    return [
        Written(family, row, benchmark, found)
        for family in results.families
        for row in results.rows("main", "control")
        for benchmark in results.benchmarks
        if (found := behaviour(results, family, row, benchmark)) is not None
    ]
