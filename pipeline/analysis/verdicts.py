"""The verdict of a run on each claim of the abstract, like with like, by the rule of paper_tables/claims.yaml.

    for verdict in verdicts(results):
        verdict.outcome, verdict.reason, verdict.sentence, verdict.leaves_open

The comparisons are those of `comparisons.claimed` and `persisting.persisting`, which tables, figures and sentences
show too: one difference, one p value, one outcome wherever it stands.
"""

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.analysis.claimed import claimed_row
from pipeline.analysis.claims import Claim, ClaimedComparison, read_claims
from pipeline.analysis.comparisons import SIGNIFICANT, Compared, Pairing, claimed
from pipeline.analysis.estimate import Difference, Estimate
from pipeline.analysis.judging import NOT_IN_RUN, PERSISTS, Judgement, judge, worst
from pipeline.analysis.persistence import Decision, Persistence
from pipeline.analysis.persisting import Persisting, persisting
from pipeline.analysis.published import PublishedFigure, documents_of, published_figures
from pipeline.analysis.repeats import Place, place
from pipeline.analysis.results import Results, Row, in_order

# A row so near to chance is ruined, where Baseline is so far above it.
NEAR_CHANCE, ABOVE_CHANCE = 0.05, 0.3


@dataclass(frozen=True)
class OtherForm:
    """The same comparison in another form of the benchmark: shown, not tested, and no part of the outcome."""

    benchmark: str
    difference: Difference


@dataclass(frozen=True)
class Judged:
    """One comparison of a claim, with its outcome; differences are fractions."""

    benchmark: str
    condition: str
    reference: str
    label: str  # "+Vector against Baseline on Arithmetic"
    outcome: str
    difference: Difference | None  # None where a cell is missing
    p_holm: float
    judgement: Judgement | None
    figure: PublishedFigure | None  # what the paper reports for this size, benchmark and condition
    persistence: Persistence | None  # of a comparison on perturbed documents
    decision: Decision | None
    seeds: Place | None  # how many random seeds are as far from Baseline as v is
    score: Estimate | None  # of the condition itself
    is_ruined: bool  # whether hardly an answer is right any more
    marks: str
    others: tuple[OtherForm, ...] = ()  # where the run has the benchmark in several forms


@dataclass(frozen=True)
class Verdict:
    """What a run says on one claim for one family."""

    family: str
    claim: str  # its id
    statement: str  # in the words of this family's benchmarks
    sentence: str  # of the abstract
    leaves_open: str
    outcome: str
    comparisons: tuple[Judged, ...]
    missing: tuple[str, ...]  # comparisons that the claim names and the run has no cells for

    @property
    def is_published(self) -> bool:
        """Whether a published figure stands beside ours."""
        return any(judged.figure is not None for judged in self.comparisons)

    @property
    def is_in_run(self) -> bool:
        return bool(self.comparisons)


class _Key(NamedTuple):
    condition: str
    reference: str
    benchmark: str


def verdicts(results: Results) -> list[Verdict]:
    """One verdict for each family and claim, in the order of claims.yaml."""
    return results.remembered(
        "verdicts", lambda: [v for family in results.families for v in _of(results, family)]
    )


def _of(results: Results, family: str) -> list[Verdict]:
    claims, tested = read_claims().claims, claimed(results)
    judged: dict[_Key, Judged] = {}
    for claim in claims:
        for c in claim.comparisons:
            new, reference = claimed_row(results, c.condition), claimed_row(results, c.reference)
            if new is None or reference is None or c.perturbed:
                continue
            found = tested.get(Pairing(family, new.name, reference.name, c.benchmark))
            if found is not None:
                key = _Key(c.condition, c.reference, c.benchmark)
                judged[key] = _judged(results, family, c, (new, reference), found)
    persisting = _persisting(results, family, claims)
    return [_verdict(results, family, claim, judged, persisting) for claim in claims]


def _verdict(
    results: Results,
    family: str,
    claim: Claim,
    judged: dict[_Key, Judged],
    persisting: dict[str, list[Judged]],
) -> Verdict:
    comparisons: list[Judged] = []
    missing: list[str] = []
    for c in claim.comparisons:
        key = _Key(c.condition, c.reference, c.benchmark)
        found = persisting.get(c.benchmark, []) if c.perturbed else [judged[key]] if key in judged else []
        comparisons += found
        if not found:
            variants = "variants of " if c.perturbed else ""
            missing.append(f"{_name(results, c.condition)} on {variants}{_benchmark(results, c.benchmark)}")
    outcome = worst([j.outcome for j in comparisons]) if comparisons else NOT_IN_RUN
    return Verdict(
        family,
        claim.id,
        claim.statement.format(benchmark=_benchmark(results, claim.comparisons[0].benchmark)),
        claim.sentence,
        claim.leaves_open,
        outcome,
        tuple(comparisons),
        tuple(missing),
    )


def _judged(
    results: Results,
    family: str,
    claimed: ClaimedComparison,
    rows: tuple[Row, Row],
    compared: Compared,
) -> Judged:
    new, reference = rows
    difference, p_holm = compared.difference, compared.p_holm
    figure = None
    if reference.name == results.reference.name:
        reported = published_figures(results, family, new, claimed.benchmark)
        figure = next((one for one in reported if one.difference is not None), None)
    promised = figure.difference / 100 if figure and figure.difference is not None else None
    size = documents_of(figure.benchmark) if figure else None
    judgement = judge(difference, p_holm, claimed.sign, promised, size, SIGNIFICANT / compared.tests)
    both = (results.marks(family, row, claimed.benchmark) for row in rows)
    return Judged(
        benchmark=claimed.benchmark,
        condition=claimed.condition,
        reference=claimed.reference,
        label=f"{new.label} against {reference.label} on {results.label(claimed.benchmark)}",
        outcome=judgement.outcome,
        difference=difference,
        p_holm=p_holm,
        judgement=judgement,
        figure=figure,
        persistence=None,
        decision=None,
        seeds=seeds_as_far(results, family, new, reference, claimed.benchmark),
        score=results.value(family, new, claimed.benchmark),
        is_ruined=is_ruined(results, family, new, claimed.benchmark),
        marks=in_order("".join(both) + results.gpu_marks(family, rows, claimed.benchmark)),
        others=_others(results, family, new, reference, claimed.benchmark),
    )


def _others(results: Results, family: str, new: Row, reference: Row, benchmark: str) -> tuple[OtherForm, ...]:
    forms = next(forms for forms in results.forms() if benchmark in forms)
    found = {
        other: results.difference(family, new, reference, other) for other in forms if other != benchmark
    }
    return tuple(OtherForm(other, difference) for other, difference in found.items() if difference)


def seeds_as_far(results: Results, family: str, new: Row, control: Row, benchmark: str) -> Place | None:
    """How many seeds of a random control are as far from Baseline as a row is; None where there is no such control."""
    if control.entry.seed is None:
        return None
    gain = results.difference(family, new, results.reference, benchmark)
    gains = [
        one.value
        for name in control.members
        if (one := results.difference(family, results.named(name), results.reference, benchmark))
    ]
    return place(gain.value, gains) if gain and gains else None


def is_ruined(results: Results, family: str, row: Row, benchmark: str) -> bool:
    """Whether a row answers hardly better than chance where Baseline is far above it."""
    value = results.value(family, row, benchmark)
    baseline = results.value(family, results.reference, benchmark)
    if value is None or baseline is None:
        return False
    chance = results.guessing(benchmark).chance
    return value.value < chance + NEAR_CHANCE and baseline.value > chance + ABOVE_CHANCE


def _persisting(results: Results, family: str, claims: tuple[Claim, ...]) -> dict[str, list[Judged]]:
    """The comparisons on perturbed documents by plain benchmark, as `persisting` decides them."""
    decided = {(one.family, one.row.name, one.variant): one for one in persisting(results)}
    found: dict[str, list[Judged]] = {}
    for c in (c for claim in claims for c in claim.comparisons if c.perturbed):
        row = claimed_row(results, c.condition)
        for variant in results.variants() if row else []:
            one = decided.get((family, row.name, variant)) if row else None
            if row and one and results.plain_of(variant) == c.benchmark:
                found.setdefault(c.benchmark, []).append(_on_variant(results, c, one))
    return found


def _on_variant(results: Results, c: ClaimedComparison, one: Persisting) -> Judged:
    row, variant = one.row, one.variant
    both = (results.marks(one.family, each, variant) for each in (row, results.reference))
    return Judged(
        benchmark=variant,
        condition=c.condition,
        reference=c.reference,
        label=f"{row.label} against {results.reference.label} on {results.label(variant)}",
        outcome=PERSISTS[one.decision.outcome],
        difference=one.persistence.gain,
        p_holm=one.decision.p_gain,
        judgement=None,
        figure=None,
        persistence=one.persistence,
        decision=one.decision,
        seeds=None,
        score=results.value(one.family, row, variant),
        is_ruined=False,
        marks=in_order("".join(both)),
    )


def _name(results: Results, condition: str) -> str:
    row = claimed_row(results, condition)
    return row.label if row else condition


def _benchmark(results: Results, name: str) -> str:
    """A benchmark's label in this run; the name in the paper of one that the run does not have."""
    paper = {"gsm8k": "GSM8K", "humaneval": "HumanEval", "sciq": "SciQ", "bbh": "BIG-Bench Hard"}
    return results.benchmarks[name].label if name in results.benchmarks else paper.get(name, name)
