"""Runs with known effects, written through the real store: a manifest and its records, no engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import write_json
from pipeline.records import write_manifest, write_record

CONDITIONS: dict[str, dict[str, Any]] = {
    "baseline": {"label": "Baseline", "weights": "target", "alpha": None, "prompt": "plain", "role": "main"},
    "baseline_think": {
        "label": "Baseline+Think",
        "weights": "target",
        "alpha": None,
        "prompt": "think",
        "role": "control",
    },
    "sft": {"label": "SFT donor", "weights": "sft", "alpha": None, "prompt": "plain", "role": "control"},
    "grpo": {"label": "GRPO donor", "weights": "grpo", "alpha": None, "prompt": "plain", "role": "control"},
    "grpo_think": {"label": "G+T", "weights": "grpo", "alpha": None, "prompt": "think", "role": "main"},
    "vector": {"label": "+Vector", "weights": "vector", "alpha": 1.0, "prompt": "plain", "role": "main"},
    "vector_think": {
        "label": "+Vector+Think",
        "weights": "vector",
        "alpha": 1.0,
        "prompt": "think",
        "role": "main",
    },
    "minus_vector": {
        "label": "−Vector",
        "weights": "vector",
        "alpha": -1.0,
        "prompt": "plain",
        "role": "main",
    },
    **{
        f"{name}-s{seed}": {
            "label": f"{label} (seed {seed})",
            "weights": "random",
            "alpha": alpha,
            "prompt": "plain",
            "role": "control",
            "seed": seed,
        }
        for name, label, alpha in (("random", "+Random", 1.0), ("minus_random", "−Random", -1.0))
        for seed in range(3)
    },
    **{
        f"alpha={alpha!r}": {
            "label": f"α = {alpha:g}".replace("-", "−"),
            "weights": "vector",
            "alpha": alpha,
            "prompt": "plain",
            "role": "sweep",
        }
        for alpha in (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    },
}

BENCHMARKS: dict[str, dict[str, Any]] = {
    "gsm8k": {"label": "GSM8K form", "published": "GSM8K"},
    "gsm8k@larger_numbers": {"label": "larger numbers", "variant_of": "gsm8k", "cluster": "source_doc"},
    "sciq": {"label": "SciQ form", "published": "SciQ", "chance": 0.25},
    "bbh": {"label": "BBH form", "published": "BBH", "cluster": "subtask"},
}

# Probability that a sample is right, by condition; sweep conditions follow from their α.
SKILL = {
    "baseline": 0.5,
    "baseline_think": 0.55,
    "sft": 0.4,
    "grpo": 0.6,
    "grpo_think": 0.65,
    "vector": 0.7,
    "vector_think": 0.75,
    "minus_vector": 0.3,
}


def write_run(
    results: Path,
    *,
    experiment: str = "synthetic",
    families: dict[str, dict[str, Any]] | None = None,
    conditions: dict[str, dict[str, Any]] | None = None,
    benchmarks: dict[str, dict[str, Any]] | None = None,
    documents: int = 60,
    skill: Callable[[str, str], float] | None = None,
    seed: int = 0,
    **inputs: Any,
) -> dict[str, Any]:
    """Write a run and return its manifest.

    ``skill(condition, benchmark)`` is the probability of a right answer. A document has one difficulty for
    all conditions, so that answers are paired; equal weights, α and prompt share a record as in a real plan.
    """
    rng = np.random.default_rng(seed)
    conditions = {name: {"seed": None, **c} for name, c in (conditions or CONDITIONS).items()}
    plain = {
        "variant_of": None,
        "perturbation": None,
        "cluster": None,
        "published": None,
        "chance": 0.0,
        "limit": None,
    }
    benchmarks = {name: {**plain, **b} for name, b in (benchmarks or BENCHMARKS).items()}
    families = {
        name: {"label": name, "group": None, "published_size": None, "geometry": None, **f}
        for name, f in (families or {"micro": {"label": "micro 0.8M"}}).items()
    }
    chance_of = skill or (lambda condition, _: _default_skill(conditions[condition], condition))
    cells = []
    for family in families:
        for benchmark, info in benchmarks.items():
            n = documents if info["limit"] is None else min(documents, info["limit"])
            difficulty = rng.random(n)
            for name, condition in conditions.items():
                if condition["role"] == "sweep" and info["variant_of"]:
                    continue
                noise = 0.1 * rng.standard_normal(n)
                right = difficulty + noise < chance_of(name, benchmark)
                weights: dict[str, Any] = {"checkpoint": f"{family} {condition['weights']}"}
                if condition["alpha"] is not None:  # as in plan._inputs
                    weights = {"checkpoint": f"{family} target"}
                if condition["alpha"]:
                    seed_of_noise = condition["seed"]
                    weights |= {"vector": "v", "alpha": condition["alpha"], "random_seed": seed_of_noise}
                identity = {
                    "family": family,
                    "benchmark": benchmark,
                    "weights": weights,
                    "prompt": condition["prompt"],
                    **inputs,
                }
                key = write_cell(results, identity, samples(right, info, condition["prompt"]))
                cells.append({"family": family, "condition": name, "benchmark": benchmark, "key": key})
    manifest = {
        "schema": 1,
        "experiment": experiment,
        "families": families,
        "benchmarks": benchmarks,
        "conditions": conditions,
        "cells": cells,
    }
    write_manifest(results, manifest)
    return manifest


def write_cell(
    results: Path,
    identity: dict[str, Any],
    rows: list[dict[str, Any]],
    *,
    device: str = "cpu",
    **metrics: Any,
) -> str:
    """One record; `metrics` replaces what would follow from its samples."""
    score = sum(row["score"] for row in rows) / len(rows)
    return write_record(
        results,
        identity,
        {
            "metric": "exact_match,none",
            "score": score,
            "stderr": 0.0,
            "n": len(rows),
            "values": {"exact_match,none": score},
            "share_not_extracted": 0.0,
            "share_truncated": 0.0,
            "mean_tokens": sum(row["tokens"] for row in rows) / len(rows),
            **metrics,
        },
        {
            "seconds": 2.0,
            "generated_tokens": sum(row["tokens"] for row in rows),
            "prompt_tokens": 50,
            "requests": 5,
        },
        {
            "engine": {"device": device, "tensor_parallel_size": 2},
            "versions": {"vllm": "0.32.0"},
            "family": {"target": {"id": "models/target", "revision": None}},
            "host": "here",
            "started": "2026-01-01T00:00:00+00:00",
            "command": "python -m pipeline",
            "git": None,
        },
        rows,
    )


def samples(right: Any, benchmark: dict[str, Any], prompt: str = "plain") -> list[dict[str, Any]]:
    """Samples in the store's format; with clusters by subtask the documents fall into six subtasks."""
    n = len(right)
    by_subtask = benchmark.get("cluster") == "subtask"
    size = max(1, n // 6)
    rows = []
    for i, is_right in enumerate(right):
        subtask = f"subtask_{i // size}" if by_subtask else None
        answer = str(i + (not is_right))
        rows.append(
            {
                "doc_id": i,
                "subtask": subtask,
                "source_doc": i % size if by_subtask else i,
                "prompt": f"{'Think step by step. ' if prompt == 'think' else ''}What is {i} + 0?",
                "target": str(i),
                "output": f"We count to {answer}.\n#### {answer}",
                "extracted": {"flexible-extract": answer},
                "scores": {"exact_match,none": float(is_right)},
                "score": float(is_right),
                "prompt_tokens": 12,
                "tokens": 10 + i % 7 + (5 if prompt == "think" else 0) + 3 * bool(is_right),
                "finish": "stop",
            }
        )
    return rows


def _default_skill(condition: dict[str, Any], name: str) -> float:
    if name in SKILL:
        return SKILL[name]
    if condition["weights"] == "vector":
        alpha = float(condition["alpha"])
        return 0.5 + 0.2 * alpha if alpha <= 1 else 0.9 - 0.2 * alpha
    return 0.5


def write_geometry(results: Path, layers: int = 3) -> str:
    """A geometry report in pipeline/weights/geometry.py's format; returns its path as a manifest names it."""

    def entry(norm: float) -> dict[str, Any]:
        return {
            "entries": 1024,
            "norm": norm,
            "relative_norm": norm / 50,
            "sparsity": 0.8,
            "alphas": [{"alpha": alpha, "swallowed": 0.02, "rounding": 0.1} for alpha in (-1.0, 1.0)],
            "directions": {"target-base": {"cosine": 0.1, "sign_agreement": 0.55}},
        }

    kinds = ("q_proj", "down_proj")
    data = {
        "schema": 1,
        "vector": "v",
        "target": "t",
        "total": entry(2.0),
        "modules": [{"module": kind, **entry(1.0 + i)} for i, kind in enumerate(kinds)],
        "layers": [{"layer": layer, **entry(0.5 + layer)} for layer in range(layers)],
        "cells": [
            {"module": kind, "layer": layer, **entry(0.1 + i + layer)}
            for i, kind in enumerate(kinds)
            for layer in range(layers)
        ],
    }
    write_json(results / "vectors" / "v" / "geometry-t.json", data)
    return "results/vectors/v/geometry-t.json"
