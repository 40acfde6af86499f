"""Floating-point entries as the bits that files hold, without torch, which takes longer to import than to sum with.

    values = widened(bits, "BF16")           # fp32
    narrow(values, "BF16", out=bits)         # rounded to nearest, ties to even, as torch does

Where torch is there anyway, its conversions (pipeline/weights/tensors.py) take half as long and give the same bits, but
for those of NaN, which is refused wherever something is added.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[Any]
"""Entries as unsigned integers of their size."""

BITS: dict[str, type[np.unsignedinteger[Any]]] = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}
EXPONENTS = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}  # all ones: NaN or infinite
BLOCK = 1 << 16  # entries that are rounded at a time: they stay in a core's cache


class Conversions(NamedTuple):
    """To fp32 and back, for entries of a dtype by its name in safetensors."""

    widened: Callable[[Bits, str], NDArray[np.float32]]
    narrow: Callable[[NDArray[np.float32], str, Bits], None]


def widened(bits: Bits, dtype: str) -> NDArray[np.float32]:
    """The entries in fp32, exact, in memory of their own."""
    if dtype == "F32":
        return bits.view(np.float32).copy()
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def narrow(values: NDArray[np.float32], dtype: str, out: Bits) -> None:
    """Round to nearest, ties to even, into `out`; may change `values`. NaN stays NaN."""
    if dtype == "F32":
        out[:] = values.view(np.uint32)
    elif dtype == "F16":
        with np.errstate(over="ignore"):  # infinite, which the caller looks for
            out.view(np.float16)[:] = values
    else:
        for start in range(0, len(values), BLOCK):
            _round_to_bf16(values[start : start + BLOCK], out[start : start + BLOCK])


def _round_to_bf16(values: NDArray[np.float32], out: Bits) -> None:
    if np.isnan(values.max()):  # rounding up the largest of them would give −0
        values[np.isnan(values)] = np.nan
    wide = values.view(np.uint32)
    carry = wide >> 16
    carry &= 1  # of a tie, the even one
    carry += 0x7FFF
    wide += carry
    wide >>= 16
    out[:] = wide


NUMPY = Conversions(widened, narrow)


def all_finite(bits: Bits, dtype: str) -> bool:
    """Whether no entry is NaN or infinite: several times faster than isfinite for bf16."""
    if not bits.size:
        return True
    sign = {2: 0x7FFF, 4: 0x7FFFFFFF}[bits.itemsize]
    return int(np.bitwise_and(bits, bits.dtype.type(sign)).max()) < EXPONENTS[dtype]
