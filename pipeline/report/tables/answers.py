"""What v does to answers: their length and form, and how much of each gain is form and how much is right answers."""

from collections.abc import Mapping

from pipeline.analysis.behaviour import PARTS, Behaviour, Decomposition
from pipeline.analysis.estimate import Estimate
from pipeline.analysis.findings import find
from pipeline.analysis.results import Results, Row
from pipeline.report.facts import estimate_facts
from pipeline.report.numbers import DASH, interval, percent, plus_minus
from pipeline.report.table import Block, Facts, Kind, Line, Table, Text
from pipeline.report.tables.accuracy import mark_notes

_HEADER = (
    "Condition", "Tokens", "With steps", "In form", "Right, given steps", "Unreadable", "Cut", "Gain",
    "of it form", "of it right answers",
)  # fmt: skip
_SHARES = ("steps", "in_form", "right_given_steps", "unreadable", "cut")  # columns, in order
_WITH_INTERVAL = ("steps", "right_given_steps")  # of the others it is in the CSV
_EXPLAINED = (
    "Shares are in per cent of the answers. With steps: a line, a sentence or an equation stands before the answer. In form: the strict"
    " filter can read it too (####, So the answer is, a box). Right, given steps: accuracy among the answers with steps."
    " Unreadable: nothing is extracted. Cut: the token limit is hit."
)
_PARTS = (
    "Gain: difference to Baseline in points, paired by document. It is the sum of two parts. Form is over documents whose answer"
    " is written differently from Baseline's: with steps or without, readable or not, in the expected form or not. Right answers"
    " is over those that are written as before. The parts say which answers the gain comes from, not what caused it. Intervals are 95 %; nothing in this table is"
    " tested, so nothing carries a star."
)


def table(results: Results) -> Table:
    """A block for each family and benchmark with written answers, a line for each main and control row."""
    findings = find(results)
    made = Table(
        "answers", "What v does to answers: length, form and right answers", [Text(h) for h in _HEADER]
    )
    written = {(w.family, w.row.name, w.benchmark): w for w in findings.behaviours}
    gains = {(d.family, d.row, d.benchmark): d for d in findings.decompositions}
    for family, entry in results.families.items():
        for benchmark in results.benchmarks:
            lines = []
            for row in results.rows("main", "control"):
                found = written.get((family, row.name, benchmark))
                if found is not None:
                    gain = gains.get((family, row.name, benchmark))
                    marks = results.marks(family, row, benchmark)
                    lines.append(_line(row, found.behaviour, gain, marks))
                    named: Facts = {"family": family, "benchmark": benchmark, "condition": row.name}
                    named |= {"label": row.label}
                    made.data.append(named | _facts(found.behaviour, gain))
            if lines:
                made.blocks.append(Block(f"{entry.label}: {results.label(benchmark)}", lines))
    if not made.blocks:
        made.notes.append("No benchmark of this run has written answers.")
        return made
    made.notes += [_EXPLAINED, _PARTS]
    made.notes += mark_notes(results, made)
    return made


def _line(row: Row, found: Behaviour, gain: Decomposition | None, marks: str) -> Line:
    length = found.length
    half = (length.high - length.low) / 2
    tokens = f"{length.value:.1f} ± {half:.1f}" if half == half else f"{length.value:.1f}"
    entries = [Text(tokens, marks)]
    for name in _SHARES:
        share: Estimate | None = getattr(found, name)
        shown = plus_minus if name in _WITH_INTERVAL else lambda estimate: percent(estimate.value)
        entries.append(Text(shown(share) if share else DASH))
    differences = (gain.total, gain.form, gain.answers) if gain else (None, None, None)
    entries += [Text(interval(one)) if one else Text(DASH) for one in differences]
    return Line(Kind.value, row.label, entries)


def _facts(found: Behaviour, gain: Decomposition | None) -> Facts:
    """The numbers of one row on one benchmark; the length in tokens, everything else in per cent and points."""
    length: Mapping[str, float] = {name: getattr(found.length, name) for name in ("value", "low", "high")}
    facts: Facts = {f"tokens_{name}": number for name, number in length.items()}
    for name in (*_SHARES, "right_without_steps", "right_given_readable"):
        facts |= estimate_facts(getattr(found, name), f"{name}_")
    facts["sameness"] = 100 * found.sameness
    for name in ("total", "form", "answers"):
        facts |= estimate_facts(getattr(gain, name) if gain else None, f"gain_{name}_")
    for name in PARTS:
        part, stem = gain.part(name) if gain else None, name.replace(" ", "_")
        facts |= estimate_facts(part.difference if part else None, f"{stem}_part_")
        facts[f"{stem}_gained"] = part.difference.gained if part else None
        facts[f"{stem}_lost"] = part.difference.lost if part else None
    return facts
