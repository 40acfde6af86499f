"""What a composed configuration must fulfil beyond its types: references resolve, names are unique, numbers are in range."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from pipeline.config.explain import nearest, unknown_key
from pipeline.config.schema import DTYPES, Config, Launcher, Stage, Weights
from pipeline.errors import UserError


def check_declared(node: Any, path: str = "") -> None:
    """No key that the schema does not declare, not even one added with Hydra's `+`."""
    if isinstance(node, dict):
        for key, value in node.items():
            check_declared(value, f"{path}{key}.")
    elif dataclasses.is_dataclass(node):
        declared = [f.name for f in dataclasses.fields(node)]
        for key, value in vars(node).items():
            if key not in declared:
                raise UserError(unknown_key(f"{path}{key}", declared))
            check_declared(value, f"{path}{key}.")


def check(config: Config) -> None:
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
