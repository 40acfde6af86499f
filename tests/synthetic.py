"""Runs with known effects, written through the real store: a manifest and its records, no engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import digest, write_json
from pipeline.manifest import (
    BenchmarkEntry,
    ConditionEntry,
    FamilyEntry,
    Manifest,
    PlannedCell,
    TermEntry,
    write_manifest,
)
from pipeline.records import write_record


def condition(label: str, row: str, *terms: TermEntry, **known: Any) -> ConditionEntry:
    """An entry of the manifest; `known` replaces what an ordinary row has."""
    ordinary = {"origin": row, "origin_label": label, "row_label": label}
    ordinary |= {"start": "target", "prompt": "plain", "role": "main"}
    return ConditionEntry(label=label, row=row, terms=terms, **ordinary | known)


def seeded(label: str, row: str, alpha: float, seed: int, **known: Any) -> ConditionEntry:
    """One seed of a random control."""
    entry = condition(label, row, TermEntry(alpha, seed=seed, **known), role="control")
    return replace(entry, label=f"{label} (seed {seed})")


def swept(alpha: float, origin: str = "alpha", **term: Any) -> ConditionEntry:
    """One α of a sweep."""
    name = "α" if origin == "alpha" else f"{origin}, α"
    label, row = f"{name} = {alpha:g}".replace("-", "−"), f"{origin}={alpha!r}"
    return condition(label, row, TermEntry(alpha, **term), origin=origin, origin_label=name, role="sweep")


def benchmark(label: str, **known: Any) -> BenchmarkEntry:
    """An entry of the manifest; `known` replaces what an ordinary benchmark has."""
    ordinary = dict.fromkeys(("published", "variant_of", "perturbation", "cluster", "limit"))
    return BenchmarkEntry(label, **ordinary | {"chance": 0.0} | known)


def family(label: str, **known: Any) -> FamilyEntry:
    """An entry of the manifest; `known` replaces what an ordinary family has."""
    return FamilyEntry(label, **dict.fromkeys(("group", "published_size", "geometry")) | known)


CONDITIONS: dict[str, ConditionEntry] = {
    "baseline": condition("Baseline", "baseline"),
    "baseline_think": condition("Baseline+Think", "baseline_think", prompt="think", role="control"),
    "sft": condition("SFT donor", "sft", start="sft", role="control"),
    "grpo": condition("GRPO donor", "grpo", start="grpo", role="control"),
    "grpo_think": condition("G+T", "grpo_think", start="grpo", prompt="think"),
    "vector": condition("+Vector", "vector", TermEntry(1.0)),
    "vector_think": condition("+Vector+Think", "vector_think", TermEntry(1.0), prompt="think"),
    "minus_vector": condition("−Vector", "minus_vector", TermEntry(-1.0)),
    **{f"random-s{seed}": seeded("+Random", "random", 1.0, seed) for seed in range(3)},
    **{f"minus_random-s{seed}": seeded("−Random", "minus_random", -1.0, seed) for seed in range(3)},
    **{f"alpha={alpha!r}": swept(alpha) for alpha in (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)},
}
MAIN = {name: entry for name, entry in CONDITIONS.items() if entry.role == "main"}

BENCHMARKS: dict[str, BenchmarkEntry] = {
    "gsm8k": benchmark("GSM8K form", published="GSM8K"),
    "gsm8k@larger_numbers": benchmark("larger numbers", variant_of="gsm8k", cluster="source_doc"),
    "sciq": benchmark("SciQ form", published="SciQ", chance=0.25),
    "bbh": benchmark("BBH form", published="BBH", cluster="subtask"),
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
    families: Mapping[str, FamilyEntry] | None = None,
    conditions: Mapping[str, ConditionEntry] = CONDITIONS,
    benchmarks: Mapping[str, BenchmarkEntry] = BENCHMARKS,
    documents: int = 60,
    skill: Callable[[str, str], float] | None = None,
    seed: int = 0,
    sources: Sequence[int] | None = None,
    **inputs: Any,
) -> Manifest:
    """Write a run and return its manifest.

    `skill(condition, benchmark)` is the probability of a right answer. A document has one difficulty for
    all conditions, so that answers are paired; equal weights and prompt share a record as in a real plan.
    `sources` (one for each document) makes documents of one source alike in difficulty.
    """
    rng = np.random.default_rng(seed)
    families = families or {"micro": family("micro 0.8M")}
    chance_of = skill or (lambda name, _: _default_skill(conditions[name], name))
    cells = []
    for of_family in families:
        for of_benchmark, info in benchmarks.items():
            n = documents if info.limit is None else min(documents, info.limit)
            difficulty = rng.random(n)
            if sources is not None:
                difficulty = (rng.random(n)[list(sources)] + 0.2 * difficulty) % 1.0
            for name, entry in conditions.items():
                if entry.role == "sweep" and info.variant_of:
                    continue
                noise = 0.1 * rng.standard_normal(n)
                right = difficulty + noise < chance_of(name, of_benchmark)
                weights: dict[str, Any] = {"checkpoint": f"{of_family} {entry.start}"}
                for term in entry.terms:
                    if term.alpha:
                        weights |= {"vector": "v", "alpha": term.alpha, "random_seed": term.seed}
                        weights |= {"part": term.part} if term.part is not None else {}
                identity = {
                    "family": of_family,
                    "benchmark": of_benchmark,
                    "weights": weights,
                    "prompt": entry.prompt,
                    **inputs,
                }
                if entry.role == "again":
                    identity["arrangement"] = {"order": 1, "at_once": 128}
                key = write_cell(results, identity, samples(right, info.cluster, entry.prompt, sources))
                cells.append(PlannedCell(of_family, name, of_benchmark, key))
    manifest = Manifest(experiment, dict(families), dict(benchmarks), dict(conditions), tuple(cells))
    write_manifest(results, manifest)
    return manifest


def write_schema_1(results: Path, manifest: Manifest) -> Path:
    """Write a manifest as the first layout had it, and return its path."""
    conditions = {}
    for name, entry in manifest.conditions.items():
        kind = entry.kind
        if kind == "sum":
            kind = "vector" if entry.seed is None else "random"
        old = {"label": entry.label, "weights": kind, "alpha": entry.alpha, "seed": entry.seed}
        old |= {"prompt": entry.prompt, "role": entry.role}
        conditions[name] = old | ({"whole": False} if entry.kind == "sum" else {})
    data = {"schema": 1} | asdict(manifest) | {"conditions": conditions}
    path = results / "runs" / f"{manifest.experiment}.json"
    write_json(path, data | {"sha256": digest(data)})
    return path


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


def samples(
    right: Any, cluster: str | None = None, prompt: str = "plain", sources: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Samples in the store's format; with clusters by subtask the documents fall into six subtasks.

    Args:
        sources: of each document, where several come from one.
    """
    n = len(right)
    by_subtask = cluster == "subtask"
    size = max(1, n // 6)
    rows = []
    for i, is_right in enumerate(right):
        subtask = f"subtask_{i // size}" if by_subtask else None
        answer = str(i + (not is_right))
        rows.append(
            {
                "doc_id": i,
                "subtask": subtask,
                "source_doc": i % size if by_subtask else i if sources is None else int(sources[i]),
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


def _default_skill(entry: ConditionEntry, name: str) -> float:
    if name in SKILL:
        return SKILL[name]
    if entry.alpha is not None and entry.seed is None:
        return 0.5 + 0.2 * entry.alpha if entry.alpha <= 1 else 0.9 - 0.2 * entry.alpha
    return 0.5


def write_geometry(results: Path, layers: int = 3) -> str:
    """A geometry report in pipeline/weights/geometry.py's format; returns its path as a manifest names it."""

    def entry(norm: float) -> dict[str, Any]:
        return {
            "entries": 1024,
            "norm": norm,
            "relative_norm": norm / 50,
            "sparsity": 0.8,
            "alphas": [{"alpha": alpha, "lost_in_rounding": 0.02, "rounding": 0.1} for alpha in (-1.0, 1.0)],
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
