"""Every metric that is recorded: strict match beside flexible, likelihood beside generation, unreadable and cut answers."""

from collections.abc import Mapping, Sequence

from pipeline.analysis.behaviour import Behaviour, behaviour
from pipeline.analysis.metrics import Measured, headline, measured, metrics_of
from pipeline.analysis.results import Results, Row
from pipeline.report.facts import estimate_facts
from pipeline.report.numbers import DASH, interval, percent, plus_minus
from pipeline.report.table import Block, Facts, Kind, Line, Table, Text
from pipeline.report.tables.accuracy import difference_line, mark_notes

_EXPLAINED = (
    "Every metric on the same answers, in per cent; in the title of a block the one that is the benchmark's score elsewhere."
    " Δ: difference to Baseline under that metric in points, paired by document, with its 95 % interval."
    " Other forms of a benchmark stand in its block; under acc options are scored by likelihood and nothing is written."
    " Unreadable: nothing is extracted. Cut: the token limit is hit. The scores are tested in the other tables; nothing in"
    " this one is, so nothing carries a star."
)


def table(results: Results) -> Table:
    """A block for each family and benchmark with its other forms, a line for each row and form."""
    names = metrics_of(results, results.benchmarks)
    heads = [Text("Condition"), *(Text(name_of(name)) for name in names), Text("Unreadable"), Text("Cut")]
    made = Table("metrics", "Every metric that is recorded, and answers that were unreadable or cut", heads)
    for family, entry in results.families.items():
        for forms in results.forms():
            lines: list[Line] = []
            for row in results.rows("main", "control", "again", "sweep"):
                for benchmark in forms:
                    found = measured(results, family, row, benchmark)
                    written = behaviour(results, family, row, benchmark) if found else None
                    made.data += _facts(results, family, row, benchmark, found, written)
                    if found and row.entry.role != "sweep":
                        label = row.label if len(forms) == 1 else f"{row.label}: {results.label(benchmark)}"
                        marks = results.marks(family, row, benchmark)
                        lines += _lines(label, names, found, written, marks)
            if lines:
                titles = [f"{results.label(b)} ({name_of(headline(results, b) or DASH)})" for b in forms]
                made.blocks.append(Block(f"{entry.label}: {'; '.join(titles)}", lines))
    if not made.blocks:
        made.notes.append("The run has no record yet.")
        return made
    made.notes.append(_EXPLAINED)
    made.notes += mark_notes(results, made)
    return made


def name_of(metric: str) -> str:
    """A metric as the table writes it; a task without filters has one that is called none."""
    return metric.removesuffix(",none").replace(",", ", ")


def _lines(
    label: str, names: Sequence[str], found: Sequence[Measured], written: Behaviour | None, marks: str
) -> list[Line]:
    by_name: Mapping[str, Measured] = {one.metric: one for one in found}
    values, differences = [], []
    for name in names:
        one = by_name.get(name)
        values.append(Text(plus_minus(one.value), marks if one.is_headline else "") if one else Text(DASH))
        differences.append(Text(interval(one.difference)) if one and one.difference else Text(DASH))
    shares = [written.unreadable, written.cut] if written else [None, None]
    entries = [*values, *(Text(percent(share.value) if share else DASH) for share in shares)]
    lines = [Line(Kind.value, label, entries)]
    if any(one.difference for one in found):
        lines.append(difference_line([*differences, Text(DASH), Text(DASH)]))
    return lines


def _facts(
    results: Results,
    family: str,
    row: Row,
    benchmark: str,
    found: Sequence[Measured],
    written: Behaviour | None,
) -> list[Facts]:
    """A line of the CSV for each metric; shares are those of the answers, whatever reads them."""
    entry = results.benchmarks[benchmark]
    facts = []
    for one in found:
        named: Facts = {"family": family, "benchmark": benchmark, "variant_of": entry.variant_of}
        named |= {"form_of": entry.form_of, "condition": row.name, "label": row.label}
        named |= {"alpha": row.entry.alpha, "seeds": row.seeds}
        named |= {"metric": one.metric, "is_headline": one.is_headline}
        named |= {"answers": "written" if written else "scored"}
        named |= estimate_facts(one.value) | estimate_facts(one.difference, "difference_")
        named |= estimate_facts(written.unreadable if written else None, "unreadable_")
        named |= estimate_facts(written.cut if written else None, "cut_")
        named |= {"tokens": written.length.value if written else None}
        facts.append(named)
    return facts
