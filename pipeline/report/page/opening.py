"""What the page shows first, as data for its template: the heat map of gains, and the verdicts with what they rest on.

Each cell and each comparison leads to its samples (`samples.link`), each comparison to its row of a table too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.analysis import judging
from pipeline.analysis.comparisons import Compared
from pipeline.analysis.findings import find
from pipeline.analysis.results import Results, Row
from pipeline.analysis.verdicts import Judged, Verdict
from pipeline.report.figures.gains import shade
from pipeline.report.formats import row_id
from pipeline.report.gains import Gains
from pipeline.report.numbers import DASH, count, interval, signed
from pipeline.report.page.samples import link
from pipeline.report.sentences import form_notes, p_text, remarks
from pipeline.report.table import Kind, Table

_GOOD = (judging.AGREES, judging.LARGER, judging.FOUND, "persists")
_BAD = (judging.OPPOSITE, judging.NO_EFFECT, "does not persist", "reversed")


@dataclass(frozen=True)
class Cell:
    """One gain of the heat map; a dash where the run has none."""

    text: str
    title: str = ""  # what is said of it when it is pointed at
    href: str = ""
    fill: str = ""
    ink: str = ""
    is_hatched: bool = False


@dataclass(frozen=True)
class HeatMap:
    """The gains of one family: groups of labelled rows under the benchmarks' labels."""

    family: str
    columns: list[tuple[str, bool]]  # label, and whether it is a variant
    groups: list[tuple[str, list[tuple[str, list[Cell]]]]]


@dataclass(frozen=True)
class Comparison:
    """A line of a verdict."""

    label: str
    n: str
    difference: str
    p: str
    published: str
    outcome: str
    tone: str  # good, bad or open
    remarks: str
    row: str  # fragment of its row in a table; empty where there is none
    samples: str  # fragment of the samples that changed


@dataclass(frozen=True)
class Claim:
    """A verdict as the page shows it."""

    family: str
    outcome: str
    tone: str
    statement: str
    sentence: str
    leaves_open: str
    forms: str  # which form of a benchmark is judged, where the run has several
    missing: str
    comparisons: list[Comparison]


Lead = Callable[[str, Row, str], str]  # family, row, benchmark: the fragment that its cell leads to


def heat_maps(results: Results, found: Gains, lead: Lead) -> list[HeatMap]:
    """One for each family with a tested difference."""
    columns = [(results.label(b), b not in results.plain()) for b in found.benchmarks]
    maps = []
    for family in found.families:
        groups = []
        for title, rows in found.groups.items():
            cells = [
                (row.label, [_cell(results, found, family, row, b, lead) for b in found.benchmarks])
                for row in rows
            ]
            groups.append((title, cells))
        maps.append(HeatMap(results.families[family].label, columns, groups))
    return maps


def changed_from_reference(results: Results) -> Lead:
    """Leads to the answers of a row that differ in score from the reference's."""
    reference = results.reference.name
    return lambda family, row, benchmark: link(family, benchmark, reference, row.name, show="changed")


def _cell(results: Results, found: Gains, family: str, row: Row, benchmark: str, lead: Lead) -> Cell:
    compared = found.at(family, row, benchmark)
    if compared is None:
        return Cell(DASH)
    fill, ink = shade(100 * compared.difference.value)
    title = (
        f"{row.label} on {results.label(benchmark)}: {interval(compared.difference)} points, "
        f"{p_text(compared.p_holm)} after Holm's correction, {_documents(compared)}"
    )
    text, is_hatched = signed(compared.difference.value), not compared.is_significant
    return Cell(text, title, lead(family, row, benchmark), fill, ink, is_hatched)


def _documents(compared: Compared) -> str:
    difference = compared.difference
    units = f" in {count(difference.units)} independent units" if difference.units < difference.n else ""
    return f"{count(difference.n)} documents{units}"


def claims(results: Results, tables: Sequence[Table]) -> list[Claim]:
    """The verdicts of claims that the run has a comparison for."""
    return [_claim(results, verdict, tables) for verdict in find(results).verdicts if verdict.is_in_run]


def absent_claims(results: Results) -> list[str]:
    """Statements of the claims that the run has no comparison for."""
    absent = [verdict for verdict in find(results).verdicts if not verdict.is_in_run]
    several = len(results.families) > 1
    return [(f"{results.families[v.family].label}: " if several else "") + v.statement for v in absent]


def _claim(results: Results, verdict: Verdict, tables: Sequence[Table]) -> Claim:
    return Claim(
        family=results.families[verdict.family].label if len(results.families) > 1 else "",
        outcome=verdict.outcome,
        tone=_tone(verdict.outcome),
        statement=verdict.statement,
        sentence=verdict.sentence,
        leaves_open=verdict.leaves_open,
        forms="; ".join(form_notes(results, verdict)),
        missing=", ".join(verdict.missing),
        comparisons=[_comparison(results, verdict.family, judged, tables) for judged in verdict.comparisons],
    )


def _comparison(results: Results, family: str, judged: Judged, tables: Sequence[Table]) -> Comparison:
    difference = judged.difference
    assert difference is not None, "what is judged was measured"
    figure = judged.figure.difference if judged.figure else None
    units = f" ({count(difference.units)} units)" if difference.units < difference.n else ""
    new, old = (_first(results, name) for name in (judged.condition, judged.reference))
    return Comparison(
        label=judged.label,
        n=f"{count(difference.n)}{units}",
        difference=interval(difference),
        p=p_text(judged.p_holm).removeprefix("p = ").removeprefix("p "),
        published=DASH if figure is None else signed(figure / 100),
        outcome=judged.outcome,
        tone=_tone(judged.outcome),
        remarks="; ".join(remarks(judged)),
        row=_row(results, family, new, judged.benchmark, tables),
        samples=link(family, judged.benchmark, old.name, new.name, show="changed"),
    )


def _first(results: Results, name: str) -> Row:
    """The row that a claim names; of a random control its first seed stands in the browser of samples."""
    signs = {"random": 1, "minus_random": -1}
    row = results.row("random", signs[name]) if name in signs else results.named(name)
    assert row is not None, "what is judged has its rows"
    return row


def _tone(outcome: str) -> str:
    return "good" if outcome in _GOOD else "bad" if outcome in _BAD else "open"


def _row(results: Results, family: str, row: Row, benchmark: str, tables: Sequence[Table]) -> str:
    """The first row of this condition in a block of this family, and of this variant where it is one."""
    is_variant, title = benchmark not in results.plain(), results.families[family].label
    if is_variant:
        title = f"{title}: {results.label(benchmark, ' → ')}, "
    for table in tables:
        if is_variant != (table.name == "adversarial"):
            continue
        for block_at, block in enumerate(table.blocks):
            if not (block.title.startswith(title) if is_variant else block.title == title):
                continue
            for line_at, line in enumerate(block.lines):
                if line.kind is Kind.value and line.label == row.label:
                    return f"#{row_id(table.name, block_at, line_at)}"
    return ""
