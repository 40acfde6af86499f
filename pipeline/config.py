"""Configuration: typed schemas of everything under conf/, composed by Hydra.

    from pipeline.config import compose
    cfg = compose(["experiment=micro", "sizes=[micro]"])

Nothing is read that is not declared here: an unknown or misspelt key, a missing group option or a value
of the wrong type becomes one `UserError` that names the nearest neighbour.
"""

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import UserError

DTYPES = ("float32", "float16", "bfloat16")
ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"


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
    """Which part of a vector is added: a mask, then trimming, then dropping (pipeline/vector.py, `Variant`)."""

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
    """How cells are spread (pipeline/cluster.py)."""

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


def compose(overrides: list[str]) -> Config:
    """Compose conf/config.yaml with `overrides` into a validated `Config`.

    Raises:
        UserError: for an unknown key, group option or value, naming the nearest that exists.
    """
    for folder in _config_folders(overrides):
        if not folder.is_dir():
            raise UserError(f"hydra.searchpath: no folder {folder}; make it, or leave it out")
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3", job_name="pipeline"):
            cfg = hydra_compose("config", overrides=[*overrides, *_unpinned(overrides)])
        config = typing.cast(Config, OmegaConf.to_object(cfg))
    except (HydraException, OmegaConfBaseException) as e:
        raise UserError(_explain(e)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        where = _unreadable(_config_folders(overrides))
        raise UserError(f"{where}: cannot be read as YAML ({' '.join(str(e).split())}); mend it") from None
    except (AssertionError, AttributeError) as e:  # OmegaConf's, for a key below null
        raise UserError(
            f"override not understood: a key below a value that is null ({e}); set the value itself, or leave null out"
        ) from None
    except ValueError as e:  # Hydra's, for a group that is no name
        raise UserError(f"override not understood: {' '.join(str(e).split())}; write group=option") from None
    for part in ("families", "benchmarks", "conditions", "prompts"):
        for name, value in getattr(config, part).items():
            if value is None:
                raise UserError(f"{part}.{name}: a value is required, found null; leave it out of its group")
    for condition in config.conditions.values():
        if condition.variant == VariantConfig():
            condition.variant = None
    for family in config.families.values():
        for part in ("sft", "grpo", "base"):
            if (source := getattr(family, part)) is not None and not source.id:
                trained = Path(family.donors or "", part)
                is_there = family.donors is not None and (trained / "training.json").is_file()  # written last
                setattr(family, part, CheckpointConfig(str(trained)) if is_there else None)
        waits = family.donors is not None and (family.sft is None or family.grpo is None)
        if waits and all(c.weights is not Weights.base for c in config.conditions.values()):
            family.base = None  # it is for the vector's geometry alone
    _check_declared(config)
    _check(config)
    return config


def _unpinned(overrides: list[str]) -> Iterator[str]:
    """Another id leaves behind the revision and size of the one that the configuration names."""
    keys = [override.lstrip("+").split("=")[0] for override in overrides]
    for key in keys:
        source = re.fullmatch(
            r"(families\.\w+\.(?:target|sft|grpo|base))\.id|(benchmarks\.\w+\.dataset)\.id", key
        )
        if source is not None:
            facts = ("revision", "size_gb") if source[1] else ("revision",)
            where = source[1] or source[2]
            yield from (f"{where}.{fact}=null" for fact in facts if f"{where}.{fact}" not in keys)


def _check_declared(node: Any, path: str = "") -> None:
    """No key that the schema does not declare, not even one added with Hydra's `+`."""
    if isinstance(node, dict):
        for key, value in node.items():
            _check_declared(value, f"{path}{key}.")
    elif dataclasses.is_dataclass(node):
        declared = [f.name for f in dataclasses.fields(node)]
        for key, value in vars(node).items():
            if key not in declared:
                raise UserError(_unknown_key(f"{path}{key}", declared))
            _check_declared(value, f"{path}{key}.")


def _check(config: Config) -> None:
    """References between parts of the configuration must resolve."""
    for name, family in config.families.items():
        if not family.target.id:
            raise UserError(f"families.{name}.target.id: a value is required; set it")
    for where, chosen_names in (("sizes", config.sizes), ("tasks", config.tasks)):
        if chosen_names == []:
            raise UserError(f"nothing to run: {where} is empty; name one, or unset it for all")
    if config.sizes is not None:
        of_size: dict[str, list[str]] = {}
        for name, family in config.families.items():
            of_size.setdefault((family.published_size or name).lower(), []).append(name)
        named = [name for size in config.sizes for name in of_size.get(size.lower(), [size])]
        config.sizes = list(dict.fromkeys(named))
    if config.tasks is not None:
        config.tasks = list(dict.fromkeys(config.tasks))
    names = [("name", config.name)] + [
        (part, name) for part in ("families", "benchmarks", "conditions") for name in getattr(config, part)
    ]
    for where, name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(
                f"{where}: expected letters, digits, '.', '_' or '-', found '{name}'; it names files and folders"
            )
    _check_paths(config)
    _check_duplicates(config)
    for where, folder in (("results", config.results), ("tables", config.tables)):
        if not folder:
            raise UserError(f"{where}: expected a folder, found nothing; unset it for the default")
    for what, chosen, known in (
        ("sizes", config.sizes, config.families),
        ("tasks", config.tasks, config.benchmarks),
        ("sweep.benchmarks", config.sweep.benchmarks, config.benchmarks),
        ("sweep.prompt", [config.sweep.prompt], config.prompts),
        ("prompt of a condition", [c.prompt for c in config.conditions.values()], config.prompts),
    ):
        for name in chosen or []:
            if name not in known:
                raise UserError(f"{what}: '{name}' is unknown{nearest(name, list(known))}")
    for name, condition in config.conditions.items():
        needs_alpha = condition.weights in (Weights.vector, Weights.random)
        if needs_alpha and condition.alpha is None:
            raise UserError(f"conditions.{name}: weights '{condition.weights.value}' need an alpha; set it")
        if condition.alpha is not None and not needs_alpha:
            raise UserError(
                f"conditions.{name}: weights '{condition.weights.value}' take no alpha; remove it"
            )
        if (condition.variant is not None and not needs_alpha) or (
            condition.plus and condition.weights is not Weights.vector
        ):
            raise UserError(
                f"conditions.{name}: variant and plus belong to weights 'vector', found"
                f" '{condition.weights.value}'; remove them"
            )
        if (condition.weights is Weights.random) != bool(condition.seeds):
            raise UserError(f"conditions.{name}: seeds go with weights 'random', and only with them")
    alphas = [c.alpha for c in config.conditions.values() if c.alpha is not None] + config.alpha
    alphas += [alpha for c in config.conditions.values() for alpha in c.plus.values()]
    for alpha in alphas:
        if not abs(alpha) < float("inf"):
            raise UserError(f"alpha: expected a finite number, found {alpha}")
    limits = {"limit": config.limit, "variant_limit": config.variant_limit}
    limits |= {f"benchmarks.{name}.max_gen_toks": b.max_gen_toks for name, b in config.benchmarks.items()}
    limits |= {
        f"engine.{key}": getattr(config.engine, key)
        for key in ("max_model_len", "max_num_seqs", "tensor_parallel_size", "threads")
    }
    limits["launcher.workers"] = config.launcher.workers
    for key in ("address", "workers"):
        if config.launcher.kind is Launcher.local and getattr(config.launcher, key) is not None:
            raise UserError(f"launcher.{key}: expected launcher=ray beside it, found local; add launcher=ray")
    if not 0 < config.engine.gpu_memory_utilization <= 1:
        found = config.engine.gpu_memory_utilization
        raise UserError(
            f"engine.gpu_memory_utilization: expected a share of the memory, 0 to 1, found {found}"
        )
    if config.engine.kv_cache_gb is not None and not 0 < config.engine.kv_cache_gb < float("inf"):
        raise UserError(f"engine.kv_cache_gb: expected a size above 0, found {config.engine.kv_cache_gb}")
    if config.engine.dtype not in DTYPES:
        raise UserError(f"engine.dtype: expected one of {', '.join(DTYPES)}, found '{config.engine.dtype}'")
    for name, b in config.benchmarks.items():
        if not 0 <= b.chance < 1:
            raise UserError(f"benchmarks.{name}.chance: expected a score from 0 to below 1, found {b.chance}")
        if b.num_fewshot < 0:
            raise UserError(
                f"benchmarks.{name}.num_fewshot: expected 0 or more examples, found {b.num_fewshot}"
            )
    limits |= {f"benchmarks.{name}.limit": b.limit for name, b in config.benchmarks.items()}
    for where, limit in limits.items():
        if limit is not None and limit < 1:
            raise UserError(f"{where}: expected a positive number, found {limit}")
    if not config.stages:
        raise UserError(f"stages: expected at least one of {', '.join(s.value for s in Stage)}, found none")


def _check_paths(config: Config) -> None:
    """What the configuration names on the hub or under `data.folder` cannot lie elsewhere."""
    sources = {
        f"families.{name}.{part}": getattr(family, part)
        for name, family in config.families.items()
        for part in ("target", "sft", "grpo", "base")
    }
    datasets = {f"benchmarks.{name}.dataset": b.dataset for name, b in config.benchmarks.items()}
    for where, source in (sources | datasets).items():
        revision = source.revision if source is not None else None
        if revision is not None and (not re.fullmatch(r"\w[\w./-]*", revision) or ".." in revision):
            raise UserError(f"{where}.revision: expected a commit, tag or branch, found '{revision}'")
    for where, dataset in datasets.items():
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", dataset.id) or ".." in dataset.id:
            raise UserError(f"{where}.id: expected a hub id such as openai/gsm8k, found '{dataset.id}'")
        for split, file in dataset.files.items():
            if Path(file).is_absolute() or ".." in Path(file).parts:
                raise UserError(f"{where}.files.{split}: expected a path inside data.folder, found '{file}'")
    for name, b in config.benchmarks.items():
        for subtask in b.subtasks:
            if not re.fullmatch(r"\w[\w.-]*", subtask):
                raise UserError(f"benchmarks.{name}.subtasks: expected a plain name, found '{subtask}'")
        for text in (b.task, b.dataset.config or "", *b.dataset.files.values()):
            if re.search(r"[{}]", text.replace("{subtask}", "")):
                raise UserError(
                    f"benchmarks.{name}: only {{subtask}} stands for something, found '{text}'; mend it"
                )


def _check_duplicates(config: Config) -> None:
    """What is named twice would be counted twice, or could not be told apart in a table."""
    lists: dict[str, list[str]] = {}
    for name, b in config.benchmarks.items():
        lists |= {f"benchmarks.{name}.{part}": getattr(b, part) for part in ("subtasks", "variants", "also")}
    lists["conditions"] = [
        full
        for name, c in config.conditions.items()
        for full in ([f"{name}-s{seed}" for seed in dict.fromkeys(c.seeds)] or [name])
    ]
    for part in ("families", "benchmarks", "conditions"):
        lists[f"{part}: label"] = [str(value.label) for value in getattr(config, part).values()]
    for where, listed in lists.items():
        for name in listed:
            if listed.count(name) > 1:
                colon = "" if where.endswith("label") else ":"
                raise UserError(f"{where}{colon} '{name}' stands twice; rename or remove one")


def _config_folders(overrides: list[str]) -> list[Path]:
    """The folders that configuration is read from: conf/ and those of hydra.searchpath."""
    added = ",".join(re.findall(r"hydra\.searchpath=\[([^\]]*)\]", " ".join(overrides))).split(",")
    named = [folder.strip().strip("'\"") for folder in added]
    return [CONF, *(Path(f.removeprefix("file://")) for f in named if f and not f.startswith("pkg://"))]


def _unreadable(folders: list[Path]) -> str:
    """The first file that is no YAML, which Hydra does not name."""
    for path in sorted(path for folder in folders for path in folder.rglob("*.yaml")):
        try:
            OmegaConf.load(path)
        except (yaml.YAMLError, UnicodeDecodeError):
            return str(path)
    return "an override"


def flag(options: Mapping[str, str], name: str) -> bool:
    """An option of a command that is true or false, and false where it is not given.

    Raises:
        UserError: for any other value.
    """
    text = options.get(name, "false").lower()
    if text not in ("true", "false"):
        raise UserError(f"{name}={text}: expected true or false")
    return text == "true"


def nearest(name: str, known: list[str]) -> str:
    """The end of an error message: the known name that `name` was meant to be, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


def _known_keys(path: str) -> list[str]:
    """Keys that the schema declares at the parent of a dotted `path`."""
    cls: Any = Config
    for part in path.split(".")[:-1]:
        hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        cls = hints.get(part, next((a for a in typing.get_args(cls) if a is not str), None))
        args = [a for a in typing.get_args(cls) if a is not type(None)]
        if typing.get_origin(cls) is not dict and args:
            cls = args[0]
    return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def _unknown_key(path: str, known: list[str]) -> str:
    """The message for a key that is not declared; `known` are those beside it, others lie one level down."""
    parts = {
        part: cls for part, cls in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(cls)
    }
    nested = [f"'{part}.{path}'" for part, cls in parts.items() if path in typing.get_type_hints(cls)]
    hint = f"; did you mean {' or '.join(nested)}?" if nested else nearest(path.split(".")[-1], known)
    return f"unknown configuration key '{path}'{hint}"


def _explain(error: Exception) -> str:
    """One line out of Hydra's or OmegaConf's message."""
    text = str(error)
    chain: BaseException | None = error
    while chain is not None:  # the cause often says more than its wrapper
        text += "\n" + str(chain.__cause__ or chain.__context__ or "")
        chain = chain.__cause__ or chain.__context__
    missing = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if missing:
        group, option = missing.groups()
        known = [p.stem for p in (CONF / group).glob("*.yaml")]
        return f"{group}={option}: no such option{nearest(option, known)}"
    override = re.search(r"Could not override '([^']+)'", text)
    unknown = re.search(r"Key '([^']+)' (?:is )?not in", text)
    if unknown:
        full = re.search(r"full_key: (\S+)", text)
        path = full.group(1) if full else override.group(1) if override else unknown.group(1)
        groups = [p.name for p in CONF.iterdir() if p.is_dir()]
        known = _known_keys(path) + (groups if "." not in path else [])
        return _unknown_key(path, known)
    group = re.search(r"Could not override '([^']+)'.*No match in the defaults list", text, re.S)
    if group:
        return f"'{group.group(1)}' is not in the defaults list; write '{group.group(1)}' as group=option"
    required = re.search(r"missing mandatory value: (\S+)", text)
    if required:
        where = re.search(r"full_key: (\S+)", text)
        return f"{where.group(1) if where else required.group(1)}: a value is required; set it"
    if (
        "LexerNoViableAltException" in text
        or "mismatched input" in text
        or "OverrideParse" in type(error).__name__
    ):
        return f"override not understood (expected key=value): {' '.join(str(error).split())}"
    value = re.search(r"(Value '.*?' .*|Invalid value .*|Invalid type .*|Cannot convert .*)", text)
    full = re.search(r"full_key: (\S+)", text)
    if value:
        return f"{full.group(1) if full else 'configuration'}: {value.group(1).strip()}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2])
