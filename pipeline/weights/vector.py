"""Task vectors: extract v = θ_GRPO − θ_SFT to a file, and read it (arXiv 2509.01363).

    grpo, sft = Checkpoint.open("grpo"), Checkpoint.open("sft")
    path = extract(grpo, sft, Path("results/vectors/mine"))
    Vector.open(path).read("model.norm.weight")

A vector is a safetensors file with a JSON description (pipeline/weights/description.py), in one of two forms that hold
the same bits: dense (F32 tensors), or compact (one U8 tensor each: pipeline/weights/packed.py). Differences are taken
in fp32. A difference of heads is stored only when one differs from its embedding; else a target's separate head takes
the embedding's difference. Everything streams in pieces, so that memory does not grow with the model.

Donors that do not fit each other, that are the same, or are not finite are refused, and nothing is written; a file that
is not a whole vector is refused when it is opened.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.files import SCRATCH, replacing, resolved
from pipeline.weights import compatibility
from pipeline.weights.architecture import EMBEDDING, HEAD
from pipeline.weights.checkpoint import Checkpoint, layer_order
from pipeline.weights.description import (
    SCHEMA,
    Description,
    Donor,
    Origin,
    read_description,
    write_description,
)
from pipeline.weights.difference import Difference
from pipeline.weights.fingerprint import Scan, cached_scan, fingerprint, scan_tensor
from pipeline.weights.floats import all_finite
from pipeline.weights.packed import Changes, pack, packed_limit, unpacked
from pipeline.weights.safetensors import (
    PIECE,
    TensorInfo,
    are_sizes,
    encode_header,
    pieces,
    read_header,
    write_at,
)
from pipeline.weights.sums import Deltas, Stored
from pipeline.weights.threads import in_order, in_parallel, one_thread, thread_pool

if TYPE_CHECKING:  # it takes a second to import: extract does without
    import torch

FILE = "vector.safetensors"
TOGETHER = 4  # pieces that a thread packs in one go
AHEAD = 8  # of these goes, before they are written


class Vector:
    """A vector's file: `path`, `description`, and `shapes` (name → shape, in the order of layers)."""

    def __init__(self, path: Path, description: Description, tensors: Mapping[str, TensorInfo]):
        self.path, self.description, self.tensors = path, description, tensors
        shapes = description["shapes"]
        self.shapes = {name: tuple(shapes[name]) for name in sorted(shapes, key=layer_order)}

    @classmethod
    def open(cls, path: str | Path) -> "Vector":
        """Opens a vector's file, or the one in a folder.

        Raises:
            UserError: if it is damaged, or not a vector.
        """
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        metadata, tensors = read_header(file)
        if "task_vector" not in metadata:
            raise UserError(f"{file} is not a task vector; make one with extract")
        vector = cls(file, read_description(file, metadata["task_vector"]), tensors)
        if vector.shapes.keys() != tensors.keys() or not all(map(vector._fits, tensors)):
            raise UserError(f"{file}: its tensors are not those of its description; extract it again")
        return vector

    def _fits(self, name: str) -> bool:
        """Whether a stored tensor can be what the description says of it."""
        info, shape = self.tensors[name], self.shapes[name]
        if not are_sizes(shape):
            return False
        if self.description["form"] == "dense":
            return (info.dtype, info.shape) == ("F32", shape)
        return info.dtype == "U8" and math.prod(shape) <= 8 * (info.end - info.start)  # a bit for each entry

    def pieces(self, name: str) -> Iterator[NDArray[np.float32]]:
        """The entries of a tensor, flat, fp32, in pieces; the buffer is reused, and the caller may change it."""
        if self.description["form"] == "dense":
            return (bits.view(np.float32) for bits in pieces(self.tensors[name]))
        return unpacked(self.tensors[name], math.prod(self.shapes[name]))

    def stored(self, name: str) -> Stored:
        """The entries of a tensor, piece by piece in any order."""
        compact = self.description["form"] == "compact"
        return Stored(self.tensors[name], math.prod(self.shapes[name]), compact)

    def read(self, name: str) -> "torch.Tensor":
        """The whole tensor in fp32."""
        import torch

        from pipeline.weights.tensors import gather

        return gather(map(torch.from_numpy, self.pieces(name)), self.shapes[name], torch.float32)

    @property
    def fingerprint(self) -> str:
        """sha256 of names, shapes and fp32 bytes: the same for the dense and the compact form of a vector."""
        shapes = {name: ("F32", shape) for name, shape in self.shapes.items()}
        return fingerprint(shapes, cached_scan([self.path], self.shapes, self._scan).digests)

    def _scan(self) -> Scan:
        bits = {name: (piece.view(np.uint32) for piece in self.pieces(name)) for name in self.shapes}
        return Scan({name: scan_tensor(parts, "F32")[0] for name, parts in bits.items()}, [])


def extract(
    grpo: Checkpoint, sft: Checkpoint, out: Path, compact: bool = False, allowed: Collection[str] = ()
) -> Path:
    """Writes v = θ_GRPO − θ_SFT in fp32 to `out`/vector.safetensors and returns that path.

    The same donors give the same bytes. Rows of padding that only one donor has are left out, and noted.

    Args:
        allowed: keys of config.json in which the donors may differ.

    Raises:
        UserError: if the donors do not fit each other, with a line for each problem; if v is 0 or not finite; if
            `out` holds something else.
    """
    found = compatibility.compare_donors(sft, grpo, allowed)
    found.refuse()
    ours, theirs = compatibility.shapes(grpo, donors_head=True), compatibility.shapes(sft, donors_head=True)
    shapes = {
        name: min(grpo.resolve(name).shape, sft.resolve(name).shape)
        for name in sorted(ours | theirs, key=layer_order)
    }
    counts = [compatibility.tokens_of(donor) for donor in (grpo, sft)]
    fewest = grpo if counts[0] <= counts[1] else sft
    if counts[0] != counts[1]:
        for name in {EMBEDDING, HEAD} & shapes.keys():  # rows that one donor has no token for mean nothing
            shapes[name] = (min(shapes[name][0], *counts), *shapes[name][1:])
    origin: Origin = {
        "donors": {"grpo": provenance(grpo), "sft": provenance(sft)},
        "identity": compatibility.identity(grpo, vocabulary=fewest),
        "notes": found.notes,
        "parts": [],
    }
    differences: list[Difference] = []

    def difference(name: str) -> Difference:
        differences.append(Difference(grpo.resolve(name), sft.resolve(name), math.prod(shapes[name])))
        return differences[-1]

    def check() -> None:  # donors of two dtypes can be equal without having the same bytes
        if not any(found.changed for found in differences):
            raise UserError(f"{compatibility.same_weights(sft, grpo)}; name two checkpoints")

    return write_vector(out, origin, shapes, difference, compact, check)


def provenance(checkpoint: Checkpoint) -> Donor:
    """How a checkpoint is named in what is made from it; the same on every machine."""
    source = checkpoint.source if checkpoint.revision else Path(checkpoint.source).resolve().name
    return {"source": source, "revision": checkpoint.revision, "fingerprint": checkpoint.fingerprint}


def _check_holds_vector(path: Path) -> None:
    """Do nothing if the file `path` is a vector, or its folder holds nothing but a vector's companions.

    Raises:
        UserError: if something else is there.
    """
    out = path.parent
    if path.exists():
        Vector.open(path)
    elif out.exists() and (
        not out.is_dir() or any(not file.match("geometry-*.json") for file in _visible(out))
    ):
        raise UserError(f"{out} exists and holds something else than a vector; choose another folder")


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, without what is being written there."""
    return [file for file in folder.iterdir() if not file.name.startswith(SCRATCH)]


def write_vector(
    out: Path,
    origin: Origin,
    shapes: Mapping[str, tuple[int, ...]],
    deltas: Callable[[str], Deltas],
    compact: bool,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Writes `out`/vector.safetensors, which appears when it is whole, and returns its path.

    Args:
        shapes: name → shape, in the order in which the tensors are stored.
        deltas: the entries of a tensor by its name; threads take its pieces in any order.
        check: asked when everything has been written, before the file appears; may raise.

    Raises:
        UserError: if an entry is NaN or infinite, `out` holds something else, or the disk refuses.
    """
    path = resolved(out / FILE)
    description: Description = {
        **origin,
        "schema": SCHEMA,
        "form": "compact" if compact else "dense",
        "shapes": {name: list(shape) for name, shape in shapes.items()},
    }
    metadata = {"format": "pt", "task_vector": write_description(description)}

    def layout(sizes: Mapping[str, int]) -> dict[str, tuple[str, tuple[int, ...], int]]:
        if compact:
            return {name: ("U8", (size,), size) for name, size in sizes.items()}
        return {name: ("F32", shapes[name], size) for name, size in sizes.items()}

    # The compact form's sizes are known only at the end: the header's place is kept for the largest.
    sizes = {
        name: packed_limit(math.prod(shape)) if compact else 4 * math.prod(shape)
        for name, shape in shapes.items()
    }
    length = len(encode_header(metadata, layout(sizes)))
    with one_thread(), replacing(path, _check_holds_vector) as new:
        new.touch()
        if compact:
            sizes = dict.fromkeys(shapes, 0)
            write_at(new, length, _packed(deltas, sizes))
        else:
            starts = dict(zip(shapes, itertools.accumulate(sizes.values(), initial=length), strict=False))
            in_parallel(
                lambda name: write_at(new, starts[name], _dense(name, deltas(name))),
                sorted(sizes, key=lambda name: -sizes[name]),
            )
        with open(new, "r+b") as stream:
            stream.write(encode_header(metadata, layout(sizes), length))
        check()
    return path


def _dense(name: str, entries: Deltas) -> Iterator[NDArray[np.float32]]:
    with ExitStack() as stack:
        entries.open(stack)
        for index in range(-(-entries.numel // PIECE)):
            yield _piece(name, entries, index).dense(min(PIECE, entries.numel - index * PIECE))


def _packed(deltas: Callable[[str], Deltas], sizes: dict[str, int]) -> Iterator[bytes]:
    """The packed tensors one after the other, in the order of `sizes`, which takes the bytes of each."""
    with ExitStack() as opened, thread_pool() as pool:

        def jobs() -> Iterator[Callable[[], tuple[bytes, str, ExitStack | None]]]:
            for name in sizes:
                entries, files = deltas(name), opened.enter_context(ExitStack())
                entries.open(files)
                last = -(-entries.numel // PIECE) - 1
                for first in range(0, last + 1, TOGETHER):
                    end = min(first + TOGETHER - 1, last)
                    read = files if end == last else None
                    yield partial(_pack, name, entries, range(first, end + 1), read)

        with closing(in_order(jobs(), pool, AHEAD)) as made:
            for part, name, read in made:
                sizes[name] += len(part)
                yield part
                if read is not None:
                    read.close()  # asks whether the files are what they were


def _pack(
    name: str, entries: Deltas, indices: range, read: ExitStack | None
) -> tuple[bytes, str, ExitStack | None]:
    """Some pieces of a tensor, packed; with the files to close when these are its last."""
    counts = (min(PIECE, entries.numel - index * PIECE) for index in indices)
    packed = [pack(_piece(name, entries, index), count) for index, count in zip(indices, counts, strict=True)]
    return b"".join(packed), name, read


def _piece(name: str, entries: Deltas, index: int) -> Changes:
    piece = entries.piece(index)
    if not all_finite(piece.values.view(np.uint32), "F32"):
        raise UserError(f"the difference in {name} is NaN or infinite; use donors with finite weights")
    return piece
