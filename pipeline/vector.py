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

import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import compatibility
from pipeline.checkpoint import (
    DTYPES,
    EMBEDDING,
    HEAD,
    PIECE,
    Checkpoint,
    Scan,
    TensorInfo,
    all_finite,
    cached_scan,
    encode_header,
    fingerprint,
    gather,
    in_parallel,
    layer_order,
    one_thread,
    open_unchanged,
    pieces,
    raw_bytes,
    read_header,
    replacing,
    scan_tensor,
    write_at,
)
from pipeline.compatibility import check_compatible as check_compatible
from pipeline.errors import UserError

FILE = "vector.safetensors"
RECIPE = "steering.json"
# Versions, which keys hold: raise one when the same settings would give other numbers.
VARIANTS, NOISE = 1, 1


@dataclass(frozen=True)
class Term:
    """α times a vector (a file, or the folder that holds it); with a seed, α times noise in its place.

    The noise has the vector's norm in every tensor and depends on the seed and the tensor's name alone.
    """

    vector: str
    alpha: float
    random_seed: int | None = None


# --- the vector as a file

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
        return _unpacked(self.tensors[name], math.prod(self.shapes[name]))

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
        "donors": {"grpo": _provenance(grpo), "sft": _provenance(sft)},
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

    return _write(out, description, shapes, difference, compact)


def compact(source: Vector, out: Path) -> Path:
    """Writes a vector in its compact form, which holds the same bits and is applied directly."""
    return _write(out, source.description, source.shapes, source.pieces, compact=True)


def _provenance(checkpoint: Checkpoint) -> dict[str, str | None]:
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


def _write(
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
        name: _packed_limit(math.prod(shape)) if compact else 4 * math.prod(shape)
        for name, shape in shapes.items()
    }
    length = len(encode_header(metadata, layout(sizes)))
    with one_thread(), replacing(path, _check_holds_vector) as new:
        new.touch()
        if compact:
            end = length
            for name in shapes:
                start, end = end, write_at(new, end, (_pack(piece) for piece in finite(name)))
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


# --- the compact form
#
# A piece of up to PIECE entries is: the number of entries whose bits are not 0 and the number of those whose
# lower 16 bits are not 0 (two u4), the upper halves of the former and the lower halves of the latter (u2), and the
# bit masks of which entries they are, padded to 8 bytes. Differences of bf16 weights rarely need their lower half.
# A piece that would not be smaller is its fp32 entries, under the count _DENSE.

_DENSE = 0xFFFFFFFF


def _packed_limit(numel: int) -> int:
    return 8 * math.ceil(numel / PIECE) + 4 * numel


def _pack(piece: torch.Tensor) -> bytes:
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
        return np.array([_DENSE, 0], np.uint32).tobytes() + bits.tobytes()
    return np.array([len(values), np.count_nonzero(needed)], np.uint32).tobytes() + body


def _set_bits(mask: Any, count: int) -> Any:
    # As positions: numpy takes several times longer to index with a mask, or to search one that is not boolean.
    return np.flatnonzero(np.unpackbits(mask, count=count).view(bool))


def _unpacked(info: TensorInfo, numel: int) -> Iterator[torch.Tensor]:
    offset = info.start
    buffer = torch.empty(min(PIECE, numel))
    memory = bytearray(_packed_limit(len(buffer)))
    raw, view = np.frombuffer(memory, np.uint8), memoryview(memory)
    damaged = UserError(f"{info.file}: its entries cannot be unpacked; extract it again")
    with open_unchanged(info) as descriptor:
        for first in range(0, numel, PIECE):
            piece = buffer[: min(PIECE, numel - first)]
            bits = piece.numpy().view(np.uint32)
            os.preadv(descriptor, [view[:8]], offset)
            changed, needed = (int(count) for count in raw[:8].view(np.uint32))
            if changed == _DENSE:
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


# --- the random control


def _generator(purpose: str, seed: int, name: str, piece: int) -> np.random.Generator:
    """Independent numbers for each piece of each tensor, the same in whatever order they are asked for."""
    digest = hashlib.sha256(json.dumps([purpose, seed, name, piece]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _square(piece: torch.Tensor) -> float:
    return float((piece * piece).sum(dtype=torch.float64))


def _noise(vector: Vector, name: str, seed: int) -> Iterator[torch.Tensor]:
    """Gaussian noise in the vector's shape and with its norm.

    Each piece is scaled to its share of the norm, sqrt(entries of the piece / entries), so that one pass is
    enough: uniform on the sphere for a tensor of one piece; for larger ones the share would vary by 0.1 %.
    """
    numel = math.prod(vector.shapes[name])
    square = sum(_square(piece) for piece in vector.pieces(name))
    for index, first in enumerate(range(0, numel, PIECE)):
        count = min(PIECE, numel - first)
        noise = torch.from_numpy(_generator("noise", seed, name, index).standard_normal(count, np.float32))
        yield noise.mul_(math.sqrt(square * count / numel / _square(noise)))


# --- adding to a target


def steered_tensors(target: str, terms: Sequence[Term]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the target checkpoint (name, tensor in its dtype) with Σ α·v added, in layer order.

    Raises UserError when names or shapes do not fit; the full check is `check_compatible`.
    """
    checkpoint = Checkpoint.open(target)
    active = _active(terms)
    _check_names(checkpoint, [vector for _, vector in active])
    for name in sorted(checkpoint.tensors, key=layer_order):
        info = checkpoint.tensors[name]
        yield name, gather(_steered(info, name, active), info.shape, DTYPES[info.dtype])


def apply(target: Checkpoint, terms: Sequence[Term], out: Path, measured: str = "") -> Path:
    """Writes the target with Σ α·v added as a complete checkpoint in folder `out`, and returns it.

    Shards, their headers and all companions (configuration, tokenizer, templates) are the target's; README.md is
    a model card, which ends with `measured` (Markdown), and steering.json says the same as data. `out` appears by one
    rename when everything is on disk; links and `..` in it are followed first.
    Raises UserError when something does not fit, with one line for each problem, before any byte is written;
    and when `out` exists and is not an earlier result of this function, or holds what is read here.
    """
    out = out.resolve()
    read = {info.file.resolve().parent for info in target.tensors.values()} | {target.path.resolve()}
    read |= {Path(term.vector).resolve() for term in terms}
    if any(source == out or out in source.parents for source in read):
        raise UserError(f"{out} holds the target or a vector that is read here; choose another folder")
    described = recipe(target, terms)
    active = _active(terms)
    with one_thread(), replacing(out, _check_steered) as new:
        new.mkdir()
        _write_shards(new, target, active)
        for file in target.companions():
            shutil.copyfile(file, new / file.name)
        (new / RECIPE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        (new / "README.md").write_text(card(target, described) + measured, encoding="utf-8")
    return out


def _check_steered(out: Path) -> None:
    """Raise UserError unless `out` is an earlier result of `apply`, an empty folder, or not there."""
    if out.exists() and not (out / RECIPE).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and was not written by apply; choose another folder or remove it")


def recipe(target: Checkpoint, terms: Sequence[Term]) -> dict[str, Any]:
    """What a steered checkpoint is made of: target and terms by source, revision and fingerprint.

    Raises UserError when something does not fit, with one line for each problem.
    """
    vectors = [(term, Vector.open(term.vector)) for term in terms]
    problems = compatibility.content_problems(target)
    notes: list[str] = []
    for _, vector in vectors:
        compatibility.compare(
            f"target {target.source}", compatibility.identity(target), compatibility.shapes(target),
            f"vector {vector.path}", vector.description["identity"], vector.shapes, problems, notes,
        )  # fmt: skip
    compatibility.refuse(problems)
    return {
        "target": _provenance(target),
        "terms": [
            {
                "alpha": term.alpha,
                "random_seed": term.random_seed,
                **{key: vector.description[key] for key in ("donors", "variants", "notes")},
            }
            for term, vector in vectors
        ],
        "notes": list(dict.fromkeys(notes)),
    }


def _write_shards(out: Path, target: Checkpoint, active: list[tuple[Term, Vector]]) -> None:
    """Writes every tensor where the target's shards have it, several at a time."""

    def write(name: str) -> None:
        info = target.tensors[name]
        write_at(out / info.file.name, info.start, _steered(info, name, active))

    for shard in {info.file for info in target.tensors.values()}:
        with open(shard, "rb") as source:
            header = source.read(min(info.start for info in target.tensors.values() if info.file == shard))
        (out / shard.name).write_bytes(header)
    # The largest first, so that no core waits for another at the end.
    in_parallel(write, sorted(target.tensors, key=lambda name: -target.tensors[name].numel))


def _active(terms: Iterable[Term]) -> list[tuple[Term, Vector]]:
    for term in terms:
        if not math.isfinite(term.alpha):
            raise UserError(f"α is {term.alpha}; expected a finite number")
    return [(term, Vector.open(term.vector)) for term in terms if term.alpha != 0]


def _check_names(target: Checkpoint, vectors: Iterable[Vector]) -> None:
    shapes = compatibility.shapes(target)
    for vector in vectors:
        fits = shapes.keys() - {HEAD} == vector.shapes.keys() - {HEAD} and (
            HEAD in shapes or HEAD not in vector.shapes
        )
        for name in vector.shapes if fits else ():
            ours, theirs = shapes[name], vector.shapes[name]
            fits &= ours == theirs or (name in (EMBEDDING, HEAD) and ours[1:] == theirs[1:])
        if not fits:
            raise UserError(
                f"{vector.path} does not fit {target.path}: names or shapes differ; apply says which"
            )


def _steered(info: TensorInfo, name: str, active: list[tuple[Term, Vector]]) -> Iterator[torch.Tensor]:
    """The target's tensor in pieces with the terms added; rows of padding that a vector lacks stay."""
    sources = []
    for term, vector in active:
        own = EMBEDDING if name == HEAD and HEAD not in vector.shapes else name
        delta = vector.pieces(own) if term.random_seed is None else _noise(vector, own, term.random_seed)
        sources.append((term.alpha, delta))
    if not sources:
        yield from pieces(info)
        return
    total, wide = torch.empty(2, min(PIECE, info.numel))
    for piece in pieces(info):
        total.zero_()
        reach = 0
        for alpha, delta in sources:
            if (part := next(delta, None)) is not None:
                part = part[: len(piece)]
                # Product and sum apart: a fused multiply-add would round differently at the ends of pieces.
                total[: len(part)].add_(part.mul_(alpha))
                reach = max(reach, len(part))
        if reach:
            result = wide[:reach].copy_(piece[:reach]).add_(total[:reach])
            piece[:reach].copy_(result)
            if not all_finite(piece):
                raise UserError(
                    f"{name} is NaN or infinite in {info.dtype} after the sum; use a smaller α or finite inputs"
                )
        yield piece
    for _, delta in sources:
        next(delta, None)  # past the last piece, where the vector's file is checked once more


def card(target: Checkpoint, recipe: Mapping[str, Any]) -> str:
    """The model card of a steered checkpoint, from what `recipe` gives."""
    lines = ["---", "library_name: transformers", "tags: [task-arithmetic, merge]"]
    if target.revision:
        lines.append(f"base_model: {target.source}")
    lines += [
        "---",
        f"# {recipe['target']['source']} with task vectors added",
        "",
        "θ = θ_target + Σ α·v with v = θ_GRPO − θ_SFT, computed in fp32 and rounded once.",
        "Fingerprints are sha256 over names, dtypes, shapes and bytes of all tensors.",
        "",
        "| what | α | source | revision | fingerprint |",
        "|---|---|---|---|---|",
    ]

    def row(what: str, alpha: str, donor: Mapping[str, str | None]) -> str:
        return (
            f"| {what} | {alpha} | {donor['source']} | {donor['revision'] or '—'} | {donor['fingerprint']} |"
        )

    lines.append(row("target", "—", recipe["target"]))
    for number, term in enumerate(recipe["terms"], start=1):
        seed = term["random_seed"]
        kind = f"vector {number}" if seed is None else f"noise of vector {number}'s norm (seed {seed})"
        lines.append(f"| {kind} | {term['alpha']:g} | — | — | of its donors, below |")
        lines += [row(f"vector {number}: {role} donor", "", term["donors"][role]) for role in ("grpo", "sft")]
    notes = list(recipe["notes"])
    for number, term in enumerate(recipe["terms"], start=1):
        notes += [f"vector {number}: {note}" for note in term["notes"]]
        notes += [f"vector {number}: variant {json.dumps(variant)}" for variant in term["variants"]]
    if notes:
        lines += ["", "Notes:", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


# --- variants


@dataclass(frozen=True)
class Variant:
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


def check_mask(variant: Variant, sizes: Mapping[str, int], where: str) -> None:
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


def derive(source: Vector, variant: Variant, out: Path, compact: bool = True) -> Path:
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
                draws = _generator("dare", variant.seed, name, index).random(len(piece), np.float32)
                piece.masked_fill_(torch.from_numpy(draws >= variant.dare), 0.0).div_(variant.dare)
            yield piece

    return _write(out, description, source.shapes, parts, compact)


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
