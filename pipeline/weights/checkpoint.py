"""Hugging Face checkpoints as streams of safetensors tensors: open, read, fingerprint.

    checkpoint = Checkpoint.open("Qwen/Qwen2.5-1.5B")       # or a folder, or a folder of a repository
    checkpoint.fingerprint, checkpoint.read("model.norm.weight")

Covers one file or shards with an index, from a local folder or the hub, in bf16, fp16, fp32 or a mix of
them. Every header is checked when the checkpoint is opened, and every file again when it is read, so that a
truncated, inconsistent or changing checkpoint is an error and never a wrong tensor. Does not cover pickled
weights (refused: loading them runs code), quantized weights and adapters (pipeline/weights/adapter.py merges those).

Tensors are read `PIECE` entries at a time into one reused buffer: memory does not grow with the model, and
every pass runs at the speed of the processor's cache.
"""

import functools
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import hub
from pipeline.errors import UserError
from pipeline.weights.architecture import EMBEDDING, HEAD, read_config
from pipeline.weights.fingerprint import Scan, cached_scan, fingerprint, scan_tensor
from pipeline.weights.floats import BITS
from pipeline.weights.json_files import read_object
from pipeline.weights.safetensors import TensorInfo, pieces, read_header
from pipeline.weights.threads import in_parallel
from pipeline.weights.tokenizer import Tokenizer

if TYPE_CHECKING:  # it takes a second to import: what only needs bits does without
    import torch

INDEX = "model.safetensors.index.json"
DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*"]

_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"}


@dataclass(frozen=True)
class Folder:
    """The folder of a checkpoint or an adapter: here, or in the hub's cache.

    Attributes:
        name: how messages and records call it.
        commit: of the repository, for a hub id.
    """

    path: Path
    name: str
    commit: str | None

    @classmethod
    def find(cls, source: str, revision: str | None = None, subfolder: str | None = None) -> "Folder":
        """A local folder, or a hub id at a revision, or a folder in either; downloads what is not in the hub's cache.

        Raises:
            UserError: if it does not exist.
        """
        inside, name = subfolder or ".", source if subfolder is None else f"{source}/{subfolder}"
        if os.path.isdir(source):
            if revision is not None:
                raise UserError(
                    f"{source} is a folder and has no revision {revision}; leave the revision out"
                )
            path, commit = Path(source), None
        elif not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith(".") or ".." in source:
            raise UserError(
                f"{source} is neither a folder nor a hub id such as Qwen/Qwen2.5-1.5B; check the spelling"
            )
        else:
            patterns, ignored = downloaded(subfolder)
            path = hub.fetch(source, revision, patterns=patterns, ignored=ignored)
            commit = path.name
        if not (path / inside).is_dir():
            raise UserError(f"{source} has no folder {subfolder}; check the spelling of its subfolder")
        return cls(path / inside, name, commit)


def downloaded(subfolder: str | None = None) -> tuple[list[str], list[str]]:
    """Patterns of the files of a repository, or of a folder in it, that make a checkpoint, and of those that do not."""
    inside = "" if subfolder is None else f"{subfolder}/"
    return [f"{inside}{pattern}" for pattern in DOWNLOADED], [f"{inside}*/*"]


def check_place(name: str, path: Path, folders: list[str]) -> None:
    """Do nothing if a folder can be a checkpoint.

    Args:
        folders: those in it that can be one.

    Raises:
        UserError: if it is an adapter, or its folders are checkpoints.
    """
    if (path / "config.json").exists():
        return
    if (path / "adapter_config.json").exists():
        raise UserError(
            f"{name} holds an adapter, not a model; say in merge_into which checkpoint of the family it was trained on"
        )
    if folders:
        raise UserError(
            f"{name} has no checkpoint at its root; name one of its folders in subfolder: {', '.join(folders)}"
        )


class Checkpoint:
    """A folder with a model's configuration, safetensors weights and tokenizer.

    Attributes:
        source: folder or hub id as given.
        revision: the commit, for a hub id.
        path: the folder.
        config: config.json.
        tensors: name → where the tensor lies.
        tied: whether the head is the embedding.
        tokenizer: its files as data.
    """

    def __init__(self, path: Path, source: str, revision: str | None):
        self.path, self.source, self.revision = path, source, revision
        self.config: Mapping[str, Any] = read_config(path / "config.json")
        self.tensors: Mapping[str, TensorInfo] = _read_tensors(path)
        self.tied = bool(self.config.get("tie_word_embeddings", HEAD not in self.tensors))
        self.tokenizer = Tokenizer(path)
        if not self.tied and HEAD not in self.tensors:
            raise UserError(
                f"{path}: config.json says that the head is not tied, but {HEAD} is missing; fetch it again"
            )

    @classmethod
    def open(cls, source: str, revision: str | None = None, subfolder: str | None = None) -> "Checkpoint":
        """Opens a local folder, or a hub id at a revision, or a folder in either; downloads what is not in the hub's cache.

        Raises:
            UserError: if it does not exist, is damaged or incomplete, or holds no safetensors.
        """
        found = Folder.find(source, revision, subfolder)
        check_place(found.name, found.path, sorted(p.parent.name for p in found.path.glob("*/config.json")))
        return cls(found.path, found.name, found.commit)

    def read(self, name: str) -> "torch.Tensor":
        """The whole tensor, in the checkpoint's own dtype and shape."""
        from pipeline.weights import tensors

        info = self.tensors[name]
        return tensors.gather(tensors.pieces(info), info.shape, tensors.DTYPES[info.dtype])

    @property
    def has_own_head(self) -> bool:
        """Whether the head differs from the embedding, by its bytes."""
        return not self.tied and self.scan.digests[HEAD] != self.scan.digests.get(EMBEDDING)

    def stored(self, name: str) -> str:
        """The name under which a tensor is stored: for the head of a tied model, the embedding's."""
        return EMBEDDING if name == HEAD and self.tied else name

    def resolve(self, name: str) -> TensorInfo:
        """The tensor of that name; for the head of a tied model, the embedding."""
        return self.tensors[self.stored(name)]

    @functools.cached_property
    def scan(self) -> Scan:
        """Digest and finiteness of every tensor: a pass over all bytes the first time, then from the cache."""
        return cached_scan({info.file for info in self.tensors.values()}, self.tensors, self._scan)

    def _scan(self) -> Scan:
        names = sorted(self.tensors)
        scans = in_parallel(self._scan_tensor, names)
        found = dict(zip(names, scans, strict=True))
        return Scan({name: found[name][0] for name in names}, [name for name in names if not found[name][1]])

    def _scan_tensor(self, name: str) -> tuple[str, bool]:
        return scan_tensor(pieces(self.tensors[name]), self.tensors[name].dtype)

    @property
    def fingerprint(self) -> str:
        """sha256 of every tensor's name, dtype, shape and bytes; the same however they are sharded."""
        return fingerprint(
            {name: (info.dtype, info.shape) for name, info in self.tensors.items()}, self.scan.digests
        )

    @property
    def token_ids(self) -> dict[str, int]:
        """The token-to-id map, with the added tokens."""
        return self.tokenizer.token_ids

    @property
    def chat_template_hash(self) -> str | None:
        """sha256 of the chat template; None when there is none."""
        return self.tokenizer.chat_template_hash

    @property
    def tokenizer_fingerprint(self) -> str:
        """sha256 of all that makes tokens of text: map, merges, rules, special tokens, chat template."""
        return self.tokenizer.fingerprint

    @functools.cached_property
    def stage(self) -> str | None:
        """The stage of a donor recipe that trained this checkpoint, as its training.json says; None without one.

        Other tools may write a file of that name, so that one which is not ours says nothing.
        """
        try:
            stage = read_object(self.path / "training.json").get("stage")
        except (UserError, OSError):
            return None
        return stage if isinstance(stage, str) else None

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


def layer_order(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """A key that sorts embedding, layers by number, final norm, head."""
    parts = name.split(".")
    return name == HEAD, [(int(part), "") if part.isdecimal() else (sys.maxsize, part) for part in parts]


def _read_tensors(path: Path) -> dict[str, TensorInfo]:
    """The tensors of all shards, which must be those that the index names."""
    index = path / INDEX
    weight_map = _read_weight_map(path, index)
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())) if weight_map else ["model.safetensors"]:
        if Path(shard).name != shard:
            raise UserError(f"{index} names {shard}; expected the name of a file beside it")
        if weight_map and not (path / shard).exists():
            raise UserError(f"{index} names {shard}, which is missing; fetch the checkpoint again")
        for name, info in read_header(path / shard)[1].items():
            if name in tensors:
                raise UserError(
                    f"{path}: {name} is in {tensors[name].file.name} and again in {shard}; remove one"
                )
            if info.dtype not in BITS:
                raise UserError(f"{path}: {name} is {info.dtype}; expected one of {', '.join(BITS)}")
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


def _read_weight_map(path: Path, index: Path) -> dict[str, str]:
    """Tensor → shard, as the index says; empty for a model in one file."""
    single = path / "model.safetensors"
    if single.exists() and index.exists():
        raise UserError(
            f"{path} holds both {single.name} and {index.name}, so that tensors are there twice; remove one"
        )
    if index.exists():
        weight_map = read_object(index).get("weight_map") or {}
        names = (*weight_map, *weight_map.values()) if isinstance(weight_map, dict) else (None,)
        if not all(isinstance(name, str) and name.isprintable() for name in names):
            raise UserError(f"{index}: expected a weight_map from tensors to files; fetch it again")
        if not weight_map:
            raise UserError(f"{index} has no weight_map; fetch it again")
        return weight_map
    if single.exists():
        return {}
    if any(path.glob("adapter_model.*")):
        raise UserError(
            f"{path} holds an adapter, not a model; say in merge_into which checkpoint of the family it was trained on"
        )
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise UserError(
            f"{path} holds pickled weights, which can run code when loaded; convert them to safetensors"
        )
    raise UserError(
        f"{path} holds neither {single.name} nor {index.name}; pickled weights do not count: convert them"
    )
