"""The key of a cell: a digest of everything that can change its answers."""

import contextlib
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from evals import perturbations
from pipeline import documents as data
from pipeline.config.schema import BenchmarkConfig, Config
from pipeline.errors import UserError
from pipeline.files import ROOT, code_fingerprint, digest
from pipeline.plan.family import Family, model_config, vector_key_of
from pipeline.plan.grid import Benchmark, Condition, takes_chat_template
from pipeline.weights.noise import NOISE_VERSION

PROTOCOL = 1  # raise it when pipeline/evaluate/ or engine/lm.py changes what an answer or a score is
PACKAGES = ("lm_eval", "torch", "transformers", "vllm")
# What makes the scores of a task, by its scorer.
SCORER_PACKAGES = {"evals.math": ("math-verify", "latex2sympy2_extended", "sympy")}
TASKS = ROOT / "evals" / "tasks"


def inputs_of(
    config: Config, families: Mapping[str, Family], family: Family, condition: Condition, benchmark: Benchmark
) -> dict[str, Any]:
    """Everything that can change an answer or a score of this cell."""
    b, chat = benchmark.config, takes_chat_template(family.config, condition.start)
    dataset = asdict(b.dataset)
    names = [b.task.format(subtask=s) for s in benchmark.subtasks]
    return {
        "protocol": PROTOCOL,
        "weights": _weights(families, family, condition, config.steer.dtype),
        "model": model_config(family.target),
        "tokenizer": family.target.tokenizer_fingerprint,
        "prompt": asdict(config.prompts[condition.prompt]) | _chat(family, chat),
        "task": {
            "names": names,
            "definition": _task_definition(tuple(names), b.runs_code, benchmark.task_folders),
            "changes": b.changes,
            "metric": b.metric,
            "also": b.also,
            "num_fewshot": b.num_fewshot,
            "max_gen_toks": b.max_gen_toks,
            "limit": benchmark.limit,
        },
        "documents": [
            data.fingerprint(dataset, benchmark.folder, s, b.num_fewshot > 0) for s in benchmark.subtasks
        ],
        "rows": {k: dataset[k] for k in ("json_field", "split", "source_field")},
        "perturbation": _perturbation(b.form, benchmark.perturbation, benchmark.seed),
        "decoding": _decoding(b, config.engine.seed),
        "engine": _numerics(config),
        "versions": versions(),
    } | _arrangement(condition)


def _chat(family: Family, applied: bool) -> dict[str, Any]:
    """Whether a chat template is applied, and which, where it is not the target's: that is in its tokenizer's fingerprint."""
    own = family.template_hash if applied else None
    return {"chat": applied} | ({"template": own} if own is not None else {})


def _weights(
    families: Mapping[str, Family], family: Family, condition: Condition, dtype: str | None
) -> dict[str, Any]:
    """The bytes of the checkpoint, and what is added to them, in its order: sums round in it, to the dtype."""
    weights: dict[str, Any] = {"checkpoint": family.checkpoint(condition.start).fingerprint}
    terms = condition.added()
    added = [
        {
            "vector": vector_key_of(family if term.family is None else families[term.family], term.part),
            "alpha": term.alpha,
            "random_seed": term.seed,
        }
        for term in terms
    ]
    weights |= added[0] if len(added) == 1 else {"terms": added} if added else {}
    weights |= {"sum": dtype} if added and dtype is not None else {}
    return weights | ({"noise": NOISE_VERSION} if any(term.seed is not None for term in terms) else {})


def _arrangement(condition: Condition) -> dict[str, Any]:
    """Another order of the documents, and how many are asked at a time, where a row is asked again."""
    if condition.order is None and condition.at_once is None:
        return {}
    return {"arrangement": {"order": condition.order, "at_once": condition.at_once}}


def _decoding(b: BenchmarkConfig, seed: int) -> str | dict[str, Any]:
    """How tokens are chosen. Greedy answers do not depend on a seed."""
    if not b.temperature:
        return "greedy"
    return {"samples": b.samples, "temperature": b.temperature, "top_p": b.top_p, "seed": seed}


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
    return {name: _version(name, *([f"{name}-cpu"] if name == "vllm" else [])) for name in PACKAGES}


def _version(name: str, *other_names: str) -> str:
    for candidate in (name, *other_names):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(candidate).removesuffix("+cpu")
    raise UserError(f"{name} is not installed; run `make setup`")


@lru_cache
def _task_definition(names: tuple[str, ...], runs_code: bool, folders: tuple[str, ...] = ()) -> Any:
    """Task files and scorers that are not lm-eval's, by content (comments aside); those are known by the version of lm-eval."""
    own = {
        path: _read_task(path)
        for folder in (TASKS, *map(Path, folders))
        for path in sorted(folder.rglob("*.yaml"))
    }
    left = [path for path, content in own.items() if content.get("task") in names]
    found: dict[str, str] = {}
    while left:
        path = left.pop()
        text = path.read_text()
        found[path.name] = digest(own[path])
        included = own[path].get("include", [])
        beside = [path.parent / i for i in ([included] if isinstance(included, str) else included)]
        left += [path for path in beside if path in own and path.name not in found]
        for module in re.findall(r"!function (\S+)\.\w+", text):
            for scorer in (path.parent / f"{module}.py", ROOT / f"{module.replace('.', '/')}.py"):
                if scorer.is_file():
                    parts = sorted(scorer.parent.glob(f"{scorer.stem}*.py"))  # math.py and math_judge.py
                    found |= {part.name: code_fingerprint(part) for part in parts}
            found |= {package: _version(package) for package in SCORER_PACKAGES.get(module, ())}
    if found and runs_code:
        found |= {path.name: code_fingerprint(path) for path in (ROOT / "evals").glob("sandbox*.py")}
    return found or None


def _read_task(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(), Loader=_TaskLoader)  # noqa: S506
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as e:
        raise UserError(
            f"{path}: cannot be read as YAML ({' '.join(str(e).split())[:160]}); fix it"
        ) from None
    return content if isinstance(content, dict) else {}


class _TaskLoader(yaml.SafeLoader):
    """Reads `!function module.name` as a string."""


_TaskLoader.add_constructor("!function", lambda loader, node: f"!function {node.value}")


@lru_cache
def _perturbation(form: str, name: str | None, seed: int) -> Any:
    if name is None:
        return None
    folder = ROOT / "evals" / "perturbations"
    shared = ("__init__", "common")
    code = {f.name: code_fingerprint(f) for f in sorted(folder.glob("*.py")) if f.stem in (form, *shared)}
    return {"id": perturbations.get(form, name).id, "seed": seed, "code": code}
