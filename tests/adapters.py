"""A LoRA adapter of the tiny model, for tests."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests import tiny

RANK, ALPHA = 4, 6
ADAPTED = ("self_attn.q_proj", "mlp.down_proj")


def names() -> list[str]:
    return [f"model.layers.{layer}.{module}" for layer in (0, 1) for module in ADAPTED]


def write_adapter(path: Path, seed: int = 0, size: float = 0.02, **settings: Any) -> Path:
    """A PEFT folder of the tiny model, as `save_pretrained` lays it out."""
    generator, shapes = torch.Generator().manual_seed(seed), tiny.shapes(tiny.config())
    state = {}
    for module in names():
        rows, columns = shapes[f"{module}.weight"]
        for side, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
            state[f"base_model.model.{module}.lora_{side}.weight"] = size * torch.randn(
                shape, generator=generator
            )
    path.mkdir(parents=True)
    save_file(state, path / "adapter_model.safetensors")
    known = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    known |= {"base_model_name_or_path": "my/tiny", "target_modules": ["q_proj", "down_proj"]}
    (path / "adapter_config.json").write_text(json.dumps(known | settings))
    return path
