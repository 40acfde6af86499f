"""Add Σ α·v to a target: as a stream for the engine, or as a checkpoint on disk; the two are bit-equal.

    terms = [Term("results/vectors/mine", 0.5), Term("results/vectors/other", -0.5)]
    for name, tensor in steered_tensors("target", terms):
        ...
    apply(Checkpoint.open("target"), terms, Path("steered"))

The sum is taken in fp32 and rounded once, to the target's dtype (arXiv 2509.01363; task arithmetic: arXiv 2212.04089).
With no terms, or all α = 0, the target comes back bit for bit. Addition and analogy (a + c − b) are several terms with
their signs; a random control is a term with a seed. A sum that is not finite in the target's dtype is refused.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.errors import UserError
from pipeline.files import open_regular, replacing
from pipeline.weights import compatibility
from pipeline.weights.architecture import EMBEDDING, HEAD
from pipeline.weights.card import Steering, card
from pipeline.weights.checkpoint import Checkpoint, layer_order
from pipeline.weights.compatibility import Differences, Model
from pipeline.weights.noise import noise
from pipeline.weights.safetensors import DTYPES, PIECE, TensorInfo, all_finite, gather, pieces, write_at
from pipeline.weights.threads import in_parallel, one_thread
from pipeline.weights.vector import Vector, provenance

STEERING = "steering.json"
_LARGEST_ALPHA = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Term:
    """α times a vector (a file, or the folder that holds it); with a seed, α times noise in its place.

    The noise has the vector's norm in every tensor and depends on the seed and the tensor's name alone.
    """

    vector: str
    alpha: float
    random_seed: int | None = None

    def __post_init__(self) -> None:
        check_alpha(self.alpha)


def check_alpha(alpha: float) -> None:
    """Do nothing if α is a number that the arithmetic, which is in fp32, can take.

    Raises:
        UserError: if it is NaN, infinite or too large.
    """
    if not abs(alpha) <= _LARGEST_ALPHA:
        raise UserError(f"α is {alpha}; expected a finite number of at most {_LARGEST_ALPHA:.1e}")


def steered_tensors(target: str, terms: Sequence[Term]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the target checkpoint (name, tensor in its dtype) with Σ α·v added, in layer order.

    Names and shapes are checked here; whether the models compute the same function is asked by `check_compatible`.

    Raises:
        UserError: if names or shapes do not fit, or a sum is not finite.
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

    Raises:
        UserError: if something does not fit, with a line for each problem, before any byte is written; if `out` exists
            and is not an earlier result of this function, or holds what is read here; if a sum is not finite.
    """
    out = out.resolve()
    read = {info.file.resolve().parent for info in target.tensors.values()} | {target.path.resolve()}
    read |= {Path(term.vector).resolve() for term in terms}
    if any(source == out or out in source.parents for source in read):
        raise UserError(f"{out} holds the target or a vector that is read here; choose another folder")
    described = steering(target, terms)
    active = _active(terms)
    with one_thread(), replacing(out, _check_steered) as new:
        new.mkdir()
        _write_shards(new, target, active)
        for file in target.companions():
            shutil.copyfile(file, new / file.name)
        (new / STEERING).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        (new / "README.md").write_text(card(target, described) + measured, encoding="utf-8")
    return out


def _check_steered(out: Path) -> None:
    """Do nothing if `out` is an earlier result of `apply`, an empty folder, or not there.

    Raises:
        UserError: if it is anything else.
    """
    if out.exists() and not (out / STEERING).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and was not written by apply; choose another folder or remove it")


def steering(target: Checkpoint, terms: Sequence[Term]) -> Steering:
    """What a steered checkpoint is made of: target and terms by source, revision and fingerprint.

    Raises:
        UserError: if something does not fit, with a line for each problem.
    """
    vectors = [(term, Vector.open(term.vector)) for term in terms]
    found = Differences(compatibility.content_problems(target))
    left = Model.of("target", target, compatibility.shapes(target))
    for _, vector in vectors:
        right = Model(f"vector {vector.path}", vector.description["identity"], vector.shapes)
        compatibility.compare(left, right, found)
    found.refuse()
    return {
        "target": provenance(target),
        "terms": [
            {
                "alpha": term.alpha,
                "random_seed": term.random_seed,
                "donors": vector.description["donors"],
                "parts": vector.description["parts"],
                "notes": vector.description["notes"],
            }
            for term, vector in vectors
        ],
        "notes": list(dict.fromkeys(found.notes)),
    }


def _write_shards(out: Path, target: Checkpoint, active: list[tuple[Term, Vector]]) -> None:
    """Writes every tensor where the target's shards have it, several at a time."""

    def write(name: str) -> None:
        info = target.tensors[name]
        write_at(out / info.file.name, info.start, _steered(info, name, active))

    for shard in {info.file for info in target.tensors.values()}:
        with open(open_regular(shard), "rb") as source:
            header = source.read(min(info.start for info in target.tensors.values() if info.file == shard))
        (out / shard.name).write_bytes(header)
    # The largest first, so that no core waits for another at the end.
    in_parallel(write, sorted(target.tensors, key=lambda name: -target.tensors[name].numel))


def _active(terms: Iterable[Term]) -> list[tuple[Term, Vector]]:
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
