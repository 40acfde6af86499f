"""What every test shares: the order of files, what is kept between tests, and caches that no other process writes to."""

import gc
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import DataConfig
from pipeline.files import new_folder
from pipeline.plan import sources
from tests import compositions

# Files that share what takes long, and so a process: what they begin with, and what they share.
TOGETHER = {
    **dict.fromkeys(
        ("ask", "end_to_end", "left_out", "python", "sampling", "steering"),
        "a server of tests/warm.py for engines",
    ),
    "perturbations": "documents and their variants",
}


def pytest_configure() -> None:
    """Ctrl-C counts, here and in what is started here: `make test &` of a script has it ignored.

    What the files of tests import stays: there is nothing to collect before the first test.
    """
    gc.disable()
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start engines come first: they take longest, and none is left over at the end."""
    engines = {item.path for item in items if item.get_closest_marker("engine")}
    items.sort(key=lambda item: item.path not in engines)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files to a process, and those of `TOGETHER` to one."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return next((what for name, what in TOGETHER.items() if f"test_{name}" in file), file)

    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """Collect less often than Python does: with all that is imported each time costs more than it frees."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fingerprints and documents are cached in a folder of this process; a make that a test starts is its own."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RV_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in (
            "MAKEFLAGS",
            "MAKELEVEL",
            "MFLAGS",
            "ARGS",
            "WORKERS",
        ):  # of the `make test` that this may run in
            environment.delenv(name, raising=False)
        # a machine may forbid it, and then each of the hundred processes compiles the project anew
        environment.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def kept_compositions() -> Iterator[None]:
    """A configuration is composed in a third of the time: what Hydra reads and merges is kept."""
    with pytest.MonkeyPatch.context() as patch:
        compositions.keep(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def kept_documents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The documents of a plan are generated once for each seed and size; another folder of results gets a copy."""
    generate, once = sources._generated, tmp_path_factory.mktemp("generated")

    def generated(data: DataConfig, results: Path) -> Path:
        kept = generate(data, once)
        folder = results / kept.relative_to(once)
        if not folder.is_dir():
            with new_folder(folder) as temporary:
                shutil.copytree(kept, temporary, dirs_exist_ok=True)
        return folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, generate.__name__, generated)
        yield


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """The garbage collector leaves alone what earlier files have made: a collection of all modules takes half a second."""
    gc.collect()
    gc.freeze()
