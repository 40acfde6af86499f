"""The random control: Gaussian noise with a vector's norm in every tensor.

    for piece in noise(Vector.open("v"), "model.norm.weight", seed=0):
        ...

The noise depends on the seed, the tensor's name and the vector's norms alone: not on the order of tensors, on threads,
or on the form of the vector's file.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import torch

from pipeline.files import ascii_digest
from pipeline.weights.packed import Changes
from pipeline.weights.safetensors import PIECE
from pipeline.weights.vector import Vector

NOISE_VERSION = 1  # in the key of every cell with noise: raise it when the same seed would give other numbers


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
        self.square = norm_square(self.vector, self.name)

    def piece(self, index: int) -> Changes:
        """Scaled to the piece's share of the norm, so that pieces are independent of each other.

        The share is sqrt(entries of the piece / entries): uniform on the sphere for a tensor of one piece; for larger
        ones the share would vary by 0.1 %.
        """
        count = min(PIECE, self.numel - index * PIECE)
        draws = generator("noise", self.seed, self.name, index).standard_normal(count, np.float32)
        scale = math.sqrt(self.square * count / self.numel / _square(torch.from_numpy(draws)))
        return Changes(None, np.multiply(draws, np.float32(scale), out=draws))


def _square(piece: torch.Tensor) -> float:
    return float((piece * piece).sum(dtype=torch.float64))


def norm_square(vector: Vector, name: str) -> float:
    """The sum of the squares of a tensor's entries."""
    return sum(_square(piece) for piece in vector.pieces(name))


def noise(vector: Vector, name: str, seed: int) -> Iterator[torch.Tensor]:
    """The whole noise of a tensor, in pieces."""
    drawn = Noise(vector, name, seed)
    with ExitStack() as stack:
        drawn.open(stack)
        for index in range(-(-drawn.numel // PIECE)):
            yield torch.from_numpy(drawn.piece(index).values)
