"""Parts of a vector: masks, trimming (TIES) and dropping (DARE).

    part = Part(modules=("mlp",), layers=(0, 13))
    check_mask(part, sizes, "the vector")
    derive(Vector.open("v"), part, Path("mlp"))

A part is a vector itself, of the same shapes and with zeros where it keeps nothing. A mask that keeps nothing, or that
names a module that the vector does not have, is refused.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.weights.description import Origin, PartSettings
from pipeline.weights.noise import generator
from pipeline.weights.packed import Changes
from pipeline.weights.safetensors import PIECE
from pipeline.weights.vector import Vector, write_vector

PARTS_VERSION = 1  # in the key of every part: raise it when the same part would give other numbers


@dataclass(frozen=True)
class Part:
    """What is kept of a vector, in this order: a mask, then trimming, then dropping.

    Attributes:
        modules: keep tensors with one of these components in their name, such as "mlp", "self_attn", "q_proj" or
            "embed_tokens" (the mask m of arXiv 2509.01363).
        layers: keep layers first to last, both included; tensors outside of layers are dropped.
        trim: keep this share of each tensor's entries, the largest by magnitude (as TIES does, arXiv 2306.01708).
        dare: keep each entry with this probability, drawn from `seed`, and divide it by it (arXiv 2311.03099).

    Raises:
        UserError: if a share is not above 0 and at most 1.
    """

    modules: tuple[str, ...] | None = None
    layers: tuple[int, int] | None = None
    trim: float | None = None
    dare: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for what, share in (("trim", self.trim), ("dare", self.dare)):
            if share is not None and not 0 < share <= 1:
                raise UserError(
                    f"{what} is {share}; expected the share of entries to keep, above 0 and at most 1"
                )

    def __str__(self) -> str:
        """Its settings as in a configuration, such as `modules=[mlp] layers=[0,13]`."""
        lists = {"modules": self.modules, "layers": self.layers}
        shown = [f"{key}=[{','.join(map(str, value))}]" for key, value in lists.items() if value is not None]
        shown += [
            f"{key}={value:g}"
            for key, value in (("trim", self.trim), ("dare", self.dare))
            if value is not None
        ]
        return (
            " ".join([*shown, *([f"seed={self.seed}"] if self.dare is not None else [])])
            or "the whole vector"
        )

    def keeps(self, name: str) -> bool:
        """Whether the mask keeps the tensor."""
        parts = name.split(".")
        if self.modules is not None and not set(parts) & set(self.modules):
            return False
        if self.layers is None:
            return True
        layer = layer_of(name)
        return layer is not None and self.layers[0] <= layer <= self.layers[1]


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to; None outside of layers."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def check_mask(part: Part, sizes: Mapping[str, int], where: str) -> None:
    """Do nothing if the mask names modules that there are, and keeps something of these tensors.

    Args:
        sizes: the entries of each tensor, by name.
        where: whose tensors they are, for messages.

    Raises:
        UserError: if it does not.
    """
    split = [name.split(".") for name in sizes]
    modules = {word for words in split for word in words[:-1] if not word.isdecimal()} - {"model", "layers"}
    its = f"of {where}; its modules are {', '.join(sorted(modules))}"
    for module in part.modules or ():
        if not any(module in words for words in split):
            raise UserError(f"part {part}: '{module}' keeps no tensor {its}")
    last = max((layer for name in sizes if (layer := layer_of(name)) is not None), default=0)
    if part.layers is not None and part.layers[1] > last:
        raise UserError(
            f"part {part}: expected layers of 0 to {last}, as {where} has them, found {part.layers[1]}"
        )
    kept = [size for name, size in sizes.items() if part.keeps(name)]
    if not kept:
        raise UserError(f"part {part} keeps no tensor {its}, its layers 0 to {last}")
    if part.trim is not None and int(part.trim * max(kept)) == 0:
        raise UserError(
            f"part {part} keeps no entry of {where}, whose largest tensor has {max(kept)}; use a larger share"
        )


def derive(source: Vector, part: Part, out: Path, compact: bool = True) -> Path:
    """Writes a part of a vector, itself a vector, to `out`/vector.safetensors and returns that path.

    Raises:
        UserError: if nothing is kept, or `out` holds something else.
    """
    sizes = {name: math.prod(shape) for name, shape in source.shapes.items()}
    check_mask(part, sizes, str(source.path))
    described = source.description
    used = cast(PartSettings, {key: value for key, value in asdict(part).items() if value is not None})
    origin: Origin = {
        "donors": described["donors"],
        "identity": described["identity"],
        "notes": described["notes"],
        "parts": [*described["parts"], used],
    }

    return write_vector(
        out, origin, source.shapes, lambda name: _Kept(source, part, name, sizes[name]), compact
    )


class _Kept:
    """What a part keeps of one tensor (pipeline/weights/sums.py, `Deltas`)."""

    def __init__(self, source: Vector, part: Part, name: str, numel: int) -> None:
        self.source, self.part, self.name, self.numel = source, part, name, numel
        self.stored = source.stored(name)

    def open(self, stack: ExitStack) -> None:
        self.stored.open(stack)
        trim = self.part.trim
        self.kept: list[int] = []
        if trim is not None and self.part.keeps(self.name):
            self.limit, keep = _limit(self.source, self.name, trim)
            self.kept = list(_shared_out(keep, (_at(p, self.limit) for p in _bits(self.source, self.name))))

    def piece(self, index: int) -> Changes:
        piece = torch.from_numpy(self.stored.piece(index).dense(min(PIECE, self.numel - index * PIECE)))
        if not self.part.keeps(self.name):
            piece.zero_()
        elif self.kept:
            magnitude = piece.abs().view(torch.int32)
            at_limit = magnitude == self.limit
            kept = (magnitude > self.limit) | (at_limit & (at_limit.cumsum(0) <= self.kept[index]))
            piece.masked_fill_(~kept, 0.0)  # a product would leave negative zeros
        if self.part.dare is not None:
            draws = generator("dare", self.part.seed, self.name, index).random(len(piece), np.float32)
            piece.masked_fill_(torch.from_numpy(draws >= self.part.dare), 0.0).div_(self.part.dare)
        return Changes(None, piece.numpy())


def _bits(source: Vector, name: str) -> Iterator[torch.Tensor]:
    """The bits of the magnitudes of a tensor's entries, in pieces."""
    for piece in source.pieces(name):
        yield torch.from_numpy(piece).abs().view(torch.int32)


def _at(bits: torch.Tensor, limit: int) -> int:
    return int((bits == limit).sum())


def _shared_out(keep: int, found: Iterator[int]) -> Iterator[int]:
    """How many of `keep` each piece may keep, the first ones first, where it has so many."""
    for count in found:
        yield min(keep, count)
        keep -= min(keep, count)


def _limit(source: Vector, name: str, share: float) -> tuple[int, int]:
    """The bits of the smallest magnitude that is kept, and how many entries with just that magnitude are.

    Radix selection: magnitudes of floats are ordered as their bits, so two histograms of 16 and 15 bits find the
    k-th largest without holding the tensor.
    """
    keep = int(share * math.prod(source.shapes[name]))
    upper = torch.zeros(1 << 16, dtype=torch.int64)
    for bits in _bits(source, name):
        upper += torch.bincount(bits >> 15, minlength=1 << 16)
    high, keep = _kth_bin(upper, keep)
    lower = torch.zeros(1 << 15, dtype=torch.int64)
    for bits in _bits(source, name):
        lower += torch.bincount(bits[(bits >> 15) == high] & 0x7FFF, minlength=1 << 15)
    low, keep = _kth_bin(lower, keep)
    return (high << 15) | low, keep


def _kth_bin(histogram: torch.Tensor, k: int) -> tuple[int, int]:
    """The bin of the k-th largest element, and how many of that bin are among the k largest."""
    above = histogram.flip(0).cumsum(0)
    from_top = min(int(torch.searchsorted(above, k)), len(histogram) - 1)
    before = int(above[from_top - 1]) if from_top else 0
    return len(histogram) - 1 - from_top, k - before
