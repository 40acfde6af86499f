"""The lock of a folder: one run at a time, and the others say for whom they wait.

    with held(results, "micro", print):
        ...

Covers runs on one machine, and on several where the file system has locks for all of them. filelock takes the kernel's
lock (flock), which ends with its process, and drops it in forked children: an engine that outlives its run keeps nobody
out. What is ours here is the text: who holds the folder, and so who was killed.
"""

import contextlib
import errno
import os
import platform
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import UserError
from pipeline.files import make_folder, open_regular, remove_empty, remove_leftovers

POLL = 0.5  # seconds between two looks at a lock that another run holds


@contextmanager
def held(folder: Path, name: str, report: Callable[[str], None]) -> Iterator[None]:
    """Hold `folder` for this run alone, and begin by removing what killed runs left there.

    While another run holds it, wait and say for whom. The lock is the kernel's, on `folder`/.lock: it ends with its
    process, however that ends. The file says who holds it, and so afterwards who was killed. Where the file system
    has no locks the run goes on without, and removes nothing. Folders that were made for the lock are removed at the
    end if they are still empty.

    Args:
        name: what is run, for the runs that will wait for this one.

    Raises:
        UserError: if there is something else than a lock file at `folder`/.lock.
    """
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    who = f"the run '{name}' of pid {os.getpid()} on {platform.node()} since {since}"
    lock = _Lock(folder, who, report)
    if not lock.acquire():
        yield
        return
    try:
        if lock.killed:
            report(f"{lock.killed} was killed; its lock on {folder} is taken over")
        for inner in (folder, *_folders(folder), *_folders(folder / "vectors")):
            remove_leftovers(inner)
        yield
    finally:
        lock.release()


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder; links to folders are none, and neither are those in a link."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


class _Lock:
    """The lock file of a folder, with who holds it in words."""

    def __init__(self, folder: Path, who: str, report: Callable[[str], None]):
        self.folder, self.path, self.who, self.report = folder, folder / ".lock", who, report
        self.made: list[Path] = []  # folders that were not there before, the innermost first
        self.killed = ""  # who held the lock when it was killed
        self._lock = FileLock(
            self.path, blocking=False, thread_local=False, fallback_to_soft=False, on_acquired=self._sign
        )
        self._file: os.stat_result | None = None

    def acquire(self) -> bool:
        """Wait for the lock; whether the file system has locks at all."""
        told = None
        while True:
            self.made = make_folder(self.folder) or self.made
            self._check_file()
            try:
                self._lock.acquire()
                return True
            except Timeout:
                holder = _holder(self.path) or "another run"
                if told != holder:
                    self.report(
                        f"waiting for {holder}, which uses {self.folder}; Ctrl-C to leave (if that machine is gone,"
                        f" remove {self.path})"
                    )
                told = holder
                time.sleep(POLL)
            except FileNotFoundError:  # who held it removed the empty folder just now
                continue
            except OSError as e:
                if e.filename is not None or e.errno in (
                    errno.EMFILE,
                    errno.ENFILE,
                ):  # not opened, for another reason
                    raise
                self.report(
                    f"{self.path}: no locks on this file system ({e.strerror}): start no second run on {self.folder}"
                )
                return False

    def release(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            # another run's, if somebody removed ours; and removed before it is released, so that no one else holds it
            if self._file is not None and os.path.samestat(self._file, os.lstat(self.path)):
                self.path.unlink()
        self._lock.release()
        remove_empty(self.made)  # a run that ended before it wrote anything leaves nothing

    def _check_file(self) -> None:
        """Refuse what would be changed or removed in the belief that it is a lock file."""
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(self.path)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise UserError(f"{self.path} is not a lock file but a link or a folder; remove it")

    def _sign(self, descriptor: int) -> None:
        """Write who holds the lock, and keep who held it."""
        self._file = os.fstat(descriptor)
        self.killed = _words(os.pread(descriptor, 300, 0))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, self.who.encode(), 0)


def _holder(path: Path) -> str:
    """Who holds a lock, in words; empty if its file has none, or is gone."""
    try:
        with open(open_regular(path), "rb") as stream:
            return _words(stream.read(300))
    except (OSError, UserError):
        return ""


def _words(raw: bytes) -> str:
    words = raw.decode(errors="replace").split()
    return "".join(c for c in " ".join(words) if c.isprintable())
