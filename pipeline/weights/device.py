"""θ + Σ α·v in torch's operations, on the device of a live model: the host only reads files and hands their bytes over.

    for name, tensor in device_sums(torch.device("cuda"), totals, pool):
        ...

Every bit is what the host's loops make (pipeline/weights/sums.py, kernels.py): product, sum and rounding are operations of
their own, which torch never fuses, and the noise is counted in whole numbers. Threads read ahead into a few slots of
page-locked memory; vectors cross the bus as they are packed, and are unpacked on the device. So the device needs room for
the tensor in hand and some tens of MB.

All of it runs on the caller's current stream, on which the tensors can be used at once.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from pipeline.weights.floats import BITS
from pipeline.weights.noise import Noise, normal_values
from pipeline.weights.packed import Layout
from pipeline.weights.safetensors import ITEM_SIZES, PIECE, read_bits
from pipeline.weights.sums import Stored, TensorSum
from pipeline.weights.tensors import DTYPES
from pipeline.weights.threads import in_order

TOGETHER = 4  # pieces of a tensor that are read and copied in one go
SLOTS = 8  # of these goes, before they are summed
ALIGNMENT = 8  # bytes


class Slot:
    """Host memory that is read into and copied from; page-locked where a CUDA device copies it by itself."""

    def __init__(self, device: torch.device, size: int) -> None:
        is_cuda = device.type == "cuda"
        self.device = device
        self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=is_cuda)
        self.copied = torch.cuda.Event(blocking=True) if is_cuda else None  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Return when its last copy is done, and it may be written to."""
        if self.copied is not None:
            self.copied.synchronize()

    def on_device(self, size: int) -> torch.Tensor:
        """Its first bytes on the device: without CUDA they may be the slot's own memory."""
        staged = self.memory[:size].to(self.device, non_blocking=True)
        if self.copied is not None:
            self.copied.record(torch.cuda.current_stream(self.device))
        return staged


class Part(NamedTuple):
    """Where in a slot a piece of a vector starts, and how it lies there."""

    start: int
    layout: Layout


class Batch(NamedTuple):
    """Some pieces of a tensor and of the vectors that are added to it, as they are stored."""

    total: TensorSum
    pieces: range
    slot: Slot
    size: int  # bytes in the slot
    parts: dict[tuple[int, int], Part]  # (piece, term) → where it is; noise has none


def device_sums(
    device: torch.device, totals: Iterable[TensorSum], pool: Executor
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every sum (name, tensor on the device), in order.

    Args:
        totals: sums that are not open yet.
        pool: threads that read.

    Raises:
        UserError: if a sum is not finite, or a file is damaged or changes meanwhile.
    """
    totals = list(totals)
    size = max(map(_most, totals), default=0)
    slots = itertools.cycle([Slot(device, size) for _ in range(SLOTS)])
    operations, making = _Operations(device), None
    with ExitStack() as opened:

        def jobs() -> Iterator[Callable[[], Batch]]:
            for total in totals:
                total.open()
                opened.callback(total.close)
                for first in range(0, max(1, total.pieces), TOGETHER):
                    yield partial(
                        _read, total, range(first, min(first + TOGETHER, total.pieces)), next(slots)
                    )

        # The slot of the batch in hand is the next to be read into, once that batch has been taken.
        with closing(in_order(jobs(), pool, SLOTS - 1)) as batches:
            for batch in batches:
                making = making or _Making(batch.total, operations)
                making.add(batch)
                if batch.pieces.stop == batch.total.pieces:
                    yield making.result()
                    making = None


def _most(total: TensorSum) -> int:
    """The most bytes that a batch of this sum can have."""
    together = TOGETHER * PIECE
    stored = [deltas.numel for _, deltas in total.terms if isinstance(deltas, Stored)]
    size = ITEM_SIZES[total.info.dtype] * min(together, total.info.numel)
    return size + sum(4 * min(together, numel) + ALIGNMENT * TOGETHER for numel in stored)


def _read(total: TensorSum, pieces: range, slot: Slot) -> Batch:
    slot.wait()
    memory, info = slot.memory.numpy(), total.info
    first, last = (min(index * PIECE, info.numel) for index in (pieces.start, pieces.stop))
    size = (last - first) * ITEM_SIZES[info.dtype]
    read_bits(total.descriptor, info, first, memory[:size].view(BITS[info.dtype]))
    parts: dict[tuple[int, int], Part] = {}
    for index, (number, (_, deltas)) in itertools.product(pieces, enumerate(total.terms)):
        if isinstance(deltas, Stored) and index * PIECE < deltas.numel:
            start = -(-size // ALIGNMENT) * ALIGNMENT
            room = 4 * min(PIECE, deltas.numel - index * PIECE)
            layout = deltas.read(index, memory[start : start + room])
            parts[index, number] = Part(start, layout)
            size = start + layout.size
    return Batch(total, pieces, slot, size, parts)


class _Making:
    """A tensor that is being made on the device."""

    def __init__(self, total: TensorSum, operations: "_Operations") -> None:
        self.total, self.operations = total, operations
        self.tensor = torch.empty(total.info.numel, dtype=DTYPES[total.dtype], device=operations.device)
        self.finite = torch.ones((), dtype=torch.bool, device=operations.device)

    def add(self, batch: Batch) -> None:
        """Make some pieces; where no vector reaches they stay as they are, whatever they hold."""
        info, staged = self.total.info, batch.slot.on_device(batch.size)
        first, last = (min(index * PIECE, info.numel) for index in (batch.pieces.start, batch.pieces.stop))
        out = self.tensor[first:last]
        out.copy_(staged[: (last - first) * ITEM_SIZES[info.dtype]].view(DTYPES[info.dtype]))
        end = max((deltas.numel for _, deltas in self.total.terms), default=0)
        reached = [index for index in batch.pieces if index * PIECE < end]
        if not reached:
            return
        out = out[: len(reached) * PIECE]
        sums = out.float()
        for number, index in enumerate(reached):
            self._add_terms(sums[number * PIECE : (number + 1) * PIECE], batch, index, staged)
        out.copy_(sums)
        self.finite &= out.isfinite().all()

    def _add_terms(self, piece: torch.Tensor, batch: Batch, index: int, staged: torch.Tensor) -> None:
        """Add the terms to a piece in fp32: products first, then their sum in the order of the terms, then θ."""
        products: list[torch.Tensor] = []
        changed: torch.Tensor | None = None
        for number, (alpha, deltas) in enumerate(self.total.terms):
            if index * PIECE >= deltas.numel:
                continue
            if isinstance(deltas, Noise):
                values, changed = self.operations.noise(*deltas.stream(index)), None
            else:
                start, layout = batch.parts[index, number]
                count = min(PIECE, deltas.numel - index * PIECE)
                values, changed = self.operations.unpacked(staged[start:], layout, count)
            products.append(values * float(np.float32(alpha)))
        total = products[0]
        if len(products) > 1:
            changed = None
            total = torch.nn.functional.pad(total, (0, max(map(len, products)) - len(total)))
            for product in products[1:]:
                total[: len(product)] += product
        total = total[: len(piece)]
        piece = piece[: len(total)]
        added = piece + total
        piece.copy_(added if changed is None else torch.where(changed[: len(piece)], added, piece))

    def result(self) -> tuple[str, torch.Tensor]:
        """The finished tensor, once it has been found finite, and its files as they were."""
        with self.total:
            if not self.finite.item():
                raise self.total.not_finite()
        return self.total.name, self.tensor.view(self.total.info.shape)


class _Operations:
    """What the kernels do, in torch's operations, with their constants on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.places = torch.tensor(
            [1 << place for place in reversed(range(8))], dtype=torch.uint8, device=device
        )
        self.counted = torch.arange(1, PIECE // 4 + 1, device=device) * _signed(0x9E3779B97F4A7C15)
        self.normal = torch.from_numpy(normal_values()).to(device, torch.int64)

    def unpacked(
        self, raw: torch.Tensor, layout: Layout, count: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A piece of a vector.

        Returns:
            All its entries in fp32, and which of them are added to; None is all.
        """
        if layout.is_dense:
            return raw[: layout.size].view(torch.float32), None
        bits = raw[: layout.upper].view(torch.int16).to(torch.int32) << 16
        lower = raw[layout.upper : layout.lower].view(torch.int16).to(torch.int32) & 0xFFFF
        longer = self._set(raw[layout.changed : layout.needed], len(bits))
        bits |= torch.zeros_like(bits).masked_scatter_(longer, lower)
        changed = self._set(raw[layout.lower : layout.changed], count)
        entries = torch.zeros(count, dtype=torch.int32, device=self.device).masked_scatter_(changed, bits)
        return entries.view(torch.float32), changed

    def _set(self, mask: torch.Tensor, count: int) -> torch.Tensor:
        """Whether each of the first `count` bits of a mask in numpy's order (`np.packbits`) is set."""
        return (mask[:, None] & self.places).ne(0).view(-1)[:count]

    def noise(self, key: int, count: int, share: float) -> torch.Tensor:
        """`count` normal numbers from the stream of `key`, scaled so that their squares come to `share`."""
        words = self.counted[: -(-count // 4)] + _signed(key)
        words = (words ^ _shifted(words, 30)) * _signed(0xBF58476D1CE4E5B9)
        words = (words ^ _shifted(words, 27)) * _signed(0x94D049BB133111EB)
        words ^= _shifted(words, 31)
        chosen = words.view(torch.int16)[:count].to(torch.int32) & 0xFFFF
        drawn = self.normal.index_select(0, chosen)
        square = drawn.square().sum()  # below 2⁵³: exact, and the same in any order
        # Both on the device: torch multiplies by the inverse of what it divides by on the host.
        wide = torch.full((), share, dtype=torch.float64, device=self.device)
        return drawn.float() * (wide / square.double()).sqrt().float()


def _signed(word: int) -> int:
    """The whole number that the 64 bits of a word are in two's complement: torch has no operations on unsigned ones."""
    return word - (1 << 64) if word >> 63 else word


def _shifted(words: torch.Tensor, places: int) -> torch.Tensor:
    """The words shifted to the right, filled up with zeros."""
    return (words >> places) & ((1 << (64 - places)) - 1)
