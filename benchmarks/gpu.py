"""Stages, swap, throughput and memory on models of Qwen2.5's shapes, with made-up weights: what a GPU takes for the paper.

    python -m benchmarks.gpu [size=1.5b] [dir=.bench/gpu] [engine=gpu limit=500 … overrides of the experiment]

Writes target and donors of that size (tied head for 1.5b, its own for 7b), and measures what `benchmarks.throughput` does
on the generated arithmetic and BBH-form documents: seconds to plan (fingerprints), extract, start and swap, tokens per
second of our path beside a bare `LLM.generate`, and memory. Answers of such models never end, so every one is as long as
its limit; `ours_tokens_per_s` is what `tokens_per_second` of conf/family means, with answers of the real length it is
lower. `size=tiny engine=cpu` tries the path without a GPU. Disk: 4 × (1.5b) 3.1 GB or (7b) 15.2 GB and the vector.
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import apply, throughput
from pipeline.errors import UserError
from tests import tiny

SHAPES: dict[str, dict[str, Any]] = {  # config.json of the models on the hub
    "1.5b": apply.settings(28),
    "7b": tiny.config(
        rows=152064,
        tied=False,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        rope_theta=1e6,
    ),
    "tiny": tiny.config(rows=512, tied=False, max_position_embeddings=4096),
}


def main(arguments: list[str]) -> None:
    """Make the models that are missing, measure, and print the figures as JSON."""
    options = {"size": "1.5b", "dir": ".bench/gpu"} | dict(a.split("=", 1) for a in arguments)
    size, folder = options.pop("size"), Path(options.pop("dir"))
    if size not in SHAPES:
        raise UserError(f"size={size}: expected one of {', '.join(SHAPES)}")
    models = (folder / size).resolve()
    if not (models / "whole").exists():
        apply.generate(models, SHAPES[size])
        (models / "whole").touch()
    parts = [f"families.micro.{part}.id={models / part}" for part in ("target", "sft", "grpo")]
    chosen = {"engine": "gpu", "limit": "500"} | options
    overrides = [*parts, "families.micro.base=null", *(f"{key}={value}" for key, value in chosen.items())]
    print(json.dumps({"size": size, **throughput.measure(overrides)}, indent=1))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as e:
        sys.exit(f"error: {e}")
