"""Commits of checkpoints that the configuration takes from the hub without a revision: `main` is taken once, then kept.

    results/hub.lock.json     {"<hub id>": "<commit>"}

The first run that opens such a checkpoint writes down the commit that `main` was; later ones take that commit, and say
so. Removing an entry takes what `main` is then. Covers checkpoints, and no data sets (conf/benchmark pins those).
"""

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import CheckpointConfig, Config
from pipeline.errors import UserError
from pipeline.plan import Plan, locate
from pipeline.records import write_json

PARTS = ("target", "sft", "grpo", "base")


def lock_path(results: Path) -> Path:
    return results / "hub.lock.json"


def use(config: Config) -> list[str]:
    """Set the revision of every checkpoint that the lock file has, and say so in one line.

    Raises:
        UserError: if the lock file cannot be read.
    """
    path = lock_path(Path(config.results))
    pinned = _read(path)
    used = {}
    for source in _floating(config):
        if source.id in pinned:
            source.revision = used[source.id] = pinned[source.id]
    if not used:
        return []
    return [f"pinned by {path} (remove an entry to take what main is now): {_list(used)}"]


def keep(plan: Plan) -> list[str]:
    """Write down the commit of every checkpoint that was opened without a revision, and say so in one line."""
    found = {
        source.id: checkpoint.revision
        for family in plan.families.values()
        for part in PARTS
        if (source := getattr(family.config, part)) is not None and source.revision is None
        if (checkpoint := getattr(family, part)) is not None and checkpoint.revision is not None
    }
    if not found:
        return []
    path = lock_path(plan.results)
    write_json(path, dict(sorted((_read(path) | found).items())))
    return [f"main of these is pinned from now on, in {path}: {_list(found)}"]


def _floating(config: Config) -> Iterator[CheckpointConfig]:
    """Checkpoints on the hub that have no revision."""
    for name in config.sizes if config.sizes is not None else config.families:
        for part in PARTS:
            source = getattr(config.families[name], part)
            if source is not None and source.revision is None and not Path(locate(source)).is_dir():
                yield source


def _read(path: Path) -> dict[str, str]:
    try:
        pinned = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        pinned = None
    if not isinstance(pinned, dict) or not all(isinstance(commit, str) for commit in pinned.values()):
        raise UserError(f"{path}: expected an object of hub ids and commits; mend or remove it")
    return pinned


def _list(pinned: dict[str, str]) -> str:
    return ", ".join(f"{name}@{commit[:12]}" for name, commit in pinned.items())
