"""A table as data, before it takes a format (`pipeline.report.formats`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from pipeline.analysis.results import MARKS

Fact = str | int | float | bool | None  # of the CSV
Facts = dict[str, Fact]


class Text(NamedTuple):
    """A table entry: its text and the marks of its footnotes."""

    text: str
    marks: str = ""


class Kind(Enum):
    """What a line shows, whatever its label says."""

    value = auto()
    difference = auto()  # of the values above it to the reference
    published = auto()  # what the paper reports for the line above
    detectable = auto()  # the smallest difference that such documents show
    again = auto()  # the line above asked once more: what order and batch alone move
    spread = auto()  # the range of the line above over its seeds


class Line(NamedTuple):
    """A line of a table: what it shows, its label, and an entry for each further column."""

    kind: Kind
    label: str
    entries: Sequence[Text]

    @property
    def texts(self) -> list[Text]:
        """The line with its label, a text for each column."""
        return [Text(self.label), *self.entries]


class Block(NamedTuple):
    """Lines under a title."""

    title: str
    lines: list[Line]


@dataclass
class Table:
    """A table; the first column holds labels, `data` becomes the CSV."""

    name: str
    title: str
    header: list[Text]
    blocks: list[Block] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: list[Facts] = field(default_factory=list)

    def lines(self) -> list[Line]:
        return [line for block in self.blocks for line in block.lines]

    def has(self, kind: Kind) -> bool:
        return any(line.kind is kind for line in self.lines())

    def marks(self) -> str:
        """The footnote marks in use, in their fixed order; numbers come last."""
        texts = [*self.header, *(text for line in self.lines() for text in line.texts)]
        used = {mark for text in texts for mark in text.marks}
        return "".join(sorted(used, key=lambda m: (m.isdigit(), "".join(MARKS).find(m), m)))
