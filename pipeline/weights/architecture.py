"""What config.json says of a model, checked against itself and against the weights.

    config = read_config(folder / "config.json")
    problems = contradictions(config, shapes)

A wrong type here would be a traceback in some library, a wrong number an engine that ends while it starts: both become
one line before anything is started. Keys that are not named here are not looked at.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pipeline.errors import UserError
from pipeline.weights.json_files import read_object

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

Size = Annotated[int, Field(gt=0, lt=1 << 31)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Positive = Annotated[FiniteFloat, Field(gt=0)]


class _Model(TypedDict):
    """The keys of config.json that are read by us, or by every engine; null counts as left out."""

    model_type: str
    architectures: NotRequired[list[str] | None]
    hidden_size: NotRequired[Size | None]
    intermediate_size: NotRequired[Size | None]
    num_hidden_layers: NotRequired[Size | None]
    num_attention_heads: NotRequired[Size | None]
    num_key_value_heads: NotRequired[Size | None]
    head_dim: NotRequired[Size | None]
    vocab_size: NotRequired[Size | None]
    max_position_embeddings: NotRequired[Size | None]
    max_window_layers: NotRequired[int | None]
    sliding_window: NotRequired[int | None]
    use_sliding_window: NotRequired[bool | None]
    layer_types: NotRequired[list[str] | None]
    hidden_act: NotRequired[str | None]
    rms_norm_eps: NotRequired[Positive | None]
    rope_theta: NotRequired[Positive | None]
    rope_scaling: NotRequired[dict[str, Any] | None]
    rope_parameters: NotRequired[dict[str, Any] | None]
    attention_bias: NotRequired[bool | None]
    mlp_bias: NotRequired[bool | None]
    tie_word_embeddings: NotRequired[bool | None]
    bos_token_id: NotRequired[Token | list[Token] | None]
    eos_token_id: NotRequired[Token | list[Token] | None]
    pad_token_id: NotRequired[int | None]  # −1 where there is none
    torch_dtype: NotRequired[str | None]
    dtype: NotRequired[str | None]


_MODEL = TypeAdapter(_Model)
_PLAIN = ("llama", "mistral", "qwen2", "qwen3")  # whose projections are as wide as their names say


def read_config(path: Path) -> dict[str, Any]:
    """config.json as it is, once what is read of it has the types that it must have.

    Raises:
        UserError: if it has not, or the model needs code of its own, or its weights are not plain numbers.
    """
    config = read_object(path)
    try:
        _MODEL.validate_python(config, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, reason = str(first["loc"][0]), first["msg"]
        found = f"{key} is {config[key]!r:.60}" if key in config else f"{key} is missing"
        raise UserError(f"{path}: {found} ({reason[0].lower()}{reason[1:]}); fetch it again") from None
    if config.get("quantization_config"):
        raise UserError(f"{path.parent}: its weights are quantized; use the model in BF16, F16 or F32")
    if "auto_map" in config:  # many models that transformers knows still carry it
        from transformers import CONFIG_MAPPING

        if config["model_type"] not in CONFIG_MAPPING:
            raise UserError(
                f"{path.parent}: it needs code of its own (auto_map), which is never run; use a model that transformers"
                " knows"
            )
    return config


def contradictions(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What config.json and the weights say differently, a line for each; empty where they agree.

    Args:
        config: as `read_config` gives it.
        shapes: name → shape of every tensor.
    """
    if problems := _heads(config):
        return problems
    layers, count, width = _layers(shapes), config.get("num_hidden_layers"), config.get("hidden_size")
    if EMBEDDING in shapes and width and shapes[EMBEDDING][1:] != (width,):
        return [_differ("hidden_size", width, EMBEDDING, shapes)]
    found: dict[str, str] = {}  # one problem for each key, however many tensors show it
    for name, (key, rows) in _rows(config, layers).items():
        if name in shapes and rows and shapes[name][:1] != (rows,):
            found.setdefault(key, _differ(key, config[key], name, shapes))
    if config["model_type"] in _PLAIN and count and layers and layers != list(range(count)):
        found["layers"] = f"its num_hidden_layers is {count}, its weights have {len(layers)} layers"
    return list(found.values())


def _differ(key: str, value: int, name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    return f"its {key} is {value}, but {name} has the shape {list(shapes[name])}"


def _heads(config: Mapping[str, Any]) -> list[str]:
    """Numbers of heads that cannot be."""
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    groups = config.get("num_key_value_heads")
    problems = []
    if heads and width and not config.get("head_dim") and width % heads:
        problems.append(f"its hidden_size {width} is not a multiple of its num_attention_heads {heads}")
    if heads and groups and heads % groups:
        problems.append(
            f"its num_attention_heads {heads} is not a multiple of its num_key_value_heads {groups}"
        )
    return problems


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """The numbers of the layers that tensors belong to, in order."""
    numbers = {name.split(".")[2] for name in shapes if name.startswith("model.layers.")}
    return sorted(int(number) for number in numbers if number.isdecimal())


def _rows(config: Mapping[str, Any], layers: Iterable[int]) -> dict[str, tuple[str, int | None]]:
    """Tensor → the key of config.json that sets how many rows it has, and that number."""
    found = dict.fromkeys((EMBEDDING, HEAD), ("vocab_size", config.get("vocab_size")))
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if config["model_type"] not in _PLAIN or not width or not heads:
        return found
    size = config.get("head_dim") or width // heads
    groups = "num_key_value_heads" if config.get("num_key_value_heads") else "num_attention_heads"
    inner = ("intermediate_size", config.get("intermediate_size"))
    for layer in layers:
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        found |= {f"{mlp}.{name}_proj.weight": inner for name in ("gate", "up")}
        found[f"{attention}.q_proj.weight"] = ("num_attention_heads", heads * size)
        found |= {f"{attention}.{name}_proj.weight": (groups, config[groups] * size) for name in ("k", "v")}
    return found
