"""Safetensors files as streams: read a header, read and write tensors in pieces (format: the safetensors README).

    metadata, tensors = read_header(path)
    for piece in pieces(tensors["model.norm.weight"]):
        ...

Every header is checked before a byte behind it is used: offsets that fit the shapes and leave no gap, names that occur
once, sizes that the file has. A file that changes after it was opened, or while it is read, is an error and never a
wrong tensor. Memory does not grow with a tensor, and not with what a damaged header claims.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.files import open_regular
from pipeline.weights.floats import BITS, Bits

PIECE = 1 << 18
"""Entries handled at a time. The compact form and the random controls are defined by it: do not change it."""

_LONGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it
_WRITEBACK = 1 << 25  # bytes

ITEM_SIZES = {name: np.dtype(bits).itemsize for name, bits in BITS.items()} | {"U8": 1}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: bytes `start` to `end` of `file`, whose size and mtime (ns) at opening were `stamp`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    stamp: tuple[int, int]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def _stamp(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def read_header(path: Path) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Metadata and tensors of one safetensors file.

    Raises:
        UserError: if there is no such file, it is truncated or lists a tensor twice, or its offsets do not fit its
            shapes.
    """
    try:
        with open(open_regular(path), "rb") as stream:
            stamp = _stamp(stream.fileno())
            length = int.from_bytes(stream.read(8), "little")
            if stamp[0] < 8 or length > stamp[0] - 8:
                raise UserError(
                    f"{_damaged(path)}: {stamp[0]} bytes are too few for its header; fetch it again"
                )
            if length > _LONGEST_HEADER:
                raise UserError(
                    f"{_damaged(path)}: a header of {length:,} bytes, expected at most {_LONGEST_HEADER:,}; fetch it again"
                )
            raw = stream.read(length)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    metadata, tensors = _parse_header(path, raw, stamp)
    _check_layout(path, tensors, 8 + length, stamp[0])
    return metadata, tensors


def _parse_header(
    path: Path, raw: bytes, stamp: tuple[int, int]
) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            name = next(name for name, value in pairs if found[name] is not value)
            raise UserError(f"{path}: {name!r} is listed twice in the header; save the checkpoint again")
        return found

    try:
        header = json.loads(raw, object_pairs_hook=unique)
        metadata = header.pop("__metadata__", {})
        if not all(type(value) is str for value in metadata.values()):
            raise ValueError(metadata)
        tensors, begin = {}, 8 + len(raw)
        for name, entry in header.items():
            (start, end), shape = entry["data_offsets"], tuple(entry["shape"])
            if (
                type(entry["dtype"]) is not str
                or not are_sizes((start,))
                or not are_sizes((end,))
                or not are_sizes(shape)
            ):
                raise ValueError(entry)
            if not name.isprintable():  # it would be a line of its own in a message
                raise ValueError(name)
            tensors[name] = TensorInfo(path, entry["dtype"], shape, begin + start, begin + end, stamp)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{_damaged(path)}: its header cannot be read; fetch it again") from None
    return metadata, tensors


def are_sizes(numbers: tuple[Any, ...]) -> bool:
    """Whether these can be the sizes of a tensor, whose strides torch multiplies up even where one size is 0."""
    return all(type(n) is int and n >= 0 for n in numbers) and math.prod(n or 1 for n in numbers) < 1 << 63


def _check_layout(path: Path, tensors: Mapping[str, TensorInfo], begin: int, size: int) -> None:
    """Refuse tensors that do not lie one behind the other from the header to the end of the file."""
    end = begin
    for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
        if info.dtype not in ITEM_SIZES:
            raise UserError(f"{path}: {name} is {info.dtype}; expected one of {', '.join(BITS)}: convert it")
        if info.start != end or info.end - info.start != info.numel * ITEM_SIZES[info.dtype]:
            raise UserError(
                f"{path}: the offsets of {name} do not fit its shape {list(info.shape)}; fetch it again"
            )
        end = info.end
    if end != size:
        raise UserError(f"{_damaged(path)}: expected {end} bytes, found {size}; fetch it again")


def _damaged(path: Path) -> str:
    return f"{path} is truncated or not a safetensors file"


def pieces(info: TensorInfo, entries: int | None = None) -> Iterator[Bits]:
    """The bits of the first `entries` entries (default: all), flat, `PIECE` at a time, in one reused buffer.

    Raises:
        UserError: if the file changed after it was opened or while it was read.
    """
    numel = info.numel if entries is None else entries
    buffer = np.empty(min(PIECE, numel), BITS[info.dtype])
    with open_unchanged(info) as descriptor:
        for first in range(0, numel, PIECE):
            piece = buffer[: min(PIECE, numel - first)]
            read_bits(descriptor, info, first, piece)
            yield piece


def read_bits(descriptor: int, info: TensorInfo, first: int, out: Bits) -> None:
    """Read entries of a tensor from the entry `first` on, as many as `out` has."""
    os.preadv(descriptor, [raw_bytes(out)], info.start + first * out.itemsize)


@contextmanager
def open_unchanged(info: TensorInfo) -> Iterator[int]:
    """A descriptor of the tensor's file.

    Raises:
        UserError: if the file is not, or at the end of the block no longer, what it was when it was opened.
    """
    changed = UserError(
        f"{info.file} changed after it was opened; run again, and let nothing write to it meanwhile"
    )
    try:
        descriptor = open_regular(info.file)
    except FileNotFoundError:
        raise changed from None
    try:
        if _stamp(descriptor) != info.stamp:
            raise changed
        yield descriptor
        if _stamp(descriptor) != info.stamp:
            raise changed
    finally:
        os.close(descriptor)


def raw_bytes(array: NDArray[Any]) -> memoryview:
    """The array's memory as bytes, to read into or to write from."""
    return memoryview(array.view(np.uint8))  # type: ignore[arg-type]


def encode_header(
    metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, tuple[int, ...], int]], length: int = 0
) -> bytes:
    """A safetensors header for tensors (name → dtype, shape, bytes) in this order, padded to `length`."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded = encoded.ljust(max(length - 8, -(-len(encoded) // 8) * 8))
    return len(encoded).to_bytes(8, "little") + encoded


def write_at(path: Path, offset: int, parts: Iterable[NDArray[Any] | bytes]) -> int:
    """Writes parts one after the other into an existing file from `offset`, and returns where they end."""
    with open(path, "r+b") as stream:
        begun = stream.seek(offset)
        for part in parts:
            stream.write(part if isinstance(part, bytes) else raw_bytes(part))
            if stream.tell() - begun >= _WRITEBACK:
                begun = _begin_writeback(stream, begun)
        return _begin_writeback(stream, begun)


def _begin_writeback(stream: BinaryIO, start: int) -> int:
    """Lets the disk begin on what would else all wait for the sync at the end: a fifth of the time of apply."""
    stream.flush()
    os.posix_fadvise(stream.fileno(), start, stream.tell() - start, os.POSIX_FADV_DONTNEED)
    return stream.tell()
