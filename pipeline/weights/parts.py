"""Parts of a vector: masks, trimming (TIES) and dropping (DARE)."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.weights.compatibility import check_compatible as check_compatible
from pipeline.weights.noise import generator
from pipeline.weights.vector import Vector, write_vector

PARTS_VERSION = 1  # in the key of every part: raise it when the same part would give other numbers


@dataclass(frozen=True)
class Part:
    """Which part of a vector is kept, in this order: a mask, then trimming, then dropping.

    modules: keep tensors with one of these components in their name, such as "mlp", "self_attn", "q_proj" or
        "embed_tokens" (the mask m of arXiv 2509.01363).
    layers: keep layers first to last, both included; tensors outside of layers are dropped.
    trim: keep this share of each tensor's entries, the largest by magnitude (as TIES does, arXiv 2306.01708).
    dare: keep each entry with this probability, drawn from `seed`, and divide it by it (arXiv 2311.03099).
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
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def check_mask(variant: Part, sizes: Mapping[str, int], where: str) -> None:
    """Raises UserError when the mask names a module that no tensor belongs to, or nothing of these tensors is kept.

    sizes: the entries of each tensor, by name.
    """
    split = [name.split(".") for name in sizes]
    modules = {part for parts in split for part in parts[:-1] if not part.isdigit()} - {"model", "layers"}
    its = f"of {where}; its modules are {', '.join(sorted(modules))}"
    for module in variant.modules or ():
        if not any(module in parts for parts in split):
            raise UserError(f"{variant}: '{module}' keeps no tensor {its}")
    if not any(variant.keeps(".".join(parts)) for parts in split):
        raise UserError(f"{variant} keeps no tensor {its}")
    most = max(size for name, size in sizes.items() if variant.keeps(name))
    if variant.trim is not None and int(variant.trim * most) == 0:
        raise UserError(
            f"{variant} keeps no entry of {where}, whose largest tensor has {most}; use a larger share"
        )


def derive(source: Vector, variant: Part, out: Path, compact: bool = True) -> Path:
    """Writes a variant of a vector, itself a vector, to `out`/vector.safetensors and returns that path.

    Raises UserError when nothing is kept.
    """
    sizes = {name: math.prod(shape) for name, shape in source.shapes.items()}
    check_mask(variant, sizes, str(source.path))
    used = {key: value for key, value in asdict(variant).items() if value is not None}
    description = {**source.description, "variants": [*source.description["variants"], used]}

    def parts(name: str) -> Iterator[torch.Tensor]:
        limit = (
            _limit(source, name, variant.trim) if variant.trim is not None and variant.keeps(name) else None
        )
        for index, piece in enumerate(source.pieces(name)):
            if not variant.keeps(name):
                piece.zero_()
            if limit is not None:
                magnitude = piece.abs().view(torch.int32)
                at_limit = magnitude == limit[0]
                kept = (magnitude > limit[0]) | (at_limit & (at_limit.cumsum(0) <= limit[1]))
                limit = limit[0], limit[1] - int(at_limit.sum())
                piece.masked_fill_(~kept, 0.0)  # a product would leave negative zeros
            if variant.dare is not None:
                draws = generator("dare", variant.seed, name, index).random(len(piece), np.float32)
                piece.masked_fill_(torch.from_numpy(draws >= variant.dare), 0.0).div_(variant.dare)
            yield piece

    return write_vector(out, description, source.shapes, parts, compact)


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
