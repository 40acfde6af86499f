"""What safetensors files hold as torch tensors, and torch's conversions for what has only bits.

for piece in pieces(checkpoint.tensors["model.norm.weight"]):
    ...
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.weights import safetensors
from pipeline.weights.floats import Bits, Conversions
from pipeline.weights.safetensors import TensorInfo

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
UNSHARED = 30 << 10  # entries that torch converts on one thread: it shares out more than 2¹⁵ among all it has

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


def widened(bits: Bits, dtype: str) -> NDArray[np.float32]:
    """As `floats.widened`, by torch."""
    wide = torch.empty(len(bits))
    _convert(from_bits(bits, dtype), wide)
    values: NDArray[np.float32] = wide.numpy()
    return values


def narrow(values: NDArray[np.float32], dtype: str, out: Bits) -> None:
    """As `floats.narrow`, by torch."""
    _convert(torch.from_numpy(values), from_bits(out, dtype))


def _convert(source: torch.Tensor, out: torch.Tensor) -> None:
    """Copy to another dtype, on this thread alone."""
    step = len(source) if torch.get_num_threads() == 1 else UNSHARED
    for start in range(0, len(source), max(1, step)):
        out[start : start + step] = source[start : start + step]


TORCH = Conversions(widened, narrow)
