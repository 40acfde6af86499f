"""SIGINT and SIGTERM: the first ends a run in good order, the second at once.

    interrupt.install()
    with interrupt.deferred():
        ...                     # finished before the first signal counts

The first raises `KeyboardInterrupt`. The second kills the process and those that it started. What is on the disk is
whole all the same, because everything appears by a rename, and the next run removes what was left.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

_received: list[int] = []
_deferred = False


def install() -> None:
    """Handle both signals so from now on; only for the main thread of a process that is a run."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle)


def status() -> int:
    """The exit status of an interrupted run: 128 and the signal, as a shell has it."""
    return 128 + (_received[0] if _received else signal.SIGINT)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Finish the block before the first signal counts."""
    global _deferred
    _deferred = True
    before = len(_received)
    try:
        yield
    finally:
        _deferred = False
    if len(_received) > before:
        raise KeyboardInterrupt


def _handle(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    if len(_received) > 1:
        try:
            _kill_children()
        finally:
            os._exit(128 + number)
    if not _deferred:
        raise KeyboardInterrupt


def _kill_children() -> None:
    """Kill the processes that this one started, and those that they started."""
    import psutil  # here: the command line says what is missing where the environment is

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
