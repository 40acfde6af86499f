"""Σ α·v as an ordinary safetensors file, which any tool reads: fp32 tensors under the checkpoint's names.

    write_plain([Term("results/vectors/mine", 0.5), Term("results/vectors/other", -0.5)], Path("sum.safetensors"))

Products first, then their sum in the order of the terms, both in fp32, as when a checkpoint is steered
(pipeline/weights/sums.py). It streams in pieces, so that memory does not grow with the model.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.weights import compatibility
from pipeline.weights.compatibility import Differences, Model
from pipeline.weights.floats import all_finite
from pipeline.weights.safetensors import PIECE, encode_header, read_header, write_at
from pipeline.weights.steer import Term
from pipeline.weights.vector import Vector

MADE_OF = "sum_of_task_vectors"  # key of the metadata: what the file is made of, and that we wrote it


def write_plain(terms: Sequence[Term], out: Path) -> Path:
    """Writes Σ α·v of vectors of one shape to the file `out`, and returns it.

    Raises:
        UserError: if vectors do not fit each other, a term is noise, a sum is not finite, or `out` is something else.
    """
    vectors = [(term, Vector.open(term.vector)) for term in terms]
    _check(vectors)
    shapes = vectors[0][1].shapes
    made_of = [
        {"alpha": term.alpha, "donors": v.description["donors"], "parts": v.description["parts"]}
        for term, v in vectors
    ]
    layout = {name: ("F32", shape, 4 * math.prod(shape)) for name, shape in shapes.items()}
    header = encode_header({"format": "pt", MADE_OF: json.dumps(made_of)}, layout)
    out = out.resolve()
    with replacing(out, _check_ours) as new:
        new.write_bytes(header)
        end = len(header)
        for name in shapes:
            end = write_at(new, end, _sum(name, vectors))
    return out


def _check(vectors: Sequence[tuple[Term, Vector]]) -> None:
    if not vectors:
        raise UserError("a sum: expected at least one term, found none")
    if any(term.random_seed is not None for term, _ in vectors):
        raise UserError("a sum: noise has no file of its own; leave the terms with a seed out")
    found, (_, first) = Differences([]), vectors[0]
    left = Model(f"vector {first.path}", first.description["identity"], first.shapes)
    for _, other in vectors[1:]:
        right = Model(f"vector {other.path}", other.description["identity"], other.shapes)
        compatibility.compare(left, right, found)
        if other.shapes != first.shapes:
            found.problems.append(f"{other.path} has other tensors or shapes than {first.path}")
    found.refuse()


def _sum(name: str, vectors: Sequence[tuple[Term, Vector]]) -> Iterator[NDArray[np.float32]]:
    """The entries of one tensor of the sum, flat, in pieces."""
    entries = math.prod(vectors[0][1].shapes[name])
    with ExitStack() as stack:
        stored = [(np.float32(term.alpha), vector.stored(name)) for term, vector in vectors]
        for _, deltas in stored:
            deltas.open(stack)
        for index in range(-(-entries // PIECE)):
            size = min(PIECE, entries - index * PIECE)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
                first, *more = (deltas.piece(index).dense(size) * alpha for alpha, deltas in stored)
                for product in more:
                    first += product
            if not all_finite(first.view(np.uint32), "F32"):
                raise UserError(f"{name} is NaN or infinite in the sum; use a smaller α")
            yield first


def _check_ours(out: Path) -> None:
    """Do nothing if nothing is at `out`, or a file that we wrote."""
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file, such as {out / 'sum.safetensors'}")
    if out.exists() and MADE_OF not in read_header(out)[0]:
        raise UserError(f"{out} exists and is not a sum that we wrote; choose another file or remove it")
