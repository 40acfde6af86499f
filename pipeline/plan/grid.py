"""The grid of an experiment: its conditions and tasks, from the configuration alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals import perturbations
from pipeline import documents as data
from pipeline.config.explain import nearest
from pipeline.config.schema import BenchmarkConfig, ConditionConfig, Config, FamilyConfig, Weights
from pipeline.errors import UserError
from pipeline.weights.parts import Part


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
    variant: Part | None = None  # part of the vector; None is the whole
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


def wanted(config: Config, family: FamilyConfig, condition: Condition, task: Task) -> bool:
    """Whether the grid has this cell: not where donors are yet to be trained; the sweep and some conditions leave the
    perturbed documents out."""
    if _lacks_donors(family, condition):
        return False
    if condition.role == "sweep":
        chosen = config.sweep.benchmarks
        return task.perturbation is None and (chosen is None or task.benchmark in chosen)
    return task.perturbation is None or condition.variants


def donors_of(condition: Condition) -> tuple[str, ...]:
    """The donors that a condition's weights are made from."""
    if condition.weights in (Weights.vector, Weights.random):
        return ("sft", "grpo") if condition.alpha else ()  # α = 0 is the target
    return (condition.weights.value,) if condition.weights in (Weights.sft, Weights.grpo) else ()


def _lacks_donors(family: FamilyConfig, condition: Condition) -> bool:
    """Whether a condition waits for donors that a recipe is yet to train."""
    return family.donors is not None and any(getattr(family, part) is None for part in donors_of(condition))


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


def _variant(where: str, c: ConditionConfig) -> Part | None:
    if c.variant is None:
        return None
    v = c.variant
    if v.layers is not None and len(v.layers) != 2:
        raise UserError(
            f"{where}.variant.layers={v.layers}: expected the first and the last layer, such as [0,13]"
        )
    return Part(
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
