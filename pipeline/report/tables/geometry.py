"""The vector by kind of module: size, sparsity, rounding at α = 1, direction (pipeline/weights/geometry.py)."""

from collections.abc import Sequence
from typing import Any

from pipeline.analysis.published import context
from pipeline.analysis.results import Results
from pipeline.analysis.vectors import geometry_of
from pipeline.errors import UserError
from pipeline.report.numbers import count, significant_digits
from pipeline.report.table import Block, Facts, Kind, Line, Table, Text

_HEADER = ("Module", "Entries", "‖v‖", "‖v‖/‖θ‖", "Unchanged %", "Swallowed %", "Rounding %")
_EXPLAINED = (
    "‖v‖/‖θ‖: against the target's own weights. Unchanged: entries of v that are exactly 0. Swallowed: "
    "changed entries that rounding to the target's dtype undoes at α = 1. Rounding: its error against "
    "‖v‖ at α = 1."
)


def table(results: Results) -> Table:
    """The geometry of each family's vector; a family without a report becomes a note."""
    made = Table("geometry", "Geometry of the vector, by kind of module", [])
    reports: dict[str, dict[str, Any]] = {}
    for family in results.families:
        try:
            reports[family] = geometry_of(results, family)
        except UserError as error:
            made.notes.append(str(error))
    directions = list(dict.fromkeys(d for report in reports.values() for d in report["total"]["directions"]))
    made.header = [Text(name) for name in _HEADER]
    made.header += [Text(f"{what} {d}") for d in directions for what in ("Cosine", "Equal signs %")]
    for family, report in reports.items():
        lines = []
        for level in ("modules", "layers", "cells", "total"):
            for entry in [report[level]] if level == "total" else report[level]:
                numbers = _numbers(entry, directions)
                place: Facts = {"module": entry.get("module"), "layer": entry.get("layer")}
                counted: Facts = {"entries": entry["entries"]}
                made.data.append({"family": family, "level": level, **place, **counted, **numbers})
                if level in ("modules", "total"):
                    shown = [count(entry["entries"]), *map(significant_digits, numbers.values())]
                    label = entry.get("module", "all")
                    lines.append(Line(Kind.value, label, [Text(text) for text in shown]))
        made.blocks.append(Block(results.families[family].label, lines))
    made.notes.append(_EXPLAINED)
    made.notes += context("geometry")
    return made


def _numbers(entry: dict[str, Any], directions: Sequence[str]) -> dict[str, float | None]:
    """The columns after the number of entries; shares in per cent."""
    at_one = next((a for a in entry["alphas"] if a["alpha"] == 1.0), {"swallowed": None, "rounding": None})
    numbers = {
        "norm": entry["norm"],
        "relative_norm": entry["relative_norm"],
        "unchanged": _per_cent(entry["sparsity"]),
        "swallowed": _per_cent(at_one["swallowed"]),
        "rounding": _per_cent(at_one["rounding"]),
    }
    for direction in directions:
        found = entry["directions"].get(direction, {"cosine": None, "sign_agreement": None})
        numbers[f"cosine {direction}"] = found["cosine"]
        numbers[f"signs {direction}"] = _per_cent(found["sign_agreement"])
    return numbers


def _per_cent(share: float | None) -> float | None:
    return None if share is None else 100 * share
