"""Typed schemas of everything under conf/: what is not declared here is refused.

Hydra fills them; once composed (`pipeline.config.compose`) they are frozen. What is found out later, such as the commit
behind `main` or the folder of generated documents, is a value of its own (`pipeline.plan.sources`).
"""

from dataclasses import FrozenInstanceError, dataclass, field, fields
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

DTYPES = ("float32", "float16", "bfloat16")
PARTS = ("target", "sft", "grpo", "base")  # the checkpoints of a family
UNKNOWN = "?"  # the subfolder of a donor of which nobody has seen where it lies


class Frozen:
    """A schema that takes no change once it is frozen."""

    _frozen = False

    def __setattr__(self, name: str, value: Any) -> None:
        if self._frozen:
            raise FrozenInstanceError(
                f"{type(self).__name__}.{name}: a composed configuration does not change"
            )
        super().__setattr__(name, value)


class FrozenDict(dict[str, Any]):
    """A dictionary that takes no change."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a composed configuration does not change")

    __setitem__ = __delitem__ = update = setdefault = pop = popitem = clear = __ior__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


def frozen(value: Any) -> Any:
    """`value` with every schema in it frozen, and lists and dictionaries replaced by ones that do not change."""
    if isinstance(value, Frozen):
        if value._frozen:
            return value
        for field_ in fields(value):  # type: ignore[arg-type]
            setattr(value, field_.name, frozen(getattr(value, field_.name)))
        value.__dict__["_frozen"] = True
        return value
    if isinstance(value, dict) and not isinstance(value, FrozenDict):
        return FrozenDict({key: frozen(inner) for key, inner in value.items()})
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """A copy of `value` as dictionaries, lists, texts and numbers, for who takes nothing else or changes what it gets."""
    if isinstance(value, Frozen):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}  # type: ignore[arg-type]
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value.value if isinstance(value, Enum) else value


class Start(Enum):
    """The checkpoint that a condition starts from."""

    target = "target"
    base = "base"
    sft = "sft"
    grpo = "grpo"


class Role(Enum):
    """In which table a condition stands."""

    main = "main"
    control = "control"
    sweep = "sweep"
    again = "again"  # a row asked once more: what it moves is noise


class Tracking(Enum):
    """How runs are logged to W&B; `auto` is what WANDB_MODE says, else online where an API key is known, offline elsewhere."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class Device(Enum):
    cpu = "cpu"
    gpu = "gpu"


class Swap(Enum):
    """How an engine gets the weights of the next condition."""

    in_place = "in_place"
    restart = "restart"  # a checkpoint is written and an engine is started on it: slower, and as right


class Launcher(Enum):
    """Where cells are evaluated: in this process, by workers on a Ray cluster, or what this machine's GPUs ask for."""

    auto = "auto"
    local = "local"
    ray = "ray"


class Stage(Enum):
    """Steps of the pipeline, in their order."""

    extract = "extract"
    evaluate = "evaluate"
    render = "render"
    track = "track"


@dataclass
class CheckpointConfig(Frozen):
    """A Hugging Face checkpoint: a hub id or a folder (relative to the repository), and a revision."""

    id: str = ""  # empty: there is none
    revision: str | None = None
    subfolder: str | None = (
        None  # of the repository or folder, where the checkpoint is not at its root; of a donor "?" until known
    )
    merge_into: str | None = (
        None  # it is a LoRA adapter, trained on this checkpoint of its family: target, base or sft
    )
    size_gb: float | None = None  # estimate for the plan: what is downloaded, where the hub cannot be asked


@dataclass
class FamilyConfig(Frozen):
    """One target with its pair of donors."""

    label: str = MISSING
    target: CheckpointConfig = field(default_factory=CheckpointConfig)
    sft: CheckpointConfig | None = field(
        default_factory=CheckpointConfig
    )  # None once composed, if it has no id
    grpo: CheckpointConfig | None = field(default_factory=CheckpointConfig)
    base: CheckpointConfig | None = field(default_factory=CheckpointConfig)
    pair: str | None = None  # what its donors are and what is known against them: said under its scores
    donors: str | None = None  # where a recipe puts sft and grpo, for those without an id; may be to come
    group: str | None = None  # families of one group are independent repetitions, averaged in the tables
    published_size: str | None = None  # the size under which the paper reports it
    chat: bool = True  # apply the chat template of the target
    template: str | None = None  # the checkpoint whose template is applied in its place: sft, grpo or base
    max_model_len: int | None = None  # of its engine, where it has fewer positions than engine.max_model_len
    allow_config_differences: list[str] = field(
        default_factory=list
    )  # keys of config.json in which its checkpoints may differ, beside those that are known to be harmless
    allow_other_initialisation: bool = (
        False  # donors and target may come from other pretrainings than the base
    )
    max_gen_toks: int | None = None  # of an answer at most, where it has no room for what a benchmark allows
    tokens_per_second: float | None = None  # estimate for the plan: what one GPU generates

    def sources(self) -> dict[str, CheckpointConfig]:
        """The checkpoints that it has and that can be found, by their part: target, sft, grpo, base."""
        return {part: source for part, source in self._given().items() if part not in self.unnamed()}

    def unnamed(self) -> dict[str, CheckpointConfig]:
        """Donors whose folder is still to be named, and adapters that are merged into one, by their part."""
        found: dict[str, CheckpointConfig] = {}
        for part, source in self._given().items():  # an adapter comes after what it is merged into
            if source.subfolder == UNKNOWN or source.merge_into in found:
                found[part] = source
        return found

    def _given(self) -> dict[str, CheckpointConfig]:
        found = {part: getattr(self, part) for part in PARTS}
        return {part: source for part, source in found.items() if source is not None}


@dataclass
class DatasetConfig(Frozen):
    """Documents: a data set on the hub at a pinned revision, or files in a folder."""

    id: str = ""  # on the hub; empty: files of a folder alone
    folder: str | None = None  # of this benchmark's files; null is data.folder
    revision: str | None = None
    config: str | None = None  # configuration name on the hub; {subtask} is replaced
    files: dict[str, str] = field(
        default_factory=dict
    )  # split -> path under data.folder; {subtask} is replaced
    json_field: str | None = None  # where the rows are, if a file is not a plain list of rows
    split: str = "test"  # the split whose documents are asked
    documents: int | None = None  # estimate for the plan: how many that split has, over all subtasks
    kept: dict[str, int] = field(default_factory=dict)  # likewise: how many of them a variant keeps
    source_field: str | None = None  # documents that agree in it were made from one and are not independent


@dataclass
class BenchmarkConfig(Frozen):
    """One benchmark: an lm-eval task (or several subtasks), what we change in it, and how it is reported."""

    label: str = MISSING
    form: str = MISSING  # which perturbations fit: gsm8k, humaneval, sciq, bbh, or none
    task: str = MISSING  # lm-eval task; {subtask} is replaced by each of `subtasks`
    subtasks: list[str] = field(default_factory=list)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    metric: str = MISSING  # "metric,filter" as lm-eval names it
    also: list[str] = field(default_factory=list)  # further metrics to keep
    changes: dict[str, Any] = field(default_factory=dict)  # lm-eval task keys that replace the stock ones
    num_fewshot: int = 0
    max_gen_toks: int | None = None
    samples: int = 1  # answers to each document, the mean of which is its score
    temperature: float = 0.0  # that answers are sampled at; 0 is greedy
    top_p: float = 1.0  # share of the probability that is sampled from, from the likeliest token down
    chance: float = 0.0  # score of guessing
    published: str | None = None  # the name under which the paper reports it
    form_of: str | None = None  # the benchmark that it asks in another form
    cannot_think: str | None = None  # why the prompt condition `think` cannot act; null where it can
    variants: list[str] = field(default_factory=list)  # perturbations to evaluate besides the plain documents
    limit: int | None = None  # first documents of each subtask; null is all
    answer_tokens: int | None = None  # estimate for the plan: mean length of a written answer
    runs_code: bool = False  # answers are programs: the sandbox must work before the engine starts


@dataclass
class PromptConfig(Frozen):
    """A prompt condition: text put before the user's turn, and a system message."""

    prefix: str = ""
    system: str | None = None


@dataclass
class PartConfig(Frozen):
    """Which part of a vector is added: a mask, then trimming, then dropping (pipeline/weights/parts.py)."""

    modules: list[str] | None = None  # mask: tensors with one of these in their name, such as mlp or q_proj
    layers: list[int] | None = None  # mask: first and last layer, both included
    trim: float | None = None  # share of each tensor's entries that stay, the largest (top-k, TIES)
    dare: float | None = None  # share of the entries that stay at random, divided by it (DARE)
    seed: int = 0  # of dare


@dataclass
class TermConfig(Frozen):
    """What a condition adds to its checkpoint: α times a vector."""

    alpha: float = MISSING
    family: str | None = None  # whose vector; null is the family's own
    part: PartConfig | None = field(
        default_factory=PartConfig
    )  # None once composed, if it is the whole vector
    seed: int | None = (
        None  # noise of the vector's norm in every tensor takes its place, drawn from this seed
    )


@dataclass
class ConditionConfig(Frozen):
    """One row of the grid, or several: a checkpoint to start from, and a list of terms that are added to it.

    `alpha`, `part` and `seeds` are the short form of a single term of the family's own vector; with several α or seeds
    there is one row for each.
    """

    label: str = MISSING
    start: Start = Start.target
    alpha: Any = None  # a number, or a list of numbers: a sweep
    part: PartConfig | None = field(
        default_factory=PartConfig
    )  # None once composed, if it is the whole vector
    seeds: list[int] | None = None  # noise of the vector's norm takes its place: the random controls
    terms: list[TermConfig] = field(default_factory=list)  # the long form
    prompt: str = "plain"
    role: Role = Role.main
    variants: bool = True  # also on the perturbed documents
    benchmarks: list[str] | None = None  # on these alone; null is all
    order: int | None = None  # of role again: the seed of another order of the documents
    at_once: int | None = None  # of role again: documents that are asked at a time, at most

    def alphas(self) -> list[float]:
        """The α of the short form, ascending; empty where there is none."""
        if self.alpha is None:
            return []
        return (
            sorted({float(a) for a in self.alpha})
            if isinstance(self.alpha, list | tuple)
            else [float(self.alpha)]
        )

    def needs_vector(self) -> bool:
        """Whether something is added; at α = 0 it is the bare checkpoint."""
        return any(self.alphas()) or any(term.alpha for term in self.terms)


@dataclass
class DataConfig(Frozen):
    """Where documents come from; with no folder they come from the hub (or its offline cache)."""

    folder: str | None = None
    generator: str | None = None  # "micro": the folder is written by evals.micro when it is missing
    sizes: dict[str, int] = field(
        default_factory=dict
    )  # documents that it writes, where not evals.micro.SIZES
    seed: int = 0


@dataclass
class EngineConfig(Frozen):
    """Options of the vLLM engine."""

    device: Device = Device.cpu
    dtype: str = "float32"
    max_model_len: int = 1024
    max_num_seqs: int = 256
    kv_cache_gb: float | None = None  # null: what gpu_memory_utilization leaves
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    threads: int | None = None  # of a CPU worker; null is all cores
    in_process: bool = False  # run the engine inside this process: it starts quicker, and dies with us
    batch_invariant: bool = False  # VLLM_BATCH_INVARIANT=1: answers do not move with the batch (GPU)
    seed: int = 0
    swap: Swap = Swap.in_place  # restart: for a machine on which weights cannot be changed in place

    @property
    def is_exact(self) -> bool:
        """Whether no answer moves with what else is in its batch."""
        return self.dtype == "float32" or self.batch_invariant


@dataclass
class SteerConfig(Frozen):
    """How target + Σ α·v is summed."""

    dtype: str | None = None  # of the sum: float32, or null for the target's own

    @property
    def wide(self) -> bool:
        """Whether the sum is left in float32, where nothing of it is lost in rounding."""
        return self.dtype is not None


@dataclass
class LauncherConfig(Frozen):
    """How cells are spread (pipeline/evaluate/cluster.py)."""

    kind: Launcher = Launcher.local
    address: str | None = (
        None  # Ray: "auto" or host:port of a running cluster; null starts one on this machine
    )
    workers: int | None = (
        None  # engines; null: one for each GPU (or tensor-parallel group), and one on the CPU
    )
    shard_documents: int | None = (
        64  # that a shard of a long cell has at least, where several workers share it out; null: never
    )


@dataclass
class TrackingConfig(Frozen):
    mode: Tracking = Tracking.auto
    project: str = "reasoning-vectors"
    entity: str | None = None


@dataclass
class ChoiceConfig(Frozen):
    """A part of the grid: families=[…] and conditions=[…] on the command line."""

    families: list[str] | None = None  # by name or published size; null is all
    conditions: list[str] | None = None


@dataclass
class Config(Frozen):
    """The whole experiment."""

    name: str = MISSING  # names the manifest, the tables and the W&B group
    stages: list[Stage] = field(default_factory=lambda: list(Stage))
    families: dict[str, FamilyConfig] = field(default_factory=dict)
    benchmarks: dict[str, BenchmarkConfig] = field(default_factory=dict)
    tasks: list[str] | None = None  # which benchmarks to run; null is all
    limit: int | None = None  # a limit for every benchmark
    variant_limit: int | None = None  # a limit for every perturbed benchmark
    seed_limit: int | None = None  # the first seeds of every random control
    max_gen_toks: int | None = None  # of an answer at most, where a benchmark allows more
    perturbation_seed: int = 0
    prompts: dict[str, PromptConfig] = field(default_factory=dict)
    conditions: dict[str, ConditionConfig] = field(default_factory=dict)
    chosen: ChoiceConfig = field(default_factory=ChoiceConfig)
    alpha: list[float] = field(default_factory=list)  # of the sweep (conf/conditions/paper.yaml)
    data: DataConfig = field(default_factory=DataConfig)
    evals_path: list[str] = field(
        default_factory=list
    )  # folders with task files of lm-eval's kind, and their scorers
    engine: EngineConfig = field(default_factory=EngineConfig)
    steer: SteerConfig = field(default_factory=SteerConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    allow_unsandboxed: bool = False  # run candidate programs even where nothing can isolate them
    results: str = "results"
    tables: str = "paper_tables"

    def chosen_families(self) -> dict[str, FamilyConfig]:
        """The families that are run, by name."""
        if self.chosen.families is None:
            return dict(self.families)
        of_size: dict[str, list[str]] = {}
        for name, family in self.families.items():
            of_size.setdefault((family.published_size or name).lower(), []).append(name)
        names = [name for given in self.chosen.families for name in of_size.get(given.lower(), [given])]
        return {name: self.families[name] for name in names}

    def opened_families(self) -> dict[str, FamilyConfig]:
        """The families that are run, and those whose vectors they add."""
        terms = [term.family for c in self.chosen_conditions().values() for term in c.terms]
        return self.chosen_families() | {name: self.families[name] for name in terms if name is not None}

    def chosen_benchmarks(self) -> dict[str, BenchmarkConfig]:
        """The benchmarks that are asked, by name."""
        return {
            name: self.benchmarks[name] for name in (self.benchmarks if self.tasks is None else self.tasks)
        }

    def chosen_conditions(self) -> dict[str, ConditionConfig]:
        """The conditions that are run, by name."""
        names = self.conditions if self.chosen.conditions is None else self.chosen.conditions
        return {name: self.conditions[name] for name in names}


ConfigStore.instance().store(name="schema", node=Config)
