"""The grid of an experiment: families × conditions × benchmarks, enumerated once, from the configuration alone.

    grid = make_grid(compose(["experiment=paper"]))      # opens nothing: no checkpoint, no document
    grid.conditions, grid.benchmarks, grid.cells, grid.left_out

The estimate, the plan and the manifest take this object. A row that a family cannot have (its donors are yet to be
trained) is not in `cells`, and `left_out` says so.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evals import perturbations
from pipeline.config.explain import nearest
from pipeline.config.schema import (
    UNKNOWN,
    BenchmarkConfig,
    ConditionConfig,
    Config,
    FamilyConfig,
    PartConfig,
    Role,
    Start,
)
from pipeline.documents import FIELDS
from pipeline.errors import UserError
from pipeline.manifest import BenchmarkEntry, ConditionEntry, TermEntry

if TYPE_CHECKING:
    from pipeline.weights.parts import Part  # torch, two thirds of what a plan has to import


@dataclass(frozen=True)
class VectorTerm:
    """α times the vector of a family, or a part of it; with a seed, α times noise of its norm."""

    alpha: float
    family: str | None = None  # None is the row's own family
    part: "Part | None" = None  # None is the whole vector
    seed: int | None = None

    def entry(self) -> TermEntry:
        return TermEntry(self.alpha, self.family, None if self.part is None else asdict(self.part), self.seed)


@dataclass(frozen=True)
class Condition:
    """A row of the grid at one α and one seed: a checkpoint to start from, and the terms that are added to it."""

    name: str
    label: str
    origin: str  # the condition of the configuration that it comes from
    origin_label: str
    row: str  # rows that differ in their seed alone are one row of a table
    row_label: str
    start: Start
    terms: tuple[VectorTerm, ...]
    prompt: str
    role: Role
    variants: bool  # also on the perturbed documents
    benchmarks: tuple[str, ...] | None = None  # on these alone
    order: int | None = None  # the seed of another order of the documents
    at_once: int | None = None  # documents that are asked at a time, at most

    def added(self) -> tuple[VectorTerm, ...]:
        """The terms that change something: at α = 0 it is the checkpoint, bit for bit."""
        return tuple(term for term in self.terms if term.alpha)

    def entry(self) -> ConditionEntry:
        """The condition as the manifest names it."""
        return ConditionEntry(
            label=self.label,
            origin=self.origin,
            origin_label=self.origin_label,
            row=self.row,
            row_label=self.row_label,
            start=self.start.value,
            terms=tuple(term.entry() for term in self.terms),
            prompt=self.prompt,
            role=self.role.value,
        )


@dataclass(frozen=True)
class Benchmark:
    """A column of the grid: a benchmark, plain or under one perturbation."""

    name: str
    origin: str  # the benchmark of the configuration that it is, or is a variant of
    config: BenchmarkConfig
    perturbation: str | None
    limit: int | None
    seed: int = 0  # of the perturbation
    folder: str | None = None  # where the documents are; None is the hub
    task_folders: tuple[str, ...] = ()  # of task files of one's own
    generated: bool = False  # the documents are written by a generator

    @property
    def subtasks(self) -> list[str | None]:
        """The subtasks that are asked, [None] where there are none; without those that the perturbation cannot change."""
        if not self.config.subtasks:
            return [None]
        chosen = perturbations.get(self.config.form, self.perturbation) if self.perturbation else None
        fitting = [s for s in self.config.subtasks if chosen is None or s not in chosen.without]
        if not fitting:
            raise UserError(
                f"benchmarks.{self.origin}.variants: '{self.perturbation}' fits none of the subtasks"
                f" {', '.join(self.config.subtasks)}; remove it, or add a subtask"
            )
        return list(fitting)

    def entry(self) -> BenchmarkEntry:
        """The column as the manifest names it."""
        perturbed = perturbations.get(self.config.form, self.perturbation) if self.perturbation else None
        has_sources = perturbed is not None or self.config.dataset.source_field is not None
        return BenchmarkEntry(
            label=self.config.label if perturbed is None else perturbed.name.replace("_", " "),
            published=self.config.published if perturbed is None else None,
            variant_of=self.origin if perturbed else None,
            perturbation=perturbed.id if perturbed else None,
            cluster="subtask" if self.config.subtasks else "source_doc" if has_sources else None,
            chance=self.config.chance,
            limit=self.limit,
            generated=self.generated,
            form_of=self.config.form_of if perturbed is None else None,
            cannot_think=self.config.cannot_think,
        )


class GridRow(NamedTuple):
    """A family under a condition: weights, and the prompt that they are asked with."""

    family: str
    condition: Condition


@dataclass(frozen=True)
class GridCell:
    """One cell of the grid, before anything is opened."""

    family: str
    condition: Condition
    benchmark: Benchmark


@dataclass(frozen=True)
class Grid:
    """Everything that an experiment asks for."""

    families: dict[str, FamilyConfig]  # those that have rows
    conditions: tuple[Condition, ...]
    benchmarks: tuple[Benchmark, ...]
    cells: tuple[GridCell, ...]
    left_out: tuple[str, ...]  # a line for each family that cannot have all rows
    rows: tuple[GridRow, ...]  # those that have cells; of `make_rows` all

    def describe(self, mark: Callable[[GridCell], str] = lambda cell: "?") -> str:
        """The grid as text: for each family, row and column a mark, and nothing where there is no cell."""
        lines = []
        width = max(len(c.label) for c in self.conditions)
        for name, family in self.families.items():
            cells = {(c.condition.name, c.benchmark.name): c for c in self.cells if c.family == name}
            lines.append(f"{name} ({family.label}): {family.target.id}")
            lines += [f"  {column(i)}  {benchmark.name}" for i, benchmark in enumerate(self.benchmarks)]
            lines.append(" " * (width + 4) + " ".join(column(i) for i in range(len(self.benchmarks))))
            for condition in self.conditions:
                found = [cells.get((condition.name, benchmark.name)) for benchmark in self.benchmarks]
                marks = [f"{mark(cell) if cell else '':<{len(column(i))}}" for i, cell in enumerate(found)]
                lines.append(f"  {condition.label:<{width}}  {' '.join(marks)}".rstrip())
        return "\n".join(lines)


def column(index: int) -> str:
    """A letter for a column, as spreadsheets have them: a to z, aa, ab, …"""
    return (column(index // 26 - 1) if index >= 26 else "") + chr(97 + index % 26)


def make_grid(config: Config) -> Grid:
    """The grid of a configuration.

    Raises:
        UserError: for a perturbation, form or subtask that does not exist, or a condition that needs donors which the
            configuration does not have.
    """
    families = config.chosen_families()
    conditions, benchmarks = rows(config), columns(config)
    if not families or not conditions or not benchmarks:
        raise UserError("nothing to run: expected at least one family, one condition and one benchmark")
    possible, left_out = _possible(config, families, conditions)
    cells = tuple(
        GridCell(row.family, row.condition, benchmark)
        for row in possible
        for benchmark in benchmarks
        if _is_asked(row.condition, benchmark)
    )
    used = tuple(dict.fromkeys(GridRow(cell.family, cell.condition) for cell in cells))
    return Grid(families, conditions, benchmarks, cells, left_out, used)


def make_rows(config: Config) -> Grid:
    """The rows of a configuration without cells, for who asks them something else; it may have no benchmark.

    Raises:
        UserError: as `make_grid`.
    """
    families, conditions = config.chosen_families(), rows(config)
    possible, left_out = _possible(config, families, conditions)
    return Grid(families, conditions, columns(config), (), left_out, possible)


def _possible(
    config: Config, families: dict[str, FamilyConfig], conditions: tuple[Condition, ...]
) -> tuple[tuple[GridRow, ...], tuple[str, ...]]:
    """The rows that the families can have, and a line for each family that cannot have all."""
    possible, left_out = [], []
    for name in families:
        waiting = {c.name: _waits_for(config, name, c) for c in conditions}
        possible += [
            GridRow(name, condition)
            for condition in conditions
            if not waiting[condition.name] and not _adds_itself(name, condition)
        ]
        for of in sorted({family for families in waiting.values() for family in families}):
            count = sum(of in families for families in waiting.values())
            without = f"{name}: {count} of {len(conditions)} conditions are left out"
            left_out.append(f"{without}, {_wants(of, config.families[of])}")
    return tuple(possible), tuple(left_out)


def rows(config: Config) -> tuple[Condition, ...]:
    """The rows of the grid: each chosen condition, once for each α and each seed.

    Nothing is asked again of an exact engine, whose answers move with neither order nor batch.

    Raises:
        UserError: if that is all that was chosen.
    """
    chosen = config.chosen_conditions()
    asked = {n: c for n, c in chosen.items() if c.role is not Role.again or not config.engine.is_exact}
    if chosen and not asked:
        why = "float32" if config.engine.dtype == "float32" else "a batch invariant engine"
        raise UserError(
            f"conditions: {', '.join(chosen)}: in {why} no answer moves with order or batch, so nothing is asked again; add"
            " another condition, or engine.dtype=bfloat16"
        )
    return tuple(row for name, given in asked.items() for row in _rows(name, given, config.seed_limit))


def _rows(name: str, given: ConditionConfig, seed_limit: int | None) -> list[Condition]:
    """A condition of the configuration as rows: one for each α and each seed, of which at most so many are taken."""
    if given.terms:
        terms = tuple(VectorTerm(float(t.alpha), t.family, _part(t.part), t.seed) for t in given.terms)
        return [_row(name, given, name, given.label, terms)]
    if given.alpha is None:
        return [_row(name, given, name, given.label, ())]
    part, found = _part(given.part), []
    for alpha in given.alphas():
        row, label = name, given.label
        if isinstance(given.alpha, list | tuple):
            row, label = f"{name}={alpha!r}", f"{label} = {alpha:g}".replace("-", "−")
        for seed in [None] if given.seeds is None else list(dict.fromkeys(given.seeds))[:seed_limit]:
            found.append(_row(name, given, row, label, (VectorTerm(alpha, None, part, seed),)))
    return found


def _row(
    origin: str, given: ConditionConfig, row: str, label: str, terms: tuple[VectorTerm, ...]
) -> Condition:
    seed = terms[0].seed if len(terms) == 1 and not given.terms else None
    return Condition(
        name=row if seed is None else f"{row}-s{seed}",
        label=label if seed is None else f"{label} (seed {seed})",
        origin=origin,
        origin_label=given.label,
        row=row,
        row_label=label,
        start=given.start,
        terms=terms,
        prompt=given.prompt,
        role=given.role,
        variants=given.variants,
        benchmarks=None if given.benchmarks is None else tuple(given.benchmarks),
        order=given.order,
        at_once=given.at_once,
    )


def _part(given: PartConfig | None) -> "Part | None":
    if given is None:
        return None
    from pipeline.weights.parts import Part

    return Part(
        modules=None if given.modules is None else tuple(given.modules),
        layers=None if given.layers is None else (given.layers[0], given.layers[1]),
        trim=given.trim,
        dare=given.dare,
        seed=given.seed,
    )


def columns(config: Config) -> tuple[Benchmark, ...]:
    """The columns of the grid: each chosen benchmark, and its variants after it.

    Raises:
        UserError: for a form or perturbation that does not exist.
    """
    benchmarks = []
    for name, given in config.chosen_benchmarks().items():
        benchmark = _with_room(given, config.max_gen_toks)
        limit = _least(config.limit, benchmark.limit)
        folder = benchmark.dataset.folder or config.data.folder
        seed, own = config.perturbation_seed, tuple(config.evals_path)
        generated = config.data.generator is not None and benchmark.dataset.folder is None
        plain = Benchmark(name, name, benchmark, None, limit, seed, folder, own, generated)
        if benchmark.form not in ("none", *FIELDS):
            near = nearest(benchmark.form, ["none", *FIELDS])
            raise UserError(f"benchmarks.{name}.form: no such form '{benchmark.form}'{near}")
        benchmarks.append(plain)
        for variant in benchmark.variants:
            perturbations.get(benchmark.form, variant)  # refuse an unknown one now
            least = _least(limit, config.variant_limit)
            benchmarks.append(replace(plain, name=f"{name}@{variant}", perturbation=variant, limit=least))
    return tuple(benchmarks)


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _is_asked(condition: Condition, benchmark: Benchmark) -> bool:
    """Whether the condition is asked this column: some leave the perturbed documents out, or other benchmarks."""
    chosen = condition.benchmarks is None or benchmark.origin in condition.benchmarks
    return chosen and (benchmark.perturbation is None or condition.variants)


def _adds_itself(family: str, condition: Condition) -> bool:
    """Whether a row would add another family's vector to the family that it is of."""
    return any(term.family == family for term in condition.added())


def _waits_for(config: Config, name: str, condition: Condition) -> list[str]:
    """The families whose donors a row of family `name` needs, and that a recipe is yet to train or nobody has named.

    Raises:
        UserError: if it needs donors that no recipe makes and the configuration does not name.
    """
    needs = [(name, "sft"), (name, "grpo")] if any(t.family is None for t in condition.added()) else []
    needs += [(term.family, part) for term in condition.added() if term.family for part in ("sft", "grpo")]
    needs += [(name, condition.start.value)] if condition.start is not Start.target else []
    waits = []
    for of, part in needs:
        family = config.families[of]
        if part in family.sources():
            continue
        if part not in family.unnamed() and (family.donors is None or part == "base"):
            raise UserError(
                f"families.{of}.{part}.id: the condition '{condition.name}' needs this checkpoint; set it, or leave the"
                " condition out"
            )
        if of not in waits:
            waits.append(of)
    return waits


def _wants(name: str, family: FamilyConfig) -> str:
    """What a family waits for, and what to do."""
    if unnamed := family.unnamed():
        unnamed = {part: source for part, source in unnamed.items() if source.subfolder == UNKNOWN}
        repositories = " and ".join(dict.fromkeys(source.id for source in unnamed.values()))
        keys = " and ".join(f"families.{name}.{part}.subfolder" for part in unnamed)
        return f"because it is not known which folders of {repositories} its donors are: name them in {keys}"
    folder = family.donors or ""
    recipe = Path(folder).name
    where = "" if folder == f"results/donors/{recipe}" else f' ARGS="out={folder}"'
    return (
        f"for want of donors in {folder}: train them with `make donors EXPERIMENT={recipe}{where}`, or set"
        f" families.{name}.sft.id and families.{name}.grpo.id"
    )


def takes_chat_template(family: FamilyConfig, start: Start) -> bool:
    """Whether prompts go through the target's chat template; a base model has learnt none."""
    return family.chat and start is not Start.base


def allowed_differences(config: Config, family: str, condition: Condition) -> list[str]:
    """Keys of config.json in which a row's checkpoint may differ from the donors of what is added to it."""
    owners = dict.fromkeys([family, *(term.family or family for term in condition.added())])
    return list(dict.fromkeys(key for o in owners for key in config.families[o].allow_config_differences))


def asked_of(family: FamilyConfig, benchmark: Benchmark) -> Benchmark:
    """The benchmark as the family is asked it: with no more tokens for an answer than its models have room for."""
    return replace(benchmark, config=_with_room(benchmark.config, family.max_gen_toks))


def _with_room(benchmark: BenchmarkConfig, room: int | None) -> BenchmarkConfig:
    """The benchmark with at most `room` tokens for an answer; None, and a task's own length, change nothing."""
    most = benchmark.max_gen_toks
    return (
        benchmark if most is None or room is None or most <= room else replace(benchmark, max_gen_toks=room)
    )
