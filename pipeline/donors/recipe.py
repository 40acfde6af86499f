"""A recipe: every setting of a donor family, read from yaml and checked."""

import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor")  # those that need no further package


@dataclass(frozen=True)
class Recipe:
    """Every setting of a donor family. A microbatch is what one backward pass takes."""

    name: str = "micro"
    seed: int = 0
    init: str | None = None  # checkpoint to start from, a folder or a hub id; None: pretrain the micro base
    init_revision: str | None = None
    data: str | None = None  # folder with gsm8k/{train,test}.jsonl, or a hub id of GSM8K; None: generated
    data_revision: str | None = None
    train_documents: int | None = None  # the first of the training split; None: all
    think: float = 0.25  # share of training prompts that begin with "Think step by step."

    precision: str = "float32"  # of the weights; bf16 arithmetic is used on top where the hardware has it
    optimizer: str = "adamw_torch"
    gradient_checkpointing: bool = False
    save_steps: int = 100
    wandb: bool = False

    # micro only: the architecture, the base and the instruct target
    vocabulary: int = 1024
    hidden: int = 128
    layers: int = 4
    base_examples: int = 80000
    base_batch: int = 8  # rows of 256 tokens
    base_lr: float = 2e-3
    base_arithmetic: float = 0.5  # share of arithmetic; the other three forms divide the rest
    base_direct: float = (
        0.0  # share of arithmetic answered without steps; half of it after "Think step by step."
    )
    target_examples: int = 8000
    target_batch: int = 32
    target_lr: float = 3e-4
    target_arithmetic: float = 0.05
    target_direct: float = 0.0

    sft_direct: float = 0.0  # share of the SFT answers that are the last line alone, without the steps
    sft_epochs: float = 1.0
    sft_batch: int = 32
    sft_microbatch: int = 32
    sft_lr: float = 3e-4
    sft_max_tokens: int = 512  # prompt and answer; a longer text is refused, not cut

    grpo_start: str = "sft"  # or "init"
    grpo_steps: int = 150
    grpo_prompts: int = 16  # prompts a step
    grpo_rollouts: int = 8  # answers a prompt
    grpo_microbatch: int = 128  # answers in one backward pass
    grpo_lr: float = 3e-5
    grpo_beta: float = 0.0  # weight of the KL term
    grpo_temperature: float = 1.0
    grpo_max_tokens: int = 144  # of an answer
    grpo_vllm: bool = False  # rollouts by vLLM on the same GPU
    grpo_vllm_memory: float = 0.3  # share of the GPU given to vLLM


def load_recipe(path: Path, /, **overrides: str) -> Recipe:
    """The recipe of a yaml file, with `overrides` parsed as yaml values.

    The commit that a recipe pins is that of its own `init` or `data`, and goes when another one is given.

    Raises UserError for what is not yaml, an unknown key, a value of another type or out of range, an override
    without a value, and a setting that would do nothing.
    """
    import difflib

    path = Path(path)
    if not path.is_file():
        raise UserError(f"recipe {path} not found; the recipes are conf/recipe/*.yaml")
    values = _yaml(f"recipe {path}", path.read_bytes())
    if values is None:  # an empty file: all defaults
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"recipe {path}: expected lines of key: value, found {str(values)[:60]!r}")
    for key, text in overrides.items():
        if not text.strip():  # yaml would read null
            raise UserError(f"{key}=: expected a value, found none; give one, or leave {key} out")
    given = {key: _yaml(f"{key}={text}", text) for key, text in overrides.items()}
    for key in ("init", "data"):
        if key in given and given[key] != values.get(key):
            values.pop(f"{key}_revision", None)
    values |= given
    known: dict[Any, Any] = {field.name: field.type for field in fields(Recipe)}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise UserError(
                f"recipe {path}: unknown key {key!r}{f', did you mean {near[0]!r}?' if near else ''}"
            )
        if known[key] is float and type(value) in (int, str):  # yaml reads 2e-3 as a string
            with suppress(ValueError, OverflowError):
                values[key] = value = float(value)
        if not isinstance(value, known[key]) or (type(value) is bool and known[key] is not bool):
            raise UserError(f"recipe {path}: {key} must be {_TYPES[known[key]]}, found {value!r}")
    recipe = Recipe(**values)
    check(recipe)
    return recipe


_TYPES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    int | None: "a whole number or null",
    float: "a number",
    str: "text (quoted, if it is a number)",
    str | None: "text (quoted, if it is a number) or null",
}


def _yaml(what: str, text: str | bytes) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{what}: not valid yaml ({' '.join(str(error).split())[:160]}); mend it") from None


def check(recipe: Recipe) -> None:
    """Raise UserError for the first setting that is out of range."""
    rules: list[tuple[str, str, Callable[[Any], bool]]] = [
        (
            "think base_arithmetic base_direct target_arithmetic target_direct sft_direct",
            "a share from 0 to 1",
            lambda value: 0 <= value <= 1,
        ),
        (
            "save_steps layers base_examples base_batch target_examples target_batch sft_batch sft_microbatch"
            " sft_max_tokens grpo_steps grpo_prompts grpo_microbatch grpo_max_tokens",
            "above 0",
            lambda value: value > 0,
        ),
        ("train_documents", "above 0, or null for all", lambda value: value is None or value > 0),
        (
            "base_lr target_lr sft_lr sft_epochs grpo_lr grpo_temperature",
            "finite and above 0",
            lambda value: 0 < value < math.inf,
        ),
        ("grpo_beta", "finite and at least 0", lambda value: 0 <= value < math.inf),
        ("grpo_vllm_memory", "a share above 0 and at most 1", lambda value: 0 < value <= 1),
        ("grpo_rollouts", "at least 2, to be compared with each other", lambda value: value >= 2),
        ("grpo_start", "'sft' or 'init'", lambda value: value in ("sft", "init")),
        ("seed", "from 0 to 4294967295", lambda value: 0 <= value < 2**32),
        ("vocabulary", "at least 259, the bytes and 3 turn markers", lambda value: value >= 259),
        ("hidden", "a multiple of 64 above 0", lambda value: value > 0 and value % 64 == 0),
        ("precision", "float32 or bfloat16", lambda value: value in ("float32", "bfloat16")),
        ("optimizer", f"one of {', '.join(OPTIMIZERS)}", lambda value: value in OPTIMIZERS),
    ]
    for names, expected, fits in rules:
        for name in names.split():
            if not fits(value := getattr(recipe, name)):
                raise UserError(f"recipe {recipe.name}: {name} must be {expected}, found {value!r}")
    for batch, micro_batch, what in (
        (recipe.sft_batch, recipe.sft_microbatch, "sft_batch"),
        (recipe.grpo_prompts * recipe.grpo_rollouts, recipe.grpo_microbatch, "grpo_prompts * grpo_rollouts"),
    ):
        if batch % micro_batch:
            raise UserError(f"{what} = {batch} must be a multiple of the microbatch, found {micro_batch}")
    for name, needs, given in (
        ("init_revision", "an init on the hub", recipe.init and not Path(recipe.init).is_dir()),
        ("data_revision", "a data set on the hub", recipe.data and not Path(recipe.data).is_dir()),
    ):
        value, default = getattr(recipe, name), getattr(Recipe, name)
        if value != default and not given:
            raise UserError(f"{name}={value!r} does nothing without {needs}; leave it out, or give that")
    for field in fields(Recipe) if recipe.init is not None else ():
        value = getattr(recipe, field.name)
        if re.match("vocabulary|hidden|layers|base_|target_", field.name) and value != field.default:
            raise UserError(
                f"recipe {recipe.name}: {field.name}={value!r} does nothing where init is given; leave it out, or"
                f" set {field.name}={field.default}"
            )
