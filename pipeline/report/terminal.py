"""What a run says in the terminal: a compact table, and a line for each claim of the abstract."""

from pipeline.analysis.comparisons import (
    Pairing,
    gains,
    mean_difference,
    mean_value,
    repeated_families,
)
from pipeline.analysis.findings import find
from pipeline.analysis.judging import NOT_IN_RUN
from pipeline.analysis.results import MARKS, Results
from pipeline.report.formats import as_text
from pipeline.report.numbers import DASH, plus_minus, signed, star
from pipeline.report.sentences import verdict_reason, what_was_found
from pipeline.report.table import Kind, Line, Text
from pipeline.report.tables.accuracy import again_lines, header, value_text


def summary(results: Results) -> str:
    """Conditions × plain benchmarks as text: value ± half interval, difference to Baseline with its mark."""
    rows, benchmarks, reference = results.rows("main", "control"), results.plain(), results.reference
    compared = gains(results)
    texts: list[str] = []
    used = ""
    for family, entry in results.families.items():
        lines = []
        for row in rows:
            entries = []
            for benchmark in benchmarks:
                value = value_text(results, family, row, benchmark)
                found = compared.get(Pairing(family, row.name, reference.name, benchmark))
                change = f"{signed(found.difference.value):>6}{star(found)}" if found else ""
                entries.append(_beside(value.text, change, value.marks))
            lines.append(Line(Kind.value, row.label, entries))
            lines += again_lines(results, family, row, benchmarks)
        heads = header(results, entry.label, benchmarks)
        used += "".join(text.marks for line in [heads, *(line.entries for line in lines)] for text in line)
        texts += [*as_text(heads, lines), ""]
    for group, families in repeated_families(results).items():
        lines = []
        for row in rows:
            entries = []
            for benchmark in benchmarks:
                mean = mean_value(results, families, row, benchmark).estimate
                gain = mean_difference(results, families, row, reference, benchmark).estimate
                change = f"{signed(gain.value):>6}" if gain else ""
                entries.append(_beside(plus_minus(mean) if mean else DASH, change))
            lines.append(Line(Kind.value, row.label, entries))
        heads = header(results, f"{group}, mean of {len(families)}", benchmarks)
        texts += [*as_text([Text(head.text) for head in heads], lines), ""]
    texts.append(
        "± half of the 95 % interval; difference to Baseline in points; * p < 0.05 after Holm's correction"
    )
    texts += [f"[{mark}] {MARKS[mark]}" for mark in MARKS if mark in used]
    return "\n".join(texts)


def _beside(value: str, change: str, marks: str = "") -> Text:
    """A value with its change; padded before marks, which `as_text` puts after it."""
    text = f"{value:<11}{change}"
    return Text(text if marks else text.rstrip(), marks)


def verdict_lines(results: Results) -> list[str]:
    """What was found in two sentences; then a line for each claim of the abstract and family: outcome and reason."""
    lines, untested = [], dict[str, list[str]]()
    for v in find(results).verdicts:
        label = results.families[v.family].label
        if v.is_in_run:
            lines.append(f"{v.outcome:<22}  {label}: {v.statement}: {verdict_reason(results, v)}")
        else:
            untested.setdefault(label, []).append(v.statement)
    lines += [
        f"{NOT_IN_RUN:<22}  {label}: {len(claims)} of the claims: {'; '.join(claims)}"
        for label, claims in untested.items()
    ]
    return [*what_was_found(results), "", *lines]
