"""The two configurations that Hydra composes from conf/: experiments (config.yaml) and recipes (donors.yaml).

A mistake in either becomes one line.
"""

from collections.abc import Callable
from typing import TypeVar

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipeline.config.explain import CONF, GROUPS, Mistake, all_messages, explain
from pipeline.config.own_files import check_own_files, folders, unreadable
from pipeline.errors import UserError

ROOTS = {"config": [group for group in GROUPS if group != "recipe"], "donors": ["recipe"]}
"""The groups that options are chosen from in conf/config.yaml and conf/donors.yaml."""

Composed = TypeVar("Composed")


def composed(
    root: str,
    schema: type,
    overrides: list[str],
    typed: Callable[[DictConfig], Composed],
    written: list[str] | None = None,
) -> Composed:
    """Compose conf/`root`.yaml with `overrides`, and make an object of `schema` of it with `typed`.

    Args:
        written: the overrides as the user wrote them, for messages; None: as they are.

    Raises:
        UserError: for an unknown key, group option or value, naming the nearest that exists.
    """
    check_own_files(overrides)

    def mistake(error: Exception) -> Mistake:
        return Mistake(all_messages(error), schema, ROOTS[root], folders(overrides), written or overrides)

    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3", job_name="pipeline"):
            return typed(hydra_compose(root, overrides=overrides))
    except (HydraException, OmegaConfBaseException) as e:
        raise UserError(explain(e, mistake(e))) from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(
            f"{unreadable(e, overrides)}: cannot be read as YAML ({' '.join(str(e).split())}); fix it"
        ) from None
    except (AssertionError, AttributeError) as e:  # OmegaConf's, for a key below null
        raise UserError(
            f"override not understood: a key below a value that is null ({e}); set the value itself, or leave null out"
        ) from None
    except RecursionError:
        raise UserError("the configuration is nested too deep, or refers to itself; flatten it") from None
    except (ValueError, TypeError) as e:  # Hydra's, for a group whose option is no name
        said = explain(e, mistake(e))
        raise UserError(f"override not understood: {said}" if said in str(e) else said) from None
