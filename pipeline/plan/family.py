"""The checkpoints of one target and its donors, opened."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pipeline.config.schema import CheckpointConfig, FamilyConfig, Weights
from pipeline.errors import UserError
from pipeline.files import ROOT, digest
from pipeline.plan.grid import Condition, donors_of
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.parts import PARTS_VERSION, Part


@dataclass(frozen=True)
class Family:
    """The checkpoints of one target and its donors, and where its vector is."""

    name: str
    config: FamilyConfig
    target: Checkpoint
    sft: Checkpoint | None
    grpo: Checkpoint | None
    base: Checkpoint | None
    vector_key: str | None

    def checkpoint(self, weights: Weights) -> Checkpoint:
        """The checkpoint that a condition starts from: a donor or the base, or the target that v is added to."""
        found = {Weights.sft: self.sft, Weights.grpo: self.grpo, Weights.base: self.base}.get(
            weights, self.target
        )
        if found is None:
            raise UserError(
                f"families.{self.name}.{weights.value}: a condition needs this checkpoint; set its id"
            )
        return found

    @cached_property
    def architecture(self) -> str:
        """Families with equal values can share one engine."""
        return digest([model_config(self.target), self.target.tokenizer_fingerprint])


def vector_key_of(family: Family, variant: Part | None) -> str | None:
    return (
        family.vector_key if variant is None else digest([family.vector_key, asdict(variant), PARTS_VERSION])
    )


def locate(source: CheckpointConfig) -> str:
    """A folder or hub id; shipped checkpoints are found from any working directory."""
    local = ROOT / source.id
    return str(local) if local.is_dir() else source.id


def open_family(name: str, config: FamilyConfig, conditions: list[Condition]) -> Family:
    def opened(part: str, source: CheckpointConfig | None) -> Checkpoint | None:
        if source is None:
            return None
        return Checkpoint.open(locate(source), source.revision)

    target = opened("target", config.target)
    assert target is not None
    if config.chat and target.chat_template_hash is None:
        raise UserError(
            f"{target.source}: expected a chat template, found none; set families.{name}.chat=false for a base model"
        )
    sft, grpo, base = opened("sft", config.sft), opened("grpo", config.grpo), opened("base", config.base)
    vector_key = None
    if sft is not None and grpo is not None:
        vector_key = digest({"difference": [grpo.fingerprint, sft.fingerprint]})
    elif config.donors is None and any(len(donors_of(c)) == 2 for c in conditions):
        raise UserError(f"families.{name}: conditions with a vector need both donors; set sft.id and grpo.id")
    return Family(name, config, target, sft, grpo, base, vector_key)


def model_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json without what only describes its origin, and the stop tokens of generation_config.json."""
    origin = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
    model = {k: v for k, v in checkpoint.config.items() if k not in origin}
    path = checkpoint.path / "generation_config.json"
    try:
        generation = json.loads(path.read_text()) if path.is_file() else {}
        return {"config": digest(model), "eos_token_id": generation.get("eos_token_id")}
    except (ValueError, AttributeError) as e:
        raise UserError(f"{path}: cannot be read as JSON ({e}); mend it or download it again") from None
