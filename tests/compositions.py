"""What Hydra makes of the same files is kept: tests compose the files of conf/ in hundreds of ways.

    with pytest.MonkeyPatch.context() as patch:
        keep(patch)

Hydra reads and merges every file anew for each configuration, which is most of the time. Here each file is read once, and
each choice of groups is merged once. Values that are overridden, types and checks are applied to a copy, as Hydra does it.
If a file of the search path has changed, or another is there, all is done again. What is kept is pickled: a copy of a
configuration that is read back is there six times as soon as one by `copy.deepcopy`.
"""

import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.defaults_list import Overrides

LIST = config_loader_impl.create_defaults_list
MERGE = ConfigLoaderImpl._compose_config_from_defaults_list
READ = FileConfigSource.load_config


def keep(patch: pytest.MonkeyPatch) -> None:
    """Have Hydra keep what it reads and merges, until `patch` is undone."""
    lists: dict[Any, Any] = {}
    merged: dict[Any, bytes] = {}
    contents: dict[Any, bytes] = {}

    def listed(repo: Any, config_name: str | None, overrides_list: list[Any], **options: Any) -> Any:
        values = Overrides(repo=repo, overrides_list=overrides_list).config_overrides
        groups = [o.input_line for o in overrides_list if not any(o is value for value in values)]
        key = (config_name, *groups, *options.items(), files(repo))
        if key not in lists:
            lists[key] = LIST(repo, config_name, overrides_list, **options)
        return replace(lists[key], config_overrides=values)

    def merge(loader: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
        key = (*(tuple(vars(default).values()) for default in defaults), files(repo))
        if key not in merged:
            merged[key] = pickle.dumps(MERGE(loader, defaults, repo))
        return pickle.loads(merged[key])  # noqa: S301 - our own

    def read(source: FileConfigSource, config_path: str) -> Any:
        try:
            found = os.stat(os.path.join(source.path, source._normalize_file_name(config_path)))
        except OSError:
            return READ(source, config_path)
        key = (source.provider, source.path, config_path, found.st_mtime_ns, found.st_size)
        if key not in contents:
            contents[key] = pickle.dumps(READ(source, config_path))
        return pickle.loads(contents[key])  # noqa: S301 - our own

    patch.setattr(config_loader_impl, LIST.__name__, listed)
    patch.setattr(ConfigLoaderImpl, MERGE.__name__, merge)
    patch.setattr(FileConfigSource, READ.__name__, read)


def leave_out(patch: pytest.MonkeyPatch) -> None:
    """Have Hydra do all its work again, until `patch` is undone."""
    patch.setattr(config_loader_impl, LIST.__name__, LIST)
    patch.setattr(ConfigLoaderImpl, MERGE.__name__, MERGE)
    patch.setattr(FileConfigSource, READ.__name__, READ)


def files(repo: Any) -> tuple[tuple[str, int, int], ...]:
    """Every file of the search path with what changes with its content."""
    folders = [source.path for source in repo.get_sources() if source.scheme() == "file"]
    return tuple(found for folder in folders for found in states(folder))


def states(folder: str) -> Iterator[tuple[str, int, int]]:
    """Path, time of change and size of the files under a folder."""
    if not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                yield from states(entry.path)
            elif entry.name.endswith((".yaml", ".yml")) and entry.is_file():
                found = entry.stat()
                yield entry.path, found.st_mtime_ns, found.st_size
