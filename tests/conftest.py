"""What every test shares: the order of files, and caches that no other process writes to."""

import signal
from collections.abc import Iterator

import pytest


def pytest_configure() -> None:
    """Ctrl-C counts, here and in what is started here: `make test &` of a script has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start engines come first: they take longest, and with two processes none is left over at the end."""
    engines = {item.path for item in items if item.get_closest_marker("engine")}
    items.sort(key=lambda item: item.path not in engines)


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
        yield
