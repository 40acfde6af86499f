"""What a composed configuration must fulfil beyond its types: references resolve, names are unique, numbers are in range."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.config.explain import nearest, unknown_key
from pipeline.config.schema import (
    DTYPES,
    PARTS,
    UNKNOWN,
    BenchmarkConfig,
    CheckpointConfig,
    ConditionConfig,
    Config,
    FamilyConfig,
    Launcher,
    PartConfig,
    Role,
    Stage,
    Swap,
)
from pipeline.errors import UserError

LARGEST = 3.4e38  # of float32, in which α·v is taken
LEAST_TEMPERATURE = 0.01  # vLLM raises a lower one to it


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
    """References between parts of the configuration resolve, names are unique, and numbers are in range.

    Raises:
        UserError: for the first mistake.
    """
    _check_names(config)
    _check_choices(config)
    _check_paths(config)
    _check_duplicates(config)
    for name, family in config.families.items():
        _check_template(f"families.{name}", family)
        _check_adapters(f"families.{name}", family)
        for key in family.allow_config_differences:
            if not re.fullmatch(r"\w+", key):
                raise UserError(
                    f"families.{name}.allow_config_differences: expected keys of config.json, found '{key}'"
                )
    _check_forms(config)
    _check_line_breaks(config)
    for name, condition in config.conditions.items():
        _check_asked_again(f"conditions.{name}", condition)
        check_condition(f"conditions.{name}", condition, config)
    _check_numbers(config)
    for key in ("address", "workers"):
        kind = config.launcher.kind
        if kind is not Launcher.ray and getattr(config.launcher, key) is not None:
            raise UserError(
                f"launcher.{key}: expected launcher=ray beside it, found {kind.value}; add launcher=ray"
            )
    if config.engine.dtype not in DTYPES:
        raise UserError(f"engine.dtype: expected one of {', '.join(DTYPES)}, found '{config.engine.dtype}'")
    if config.steer.dtype not in (None, "float32"):
        raise UserError(
            f"steer.dtype: expected float32, or null for the target's own, found '{config.steer.dtype}'"
        )
    if config.steer.wide and config.engine.dtype != "float32":
        raise UserError(
            f"steer.dtype=float32: the engine computes in {config.engine.dtype}, which would round the sum again; add"
            " engine.dtype=float32"
        )
    if config.steer.wide and config.engine.swap is Swap.restart:
        raise UserError(
            "steer.dtype=float32: a checkpoint that is written for engine.swap=restart has the target's dtype; leave"
            " one of them out"
        )
    if not config.stages:
        raise UserError(f"stages: expected at least one of {', '.join(s.value for s in Stage)}, found none")


def _check_names(config: Config) -> None:
    """Names make files and folders; labels stand in tables."""
    groups = ("families", "benchmarks", "conditions")
    for where, name in [("name", config.name)] + [(g, name) for g in groups for name in getattr(config, g)]:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{,99}", name):
            raise UserError(
                f"{where}: expected up to 100 letters, digits, '.', '_' or '-', found '{name[:120]}'; it names files"
                " and folders"
            )
    for group in groups:
        for name, value in getattr(config, group).items():
            if not value.label.strip() or not value.label.isprintable():
                raise UserError(f"{group}.{name}.label: expected text on one line, found {value.label!r}")
    for name, family in config.families.items():
        for key, text in (("pair", family.pair), ("group", family.group)):
            if text is not None and not (text.strip() and text.isprintable()):
                raise UserError(f"families.{name}.{key}: expected text on one line, found {text!r}")


def _check_choices(config: Config) -> None:
    """What is chosen is there."""
    sizes = [f.published_size.lower() for f in config.families.values() if f.published_size]
    chosen: list[tuple[str, Iterable[str] | None, Iterable[str]]] = [
        ("families", config.chosen.families, [*config.families, *sizes]),
        ("conditions", config.chosen.conditions, config.conditions),
        ("tasks", config.tasks, config.benchmarks),
    ]
    for where, names, known in chosen:
        if names is not None and not list(names):
            raise UserError(f"nothing to run: {where} is empty; name one, or unset it for all")
        for name in names or ():
            if name not in known and not (where == "families" and name.lower() in sizes):
                raise UserError(f"{where}: '{name}' is unknown{nearest(name, list(known))}")


def _check_template(where: str, family: FamilyConfig) -> None:
    """A chat template is that of a checkpoint which the family has, and is applied."""
    if family.template is None:
        return
    if family.template not in PARTS[1:]:
        raise UserError(
            f"{where}.template: expected one of {', '.join(PARTS[1:])}, found '{family.template}'"
        )
    if family.template not in family.sources():
        key = "subfolder" if family.template in family.unnamed() else "id"
        raise UserError(
            f"{where}.template={family.template}: the family has no such checkpoint; set"
            f" {where}.{family.template}.{key}, or leave the template out"
        )
    if not family.chat:
        raise UserError(
            f"{where}.template={family.template}: no template is applied with chat=false; leave one out"
        )


def _check_adapters(where: str, family: FamilyConfig) -> None:
    """A donor that is an adapter is merged into a checkpoint that the family has, and that is no later one."""
    allowed = {"target": (), "base": (), "sft": ("target", "base"), "grpo": ("target", "base", "sft")}
    for part, source in (family.sources() | family.unnamed()).items():
        if source.merge_into is None:
            continue
        if not allowed[part]:
            raise UserError(
                f"{where}.{part}.merge_into: a {part} is a whole model; merge the adapter into it first"
            )
        if source.merge_into not in allowed[part]:
            raise UserError(
                f"{where}.{part}.merge_into: expected one of {', '.join(allowed[part])}, found '{source.merge_into}'"
            )
        if getattr(family, source.merge_into) is None:
            raise UserError(
                f"{where}.{part}.merge_into={source.merge_into}: the family has no such checkpoint; set"
                f" {where}.{source.merge_into}.id"
            )


def _check_line_breaks(config: Config) -> None:
    """A line break of a prompt is one: on the command line a backslash and an n stay what they are."""
    texts = {
        f"prompts.{n}.{k}": getattr(p, k) for n, p in config.prompts.items() for k in ("prefix", "system")
    }
    for name, b in config.benchmarks.items():
        texts[f"benchmarks.{name}.changes.doc_to_text"] = b.changes.get("doc_to_text")
    for where, text in texts.items():
        if isinstance(text, str) and re.search(r"\\n(?![a-z])", text):  # not LaTeX's not-equal sign
            raise UserError(
                f"{where}: expected a line break, found a backslash and an n in {text!r}; write $'{where}=\"…\\n…\"'"
            )


def check_condition(where: str, c: ConditionConfig, config: Config) -> None:
    """A condition is a checkpoint and a list of terms, or the short form of one term."""
    alphas = c.alpha if isinstance(c.alpha, list) else [] if c.alpha is None else [c.alpha]
    for alpha in [*alphas, *(term.alpha for term in c.terms)]:
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= LARGEST:
            raise UserError(f"{where}.alpha: expected a finite number, or a list of them, found {alpha!r}")
    if c.terms and (c.alpha is not None or c.part is not None or c.seeds is not None):
        raise UserError(
            f"{where}: alpha, part and seeds are the short form of one term; write them in terms, or leave terms out"
        )
    if c.role is Role.sweep and c.alpha is None:
        raise UserError(
            f"{where}.role: a sweep runs along its alpha, and there is none; set alpha to a list, or role to main"
        )
    if c.alpha is None and (c.part is not None or c.seeds is not None):
        raise UserError(
            f"{where}: part and seeds say what α is multiplied with, and there is no alpha; set it"
        )
    if c.seeds is not None and not c.seeds:
        raise UserError(
            f"{where}.seeds: expected a seed for each random vector, found none; leave seeds out for the vector itself"
        )
    for seed in [*(c.seeds or ()), *(t.seed for t in c.terms if t.seed is not None)]:
        if not 0 <= seed < 2**63:
            raise UserError(f"{where}.seeds: expected whole numbers from 0 to 2^63 − 1, found {seed}")
    for term in c.terms:
        if term.family is not None and term.family not in config.families:
            raise UserError(
                f"{where}.terms: '{term.family}' is no family of this run{nearest(term.family, list(config.families))}"
            )
    for part in filter(None, [c.part, *(term.part for term in c.terms)]):
        _check_part(f"{where}.part", part)
    if c.prompt not in config.prompts:
        raise UserError(f"{where}.prompt: '{c.prompt}' is unknown{nearest(c.prompt, list(config.prompts))}")
    if c.benchmarks is not None and not c.benchmarks:
        raise UserError(f"{where}.benchmarks: expected at least one, found none; leave it out for all")
    for name in c.benchmarks or ():
        if name not in config.benchmarks:
            raise UserError(
                f"{where}.benchmarks: '{name}' is unknown{nearest(name, list(config.benchmarks))}"
            )
    if not c.terms and c.alpha is None and c.role is not Role.again:
        same = [
            n
            for n, o in config.conditions.items()
            if (o.start, o.prompt) == (c.start, c.prompt)
            and not o.terms
            and o.alpha is None
            and o.role not in (Role.sweep, Role.again)
        ]
        if len(same) > 1:
            raise UserError(
                f"conditions.{same[1]}: nothing is added to the {c.start.value}, and '{same[0]}' is that already; set"
                f" conditions.{same[1]}.alpha or .terms, or remove it"
            )


def _check_part(where: str, part: PartConfig) -> None:
    if part.layers is not None and not (len(part.layers) == 2 and 0 <= part.layers[0] <= part.layers[1]):
        raise UserError(
            f"{where}.layers={part.layers}: expected the first and the last layer, such as [0,13]"
        )
    for key in ("trim", "dare"):
        share = getattr(part, key)
        if share is not None and not 0 < share <= 1:
            raise UserError(
                f"{where}.{key}: expected the share of entries to keep, above 0 and at most 1, found {share}"
            )
    if part.seed < 0:
        raise UserError(f"{where}.seed: expected a whole number from 0, found {part.seed}")


def _check_forms(config: Config) -> None:
    """A form is of another benchmark, and a reason stands in a footnote."""
    for name, b in config.benchmarks.items():
        if b.form_of == name:
            raise UserError(
                f"benchmarks.{name}.form_of: expected the benchmark that it asks in another form, found itself; set it"
                " to null"
            )
        if b.cannot_think is not None and not (b.cannot_think.strip() and b.cannot_think.isprintable()):
            raise UserError(
                f"benchmarks.{name}.cannot_think: expected text on one line, found {b.cannot_think!r:.60}"
            )


def _check_asked_again(where: str, c: ConditionConfig) -> None:
    """What asks a row again says how, and the row is there."""
    if c.order is not None and not 0 <= c.order < 2**63:
        raise UserError(f"{where}.order: expected a seed from 0 to 2^63 − 1, found {c.order}")
    if c.at_once is not None and not 1 <= c.at_once < 2**31:
        raise UserError(f"{where}.at_once: expected a positive number, found {c.at_once}")
    again = c.role is Role.again
    if again != (c.order is not None or c.at_once is not None):
        found = "neither" if again else "one of them"
        raise UserError(
            f"{where}.role={c.role.value}: role=again goes with order (a seed) or at_once (documents), and they go with no"
            f" other role; found {found}; set role and one of them, or none of the three"
        )
    if again and (c.seeds is not None or isinstance(c.alpha, list | tuple)):
        raise UserError(
            f"{where}.role=again: one row is asked again, not several; give it one alpha and no seeds"
        )


def _check_numbers(config: Config) -> None:
    """Counts and shares are in range."""
    engine = config.engine
    counts: dict[str, tuple[int | None, int, int]] = {  # the value, the least and the most that it can be
        "limit": (config.limit, 1, 2**31),
        "variant_limit": (config.variant_limit, 1, 2**31),
        "seed_limit": (config.seed_limit, 1, 2**31),
        "max_gen_toks": (config.max_gen_toks, 1, 2**24),
        "engine.max_model_len": (engine.max_model_len, 16, 2**24),
        "engine.max_num_seqs": (engine.max_num_seqs, 1, 2**16),
        "engine.tensor_parallel_size": (engine.tensor_parallel_size, 1, 1024),
        "engine.threads": (engine.threads, 1, 1024),
        "engine.seed": (engine.seed, 0, 2**32 - 1),
        "launcher.workers": (config.launcher.workers, 1, 10_000),
        "launcher.shard_documents": (config.launcher.shard_documents, 1, 2**31),
        "data.seed": (config.data.seed, 0, 2**63),
        "perturbation_seed": (config.perturbation_seed, 0, 2**63),
    }
    for name, family in config.families.items():
        counts[f"families.{name}.max_model_len"] = (family.max_model_len, 16, 2**24)
        counts[f"families.{name}.max_gen_toks"] = (family.max_gen_toks, 1, 2**24)
    for name, b in config.benchmarks.items():
        counts[f"benchmarks.{name}.limit"] = (b.limit, 1, 2**31)
        counts[f"benchmarks.{name}.max_gen_toks"] = (b.max_gen_toks, 1, 2**24)
        counts[f"benchmarks.{name}.num_fewshot"] = (b.num_fewshot, 0, 10_000)
        counts[f"benchmarks.{name}.samples"] = (b.samples, 1, 2**16)
        counts[f"benchmarks.{name}.dataset.documents"] = (b.dataset.documents, 1, 2**31)
        counts[f"benchmarks.{name}.answer_tokens"] = (b.answer_tokens, 1, 2**24)
        for variant, kept in b.dataset.kept.items():
            counts[f"benchmarks.{name}.dataset.kept.{variant}"] = (kept, 1, 2**31)
        if not 0 <= b.chance < 1:
            raise UserError(f"benchmarks.{name}.chance: expected a score from 0 to below 1, found {b.chance}")
    for where, (value, least, most) in counts.items():
        if value is not None and value < least:
            expected = "a positive number" if least == 1 else f"{least} or more"
            raise UserError(f"{where}: expected {expected}, found {value}")
        if value is not None and value > most:
            raise UserError(f"{where}: expected at most {most}, found {value}")
    for name, b in config.benchmarks.items():
        _check_sampling(f"benchmarks.{name}", b)
    if not 0 < engine.gpu_memory_utilization <= 1:
        raise UserError(
            "engine.gpu_memory_utilization: expected a share of the memory, 0 to 1, found"
            f" {engine.gpu_memory_utilization}"
        )
    sizes = {"engine.kv_cache_gb": engine.kv_cache_gb}
    for name, family in config.families.items():
        sizes[f"families.{name}.tokens_per_second"] = family.tokens_per_second
        for part, source in family.sources().items():
            sizes[f"families.{name}.{part}.size_gb"] = source.size_gb
    for where, size in sizes.items():
        if size is not None and not 0 < size < 1e6:
            expected = "a speed" if where.endswith("per_second") else "a size"
            raise UserError(f"{where}: expected {expected} above 0, found {size}")


def _check_sampling(where: str, b: BenchmarkConfig) -> None:
    if b.temperature != 0 and not LEAST_TEMPERATURE <= b.temperature <= 2:
        raise UserError(
            f"{where}.temperature: expected 0 (greedy), or {LEAST_TEMPERATURE} to 2, found {b.temperature}"
        )
    if not 0 < b.top_p <= 1:
        raise UserError(f"{where}.top_p: expected a share above 0 and at most 1, found {b.top_p}")
    for key, found, default in (("samples", b.samples, 1), ("top_p", b.top_p, 1)):
        if found != default and not b.temperature:
            raise UserError(
                f"{where}.{key}={found}: at temperature 0 every answer is the likeliest; set {where}.temperature,"
                f" such as 0.6, or leave {key} out"
            )


def _check_paths(config: Config) -> None:
    """What the configuration names on the hub or under `data.folder` cannot lie elsewhere; folders are folders."""
    for where, folder in (("results", config.results), ("tables", config.tables)):
        if not folder:
            raise UserError(f"{where}: expected a folder, found nothing; unset it for the default")
        there = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
        if not there.is_dir():
            found = "a file" if there == Path(folder) else f"the file {there} in its way"
            raise UserError(f"{where}={folder}: expected a folder, found {found}; name another")
    for folder in config.evals_path:
        if not Path(folder).is_dir():
            raise UserError(f"evals_path: no folder {folder}; make it, or leave it out")
    sources: dict[str, CheckpointConfig] = {}
    for name, family in config.families.items():
        if not family.target.id:
            raise UserError(f"families.{name}.target.id: a value is required; set it")
        given = family.sources() | family.unnamed()
        sources |= {f"families.{name}.{part}": source for part, source in given.items()}
    datasets = {f"benchmarks.{name}.dataset": b.dataset for name, b in config.benchmarks.items()}
    for where, source in (sources | datasets).items():
        revision = source.revision
        if revision is not None and (not re.fullmatch(r"\w[\w./-]*", revision) or ".." in revision):
            raise UserError(f"{where}.revision: expected a commit, tag or branch, found '{revision}'")
    for where, checkpoint in sources.items():
        subfolder = checkpoint.subfolder
        if subfolder is None or (subfolder == UNKNOWN and where.endswith((".sft", ".grpo"))):
            continue
        inside = re.fullmatch(r"[\w.@=+-]+(/[\w.@=+-]+)*", subfolder) and ".." not in subfolder
        if not inside or "." in subfolder.split("/"):
            raise UserError(
                f"{where}.subfolder: expected a folder inside {checkpoint.id}, found '{subfolder}'"
            )
    for where, dataset in datasets.items():
        if not dataset.id and not dataset.files:
            raise UserError(
                f"{where}: expected a hub id, or files of a folder, found neither; set {where}.id or {where}.files"
            )
        if dataset.id and (not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", dataset.id) or ".." in dataset.id):
            raise UserError(f"{where}.id: expected a hub id such as openai/gsm8k, found '{dataset.id}'")
        if dataset.folder is not None and not Path(dataset.folder).is_dir():
            raise UserError(f"{where}.folder={dataset.folder}: no such folder; make it, or leave it out")
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
                    f"benchmarks.{name}: only {{subtask}} stands for something, found '{text}'; fix it"
                )


def _check_duplicates(config: Config) -> None:
    """What is named twice would be counted twice, or could not be told apart in a table."""
    lists: dict[str, list[str]] = {}
    for name, b in config.benchmarks.items():
        lists |= {f"benchmarks.{name}.{part}": getattr(b, part) for part in ("subtasks", "variants", "also")}
    for name, family in config.families.items():
        lists[f"families.{name}.allow_config_differences"] = list(family.allow_config_differences)
    lists |= {
        f"conditions.{name}.benchmarks": list(c.benchmarks or ()) for name, c in config.conditions.items()
    }
    lists["conditions"] = [
        full
        for name, c in config.conditions.items()
        for full in ([f"{name}-s{seed}" for seed in dict.fromkeys(c.seeds or ())] or [name])
    ]
    for part in ("families", "benchmarks", "conditions"):
        lists[f"{part}: label"] = [str(value.label) for value in getattr(config, part).values()]
    for where, listed in lists.items():
        for name in listed:
            if listed.count(name) > 1:
                colon = "" if where.endswith("label") else ":"
                raise UserError(f"{where}{colon} '{name}' is listed twice; rename or remove one")
