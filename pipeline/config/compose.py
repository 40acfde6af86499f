"""Compose conf/ with Hydra into a checked `Config`.

    from pipeline.config.compose import compose
    config = compose(["experiment=micro", "tasks=[gsm8k]"])

Nothing is read that is not declared in the schema: an unknown or misspelt key, a missing group option or a value
of the wrong type becomes one `UserError` that names the nearest neighbour.
"""

import re
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from pipeline.config.checks import check, check_declared
from pipeline.config.roots import composed
from pipeline.config.schema import PARTS, CheckpointConfig, Config, PartConfig, Start, frozen, plain
from pipeline.errors import UserError

ADDED = r"\+(families|benchmarks|conditions|prompts)\."
"""Entries that are added key by key: Hydra itself adds no typed entry to a dictionary."""


def compose(overrides: list[str]) -> Config:
    """Compose conf/config.yaml with `overrides` into a checked `Config`, which takes no change after that.

    Raises:
        UserError: for an unknown key, group option or value, naming the nearest that exists.
    """
    written = [*map(_long_form, overrides), *_unpinned(overrides)]
    added = [override for override in written if re.match(ADDED, override)]

    def typed(cfg: DictConfig) -> Config:
        OmegaConf.set_struct(cfg, False)  # dictionaries take a new key; what is typed stays typed
        for override in OverridesParser.create().parse_overrides(added):
            value = override.value()
            for key in reversed(override.key_or_group.split(".")):
                value = {key: value}
            cfg = typing.cast(DictConfig, OmegaConf.merge(cfg, value))  # as a file of the configuration is
        return typing.cast(Config, OmegaConf.to_object(cfg))

    config = composed("config", Config, [o for o in written if o not in added], typed, overrides)
    check_declared(config)
    _fill_in(config)
    _label(config, written)
    check(config)
    return typing.cast(Config, frozen(config))


def changed(config: Config, **changes: Any) -> Config:
    """A configuration with other values at its top level; the one given stays as it is."""
    return typing.cast(Config, frozen(replace(config, **changes)))


def without(config: Config, family: str) -> Config:
    """A configuration without one of its families, and without the conditions that add that family's vector."""
    families = [name for name in config.chosen_families() if name != family]
    adding = [
        name for name, c in config.chosen_conditions().items() if any(t.family == family for t in c.terms)
    ]
    conditions = [name for name in config.chosen_conditions() if name not in adding]
    return changed(config, chosen=replace(config.chosen, families=families, conditions=conditions))


def as_yaml(config: Config) -> str:
    """The whole configuration as text, as it is after composition."""
    return yaml.safe_dump(
        plain(config), allow_unicode=True, sort_keys=False, default_flow_style=None, width=110
    )


def _long_form(override: str) -> str:
    """`families=[…]` and `conditions=[…]` choose from what is there; a list of one may be written without brackets."""
    key, equals, value = override.partition("=")
    if (
        key in ("families", "tasks", "alpha", "stages")
        and equals
        and re.match(r"[^\[{$'\"]", value)
        and value != "null"
    ):
        value = f"[{value}]"
    if key == "families" or (key == "conditions" and value.startswith("[")):
        key = f"chosen.{key}"
    return f"{key}{equals}{value}"


def _fill_in(config: Config) -> None:
    """What the schema cannot say: an empty source is none, donors that a recipe has trained are found by their folder."""
    for group in ("families", "benchmarks", "conditions", "prompts"):
        for name, value in getattr(config, group).items():
            if value is None:
                raise UserError(f"{group}.{name}: a value is required, found null; leave it out of its group")
    for condition in config.conditions.values():
        if condition.part == PartConfig():
            condition.part = None
        for term in condition.terms:
            if term.part == PartConfig():
                term.part = None
    for family in config.families.values():
        for part in PARTS[1:]:
            if (source := getattr(family, part)) is not None and not source.id:
                trained = Path(family.donors or "", part)
                is_there = family.donors is not None and (trained / "training.json").is_file()  # written last
                setattr(family, part, CheckpointConfig(str(trained)) if is_there else None)
        waits = family.donors is not None and (family.sft is None or family.grpo is None)
        if (waits or family.unnamed()) and all(c.start is not Start.base for c in config.conditions.values()):
            family.base = None  # it is for the vector's geometry alone


def _label(config: Config, overrides: list[str]) -> None:
    """A row whose weights an override changes, but not its label, says in its label what they are now."""
    for name, condition in config.conditions.items():
        of = rf"conditions\.{re.escape(name)}\."
        if any(re.match(f"{of}label=", override) for override in overrides):
            continue
        # A list of α is a sweep, each row of which has its α in its label.
        said = [
            re.match(rf"{of}((?:start|alpha(?==[^\[])|part|terms)\b.*)", override) for override in overrides
        ]
        if changed := [" ".join(match[1].split()) for match in said if match]:
            condition.label = f"{condition.label} [{', '.join(changed)}]"


def _unpinned(overrides: list[str]) -> Iterator[str]:
    """Another id leaves behind the revision and size of the one that the configuration names, and what is said of it."""
    keys = [override.lstrip("+").split("=")[0] for override in overrides]
    for override, key in zip(overrides, keys, strict=True):
        sign = "+" if override.startswith("+") else ""  # an entry of its own is added key by key
        source = re.fullmatch(
            r"(families\.\w+\.(?:target|sft|grpo|base))\.id|(benchmarks\.\w+\.dataset)\.id", key
        )
        if source is not None:
            facts = ("revision", "size_gb", "subfolder", "merge_into") if source[1] else ("revision",)
            where = source[1] or source[2]
            left = [f"{where}.{fact}" for fact in facts]
            if where.endswith((".sft", ".grpo")):
                left.append(f"{where.rpartition('.')[0]}.pair")
            yield from (f"{sign}{fact}=null" for fact in left if fact not in keys)
