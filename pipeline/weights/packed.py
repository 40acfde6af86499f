"""The compact form of a vector: the bits of fp32 entries, without what is zero.

    write_at(path, offset, (pack(changes, entries) for changes, entries in pieces))
    for piece in unpacked(tensors["model.norm.weight"], entries):
        ...
    with open_unchanged(info) as descriptor:
        packed = Packed(info, entries, descriptor)
        changes = packed.changes(7)               # of the eighth piece alone, in any order, by any thread

A difference of two bf16 models is 0 in most entries and has 16 zero bits in most others. Each piece of `PIECE` entries
is packed by itself: two counts (changed entries; those whose lower half is not zero, both uint32), the upper halves of
the changed entries, the lower halves of those that have one, and a bit mask for each of the two, padded to 8 bytes. A
piece that would not become smaller is stored as it is, under the count `DENSE`. Unpacking gives the same bits, or an
error where counts, masks and lengths do not fit each other.
"""

import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.weights.floats import widened
from pipeline.weights.safetensors import PIECE, TensorInfo, open_unchanged

DENSE = 0xFFFFFFFF  # in place of the count: the piece is stored as it is


class Changes(NamedTuple):
    """What a piece adds: fp32 values, and the positions of their entries; None where all entries have one, in order.

    `mask` has the bits of these positions set, where whoever made the piece had it.
    """

    positions: NDArray[np.int32] | None
    values: NDArray[np.float32]
    mask: NDArray[np.uint8] | None = None

    def dense(self, count: int) -> NDArray[np.float32]:
        """All `count` entries of the piece."""
        if self.positions is None:
            return self.values
        entries = np.zeros(count, np.float32)
        entries[self.positions] = self.values
        return entries

    def filled(self, count: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """The values of which not all bits are zero, and the mask of their positions in a piece of `count` entries."""
        bits = self.values.view(np.uint32)
        entries = int(np.count_nonzero(bits))
        if entries == len(bits) and self.mask is not None:
            return self.values, self.mask
        where = np.packbits(bits != 0)
        values = self.values.take(set_bits(where, len(bits), entries))
        if self.positions is None:
            return values, where
        changed = np.zeros(count, bool)
        changed[self.positions] = bits != 0
        return values, np.packbits(changed)


def packed_limit(numel: int) -> int:
    """The most bytes that so many entries can take when they are packed."""
    return 8 * math.ceil(numel / PIECE) + 4 * numel


def pack(piece: Changes, count: int) -> bytes:
    """A piece of `count` entries as bytes, a multiple of 8."""
    from pipeline.weights import kernels

    values, changed = piece.filled(count)
    most = len(values)
    upper, lower, longer = np.empty(most, np.uint16), np.empty(most + 1, np.uint16), np.empty(most, np.uint8)
    needed = kernels.halve(values.view(np.uint32), upper, lower, longer)
    size = Layout.of(most, needed, count).size
    if size >= 4 * count:
        return np.array([DENSE, 0], np.uint32).tobytes() + piece.dense(count).tobytes()
    parts = (np.array([most, needed], np.uint32), upper, lower[:needed], changed, np.packbits(longer))
    return b"".join(part.tobytes() for part in parts).ljust(8 + size, b"\0")


class Layout(NamedTuple):
    """Where the parts of a packed piece end, in bytes behind its two counts; `size` is that of all, padded."""

    upper: int
    lower: int
    changed: int
    needed: int
    size: int

    @property
    def is_dense(self) -> bool:
        """Whether the piece is stored as it is: what is packed has a mask."""
        return not self.changed

    @classmethod
    def of(cls, changed: int, needed: int, count: int) -> "Layout":
        """That of a piece of `count` entries with these counts."""
        if changed == DENSE:
            return cls(0, 0, 0, 0, 4 * count)
        upper, lower = 2 * changed, 2 * (changed + needed)
        mask = lower + -(-count // 8)
        end = mask + -(-changed // 8)
        return cls(upper, lower, mask, end, -(-end // 8) * 8)


class Packed:
    """The pieces of a packed tensor, in any order.

    Args:
        info: where the tensor lies.
        numel: its entries.
        descriptor: of its file.

    Raises:
        UserError: if the pieces do not fit the tensor's bytes.
    """

    def __init__(self, info: TensorInfo, numel: int, descriptor: int) -> None:
        self.info, self.numel, self.descriptor = info, numel, descriptor
        self.starts: list[int] = []
        offset = info.start
        for index in range(-(-numel // PIECE)):
            self.starts.append(offset)
            changed, needed = self._counts(offset)
            count = self._count(index)
            size = Layout.of(changed, needed, count).size
            offset += 8 + size
            if offset > info.end or (changed != DENSE and size >= 4 * count):
                raise self._damaged()
        if offset != info.end:
            raise self._damaged()

    def changes(self, index: int) -> Changes:
        """A piece's entries that are not zero.

        Raises:
            UserError: if its bytes are not what `pack` makes.
        """
        count, layout = self._count(index), self._layout(index)
        raw = np.empty(layout.size, np.uint8)
        os.preadv(self.descriptor, [raw.data], self.starts[index] + 8)
        if layout.is_dense:
            return Changes(None, raw.view(np.float32))
        bits = widened(raw[: layout.upper].view(np.uint16), "BF16").view(np.uint32)
        lower = raw[layout.upper : layout.lower].view(np.uint16)
        try:
            positions = set_bits(raw[layout.lower : layout.changed], count, len(bits))
            longer = set_bits(raw[layout.changed : layout.needed], len(bits), len(lower))
        except ValueError:
            raise self._damaged() from None
        if len(lower):
            bits[longer] |= lower
        return Changes(positions, bits.view(np.float32))

    def read(self, index: int, out: NDArray[np.uint8]) -> Layout:
        """Read a piece as it is stored, for another to unpack; `out` has room for its entries in fp32.

        Returns:
            Where the piece's parts are in `out`.

        Raises:
            UserError: if its bytes are not what `pack` makes.
        """
        from pipeline.weights import kernels

        count, layout = self._count(index), self._layout(index)
        if layout.size > len(out):  # the file has changed since its pieces were found
            raise self._damaged()
        os.preadv(self.descriptor, [out[: layout.size].data], self.starts[index] + 8)
        if not layout.is_dense:
            changed, needed = layout.upper // 2, (layout.lower - layout.upper) // 2
            listed = kernels.count_bits(out[layout.lower : layout.changed], count)
            if (
                listed != changed
                or kernels.count_bits(out[layout.changed : layout.needed], changed) != needed
            ):
                raise self._damaged()
        return layout

    def _layout(self, index: int) -> Layout:
        return Layout.of(*self._counts(self.starts[index]), self._count(index))

    def _counts(self, offset: int) -> tuple[int, int]:
        counts = np.frombuffer(os.pread(self.descriptor, 8, offset), np.uint32)
        if len(counts) < 2:
            raise self._damaged()
        return int(counts[0]), int(counts[1])

    def _count(self, index: int) -> int:
        return min(PIECE, self.numel - index * PIECE)

    def _damaged(self) -> UserError:
        return UserError(f"{self.info.file}: its entries cannot be unpacked; extract it again")


def set_bits(mask: NDArray[np.uint8], count: int, expected: int) -> NDArray[np.int32]:
    """The positions of the bits that are set among the first `count`.

    Raises:
        ValueError: if they are not so many as expected.
    """
    from pipeline.weights import kernels

    words = np.zeros(-(-len(mask) // 8), np.uint64)
    words.view(np.uint8)[: len(mask)] = mask
    positions = np.empty(expected + kernels.SPARE, np.int32)
    if kernels.bit_positions(words, count, positions) != expected:
        raise ValueError(f"expected {expected} bits")
    return positions[:expected]


def unpacked(info: TensorInfo, numel: int) -> Iterator[NDArray[np.float32]]:
    """The entries of a packed tensor, flat, fp32, `PIECE` at a time; the caller may change them.

    Raises:
        UserError: if the bytes are not what `pack` makes of so many entries, or the file changed.
    """
    with open_unchanged(info) as descriptor:
        packed = Packed(info, numel, descriptor)
        for index in range(len(packed.starts)):
            yield packed.changes(index).dense(min(PIECE, numel - index * PIECE))
