"""The verdict of a run on each claim of the abstract, like with like, by the rule of paper_tables/claims.yaml.

    for verdict in verdicts(results):
        verdict.outcome, verdict.reason, verdict.sentence, verdict.leaves_open

One set of comparisons for each family shares Holm's correction; a comparison of several claims counts once in it.
"""

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.analysis.claims import Claim, ClaimedComparison, read_claims
from pipeline.analysis.comparisons import SIGNIFICANT
from pipeline.analysis.estimate import Difference, Estimate
from pipeline.analysis.holm import holm
from pipeline.analysis.judging import CANNOT_TELL, NOT_IN_RUN, PERSISTS, Judgement, judge, worst
from pipeline.analysis.persistence import Decision, Persistence, decide
from pipeline.analysis.published import PublishedFigure, documents_of, published_figures
from pipeline.analysis.repeats import Place, place
from pipeline.analysis.results import Results, Row, in_order

NEAR_CHANCE, ABOVE_CHANCE = (
    0.05,
    0.3,
)  # a row within the first of chance is ruined where Baseline is this far above


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
    claims = read_claims().claims
    asked = {
        _Key(c.condition, c.reference, c.benchmark): c
        for claim in claims
        for c in claim.comparisons
        if not c.perturbed
    }
    rows = {name: _row(results, name) for key in asked for name in key[:2]}
    present = {
        key: (new, old)
        for key in asked
        if (new := rows[key.condition])
        and (old := rows[key.reference])
        and key.benchmark in results.benchmarks
        and results.pairs(family, new, old, key.benchmark)
    }
    level = SIGNIFICANT / max(len(present), 1)
    found = {key: results.difference(family, *pair, key.benchmark, level) for key, pair in present.items()}
    p_values = holm([d.p if d else float("nan") for d in found.values()]).tolist()
    judged = {
        key: _judged(results, family, asked[key], present[key], d, p, level)
        for (key, d), p in zip(found.items(), p_values, strict=True)
        if d is not None
    }
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
    difference: Difference,
    p_holm: float,
    level: float,
) -> Judged:
    new, reference = rows
    figure = None
    if reference.name == results.reference.name:
        reported = published_figures(results, family, new, claimed.benchmark)
        figure = next((one for one in reported if one.difference is not None), None)
    promised = figure.difference / 100 if figure and figure.difference is not None else None
    size = documents_of(figure.benchmark) if figure else None
    judgement = judge(difference, p_holm, claimed.sign, promised, size, level)
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
    """The comparisons on perturbed documents by plain benchmark; one correction over all of them."""
    asked = [c for claim in claims for c in claim.comparisons if c.perturbed]
    cases: list[tuple[ClaimedComparison, Row, str, Persistence]] = []
    for claimed in asked:
        row = _row(results, claimed.condition)
        for variant in results.variants() if row else []:
            if row and results.plain_of(variant) == claimed.benchmark:
                robustness = results.robustness(family, row, variant)
                if robustness and robustness.persistence:
                    cases.append((claimed, row, variant, robustness.persistence))
    decisions = decide([persistence for *_, persistence in cases])
    found: dict[str, list[Judged]] = {}
    for (claimed, row, variant, persistence), decision in zip(cases, decisions, strict=True):
        both = (results.marks(family, one, variant) for one in (row, results.reference))
        found.setdefault(claimed.benchmark, []).append(
            Judged(
                benchmark=variant,
                condition=claimed.condition,
                reference=claimed.reference,
                label=f"{row.label} against {results.reference.label} on {results.label(variant)}",
                outcome=PERSISTS.get(decision.outcome, CANNOT_TELL),
                difference=persistence.gain,
                p_holm=decision.p_gain,
                judgement=None,
                figure=None,
                persistence=persistence,
                decision=decision,
                seeds=None,
                score=results.value(family, row, variant),
                is_ruined=False,
                marks=in_order("".join(both)),
            )
        )
    return found


def _row(results: Results, name: str) -> Row | None:
    """The row that a claim names: a condition, or the random control of a sign."""
    if name in ("random", "minus_random"):
        return results.row("random", 1 if name == "random" else -1)
    if name not in results.conditions or results.conditions[name].kind == "sum":
        return None
    return results.named(name)


def _name(results: Results, condition: str) -> str:
    row = _row(results, condition)
    return row.label if row else condition


def _benchmark(results: Results, name: str) -> str:
    """A benchmark's label in this run; the name in the paper of one that the run does not have."""
    paper = {"gsm8k": "GSM8K", "humaneval": "HumanEval", "sciq": "SciQ", "bbh": "BIG-Bench Hard"}
    return results.benchmarks[name].label if name in results.benchmarks else paper.get(name, name)
