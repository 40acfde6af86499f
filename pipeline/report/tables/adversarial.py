"""Plain against perturbed documents, and whether the gain of each condition persists there."""

from collections.abc import Mapping

from pipeline.analysis.comparisons import Compared, Pairing, corrected, repeated_families
from pipeline.analysis.results import REFERENCE, Results, Row
from pipeline.analysis.robustness import (
    CHANGES,
    MEASURES,
    SHARES,
    Robustness,
    mean_robustness,
    persists,
)
from pipeline.analysis.statistics import Estimate
from pipeline.report.facts import estimate_facts
from pipeline.report.numbers import DASH, interval, plus_minus
from pipeline.report.table import Block, Facts, Kind, Line, Table, Text
from pipeline.report.tables.accuracy import OVER_FAMILIES, difference_text, footnotes

_HEADER = (
    "Condition", "Plain", "Perturbed", "Drop", "Gain, plain", "Gain, perturbed", "Change of gain", "Persists",
)  # fmt: skip
_EXPLAINED = (
    "The variants are this repository's own, in groups by what is changed; the paper's sets are not published. "
    "Pairs: documents that could be changed soundly, each beside its original. "
    "Plain: over the source documents of the perturbed ones. Drop: perturbed − plain. Gain: condition − "
    "Baseline. Change of gain: the difference in differences. Intervals are clustered by source "
    "document, or by the plain benchmark's clusters where it has some. Persists: yes where the interval "
    "of the gain on the perturbed documents lies above zero, reversed where below, else not shown; a loss "
    "where the condition loses on the plain documents already."
)

Found = Mapping[Pairing, Robustness]


def table(results: Results) -> Table:
    """Each variant paired with its plain benchmark, by source document."""
    rows = results.rows("main")
    found = {
        _pairing(family, row, variant): robustness
        for family in results.families
        for variant in results.variants()
        for row in rows
        if (robustness := results.robustness(family, row, variant)) is not None
    }
    gains = corrected({pairing: r.gain for pairing, r in found.items() if r.gain is not None})
    title = "Adversarial variants, paired by source document"
    made = Table("adversarial", title, [Text(name) for name in _HEADER])
    for family in results.families:
        for variant in results.variants():
            _add_variant(results, made, family, variant, found, gains)
    _add_means(results, made, found)
    if not made.blocks:
        made.notes.append("The run has no adversarial variant.")
    made.notes.append(_EXPLAINED)
    made.notes += footnotes(results, made, gains)
    return made


def _pairing(family: str, row: Row, variant: str) -> Pairing:
    return Pairing(family, row.name, REFERENCE, variant)


def _add_variant(
    results: Results,
    made: Table,
    family: str,
    variant: str,
    found: Found,
    gains: Mapping[Pairing, Compared],
) -> None:
    """The block of a family and a variant, with a line for each row that it is planned for."""
    plain, limit = results.plain_of(variant), results.benchmarks[variant].limit
    lines, pairs = [], 0
    for row in results.rows("main"):
        if not results.is_planned(family, row, variant):
            continue
        pairing = _pairing(family, row, variant)
        robustness, gain = found.get(pairing), gains.get(pairing)
        persisting = persists(robustness.gain_plain, robustness.gain) if robustness else None
        marks = results.marks(family, row, plain, variant)
        facts: Facts = {"family": family, "benchmark": variant, "variant_of": plain, "condition": row.name}
        facts |= {"label": row.label, "limit": limit, "marks": marks}
        for measure in MEASURES:
            facts |= estimate_facts(getattr(robustness, measure) if robustness else None, f"{measure}_")
        facts |= {"gain_p": gain.difference.p if gain else None, "gain_p_holm": gain.p_holm if gain else None}
        made.data.append(facts | {"persists": persisting})
        if robustness is None:
            entries = [Text("missing", marks or "m"), *[Text(DASH)] * 6]
        else:
            pairs = max(pairs, robustness.drop.n)
            entries = [
                Text(plus_minus(robustness.plain), marks),
                Text(plus_minus(robustness.perturbed)),
                Text(interval(robustness.drop)),
                _interval_text(robustness.gain_plain),
                difference_text(gain),
                _interval_text(robustness.change),
                Text(persisting or DASH),
            ]
        lines.append(Line(Kind.value, row.label, entries))
    if lines:
        title = f"{results.families[family].label}: {results.label(variant, ' → ')}"
        made.blocks.append(Block(f"{title}, {pairs} pairs" if pairs else title, lines))


def _add_means(results: Results, made: Table, found: Found) -> None:
    """A block for each group of independently trained families and each variant, with t intervals."""
    if not results.variants():
        return
    for group, families in repeated_families(results).items():
        for variant in results.variants():
            lines = []
            for row in results.rows("main"):
                of_families = [r for f in families if (r := found.get(_pairing(f, row, variant))) is not None]
                if not of_families:
                    continue
                means = mean_robustness(of_families)
                persisting = persists(means["gain_plain"], means["gain"])
                facts: Facts = {"family": f"mean of {len(families)}", "group": group, "benchmark": variant}
                facts |= {"variant_of": results.plain_of(variant), "condition": row.name}
                facts |= {"label": row.label, "persists": persisting}
                for measure, mean in means.items():
                    facts |= estimate_facts(mean, f"{measure}_")
                made.data.append(facts | {"seeds": len(of_families)})
                entries = [Text(plus_minus(mean) if (mean := means[share]) else DASH) for share in SHARES]
                entries += [_interval_text(means[change]) for change in CHANGES]
                lines.append(Line(Kind.value, row.label, [*entries, Text(persisting or DASH)]))
            if lines:
                title = f"{group}, {results.label(variant, ' → ')}: mean of {len(families)} trained families"
                made.blocks.append(Block(title, lines))
        if OVER_FAMILIES not in made.notes:
            made.notes.append(OVER_FAMILIES)


def _interval_text(estimate: Estimate | None) -> Text:
    return Text(interval(estimate) if estimate else DASH)
