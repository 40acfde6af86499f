"""Floating-point entries as the bits that files hold, without torch, which takes longer to import than to sum with.

    values = widened(bits, "BF16")           # fp32
    add(bits, "BF16", values, 0.7)           # rounded once, to nearest, of a tie the even one, as torch does

The loops are compiled (pipeline/weights/kernels.py); fp16, which few models have, goes through numpy.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[Any]
"""Entries as unsigned integers of their size."""

BITS: dict[str, type[np.unsignedinteger[Any]]] = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}
EXPONENTS = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}  # all ones: NaN or infinite


def widened(bits: Bits, dtype: str) -> NDArray[np.float32]:
    """The entries in fp32, exact, in memory of their own."""
    if dtype == "F32":
        return bits.view(np.float32).copy()
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    from pipeline.weights import kernels

    wide = np.empty(len(bits), np.uint32)
    kernels.widen(bits, wide)
    return wide.view(np.float32)


def subtracted(plus: Bits, minus: Bits, dtype: str, positions: NDArray[np.int32]) -> NDArray[np.float32]:
    """The differences of the entries at these positions, in fp32."""
    from pipeline.weights import kernels

    values = np.empty(len(positions), np.float32)
    if dtype == "F16":
        plus, minus = (widened(bits, dtype).view(np.uint32) for bits in (plus, minus))
    kernels.subtract_at(plus, minus, positions, values)
    return values


def add(
    bits: Bits,
    dtype: str,
    values: NDArray[np.float32],
    factor: float = 1,
    positions: NDArray[np.int32] | None = None,
) -> None:
    """Add factor · value to entries in place: in fp32, product and sum rounded apart, and once to the dtype.

    What is not finite afterwards is for the caller to find; NaN stays NaN.

    Args:
        bits: the entries.
        values: what is added, one for each position.
        positions: of the entries that are added to; None is the first ones, in order.
    """
    from pipeline.weights import kernels

    if dtype == "F16":
        wide = widened(bits, dtype)
        add(wide.view(np.uint32), "F32", values, factor, positions)
        with np.errstate(over="ignore"):
            bits.view(np.float16)[:] = wide
    elif positions is None:
        kernels.add_all(bits, values, np.float32(factor))
    else:
        kernels.add_at(bits, positions, values, np.float32(factor))


def all_finite(bits: Bits, dtype: str) -> bool:
    """Whether no entry is NaN or infinite: many times faster than isfinite."""
    from pipeline.weights import kernels

    bits, lanes = bits.reshape(-1), 8 // bits.itemsize
    whole = len(bits) // lanes * lanes
    last = np.zeros(lanes, bits.dtype)
    last[: len(bits) - whole] = bits[whole:]
    exponents, lowest, sign = _masks(dtype, lanes)
    return not any(
        kernels.any_full_exponent(part.view(np.uint64), exponents, lowest, sign)
        for part in (bits[:whole], last)
    )


@lru_cache
def _masks(dtype: str, lanes: int) -> tuple[np.uint64, np.uint64, np.uint64]:
    """For every entry of a 64-bit word: the bits of its exponent, the lowest of them, and the bit above them."""
    each = sum(1 << (64 // lanes * lane) for lane in range(lanes))
    exponent, sign = EXPONENTS[dtype], 1 << (64 // lanes - 1)
    return np.uint64(exponent * each), np.uint64((sign - exponent) * each), np.uint64(sign * each)
