"""The manifest of a run: all that analysis needs to find and name its records.

    manifest = read_manifest(Path("results/runs/micro.json"))
    manifest.conditions["vector"].terms

Written by the plan, read by everything that comes after the evaluation; analysis takes it and the records, and
nothing else. Manifests of the first layout (schema 1) are read as well.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import UserError
from pipeline.files import DamagedFile, digest, read_json, write_json

SCHEMA = 2


class Place(NamedTuple):
    """Where a cell stands in the grid, by names."""

    family: str
    condition: str
    benchmark: str


@dataclass(frozen=True)
class FamilyEntry:
    """A target with its donors, as tables name it."""

    label: str
    group: str | None  # families of one group are independent repetitions
    published_size: str | None  # the size under which the paper reports it
    geometry: str | None  # the geometry report of its vector
    pair: str | None = None  # what its donors are and what is known against them


@dataclass(frozen=True)
class BenchmarkEntry:
    """A benchmark, plain or under one perturbation."""

    label: str
    published: str | None  # the name under which the paper reports it
    variant_of: str | None  # the plain benchmark that it is a variant of
    perturbation: str | None  # name and version
    cluster: str | None  # the field of a sample by which documents are not independent
    chance: float  # score of guessing, 0 to 1
    limit: int | None  # documents of each subtask that are asked; None is all
    generated: bool = False  # written by a generator, from templates
    form_of: str | None = None  # the benchmark that it asks in another form
    cannot_think: str | None = None  # why the prompt condition `think` cannot act; None where it can


@dataclass(frozen=True)
class TermEntry:
    """α times a vector, a part of it, or noise of its norm."""

    alpha: float
    family: str | None = None  # whose vector; None is the family's own
    part: dict[str, Any] | None = None  # None is the whole vector
    seed: int | None = None  # of the noise that takes the vector's place


@dataclass(frozen=True)
class ConditionEntry:
    """One row of the grid at one α and one seed: a checkpoint to start from, and what is added to it."""

    label: str
    origin: str  # the condition of the configuration that it is one α or seed of
    row: str  # conditions that differ in their seed alone have one row
    row_label: str
    start: str  # target, base, sft or grpo
    terms: tuple[TermEntry, ...]
    prompt: str
    role: str  # main, control, sweep or again
    origin_label: str = ""  # of that condition of the configuration

    @property
    def kind(self) -> str:
        """What the weights are: `start`, or vector or random (one term, whole, of the own family), or else sum."""
        if not self.terms:
            return self.start
        (first, *more) = self.terms
        if more or first.family is not None or first.part is not None or self.start != "target":
            return "sum"
        return "vector" if first.seed is None else "random"

    @property
    def alpha(self) -> float | None:
        """α of the only term; None where there is none, or there are several."""
        return self.terms[0].alpha if len(self.terms) == 1 else None

    @property
    def seed(self) -> int | None:
        """The seed of the noise, where the only term is noise."""
        return self.terms[0].seed if len(self.terms) == 1 else None


@dataclass(frozen=True)
class PlannedCell:
    """A cell and the key of its record."""

    family: str
    condition: str
    benchmark: str
    key: str

    @property
    def place(self) -> Place:
        return Place(self.family, self.condition, self.benchmark)


@dataclass(frozen=True)
class Manifest:
    """What was planned: families, benchmarks and conditions by name, and the key of every cell."""

    experiment: str
    families: Mapping[str, FamilyEntry]
    benchmarks: Mapping[str, BenchmarkEntry]
    conditions: Mapping[str, ConditionEntry]
    cells: tuple[PlannedCell, ...]


def manifest_path(results: Path, experiment: str) -> Path:
    return results / "runs" / f"{experiment}.json"


def write_manifest(results: Path, manifest: Manifest) -> Path:
    """Replace the manifest of an experiment, and return its path."""
    path = manifest_path(results, manifest.experiment)
    data = {"schema": SCHEMA} | asdict(manifest)
    write_json(path, data | {"sha256": digest(data)})
    return path


def read_manifest(path: Path) -> Manifest:
    """The manifest of a run.

    Raises:
        UserError: if there is none, it is not what was written, or a later version wrote it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; run the experiment first")
    data = read_json(path, "run the experiment again")
    if not isinstance(data, dict) or data.pop("sha256", None) != digest(data):
        raise DamagedFile(f"{path}: checksum differs from its content; run the experiment again")
    if data.get("schema") not in (1, SCHEMA):
        raise DamagedFile(
            f"{path}: written in format {data.get('schema')}, this version reads 1 and {SCHEMA}; run the experiment again"
        )
    try:
        return parse_manifest(data)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        reason = f"{type(e).__name__}: {e}"
        if isinstance(e, ValidationError):
            first = e.errors(include_url=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise DamagedFile(
            f"{path}: not a manifest that this version reads ({reason}); run the experiment again"
        ) from None


def parse_manifest(data: dict[str, Any]) -> Manifest:
    """The manifest that `data` of schema 1 or 2 describes.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: if it describes none.
    """
    if data["schema"] == 1:
        data = data | {"conditions": {name: _upgraded(name, c) for name, c in data["conditions"].items()}}
        # The shipped experiments of that layout had generated documents and nothing else.
        generated = {"generated": True} if str(data["experiment"]).startswith("micro") else {}
        data["benchmarks"] = {name: entry | generated for name, entry in data["benchmarks"].items()}
    manifest = Manifest(
        data["experiment"],
        {name: FamilyEntry(**entry) for name, entry in data["families"].items()},
        {name: BenchmarkEntry(**entry) for name, entry in data["benchmarks"].items()},
        {
            name: ConditionEntry(**entry | {"terms": tuple(TermEntry(**term) for term in entry["terms"])})
            for name, entry in data["conditions"].items()
        },
        tuple(PlannedCell(**entry) for entry in data["cells"]),
    )
    _TYPES.validate_json(json.dumps(asdict(manifest), allow_nan=False), strict=True)
    _check(manifest)
    return manifest


_TYPES = TypeAdapter(Manifest)


def _check(manifest: Manifest) -> None:
    """Raise ValueError for names that make no file, and for what refers to nothing or is none of its kind."""
    grid = (manifest.families, manifest.conditions, manifest.benchmarks)
    for name in (manifest.experiment, *(name for names in grid for name in names)):
        if not re.fullmatch(r"[A-Za-z0-9][\w.@=+-]*", name, re.ASCII):
            raise ValueError(f"{name!r:.60} is no name")
    for text in (text for entries in grid for entry in entries.values() for text in vars(entry).values()):
        if isinstance(text, str) and not text.isprintable():
            raise ValueError(f"{text!r:.60} is no label")
    for cell in manifest.cells:
        if any(name not in names for name, names in zip(cell.place, grid, strict=True)):
            raise ValueError(f"cell {'/'.join(cell.place)} is not of its grid")
        if not re.fullmatch("[0-9a-f]{64}", cell.key):
            raise ValueError(f"cell {'/'.join(cell.place)}: {cell.key!r:.60} is no key")
    for name, benchmark in manifest.benchmarks.items():
        if benchmark.variant_of is not None and benchmark.variant_of not in manifest.benchmarks:
            raise ValueError(f"{name} is a variant of {benchmark.variant_of!r:.60}, which is not there")
        if benchmark.cluster not in (None, "subtask", "source_doc") or not 0 <= benchmark.chance < 1:
            raise ValueError(f"{name}: cluster {benchmark.cluster!r:.60}, chance {benchmark.chance:g}")
    for name, condition in manifest.conditions.items():
        if condition.role not in ("main", "control", "sweep", "again"):
            raise ValueError(f"{name}: role {condition.role!r:.60}")
        if condition.start not in ("target", "base", "sft", "grpo"):
            raise ValueError(f"{name}: start {condition.start!r:.60}")


def _upgraded(name: str, old: dict[str, Any]) -> dict[str, Any]:
    """A condition of schema 1, which named the weights and one α, and showed a seed in its label alone."""
    added = old["weights"] in ("vector", "random")
    part: dict[str, Any] | None = None if old.get("whole", True) else {}  # which part was not recorded
    term = {"alpha": old["alpha"], "family": None, "part": part, "seed": old["seed"]}
    seeded = old["seed"] is not None
    row = name.removesuffix(f"-s{old['seed']}") if seeded else name
    row_label = old["label"].removesuffix(f" (seed {old['seed']})") if seeded else old["label"]
    return {
        "label": old["label"],
        "origin": "alpha" if old["role"] == "sweep" else row,
        "row": row,
        "row_label": row_label,
        "start": "target" if added else old["weights"],
        "terms": [term] if added else [],
        "prompt": old["prompt"],
        "role": old["role"],
        "origin_label": "α" if old["role"] == "sweep" else row_label,
    }
