"""The random control: Gaussian noise with a vector's norm in every tensor.

    for piece in noise(Vector.open("v"), "model.norm.weight", seed=0):
        ...

The noise depends on the seed, the tensor's name and the vector's norms alone: not on the order of tensors, on threads,
on the processor or on the form of the vector's file. Each piece of `PIECE` entries has a stream of SplitMix64 of its own;
each 16 bits of it choose one of 2¹⁶ equally likely values of the normal distribution. They are whole numbers, so that
their squares add up to the same sum in any order. (numpy's own normal numbers take many times as long.)
"""

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pipeline.files import ascii_digest
from pipeline.weights.packed import Changes
from pipeline.weights.safetensors import PIECE, TensorInfo
from pipeline.weights.vector import Vector

NOISE_VERSION = 2  # in the key of every cell with noise: raise it when the same seed would give other numbers
ONE = 1 << 16  # what stands for a standard deviation of 1
BLAS = 8192  # entries whose dot product BLAS takes on one thread


def generator(purpose: str, seed: int, name: str, piece: int) -> np.random.Generator:
    """Independent numbers for each piece of each tensor, the same in whatever order they are asked for."""
    digest = bytes.fromhex(ascii_digest([purpose, seed, name, piece]))
    return np.random.default_rng(int.from_bytes(digest, "little"))


class Noise:
    """The noise of one tensor in the place of a vector's entries (pipeline/weights/sums.py, `Deltas`).

    Args:
        vector: whose norm it has.
        name: the tensor, under its name in the vector.
        seed: tells one random control from another.
    """

    def __init__(self, vector: Vector, name: str, seed: int) -> None:
        self.vector, self.name, self.seed = vector, name, seed
        self.numel = math.prod(vector.shapes[name])

    def open(self, stack: ExitStack) -> None:
        find_squares(self.vector, [self.name])
        self.square = _squares[self.vector.tensors[self.name]]

    def piece(self, index: int) -> Changes:
        """Scaled to the piece's share of the norm, so that pieces are independent of each other.

        The share is sqrt(entries of the piece / entries): uniform on the sphere for a tensor of one piece; for larger
        ones the share would vary by 0.1 %.
        """
        key, count, share = self.stream(index)
        drawn, square = normal_numbers(key, count)
        return Changes(None, np.multiply(drawn, np.float32(math.sqrt(share / square)), out=drawn))

    def stream(self, index: int) -> tuple[int, int, float]:
        """What a piece is made of: the key of its numbers, how many they are, and what their squares come to when scaled."""
        count = min(PIECE, self.numel - index * PIECE)
        key = int(ascii_digest(["noise", self.seed, self.name, index])[:16], 16)
        return key, count, self.square * count / self.numel


def normal_numbers(key: int, count: int) -> tuple[NDArray[np.float32], int]:
    """So many normal numbers times `ONE`, rounded to whole numbers, from the stream of `key` (0 to 2⁶⁴ − 1).

    Returns:
        The numbers, and the sum of their squares.
    """
    from pipeline.weights import kernels

    drawn = np.empty(count, np.float32)
    return drawn, kernels.draw(np.uint64(key), normal_values(), drawn)


@lru_cache(maxsize=1)
def normal_values() -> NDArray[np.int32]:
    """The normal distribution as 2¹⁶ equally likely values: the middle of each equal share, times `ONE`, rounded."""
    normal, shares = NormalDist(), 1 << 16
    upper = [round(ONE * normal.inv_cdf((i + 0.5) / shares)) for i in range(shares // 2, shares)]
    return np.array([-value for value in reversed(upper)] + upper, np.int32)


_squares: dict[TensorInfo, float] = {}  # of the tensors of vectors, kept for the next swap


def find_squares(vector: Vector, names: Iterable[str], pool: Executor | None = None) -> None:
    """Find the sum of the squares of tensors' entries, where it is not known yet; the pieces by several threads."""
    for name in names:
        if vector.tensors[name] not in _squares:
            _squares[vector.tensors[name]] = _norm_square(vector, name, pool)


def _norm_square(vector: Vector, name: str, pool: Executor | None) -> float:
    stored = vector.stored(name)
    with ExitStack() as stack:
        stored.open(stack)
        indices = range(-(-stored.numel // PIECE))
        parts = (pool.map if pool else map)(lambda index: _square(stored.piece(index).values), indices)
        return sum(parts)


def _square(entries: NDArray[np.float32]) -> float:
    """Σ x² in fp64, a few entries at a time: so few that BLAS shares out none of them."""
    total, wide = 0.0, np.empty(min(BLAS, len(entries)))
    for start in range(0, len(entries), BLAS):
        part = entries[start : start + BLAS]
        wide[: len(part)] = part
        total += float(np.dot(wide[: len(part)], wide[: len(part)]))
    return total


def noise(vector: Vector, name: str, seed: int) -> Iterator[NDArray[np.float32]]:
    """The whole noise of a tensor, in pieces."""
    drawn = Noise(vector, name, seed)
    with ExitStack() as stack:
        drawn.open(stack)
        for index in range(-(-drawn.numel // PIECE)):
            yield drawn.piece(index).values
