"""SIGINT and SIGTERM: the first ends a run in good order, the second at once.

The first raises `KeyboardInterrupt`, inside `deferred` only when the block has ended, so that a record being written is
finished. The second ends the process where it stands, with the processes that it started: what is on the disk is whole
all the same, because everything appears by a rename, and the next run clears what was left.
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
        _end_children(signal.SIGKILL)
        os._exit(128 + number)
    if not _deferred:
        raise KeyboardInterrupt


def _end_children(number: int) -> None:
    """Signal the processes that this one started, and those that they started."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"{entry.path}/stat") as f:
                parent = int(f.read().rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = children.get(os.getpid(), [])
    for child in found:
        found += children.get(child, [])
    for child in found:
        with contextlib.suppress(OSError):
            os.kill(child, number)
