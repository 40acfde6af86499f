"""What the tables of accuracies share: column heads, lines of values and of differences, means, footnotes."""

from collections.abc import Iterable, Mapping, Sequence

from pipeline.analysis.comparisons import (
    SIGNIFICANT,
    Compared,
    Contrast,
    Pairing,
    mean_difference,
    mean_value,
    repeated_families,
)
from pipeline.analysis.estimate import Difference
from pipeline.analysis.noise_floor import asked_again
from pipeline.analysis.published import context, published
from pipeline.analysis.results import MARKS, Results, Row
from pipeline.analysis.vectors import rounding_notes
from pipeline.report.facts import cell_facts, estimate_facts
from pipeline.report.numbers import DASH, interval, percent, plus_minus, signed, star
from pipeline.report.table import Block, Facts, Kind, Line, Table, Text

OVER_FAMILIES = "Means over families: families and documents are both samples, so the interval covers the variation of both."
_WORTH_SAYING = 0.05  # a score of guessing below this is not shown
_TESTS = (
    "exact sign flips over independent units (McNemar's test where every document is one); with seeds or families, a t test that"
    " includes the variation between documents"
)
_DETECTABLE = (
    "detectable: the smallest true difference that this test, at the first step of Holm's correction, would find with 80 %"
    " power on such documents; a dash where there are too few independent units to find any."
)
_AGAIN = (
    "asked again: the line above with its documents in another order and in other batches, so with the same weights and"
    " prompts: the difference in points, and how many documents got another score. It is what the engine's arithmetic alone"
    " moves (docs/repeatability.md); it is not tested."
)


def header(results: Results, first: str, benchmarks: Iterable[str]) -> list[Text]:
    """Column heads; a limited benchmark says its limit in the head."""
    heads = []
    for benchmark in benchmarks:
        limit = results.benchmarks[benchmark].limit
        name = results.label(benchmark, ", ") + (f" (first {limit})" if limit is not None else "")
        heads.append(Text(name, results.header_marks(benchmark)))
    return [Text(first), *heads]


def value_text(results: Results, family: str, row: Row, benchmark: str) -> Text:
    """A row's accuracy, a marked word where the planned cell is not there, a dash where none is planned."""
    if not results.is_planned(family, row, benchmark):
        return Text(DASH)
    marks = results.marks(family, row, benchmark)
    value = results.value(family, row, benchmark)
    if value is None:
        return Text("damaged" if "d" in marks else "missing", marks)
    return Text(plus_minus(value), marks)


def difference_text(compared: Compared | None) -> Text:
    return Text(interval(compared.difference) + star(compared)) if compared else Text(DASH)


def difference_line(entries: Sequence[Text]) -> Line:
    return Line(Kind.difference, "Δ", entries)


def again_lines(results: Results, family: str, row: Row, benchmarks: Sequence[str]) -> list[Line]:
    """What moved where a row was asked again: points, and documents with another score; no line where it was not."""
    found = [asked_again(results, family, row, benchmark) for benchmark in benchmarks]
    if not any(found):
        return []
    entries = [
        Text(
            f"{signed(moved.difference.value)} ({moved.changed} of {moved.difference.n})",
            results.gpu_marks(family, (moved.again, row), moved.benchmark),
        )
        if moved
        else Text(DASH)
        for moved in found
    ]
    return [Line(Kind.again, "asked again", entries)]


def again_facts(results: Results, family: str, row: Row, benchmarks: Iterable[str]) -> list[Facts]:
    """Lines of the CSV on a row that was asked again: its difference to itself, which is not tested."""
    facts = []
    for benchmark in benchmarks:
        if (moved := asked_again(results, family, row, benchmark)) is not None:
            named = cell_facts(results, family, moved.again, benchmark, None)
            named |= estimate_facts(moved.difference, "difference_")
            named |= {"gained": moved.difference.gained, "lost": moved.difference.lost}
            facts.append(named | {"reference": row.name, "otherwise_read": moved.otherwise_read})
    return facts


class Accuracies:
    """Adds the lines and the CSV of rows to a table, with their differences to what they are compared with."""

    def __init__(
        self,
        results: Results,
        table: Table,
        benchmarks: Sequence[str],
        compared: Mapping[Pairing, Compared],
    ) -> None:
        self.results, self.table, self.benchmarks, self.compared = results, table, benchmarks, compared

    def differences(self, family: str, row: Row, reference: Row) -> list[Compared | None]:
        """By benchmark."""
        return [self.compared.get(Pairing(family, row.name, reference.name, b)) for b in self.benchmarks]

    def lines(self, family: str, row: Row, reference: Row) -> list[Line]:
        """A line of accuracies and, where there are some, a line of differences to the reference."""
        values = [value_text(self.results, family, row, b) for b in self.benchmarks]
        lines = [Line(Kind.value, row.label, values)]
        differences = self.differences(family, row, reference)
        if any(differences):
            lines.append(difference_line([difference_text(found) for found in differences]))
        return lines

    def facts(self, family: str, row: Row, reference: Row) -> list[Facts]:
        """Lines of the CSV, by benchmark."""
        differences = zip(self.benchmarks, self.differences(family, row, reference), strict=True)
        return [cell_facts(self.results, family, row, b, found) for b, found in differences]

    def add_means(
        self, rows: Iterable[Row], reference: Row, contrasts: Sequence[Contrast] = (), of: str = ""
    ) -> None:
        """A block for each group of independently trained families: means over them with their t intervals.

        Args:
            contrasts: for a block of differences between rows.
            of: what the rows are, where the table has several such blocks.
        """
        for group, families in repeated_families(self.results).items():
            name = ", ".join(filter(None, [group, of]))
            title = f"{name}: mean of {len(families)} independently trained families"
            lines = []
            for row in rows:
                lines += self._mean_lines(group, families, row, reference)
            self.table.blocks.append(Block(title, lines))
            lines = [self._mean_contrast(group, families, contrast) for contrast in contrasts]
            if lines:
                self.table.blocks.append(Block(f"{title}, differences between rows", lines))
            if OVER_FAMILIES not in self.table.notes:
                self.table.notes.append(OVER_FAMILIES)

    def _mean_lines(self, group: str, families: Sequence[str], row: Row, reference: Row) -> list[Line]:
        values, differences = [], []
        for benchmark in self.benchmarks:
            value = mean_value(self.results, families, row, benchmark)
            change = mean_difference(self.results, families, row, reference, benchmark)
            values.append(Text(plus_minus(value.estimate) if value.estimate else DASH))
            differences.append(Text(interval(change.estimate) if change.estimate else DASH))
            named: Facts = {"family": f"mean of {len(families)}", "group": group, "benchmark": benchmark}
            named |= {"condition": row.name, "label": row.label, "seeds": value.families}
            numbers = estimate_facts(value.estimate) | estimate_facts(change.estimate, "difference_")
            self.table.data.append(named | numbers)
        lines = [Line(Kind.value, row.label, values)]
        if any(entry.text != DASH for entry in differences):
            lines.append(difference_line(differences))
        return lines

    def _mean_contrast(self, group: str, families: Sequence[str], contrast: Contrast) -> Line:
        new, reference = contrast
        entries = []
        for benchmark in self.benchmarks:
            change = mean_difference(self.results, families, new, reference, benchmark)
            entries.append(Text(interval(change.estimate) if change.estimate else DASH))
            named: Facts = {"family": f"mean of {len(families)}", "group": group, "benchmark": benchmark}
            named |= {"condition": new.name, "label": contrast_label(contrast), "seeds": change.families}
            named["reference"] = reference.name
            self.table.data.append(named | estimate_facts(change.estimate, "difference_"))
        return Line(Kind.value, contrast_label(contrast), entries)


def contrast_label(contrast: Contrast) -> str:
    new, reference = contrast
    return f"{new.label} against {reference.label}"


def mark_notes(results: Results, table: Table) -> list[str]:
    """What each footnote mark of a table means; where a prompt cannot act, why not."""
    notes = [f"{mark}: {MARKS[mark]}" for mark in table.marks() if mark in MARKS]
    reasons = "; ".join(
        f"{results.label(benchmark)}: {entry.cannot_think}"
        for benchmark, entry in results.benchmarks.items()
        if entry.cannot_think is not None and entry.variant_of is None
    )
    return [f"{note} ({reasons})." if note.startswith("n: ") else f"{note}." for note in notes]


def unit_notes(results: Results, benchmarks: Iterable[str]) -> list[str]:
    """How many independent units each benchmark has, what its mean is over, and what guessing scores there."""
    copies, means, guesses = [], [], []
    for benchmark in benchmarks:
        found, label = results.units(benchmark), results.label(benchmark)
        if found and found.units < found.documents:
            copies.append(f"{label} {found.units} of {found.documents}")
        if results.benchmarks[benchmark].cluster == "subtask":
            means.append(label)
        guess = results.guessing(benchmark)
        if guess.majority >= _WORTH_SAYING:
            one = f", one answer to all {percent(guess.majority)}" if guess.majority > guess.chance else ""
            guesses.append(f"{label} {percent(guess.chance)}{one}")
    notes = []
    if copies:
        notes.append(
            "Independent units (documents of one template or source, or with nearly the same prompt, are one unit):"
            f" {'; '.join(copies)}."
        )
    if means:
        notes.append(
            f"{', '.join(means)}: the mean over the subtasks, which are fixed; the interval is that of documents within them."
        )
    if guesses:
        notes.append(f"Score of guessing in per cent: {'; '.join(guesses)}.")
    return notes


def corrections(results: Results, compared: Mapping[Pairing, Compared]) -> str:
    """Which comparisons on plain documents share a correction, in a table of these."""
    sizes = {
        is_claimed: " or ".join(
            str(n) for n in sorted({one.tests for p, one in plain.items() if one.is_claimed == is_claimed})
        )
        for plain in [{p: one for p, one in compared.items() if p.benchmark in results.plain()}]
        for is_claimed in (True, False)
    }
    claimed = f"the {sizes[True]} of a family that the claims of the abstract name"
    texts = [claimed] * bool(sizes[True]) + [f"{sizes[False]} others"] * bool(sizes[False])
    each = "; a comparison has the same p value wherever it is shown" if sizes[True] else ""
    return f"Holm's correction over {', or over '.join(texts)}{each}"


def star_note(differences: Iterable[Difference]) -> str:
    """What a star says of the interval beside it, and why an interval of these may leave zero out without one."""
    beyond = [one for one in differences if not one.low <= 0 <= one.high and one.p >= SIGNIFICANT]
    few = ", or rests on fewer than six independent units, of which no test can reject" if beyond else ""
    return (
        "A star stands only where the interval leaves zero out. Intervals are not corrected: one that leaves zero out without"
        f" a star is not significant after the correction{few}."
    )


def footnotes(
    results: Results,
    table: Table,
    compared: Mapping[Pairing, Compared],
    others: Mapping[Pairing, Compared] | None = None,
) -> list[str]:
    """The footnotes that every table of accuracies shares.

    Args:
        compared: the comparisons of the table.
        others: further ones, whose correction has a note of its own.
    """
    notes = mark_notes(results, table)
    tested = list(compared)
    if tested:
        notes.append(
            "±: half of the 95 % interval; both ends are in brackets where it is lopsided. Δ: difference to Baseline in percentage points, paired by document, with its"
            f" 95 % interval. * p < 0.05 after {corrections(results, compared)}. Tests: {_TESTS} (docs/statistics.md)."
        )
        notes.append(star_note(one.difference for one in [*compared.values(), *(others or {}).values()]))
        notes += unit_notes(results, dict.fromkeys(pairing.benchmark for pairing in tested))
    if table.has(Kind.detectable):
        notes.append(_DETECTABLE)
    if table.has(Kind.again):
        notes.append(_AGAIN)
    if table.has(Kind.published):
        letters = "; ".join(f"{letter} = {source}" for letter, source in published().sources.items())
        notes.append(f"paper: as published, in points against Baseline. {letters}.")
    return notes + rounding_notes(results) + context(table.name)
