"""θ + Σ α·v of one tensor, piece by piece, in any order and by any thread.

    with TensorSum(info, name, [(0.5, vector.stored(name))]) as total:
        total.open()
        total.write(7, buffer)             # reads the eighth piece of θ into the buffer, and adds to it there

The sum is taken in fp32 and rounded once, to the tensor's dtype: products first, then their sum, then θ. Where a single
vector changes some entries of a piece, only those are read out and written back. Rows that a vector lacks, the padding
of a vocabulary, stay as they are. These are the host's loops; on a GPU pipeline/weights/device.py makes the same bits.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.weights.floats import BITS, Bits, add, all_finite, widened
from pipeline.weights.packed import DENSE, Changes, Layout, Packed
from pipeline.weights.safetensors import PIECE, TensorInfo, open_unchanged, read_bits


class Deltas(Protocol):
    """What α multiplies in one tensor."""

    numel: int

    def open(self, stack: ExitStack) -> None:
        """Open what is read; the stack closes it."""

    def piece(self, index: int) -> Changes:
        """The entries from `PIECE` · index; the caller may change them."""


class Stored:
    """The entries of a vector's tensor.

    Args:
        info: where it lies.
        numel: its entries.
        compact: whether it is packed.
    """

    def __init__(self, info: TensorInfo, numel: int, compact: bool) -> None:
        self.info, self.numel, self.compact = info, numel, compact

    def open(self, stack: ExitStack) -> None:
        self.descriptor = stack.enter_context(open_unchanged(self.info))
        self.packed = Packed(self.info, self.numel, self.descriptor) if self.compact else None

    def piece(self, index: int) -> Changes:
        if self.packed is not None:
            return self.packed.changes(index)
        values = np.empty(min(PIECE, self.numel - index * PIECE), np.float32)
        self.read(index, values.view(np.uint8))
        return Changes(None, values)

    def read(self, index: int, out: NDArray[np.uint8]) -> Layout:
        """Read a piece as it is stored, for another to unpack (pipeline/weights/packed.py, `Packed.read`)."""
        if self.packed is not None:
            return self.packed.read(index, out)
        layout = Layout.of(DENSE, 0, min(PIECE, self.numel - index * PIECE))
        os.preadv(self.descriptor, [out[: layout.size].data], self.info.start + 4 * PIECE * index)
        return layout


class TensorSum:
    """One tensor of a target with Σ α·v added: opened, written piece by piece, and closed by the end of its block.

    Args:
        info: where the target's tensor lies.
        name: for messages.
        terms: (α, what it multiplies).
        wide: leave the sum in float32, where it is not rounded to the target's dtype.

    Attributes:
        dtype: of the sum, as safetensors names it.
    """

    def __init__(
        self,
        info: TensorInfo,
        name: str,
        terms: Sequence[tuple[float, Deltas]],
        wide: bool = False,
    ) -> None:
        self.info, self.name, self.terms = info, name, terms
        self.dtype = "F32" if wide else info.dtype
        self.pieces = -(-info.numel // PIECE)
        self.stack = ExitStack()

    def open(self) -> None:
        """Open what is read.

        Raises:
            UserError: if a file is not what it was when its header was read, or a vector's pieces do not fit it.
        """
        with ExitStack() as stack:
            self.descriptor = stack.enter_context(open_unchanged(self.info))
            for _, deltas in self.terms:
                deltas.open(stack)
            self.stack = stack.pop_all()

    def close(self) -> None:
        """Close what was read, in the end or after a failure."""
        with suppress(UserError):
            self.stack.close()

    def __enter__(self) -> "TensorSum":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stack.__exit__(*exception)  # asks whether the files are what they were

    def write(self, index: int, out: Bits) -> None:
        """A piece of the sum.

        Args:
            out: takes the bits of the piece's entries in `dtype`.

        Raises:
            UserError: if an entry of it is not finite.
        """
        first = index * PIECE
        read = out if self.dtype == self.info.dtype else np.empty(len(out), BITS[self.info.dtype])
        read_bits(self.descriptor, self.info, first, read)
        if read is not out:
            out[:] = widened(read, self.info.dtype).view(np.uint32)
        if not any(first < deltas.numel for _, deltas in self.terms):
            return
        self._add_terms(index, out)
        if not all_finite(out, self.dtype):
            raise self.not_finite()

    def not_finite(self) -> UserError:
        """What refuses a sum of which an entry is NaN or infinite."""
        return UserError(
            f"{self.name} is NaN or infinite in {self.dtype} after the sum; use a smaller α or finite inputs"
        )

    def _add_terms(self, index: int, out: Bits) -> None:
        """Add the terms to a piece of the target; what is not finite then is refused by the caller."""
        first = index * PIECE
        found = [
            (alpha, deltas.piece(index), min(PIECE, deltas.numel - first))
            for alpha, deltas in self.terms
            if first < deltas.numel
        ]
        if len(found) == 1:
            ((alpha, changes, _),) = found
        else:
            changes, alpha = Changes(None, _total([(a, c.dense(count)) for a, c, count in found])), 1.0
        _add(out, self.dtype, changes, alpha)


def _add(out: Bits, dtype: str, changes: Changes, alpha: float) -> None:
    """Add α·δ to the entries that there are: a vector can have more rows than the target."""
    positions, values = changes.positions, changes.values
    if positions is None:
        add(out, dtype, values[: len(out)], alpha)
        return
    if len(positions) and positions[-1] >= len(out):
        positions = positions[: int(np.searchsorted(positions, len(out)))]
    add(out, dtype, values[: len(positions)], alpha, positions)


def _total(products: Sequence[tuple[float, NDArray[np.float32]]]) -> NDArray[np.float32]:
    """Σ α·δ in the order of the terms, as long as the longest."""
    total = np.zeros(max(len(values) for _, values in products), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for number, (alpha, values) in enumerate(products):
            product = np.multiply(values, np.float32(alpha), out=values)
            if number == 0:
                total[: len(product)] = product  # as it is: −0 + 0 would lose its sign
            else:
                total[: len(product)] += product
    return total
