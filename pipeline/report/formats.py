"""What a table looks like as Markdown, CSV, HTML and plain text, and how it is written (LaTeX: latex.py)."""

import csv
import html
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.files import write_file
from pipeline.report.latex import latex
from pipeline.report.table import Fact, Kind, Line, Table, Text


def write(table: Table, out: Path) -> list[Path]:
    """Write a table as .md, .tex and .csv under `out`; return the paths."""
    paths = []
    for suffix, text in (("md", markdown(table)), ("tex", latex(table)), ("csv", as_csv(table))):
        paths.append(out / f"{table.name}.{suffix}")
        write_file(paths[-1], text.encode())
    return paths


# What Markdown would take for markup, a link or a character's name.
_MARKUP = re.compile(r"[\\|*_`]|\](?=\()|&(?=#?\w+;)")


def markdown(table: Table) -> str:
    """GitHub's Markdown, padded so that it also reads as plain text."""

    def entry(e: Text) -> str:
        text = _MARKUP.sub(lambda found: f"\\{found[0]}", e.text).replace("<", "&lt;")
        return f"{text}<sup>{e.marks}</sup>" if e.marks else text

    rows = [[entry(e) for e in table.header]]
    for title, lines in table.blocks:
        if title:
            rows.append([f"**{entry(Text(title))}**"] + [""] * (len(table.header) - 1))
        rows += [[entry(e) for e in line.texts] for line in lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.header))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    notes = "".join(f"\n{entry(Text(note))}\n" for note in table.notes)
    return f"# {table.title}\n\n" + "\n".join([text[0], rule, *text[1:]]) + "\n" + notes


def as_csv(table: Table) -> str:
    """Every number behind the table; empty where there is none."""
    names = list(dict.fromkeys(name for row in table.data for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in table.data:
        writer.writerow({name: _plain(value) for name, value in row.items()})
    return text.getvalue()


def _plain(value: Fact) -> Fact:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else value


_HTML_CLASS = {Kind.difference: "delta", Kind.published: "paper"}


def as_html(table: Table) -> str:
    """A `figure` of HTML, every text escaped."""

    def entry(e: Text, tag: str, scope: str = "") -> str:
        marks = f"<sup>{html.escape(e.marks)}</sup>" if e.marks else ""
        of = f' scope="{scope}"' if scope else ""
        return f"<{tag}{of}>{html.escape(e.text)}{marks}</{tag}>"

    width = len(table.header)
    lines = ["<thead><tr>" + "".join(entry(e, "th", "col") for e in table.header) + "</tr></thead>"]
    for block_at, (title, rows) in enumerate(table.blocks):
        lines.append("<tbody>")
        if title:
            lines.append(
                f'<tr class="block"><th colspan="{width}"><span>{html.escape(title)}</span></th></tr>'
            )
        for line_at, row in enumerate(rows):
            label, *entries = row.texts
            lines.append(
                f'<tr id="{row_id(table.name, block_at, line_at)}" class="{_HTML_CLASS.get(row.kind, "value")}">'
                f"{entry(label, 'th', 'row')}"
                f"{''.join(entry(e, 'td') for e in entries)}</tr>"
            )
        lines.append("</tbody>")
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    caption = f"<figcaption>{notes}</figcaption>" if notes else ""
    body = f'<div class="scroll"><table>{"".join(lines)}</table></div>'
    return f'<figure id="table-{table.name}">{body}{caption}</figure>'


def row_id(table: str, block: int, line: int) -> str:
    """The name by which a link finds a line of an HTML table."""
    return f"row-{table}-{block}-{line}"


def as_text(header: Sequence[Text], lines: Sequence[Line]) -> list[str]:
    """Lines under their header in columns, with marks in brackets."""
    rows = [
        [e.text + (f" [{e.marks}]" if e.marks else "") for e in row]
        for row in [header, *(line.texts for line in lines)]
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
