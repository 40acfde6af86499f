"""Hugging Face checkpoints as streams of safetensors tensors: open, read, fingerprint, write atomically.

Covers one file or shards with an index, from a local folder or the hub, in bf16, fp16, fp32 or a mix of
them. Every header is checked when the checkpoint is opened, and every file again when it is read, so that a
truncated, inconsistent or changing checkpoint is an error and never a wrong tensor. Does not cover pickled
weights (refused: loading them runs code), quantized weights and adapters.

Tensors are read `PIECE` entries at a time into one reused buffer: memory does not grow with the model, and
every pass runs at the speed of the processor's cache.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline import hub
from pipeline.errors import UserError
from pipeline.weights.fingerprint import Scan, cached_scan, fingerprint, in_parallel, scan_tensor
from pipeline.weights.safetensors import DTYPES, TensorInfo, gather, pieces, read_header

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*"]


_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"}


_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


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
