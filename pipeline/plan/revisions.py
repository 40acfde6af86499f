"""Commits of what the configuration takes from the hub without a revision: `main` is taken once, then kept.

    results/hub.lock.json     {"<hub id>": "<commit>", "datasets/<hub id>": "<commit>"}

The first run that opens such a checkpoint or data set writes down the commit that `main` was; later ones take that
commit, and say so. Removing an entry takes what `main` is then.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.schema import CheckpointConfig, Config, DatasetConfig
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.plan.family import locate
from pipeline.plan.plan import Plan

PARTS = ("target", "sft", "grpo", "base")


def lock_path(results: Path) -> Path:
    return results / "hub.lock.json"


def use(config: Config) -> list[str]:
    """Set the revision of every checkpoint and data set that the lock file has, and say so in one line.

    Raises:
        UserError: if the lock file cannot be read.
    """
    path = lock_path(Path(config.results))
    pinned = _read(path)
    used = {}
    for name, source in _floating(config):
        if name in pinned:
            source.revision = used[name] = pinned[name]
    if not used:
        return []
    return [f"pinned by {path} (remove an entry to take what main is now): {_list(used)}"]


def keep(plan: Plan) -> list[str]:
    """Write down the commit of everything that was opened without a revision, and say so in one line."""
    found = {
        source.id: checkpoint.revision
        for family in plan.families.values()
        for part in PARTS
        if (source := getattr(family.config, part)) is not None and source.revision is None
        if (checkpoint := getattr(family, part)) is not None and checkpoint.revision is not None
    }
    for cell in plan.cells:
        dataset, documents = cell.task.config.dataset, cell.inputs["documents"][0]
        if dataset.revision is None and "hub" in documents:
            dataset.revision = found[f"datasets/{dataset.id}"] = documents["revision"]
    if not found:
        return []
    path = lock_path(plan.results)
    write_json(path, dict(sorted((_read(path) | found).items())))
    return [f"main of these is pinned from now on, in {path}: {_list(found)}"]


def _floating(config: Config) -> Iterator[tuple[str, CheckpointConfig | DatasetConfig]]:
    """Checkpoints and data sets on the hub that have no revision, by their names in the lock file."""
    for name in config.sizes if config.sizes is not None else config.families:
        for part in PARTS:
            source = getattr(config.families[name], part)
            if source is not None and source.revision is None and not Path(locate(source)).is_dir():
                yield source.id, source
    for name in config.tasks if config.tasks is not None else config.benchmarks:
        dataset = config.benchmarks[name].dataset
        if dataset.revision is None and config.data.folder is None and config.data.generator is None:
            yield f"datasets/{dataset.id}", dataset


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
