"""Tiny random Qwen2 checkpoints with a small tokenizer, for tests: about 60,000 parameters, or a few more."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

TOKENS = 90
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}"


def config(rows: int = 96, tied: bool = True, **changes: Any) -> dict[str, Any]:
    """A Qwen2 configuration with two heads of size 32 and two layers."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "use_sliding_window": False,
        "vocab_size": rows,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    } | changes


def shapes(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name → shape of a Qwen2 model's parameters, without the head."""
    width, inner = settings["hidden_size"], settings["intermediate_size"]
    narrow = width * settings["num_key_value_heads"] // settings["num_attention_heads"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (settings["vocab_size"], width)}
    for layer in range(settings["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, size in (("q", width), ("k", narrow), ("v", narrow)):
            found[f"{prefix}self_attn.{name}_proj.weight"] = (size, width)
            found[f"{prefix}self_attn.{name}_proj.bias"] = (size,)
        found[f"{prefix}self_attn.o_proj.weight"] = (width, width)
        found[f"{prefix}mlp.gate_proj.weight"] = (inner, width)
        found[f"{prefix}mlp.up_proj.weight"] = (inner, width)
        found[f"{prefix}mlp.down_proj.weight"] = (width, inner)
        found[f"{prefix}input_layernorm.weight"] = (width,)
        found[f"{prefix}post_attention_layernorm.weight"] = (width,)
    found["model.norm.weight"] = (width,)
    return found


def weights(
    settings: dict[str, Any], seed: int, head: bool = False, dtype: torch.dtype = torch.bfloat16
) -> dict[str, torch.Tensor]:
    """Random parameters; with `head`, a separate one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in (
        shapes(settings)
        | ({"lm_head.weight": (settings["vocab_size"], settings["hidden_size"])} if head else {})
    ).items():
        values = torch.randn(shape, generator=generator) * 0.05
        state[name] = (values + 1 if name.endswith("norm.weight") else values).to(dtype)
    return state


def moved(
    state: dict[str, torch.Tensor], seed: int, share: float = 0.2, scale: float = 0.01
) -> dict[str, torch.Tensor]:
    """The same parameters with noise on a share of the entries, as a fine-tune has."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator) * scale
        chosen = torch.rand(tensor.shape, generator=generator) < share
        result[name] = torch.where(chosen, tensor.float() + noise, tensor.float()).to(tensor.dtype)
    return result


def write(
    path: Path,
    state: dict[str, torch.Tensor] | int = 0,
    shards: int = 1,
    tokens: int = TOKENS,
    template: str = CHAT_TEMPLATE,
    **settings: Any,
) -> Path:
    """Writes a checkpoint folder: `state` are weights, or the seed of random ones; `settings` go to `config`.

    A model that is not tied needs a head in `state`; random weights get one.
    """
    settings = config(**settings)
    if isinstance(state, int):
        state = weights(settings, state, head=not settings["tie_word_embeddings"])
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(settings))
    (path / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 0, "eos_token_id": 1, "do_sample": False})
    )
    write_tokenizer(path, tokens, template)
    if shards == 1:
        save_file(state, path / "model.safetensors", metadata={"format": "pt"})
        return path
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: state[name] for name in list(state)[number::shards]}
        save_file(part, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in state.values())
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map})
    )
    return path


def write_tokenizer(path: Path, tokens: int = TOKENS, template: str = CHAT_TEMPLATE) -> None:
    """A tokenizer of whole words: <|im_start|>, <|im_end|>, <|pad|> and numbers."""
    special = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    vocabulary = {
        token: index for index, token in enumerate(special + [str(n) for n in range(tokens - len(special))])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<|im_start|>",
                "eos_token": "<|im_end|>",
                "pad_token": "<|pad|>",
                "chat_template": template,
            }
        )
    )
