"""The random control: Gaussian noise with a vector's norm in every tensor.

    for piece in noise(Vector.open("v"), "model.norm.weight", seed=0):
        ...

The noise depends on the seed, the tensor's name and the vector's norms alone: not on the order of tensors, on threads,
or on the form of the vector's file.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from pipeline.files import ascii_digest
from pipeline.weights.safetensors import PIECE
from pipeline.weights.vector import Vector

NOISE_VERSION = 1  # in the key of every cell with noise: raise it when the same seed would give other numbers


def generator(purpose: str, seed: int, name: str, piece: int) -> np.random.Generator:
    """Independent numbers for each piece of each tensor, the same in whatever order they are asked for."""
    digest = bytes.fromhex(ascii_digest([purpose, seed, name, piece]))
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _square(piece: torch.Tensor) -> float:
    return float((piece * piece).sum(dtype=torch.float64))


def noise(vector: Vector, name: str, seed: int) -> Iterator[torch.Tensor]:
    """Gaussian noise in the vector's shape and with its norm.

    Each piece is scaled to its share of the norm, sqrt(entries of the piece / entries), so that one pass is
    enough: uniform on the sphere for a tensor of one piece; for larger ones the share would vary by 0.1 %.
    """
    numel = math.prod(vector.shapes[name])
    square = sum(_square(piece) for piece in vector.pieces(name))
    for index, first in enumerate(range(0, numel, PIECE)):
        count = min(PIECE, numel - first)
        noise = torch.from_numpy(generator("noise", seed, name, index).standard_normal(count, np.float32))
        yield noise.mul_(math.sqrt(square * count / numel / _square(noise)))
