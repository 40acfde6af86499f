"""From the grid to the plan: checkpoints and documents opened, and a key for each cell that holds what can change its answers.

    config = compose(["experiment=micro"])
    plan = make_plan(config, make_grid(config), find_sources(config))    # reads fingerprints, starts nothing heavy
    plan.cells[0].key                                                    # digest of plan.cells[0].inputs

A cell is (family, condition, task): some weights answer one benchmark, plain or perturbed, under one prompt.
Conditions that come to the same thing (α = 0 and the baseline) share a key and are computed once.
What is not in `inputs` (paths, W&B, batch size where answers do not move with it) does not change a key.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.files import digest
from pipeline.manifest import FamilyEntry, Manifest, PlannedCell
from pipeline.plan import revisions
from pipeline.plan.family import Family, of_family, open_family, vector_key_of
from pipeline.plan.grid import Benchmark, Condition, Grid, GridCell, asked_of
from pipeline.plan.keys import inputs_of
from pipeline.plan.sources import Sources
from pipeline.records import is_done
from pipeline.weights.steer import Term
from pipeline.weights.vector import Vector

if TYPE_CHECKING:
    from pipeline.weights.parts import Part


@dataclass(frozen=True)
class Cell:
    family: Family
    condition: Condition
    benchmark: Benchmark
    inputs: dict[str, Any]
    key: str


@dataclass(frozen=True)
class Plan:
    """The grid with everything opened: what the stages take."""

    config: Config
    grid: Grid
    families: Mapping[str, Family]  # those that have rows, and those whose vectors are added to them
    benchmarks: tuple[Benchmark, ...]  # those of the grid, with their documents found
    cells: tuple[Cell, ...]

    @property
    def results(self) -> Path:
        return Path(self.config.results)

    def unique(self) -> list[Cell]:
        """One cell for each key, in the order in which they are computed."""
        found: dict[str, Cell] = {}
        for cell in self.cells:
            found.setdefault(cell.key, cell)  # named by the first condition that needs it
        return list(found.values())

    def missing(self) -> list[Cell]:
        """Cells without a record."""
        return [cell for cell in self.unique() if not is_done(self.results, cell.key)]

    def terms(self, family: Family, condition: Condition) -> list[Term]:
        """What a condition adds to its checkpoint.

        Raises:
            UserError: if a vector is not there, or is not what was extracted.
        """
        return [
            Term(str(self.vector(self.of(term.family, family), term.part)), term.alpha, term.seed)
            for term in condition.added()
        ]

    def of(self, name: str | None, family: Family) -> Family:
        """The family that a term names: the row's own where it names none."""
        return family if name is None else self.families[name]

    def rows(self) -> list[tuple[Family, Condition]]:
        """The weights that are needed, each with the prompt that they are asked with."""
        return [(self.families[row.family], row.condition) for row in self.grid.rows]

    def parts(self, family: Family) -> "dict[Part | None, list[float]]":
        """The parts of a family's vector that rows add (None is the whole), each with its α."""
        found: dict[Part | None, set[float]] = {}
        for steered, condition in self.rows():
            for term in condition.added():
                if self.of(term.family, steered) is family:
                    found.setdefault(term.part, set()).add(term.alpha)
        return {part: sorted(alphas) for part, alphas in found.items()}

    def vector(self, family: Family, part: "Part | None" = None) -> Path:
        """The file of a family's vector, or of a part of it.

        Raises:
            UserError: if it is not there, or is not what was extracted.
        """
        folder = self.vector_folder(family, part)
        if not folder.is_dir():
            raise UserError(f"{folder}: no vector there; run the stage 'extract'")
        try:
            extracted = json.loads((folder / "fingerprint.json").read_text())
        except (OSError, ValueError):
            raise UserError(
                f"{folder}: no whole vector; remove the folder and run the stage 'extract'"
            ) from None
        if Vector.open(folder).fingerprint != extracted:
            raise UserError(
                f"{folder}: the vector is not the one that was extracted; remove the folder and run again"
            )
        return folder / "vector.safetensors"

    def vector_folder(self, family: Family, part: "Part | None" = None) -> Path:
        return self.results / "vectors" / str(vector_key_of(family, part))

    def geometry_file(self, family: Family, part: "Part | None" = None) -> Path:
        """Beside the vector; named by the target and its base, because families can share donors and so a vector."""
        models = [m.fingerprint for m in (family.target, family.base) if m is not None]
        compared_with = digest([*models, *([self.config.steer.dtype] if self.config.steer.wide else [])])
        return self.vector_folder(family, part) / f"geometry-{compared_with[:12]}.json"

    def manifest(self) -> Manifest:
        """All that analysis needs to find and name the records."""
        return Manifest(
            self.config.name,
            {name: self._family_entry(self.families[name]) for name in self.grid.families},
            {benchmark.name: benchmark.entry() for benchmark in self.benchmarks},
            {c.name: c.entry() for c in self.grid.conditions},
            tuple(PlannedCell(c.family.name, c.condition.name, c.benchmark.name, c.key) for c in self.cells),
        )

    def _family_entry(self, family: Family) -> FamilyEntry:
        geometry = str(self.geometry_file(family)) if family.vector_key else None
        given = family.config
        return FamilyEntry(given.label, given.group, given.published_size, geometry, given.pair)

    def opened(self) -> dict[str, str]:
        """The commit of everything on the hub that the configuration takes without a revision, by its name in the lock file."""
        found = {
            source.id: commit
            for family in self.families.values()
            for part, source in family.config.sources().items()
            if source.revision is None and (commit := getattr(family, part).revision) is not None
        }
        asked = {benchmark.name: benchmark.config.dataset for benchmark in self.grid.benchmarks}
        for benchmark in self.benchmarks:
            dataset = benchmark.config.dataset
            if asked[benchmark.name].revision is None and dataset.revision is not None:
                found[revisions.name_of(dataset)] = dataset.revision
        return found

    def describe(self) -> str:
        """The grid as text: for each family, condition and benchmark whether the cell is done (x) or to do (.)."""
        missing = {cell.key for cell in self.missing()}
        keys = {(c.family.name, c.condition.name, c.benchmark.name): c.key for c in self.cells}

        def mark(cell: GridCell) -> str:
            return "." if keys[cell.family, cell.condition.name, cell.benchmark.name] in missing else "x"

        unique = len(self.unique())
        return (
            f"{self.grid.describe(mark)}\n{unique} cells ({len(self.cells) - unique} more share one of them):"
            f" {unique - len(missing)} done (x), {len(missing)} to do (.)"
        )


def make_plan(config: Config, grid: Grid, sources: Sources) -> Plan:
    """Open checkpoints and documents, and give each cell its key.

    Raises:
        FamilyRefused: for a checkpoint that is not there or does not fit.
        UserError: for a document file that is not there.
    """
    opened = open_rows(config, grid, sources)
    families, benchmarks = opened.families, {benchmark.name: benchmark for benchmark in opened.benchmarks}
    cells = []
    for cell in grid.cells:
        family = families[cell.family]
        benchmark = asked_of(family.config, benchmarks[cell.benchmark.name])
        inputs = inputs_of(config, families, family, cell.condition, benchmark)
        cells.append(Cell(family, cell.condition, benchmark, inputs, digest(inputs)))
    if not cells:
        raise UserError("; ".join(["nothing to run", *grid.left_out]))
    documents = {cell.benchmark.name: cell.inputs["documents"][0] for cell in cells}
    cells = [replace(c, benchmark=_at_commit(c.benchmark, documents[c.benchmark.name])) for c in cells]
    found = tuple(
        _at_commit(b, documents[name]) if name in documents else b for name, b in benchmarks.items()
    )
    return replace(opened, benchmarks=found, cells=tuple(cells))


def open_rows(config: Config, grid: Grid, sources: Sources) -> Plan:
    """A plan without cells: the families of the grid opened, and where the documents of its benchmarks are.

    Raises:
        FamilyRefused: for a checkpoint that is not there or does not fit.
    """
    families = {}
    for name, configured in config.opened_families().items():
        with of_family(name):
            families[name] = open_family(name, configured, sources)
    for condition in grid.conditions:
        for term in condition.added():
            if term.family is not None and families[term.family].vector_key is None:
                raise UserError(
                    f"conditions.{condition.name}.terms: '{term.family}' has no donors to make a vector of; set"
                    f" families.{term.family}.sft.id and families.{term.family}.grpo.id"
                )
    return Plan(config, grid, families, tuple(map(sources.benchmark, grid.benchmarks)), ())


def _at_commit(benchmark: Benchmark, documents: dict[str, Any]) -> Benchmark:
    """The task with the commit that its documents were found at, which every worker then takes."""
    if "hub" not in documents:
        return benchmark
    dataset = replace(benchmark.config.dataset, revision=documents["revision"])
    return replace(benchmark, config=replace(benchmark.config, dataset=dataset))
