"""What safetensors files hold as torch tensors.

    for piece in pieces(checkpoint.tensors["model.norm.weight"]):
        ...

A tensor and its bits (pipeline/weights/floats.py) are the same memory.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from pipeline.weights import safetensors
from pipeline.weights.floats import Bits
from pipeline.weights.safetensors import TensorInfo

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

_SIGNED = {2: np.int16, 4: np.int32}  # torch knows few operations on unsigned integers


def from_bits(bits: Bits, dtype: str) -> torch.Tensor:
    """The same memory as a tensor."""
    return torch.from_numpy(bits.view(_SIGNED[bits.itemsize])).view(DTYPES[dtype])


def to_bits(tensor: torch.Tensor) -> Bits:
    """The memory of a tensor on the CPU as its entries' bits."""
    size = tensor.element_size()
    signed: Bits = tensor.view({2: torch.int16, 4: torch.int32}[size]).numpy()
    return signed.view({2: np.uint16, 4: np.uint32}[size])


def pieces(info: TensorInfo, entries: int | None = None) -> Iterator[torch.Tensor]:
    """The first `entries` entries (default: all) of a tensor, flat, `PIECE` at a time, in one reused buffer.

    Raises:
        UserError: if the file changed after it was opened or while it was read.
    """
    for piece in safetensors.pieces(info, entries):
        yield from_bits(piece, info.dtype)


def gather(parts: Iterable[torch.Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The whole tensor that was cut into pieces."""
    whole = torch.empty(math.prod(shape), dtype=dtype)
    first = 0
    for piece in parts:
        whole[first : first + len(piece)] = piece
        first += len(piece)
    return whole.view(shape)
