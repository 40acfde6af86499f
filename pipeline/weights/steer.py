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
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import UserError
from pipeline.files import open_regular, replacing, resolved
from pipeline.weights import compatibility
from pipeline.weights.architecture import EMBEDDING, HEAD
from pipeline.weights.card import Steering, card
from pipeline.weights.checkpoint import Checkpoint, layer_order
from pipeline.weights.compatibility import Differences, Model
from pipeline.weights.floats import BITS, Bits
from pipeline.weights.memory import Memory
from pipeline.weights.noise import Noise, find_squares
from pipeline.weights.safetensors import PIECE, TensorInfo, write_at
from pipeline.weights.sums import Deltas, TensorSum
from pipeline.weights.threads import in_parallel, one_thread, thread_pool
from pipeline.weights.vector import Vector, provenance

if TYPE_CHECKING:  # it takes a second to import: writing a checkpoint does without
    import torch

STEERING = "steering.json"
AHEAD = 1 << 29  # bytes of tensors that are made before they are taken
TOGETHER = 8  # pieces of a tensor that a thread makes in one go
_LARGEST_ALPHA = float(np.finfo(np.float32).max)


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


def steered_tensors(
    target: str,
    terms: Sequence[Term],
    pool: Executor | None = None,
    memory: Memory | None = None,
    wide: bool = False,
    like: str | None = None,
    device: "torch.device | None" = None,
) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Every tensor of the target checkpoint (name, tensor in its dtype) with Σ α·v added, in layer order.

    Names and shapes are checked here; whether the models compute the same function is asked by `check_compatible`.
    Tensors are made some ahead of those that are taken; each is the caller's for as long as a view of it lives.

    Args:
        pool: threads that read and add; None is one thread.
        memory: what the host's loops make the tensors in; None is memory of their own.
        wide: leave the sums in float32, where they are not rounded to the target's dtype.
        like: a checkpoint of which rows of padding and head are taken, for a model that was made in its shapes.
        device: where torch makes the tensors, to the same bits; None is the host, by its loops.

    Raises:
        UserError: if names or shapes do not fit, or a sum is not finite.
    """
    checkpoint = Checkpoint.open(target)
    active = _active(terms)
    _check_names(checkpoint, [vector for _, vector in active])
    sums = (
        _sum(checkpoint.tensors[name], name, active, wide)
        for name in sorted(checkpoint.tensors, key=layer_order)
    )
    with nullcontext(pool) if pool is not None else thread_pool(1) as threads:
        for vector in {str(v.path): v for term, v in active if term.random_seed is not None}.values():
            find_squares(vector, vector.shapes, threads)
        if device is None:
            made = _ahead(sums, threads, memory or Memory())
        else:
            from pipeline.weights.device import device_sums

            made = device_sums(device, sums, threads)
        yield from made if like is None else _in_the_shapes_of(Checkpoint.open(like), made)


def _in_the_shapes_of(
    model: Checkpoint, made: Iterable[tuple[str, "torch.Tensor"]]
) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Tensors with the rows and the head of `model`; which belong to tokens of both has been asked by `check_compatible`."""
    embedding, has_head = None, False
    for name, tensor in made:
        if name == HEAD and model.tied:
            continue  # it is the embedding
        if name in (EMBEDDING, HEAD):
            tensor = _with_rows_of(model, name, tensor)
            embedding, has_head = (tensor, has_head) if name == EMBEDDING else (embedding, True)
        yield name, tensor
    if not model.tied and not has_head and embedding is not None:
        yield HEAD, embedding


def _with_rows_of(model: Checkpoint, name: str, tensor: "torch.Tensor") -> "torch.Tensor":
    """As many rows as `model` has: further ones are left out, and those that are lacking are its own."""
    rows = model.resolve(name).shape[0]
    if len(tensor) >= rows:
        return tensor[:rows]
    whole = model.read(model.stored(name)).to(tensor.device, tensor.dtype)
    whole[: len(tensor)] = tensor
    return whole


@dataclass
class _Making:
    """A tensor that threads are making."""

    total: TensorSum
    tensor: "torch.Tensor"
    jobs: list[Future[None]]

    def result(self) -> tuple[str, "torch.Tensor"]:
        """The finished tensor, once its files have been found as they were."""
        with self.total:
            for job in self.jobs:
                job.result()
        return self.total.name, self.tensor.view(self.total.info.shape)


def _ahead(sums: Iterable[TensorSum], pool: Executor, memory: Memory) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Make tensors by threads, in order, up to `AHEAD` bytes before they are taken."""
    from pipeline.weights.tensors import DTYPES, to_bits

    making: deque[_Making] = deque()
    try:
        for total in sums:
            total.open()
            tensor = memory.tensor(total.info.numel, DTYPES[total.dtype])
            bits = to_bits(tensor)
            jobs = [
                pool.submit(_write, total, bits, range(first, min(first + TOGETHER, total.pieces)))
                for first in range(0, total.pieces, TOGETHER)
            ]
            making.append(_Making(total, tensor, jobs))
            while len(making) > 1 and sum(m.tensor.nbytes for m in list(making)[1:]) > AHEAD:
                yield making.popleft().result()
        while making:
            yield making.popleft().result()
    finally:
        for left in making:
            for job in left.jobs:
                job.cancel()
            wait(left.jobs)
            left.total.close()


def _write(total: TensorSum, bits: Bits, pieces: range) -> None:
    for index in pieces:
        total.write(index, bits[index * PIECE : (index + 1) * PIECE])


def _in_pieces(total: TensorSum) -> Iterator[Bits]:
    """The sum piece by piece, in one reused buffer."""
    buffer = np.empty(min(PIECE, total.info.numel), BITS[total.dtype])
    with total:
        total.open()
        for index in range(total.pieces):
            piece = buffer[: min(PIECE, total.info.numel - index * PIECE)]
            total.write(index, piece)
            yield piece


def apply(
    target: Checkpoint, terms: Sequence[Term], out: Path, measured: str = "", allowed: Collection[str] = ()
) -> Path:
    """Writes the target with Σ α·v added as a complete checkpoint in folder `out`, and returns it.

    Shards, their headers and all companions (configuration, tokenizer, templates) are the target's; README.md is
    a model card, which ends with `measured` (Markdown), and steering.json says the same as data. `out` appears by one
    rename when everything is on disk; links and `..` in it are followed first.

    Raises:
        UserError: if something does not fit, with a line for each problem, before any byte is written; if `out` exists
            and is not an earlier result of this function, or holds or lies in what is read here; if a sum is not
            finite.
    """
    out = resolved(out)
    read = {info.file.resolve().parent for info in target.tensors.values()} | {target.path.resolve()}
    read |= {Path(term.vector).resolve() for term in terms}
    if any(source == out or out in source.parents for source in read):
        raise UserError(f"{out} holds the target or a vector that is read here; choose another folder")
    if any(source in out.parents for source in read):
        raise UserError(f"{out} lies in the target or a vector that is read here; choose another folder")
    described = steering(target, terms, allowed)
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


def steering(target: Checkpoint, terms: Sequence[Term], allowed: Collection[str] = ()) -> Steering:
    """What a steered checkpoint is made of: target and terms by source, revision and fingerprint.

    Args:
        allowed: keys of config.json in which the target may differ from the donors.

    Raises:
        UserError: if something does not fit, with a line for each problem.
    """
    vectors = [(term, Vector.open(term.vector)) for term in terms]
    found = Differences(compatibility.content_problems(target), allowed=allowed)
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
        write_at(out / info.file.name, info.start, _in_pieces(_sum(info, name, active)))

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


def _sum(
    info: TensorInfo,
    name: str,
    active: list[tuple[Term, Vector]],
    wide: bool = False,
) -> TensorSum:
    """The target's tensor with the terms added; a head of its own takes the embedding's where a vector has none."""
    terms: list[tuple[float, Deltas]] = []
    for term, vector in active:
        own = EMBEDDING if name == HEAD and HEAD not in vector.shapes else name
        seed = term.random_seed
        terms.append((term.alpha, vector.stored(own) if seed is None else Noise(vector, own, seed)))
    return TensorSum(info, name, terms, wide)
