"""Which rows are asked: strengths of the vector, rows of the grid by name, or a list of terms.

    config, rows = choose(compose(["experiment=micro"]), alpha=[-1, 0, 1], conditions=["vector_think"])

A row of the grid is named as in the tables (`vector`, `alpha=0.5`, `random-s0`), or by its condition, which stands for
all of its rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config.checks import check_condition
from pipeline.config.compose import changed
from pipeline.config.explain import nearest
from pipeline.config.schema import ConditionConfig, Config, PartConfig, TermConfig
from pipeline.errors import UserError
from pipeline.plan.grid import Condition, rows

SWEPT, SUMMED = "asked", "terms"  # the conditions that are made here


def choose(
    config: Config,
    family: str | None = None,
    alpha: Sequence[float] = (),
    conditions: Sequence[str] = (),
    terms: Sequence[Mapping[str, Any]] = (),
) -> tuple[Config, tuple[Condition, ...]]:
    """The configuration of one family with the rows that are asked, and these rows in the order of the arguments.

    With none of them: the conditions that the configuration chooses, else the target alone and with the vector.

    Args:
        family: a target of the experiment; None is the first.
        alpha: strengths of its vector, added to the target.
        conditions: names of rows or of conditions.
        terms: one sum, each term with the keys of a condition's (alpha, family, part, seed).

    Raises:
        UserError: for a name that is not there, or a number that cannot be.
    """
    name = family_of(config, family)
    if not (alpha or conditions or terms):
        conditions = config.chosen.conditions or ()
        alpha = () if conditions else (0.0, 1.0)
    named = _named(config, conditions)
    made: dict[str, ConditionConfig] = {}
    if alpha:
        made[SWEPT] = ConditionConfig(label=SWEPT, alpha=list(alpha), part=None, variants=False)
    if terms:
        made[SUMMED] = ConditionConfig(label=SUMMED, terms=_terms(terms), part=None, variants=False)
    for condition in made.values():
        check_condition("asked", condition, config)
    if taken := made.keys() & config.conditions.keys():
        raise UserError(f"conditions.{min(taken)}: this name is used for what is asked; choose another")
    chosen = replace(
        config.chosen, families=[name], conditions=[*made, *dict.fromkeys(row.origin for row in named)]
    )
    config = changed(config, conditions=config.conditions | made, chosen=chosen)
    every = rows(config)
    swept = [_labelled(row) for row in every if row.origin == SWEPT]
    return config, (*swept, *named, *(row for row in every if row.origin == SUMMED))


def _labelled(row: Condition) -> Condition:
    """A row of the sweep with the label that the grid's own sweep has."""
    label = f"α = {row.terms[0].alpha:g}".replace("-", "−")
    return replace(row, label=label, row_label=label)


def family_of(config: Config, name: str | None) -> str:
    """A family of the experiment by its name; None is the first.

    Raises:
        UserError: if there is none of that name.
    """
    known = list(config.chosen_families())
    if name is not None and name not in known:
        raise UserError(f"family={name}: no such family{nearest(name, known)}")
    return name or known[0]


def _named(config: Config, names: Sequence[str]) -> list[Condition]:
    every = changed(config, chosen=replace(config.chosen, conditions=None))
    of_grid = rows(every)
    found: dict[str, Condition] = {}
    for name in names:
        chosen = [row for row in of_grid if row.name == name] or [
            row for row in of_grid if row.origin == name
        ]
        if not chosen:
            known = [*config.conditions, *(row.name for row in of_grid)]
            raise UserError(f"condition={name}: no such row{nearest(name, known)}")
        found |= {row.name: row for row in chosen}
    return list(found.values())


def _terms(given: Sequence[Mapping[str, Any]]) -> list[TermConfig]:
    """Terms as the schema has them, so that a wrong key or type is refused."""
    found = []
    for term in given:
        try:
            typed = OmegaConf.merge(OmegaConf.structured(TermConfig), dict(term))
            made = cast(TermConfig, OmegaConf.to_object(typed))
        except (OmegaConfBaseException, ValueError, TypeError) as e:
            reason = str(e).splitlines()[0]
            raise UserError(f"terms: {reason}; a term has alpha, and of family, part, seed") from None
        if made.part == PartConfig():
            made.part = None
        found.append(made)
    return found
