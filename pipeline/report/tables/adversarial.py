"""Plain against perturbed documents, and whether the gain of each condition persists there."""

import math
from collections.abc import Mapping, Sequence

from pipeline.analysis.comparisons import repeated_families
from pipeline.analysis.estimate import Difference, Estimate
from pipeline.analysis.persistence import Decision, Share, decide
from pipeline.analysis.persisting import Persisting, persisting
from pipeline.analysis.power import LEVEL
from pipeline.analysis.published import context
from pipeline.analysis.results import Results, Row
from pipeline.analysis.robustness import MEASURES, Robustness, robustness
from pipeline.report.facts import estimate_facts
from pipeline.report.numbers import DASH, interval, minus, plus_minus
from pipeline.report.table import Block, Facts, Kind, Line, Table, Text
from pipeline.report.tables.accuracy import OVER_FAMILIES, mark_notes, star_note, unit_notes

_HEADER = (
    "Condition", "Plain", "Perturbed", "Drop", "Gain, plain (tested)", "Gain, perturbed (tested)",
    "Change of gain (tested)", "Left of the gain", "Persists",
)  # fmt: skip
_TESTED = {
    "gain_plain": "p_plain",
    "gain": "p_gain",
    "change": "p_change",
}  # columns, and their p in a Decision
_EXPLAINED = (
    "The variants are this repository's own, in groups by what is changed; the paper's sets are not published. "
    "Pairs: documents that could be changed soundly, each beside its original. "
    "Plain: on those originals. Drop: perturbed − plain. Gain: condition − Baseline. Change of gain: perturbed gain − plain"
    " gain. Left of the gain: perturbed gain over plain gain in per cent, with Fieller's interval; – where the plain gain may"
    " be zero."
)
_OUTCOMES = (
    "Persists: yes, a perturbed gain is shown, it is not shown to be smaller, and more than half is left; at least in part,"
    " likewise, but less than half may be left; in part, a perturbed gain is shown and is smaller; no, the gain is smaller and"
    " none is shown; reversed, a loss is shown; floor, no gain is shown and Baseline is less than 5 points above chance there;"
    " no gain or a loss, on the originals already; cannot tell, neither a gain nor a change is shown."
)


def table(results: Results) -> Table:
    """Each variant paired with its plain benchmark, by source document."""
    made = Table("adversarial", "Adversarial variants, paired by source document", [Text(h) for h in _HEADER])
    found = {(p.family, p.row.name, p.variant): p for p in persisting(results)}
    for family in results.families:
        for variant in results.variants():
            _add_variant(results, made, family, variant, found)
    _add_means(results, made)
    if not made.blocks:
        made.notes.append("The run has no adversarial variant.")
    made.notes += [_EXPLAINED, _OUTCOMES]
    if found:
        made.notes.append(_tests(list(found.values())))
        made.notes += unit_notes(results, results.variants())
    made.notes += mark_notes(results, made)
    made.notes += context(made.name)
    return made


def _tests(found: Sequence[Persisting]) -> str:
    """Which tests share a correction."""
    claimed = dict.fromkeys(p.row.label for p in found if p.is_claimed)
    sizes = {
        is_claimed: " or ".join(
            str(n) for n in sorted({p.tests for p in found if p.is_claimed == is_claimed})
        )
        for is_claimed in (True, False)
    }
    texts = []
    if claimed:
        texts.append(
            f"those of {', '.join(claimed)}, which the claims of the abstract name: {sizes[True]} in a family"
        )
    if sizes[False]:
        texts.append(f"those of the {'other ' if claimed else ''}rows: {sizes[False]}")
    tested = [difference for p in found for name in _TESTED if (difference := getattr(p.persistence, name))]
    return (
        "* p < 0.05. Each row has three tests on each variant: that the plain gain, the perturbed gain and the change of"
        f" gain are zero. Holm's correction is over each of these sets: {'; '.join(texts)}. Other columns are not tested and"
        f" carry no star. {star_note(tested)}"
    )


def _add_variant(
    results: Results, made: Table, family: str, variant: str, found: Mapping[tuple[str, str, str], Persisting]
) -> None:
    """The block of a family and a variant, with a line for each row that it is planned for."""
    plain, limit = results.plain_of(variant), results.benchmarks[variant].limit
    lines, pairs = [], 0
    for row in results.rows("main"):
        if not results.is_planned(family, row, variant):
            continue
        robust, known = results.robustness(family, row, variant), found.get((family, row.name, variant))
        marks = results.marks(family, row, plain, variant)
        facts: Facts = {"family": family, "benchmark": variant, "variant_of": plain, "condition": row.name}
        facts |= {"label": row.label, "limit": limit, "marks": marks}
        made.data.append(facts | _facts(robust, known.decision if known else None))
        if robust is None:
            entries = [Text("missing", marks or "m"), *[Text(DASH)] * (len(_HEADER) - 2)]
        else:
            pairs = max(pairs, robust.drop.n)
            entries = _entries(robust, known.decision if known else None, marks)
        lines.append(Line(Kind.value, row.label, entries))
    if lines:
        title = f"{results.families[family].label}: {results.label(variant, ' → ')}"
        made.blocks.append(Block(f"{title}, {pairs} pairs" if pairs else title, lines))


def _add_means(results: Results, made: Table) -> None:
    """A block for each group of independently trained families and each variant, over families and documents."""
    if not results.variants():
        return
    for group, families in repeated_families(results).items():
        means: dict[tuple[str, str], tuple[Row, int, Robustness]] = {}
        for variant in results.variants():
            for row in results.rows("main"):
                sources = [
                    s for family in families if (s := results.sources(family, row, variant)) is not None
                ]
                if sources and (mean := robustness(sources)) is not None:
                    means[variant, row.name] = (row, len(sources), mean)
        cases = {place: mean.persistence for place, (*_, mean) in means.items() if mean.persistence}
        decisions = dict(zip(cases, decide(list(cases.values())), strict=True))
        for variant in results.variants():
            lines = []
            for place, (row, seeds, mean) in means.items():
                if place[0] != variant:
                    continue
                facts: Facts = {"family": f"mean of {len(families)}", "group": group, "benchmark": variant}
                facts |= {"variant_of": results.plain_of(variant), "condition": row.name, "label": row.label}
                made.data.append(facts | _facts(mean, decisions.get(place)) | {"seeds": seeds})
                lines.append(Line(Kind.value, row.label, _entries(mean, decisions.get(place))))
            if lines:
                title = f"{group}, {results.label(variant, ' → ')}: mean of {len(families)} trained families"
                made.blocks.append(Block(title, lines))
        made.notes.append(
            f"{group}: the means over families are a set of tests of their own, {3 * len(cases)} under one correction."
        )
        if OVER_FAMILIES not in made.notes:
            made.notes.append(OVER_FAMILIES)


def _entries(robust: Robustness, decision: Decision | None, marks: str = "") -> list[Text]:
    share = robust.persistence.share if robust.persistence and decision else None
    return [
        Text(plus_minus(robust.plain), marks),
        Text(plus_minus(robust.perturbed)),
        Text(interval(robust.drop)),
        *(_tested_text(getattr(robust, name), decision, p) for name, p in _TESTED.items()),
        Text(_share_text(share) if share else DASH),
        Text(decision.outcome if decision else DASH),
    ]


def _tested_text(difference: Difference | None, decision: Decision | None, p: str) -> Text:
    if difference is None:
        return Text(DASH)
    is_significant = decision is not None and getattr(decision, p) < LEVEL
    return Text(interval(difference) + ("*" if is_significant else ""))


def _share_text(share: Share) -> str:
    """A share of a gain in per cent; a dash where the gain may be zero, so that the share may be anything."""
    if not (math.isfinite(share.low) and math.isfinite(share.high)):
        return DASH
    value, low, high = (minus(f"{100 * end:.0f}") for end in (share.value, share.low, share.high))
    return f"{value} [{low}, {high}]"


def _facts(robust: Robustness | None, decision: Decision | None) -> Facts:
    """The numbers of one row on one variant."""
    facts: Facts = {}
    for measure in MEASURES:
        estimate: Estimate | None = getattr(robust, measure) if robust else None
        facts |= estimate_facts(estimate, f"{measure}_")
    for name, p in _TESTED.items():
        difference: Difference | None = getattr(robust, name) if robust else None
        facts |= {f"{name}_p": difference.p if difference and decision else None}
        facts |= {f"{name}_p_holm": getattr(decision, p) if decision else None}
    share = robust.persistence.share if robust and robust.persistence and decision else None
    for name in ("value", "low", "high"):
        end = getattr(share, name) if share else math.nan
        facts[f"share_left_{name}"] = 100 * end if math.isfinite(end) else None
    units = robust.drop.units if robust else None
    return facts | {"units": units, "persists": decision.outcome if decision else None}
