"""θ + Σ α·v of one tensor, piece by piece, in any order and by any thread.

    with TensorSum(info, name, [(0.5, vector.stored(name))]) as total:
        total.open()
        total.write(7, buffer)             # reads the eighth piece of θ into the buffer, and adds to it there

The sum is taken in fp32 and rounded once, to the tensor's dtype: products first, then their sum, then θ. Where a single
vector changes some entries of a piece, only those are read out and written back. Rows that a vector lacks, the padding
of a vocabulary, stay as they are.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.weights.floats import BITS, NUMPY, Bits, Conversions, all_finite
from pipeline.weights.packed import Changes, Packed
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
        first = index * PIECE
        values = np.empty(min(PIECE, self.numel - first), np.float32)
        os.preadv(self.descriptor, [values.data], self.info.start + 4 * first)
        return Changes(None, values)


class TensorSum:
    """One tensor of a target with Σ α·v added: opened, written piece by piece, and closed by the end of its block.

    Args:
        info: where the target's tensor lies.
        name: for messages.
        terms: (α, what it multiplies).
        wide: leave the sum in float32, where it is not rounded to the target's dtype.
        conversions: torch's where torch is there anyway; the sum is the same.

    Attributes:
        dtype: of the sum, as safetensors names it.
    """

    def __init__(
        self,
        info: TensorInfo,
        name: str,
        terms: Sequence[tuple[float, Deltas]],
        wide: bool = False,
        conversions: Conversions = NUMPY,
    ) -> None:
        self.info, self.name, self.terms = info, name, terms
        self.dtype = "F32" if wide else info.dtype
        self.pieces = -(-info.numel // PIECE)
        self.widened, self.narrow = conversions
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
            out[:] = self.widened(read, self.info.dtype).view(np.uint32)
        if not any(first < deltas.numel for _, deltas in self.terms):
            return
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            self._add_terms(index, out)
        if not all_finite(out, self.dtype):
            raise UserError(
                f"{self.name} is NaN or infinite in {self.dtype} after the sum; use a smaller α or finite inputs"
            )

    def _add_terms(self, index: int, out: Bits) -> None:
        """Add the terms to a piece of the target."""
        first, found = index * PIECE, []
        for alpha, deltas in self.terms:
            if first < deltas.numel:
                changes = deltas.piece(index)
                # Product and sum apart: a fused multiply-add would round differently.
                np.multiply(changes.values, np.float32(alpha), out=changes.values)
                found.append((changes, min(PIECE, deltas.numel - first)))
        if len(found) == 1 and found[0][0].positions is not None:
            self._add_at(out, found[0][0].positions, found[0][0].values)
        elif found:
            self._add_all(out, [changes.dense(count) for changes, count in found])

    def _add_at(self, out: Bits, positions: NDArray[np.intp], products: NDArray[np.float32]) -> None:
        """Add to some entries; positions ascend, and those past the end of `out` are left out."""
        if len(positions) and positions[-1] >= len(out):
            kept = int(np.searchsorted(positions, len(out)))
            positions, products = positions[:kept], products[:kept]
        entries = out[positions]
        products += self.widened(entries, self.dtype)
        self.narrow(products, self.dtype, entries)
        out[positions] = entries

    def _add_all(self, out: Bits, products: Sequence[NDArray[np.float32]]) -> None:
        """Add α·δ of all terms, summed in their order, to the first entries: as many as the longest has."""
        length = min(len(out), max(map(len, products)))
        total, *more = (product[:length] for product in products)
        if len(total) < length:
            total = np.pad(total, (0, length - len(total)))
        for product in more:
            total[: len(product)] += product
        total += self.widened(out[:length], self.dtype)
        self.narrow(total, self.dtype, out[:length])
