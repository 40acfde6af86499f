"""Compose conf/ with Hydra into a checked `Config`.

    from pipeline.config.compose import compose
    config = compose(["experiment=micro", "sizes=[micro]"])

Nothing is read that is not declared in the schema: an unknown or misspelt key, a missing group option or a value
of the wrong type becomes one `UserError` that names the nearest neighbour.
"""

import re
import typing
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from pipeline.config.checks import check, check_declared
from pipeline.config.roots import composed
from pipeline.config.schema import CheckpointConfig, Config, VariantConfig, Weights
from pipeline.errors import UserError


def compose(overrides: list[str]) -> Config:
    """Compose conf/config.yaml with `overrides` into a validated `Config`.

    Raises:
        UserError: for an unknown key, group option or value, naming the nearest that exists.
    """
    written = [*overrides, *_unpinned(overrides)]
    config = composed("config", Config, written, lambda cfg: typing.cast(Config, OmegaConf.to_object(cfg)))
    for part in ("families", "benchmarks", "conditions", "prompts"):
        for name, value in getattr(config, part).items():
            if value is None:
                raise UserError(f"{part}.{name}: a value is required, found null; leave it out of its group")
    for condition in config.conditions.values():
        if condition.variant == VariantConfig():
            condition.variant = None
    for family in config.families.values():
        for part in ("sft", "grpo", "base"):
            if (source := getattr(family, part)) is not None and not source.id:
                trained = Path(family.donors or "", part)
                is_there = family.donors is not None and (trained / "training.json").is_file()  # written last
                setattr(family, part, CheckpointConfig(str(trained)) if is_there else None)
        waits = family.donors is not None and (family.sft is None or family.grpo is None)
        if waits and all(c.weights is not Weights.base for c in config.conditions.values()):
            family.base = None  # it is for the vector's geometry alone
    check_declared(config)
    check(config)
    return config


def _unpinned(overrides: list[str]) -> Iterator[str]:
    """Another id leaves behind the revision and size of the one that the configuration names."""
    keys = [override.lstrip("+").split("=")[0] for override in overrides]
    for key in keys:
        source = re.fullmatch(
            r"(families\.\w+\.(?:target|sft|grpo|base))\.id|(benchmarks\.\w+\.dataset)\.id", key
        )
        if source is not None:
            facts = ("revision", "size_gb") if source[1] else ("revision",)
            where = source[1] or source[2]
            yield from (f"{where}.{fact}=null" for fact in facts if f"{where}.{fact}" not in keys)
