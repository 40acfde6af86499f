"""The difference of two checkpoints' tensors in fp32, piece by piece, in any order and by any thread."""

from contextlib import ExitStack

import numpy as np

from pipeline.weights.floats import BITS, Bits, all_finite, widened
from pipeline.weights.packed import Changes
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
        positions = None
        if self.plus.dtype == self.minus.dtype and all_finite(minus, self.minus.dtype):
            # what has the same bits and is finite differs by 0
            differs = plus != minus
            if np.count_nonzero(differs) < FEW * len(differs):
                positions = np.flatnonzero(differs)
                plus, minus = plus[positions], minus[positions]
        values = widened(plus, self.plus.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what is not finite
            values -= widened(minus, self.minus.dtype)
        self.changed = self.changed or bool(values.any())
        return Changes(positions, values)

    def _read(self, which: int, info: TensorInfo, index: int) -> Bits:
        first = index * PIECE
        bits = np.empty(min(PIECE, self.numel - first), BITS[info.dtype])
        read_bits(self.descriptors[which], info, first, bits)
        return bits
