"""What a task vector looks like beside the model that it is added to: norms, sparsity, rounding, direction.

    data = report(Vector.open("v"), target, alphas=[0.5, 1.0])
    write_json(path, data)
    print(table(read_report(path)))      # pipeline/weights/geometry_report.py says what it holds

Everything is measured in pieces, with sums in fp64, over the entries that all models have (rows of padding are
left out). What is reported follows arXiv 2505.11711 (sparsity) and 2605.00610 (norms and sign conflicts). An α at which
the sum leaves the target's dtype is refused here, before an engine starts.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import cast

import torch

from pipeline.errors import UserError
from pipeline.weights.architecture import EMBEDDING, HEAD
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.floats import all_finite
from pipeline.weights.geometry_report import (
    MUCH,
    SCHEMA,
    CellFacts,
    Facts,
    GeometryReport,
)
from pipeline.weights.parts import layer_of
from pipeline.weights.safetensors import TensorInfo
from pipeline.weights.tensors import pieces, to_bits
from pipeline.weights.threads import one_thread
from pipeline.weights.vector import Vector

Sums = dict[str, float]


def report(
    vector: Vector,
    target: Checkpoint,
    alphas: Sequence[float],
    sft: Checkpoint | None = None,
    base: Checkpoint | None = None,
    wide: bool = False,
) -> GeometryReport:
    """The vector's geometry: in all, by kind of module, by layer, and by both.

    Args:
        alphas: the strengths at which rounding is measured.
        sft: the SFT donor; with a base, its difference from it is a direction.
        base: what the target was made from; without one there are no directions.
        wide: the sum is left in float32, and not rounded to the target's dtype.

    Raises:
        UserError: if a tensor of the vector is missing in a model or has another shape, or θ + αv is not finite.
    """
    others = {}
    if base is not None:
        others["target-base"] = (target, base)
        if sft is not None:
            others["sft-base"] = (sft, base)
    strengths = [alpha for alpha in alphas if alpha != 0]
    total: Sums = {}
    modules: dict[str, Sums] = {}
    layers: dict[int, Sums] = {}
    cells: dict[tuple[str, int | None], Sums] = {}
    with one_thread():
        for name in vector.shapes:
            sums = _measure(vector, name, target, strengths, others, wide)
            kind, layer = module_kind(name), layer_of(name)
            _add(total, sums)
            _add(modules.setdefault(kind, {}), sums)
            _add(cells.setdefault((kind, layer), {}), sums)
            if layer is not None:
                _add(layers.setdefault(layer, {}), sums)

    def facts(sums: Sums) -> Facts:
        return _facts(sums, strengths, list(others))

    return {
        "schema": SCHEMA,
        "vector": vector.fingerprint,
        "target": target.fingerprint,
        "total": facts(total),
        "modules": [{"module": kind, **facts(sums)} for kind, sums in modules.items()],
        "layers": [{"layer": layer, **facts(sums)} for layer, sums in layers.items()],
        "cells": [_cell(kind, layer, facts(sums)) for (kind, layer), sums in cells.items()],
    }


def _add(into: Sums, sums: Sums) -> None:
    for key, value in sums.items():
        into[key] = into.get(key, 0.0) + value


def _cell(kind: str, layer: int | None, facts: Facts) -> CellFacts:
    place = {"module": kind} if layer is None else {"module": kind, "layer": layer}
    return cast(CellFacts, {**place, **facts})


def module_kind(name: str) -> str:
    """The module that a tensor belongs to, without its place: q_proj, down_proj, embed_tokens, lm_head."""
    return name.split(".")[-2] if "." in name else name


def _info(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> TensorInfo:
    if name not in checkpoint.tensors and not (name == HEAD and checkpoint.tied):
        raise UserError(
            f"{checkpoint.path} lacks {name}, which the vector has; use a model of its architecture"
        )
    info = checkpoint.resolve(name)
    if info.shape[1:] != shape[1:] or (info.shape != shape and name not in (EMBEDDING, HEAD)):
        raise UserError(
            f"{name} has shape {list(info.shape)} in {checkpoint.path} and {list(shape)} in the vector"
        )
    return info


def _measure(
    vector: Vector,
    name: str,
    target: Checkpoint,
    alphas: Sequence[float],
    others: Mapping[str, tuple[Checkpoint, Checkpoint]],
    keeps_float32: bool,
) -> Sums:
    """Sums over the entries of one tensor, which add up over tensors."""
    shape = vector.shapes[name]
    pairs = {key: (_info(a, name, shape), _info(b, name, shape)) for key, (a, b) in others.items()}
    own = _info(target, name, shape)
    rows = min([shape, own.shape, *(info.shape for pair in pairs.values() for info in pair)])
    entries = math.prod(rows)
    sums: Sums = dict.fromkeys(
        ["entries", "zeros", "vv", "tt"]
        + [
            f"{what}@{alpha}"
            for alpha in alphas
            for what in ("lost_in_rounding", "error", "arriving", "along")
        ]
        + [f"{what}@{key}" for key in pairs for what in ("dot", "dd", "agreeing", "signed")],
        0.0,
    )
    sums["entries"] = entries
    streams: list[Iterator[torch.Tensor]] = [_differences(*pair, entries) for pair in pairs.values()]
    for entries_of_v, theta, *differences in zip(
        vector.pieces(name), pieces(own, entries), *streams, strict=False
    ):
        v = torch.from_numpy(entries_of_v)[: len(theta)]
        wide = theta.float()
        changed = v != 0
        sums["zeros"] += len(v) - int(changed.sum())
        sums["vv"] += _dot(v, v)
        sums["tt"] += _dot(wide, wide)
        for alpha in alphas:
            result = (v * alpha).add_(wide)
            if not keeps_float32:
                result = result.to(theta.dtype)
            if not all_finite(to_bits(result), "F32" if keeps_float32 else own.dtype):
                raise UserError(
                    f"{name}: θ + αv is NaN or infinite in {'F32' if keeps_float32 else own.dtype} at α = {alpha:g}; use a smaller α"
                )
            sums[f"lost_in_rounding@{alpha}"] += int(
                ((result == (wide if keeps_float32 else theta)) & changed).sum()
            )
            arriving, meant = result.double().sub_(wide), v.double().mul_(alpha)
            sums[f"arriving@{alpha}"] += _dot(arriving, arriving)
            sums[f"along@{alpha}"] += _dot(arriving, meant)
            error = arriving.sub_(meant)
            sums[f"error@{alpha}"] += _dot(error, error)
        for key, difference in zip(pairs, differences, strict=True):
            sums[f"dot@{key}"] += _dot(v, difference)
            sums[f"dd@{key}"] += _dot(difference, difference)
            product = v.sign().mul_(difference.sign())
            sums[f"agreeing@{key}"] += int((product > 0).sum())
            sums[f"signed@{key}"] += int((product != 0).sum())
    return sums


def _differences(plus: TensorInfo, minus: TensorInfo, entries: int) -> Iterator[torch.Tensor]:
    for a, b in zip(pieces(plus, entries), pieces(minus, entries), strict=True):
        yield a.float().sub_(b.float())


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    found = float((a * b).sum(dtype=torch.float64))
    return found if math.isfinite(found) else float((a.double() * b.double()).sum())  # products beyond fp32


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _facts(sums: Sums, alphas: Sequence[float], directions: Sequence[str]) -> Facts:
    norm, changed = math.sqrt(sums["vv"]), sums["entries"] - sums["zeros"]
    return {
        "entries": int(sums["entries"]),
        "norm": norm,
        "relative_norm": _share(norm, math.sqrt(sums["tt"])),
        "sparsity": _share(sums["zeros"], sums["entries"]),
        "alphas": [
            {
                "alpha": alpha,
                "lost_in_rounding": _share(sums[f"lost_in_rounding@{alpha}"], changed),
                "rounding": _share(math.sqrt(sums[f"error@{alpha}"]), abs(alpha) * norm),
                "cosine": _share(
                    sums[f"along@{alpha}"], math.sqrt(sums[f"arriving@{alpha}"]) * abs(alpha) * norm
                ),
                "arrives": _share(math.sqrt(sums[f"arriving@{alpha}"]), abs(alpha) * norm),
            }
            for alpha in alphas
        ],
        "directions": {
            key: {
                "cosine": _share(sums[f"dot@{key}"], norm * math.sqrt(sums[f"dd@{key}"])),
                "sign_agreement": _share(sums[f"agreeing@{key}"], sums[f"signed@{key}"]),
            }
            for key in directions
        },
    }


def warnings(geometry: GeometryReport, alphas: Collection[float]) -> list[str]:
    """A line for each of these α of which more than `MUCH` of the changed entries are lost in rounding."""
    return [
        f"at α = {at['alpha']:g} {at['lost_in_rounding'] or 0:.0%} of the changed entries are lost in rounding to the"
        f" target's dtype (of ‖αv‖ {at.get('arrives') or 0:.0%} arrives, at cosine {at.get('cosine') or 0:.2f}); add"
        " engine.dtype=float32 steer.dtype=float32 to keep them"
        for at in geometry["total"]["alphas"]
        if at["alpha"] in alphas and (at["lost_in_rounding"] or 0.0) > MUCH
    ]


def table(geometry: GeometryReport) -> str:
    """The report by module kind as a Markdown table; a dash where there is nothing to measure."""
    total = geometry["total"]
    head = ["module", "entries", "‖v‖", "‖v‖/‖θ‖", "unchanged"]
    for at in total["alphas"]:
        head += [f"{what} α={at['alpha']:g}" for what in ("lost in rounding", "rounding")]
    head += [f"{what} {key}" for key in total["directions"] for what in ("cosine", "signs")]
    rows = [(row["module"], _values(row)) for row in geometry["modules"]] + [("all", _values(total))]
    lines = [head, ["---"] * len(head), *([name, *values] for name, values in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _values(facts: Facts) -> list[str]:
    """A row of the table, behind its name."""
    shown: list[float | None] = [facts["norm"], facts["relative_norm"], facts["sparsity"]]
    for at in facts["alphas"]:
        shown += [at["lost_in_rounding"], at["rounding"]]
    for direction in facts["directions"].values():
        shown += [direction["cosine"], direction["sign_agreement"]]
    return [str(facts["entries"]), *("—" if value is None else f"{value:.4g}" for value in shown)]
