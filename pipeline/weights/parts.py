"""Parts of a vector: masks, trimming (TIES) and dropping (DARE).

    part = Part(modules=("mlp",), layers=(0, 13))
    check_mask(part, sizes, "the vector")
    derive(Vector.open("v"), part, Path("mlp"))

A part is a vector itself, of the same shapes and with zeros where it keeps nothing. A mask that keeps nothing, or that
names a module that the vector does not have, is refused.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.weights.description import Origin, PartSettings
from pipeline.weights.noise import generator
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

    def pieces(name: str) -> Iterator[torch.Tensor]:
        limit = _limit(source, name, part.trim) if part.trim is not None and part.keeps(name) else None
        for index, piece in enumerate(source.pieces(name)):
            if not part.keeps(name):
                piece.zero_()
            if limit is not None:
                magnitude = piece.abs().view(torch.int32)
                at_limit = magnitude == limit[0]
                kept = (magnitude > limit[0]) | (at_limit & (at_limit.cumsum(0) <= limit[1]))
                limit = limit[0], limit[1] - int(at_limit.sum())
                piece.masked_fill_(~kept, 0.0)  # a product would leave negative zeros
            if part.dare is not None:
                draws = generator("dare", part.seed, name, index).random(len(piece), np.float32)
                piece.masked_fill_(torch.from_numpy(draws >= part.dare), 0.0).div_(part.dare)
            yield piece

    return write_vector(out, origin, source.shapes, pieces, compact)


def _limit(source: Vector, name: str, share: float) -> tuple[int, int]:
    """The bits of the smallest magnitude that is kept, and how many entries with just that magnitude are.

    Radix selection: magnitudes of floats are ordered as their bits, so two histograms of 16 and 15 bits find the
    k-th largest without holding the tensor.
    """
    keep = int(share * math.prod(source.shapes[name]))
    upper = torch.zeros(1 << 16, dtype=torch.int64)
    for piece in source.pieces(name):
        upper += torch.bincount(piece.abs().view(torch.int32) >> 15, minlength=1 << 16)
    high, keep = _kth_bin(upper, keep)
    lower = torch.zeros(1 << 15, dtype=torch.int64)
    for piece in source.pieces(name):
        bits = piece.abs().view(torch.int32)
        lower += torch.bincount(bits[(bits >> 15) == high] & 0x7FFF, minlength=1 << 15)
    low, keep = _kth_bin(lower, keep)
    return (high << 15) | low, keep


def _kth_bin(histogram: torch.Tensor, k: int) -> tuple[int, int]:
    """The bin of the k-th largest element, and how many of that bin are among the k largest."""
    above = histogram.flip(0).cumsum(0)
    from_top = min(int(torch.searchsorted(above, k)), len(histogram) - 1)
    before = int(above[from_top - 1]) if from_top else 0
    return len(histogram) - 1 - from_top, k - before
