"""A recipe: every setting of a donor family. `pipeline.donors.compose` makes one of conf/recipe/.

Each stage of training has a section of its own (`base`, `target`, `sft`, `grpo`); `init` and `data` say what training starts
from and what it reads; the rest belongs to all stages.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING


def bookkeeping(default: Any) -> Any:
    """A setting that cannot change the weights, so that a stage trained with another value can be reused."""
    return field(default=default, metadata={"bookkeeping": True})


@dataclass(frozen=True)
class Init:
    """The checkpoint that training starts from."""

    id: str | None = None  # a folder or a hub id; null: the micro base is pretrained from nothing
    revision: str | None = None


@dataclass(frozen=True)
class Data:
    """The problems that the donors are trained on."""

    id: str | None = None  # a folder with gsm8k/{train,test}.jsonl, or a hub id of GSM8K; null: generated
    revision: str | None = None
    documents: int | None = None  # the first of the training split; null: all


@dataclass(frozen=True)
class TextStage:
    """Training on generated text of all four forms."""

    examples: int
    batch: int
    lr: float
    arithmetic: float  # share of arithmetic; the other three forms divide the rest
    direct: float = 0.0  # share of arithmetic answered without steps; half of it after "Think step by step."


@dataclass(frozen=True)
class BaseStage(TextStage):
    """The micro base, pretrained from nothing; only where no `init` is given."""

    examples: int = 80000
    batch: int = 8  # rows of 256 tokens
    lr: float = 2e-3
    arithmetic: float = 0.5
    vocabulary: int = 1024
    hidden: int = 128
    layers: int = 4


@dataclass(frozen=True)
class TargetStage(TextStage):
    """The micro family's instruct target, trained from the base."""

    examples: int = 8000
    batch: int = 32
    lr: float = 3e-4
    arithmetic: float = 0.05


@dataclass(frozen=True)
class SftStage:
    """Supervised fine-tuning. A microbatch is what one backward pass takes."""

    direct: float = 0.0  # share of the answers that are the last line alone, without the steps
    epochs: float = 1.0
    batch: int = 32
    microbatch: int = 32
    lr: float = 3e-4
    max_tokens: int = bookkeeping(512)  # prompt and answer; a longer text is refused, not cut


@dataclass(frozen=True)
class GrpoStage:
    """Reinforcement learning with GRPO."""

    start: str = "sft"  # or "init"
    steps: int = 150
    prompts: int = 16  # prompts a step
    rollouts: int = 8  # answers a prompt
    microbatch: int = 128  # answers in one backward pass
    lr: float = 3e-5
    beta: float = 0.0  # weight of the KL term
    temperature: float = 1.0
    max_tokens: int = 144  # of an answer
    vllm: bool = False  # rollouts by vLLM on the same GPU
    vllm_memory: float = 0.3  # share of the GPU given to vLLM


@dataclass(frozen=True)
class Recipe:
    """Every setting of a donor family."""

    name: str = bookkeeping(MISSING)
    seed: int = 0
    think: float = 0.25  # share of training prompts that begin with "Think step by step."
    precision: str = "float32"  # of the weights; bf16 arithmetic is used on top where the hardware has it
    optimizer: str = "adamw_torch"
    gradient_checkpointing: bool = False
    save_steps: int = bookkeeping(100)
    wandb: bool = bookkeeping(False)
    init: Init = Init()
    data: Data = Data()
    base: BaseStage = BaseStage()
    target: TargetStage = TargetStage()
    sft: SftStage = SftStage()
    grpo: GrpoStage = GrpoStage()


SECTIONS = tuple(section.name for section in fields(Recipe) if is_dataclass(section.default))


def settings(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its key, such as `sft.epochs`."""
    return flat(asdict(recipe))


def flat(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record by their keys; records from before recipes had sections are read too."""
    found: dict[str, Any] = {}
    for key, value in recorded.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": setting for inner, setting in value.items()}
        else:
            found[FORMER_KEYS.get(key, key)] = value
    return found


def compared(recipe: Recipe, *sections: str) -> dict[str, Any]:
    """The settings that can change the weights of a stage: those of `sections`, and those that all stages share."""
    chosen = {"init", *sections}
    return {
        key: value
        for key, value in settings(recipe).items()
        if key not in BOOKKEEPING and ("." not in key or key.split(".")[0] in chosen)
    }


def _keys() -> Iterator[tuple[str, bool]]:
    """Each setting's key, and whether it is bookkeeping."""
    for outer in fields(Recipe):
        if outer.name not in SECTIONS:
            yield outer.name, "bookkeeping" in outer.metadata
            continue
        for inner in fields(getattr(Recipe(), outer.name)):
            yield f"{outer.name}.{inner.name}", "bookkeeping" in inner.metadata


BOOKKEEPING = {key for key, is_bookkeeping in _keys() if is_bookkeeping}
# Before recipes had sections, `sft.epochs` was `sft_epochs`; these had other names.
FORMER_KEYS = {key.replace(".", "_"): key for key, _ in _keys() if "." in key} | {
    "init": "init.id",
    "data": "data.id",
    "train_documents": "data.documents",
    "vocabulary": "base.vocabulary",
    "hidden": "base.hidden",
    "layers": "base.layers",
}
