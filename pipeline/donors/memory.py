"""What a recipe takes of each card, estimated before it is trained; not measured on a GPU.

    for need in needs(recipe, config, processes=8, card=80e9):
        print(need)

Parameters, gradients and the states of the optimizer are split between the processes. What is not: the layer that is
gathered and the one that is fetched ahead (one process computes with a bf16 copy of all), the activations of a microbatch,
its logits, and vLLM's share of the card.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.donors.recipe import Recipe

BYTES = {"float32": 4, "bfloat16": 2}
STATES = {
    "adamw_torch": 2,
    "adamw_torch_fused": 2,
    "adafactor": 0,
}  # numbers a parameter; Adafactor's are few
PROMPT = 256  # tokens of a problem, where the recipe says only how long an answer may be
ACTIVATIONS = (
    34  # bytes a token, layer and unit of width, in 16 bits (arXiv 2205.05198, without attention's matrix)
)
BOUNDARY = 2  # of these, what gradient checkpointing keeps
LOGITS = 10  # bytes a token and entry of the vocabulary: 16 bits, and in fp32 with their gradient


@dataclass(frozen=True)
class Need:
    """Bytes of each card that a stage takes, by what takes them."""

    stage: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{what} {size / 1e9:.1f}" for what, size in self.parts.items() if size)
        return f"{self.stage}: {self.total / 1e9:.1f} GB ({parts})"


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that memory depends on."""

    vocabulary: int
    hidden: int
    layers: int
    layer: int  # parameters of one layer
    embeddings: int  # parameters of embedding and head

    @property
    def parameters(self) -> int:
        return self.embeddings + self.layers * self.layer + self.hidden

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        """From a config.json of Llama's or Qwen2's kind."""
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head = int(config.get("head_dim") or hidden // heads)
        keys = head * int(config.get("num_key_value_heads") or heads)
        attention = 2 * hidden * head * heads + 2 * hidden * keys
        layer = attention + 3 * hidden * int(config["intermediate_size"]) + 2 * hidden
        vocabulary = int(config["vocab_size"])
        embeddings = (1 if config.get("tie_word_embeddings") else 2) * vocabulary * hidden
        return cls(vocabulary, hidden, int(config["num_hidden_layers"]), layer, embeddings)


def needs(recipe: Recipe, config: Mapping[str, Any], processes: int, card: float) -> Iterator[Need]:
    """What SFT and GRPO take of each card.

    Args:
        config: config.json of the model.
        card: bytes of a card, of which vLLM takes its share.
    """
    shape = Shape.of(config)
    yield Need("sft", _parts(recipe, shape, processes, recipe.sft.microbatch, recipe.sft.max_tokens))
    tokens = PROMPT + recipe.grpo.max_tokens
    parts = _parts(recipe, shape, processes, recipe.grpo.microbatch, tokens)
    if recipe.grpo.beta:
        parts["reference model"] = parts["parameters"]
    if recipe.grpo.vllm:
        parts["vLLM"] = recipe.grpo.vllm_memory * card
    yield Need("grpo", parts)


def _parts(recipe: Recipe, shape: Shape, processes: int, rows: int, tokens: int) -> dict[str, float]:
    size = BYTES[recipe.precision]
    share = shape.parameters * size / processes
    kept = rows * tokens * shape.hidden
    layers = BOUNDARY * shape.layers + ACTIVATIONS if recipe.gradient_checkpointing else 0
    copies = shape.parameters * BYTES["bfloat16"] if processes == 1 and size == BYTES["float32"] else 0
    gathered = 2 * max(shape.layer, shape.embeddings) * BYTES["bfloat16"] if processes > 1 else 0
    return {
        "parameters": share,
        "gradients": share,
        "optimizer": STATES[recipe.optimizer] * share,
        "copies in bf16": float(copies),
        "gathered layers": float(gathered),
        "activations": float(kept * (layers or ACTIVATIONS * shape.layers)),
        "logits": float(rows * tokens * shape.vocabulary * LOGITS),
    }


def described(recipe: Recipe, config: Mapping[str, Any], processes: int, card: float | None) -> list[str]:
    """A line for each stage, and whether it fits.

    Args:
        card: bytes of the smallest card; None where there is none.
    """
    found = list(needs(recipe, config, processes, card or 0.0))
    cards = "the card" if processes == 1 else f"each of {processes} cards"
    lines = [f"memory of {cards}, estimated · {need}" for need in found]
    if processes > 1:
        host = processes * Shape.of(config).parameters * BYTES[recipe.precision]
        lines.append(
            f"memory of the host, estimated · {host / 1e9:.1f} GB while every process loads the model"
        )
    most = max(need.total for need in found)
    if card is None:
        return [
            *lines,
            "no GPU here; vLLM takes its share of the card on top" if recipe.grpo.vllm else "no GPU here",
        ]
    if most <= card:
        return [*lines, f"it fits: the smallest card has {card / 1e9:.1f} GB"]
    remedy = "give more GPUs (processes=N), or lower sft.microbatch, grpo.microbatch or grpo.vllm_memory"
    return [*lines, f"it does not fit: the smallest card has {card / 1e9:.1f} GB; {remedy}"]
