"""Compose a recipe of conf/recipe/ with Hydra into a checked, frozen `Recipe`.

    from pipeline.donors.compose import compose_recipe
    recipe = compose_recipe(["recipe=micro", "seed=1", "sft.epochs=2"])

The same overrides, errors and search path as for experiments (pipeline/config/compose.py).
"""

import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from pipeline.config.explain import CONF
from pipeline.config.roots import composed
from pipeline.donors.recipe import FORMER_KEYS, SECTIONS, Recipe, flat, settings
from pipeline.errors import UserError

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor")  # those that need no further package

# The values alone, without their types: Hydra would convert silently what `_typed` refuses.
ConfigStore.instance().store(name="recipe_schema", node=asdict(Recipe()))
DEFAULTS = settings(Recipe())


def compose_recipe(overrides: list[str]) -> Recipe:
    """Compose conf/donors.yaml with `overrides` (`recipe=micro`, `sft.epochs=2`) into a checked `Recipe`.

    The commit that a recipe pins is that of its own `init` or `data`, and goes when another one is given.

    Raises:
        UserError: for an unknown key or recipe, naming the nearest that exists; for a value of another type or out of
            range, an override without a value, a key from before recipes had sections, and a setting that would do nothing.
    """
    for override in overrides:
        _check_override(override)
    recipe = composed("donors", Recipe, overrides, _typed)
    keys = [override.lstrip("+").split("=")[0] for override in overrides]
    if any(key.split(".")[0] in ("init", "data") for key in keys):
        chosen = [o for o, key in zip(overrides, keys, strict=True) if key in ("recipe", "hydra.searchpath")]
        recipe = _unpinned(recipe, composed("donors", Recipe, chosen, _typed), overrides)
    check(recipe)
    return recipe


def _check_override(override: str) -> None:
    """What Hydra would accept or explain badly.

    Raises:
        UserError: for an empty value, a recipe given by its path, and a key from before recipes had sections.
    """
    key, equals, value = override.partition("=")
    if equals and not value.strip():
        raise UserError(f"{key}=: expected a value, found none; give one, or leave {key} out")
    if key == "recipe" and ("/" in value or value.endswith((".yaml", ".yml"))):
        raise UserError(f"{override}: expected a recipe's name, found a path; {_by_name(Path(value))}")
    if key == "recipe" and value.startswith("["):
        raise UserError(f"{override}: expected the name of one recipe")
    if not value.startswith("{"):  # data={documents: 8} is a section
        _check_former(key.lstrip("+~"))


def _by_name(path: Path) -> str:
    """How to choose the recipe of a file."""
    parent = path.absolute().parent
    if parent == CONF / "recipe":
        return f"write recipe={path.stem}"
    if parent.name == "recipe":
        return f"write recipe={path.stem} 'hydra.searchpath=[{parent.parent}]'"
    return (
        f"move it to FOLDER/recipe/{path.stem}.yaml and write recipe={path.stem} 'hydra.searchpath=[FOLDER]'"
    )


def _check_former(key: str) -> None:
    if key in FORMER_KEYS:
        raise UserError(f"'{key}' is of an earlier version; write {FORMER_KEYS[key]}")


def _typed(composed: DictConfig) -> Recipe:
    """The composed values as a recipe.

    Raises:
        UserError: for a section that is not one, and for what yaml reads as another type than the schema has.
    """
    raw = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    _check_sections(raw)
    schema = OmegaConf.structured(Recipe)
    for node in (schema, *(schema[section] for section in SECTIONS)):
        OmegaConf.set_readonly(node, None)  # what a frozen dataclass declares is read-only
    recipe = cast(Recipe, OmegaConf.to_object(OmegaConf.merge(schema, raw)))
    given = flat(raw)
    for key, value in settings(recipe).items():
        if key not in given:
            raise UserError(f"{key}: a value is required; set it")
        if type(value) is not type(given[key]) and not isinstance(value, float):  # 2 and "2e-3" are numbers
            kinds = {bool: "true or false", int: "a whole number", str: "text (quoted, if it is a number)"}
            raise UserError(f"{key}: expected {kinds[type(value)]}, found {given[key]!r}")
    return recipe


def _check_sections(raw: dict[str, Any]) -> None:
    """Raise UserError for a section without settings, or a file whose keys are not at the top level."""
    if "recipe" in raw:
        raise UserError(
            "the recipe's file: expected lines of key: value after a first line '# @package _global_', found"
            f" {str(raw['recipe'])[:60]}"
        )
    for key, value in raw.items():
        if not isinstance(value, dict):
            _check_former(str(key))
            if key in SECTIONS:
                like = next(known for known in DEFAULTS if known.startswith(f"{key}."))
                raise UserError(f"{key}: expected settings such as {like}, found {value!r}")


def _unpinned(recipe: Recipe, own: Recipe, overrides: list[str]) -> Recipe:
    """The recipe without the commits that were pinned for its `own` `init` and `data`, if it has others."""
    for section in ("init", "data"):
        stated = any(re.match(rf"\+*{section}(\.revision=|=.*revision)", override) for override in overrides)
        source = getattr(recipe, section)
        if source.id != getattr(own, section).id and not stated:
            recipe = replace(recipe, **{section: replace(source, revision=None)})
    return recipe


def check(recipe: Recipe) -> None:
    """Check what the types do not say.

    Raises:
        UserError: for the first setting that is out of range, or would do nothing.
    """
    values = settings(recipe)
    rules: list[tuple[str, str, Callable[[Any], bool]]] = [
        (
            "name",
            "letters, digits, '.', '_' or '-' (it names files and folders)",
            lambda value: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value) is not None,
        ),
        (
            "think base.arithmetic base.direct target.arithmetic target.direct sft.direct",
            "a share from 0 to 1",
            lambda value: 0 <= value <= 1,
        ),
        (
            "save_steps base.layers base.examples base.batch target.examples target.batch sft.batch sft.microbatch"
            " sft.max_tokens grpo.steps grpo.prompts grpo.microbatch grpo.max_tokens",
            "a number above 0",
            lambda value: value > 0,
        ),
        ("data.documents", "a number above 0, or null for all", lambda value: value is None or value > 0),
        (
            "base.lr target.lr sft.lr sft.epochs grpo.lr grpo.temperature",
            "a finite number above 0",
            lambda value: 0 < value < math.inf,
        ),
        ("grpo.beta", "a finite number, at least 0", lambda value: 0 <= value < math.inf),
        ("grpo.vllm_memory", "a share above 0 and at most 1", lambda value: 0 < value <= 1),
        ("grpo.rollouts", "at least 2, to be compared with each other", lambda value: value >= 2),
        ("grpo.start", "'sft' or 'init'", lambda value: value in ("sft", "init")),
        ("seed", "a number from 0 to 4294967295", lambda value: 0 <= value < 2**32),
        ("base.vocabulary", "at least 259, the bytes and 3 turn markers", lambda value: value >= 259),
        ("base.hidden", "a multiple of 64 above 0", lambda value: value > 0 and value % 64 == 0),
        ("precision", "float32 or bfloat16", lambda value: value in ("float32", "bfloat16")),
        ("optimizer", f"one of {', '.join(OPTIMIZERS)}", lambda value: value in OPTIMIZERS),
    ]
    for keys, expected, fits in rules:
        for key in keys.split():
            if not fits(values[key]):
                raise UserError(f"{key}: expected {expected}, found {values[key]!r}")
    _check_microbatches(recipe)
    _check_effect(recipe)


def _check_microbatches(recipe: Recipe) -> None:
    for what, batch, section in (
        ("sft.batch", recipe.sft.batch, recipe.sft),
        ("grpo.prompts * grpo.rollouts", recipe.grpo.prompts * recipe.grpo.rollouts, recipe.grpo),
    ):
        if batch % section.microbatch:
            key = f"{what.split('.')[0]}.microbatch"
            raise UserError(f"{key}: expected a divisor of {what} = {batch}, found {section.microbatch}")


def _check_effect(recipe: Recipe) -> None:
    """Raise UserError for the first setting that would do nothing."""
    for section, needs in (("init", "an init on the hub"), ("data", "a data set on the hub")):
        source = getattr(recipe, section)
        if source.revision is not None and not (source.id and not Path(source.id).is_dir()):
            raise UserError(
                f"{section}.revision={source.revision!r} does nothing without {needs}; leave it out, or set {section}.id"
            )
    for key, value in settings(recipe).items() if recipe.init.id is not None else ():
        if key.split(".")[0] in ("base", "target") and value != DEFAULTS[key]:
            raise UserError(
                f"{key}={value!r} does nothing where init is given; leave it out, or set {key}={DEFAULTS[key]}"
            )
