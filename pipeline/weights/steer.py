"""Add Σ α·v to a target: as a stream for the engine, or as a checkpoint on disk; the two are bit-equal."""

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.weights import compatibility
from pipeline.weights.card import card
from pipeline.weights.checkpoint import EMBEDDING, HEAD, Checkpoint, layer_order
from pipeline.weights.compatibility import check_compatible as check_compatible
from pipeline.weights.fingerprint import in_parallel, one_thread
from pipeline.weights.noise import noise
from pipeline.weights.safetensors import DTYPES, PIECE, TensorInfo, all_finite, gather, pieces, write_at
from pipeline.weights.vector import Vector, provenance

RECIPE = "steering.json"


@dataclass(frozen=True)
class Term:
    """α times a vector (a file, or the folder that holds it); with a seed, α times noise in its place.

    The noise has the vector's norm in every tensor and depends on the seed and the tensor's name alone.
    """

    vector: str
    alpha: float
    random_seed: int | None = None


def steered_tensors(target: str, terms: Sequence[Term]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the target checkpoint (name, tensor in its dtype) with Σ α·v added, in layer order.

    Raises UserError when names or shapes do not fit; the full check is `check_compatible`.
    """
    checkpoint = Checkpoint.open(target)
    active = _active(terms)
    _check_names(checkpoint, [vector for _, vector in active])
    for name in sorted(checkpoint.tensors, key=layer_order):
        info = checkpoint.tensors[name]
        yield name, gather(_steered(info, name, active), info.shape, DTYPES[info.dtype])


def apply(target: Checkpoint, terms: Sequence[Term], out: Path, measured: str = "") -> Path:
    """Writes the target with Σ α·v added as a complete checkpoint in folder `out`, and returns it.

    Shards, their headers and all companions (configuration, tokenizer, templates) are the target's; README.md is
    a model card, which ends with `measured` (Markdown), and steering.json says the same as data. `out` appears by one
    rename when everything is on disk; links and `..` in it are followed first.
    Raises UserError when something does not fit, with one line for each problem, before any byte is written;
    and when `out` exists and is not an earlier result of this function, or holds what is read here.
    """
    out = out.resolve()
    read = {info.file.resolve().parent for info in target.tensors.values()} | {target.path.resolve()}
    read |= {Path(term.vector).resolve() for term in terms}
    if any(source == out or out in source.parents for source in read):
        raise UserError(f"{out} holds the target or a vector that is read here; choose another folder")
    described = recipe(target, terms)
    active = _active(terms)
    with one_thread(), replacing(out, _check_steered) as new:
        new.mkdir()
        _write_shards(new, target, active)
        for file in target.companions():
            shutil.copyfile(file, new / file.name)
        (new / RECIPE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        (new / "README.md").write_text(card(target, described) + measured, encoding="utf-8")
    return out


def _check_steered(out: Path) -> None:
    """Raise UserError unless `out` is an earlier result of `apply`, an empty folder, or not there."""
    if out.exists() and not (out / RECIPE).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and was not written by apply; choose another folder or remove it")


def recipe(target: Checkpoint, terms: Sequence[Term]) -> dict[str, Any]:
    """What a steered checkpoint is made of: target and terms by source, revision and fingerprint.

    Raises UserError when something does not fit, with one line for each problem.
    """
    vectors = [(term, Vector.open(term.vector)) for term in terms]
    problems = compatibility.content_problems(target)
    notes: list[str] = []
    for _, vector in vectors:
        compatibility.compare(
            f"target {target.source}", compatibility.identity(target), compatibility.shapes(target),
            f"vector {vector.path}", vector.description["identity"], vector.shapes, problems, notes,
        )  # fmt: skip
    compatibility.refuse(problems)
    return {
        "target": provenance(target),
        "terms": [
            {
                "alpha": term.alpha,
                "random_seed": term.random_seed,
                **{key: vector.description[key] for key in ("donors", "variants", "notes")},
            }
            for term, vector in vectors
        ],
        "notes": list(dict.fromkeys(notes)),
    }


def _write_shards(out: Path, target: Checkpoint, active: list[tuple[Term, Vector]]) -> None:
    """Writes every tensor where the target's shards have it, several at a time."""

    def write(name: str) -> None:
        info = target.tensors[name]
        write_at(out / info.file.name, info.start, _steered(info, name, active))

    for shard in {info.file for info in target.tensors.values()}:
        with open(shard, "rb") as source:
            header = source.read(min(info.start for info in target.tensors.values() if info.file == shard))
        (out / shard.name).write_bytes(header)
    # The largest first, so that no core waits for another at the end.
    in_parallel(write, sorted(target.tensors, key=lambda name: -target.tensors[name].numel))


def _active(terms: Iterable[Term]) -> list[tuple[Term, Vector]]:
    for term in terms:
        if not math.isfinite(term.alpha):
            raise UserError(f"α is {term.alpha}; expected a finite number")
    return [(term, Vector.open(term.vector)) for term in terms if term.alpha != 0]


def _check_names(target: Checkpoint, vectors: Iterable[Vector]) -> None:
    shapes = compatibility.shapes(target)
    for vector in vectors:
        fits = shapes.keys() - {HEAD} == vector.shapes.keys() - {HEAD} and (
            HEAD in shapes or HEAD not in vector.shapes
        )
        for name in vector.shapes if fits else ():
            ours, theirs = shapes[name], vector.shapes[name]
            fits &= ours == theirs or (name in (EMBEDDING, HEAD) and ours[1:] == theirs[1:])
        if not fits:
            raise UserError(
                f"{vector.path} does not fit {target.path}: names or shapes differ; apply says which"
            )


def _steered(info: TensorInfo, name: str, active: list[tuple[Term, Vector]]) -> Iterator[torch.Tensor]:
    """The target's tensor in pieces with the terms added; rows of padding that a vector lacks stay."""
    sources = []
    for term, vector in active:
        own = EMBEDDING if name == HEAD and HEAD not in vector.shapes else name
        delta = vector.pieces(own) if term.random_seed is None else noise(vector, own, term.random_seed)
        sources.append((term.alpha, delta))
    if not sources:
        yield from pieces(info)
        return
    total, wide = torch.empty(2, min(PIECE, info.numel))
    for piece in pieces(info):
        total.zero_()
        reach = 0
        for alpha, delta in sources:
            if (part := next(delta, None)) is not None:
                part = part[: len(piece)]
                # Product and sum apart: a fused multiply-add would round differently at the ends of pieces.
                total[: len(part)].add_(part.mul_(alpha))
                reach = max(reach, len(part))
        if reach:
            result = wide[:reach].copy_(piece[:reach]).add_(total[:reach])
            piece[:reach].copy_(result)
            if not all_finite(piece):
                raise UserError(
                    f"{name} is NaN or infinite in {info.dtype} after the sum; use a smaller α or finite inputs"
                )
        yield piece
    for _, delta in sources:
        next(delta, None)  # past the last piece, where the vector's file is checked once more
