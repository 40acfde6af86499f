"""Tokens and time of the records, each counted once."""

from collections.abc import Callable

from pipeline.analysis.cost import cost_of
from pipeline.analysis.results import Results
from pipeline.analysis.scores import CellScores
from pipeline.manifest import Place
from pipeline.report.numbers import DASH, count
from pipeline.report.table import Block, Kind, Line, Table, Text

_HEADER = (
    "Cells of", "Cells", "Documents", "Prompt tokens", "Generated tokens", "Seconds", "Generated tokens/s",
    "GPU hours",
)  # fmt: skip


def table(results: Results) -> Table:
    """What the evaluation cost, by benchmark and by kind of condition."""
    made = Table("cost", "What the evaluation cost", [Text(name) for name in _HEADER])
    unique = list(results.unique_cells().values())
    groups: list[tuple[str, Callable[[Place], str]]] = [
        ("by benchmark", lambda place: results.benchmarks[place.benchmark].label),
        ("by kind of condition", lambda place: results.conditions[place.condition].role),
    ]
    for family, entry in results.families.items():
        for title, label_of in groups:
            by_label: dict[str, list[CellScores]] = {}
            for place, cell in unique:
                if place.family == family:
                    by_label.setdefault(label_of(place), []).append(cell)
            lines = [_line(made, family, title, label, cells) for label, cells in by_label.items()]
            made.blocks.append(Block(f"{entry.label}, {title}", lines))
    made.blocks.append(Block("", [_line(made, "", "all", "All", [cell for _, cell in unique])]))
    made.notes.append("A record that several conditions share is counted once, under the first of them.")
    if results.problems:
        made.notes.append(f"{len(results.problems)} planned records are missing or damaged and not counted.")
    return made


def _line(made: Table, family: str, group: str, label: str, cells: list[CellScores]) -> Line:
    """The line of some cells; its numbers go to the CSV too."""
    cost = cost_of(cells)
    counts = {
        "cells": cost.cells,
        "documents": cost.documents,
        "prompt_tokens": cost.prompt_tokens,
        "generated_tokens": cost.generated_tokens,
    }
    times = {"seconds": cost.seconds, "gpu_hours": cost.gpu_hours or 0.0}
    made.data.append({"family": family, "group": group, "label": label, **counts, **times})
    entries = [
        *(count(number) for number in counts.values()),
        f"{cost.seconds:.1f}",
        DASH if cost.rate is None else f"{cost.rate:.0f}",
        DASH if cost.gpu_hours is None else f"{cost.gpu_hours:.2f}",
    ]
    return Line(Kind.value, label, [Text(entry) for entry in entries])
