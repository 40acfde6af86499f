"""The difference of two checkpoints' tensors in fp32, piece by piece, in any order and by any thread."""

from contextlib import ExitStack

import numpy as np

from pipeline.weights.floats import BITS, Bits, all_finite, subtracted, widened
from pipeline.weights.packed import Changes, set_bits
from pipeline.weights.safetensors import PIECE, TensorInfo, open_unchanged, read_bits

FEW = 0.5  # share of entries that differ, below which the others are left out


class Difference:
    """What is added to one tensor to make the other (pipeline/weights/sums.py, `Deltas`).

    Args:
        plus: the tensor that is made.
        minus: the tensor that is added to.
        numel: entries that both have.

    Attributes:
        changed: whether an entry of a piece that was asked for is not 0.
    """

    def __init__(self, plus: TensorInfo, minus: TensorInfo, numel: int) -> None:
        self.plus, self.minus, self.numel = plus, minus, numel
        self.changed = False

    def open(self, stack: ExitStack) -> None:
        self.descriptors = [stack.enter_context(open_unchanged(info)) for info in (self.plus, self.minus)]

    def piece(self, index: int) -> Changes:
        plus, minus = self._read(0, self.plus, index), self._read(1, self.minus, index)
        found = self._of_bits(plus, minus)
        if found is None:
            values = widened(plus, self.plus.dtype)
            with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what is not finite
                values -= widened(minus, self.minus.dtype)
            found = Changes(None, values)
        self.changed = self.changed or bool(found.values.any())
        return found

    def _of_bits(self, plus: Bits, minus: Bits) -> Changes | None:
        """The entries that do not have the same bits, if they are few; what has and is finite differs by 0."""
        dtype = self.minus.dtype
        if self.plus.dtype != dtype or not all_finite(minus, dtype):
            return None
        differs = plus != minus
        count = int(np.count_nonzero(differs))
        if count >= FEW * len(differs):
            return None
        mask = np.packbits(differs)
        positions = set_bits(mask, len(differs), count)
        return Changes(positions, subtracted(plus, minus, dtype, positions), mask)

    def _read(self, which: int, info: TensorInfo, index: int) -> Bits:
        first = index * PIECE
        bits = np.empty(min(PIECE, self.numel - first), BITS[info.dtype])
        read_bits(self.descriptors[which], info, first, bits)
        return bits
