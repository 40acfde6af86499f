"""The compact form of a vector."""

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.weights.compatibility import check_compatible as check_compatible
from pipeline.weights.safetensors import PIECE, TensorInfo, open_unchanged, raw_bytes

DENSE = 0xFFFFFFFF


def packed_limit(numel: int) -> int:
    return 8 * math.ceil(numel / PIECE) + 4 * numel


def pack(piece: torch.Tensor) -> bytes:
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


def _set_bits(mask: Any, count: int) -> Any:
    # As positions: numpy takes several times longer to index with a mask, or to search one that is not boolean.
    return np.flatnonzero(np.unpackbits(mask, count=count).view(bool))


def unpacked(info: TensorInfo, numel: int) -> Iterator[torch.Tensor]:
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
