"""The controls against Baseline, then v against each control."""

from collections.abc import Sequence

from pipeline.analysis.comparisons import Contrast, control_contrasts, control_rows, gains
from pipeline.analysis.comparisons import contrasts as tested_contrasts
from pipeline.analysis.results import Results, Row
from pipeline.analysis.verdicts import seeds_as_far
from pipeline.report.numbers import DASH, percent
from pipeline.report.table import Block, Kind, Line, Table, Text
from pipeline.report.tables.accuracy import (
    Accuracies,
    contrast_label,
    corrections,
    difference_text,
    footnotes,
    header,
)

_SEEDS = (
    "Random controls: the mean over seeds, which are a sample; intervals cover the variation between seeds and between"
    " documents."
)


def table(results: Results) -> Table:
    """Accuracy of prompt, donors and random vectors, and paired differences between them."""
    rows, benchmarks, reference = control_rows(results), results.plain(), results.reference
    contrasts = control_contrasts(results)
    of_contrasts = tested_contrasts(results)
    compared = gains(results) | of_contrasts
    title = "Controls: prompt, donors and random vectors of equal norm"
    made = Table("controls", title, header(results, "Condition", benchmarks))
    accuracies = Accuracies(results, made, benchmarks, compared)
    for family, entry in results.families.items():
        lines = []
        for row in rows:
            lines += accuracies.lines(family, row, reference)
            lines += _spread(results, family, row, benchmarks)
            made.data += accuracies.facts(family, row, reference)
        made.blocks.append(Block(entry.label, lines))
        lines = []
        for contrast in contrasts:
            label, old = contrast_label(contrast), contrast[1].name
            differences = accuracies.differences(family, *contrast)
            marks = [results.gpu_marks(family, contrast, benchmark) for benchmark in benchmarks]
            shown = [Text(difference_text(d).text, m) for d, m in zip(differences, marks, strict=True)]
            lines.append(Line(Kind.value, label, shown))
            facts = accuracies.facts(family, *contrast)
            made.data += [fact | {"label": label, "reference": old} for fact in facts]
        if lines:
            made.blocks.append(Block(f"{entry.label}: paired differences between rows", lines))
    accuracies.add_means(rows, reference, contrasts)
    if any(len(row.members) > 1 for row in rows):
        made.notes.append(_SEEDS)
        made.notes += _places(results, contrasts, benchmarks)
    if of_contrasts:
        made.notes.append(f"Differences between rows: {corrections(results, of_contrasts)}.")
    made.notes += footnotes(results, made, gains(results), of_contrasts)
    return made


def _places(results: Results, contrasts: Sequence[Contrast], benchmarks: list[str]) -> list[str]:
    """For each control with seeds: how many of its seeds are as far from Baseline as v is."""
    notes = []
    for family, entry in results.families.items():
        for new, control in contrasts:
            texts = [
                f"{found.as_far} of {found.of} on {results.benchmarks[benchmark].label}"
                for benchmark in benchmarks
                if (found := seeds_as_far(results, family, new, control, benchmark))
            ]
            if texts:
                notes.append(
                    f"{entry.label}, seeds of {control.entry.row_label} at least as far from Baseline as"
                    f" {new.label}: {', '.join(texts)}."
                )
    return notes


def _spread(results: Results, family: str, row: Row, benchmarks: list[str]) -> list[Line]:
    """The range of a random control over its seeds."""
    if len(row.members) < 2:
        return []
    entries = []
    for benchmark in benchmarks:
        seeds = [results.value(family, results.named(name), benchmark) for name in row.members]
        values = [seed.value for seed in seeds if seed]
        entries.append(Text(f"{percent(min(values))} to {percent(max(values))}" if values else DASH))
    return [Line(Kind.spread, "range over seeds", entries)]
