"""Loops over the bits of entries, compiled by numba: one pass where numpy takes several, and without Python's lock.

    kernels.add_at(bits, positions, values, np.float32(0.7))

Each thread can run its own at a time. Compiled code is kept beside this file, or in the user's cache folder where this one
cannot be written to, under a digest of this file; without either, every process compiles anew, which takes seconds.
Import this module where a kernel is called, not at the top: numba takes a third of a second to import.

Arithmetic is IEEE's, in the order written: nothing is fused or reordered, so the results are the same on every processor.
Entries of 16 bits are bf16, those of 32 bits fp32.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from llvmlite.binding import ffi
from numba import njit, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
_instruction: Callable[[Callable[..., Any]], Callable[..., Any]] = intrinsic
_inlined: Callable[[Function], Function] = njit  # into the kernels that call it, and kept with them
SOURCE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
SPARE = 4  # positions that are written past the last one
_ONE, _GAMMA = np.uint64(1), np.uint64(0x9E3779B97F4A7C15)
_ODD, _PAIRS, _FOURS = (
    np.uint64(mask) for mask in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F)
)
_BLOCK = 1 << 10  # random words at a time: they stay in a core's first cache


def _let_objects_be_asked() -> None:
    """Make llvmlite's library an object without `__dict__`, as it should be: any name of Python's is a C function to it.

    vLLM's CPU build asks every object of every module for its `__dict__` when a worker starts, and falls over that one.
    """
    library = type(ffi.lib)
    lookup = library.__getattr__

    def find(self: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lookup(self, name)

    library.__getattr__ = find


_let_objects_be_asked()


class _Cache(FunctionCache):
    """What numba keeps of a compiled function: a cache that cannot be read or written costs time, not correctness."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with suppress(Exception):
            return super().load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(Exception):
            super().save_overload(sig, data)


def kernel(function: Function) -> Function:
    """Compile a function when it is first called."""
    # Numba renews its files one by one, by the time of change: under a name of their own, no two versions meet.
    function.__qualname__ += f"-{SOURCE}"
    compiled: Any = njit(nogil=True)(function)
    with suppress(RuntimeError, OSError):  # no folder can be written to
        compiled._cache = _Cache(function)
    return compiled


@_instruction
def _trailing_zeros(context: Any, word: Any) -> Any:
    """The number of zeros below the lowest bit that is set; of a word without one, its length."""
    return word(word), lambda _, builder, __, args: builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))


@_instruction
def _set_bits(context: Any, word: Any) -> Any:
    """The number of bits that are set."""
    return word(word), lambda _, builder, __, args: builder.ctpop(args[0])


@_instruction
def _as_float(context: Any, bits: Any) -> Any:
    """The fp32 number of these 32 bits."""
    return types.float32(types.uint32), lambda _, builder, __, args: builder.bitcast(args[0], ir.FloatType())


@_instruction
def _as_bits(context: Any, value: Any) -> Any:
    """The bits of an fp32 number."""
    return types.uint32(types.float32), lambda _, builder, __, args: builder.bitcast(args[0], ir.IntType(32))


@_inlined
def _sum(bits: Any, addend: Any) -> Any:
    """The bits of an fp32 number, given by its bits, plus another."""
    return _as_bits(np.float32(_as_float(np.uint32(bits)) + np.float32(addend)))


@_inlined
def _rounded(bits: Any) -> Any:
    """The bits of an fp32 number as bf16: to nearest, of a tie the even one; NaN stays NaN."""
    carry = np.uint32(np.uint32(0x7FFF) + (np.uint32(bits >> np.uint32(16)) & np.uint32(1)))
    nearest = np.uint16(np.uint32(bits + carry) >> np.uint32(16))
    is_nan = np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(0x7FC0) if is_nan else nearest


@kernel
def widen(bits: NDArray[np.uint16], out: NDArray[np.uint32]) -> None:
    """bf16 as fp32."""
    for i in range(len(bits)):
        out[i] = np.uint32(bits[i]) << np.uint32(16)


@kernel
def add_all(out: NDArray[Any], values: NDArray[np.float32], factor: np.float32) -> None:
    """Add factor · value to every entry; product and sum are each rounded to fp32."""
    if out.itemsize == 2:
        for i in range(len(values)):
            wide = np.uint32(np.uint32(out[i]) << np.uint32(16))
            out[i] = _rounded(_sum(wide, np.float32(factor * values[i])))
    else:
        for i in range(len(values)):
            out[i] = _sum(out[i], np.float32(factor * values[i]))


@kernel
def add_at(
    out: NDArray[Any], positions: NDArray[np.int32], values: NDArray[np.float32], factor: np.float32
) -> None:
    """As `add_all`, to the entries at these positions."""
    if out.itemsize == 2:
        for k in range(len(positions)):
            i = np.uint64(positions[k])
            wide = np.uint32(np.uint32(out[i]) << np.uint32(16))
            out[i] = _rounded(_sum(wide, np.float32(factor * values[k])))
    else:
        for k in range(len(positions)):
            i = np.uint64(positions[k])
            out[i] = _sum(out[i], np.float32(factor * values[k]))


@kernel
def subtract_at(
    plus: NDArray[Any], minus: NDArray[Any], positions: NDArray[np.int32], out: NDArray[np.float32]
) -> None:
    """The differences of the entries at these positions, in fp32."""
    shift = np.uint32(32 - 8 * plus.itemsize)
    for k in range(len(positions)):
        i = np.uint64(positions[k])
        more, less = np.uint32(np.uint32(plus[i]) << shift), np.uint32(np.uint32(minus[i]) << shift)
        out[k] = _as_float(more) - _as_float(less)


@kernel
def halve(
    bits: NDArray[np.uint32], upper: NDArray[np.uint16], lower: NDArray[np.uint16], longer: NDArray[np.uint8]
) -> int:
    """Take entries apart.

    Args:
        upper: takes their upper halves.
        lower: takes their lower halves that are not zero; it has room for one more.
        longer: takes, for each of them, whether its lower half is not zero.

    Returns:
        How many lower halves there are.
    """
    found = np.uint64(0)
    for k in range(len(bits)):
        entry = bits[k]
        is_long = np.uint8(np.uint16(entry) != np.uint16(0))
        upper[k] = np.uint16(entry >> np.uint32(16))
        lower[found] = np.uint16(entry)
        longer[k] = is_long
        found += np.uint64(is_long)
    return int(np.int64(found))


@kernel
def any_full_exponent(words: NDArray[np.uint64], mask: np.uint64, lowest: np.uint64, sign: np.uint64) -> bool:
    """Whether an entry of any word has an exponent of all ones.

    Args:
        mask: the exponents of the entries of a word.
        lowest: the lowest bits of these; to add it carries an exponent of ones into the sign.
        sign: the signs of the entries of a word.
    """
    carried = np.uint64(0)
    for i in range(len(words)):
        carried |= (words[i] & mask) + lowest
    return (carried & sign) != np.uint64(0)


@kernel
def bit_positions(words: NDArray[np.uint64], count: int, positions: NDArray[np.int32]) -> int:
    """Find the bits that are set among the first `count` of a mask in numpy's order (`np.packbits`).

    Args:
        positions: takes them; it has room for `SPARE` more than are expected.

    Returns:
        How many there are; −1 if they are more than expected.
    """
    found, expected = np.uint64(0), np.uint64(len(positions) - SPARE)
    for i in range(len(words)):
        word = words[i]
        # the first entry of a byte is its highest bit: put it lowest
        word = ((word >> np.uint64(1)) & _ODD) | ((word & _ODD) << np.uint64(1))
        word = ((word >> np.uint64(2)) & _PAIRS) | ((word & _PAIRS) << np.uint64(2))
        word = ((word >> np.uint64(4)) & _FOURS) | ((word & _FOURS) << np.uint64(4))
        if count - 64 * i < 64:
            word &= (_ONE << np.uint64(count - 64 * i)) - _ONE
        after = found + _set_bits(word)
        if after > expected:
            return -1
        while found < after:
            for j in range(SPARE):  # without a branch: the next ones go over those that are not set
                positions[found + np.uint64(j)] = np.int32(64 * i + np.int64(_trailing_zeros(word)))
                word &= word - _ONE
            found += np.uint64(SPARE)
        found = after
    return int(np.int64(found))


@kernel
def count_bits(mask: NDArray[np.uint8], count: int) -> int:
    """How many of the first `count` bits of a mask in numpy's order are set."""
    found, whole = np.uint64(0), count // 8
    for i in range(whole):
        found += np.uint64(_set_bits(mask[i]))
    if count % 8:
        found += np.uint64(_set_bits(np.uint8(mask[whole] >> np.uint8(8 - count % 8))))
    return int(np.int64(found))


@kernel
def random_words(key: np.uint64, out: NDArray[np.uint64]) -> None:
    """The first numbers of SplitMix64 from the state `key` (Steele, Lea, Flood 2014)."""
    for i in range(len(out)):
        z = key + np.uint64(i + 1) * _GAMMA
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out[i] = z ^ (z >> np.uint64(31))


@kernel
def draw(key: np.uint64, table: NDArray[np.int32], out: NDArray[np.float32]) -> int:
    """Choose an entry of the table by each 16 bits of the words of SplitMix64 from the state `key`.

    Returns:
        The sum of the squares of what was drawn.
    """
    square = np.int64(0)
    words = np.empty(_BLOCK, np.uint64)
    chosen = words.view(np.uint16)
    for first in range(0, len(out), len(chosen)):
        count = min(len(chosen), len(out) - first)
        random_words(key + np.uint64(first // 4) * _GAMMA, words[: (count + 3) // 4])
        for i in range(count):
            value = table[chosen[i]]
            out[first + i] = np.float32(value)
            square += np.int64(value) * np.int64(value)
    return int(square)


@kernel
def word_sums(words: NDArray[np.uint64], factors: NDArray[np.uint64], out: NDArray[np.uint64]) -> None:
    """Σ (w ⊕ (w ≫ 32)) · factor modulo 2⁶⁴ over the words w of each row."""
    for row in range(len(words)):
        total = np.uint64(0)
        for j in range(len(factors)):
            word = words[row, j]
            total += (word ^ (word >> np.uint64(32))) * factors[j]
        out[row] = total
