"""Typed schemas of everything under conf/: what is not declared here is refused."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

DTYPES = ("float32", "float16", "bfloat16")


class Weights(Enum):
    """Where the weights of a condition come from."""

    target = "target"
    base = "base"
    sft = "sft"
    grpo = "grpo"
    vector = "vector"  # target + alpha * (grpo - sft)
    random = "random"  # target + alpha * Gaussian noise with the vector's norm, tensor by tensor


class Role(Enum):
    """In which table a condition stands."""

    main = "main"
    control = "control"


class Tracking(Enum):
    """How runs are logged to W&B; `auto` is what WANDB_MODE says, else online where an API key is known, offline elsewhere."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class Device(Enum):
    cpu = "cpu"
    gpu = "gpu"


class Launcher(Enum):
    """Where cells are evaluated: in this process, or by workers on a Ray cluster."""

    local = "local"
    ray = "ray"


class Stage(Enum):
    """Steps of the pipeline, in their order."""

    extract = "extract"
    evaluate = "evaluate"
    render = "render"
    track = "track"


@dataclass
class CheckpointConfig:
    """A Hugging Face checkpoint: a hub id or a folder (relative to the repository), and a revision."""

    id: str = ""  # empty: there is none
    revision: str | None = None
    size_gb: float | None = None  # estimate for the plan: what is downloaded, where the hub cannot be asked


@dataclass
class FamilyConfig:
    """One target with its pair of donors."""

    label: str = MISSING
    target: CheckpointConfig = field(default_factory=CheckpointConfig)
    sft: CheckpointConfig | None = field(
        default_factory=CheckpointConfig
    )  # None once composed, if it has no id
    grpo: CheckpointConfig | None = field(default_factory=CheckpointConfig)
    base: CheckpointConfig | None = field(default_factory=CheckpointConfig)
    donors: str | None = None  # where a recipe puts sft and grpo, for those without an id; may be to come
    group: str | None = None  # families of one group are independent repetitions, averaged in the tables
    published_size: str | None = None  # the size under which the paper reports it
    chat: bool = True  # apply the chat template of the target
    tokens_per_second: float | None = None  # estimate for the plan: what one GPU generates


@dataclass
class DatasetConfig:
    """Documents: a data set on the hub at a pinned revision, or the same files in `data.folder`."""

    id: str = MISSING
    revision: str | None = None
    config: str | None = None  # configuration name on the hub; {subtask} is replaced
    files: dict[str, str] = field(
        default_factory=dict
    )  # split -> path under data.folder; {subtask} is replaced
    json_field: str | None = None  # where the rows are, if a file is not a plain list of rows
    split: str = "test"  # the split whose documents are asked
    documents: int | None = None  # estimate for the plan: how many that split has, over all subtasks
    source_field: str | None = None  # documents that agree in it were made from one and are not independent


@dataclass
class BenchmarkConfig:
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
    chance: float = 0.0  # score of guessing
    published: str | None = None  # the name under which the paper reports it
    variants: list[str] = field(default_factory=list)  # perturbations to evaluate besides the plain documents
    limit: int | None = None  # first documents of each subtask; null is all
    runs_code: bool = False  # answers are programs: the sandbox must work before the engine starts


@dataclass
class PromptConfig:
    """A prompt condition: text put before the user's turn, and a system message."""

    prefix: str = ""
    system: str | None = None


@dataclass
class VariantConfig:
    """Which part of a vector is added: a mask, then trimming, then dropping (pipeline/weights/parts.py)."""

    modules: list[str] | None = None  # mask: tensors with one of these in their name, such as mlp or q_proj
    layers: list[int] | None = None  # mask: first and last layer, both included
    trim: float | None = None  # share of each tensor's entries that stay, the largest (top-k, TIES)
    dare: float | None = None  # share of the entries that stay at random, divided by it (DARE)
    seed: int = 0  # of dare


@dataclass
class ConditionConfig:
    """One row of the grid."""

    label: str = MISSING
    weights: Weights = MISSING
    prompt: str = "plain"
    alpha: float | None = None
    variant: VariantConfig | None = field(
        default_factory=VariantConfig
    )  # None once composed, if it is the whole vector, as in the paper
    plus: dict[str, float] = field(
        default_factory=dict
    )  # further vectors, by their family: a sum, or an analogy
    seeds: list[int] = field(default_factory=list)  # one condition for each seed (random controls)
    role: Role = Role.main
    variants: bool = True  # also on the perturbed documents


@dataclass
class SweepConfig:
    """The sweep of the scaling coefficient."""

    prompt: str = "plain"
    benchmarks: list[str] | None = None  # null is all plain benchmarks


@dataclass
class DataConfig:
    """Where documents come from; with no folder they come from the hub (or its offline cache)."""

    folder: str | None = None
    generator: str | None = None  # "micro": the folder is written by evals.micro when it is missing
    sizes: dict[str, int] = field(
        default_factory=dict
    )  # documents that it writes, where not evals.micro.SIZES
    seed: int = 0


@dataclass
class EngineConfig:
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


@dataclass
class LauncherConfig:
    """How cells are spread (pipeline/evaluate/cluster.py)."""

    kind: Launcher = Launcher.local
    address: str | None = (
        None  # Ray: "auto" or host:port of a running cluster; null starts one on this machine
    )
    workers: int | None = (
        None  # engines; null: one for each GPU (or tensor-parallel group), and one on the CPU
    )


@dataclass
class TrackingConfig:
    mode: Tracking = Tracking.auto
    project: str = "reasoning-vectors"
    entity: str | None = None


@dataclass
class Config:
    """The whole experiment."""

    name: str = MISSING  # names the manifest, the tables and the W&B group
    stages: list[Stage] = field(default_factory=lambda: list(Stage))
    families: dict[str, FamilyConfig] = field(default_factory=dict)
    sizes: list[str] | None = None  # which families to run, by name or published size; null is all
    benchmarks: dict[str, BenchmarkConfig] = field(default_factory=dict)
    tasks: list[str] | None = None  # which benchmarks to run; null is all
    limit: int | None = None  # a limit for every benchmark
    variant_limit: int | None = None  # a limit for every perturbed benchmark
    perturbation_seed: int = 0
    prompts: dict[str, PromptConfig] = field(default_factory=dict)
    conditions: dict[str, ConditionConfig] = field(default_factory=dict)
    alpha: list[float] = field(default_factory=list)  # values of the sweep
    sweep: SweepConfig = field(default_factory=SweepConfig)
    data: DataConfig = field(default_factory=DataConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    allow_unsandboxed: bool = False  # run candidate programs even where nothing can isolate them
    results: str = "results"
    tables: str = "paper_tables"


ConfigStore.instance().store(name="schema", node=Config)
