"""Commits of what the configuration takes from the hub without a revision: `main` is taken once, then kept.

    results/hub.lock.json     {"<hub id>": "<commit>", "datasets/<hub id>": "<commit>"}

The first run that opens such a checkpoint or data set writes down the commit that `main` was; later ones take that
commit, and say so. Removing an entry takes what `main` is then. A bundle in use goes before it: it holds one commit.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline import bundle
from pipeline.config.schema import Config, DatasetConfig
from pipeline.errors import UserError
from pipeline.files import ROOT, write_json


def lock_path(results: Path) -> Path:
    return results / "hub.lock.json"


def name_of(dataset: DatasetConfig) -> str:
    """The name of a data set in the lock file."""
    return f"datasets/{dataset.id}"


def pinned(config: Config) -> dict[str, str]:
    """The commit of every checkpoint and data set that this configuration takes without a revision, where it is known.

    Raises:
        UserError: if the lock file cannot be read.
    """
    known = _read(lock_path(Path(config.results))) | bundle.pins()
    return {name: known[name] for name in _floating(config) if name in known}


def describe(config: Config, pins: Mapping[str, str]) -> list[str]:
    """A line that tells what is pinned."""
    if not pins:
        return []
    path = lock_path(Path(config.results))
    return [f"pinned by {path} (remove an entry to take what main is now): {_list(pins)}"]


def keep(results: Path, opened: Mapping[str, str]) -> list[str]:
    """Write down the commits of what was opened without a revision, and say so in one line."""
    path = lock_path(results)
    known = _read(path)
    new = {name: commit for name, commit in opened.items() if name not in known}
    if not new:
        return []
    write_json(path, dict(sorted((known | new).items())))
    return [f"main of these is pinned from now on, in {path}: {_list(new)}"]


def _floating(config: Config) -> Iterator[str]:
    """Names in the lock file of the checkpoints and data sets on the hub that have no revision."""
    for family in config.opened_families().values():
        for source in family.sources().values():
            is_folder = Path(source.id).is_dir() or (ROOT / source.id).is_dir()
            if source.revision is None and not is_folder:
                yield source.id
    for benchmark in config.chosen_benchmarks().values():
        if (
            benchmark.dataset.id
            and benchmark.dataset.folder is None
            and benchmark.dataset.revision is None
            and config.data.folder is None
            and config.data.generator is None
        ):
            yield name_of(benchmark.dataset)


def _read(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        known = None
    if not isinstance(known, dict) or not all(isinstance(commit, str) for commit in known.values()):
        raise UserError(f"{path}: expected an object of hub ids and commits; fix or remove it")
    return known


def _list(pins: Mapping[str, str]) -> str:
    return ", ".join(f"{name}@{commit[:12]}" for name, commit in pins.items())
