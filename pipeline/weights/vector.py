"""Task vectors: extract v = θ_GRPO − θ_SFT, add Σ α·v to a target, and variants of v.

Arithmetic is in fp32 from the donors' weights and rounded once, to the target's dtype (arXiv 2509.01363; task
arithmetic: arXiv 2212.04089). With no terms, or all α = 0, the target comes back bit for bit. Everything streams
in pieces, so that memory does not grow with the model, and `apply` on disk is bit-equal to `steered_tensors`.

    grpo, sft = Checkpoint.open("grpo"), Checkpoint.open("sft")
    extract(grpo, sft, Path("results/vectors/mine"))
    apply(Checkpoint.open("target"), [Term("results/vectors/mine", 1.0)], Path("steered"))

Addition and analogy (a + c − b) are several terms with their signs. A random control is a term with a seed.

A vector is a safetensors file with a JSON description under the metadata key `task_vector`, in one of two forms
that hold the same bits: dense (F32 tensors), or compact (one U8 tensor each: see `_pack`). A difference of heads is
stored only when one differs from its embedding; else a target's separate head takes the embedding's difference.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.weights import compatibility
from pipeline.weights.checkpoint import Checkpoint, layer_order
from pipeline.weights.compatibility import check_compatible as check_compatible
from pipeline.weights.fingerprint import Scan, cached_scan, fingerprint, in_parallel, one_thread, scan_tensor
from pipeline.weights.packed import pack, packed_limit, unpacked
from pipeline.weights.safetensors import (
    PIECE,
    TensorInfo,
    all_finite,
    encode_header,
    gather,
    pieces,
    read_header,
    write_at,
)

FILE = "vector.safetensors"


_TEXT_OR_NONE = (str, type(None))


_DONOR = {"source": str, "revision": _TEXT_OR_NONE, "fingerprint": str}


_PARTS: dict[str, Any] = {  # of a description, beside its form and shapes
    "identity": {
        "config": dict,
        "tokens": int,
        "token_ids": str,
        "special_tokens": dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), _TEXT_OR_NONE),
        "chat_template": _TEXT_OR_NONE,
    },
    "donors": {"grpo": _DONOR, "sft": _DONOR},
    "variants": list,
    "notes": list,
}


def _is_like(found: Any, expected: Any) -> bool:
    """Whether JSON data is of a type, or an object that has these entries."""
    if not isinstance(expected, dict):
        return isinstance(found, expected)
    if not isinstance(found, dict):
        return False
    return all(key in found and _is_like(found[key], expected[key]) for key in expected)


class Vector:
    """A vector's file: `path`, `description` (donors, identity, variants), `shapes` (name → shape)."""

    def __init__(self, path: Path, description: dict[str, Any], tensors: Mapping[str, TensorInfo]):
        self.path, self.description, self.tensors = path, description, tensors
        shapes = description["shapes"]
        self.shapes = {name: tuple(shapes[name]) for name in sorted(shapes, key=layer_order)}

    @classmethod
    def open(cls, path: str | Path) -> "Vector":
        """Opens a vector's file, or the one in a folder. Raises UserError when it is damaged or another."""
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        metadata, tensors = read_header(file)
        if "task_vector" not in metadata:
            raise UserError(f"{file} is not a task vector; make one with extract")
        try:
            vector = cls(file, json.loads(metadata["task_vector"]), tensors)
            fits = vector.shapes.keys() == tensors.keys() and all(map(vector._fits, tensors))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            fits = False
        if not fits:
            raise UserError(f"{file}: its tensors are not those of its description; extract it again")
        if lacking := [part for part in _PARTS if not _is_like(vector.description.get(part), _PARTS[part])]:
            raise UserError(f"{file}: its description lacks {', '.join(lacking)}; extract it again")
        return vector

    def _fits(self, name: str) -> bool:
        """Whether a stored tensor can be what the description says of it."""
        info, shape = self.tensors[name], self.shapes[name]
        if any(type(n) is not int or n < 0 for n in shape):
            return False
        if self.description["form"] == "dense":
            return (info.dtype, info.shape) == ("F32", shape)
        packs = self.description["form"] == "compact" and info.dtype == "U8"
        return packs and math.prod(shape) <= 8 * (info.end - info.start)  # a bit of the mask for each entry

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The entries of a tensor, flat, fp32, in pieces; the buffer is reused, and the caller may change it."""
        if self.description["form"] == "dense":
            return pieces(self.tensors[name])
        return unpacked(self.tensors[name], math.prod(self.shapes[name]))

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor in fp32."""
        return gather(self.pieces(name), self.shapes[name], torch.float32)

    @property
    def fingerprint(self) -> str:
        """sha256 of names, shapes and fp32 bytes: the same for the dense and the compact form of a vector."""
        shapes = {name: ("F32", shape) for name, shape in self.shapes.items()}
        return fingerprint(shapes, cached_scan([self.path], self._scan).digests)

    def _scan(self) -> Scan:
        with one_thread():
            return Scan({name: scan_tensor(self.pieces(name))[0] for name in self.shapes}, [])

    def check_donors(self, grpo: Checkpoint, sft: Checkpoint) -> None:
        """Raises UserError when the donors are not, or no longer, those that the vector was made from."""
        for role, donor in (("grpo", grpo), ("sft", sft)):
            expected = self.description["donors"][role]["fingerprint"]
            if donor.fingerprint != expected:
                raise UserError(
                    f"{donor.path} is not the {role} donor of {self.path}: expected fingerprint "
                    f"{expected[:12]}, found {donor.fingerprint[:12]}; extract the vector again"
                )


def extract(grpo: Checkpoint, sft: Checkpoint, out: Path, compact: bool = False) -> Path:
    """Writes v = θ_GRPO − θ_SFT in fp32 to `out`/vector.safetensors and returns that path.

    The same donors give the same bytes. Rows of padding that only one donor has are left out, and noted.
    Raises UserError when the donors do not fit each other, with one line for each problem.
    """
    problems, notes = compatibility.compare_checkpoints(sft, grpo)
    compatibility.refuse(problems)
    ours, theirs = compatibility.shapes(grpo, donors_head=True), compatibility.shapes(sft, donors_head=True)
    shapes = {
        name: min(grpo.resolve(name).shape, sft.resolve(name).shape)
        for name in sorted(ours | theirs, key=layer_order)
    }
    description = {
        "donors": {"grpo": provenance(grpo), "sft": provenance(sft)},
        "identity": compatibility.identity(grpo),
        "notes": notes,
        "variants": [],
    }

    def difference(name: str) -> Iterator[torch.Tensor]:
        entries = math.prod(shapes[name])
        wide = torch.empty(2, min(PIECE, entries))
        for plus, minus in zip(
            pieces(grpo.resolve(name), entries), pieces(sft.resolve(name), entries), strict=True
        ):
            a, b = wide[0, : len(plus)].copy_(plus), wide[1, : len(plus)].copy_(minus)
            yield a.sub_(b)

    return write_vector(out, description, shapes, difference, compact)


def compact(source: Vector, out: Path) -> Path:
    """Writes a vector in its compact form, which holds the same bits and is applied directly."""
    return write_vector(out, source.description, source.shapes, source.pieces, compact=True)


def provenance(checkpoint: Checkpoint) -> dict[str, str | None]:
    source = checkpoint.source if checkpoint.revision else Path(checkpoint.source).resolve().name
    return {"source": source, "revision": checkpoint.revision, "fingerprint": checkpoint.fingerprint}


def _check_holds_vector(path: Path) -> None:
    """Raise UserError unless the file `path` is a vector, or its folder holds nothing but a vector's companions."""
    out = path.parent
    if path.exists():
        Vector.open(path)
    elif out.exists() and (
        not out.is_dir() or any(not file.match("geometry-*.json") for file in _visible(out))
    ):
        raise UserError(f"{out} exists and holds something else than a vector; choose another folder")


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, without what is being written there."""
    return [file for file in folder.iterdir() if not file.name.startswith(".tmp-")]


def write_vector(
    out: Path,
    description: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    parts: Callable[[str], Iterator[torch.Tensor]],
    compact: bool,
) -> Path:
    path = (out / FILE).resolve()
    form = "compact" if compact else "dense"
    described = {
        **description,
        "schema": 1,
        "form": form,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
    }
    metadata = {"format": "pt", "task_vector": json.dumps(described, sort_keys=True)}

    def layout(sizes: Mapping[str, int]) -> dict[str, tuple[str, tuple[int, ...], int]]:
        if compact:
            return {name: ("U8", (size,), size) for name, size in sizes.items()}
        return {name: ("F32", shapes[name], size) for name, size in sizes.items()}

    def finite(name: str) -> Iterator[torch.Tensor]:
        for piece in parts(name):
            if not all_finite(piece):
                raise UserError(
                    f"the difference in {name} is NaN or infinite; use donors with finite weights"
                )
            yield piece

    # The compact form's sizes are known only at the end: the header's place is kept for the largest.
    sizes = {
        name: packed_limit(math.prod(shape)) if compact else 4 * math.prod(shape)
        for name, shape in shapes.items()
    }
    length = len(encode_header(metadata, layout(sizes)))
    with one_thread(), replacing(path, _check_holds_vector) as new:
        new.touch()
        if compact:
            end = length
            for name in shapes:
                start, end = end, write_at(new, end, (pack(piece) for piece in finite(name)))
                sizes[name] = end - start
        else:
            starts = dict(zip(shapes, itertools.accumulate(sizes.values(), initial=length), strict=False))
            in_parallel(
                lambda name: write_at(new, starts[name], finite(name)),
                sorted(sizes, key=lambda name: -sizes[name]),
            )
        with open(new, "r+b") as stream:
            stream.write(encode_header(metadata, layout(sizes), length))
    return path
