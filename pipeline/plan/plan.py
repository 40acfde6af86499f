"""From the configuration to the list of cells, each with a key that holds everything that can change its answers.

    plan = make_plan(config)          # reads file fingerprints, starts nothing heavy
    plan.cells[0].key                 # digest of plan.cells[0].inputs

A cell is (family, condition, task): some weights answer one benchmark, plain or perturbed, under one prompt.
Conditions that come to the same thing (α = 0 and the baseline) share a key and are computed once.
What is not in `inputs` (paths, W&B, batch size where answers do not move with it) does not change a key.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config, Weights
from pipeline.errors import UserError
from pipeline.files import digest
from pipeline.plan.family import Family, open_family, vector_key_of
from pipeline.plan.grid import Condition, Task, conditions_of, grid_of, left_out, tasks_of, wanted
from pipeline.plan.keys import inputs_of
from pipeline.records import SCHEMA, is_done
from pipeline.weights.parts import Part
from pipeline.weights.steer import Term
from pipeline.weights.vector import Vector


@dataclass(frozen=True)
class Cell:
    family: Family
    condition: Condition
    task: Task
    inputs: dict[str, Any]
    key: str


@dataclass(frozen=True)
class Plan:
    config: Config
    families: dict[str, Family]
    conditions: list[Condition]
    tasks: list[Task]
    cells: list[Cell]

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
        terms = []
        if condition.alpha:  # α = 0 is the checkpoint, bit for bit
            vector = self.vector(family, condition.variant)
            terms.append(Term(str(vector), condition.alpha, condition.seed))
        for name, alpha in condition.plus:
            terms.append(Term(str(self.vector(self.families[name])), alpha))
        return terms

    def vector(self, family: Family, variant: Part | None = None) -> Path:
        """The file of a family's vector, or of a variant of it.

        Raises:
            UserError: if it is not there, or is not what was extracted.
        """
        folder = self.vector_folder(family, variant)
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

    def vector_folder(self, family: Family, variant: Part | None = None) -> Path:
        return self.results / "vectors" / str(vector_key_of(family, variant))

    def geometry_file(self, family: Family, variant: Part | None = None) -> Path:
        """Beside the vector; named by the target and its base, because families can share donors and so a vector."""
        compared_with = digest([m.fingerprint for m in (family.target, family.base) if m is not None])
        return self.vector_folder(family, variant) / f"geometry-{compared_with[:12]}.json"

    def needs_vector(self) -> bool:
        return any(c.weights in (Weights.vector, Weights.random) for c in self.conditions)

    def manifest(self) -> dict[str, Any]:
        """All that analysis needs to find and name the records (format: ARCHITECTURE.md)."""
        return {
            "schema": SCHEMA,
            "experiment": self.config.name,
            "families": {
                f.name: {
                    "label": f.config.label,
                    "group": f.config.group,
                    "published_size": f.config.published_size,
                    "geometry": str(self.geometry_file(f)) if f.vector_key else None,
                }
                for f in self.families.values()
            },
            **grid_of(self.config),
            "cells": [
                {
                    "family": c.family.name,
                    "condition": c.condition.name,
                    "benchmark": c.task.name,
                    "key": c.key,
                }
                for c in self.cells
            ],
        }

    def describe(self) -> str:
        """The grid as text: for each family, condition and task whether the cell is done (x) or to do (.)."""
        lines = []
        for family in self.families.values():
            cells = {(c.condition.name, c.task.name): c for c in self.cells if c.family is family}
            width = max(len(c.label) for c in self.conditions)
            lines.append(f"{family.name} ({family.config.label}): {family.target.source}")
            lines += [f"  {chr(97 + i)}  {task.name}" for i, task in enumerate(self.tasks)]
            lines.append(" " * (width + 4) + " ".join(chr(97 + i) for i in range(len(self.tasks))))
            for condition in self.conditions:
                marks = []
                for task in self.tasks:
                    cell = cells.get((condition.name, task.name))
                    marks.append(" " if cell is None else "x" if is_done(self.results, cell.key) else ".")
                lines.append(f"  {condition.label:<{width}}  {' '.join(marks)}")
        done = len(self.unique()) - len(self.missing())
        shared = len(self.cells) - len(self.unique())
        lines.append(
            f"{len(self.unique())} cells ({shared} more share one of them): {done} done (x), {len(self.missing())} to do (.)"
        )
        return "\n".join(lines)


def make_plan(config: Config) -> Plan:
    """Resolve checkpoints and documents, and list the cells.

    Raises:
        UserError: for a checkpoint, document file, task or perturbation that is not there or does not fit.
    """
    conditions, tasks = list(conditions_of(config)), list(tasks_of(config))
    names = config.sizes if config.sizes is not None else list(config.families)
    if not names or not conditions or not tasks:
        raise UserError("nothing to run: expected at least one family, one condition and one benchmark")
    families = {name: open_family(name, config.families[name], conditions) for name in names}
    for condition in conditions:
        for name, _ in condition.plus:
            if name not in families or families[name].vector_key is None:
                raise UserError(
                    f"conditions.{condition.name}.plus: '{name}' is no family of this run with both donors;"
                    f" expected one of {', '.join(families)}"
                )
    cells = []
    for family in families.values():
        for condition in conditions:
            for task in tasks:
                if wanted(config, family.config, condition, task):
                    inputs = inputs_of(config, families, family, condition, task)
                    cells.append(Cell(family, condition, task, inputs, digest(inputs)))
    if not cells:
        raise UserError("; ".join(["nothing to run", *left_out(config)]))
    return Plan(config, families, conditions, tasks, cells)
