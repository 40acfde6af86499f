"""The compact form of a vector: the bits of fp32 entries, without what is zero.

    write_at(path, offset, (pack(piece) for piece in pieces))
    for piece in unpacked(tensors["model.norm.weight"], entries):
        ...

A difference of two bf16 models is 0 in most entries and has 16 zero bits in most others. Each piece of `PIECE` entries
is packed by itself: two counts (changed entries; those whose lower half is not zero, both uint32), the upper halves of
the changed entries, the lower halves of those that have one, and a bit mask for each of the two, padded to 8 bytes. A
piece that would not become smaller is stored as it is, under the count `DENSE`. Unpacking gives the same bits, or an
error where counts, masks and lengths do not fit each other.
"""

import math
import os
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.weights.safetensors import PIECE, TensorInfo, open_unchanged, raw_bytes

DENSE = 0xFFFFFFFF  # in place of the count: the piece is stored as it is


def packed_limit(numel: int) -> int:
    """The most bytes that so many entries can take when they are packed."""
    return 8 * math.ceil(numel / PIECE) + 4 * numel


def pack(piece: torch.Tensor) -> bytes:
    """A piece of fp32 entries as bytes, a multiple of 8."""
    bits = piece.numpy().view(np.uint32)
    changed = bits != 0
    values = bits[np.flatnonzero(changed)]  # faster than the mask itself
    lower = values.astype(np.uint16)
    needed = lower != 0
    body = b"".join(
        (
            (values >> 16).astype(np.uint16).tobytes(),
            lower[needed].tobytes(),
            np.packbits(changed).tobytes(),
            np.packbits(needed).tobytes(),
        )
    )
    body += bytes(-len(body) % 8)
    if len(body) >= bits.nbytes:
        return np.array([DENSE, 0], np.uint32).tobytes() + bits.tobytes()
    return np.array([len(values), np.count_nonzero(needed)], np.uint32).tobytes() + body


def _set_bits(mask: NDArray[np.uint8], count: int) -> NDArray[np.intp]:
    """The positions of the bits that are set among the first `count`."""
    # As positions: numpy takes several times longer to index with a mask, or to search one that is not boolean.
    return np.flatnonzero(np.unpackbits(mask, count=count).view(bool))


def unpacked(info: TensorInfo, numel: int) -> Iterator[torch.Tensor]:
    """The entries of a packed tensor, flat, fp32, `PIECE` at a time, in one reused buffer.

    Raises:
        UserError: if the bytes are not what `pack` makes of so many entries, or the file changed.
    """
    offset = info.start
    buffer = torch.empty(min(PIECE, numel))
    memory = bytearray(packed_limit(len(buffer)))
    raw, view = np.frombuffer(memory, np.uint8), memoryview(memory)
    damaged = UserError(f"{info.file}: its entries cannot be unpacked; extract it again")
    with open_unchanged(info) as descriptor:
        for first in range(0, numel, PIECE):
            piece = buffer[: min(PIECE, numel - first)]
            bits = piece.numpy().view(np.uint32)
            os.preadv(descriptor, [view[:8]], offset)
            changed, needed = (int(count) for count in raw[:8].view(np.uint32))
            if changed == DENSE:
                os.preadv(descriptor, [raw_bytes(piece)], offset + 8)
                offset += 8 + bits.nbytes
                if offset > info.end:
                    raise damaged
                yield piece
                continue
            ends = np.cumsum([2 * changed, 2 * needed, -(-len(bits) // 8), -(-changed // 8)])
            size = -(-int(ends[-1]) // 8) * 8
            if size >= bits.nbytes or offset + 8 + size > info.end:
                raise damaged
            os.preadv(descriptor, [view[:size]], offset + 8)
            offset += 8 + size
            values = raw[: ends[0]].view(np.uint16).astype(np.uint32) << 16
            entries = _set_bits(raw[ends[1] : ends[2]], len(bits))
            longer = _set_bits(raw[ends[2] : ends[3]], changed)
            if len(entries) != changed or len(longer) != needed:
                raise damaged
            if needed:
                values[longer] |= raw[ends[0] : ends[1]].view(np.uint16)
            bits[:] = 0
            bits[entries] = values
            yield piece
        if offset != info.end:
            raise damaged
