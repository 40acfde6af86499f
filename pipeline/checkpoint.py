"""Hugging Face checkpoints as streams of safetensors tensors: open, read, fingerprint, write atomically.

Covers one file or shards with an index, from a local folder or the hub, in bf16, fp16, fp32 or a mix of
them. Every header is checked when the checkpoint is opened, and every file again when it is read, so that a
truncated, inconsistent or changing checkpoint is an error and never a wrong tensor. Does not cover pickled
weights (refused: loading them runs code), quantized weights and adapters.

Tensors are read `PIECE` entries at a time into one reused buffer: memory does not grow with the model, and
every pass runs at the speed of the processor's cache.
"""

import contextlib
import fcntl
import functools
import glob
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch

from pipeline import hub
from pipeline.errors import UserError

PIECE = 1 << 18
"""Entries handled at a time. The compact form and the random controls are defined by it: do not change it."""

_WRITEBACK = 1 << 25  # bytes

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

Result = TypeVar("Result")

DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*"]
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"}
_ITEM_SIZES = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {"U8": 1}
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


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


# --- safetensors files


def _stamp(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def read_header(path: Path) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Metadata and tensors of one safetensors file.

    Raises UserError when the file is truncated, names a tensor twice, or its offsets do not fit its shapes
    (format: the safetensors README).
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            name = next(name for name, value in pairs if found[name] is not value)
            raise UserError(f"{path}: {name} stands twice in the header; save the checkpoint again")
        return found

    damaged = f"{path} is truncated or not a safetensors file"
    try:
        with open(path, "rb") as stream:
            stamp = _stamp(stream.fileno())
            length = int.from_bytes(stream.read(8), "little")
            if stamp[0] < 8 or length > stamp[0] - 8:
                raise UserError(f"{damaged}: {stamp[0]} bytes are too few for its header; fetch it again")
            header = json.loads(stream.read(length), object_pairs_hook=unique)
        metadata = header.pop("__metadata__", {})
        tensors = {}
        if not all(type(value) is str for value in metadata.values()):
            raise ValueError(metadata)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            if type(entry["dtype"]) is not str or any(
                type(n) is not int or n < 0 for n in (start, end, *entry["shape"])
            ):
                raise ValueError(entry)
            tensors[name] = TensorInfo(
                path, entry["dtype"], tuple(entry["shape"]), 8 + length + start, 8 + length + end, stamp
            )
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{damaged}: its header cannot be read; fetch it again") from None

    end = 8 + length
    for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
        if info.dtype not in _ITEM_SIZES:
            raise UserError(
                f"{path}: {name} is {info.dtype}; expected one of {', '.join(DTYPES)}: convert it"
            )
        if info.start != end or info.end - info.start != info.numel * _ITEM_SIZES[info.dtype]:
            raise UserError(
                f"{path}: the offsets of {name} do not fit its shape {list(info.shape)}; fetch it again"
            )
        end = info.end
    if end != stamp[0]:
        raise UserError(f"{damaged}: expected {end} bytes, found {stamp[0]}; fetch it again")
    return metadata, tensors


def pieces(info: TensorInfo, entries: int | None = None) -> Iterator[torch.Tensor]:
    """The first `entries` entries (default: all) of a tensor, flat, `PIECE` at a time, in one reused buffer.

    Raises UserError when the file changed after it was opened or while it was read.
    """
    numel = info.numel if entries is None else entries
    buffer = torch.empty(min(PIECE, numel), dtype=DTYPES[info.dtype])
    raw = raw_bytes(buffer)
    size = buffer.element_size()
    with open_unchanged(info) as descriptor:
        for first in range(0, numel, PIECE):
            count = min(PIECE, numel - first)
            os.preadv(descriptor, [raw[: count * size]], info.start + first * size)
            yield buffer[:count]


def gather(parts: Iterable[torch.Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The whole tensor that was cut into pieces."""
    whole = torch.empty(math.prod(shape), dtype=dtype)
    first = 0
    for piece in parts:
        whole[first : first + len(piece)] = piece
        first += len(piece)
    return whole.view(shape)


@contextmanager
def open_unchanged(info: TensorInfo) -> Iterator[int]:
    """A descriptor of the tensor's file; UserError when it is not, or at the end no longer, what was opened."""
    changed = UserError(
        f"{info.file} changed after it was opened; run again, and let nothing write to it meanwhile"
    )
    try:
        descriptor = os.open(info.file, os.O_RDONLY)
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


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's memory as bytes, to read into or to write from."""
    return memoryview(tensor.view(torch.uint8).numpy())  # type: ignore[arg-type]


def all_finite(piece: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite, by its bits: several times faster than isfinite for bf16."""
    bits, exponent = {
        torch.bfloat16: (torch.int16, 0x7F80),
        torch.float16: (torch.int16, 0x7C00),
        torch.float32: (torch.int32, 0x7F800000),
    }[piece.dtype]
    if not piece.numel():
        return True
    magnitude = piece.view(bits) & (0x7FFF if bits is torch.int16 else 0x7FFFFFFF)
    return int(magnitude.max()) < exponent


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside: two threads on small pieces and shared cores were 10 to 40 times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_parallel(function: Callable[[str], Result], names: Iterable[str]) -> list[Result]:
    """`function` of every tensor's name, for a few tensors at a time, each on one core."""
    with one_thread(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, names))


# --- fingerprints


@dataclass(frozen=True)
class Scan:
    """What one pass over all bytes found: the sha256 of each tensor, and the tensors with NaN or infinity."""

    digests: dict[str, str]
    non_finite: list[str]


def fingerprint(shapes: Mapping[str, tuple[str, tuple[int, ...]]], digests: Mapping[str, str]) -> str:
    """sha256 over name, dtype, shape and sha256 of the bytes of every tensor in order of names.

    `shapes` maps a name to (dtype, shape). Sharding and the order in the files do not matter.
    """
    rows = [[name, shapes[name][0], list(shapes[name][1]), digests[name]] for name in sorted(digests)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def scan_tensor(parts: Iterator[torch.Tensor]) -> tuple[str, bool]:
    """sha256 of a tensor's bytes, and whether all its entries are finite."""
    digest, finite = hashlib.sha256(), True
    for piece in parts:
        digest.update(raw_bytes(piece))
        finite = finite and all_finite(piece)
    return digest.hexdigest(), finite


def cached_scan(files: list[Path], scan: Callable[[], Scan]) -> Scan:
    """`scan()`, or its earlier result when path, size and time of change of all files are the same.

    The results lie in the folder RV_CACHE, or results/.cache when that is not set.
    """
    stamps = []
    for file in sorted(files):
        stat = file.stat()  # two fine-tunes have one size, and copying tools keep the time of change
        stamps.append([str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino])
    name = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
    path = Path(os.environ.get("RV_CACHE", "results/.cache")) / f"{name}.json"
    try:
        known = json.loads(path.read_text())
        return Scan(known["digests"], known["non_finite"])
    except (OSError, ValueError, TypeError, KeyError):
        pass
    found = scan()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{path.stem}-{os.getpid()}")
        temporary.write_text(json.dumps(found.__dict__))
        temporary.replace(path)
    except OSError:
        pass  # a cache that cannot be written costs time, not correctness
    return found


# --- checkpoints


class Checkpoint:
    """A folder with a model's configuration, safetensors weights and tokenizer.

    Attributes: `source` (folder or hub id as given), `revision` (the commit, for a hub id), `path`, `config`,
    `tensors` (name → TensorInfo), `tied` (the head is the embedding).
    """

    def __init__(self, path: Path, source: str, revision: str | None):
        self.path, self.source, self.revision = path, source, revision
        self.config: dict[str, Any] = _read_json(path / "config.json")
        _refuse_unreadable(path, self.config)
        self.tensors: Mapping[str, TensorInfo] = _read_tensors(path)
        self.tied = bool(self.config.get("tie_word_embeddings", HEAD not in self.tensors))
        if not self.tied and HEAD not in self.tensors:
            raise UserError(
                f"{path}: config.json says that the head is not tied, but {HEAD} is missing; fetch it again"
            )

    @classmethod
    def open(cls, source: str, revision: str | None = None) -> "Checkpoint":
        """Opens a local folder, or a hub id at a revision; downloads what is not in the hub's cache.

        Raises UserError when it does not exist, is damaged or incomplete, or holds no safetensors.
        """
        if os.path.isdir(source):
            if revision is not None:
                raise UserError(
                    f"{source} is a folder and has no revision {revision}; leave the revision out"
                )
            return cls(Path(source), source, None)
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith(".") or ".." in source:
            raise UserError(
                f"{source} is neither a folder nor a hub id such as Qwen/Qwen2.5-1.5B; check the spelling"
            )
        path = hub.fetch(source, revision, patterns=DOWNLOADED)
        return cls(path, source, path.name)

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor, in the checkpoint's own dtype and shape."""
        info = self.tensors[name]
        return gather(pieces(info), info.shape, DTYPES[info.dtype])

    @property
    def has_own_head(self) -> bool:
        """Whether the head differs from the embedding, by its bytes."""
        return not self.tied and self.scan.digests[HEAD] != self.scan.digests.get(EMBEDDING)

    def resolve(self, name: str) -> TensorInfo:
        """The tensor of that name; for the head of a tied model, the embedding."""
        return self.tensors[EMBEDDING if name == HEAD and self.tied else name]

    @functools.cached_property
    def scan(self) -> Scan:
        """Digest and finiteness of every tensor: a pass over all bytes the first time, then from the cache."""
        return cached_scan(sorted({info.file for info in self.tensors.values()}), self._scan)

    def _scan(self) -> Scan:
        names = sorted(self.tensors)
        scans = in_parallel(lambda name: scan_tensor(pieces(self.tensors[name])), names)
        found = dict(zip(names, scans, strict=True))
        return Scan({name: found[name][0] for name in names}, [name for name in names if not found[name][1]])

    @property
    def fingerprint(self) -> str:
        """sha256 of every tensor's name, dtype, shape and bytes; the same however they are sharded."""
        return fingerprint(
            {name: (info.dtype, info.shape) for name, info in self.tensors.items()}, self.scan.digests
        )

    # The tokenizer: its files, read as data.

    @functools.cached_property
    def token_ids(self) -> dict[str, int]:
        """The token-to-id map, with the added tokens."""
        if (self.path / "tokenizer.json").exists():
            tokenizer = _read_json(self.path / "tokenizer.json")
            try:
                vocabulary: dict[str, int] | list[Any] = tokenizer["model"]["vocab"]
                if isinstance(vocabulary, list):  # a Unigram model lists (token, score) pairs
                    vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
                added = tokenizer.get("added_tokens", [])
                return vocabulary | {token["content"]: token["id"] for token in added}
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{self.path / 'tokenizer.json'} has no vocabulary; fetch it again") from None
        if (self.path / "vocab.json").exists():
            plain: dict[str, int] = _read_json(self.path / "vocab.json")
            return plain | _read_json(self.path / "added_tokens.json", {})
        raise UserError(
            f"{self.path} has no tokenizer.json; copy the tokenizer that the model was trained with into it"
        )

    @functools.cached_property
    def token_ids_hash(self) -> str:
        """sha256 of the token-to-id map."""
        return _hash(self.token_ids)

    @functools.cached_property
    def special_tokens(self) -> dict[str, str | None]:
        """Which token has which role (beginning, end, padding, unknown), by content."""
        settings = _read_json(self.path / "special_tokens_map.json", {}) | _read_json(
            self.path / "tokenizer_config.json", {}
        )
        found = {role: settings.get(role) for role in _ROLES}
        return {role: token["content"] if isinstance(token, dict) else token for role, token in found.items()}

    @functools.cached_property
    def chat_template_hash(self) -> str | None:
        """sha256 of the chat template; None when there is none."""
        template = _read_json(self.path / "tokenizer_config.json", {}).get("chat_template")
        if (self.path / "chat_template.jinja").exists():
            template = (self.path / "chat_template.jinja").read_text(encoding="utf-8")
        return None if template is None else _hash(template)

    @functools.cached_property
    def tokenizer_fingerprint(self) -> str:
        """sha256 of all that makes tokens of text: map, merges, rules, special tokens, chat template."""
        rules: dict[str, Any] = {}
        if (self.path / "tokenizer.json").exists():
            rules = _read_json(self.path / "tokenizer.json")
            # Training scripts leave their own truncation and padding behind; users set them anew.
            rules = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
        elif (self.path / "merges.txt").exists():
            rules = {"merges": (self.path / "merges.txt").read_text(encoding="utf-8")}
        return _hash([rules, self.token_ids_hash, self.special_tokens, self.chat_template_hash])

    def companions(self) -> list[Path]:
        """The files that a complete copy needs beside the weights: configuration, tokenizer, licence."""
        return sorted(
            file
            for file in self.path.iterdir()
            if file.is_file()
            and file.suffix not in _WEIGHT_SUFFIXES
            and not file.name.startswith(".")
            and file.name != "README.md"
        )


def layer_order(name: str) -> tuple[bool, list[int | str]]:
    """A key that sorts embedding, layers by number, final norm, head."""
    return name == HEAD, [int(part) if part.isdigit() else part for part in name.split(".")]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    if default is not None and not path.exists():
        return default
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: expected a Hugging Face checkpoint there; check the folder"
        ) from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not valid JSON, or not an object; fetch it again")
    return found


def _refuse_unreadable(path: Path, config: Mapping[str, Any]) -> None:
    """Models whose weights are not plain numbers, or that only code of their own can run."""
    if config.get("quantization_config"):
        raise UserError(f"{path}: its weights are quantized; use the model in BF16, F16 or F32")
    if "auto_map" in config:  # many models that transformers knows still carry it
        from transformers import CONFIG_MAPPING

        if config.get("model_type") not in CONFIG_MAPPING:
            raise UserError(
                f"{path}: it needs code of its own (auto_map), which is never run; use a model that transformers knows"
            )


def _read_tensors(path: Path) -> dict[str, TensorInfo]:
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.exists() and index.exists():
        raise UserError(
            f"{path} holds both {single.name} and {index.name}: tensors would stand twice; remove one"
        )
    weight_map: dict[str, str] = {}
    if index.exists():
        weight_map = _read_json(index).get("weight_map") or {}
        if not isinstance(weight_map, dict) or not all(type(file) is str for file in weight_map.values()):
            raise UserError(f"{index}: expected a weight_map from tensors to files; fetch it again")
        if not weight_map:
            raise UserError(f"{index} has no weight_map; fetch it again")
    elif single.exists():
        pass
    elif any(path.glob("adapter_model.*")):
        raise UserError(f"{path} holds an adapter, not a model; merge it into its base model first")
    elif any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise UserError(
            f"{path} holds pickled weights, which can run code when loaded; convert them to safetensors"
        )
    else:
        raise UserError(
            f"{path} holds neither {single.name} nor {index.name}; pickled weights do not count: convert them"
        )

    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())) if weight_map else [single.name]:
        if Path(shard).name != shard:
            raise UserError(f"{index} names {shard}; expected the name of a file beside it")
        if weight_map and not (path / shard).exists():
            raise UserError(f"{index} names {shard}, which is missing; fetch the checkpoint again")
        for name, info in read_header(path / shard)[1].items():
            if name in tensors:
                raise UserError(
                    f"{path}: {name} stands in {tensors[name].file.name} and in {shard}; remove one"
                )
            if info.dtype not in DTYPES:
                raise UserError(f"{path}: {name} is {info.dtype}; expected one of {', '.join(DTYPES)}")
            tensors[name] = info
    for name in weight_map:
        if name not in tensors or tensors[name].file.name != weight_map[name]:
            raise UserError(
                f"{index} names {name} in {weight_map[name]}, which does not hold it; fetch it again"
            )
    for name in tensors:
        if weight_map and name not in weight_map:
            raise UserError(f"{path}: {tensors[name].file.name} holds {name}, which the index does not name")
    return tensors


# --- writing


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


def write_at(path: Path, offset: int, parts: Iterable[torch.Tensor | bytes]) -> int:
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


def sync(path: Path) -> None:
    """Makes a file or folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(out: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary path to write a file or folder to, which becomes `out` when the block succeeds.

    Everything is synced before the rename. On failure nothing is left, and an earlier `out` stays as it was.
    What a killed writer of `out` left beside it is removed first.

    Args:
        out: a path without links or `..` in it (`Path.resolve`): they could lead elsewhere once folders are made.
        check: raises UserError unless what is at `out` may be replaced; asked again just before the rename.

    Raises:
        UserError: if `check` does, or the disk refuses, for instance because it is full.
    """
    if out != out.resolve():
        raise ValueError(f"{out} is not resolved")
    check(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(out)
        scratch = Path(tempfile.mkdtemp(prefix=f".tmp-{out.name}.", dir=out.parent))
        lock = os.open(scratch, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another folder") from None
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        new, old = scratch / "new", scratch / "old"
        yield new
        if new.is_dir():
            for file in new.iterdir():
                sync(file)
        sync(new)
        check(out)
        if out.is_dir():
            out.rename(old)  # a folder cannot be renamed over another
        new.rename(out)
        sync(out.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror}; nothing was left there: free space, or choose another"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _clear_leftovers(out: Path) -> None:
    """Remove scratch folders of writers of `out` that were killed: those that live hold a lock on theirs."""
    for left in out.parent.glob(f".tmp-{glob.escape(out.name)}.????????"):
        with contextlib.suppress(OSError):
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (left / "old").exists() and not out.exists():
                    (left / "new").rename(out)  # whole: it was killed between its two renames
                shutil.rmtree(left)
            finally:
                os.close(lock)
