"""LoRA adapters (PEFT folders) as checkpoints: ΔW merged into the weights that it was trained on, in float32.

    grpo = merged(Folder.find("me/qwen-grpo-lora"), Checkpoint.open("Qwen/Qwen2.5-1.5B-Instruct"))

W + s·B·A with s = alpha / r, or alpha / √r (rank-stabilised). A matrix that is adapted is written in float32, so that
nothing is rounded before donors are subtracted; others stay as they are, bit for bit. The merged model is an ordinary
checkpoint, made once in the cache under a name that holds the bytes of adapter and model, and so do the keys of what is
made from it: they hold the bytes of the merged weights.

Covers adapters of linear layers, with a rank and an alpha of their own where they say so, and layers that were trained in
full (`modules_to_save`). Refuses what else PEFT knows: DoRA, adapted embeddings, trained biases, quantized models, an
initialisation that changed the model's own weights (PiSSA, OLoRA), adapters of a part of the text (aLoRA).
"""

import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.files import digest, new_folder, sha256_of_file
from pipeline.weights.architecture import HEAD
from pipeline.weights.checkpoint import INDEX, Checkpoint, Folder, layer_order
from pipeline.weights.json_files import read_object
from pipeline.weights.safetensors import ITEM_SIZES, TensorInfo, encode_header, read_header, write_at
from pipeline.weights.tensors import DTYPES, gather, pieces, to_bits
from pipeline.weights.threads import one_thread

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE_VERSION = 1  # raise it when the merged weights become others
_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>A|B)(?:\.default)?\.weight")
_INITIALISED = (
    None,
    True,
    False,
    "gaussian",
    "orthogonal",
    "eva",
)  # these leave the model's weights as they are
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Adapter:
    """What an adapter's folder holds.

    Attributes:
        scales: parameter → s.
        low_rank: parameter → (A, B), of which the product B·A is added s times.
        replaced: parameter → the tensor that takes its place.
    """

    path: Path
    trained_on: str | None
    scales: Mapping[str, float]
    low_rank: Mapping[str, tuple[TensorInfo, TensorInfo]]
    replaced: Mapping[str, TensorInfo]


def merged(folder: Folder, model: Checkpoint) -> Checkpoint:
    """The checkpoint that an adapter makes of the model that it was trained on, written to the cache if it is not there.

    Raises:
        UserError: if the folder holds no adapter, one of a kind that is not covered, or one that does not fit the model.
    """
    adapter = read_adapter(folder.path)
    _check_fits(adapter, model)
    parts = [sha256_of_file(folder.path / name) for name in (SETTINGS, WEIGHTS)]
    texts = _texts(folder.path, model)
    key = digest([MERGE_VERSION, *parts, model.fingerprint, {n: sha256_of_file(f) for n, f in texts.items()}])
    out = Path(os.environ.get("RV_CACHE", "results/.cache")).absolute() / "merged" / key
    if not out.is_dir():
        with one_thread(), new_folder(out) as new:
            for name, file in texts.items():
                shutil.copyfile(file, new / name)
            _write(new / "model.safetensors", adapter, model)
    return Checkpoint(out, f"{folder.name} in {model.source}", folder.commit)


def read_adapter(path: Path) -> Adapter:
    """The adapter in a PEFT folder.

    Raises:
        UserError: if there is none, or it is of a kind that is not covered.
    """
    if not (path / WEIGHTS).is_file():
        raise UserError(
            f"{path}: expected a LoRA adapter with {SETTINGS} and {WEIGHTS}; leave merge_into out for a model"
        )
    settings = read_object(path / SETTINGS)
    _check_kind(path, settings)
    sides: dict[str, dict[str, TensorInfo]] = {}
    replaced: dict[str, TensorInfo] = {}
    for stored, info in read_header(path / WEIGHTS)[1].items():
        if info.dtype not in DTYPES:
            raise UserError(f"{path}: {stored} is {info.dtype}; expected one of {', '.join(DTYPES)}")
        name = stored.removeprefix(_PREFIX)
        if match := _LORA.fullmatch(name):
            sides.setdefault(f"{match['module']}.weight", {})[match["side"]] = info
        elif "lora_" in name or not name.endswith((".weight", ".bias")):
            raise UserError(
                f"{path}: {stored} is no part of an adapter of linear layers; merge it into its model first"
            )
        else:
            replaced[name.replace(".modules_to_save.default", "").replace(".modules_to_save", "")] = info
    low_rank = {}
    for name, pair in sides.items():
        if pair.keys() != {"A", "B"}:
            raise UserError(f"{path}: {name} has only one of lora_A and lora_B; fetch the adapter again")
        low_rank[name] = (pair["A"], pair["B"])
    if not low_rank and not replaced:
        raise UserError(f"{path / WEIGHTS} holds no tensor of an adapter; fetch it again")
    ranks = {name: a.shape[0] if a.shape else 0 for name, (a, _) in low_rank.items()}
    if flat := next((name for name, rank in ranks.items() if not rank), None):
        raise UserError(f"{path}: the adapter of {flat} has rank 0; fetch it again")
    scales = {name: _scale(path, settings, name, rank) for name, rank in ranks.items()}
    trained_on = settings.get("base_model_name_or_path")
    return Adapter(path, trained_on if isinstance(trained_on, str) else None, scales, low_rank, replaced)


def _check_kind(path: Path, settings: Mapping[str, Any]) -> None:
    found = {
        "peft_type": (settings.get("peft_type"), "LORA"),
        "bias": (settings.get("bias") or "none", "none"),
        "use_dora": (bool(settings.get("use_dora")), False),
        "fan_in_fan_out": (bool(settings.get("fan_in_fan_out")), False),
        "use_qalora": (bool(settings.get("use_qalora")), False),
        "layer_replication": (settings.get("layer_replication") or None, None),
        "alora_invocation_tokens": (settings.get("alora_invocation_tokens") or None, None),
    }
    if (start := settings.get("init_lora_weights")) not in _INITIALISED:
        found["init_lora_weights"] = (start, True)
    for key, (value, expected) in found.items():
        if value != expected:
            raise UserError(
                f"{path / SETTINGS}: expected {key} {expected!r}, found {value!r}; merge the adapter into its model first"
            )


def _scale(path: Path, settings: Mapping[str, Any], name: str, rank: int) -> float:
    """What B·A is multiplied with, for one parameter."""
    module, alpha = name.removesuffix(".weight"), settings.get("lora_alpha")
    patterns = settings.get("alpha_pattern") or {}
    try:  # the first that matches, as PEFT takes it
        own = (p for p in patterns if re.fullmatch(rf"(?:.*\.)?(?:{p})", module))
        alpha = next((patterns[p] for p in own), alpha)
    except (re.error, TypeError):
        raise UserError(
            f"{path / SETTINGS}: alpha_pattern is {patterns!r:.80}; expected regular expressions and numbers: fetch the"
            " adapter again"
        ) from None
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(
            f"{path / SETTINGS}: lora_alpha is {alpha!r}; expected a number: fetch the adapter again"
        )
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _check_fits(adapter: Adapter, model: Checkpoint) -> None:
    """Refuse an adapter of another model's shapes."""
    for name, info in adapter.replaced.items():
        if name == HEAD and model.tied:
            raise UserError(
                f"{adapter.path}: it has a head of its own, {model.source} has a tied one; merge it first"
            )
        _check_shape(adapter, model, name, info.shape)
    for name, (a, b) in adapter.low_rank.items():
        fits = len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1]
        _check_shape(adapter, model, name, (b.shape[0], a.shape[1]) if fits else ())


def _check_shape(adapter: Adapter, model: Checkpoint, name: str, shape: tuple[int, ...]) -> None:
    found = model.tensors.get(name)
    if found is None or found.shape != shape:
        own = "no such tensor" if found is None else f"the shape {list(found.shape)}"
        raise UserError(
            f"{adapter.path}: it adapts {name} of the shape {list(shape)}, {model.source} has {own}; name the model that"
            f" it was trained on ({adapter.trained_on or 'its settings do not say which'})"
        )


def _texts(adapter: Path, model: Checkpoint) -> dict[str, Path]:
    """Configuration, tokenizer and licence by name: the adapter's tokenizer where it has one, else the model's."""
    from_adapter = [name for name in _TOKENIZER if (adapter / name).is_file()]
    if "tokenizer.json" not in from_adapter:
        from_adapter = []
    found = {file.name: file for file in model.companions() if file.name != INDEX}
    if from_adapter:
        found = {name: file for name, file in found.items() if name not in _TOKENIZER}
    return found | {name: adapter / name for name in from_adapter}


def _write(path: Path, adapter: Adapter, model: Checkpoint) -> None:
    """One file with every tensor of the merged model."""
    layout: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for name in sorted(model.tensors, key=layer_order):
        info = adapter.replaced.get(name, model.tensors[name])
        dtype = "F32" if name in adapter.low_rank else info.dtype
        layout[name] = (dtype, info.shape, info.numel * ITEM_SIZES[dtype])
    header = encode_header({"format": "pt"}, layout)
    path.write_bytes(header)
    end = len(header)
    for name in layout:
        end = write_at(path, end, map(to_bits, _tensor(name, adapter, model)))


def _tensor(name: str, adapter: Adapter, model: Checkpoint) -> Iterator[torch.Tensor]:
    """The entries of a merged tensor, flat."""
    if name not in adapter.low_rank:
        yield from pieces(adapter.replaced.get(name, model.tensors[name]))
        return
    a, b = (gather(pieces(info), info.shape, DTYPES[info.dtype]).float() for info in adapter.low_rank[name])
    whole = adapter.replaced.get(name, model.tensors[name])
    weight = gather(pieces(whole), whole.shape, DTYPES[whole.dtype]).float()
    yield weight.add_(b @ a, alpha=adapter.scales[name]).flatten()
