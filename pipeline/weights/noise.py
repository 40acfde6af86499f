"""The random control: Gaussian noise with a vector's norm in every tensor."""

import hashlib
import json
import math
from collections.abc import Iterator

import numpy as np
import torch

from pipeline.weights.compatibility import check_compatible as check_compatible
from pipeline.weights.safetensors import (
    PIECE,
)
from pipeline.weights.vector import Vector

NOISE_VERSION = 1  # in the key of every cell with noise: raise it when the same seed would give other numbers


def generator(purpose: str, seed: int, name: str, piece: int) -> np.random.Generator:
    """Independent numbers for each piece of each tensor, the same in whatever order they are asked for."""
    digest = hashlib.sha256(json.dumps([purpose, seed, name, piece]).encode()).digest()
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
