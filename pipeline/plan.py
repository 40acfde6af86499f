"""From the configuration to the list of cells, each with a key that holds everything that can change its answers.

    plan = make_plan(config)          # reads file fingerprints, starts nothing heavy
    plan.cells[0].key                 # digest of plan.cells[0].inputs

A cell is (family, condition, task): some weights answer one benchmark, plain or perturbed, under one prompt.
Conditions that come to the same thing (α = 0 and the baseline) share a key and are computed once.
What is not in `inputs` (paths, W&B, batch size where answers do not move with it) does not change a key.
"""

import ast
import importlib.metadata
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml

from evals import data, perturbations
from pipeline.checkpoint import Checkpoint
from pipeline.config import (
    ROOT,
    BenchmarkConfig,
    CheckpointConfig,
    ConditionConfig,
    Config,
    FamilyConfig,
    Weights,
    nearest,
)
from pipeline.errors import UserError
from pipeline.records import SCHEMA, digest, is_done
from pipeline.vector import NOISE, VARIANTS, Term, Variant, Vector

PROTOCOL = 1  # raise it when pipeline/evaluate.py or lm.py changes what an answer or a score is
PACKAGES = ("lm_eval", "torch", "transformers", "vllm")
TASKS = ROOT / "evals" / "tasks"


@dataclass(frozen=True)
class Condition:
    """A row of the grid with one α and one seed."""

    name: str
    label: str
    weights: Weights
    alpha: float | None
    seed: int | None
    prompt: str
    role: str  # main, control or sweep
    variants: bool
    variant: Variant | None = None  # part of the vector; None is the whole
    plus: tuple[tuple[str, float], ...] = ()  # (family, α) of further vectors


@dataclass(frozen=True)
class Task:
    """A benchmark, plain or under one perturbation."""

    name: str
    benchmark: str
    config: BenchmarkConfig
    perturbation: str | None
    limit: int | None

    @property
    def subtasks(self) -> list[str | None]:
        """The subtasks that are asked, [None] where there are none; without those that the perturbation cannot change."""
        if not self.config.subtasks:
            return [None]
        chosen = perturbations.get(self.config.form, self.perturbation) if self.perturbation else None
        fitting = [s for s in self.config.subtasks if chosen is None or s not in chosen.without]
        if not fitting:
            raise UserError(
                f"benchmarks.{self.benchmark}.variants: '{self.perturbation}' fits none of the subtasks"
                f" {', '.join(self.config.subtasks)}; remove it, or add a subtask"
            )
        return list(fitting)


@dataclass(frozen=True)
class Family:
    """The checkpoints of one target and its donors, and where its vector is."""

    name: str
    config: FamilyConfig
    target: Checkpoint
    sft: Checkpoint | None
    grpo: Checkpoint | None
    base: Checkpoint | None
    vector_key: str | None

    def checkpoint(self, weights: Weights) -> Checkpoint:
        """The checkpoint that a condition starts from: a donor or the base, or the target that v is added to."""
        found = {Weights.sft: self.sft, Weights.grpo: self.grpo, Weights.base: self.base}.get(
            weights, self.target
        )
        if found is None:
            raise UserError(
                f"families.{self.name}.{weights.value}: a condition needs this checkpoint; set its id"
            )
        return found

    @cached_property
    def architecture(self) -> str:
        """Families with equal values can share one engine."""
        return digest([_model_config(self.target), self.target.tokenizer_fingerprint])


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

    def vector(self, family: Family, variant: Variant | None = None) -> Path:
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

    def vector_folder(self, family: Family, variant: Variant | None = None) -> Path:
        return self.results / "vectors" / str(_vector_key(family, variant))

    def geometry_file(self, family: Family, variant: Variant | None = None) -> Path:
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


def grid_of(config: Config) -> dict[str, Any]:
    """Benchmarks and conditions as a manifest names them; opens nothing."""
    return {
        "benchmarks": {task.name: _benchmark(task) for task in tasks_of(config)},
        "conditions": {
            c.name: {
                "label": c.label,
                "weights": c.weights.value,
                "alpha": c.alpha,
                "seed": c.seed,
                "prompt": c.prompt,
                "role": c.role,
            }
            | ({"whole": False} if c.variant is not None or c.plus else {})
            for c in conditions_of(config)
        },
    }


def _benchmark(task: Task) -> dict[str, Any]:
    perturbation = perturbations.get(task.config.form, task.perturbation) if task.perturbation else None
    has_sources = perturbation is not None or task.config.dataset.source_field is not None
    return {
        "label": task.config.label if perturbation is None else perturbation.name.replace("_", " "),
        "published": task.config.published if perturbation is None else None,
        "variant_of": task.benchmark if perturbation else None,
        "perturbation": perturbation.id if perturbation else None,
        "cluster": "subtask" if task.config.subtasks else "source_doc" if has_sources else None,
        "chance": task.config.chance,
        "limit": task.limit,
    }


def make_plan(config: Config) -> Plan:
    """Resolve checkpoints and documents, and list the cells.

    Raises:
        UserError: for a checkpoint, document file, task or perturbation that is not there or does not fit.
    """
    conditions, tasks = list(conditions_of(config)), list(tasks_of(config))
    names = config.sizes if config.sizes is not None else list(config.families)
    if not names or not conditions or not tasks:
        raise UserError("nothing to run: expected at least one family, one condition and one benchmark")
    families = {name: _family(name, config.families[name], conditions) for name in names}
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
                    inputs = _inputs(config, families, family, condition, task)
                    cells.append(Cell(family, condition, task, inputs, digest(inputs)))
    if not cells:
        raise UserError("; ".join(["nothing to run", *left_out(config)]))
    return Plan(config, families, conditions, tasks, cells)


def _vector_key(family: Family, variant: Variant | None) -> str | None:
    return family.vector_key if variant is None else digest([family.vector_key, asdict(variant), VARIANTS])


def wanted(config: Config, family: FamilyConfig, condition: Condition, task: Task) -> bool:
    """Whether the grid has this cell: not where donors are yet to be trained; the sweep and some conditions leave the
    perturbed documents out."""
    if _lacks_donors(family, condition):
        return False
    if condition.role == "sweep":
        chosen = config.sweep.benchmarks
        return task.perturbation is None and (chosen is None or task.benchmark in chosen)
    return task.perturbation is None or condition.variants


def _donors(condition: Condition) -> tuple[str, ...]:
    """The donors that a condition's weights are made from."""
    if condition.weights in (Weights.vector, Weights.random):
        return ("sft", "grpo") if condition.alpha else ()  # α = 0 is the target
    return (condition.weights.value,) if condition.weights in (Weights.sft, Weights.grpo) else ()


def _lacks_donors(family: FamilyConfig, condition: Condition) -> bool:
    """Whether a condition waits for donors that a recipe is yet to train."""
    return family.donors is not None and any(getattr(family, part) is None for part in _donors(condition))


def left_out(config: Config) -> list[str]:
    """One line for each family whose donors are yet to be trained: what cannot be run, and how to supply it."""
    conditions, lines = list(conditions_of(config)), []
    for name in config.sizes if config.sizes is not None else config.families:
        family = config.families[name]
        waiting = [c.label for c in conditions if _lacks_donors(family, c)]
        if waiting and family.donors is not None:
            recipe = Path(family.donors).name
            where = "" if family.donors == f"results/donors/{recipe}" else f' ARGS="out={family.donors}"'
            lines.append(
                f"{name}: {len(waiting)} of {len(conditions)} conditions are left out, for want of donors in"
                f" {family.donors}: train them with `make donors EXPERIMENT={recipe}{where}`, or set"
                f" families.{name}.sft.id and families.{name}.grpo.id"
            )
    return lines


def conditions_of(config: Config) -> Iterator[Condition]:
    """The rows of the grid: each condition, once for each of its seeds, and the sweep."""
    for name, c in config.conditions.items():
        seeds: list[int | None] = list(dict.fromkeys(c.seeds)) or [None]
        for seed in seeds:
            full = name if seed is None else f"{name}-s{seed}"
            label = c.label if seed is None else f"{c.label} (seed {seed})"
            yield Condition(
                full,
                label,
                c.weights,
                c.alpha,
                seed,
                c.prompt,
                c.role.value,
                c.variants,
                _variant(f"conditions.{name}", c),
                tuple(sorted(c.plus.items())),
            )
    for alpha in sorted(set(config.alpha)):
        label = f"α = {alpha:g}".replace("-", "−")
        yield Condition(
            f"alpha={alpha!r}",
            label,
            Weights.vector,
            alpha,
            None,
            config.sweep.prompt,
            "sweep",
            variants=False,
        )


def _variant(where: str, c: ConditionConfig) -> Variant | None:
    if c.variant is None:
        return None
    v = c.variant
    if v.layers is not None and len(v.layers) != 2:
        raise UserError(
            f"{where}.variant.layers={v.layers}: expected the first and the last layer, such as [0,13]"
        )
    return Variant(
        modules=None if v.modules is None else tuple(v.modules),
        layers=None if v.layers is None else (v.layers[0], v.layers[1]),
        trim=v.trim,
        dare=v.dare,
        seed=v.seed,
    )


def tasks_of(config: Config) -> Iterator[Task]:
    """The columns of the grid: each chosen benchmark, and its variants after it.

    Raises:
        UserError: if a perturbation does not exist for a benchmark's form.
    """
    names = config.tasks if config.tasks is not None else list(config.benchmarks)
    for name in names:
        benchmark = config.benchmarks[name]
        limit = _least(config.limit, benchmark.limit)
        yield Task(name, name, benchmark, None, limit)
        if benchmark.form not in ("none", *data.FIELDS):
            near = nearest(benchmark.form, ["none", *data.FIELDS])
            raise UserError(f"benchmarks.{name}.form: no such form '{benchmark.form}'{near}")
        for variant in benchmark.variants:
            perturbations.get(benchmark.form, variant)  # refuse an unknown one now
            yield Task(f"{name}@{variant}", name, benchmark, variant, _least(limit, config.variant_limit))


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def takes_chat_template(family: FamilyConfig, weights: Weights) -> bool:
    """Whether prompts go through the target's chat template; a base model has learnt none."""
    return family.chat and weights is not Weights.base


def locate(source: CheckpointConfig) -> str:
    """A folder or hub id; shipped checkpoints are found from any working directory."""
    local = ROOT / source.id
    return str(local) if local.is_dir() else source.id


def _family(name: str, config: FamilyConfig, conditions: list[Condition]) -> Family:
    def opened(part: str, source: CheckpointConfig | None) -> Checkpoint | None:
        if source is None:
            return None
        return Checkpoint.open(locate(source), source.revision)

    target = opened("target", config.target)
    assert target is not None
    if config.chat and target.chat_template_hash is None:
        raise UserError(
            f"{target.source}: expected a chat template, found none; set families.{name}.chat=false for a base model"
        )
    sft, grpo, base = opened("sft", config.sft), opened("grpo", config.grpo), opened("base", config.base)
    vector_key = None
    if sft is not None and grpo is not None:
        vector_key = digest({"difference": [grpo.fingerprint, sft.fingerprint]})
    elif config.donors is None and any(len(_donors(c)) == 2 for c in conditions):
        raise UserError(f"families.{name}: conditions with a vector need both donors; set sft.id and grpo.id")
    return Family(name, config, target, sft, grpo, base, vector_key)


def _inputs(
    config: Config, families: dict[str, Family], family: Family, condition: Condition, task: Task
) -> dict[str, Any]:
    """Everything that can change an answer or a score of this cell."""
    weights: dict[str, Any] = {"checkpoint": family.checkpoint(condition.weights).fingerprint}
    if condition.alpha:  # α = 0 is the target, bit for bit
        vector = _vector_key(family, condition.variant)
        weights |= {"vector": vector, "alpha": condition.alpha, "random_seed": condition.seed}
        weights |= {"noise": NOISE} if condition.seed is not None else {}
    if condition.plus:
        weights["plus"] = [[families[name].vector_key, alpha] for name, alpha in condition.plus]
    b, chat = task.config, takes_chat_template(family.config, condition.weights)
    dataset = asdict(b.dataset)
    names = [b.task.format(subtask=s) for s in task.subtasks]
    return {
        "protocol": PROTOCOL,
        "weights": weights,
        "model": _model_config(family.target),
        "tokenizer": family.target.tokenizer_fingerprint,
        "prompt": asdict(config.prompts[condition.prompt]) | {"chat": chat},
        "task": {
            "names": names,
            "definition": _task_definition(tuple(names), b.runs_code),
            "changes": b.changes,
            "metric": b.metric,
            "also": b.also,
            "num_fewshot": b.num_fewshot,
            "max_gen_toks": b.max_gen_toks,
            "limit": task.limit,
        },
        "documents": [
            data.fingerprint(dataset, config.data.folder, s, b.num_fewshot > 0) for s in task.subtasks
        ],
        "rows": {k: dataset[k] for k in ("json_field", "split", "source_field")},
        "perturbation": _perturbation(b.form, task.perturbation, config.perturbation_seed),
        "decoding": "greedy",
        "engine": _numerics(config),
        "versions": versions(),
    }


def _numerics(config: Config) -> dict[str, Any]:
    """Engine options that can move an answer. In float32 greedy answers do not move with the batch."""
    e = config.engine
    numerics: dict[str, Any] = {
        "device": e.device.value,
        "dtype": e.dtype,
        "tensor_parallel_size": e.tensor_parallel_size,
    }
    if e.dtype != "float32":
        numerics |= {
            "batch_invariant": e.batch_invariant,
            "max_num_seqs": None if e.batch_invariant else e.max_num_seqs,
            "enforce_eager": e.enforce_eager,
        }
    return numerics


@lru_cache
def versions() -> dict[str, str]:
    """Versions of the packages that make answers."""
    found = {}
    for name in PACKAGES:
        candidates = (name, f"{name}-cpu") if name == "vllm" else (name,)
        for candidate in candidates:
            try:
                found[name] = importlib.metadata.version(candidate).removesuffix("+cpu")
                break
            except importlib.metadata.PackageNotFoundError:
                continue
        else:
            raise UserError(f"{name} is not installed; run `make setup`")
    return found


def _model_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json without what only describes its origin, and the stop tokens of generation_config.json."""
    origin = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
    model = {k: v for k, v in checkpoint.config.items() if k not in origin}
    path = checkpoint.path / "generation_config.json"
    try:
        generation = json.loads(path.read_text()) if path.is_file() else {}
        return {"config": digest(model), "eos_token_id": generation.get("eos_token_id")}
    except (ValueError, AttributeError) as e:
        raise UserError(f"{path}: cannot be read as JSON ({e}); mend it or download it again") from None


@lru_cache
def _task_definition(names: tuple[str, ...], runs_code: bool) -> Any:
    """Our own task files and scorers by content (comments aside); stock ones are known by lm-eval's version."""
    own = {
        path: yaml.load(path.read_text(), Loader=_TaskLoader)  # noqa: S506
        for path in sorted(TASKS.glob("*.yaml"))
    }
    wanted = [path for path, content in own.items() if content.get("task") in names]
    found: dict[str, str] = {}
    while wanted:
        path = wanted.pop()
        text = path.read_text()
        found[path.name] = digest(own[path])
        included = own[path].get("include", [])
        wanted += [
            TASKS / i for i in ([included] if isinstance(included, str) else included) if TASKS / i in own
        ]
        for module in re.findall(r"!function (\S+)\.\w+", text):
            for scorer in (TASKS / f"{module}.py", ROOT / f"{module.replace('.', '/')}.py"):
                if scorer.is_file():
                    found[scorer.name] = code_fingerprint(scorer)
    if found and runs_code:
        found |= {path.name: code_fingerprint(path) for path in (ROOT / "evals").glob("sandbox*.py")}
    return found or None


class _TaskLoader(yaml.SafeLoader):
    """Reads `!function module.name` as a string."""


_TaskLoader.add_constructor("!function", lambda loader, node: f"!function {node.value}")


def code_fingerprint(path: Path) -> str:
    """Digest of what a Python file does: its syntax tree without comments and docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                node.body = body[1:] or [ast.Pass()]
    return digest(ast.dump(tree))


@lru_cache
def _perturbation(form: str, name: str | None, seed: int) -> Any:
    if name is None:
        return None
    folder = ROOT / "evals" / "perturbations"
    shared = ("__init__", "common")
    code = {f.name: code_fingerprint(f) for f in sorted(folder.glob("*.py")) if f.stem in (form, *shared)}
    return {"id": perturbations.get(form, name).id, "seed": seed, "code": code}
