"""Two runs side by side: paired differences B − A of the cells that both have, and what else differs.

    python -m pipeline.report.compare results/runs/a.json results/runs/b.json [--out FOLDER]   (make compare A=… B=…)

For two donors, two revisions, two versions of vLLM. Cells are matched by family, condition and benchmark
(families by their order where no name is common), documents by subtask and source; a document whose target
differs is left out and counted. With --out the table is also written as Markdown, LaTeX and CSV.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.analysis.results import MARKS, Cell, Grid, difference, load, subset
from pipeline.analysis.statistics import Difference, holm
from pipeline.errors import UserError
from pipeline.records import read_manifest
from pipeline.report.formats import DASH, Table, Text, as_csv, columns, latex, markdown
from pipeline.report.tables import difference_facts, difference_text, percent

Place = tuple[str, str, str]


def compare(
    manifest_a: dict[str, Any], manifest_b: dict[str, Any], results_a: Path, results_b: Path
) -> Table:
    """The table of two runs; its notes list what differs in their inputs and provenance.

    Raises:
        UserError: when the runs have no evaluated cell in common.
    """
    a, b = load(manifest_a, results_a), load(manifest_b, results_b)
    families = _matched_families(a, b)
    pairs: dict[Place, tuple[Cell, Cell]] = {}
    for (family, condition, benchmark), cell in sorted(a.cells.items(), key=lambda item: _order(a, item[0])):
        other = b.cells.get((families.get(family, ""), condition, benchmark))
        if other is not None:
            pairs[family, condition, benchmark] = (cell, other)
    if not pairs:
        raise UserError("the runs have no evaluated cell in common; compare runs of one grid of conditions")
    left_out = 0
    found: dict[Place, Difference] = {}
    for place, (old, new) in pairs.items():
        kept = _same_targets(old, new)
        left_out += len(old.docs) - len(kept)
        if old.key != new.key and len(kept) and (change := difference(subset(old, kept), new)):
            found[place] = change
    adjusted = dict(zip(found, holm([d.p for d in found.values()]).tolist(), strict=True))
    table = _table(a, pairs, {place: (d, adjusted[place]) for place, d in found.items()})
    renamed = [f"{x} with {y}" for x, y in families.items() if x != y]
    table.notes = [
        "A and B: accuracy in per cent; B − A: points, paired by document, with the 95 % interval; = the "
        f"same record. * p < 0.05 after Holm's correction over {len(found)} comparisons.",
        *(f"{mark}: {MARKS[mark]}." for mark in table.marks()),
        *([f"Families are matched by their order: {', '.join(renamed)}."] if renamed else []),
        *([f"Left out: {left_out} documents that B lacks or has with another target."] if left_out else []),
        *_only_in_one(a, b),
        *a.problems,
        *b.problems,
        *(f"differs: {line}" for line in differing(list(pairs.values()))),
    ]
    return table


def differing(pairs: list[tuple[Cell, Cell]]) -> list[str]:
    """What differs in inputs and provenance between paired cells, one line for each field."""
    values: dict[str, Counter[tuple[str, str]]] = {}
    for old, new in pairs:
        x, y = (dict(_leaves({"inputs": c.inputs, "provenance": c.provenance})) for c in (old, new))
        for path in dict.fromkeys([*x, *y]):
            left, right = x.get(path, DASH), y.get(path, DASH)
            if left != right and path != "provenance.started":
                values.setdefault(path, Counter())[_short(left), _short(right)] += 1
    lines = []
    for path, counts in sorted(values.items()):
        (left, right), _ = counts.most_common(1)[0]
        total = sum(counts.values())
        scope = "in all cells" if total == len(pairs) else f"in {total} of {len(pairs)} cells"
        several = f", and {len(counts) - 1} other pairs of values" if len(counts) > 1 else ""
        lines.append(f"{path}: {left} → {right} {scope}{several}")
    return lines or ["nothing in inputs or provenance"]


def _table(
    a: Grid, pairs: dict[Place, tuple[Cell, Cell]], found: dict[Place, tuple[Difference, float]]
) -> Table:
    benchmarks = list(dict.fromkeys(place[2] for place in pairs))
    table = Table("compare", "Two runs compared, cell by cell", [Text("Condition"), Text("")])
    table.header += [Text(_label(a, benchmark)) for benchmark in benchmarks]
    for family, info in a.families.items():
        lines = []
        for condition in dict.fromkeys(place[1] for place in pairs if place[0] == family):
            label = a.conditions[condition]["label"]
            rows = [[Text(label), Text("A")], [Text(""), Text("B")], [Text(""), Text("B − A")]]
            for benchmark in benchmarks:
                place = (family, condition, benchmark)
                pair, change = pairs.get(place), found.get(place)
                scores = [float(cell.score.mean()) for cell in pair] if pair else [np.nan, np.nan]
                for row, score, cell in zip(rows, scores, pair or (None, None), strict=False):
                    row.append(Text(percent(score), cell.flags if cell else ""))
                same = pair is not None and pair[0].key == pair[1].key
                rows[2].append(Text("=") if same else difference_text(change))
                if pair:
                    names = {"family": family, "condition": condition, "benchmark": benchmark}
                    values = {"a": 100 * scores[0], "b": 100 * scores[1], "same_record": same}
                    table.data.append(names | values | difference_facts(change))
            lines += rows
        if lines:
            table.blocks.append((info["label"], lines))
    return table


def _label(grid: Grid, benchmark: str) -> str:
    info = grid.benchmarks[benchmark]
    parent = f"{grid.benchmarks[info['variant_of']]['label']}: " if info["variant_of"] else ""
    return parent + str(info["label"])


def _order(grid: Grid, place: Place) -> tuple[int, ...]:
    known = (grid.families, grid.conditions, grid.benchmarks)
    return tuple(list(names).index(name) for names, name in zip(known, place, strict=True))


def _matched_families(a: Grid, b: Grid) -> dict[str, str]:
    common = [name for name in a.families if name in b.families]
    if common:
        return {name: name for name in common}
    return dict(zip(a.families, b.families, strict=False))


def _only_in_one(a: Grid, b: Grid) -> list[str]:
    notes = []
    for what, mine, theirs in (
        ("conditions", a.conditions, b.conditions),
        ("benchmarks", a.benchmarks, b.benchmarks),
    ):
        for run, one, other in (("A", mine, theirs), ("B", theirs, mine)):
            if alone := [name for name in one if name not in other]:
                notes.append(f"Only in {run}: {what} {', '.join(alone)}.")
    return notes


def _same_targets(old: Cell, new: Cell) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Positions in `old` of the documents that `new` also has, with the same target."""
    targets = dict(zip(new.docs, new.targets, strict=True))
    pairs = zip(old.docs, old.targets, strict=True)
    return np.array([i for i, (doc, target) in enumerate(pairs) if targets.get(doc) == target], dtype=np.intp)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dictionaries by dotted path; lists stay whole."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def terminal(table: Table) -> str:
    """The table and its notes as plain text."""
    lines: list[str] = []
    for title, rows in table.blocks:
        body = [[e.text + (f" [{e.marks}]" if e.marks else "") for e in row] for row in [table.header, *rows]]
        lines += [title, *columns(body), ""]
    return "\n".join([*lines, *table.notes])


def main(arguments: list[str]) -> None:
    """The command line: two manifests, each in its results folder under runs/."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report.compare", description=__doc__.splitlines()[0]
    )
    parser.add_argument("a", type=Path, help="manifest of run A, such as results/runs/micro.json")
    parser.add_argument("b", type=Path, help="manifest of run B")
    parser.add_argument("--out", type=Path, help="folder for the table as Markdown, LaTeX and CSV")
    given = parser.parse_args(arguments)
    results_a, results_b = (path.resolve().parent.parent for path in (given.a, given.b))
    table = compare(read_manifest(given.a), read_manifest(given.b), results_a, results_b)
    print(terminal(table))
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        for suffix, write in (("md", markdown), ("tex", latex), ("csv", as_csv)):
            (given.out / f"compare.{suffix}").write_text(write(table), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
