"""What Hydra makes of the same files is kept: tests compose the files of conf/ in hundreds of ways.

    with pytest.MonkeyPatch.context() as patch:
        keep(patch)

Hydra reads every file anew for each configuration, which is most of the time. Here a file is parsed once, and a list of
files (what the defaults and the choices of groups come to) is merged once. Values that are overridden, types and checks are
applied to a copy, as Hydra does it. A file that has changed is read again.
"""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins

State = tuple[int, int] | None


Plugins.instance()  # it registers what reads files
FILES: Any = SourcesRegistry.instance().resolve("file")
READ, MERGE = FILES.load_config, ConfigLoaderImpl._compose_config_from_defaults_list


def keep(patch: pytest.MonkeyPatch) -> None:
    """Have Hydra keep what it reads and merges, until `patch` is undone."""
    files: dict[tuple[str, State], Any] = {}
    merged: dict[tuple[Any, ...], Any] = {}

    def load_config(source: Any, config_path: str) -> Any:
        path = Path(source.path, source._normalize_file_name(config_path))
        key = (os.path.realpath(path), state(path))
        if key not in files:
            files[key] = READ(source, config_path)
        return copy.deepcopy(files[key])

    def compose(loader: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
        folders = [source.path for source in repo.get_sources() if source.scheme() == "file"]
        names = [default.config_path for default in defaults if default.config_path is not None]
        states = [(folder, name, state(Path(folder, f"{name}.yaml"))) for folder in folders for name in names]
        parts = [tuple(vars(default).values()) for default in defaults]
        key = (tuple(parts), tuple(states))
        if key not in merged:
            merged[key] = MERGE(loader, defaults, repo)
        return copy.deepcopy(merged[key])

    patch.setattr(FILES, "load_config", load_config)
    patch.setattr(ConfigLoaderImpl, MERGE.__name__, compose)


def leave_out(patch: pytest.MonkeyPatch) -> None:
    """Have Hydra do all its work again, until `patch` is undone."""
    patch.setattr(FILES, "load_config", READ)
    patch.setattr(ConfigLoaderImpl, MERGE.__name__, MERGE)


def state(path: Path) -> State:
    """What changes with a file's content; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
