"""The row of the grid that a command is about: `family=…`, and `condition=…` or `alpha=…`."""

import math
from collections.abc import Mapping
from dataclasses import replace

from pipeline.config.compose import changed
from pipeline.config.explain import nearest
from pipeline.config.schema import ConditionConfig, Config
from pipeline.errors import UserError
from pipeline.plan.family import Family
from pipeline.plan.grid import Condition
from pipeline.plan.plan import Plan

OPTIONS = ("family", "alpha", "condition")
APPLIED = "applied"  # the condition that is made of `alpha`


def for_one_family(config: Config, options: Mapping[str, str]) -> tuple[Config, str]:
    """The configuration for the family that is named (else the first), and its name.

    Where no condition is named there is one more, `APPLIED`: the whole vector at `alpha`.

    Raises:
        UserError: for an unknown family, or an α that is not a number or stands beside a condition.
    """
    known = list(config.chosen_families())
    family = options.get("family", known[0])
    if family not in known:
        raise UserError(f"family={family}: no such family{nearest(family, known)}")
    if "alpha" in options and "condition" in options:
        raise UserError("alpha and condition: each says what is added; give one of them")
    chosen = replace(config.chosen, families=[family])
    if "condition" in options:
        return changed(config, chosen=chosen), family
    alpha = _number(options.get("alpha", "1"))
    own = ConditionConfig(label=APPLIED, alpha=alpha, part=None, variants=False)
    names = [*config.chosen_conditions(), APPLIED]
    conditions = config.conditions | {APPLIED: own}
    return changed(config, chosen=replace(chosen, conditions=names), conditions=conditions), family


def row_of(plan: Plan, family: Family, options: Mapping[str, str]) -> Condition:
    """The row that is named, or `APPLIED`.

    Raises:
        UserError: if there is none of that name, or the family lacks the donors for it.
    """
    rows = {c.name: c for c in plan.grid.conditions}
    named = options.get("condition", APPLIED)
    if named not in rows:
        raise UserError(f"condition={named}: no such row{nearest(named, list(rows))}")
    if named not in {c.condition.name for c in plan.cells if c.family is family}:
        key = "subfolder" if family.config.unnamed() else "id"
        raise UserError(
            f"families.{family.name}: no donors to make a vector of; set sft.{key} and grpo.{key}"
        )
    return rows[named]


def stem(row: Condition) -> str:
    """The end of a file's or folder's name."""
    return f"alpha{row.terms[0].alpha:g}" if row.name == APPLIED else row.name


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"alpha={text}: expected a finite number")
    return number
