r"""A table as LaTeX: booktabs rules, and numbers aligned by siunitx at their decimal points.

    latex(table)        for \input in any document that loads booktabs, siunitx and graphicx

A column of numbers is an S column; where something stands behind the numbers (an interval, a star, a mark) it has an l
column of its own, so that signs, points and intervals each stand below each other. What is no number is centred over both.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.report.table import Block, Line, Table, Text

_PAGE = 50  # lines of a table that a page takes, in its small type
_AROUND = 7  # lines of a tabular that are neither a row nor the title of a block
_NOTE = 105  # letters of a line of notes
_LONGEST = 100  # letters of a label; a row of longer ones is wider than TeX can measure
PACKAGES = ("booktabs", "siunitx", "graphicx")
_NUMBER = re.compile(r"([+−]?)(\d[\d\u202f]*)(?:\.(\d+))?(?=$|[ *])(.*)", re.DOTALL)
_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "+": "$+$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "→": r"$\rightarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    "²": r"$^2$",
    "‖": r"$\|$",
    "α": r"$\alpha$",
    "Δ": r"$\Delta$",
    "θ": r"$\theta$",
    "χ": r"$\chi$",
    "τ": r"$\tau$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "\u202f": r"\,",
    "\u00a0": "~",
    # A bracket after \\ would be read as its optional argument.
    "[": "{[}",
    "]": "{]}",
}
_OPENING = re.compile(r'(?<![^\s(\[{–—])"(?=\S)')  # a straight quote at the beginning of a word


def tex(text: str) -> str:
    """Text for LaTeX; a character that plain pdflatex cannot set becomes its code point in words."""
    quoted = _OPENING.sub("“", text).replace('"', "”")
    return "".join(
        _TEX.get(
            c, c if (c.isascii() and c.isprintable()) or c in "\n äöüÄÖÜßéèêáàâíóúñç" else f"U+{ord(c):04X}"
        )
        for c in quoted
    )


class _Number(NamedTuple):
    """An entry that begins with a number, and what stands behind it."""

    sign: str
    whole: str
    decimals: str
    rest: str  # LaTeX

    @property
    def text(self) -> str:
        point = f".{self.decimals}" if self.decimals else ""
        return self.sign.replace("−", "-") + self.whole + point


class _Column(NamedTuple):
    """How a column is set: as numbers (with or without something behind them) or, where there are none, as text."""

    format: str  # siunitx' table-format; empty for text
    has_rest: bool

    @property
    def spec(self) -> str:
        if not self.format:
            return "r"
        number = f"S[table-format={self.format},retain-explicit-plus,group-digits=integer]"
        return number + (r"@{\,}l" if self.has_rest else "")

    @property
    def width(self) -> int:
        return 2 if self.has_rest else 1


def latex(table: Table) -> str:
    """A table environment with its caption, label and notes; one for each page where it is longer than a page."""
    lines = table.lines()
    columns = [_column([line.entries[i] for line in lines]) for i in range(len(table.header) - 1)]
    bodies = [_tabular(table, columns, part) for part in list(_pages(table.blocks)) or [[]]]
    notes = "\n\n".join(tex(note) for note in table.notes)
    below = ["", rf"\begin{{minipage}}{{\linewidth}}\scriptsize {notes}\end{{minipage}}"]
    # Notes that do not fit under the last part have a page of their own.
    length = sum(1 + len(note) // _NOTE for note in table.notes)
    if len(bodies[-1]) + length <= _PAGE + _AROUND:
        bodies[-1] += below
    else:
        bodies.append(below)
    parts = [_environment(table, body, is_first=i == 0) for i, body in enumerate(bodies)]
    return "\n".join(line for part in parts for line in part)


def _environment(table: Table, body: Sequence[str], *, is_first: bool) -> list[str]:
    """One float; further ones keep the number of the first."""
    title, name = tex(table.title), table.name.replace("_", "-")
    head = [rf"\caption{{{title}.}}", rf"\label{{tab:{name}}}"]
    if not is_first:
        head = [r"\addtocounter{table}{-1}", rf"\caption{{{title} (continued).}}"]
    begin = [r"\begin{table}[htbp]", r"\centering\scriptsize\setlength{\tabcolsep}{2.5pt}"]
    return [*begin, *head, *body, r"\end{table}", ""]


def _tabular(table: Table, columns: Sequence[_Column], blocks: Sequence[Block]) -> list[str]:
    """Rows under the table's header."""
    width = 1 + sum(column.width for column in columns)
    head, *heads = table.header
    body = [_row([_set(head), *(_over(column, _set(h)) for column, h in zip(columns, heads, strict=True))])]
    for title, lines in blocks:
        body.append(r"\midrule")
        if title:
            body.append(rf"\multicolumn{{{width}}}{{l}}{{\textbf{{{_label(title)}}}}} \\")
        body += [_line(columns, line) for line in lines]
    return [
        # A wide table stands out on both sides alike, and shrinks before it leaves the page.
        r"\makebox[\linewidth][c]{\resizebox{\ifdim\width>1.4\linewidth 1.4\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{''.join(column.spec for column in columns)}}}",
        r"\toprule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}}",
    ]


def _pages(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Blocks in parts of a page each; a block goes on to the next page where no page has room for it, or little is left."""
    page: list[Block] = []
    room = _PAGE
    for title, lines in blocks:
        if page and len(lines) + 2 > room and room < _PAGE // 2:
            yield page
            page, room = [], _PAGE
        done = 0
        while done < len(lines) or not done:
            if room < 4:
                yield page
                page, room = [], _PAGE
            now = lines[done : done + room - 2]
            page.append(Block(f"{title} (continued)" if done and title else title, now))
            room -= len(now) + 2
            done += max(1, len(now))
    if page:
        yield page


def _line(columns: Sequence[_Column], line: Line) -> str:
    return _row(
        [_label(line.label), *(_entry(column, e) for column, e in zip(columns, line.entries, strict=True))]
    )


def _label(text: str) -> str:
    return tex(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")


def _row(cells: Sequence[str]) -> str:
    # A star that begins a row would be read as that of the row before.
    guard = "{}" if cells[0].startswith("*") else ""
    return guard + " & ".join(cells) + r" \\"


def _column(entries: Sequence[Text]) -> _Column:
    numbers = [number for entry in entries if (number := _number(entry))]
    if not numbers:
        return _Column("", False)
    sign = "+" if any(number.sign for number in numbers) else ""
    whole, decimals = (
        max(len(getattr(number, part)) for number in numbers) for part in ("whole", "decimals")
    )
    return _Column(f"{sign}{whole}.{decimals}", any(number.rest for number in numbers))


def _entry(column: _Column, entry: Text) -> str:
    number = _number(entry)
    if not column.format or number is None:
        return _over(column, _set(entry))
    return f"{number.text} & {number.rest}" if column.has_rest else number.text


def _number(entry: Text) -> _Number | None:
    found = _NUMBER.fullmatch(entry.text)
    if found is None:
        return None
    sign, whole, decimals, rest = found.groups(default="")
    return _Number(sign, whole.replace("\u202f", ""), decimals, _set(Text(rest.strip(), entry.marks)))


def _over(column: _Column, text: str) -> str:
    """What is no number, over the columns that an entry takes."""
    return rf"\multicolumn{{{column.width}}}{{c}}{{{text}}}" if column.format else text


def _set(entry: Text) -> str:
    return _label(entry.text) + (rf"\textsuperscript{{{tex(entry.marks)}}}" if entry.marks else "")
