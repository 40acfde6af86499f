"""The vector by kind of module: size, sparsity, rounding at α = 1, direction (pipeline/weights/geometry.py)."""

from collections.abc import Iterator, Sequence

from pipeline.analysis.published import context
from pipeline.analysis.results import Results
from pipeline.analysis.vectors import geometry_of
from pipeline.errors import UserError
from pipeline.report.numbers import count, significant_digits
from pipeline.report.table import Block, Facts, Kind, Line, Table, Text
from pipeline.weights.geometry_report import Facts as VectorFacts
from pipeline.weights.geometry_report import GeometryReport

_HEADER = ("Module", "Entries", "‖v‖", "‖v‖/‖θ‖", "Unchanged %", "Lost in rounding %", "Rounding %")
_EXPLAINED = (
    "‖v‖/‖θ‖: against the target's own weights. Unchanged: entries of v that are exactly 0. Lost in rounding: "
    "changed entries that rounding to the target's dtype undoes at α = 1. Rounding: its error against "
    "‖v‖ at α = 1."
)


def table(results: Results) -> Table:
    """The geometry of each family's vector; a family without a report becomes a note."""
    made = Table("geometry", "Geometry of the vector, by kind of module", [])
    reports: dict[str, GeometryReport] = {}
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
        for level, module, layer, facts in _groups(report):
            numbers = _numbers(facts, directions)
            place: Facts = {"family": family, "level": level, "module": module, "layer": layer}
            made.data.append({**place, "entries": facts["entries"], **numbers})
            if level in ("modules", "total"):
                shown = [count(facts["entries"]), *map(significant_digits, numbers.values())]
                lines.append(Line(Kind.value, module or "all", [Text(text) for text in shown]))
        made.blocks.append(Block(results.families[family].label, lines))
    made.notes.append(_EXPLAINED)
    made.notes += context("geometry")
    return made


def _groups(report: GeometryReport) -> Iterator[tuple[str, str | None, int | None, VectorFacts]]:
    """(level, module, layer, facts) of every group of tensors, all of them last."""
    for of_module in report["modules"]:
        yield "modules", of_module["module"], None, of_module
    for of_layer in report["layers"]:
        yield "layers", None, of_layer["layer"], of_layer
    for cell in report["cells"]:
        yield "cells", cell["module"], cell.get("layer"), cell
    yield "total", None, None, report["total"]


def _numbers(facts: VectorFacts, directions: Sequence[str]) -> dict[str, float | None]:
    """The columns after the number of entries; shares in per cent."""
    at_one = next((at for at in facts["alphas"] if at["alpha"] == 1.0), None)
    numbers = {
        "norm": facts["norm"],
        "relative_norm": facts["relative_norm"],
        "unchanged": _per_cent(facts["sparsity"]),
        "lost_in_rounding": _per_cent(at_one["lost_in_rounding"] if at_one else None),
        "rounding": _per_cent(at_one["rounding"] if at_one else None),
    }
    for direction in directions:
        found = facts["directions"].get(direction)
        numbers[f"cosine {direction}"] = found["cosine"] if found else None
        numbers[f"signs {direction}"] = _per_cent(found["sign_agreement"] if found else None)
    return numbers


def _per_cent(share: float | None) -> float | None:
    return None if share is None else 100 * share
