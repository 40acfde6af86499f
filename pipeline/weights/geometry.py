"""What a task vector looks like beside the model that it is added to: norms, sparsity, rounding, direction.

`report` is data for a geometry file, `table` the same in Markdown, `heat_map` the relative norms as a figure.
Everything is measured in pieces, with sums in fp64, over the entries that all models have (rows of padding are
left out). What is reported follows arXiv 2505.11711 (sparsity) and 2605.00610 (norms and sign conflicts).
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.weights.checkpoint import EMBEDDING, HEAD, Checkpoint
from pipeline.weights.fingerprint import one_thread
from pipeline.weights.parts import layer_of
from pipeline.weights.safetensors import TensorInfo, pieces
from pipeline.weights.vector import Vector

Sums = dict[str, float]


def report(
    vector: Vector,
    target: Checkpoint,
    alphas: Sequence[float],
    sft: Checkpoint | None = None,
    base: Checkpoint | None = None,
) -> dict[str, Any]:
    """The vector's geometry as JSON data: `total`, `modules` (by kind), `layers`, `cells` (by kind and layer).

    Each of them holds
    entries: how many;
    norm, relative_norm: ‖v‖ and ‖v‖ / ‖θ_target‖;
    sparsity: the share of entries of v that are exactly 0;
    alphas: for each α but 0, swallowed: the share of the other entries that rounding to the target's dtype leaves
        at the target's value, and rounding: ‖round(θ + αv) − (θ + αv)‖ / ‖αv‖;
    directions: for target − base when a base is given and SFT − base when both are, cosine: with v, and
        sign_agreement: the share of equal signs among the entries that are 0 in neither.

    A share of nothing is None. Raises UserError when a tensor of the vector is missing or of another shape.
    """
    others = {}
    if base is not None:
        others["target-base"] = (target, base)
        if sft is not None:
            others["sft-base"] = (sft, base)
    strengths = [alpha for alpha in alphas if alpha != 0]

    groups: dict[tuple[str, str, int | None], Sums] = {}
    with one_thread():
        for name in vector.shapes:
            sums = _measure(vector, name, target, strengths, others)
            kind, layer = module_kind(name), layer_of(name)
            for group in (
                ("total", "", None),
                ("module", kind, None),
                ("layer", "", layer),
                ("cell", kind, layer),
            ):
                into = groups.setdefault(group, {})
                for key, value in sums.items():
                    into[key] = into.get(key, 0.0) + value

    def summaries(level: str) -> list[dict[str, Any]]:
        found = []
        for (group, kind, layer), sums in groups.items():
            if group == level and not (level == "layer" and layer is None):
                place = {"module": kind or None, "layer": layer}
                found.append(
                    {key: value for key, value in place.items() if value is not None}
                    | _summary(sums, strengths, list(others))
                )
        return found

    return {
        "schema": 1,
        "vector": vector.fingerprint,
        "target": target.fingerprint,
        "total": summaries("total")[0],
        "modules": summaries("module"),
        "layers": summaries("layer"),
        "cells": summaries("cell"),
    }


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
    others: dict[str, tuple[Checkpoint, Checkpoint]],
) -> Sums:
    """Sums over the entries of one tensor, which add up over tensors."""
    shape = vector.shapes[name]
    pairs = {key: (_info(a, name, shape), _info(b, name, shape)) for key, (a, b) in others.items()}
    own = _info(target, name, shape)
    rows = min([shape, own.shape, *(info.shape for pair in pairs.values() for info in pair)])
    entries = math.prod(rows)
    sums: Sums = dict.fromkeys(
        ["entries", "zeros", "vv", "tt"]
        + [f"{what}@{alpha}" for alpha in alphas for what in ("swallowed", "error")]
        + [f"{what}@{key}" for key in pairs for what in ("dot", "dd", "agreeing", "signed")],
        0.0,
    )
    sums["entries"] = entries
    streams: list[Iterator[torch.Tensor]] = [_differences(*pair, entries) for pair in pairs.values()]
    for v, theta, *differences in zip(vector.pieces(name), pieces(own, entries), *streams, strict=False):
        v = v[: len(theta)]
        wide = theta.float()
        changed = v != 0
        sums["zeros"] += len(v) - int(changed.sum())
        sums["vv"] += _dot(v, v)
        sums["tt"] += _dot(wide, wide)
        for alpha in alphas:
            result = (v * alpha).add_(wide).to(theta.dtype)
            sums[f"swallowed@{alpha}"] += int(((result == theta) & changed).sum())
            error = result.double().sub_(wide).sub_(v.double().mul_(alpha))
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
    return float((a * b).sum(dtype=torch.float64))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _summary(sums: Sums, alphas: Sequence[float], directions: Sequence[str]) -> dict[str, Any]:
    norm, changed = math.sqrt(sums["vv"]), sums["entries"] - sums["zeros"]
    return {
        "entries": int(sums["entries"]),
        "norm": norm,
        "relative_norm": _share(norm, math.sqrt(sums["tt"])),
        "sparsity": _share(sums["zeros"], sums["entries"]),
        "alphas": [
            {
                "alpha": alpha,
                "swallowed": _share(sums[f"swallowed@{alpha}"], changed),
                "rounding": _share(math.sqrt(sums[f"error@{alpha}"]), abs(alpha) * norm),
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


def table(geometry: dict[str, Any]) -> str:
    """The report by module kind as a Markdown table; a dash where there is nothing to measure."""
    total = geometry["total"]
    alphas = [row["alpha"] for row in total["alphas"]]
    head = ["module", "entries", "‖v‖", "‖v‖/‖θ‖", "unchanged"]
    head += [f"{what} α={alpha:g}" for alpha in alphas for what in ("swallowed", "rounding")]
    head += [f"{what} {key}" for key in total["directions"] for what in ("cosine", "signs")]
    lines = [head, ["---"] * len(head)]
    for row in [*geometry["modules"], {"module": "all", **total}]:
        values = [row["norm"], row["relative_norm"], row["sparsity"]]
        values += [alpha[what] for alpha in row["alphas"] for what in ("swallowed", "rounding")]
        values += [
            row["directions"][key][what] for key in row["directions"] for what in ("cosine", "sign_agreement")
        ]
        lines.append(
            [
                row["module"],
                str(row["entries"]),
                *("—" if value is None else f"{value:.4g}" for value in values),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def heat_map(geometry: dict[str, Any], out: Path) -> Path:
    """Draws the relative norms, module kinds by layers, in the format that the name's ending says (.png, .svg, .pdf)."""
    from matplotlib.figure import Figure

    cells = [cell for cell in geometry["cells"] if "layer" in cell]
    kinds = list(dict.fromkeys(cell["module"] for cell in cells))
    layers = sorted({cell["layer"] for cell in cells})
    grid = [[math.nan] * len(layers) for _ in kinds]
    for cell in cells:
        if cell["relative_norm"] is not None:
            grid[kinds.index(cell["module"])][layers.index(cell["layer"])] = cell["relative_norm"]
    figure = Figure(figsize=(2.5 + 0.3 * len(layers), 1.2 + 0.3 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, aspect="auto", cmap="viridis")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xticks(range(0, len(layers), max(1, len(layers) // 14)), layers[:: max(1, len(layers) // 14)])
    axes.set_xlabel("layer")
    figure.colorbar(image, label="‖v‖ / ‖θ‖")
    figure.savefig(out)
    return out
