"""Files: digests, atomic writing and locks, in one place.

Everything appears by a rename from a name that begins with `.tmp-`.
"""

import ast
import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


class DamagedFile(UserError):
    """A record, manifest or other file of ours whose bytes are not what was written."""


ROOT = Path(__file__).resolve().parent.parent


POLL = 0.5  # seconds between two looks at a lock that another run holds


def digest(value: Any) -> str:
    """sha256 (64 hex characters) of a JSON-serialisable value; floats enter with all their digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def move_away(results: Path, damaged: Path) -> Path:
    """Move a damaged file or folder to results/damaged, and return where it is now."""
    (results / "damaged").mkdir(exist_ok=True)
    away = Path(tempfile.mkdtemp(prefix=f"{damaged.name[:16]}-", dir=results / "damaged"))
    os.rename(damaged, away / damaged.name)
    return away / damaged.name


def code_fingerprint(path: Path) -> str:
    """Digest of what a Python file does: its syntax tree without comments and docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                node.body = body[1:] or [ast.Pass()]
    return digest(ast.dump(tree))


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final` by one rename when the block ends without an error.

    If `final` has appeared in the meantime it stays, and the new folder is dropped.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=final.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        try:
            os.rename(temporary, final)
        except OSError:
            if not final.is_dir():
                raise
        sync(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, data: Any) -> None:
    """Replace `path` by `data` as JSON in one step."""
    write_file(path, json_bytes(data))


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write_synced(temporary, data)
        temporary.chmod(0o644)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def held(folder: Path, name: str, report: Callable[[str], None]) -> Iterator[None]:
    """Hold `folder` for this run alone, and begin by removing what killed runs left there (`.tmp-*`).

    While another run holds it, wait and say for whom. The lock is the kernel's, on `folder`/.lock: it ends with its
    process, however that ends. The file says who holds it, and so afterwards who was killed. Where the file system
    has no locks the run goes on without, and removes nothing.

    Args:
        name: what is run, for the runs that will wait for this one.
    """
    path = folder / ".lock"
    lock = _acquire(path, report)
    if lock is None:
        yield
        return
    try:
        killed = _holder(lock)
        if killed:
            report(f"{killed} was killed; its lock on {folder} is taken over")
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        who = f"the run '{name}' of pid {os.getpid()} on {platform.node()} since {since}"
        os.ftruncate(lock, 0)
        os.pwrite(lock, who.encode(), 0)
        # The outer first: they may hold inner ones.
        for pattern in (".tmp-*", "*/.tmp-*", "vectors/*/.tmp-*"):
            for left in list(folder.glob(pattern)):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield
    finally:
        if _is_at(lock, path):
            path.unlink()
        os.close(lock)
        with contextlib.suppress(OSError):
            folder.rmdir()  # a run that ended before it wrote anything leaves nothing


def _acquire(path: Path, report: Callable[[str], None]) -> int | None:
    """The open lock file once it is ours; None where the file system has no locks."""
    told = None
    while True:
        # opened anew each time: who removes the file of a host that is no more lets the others go on
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # who held it removed the empty folder just now
            continue
        try:
            fcntl.lockf(
                lock, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # of this process: a forked engine does not inherit it
            if _is_at(lock, path):
                return lock
            os.close(lock)
        except OSError as e:
            holder = _holder(lock) or "another run"
            os.close(lock)
            if e.errno not in (errno.EAGAIN, errno.EACCES):
                report(
                    f"{path}: no locks on this file system ({e.strerror}): start no second run on {path.parent}"
                )
                return None
            if told != holder:
                report(
                    f"waiting for {holder}, which uses {path.parent}; Ctrl-C to leave (if that machine is gone, remove"
                    f" {path})"
                )
            told = holder
            time.sleep(POLL)


def _is_at(lock: int, path: Path) -> bool:
    """Whether the open file is the one at `path` still: who held it before removes it."""
    try:
        return os.path.samestat(os.fstat(lock), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(lock: int) -> str:
    """Who wrote the lock file, in words; empty after a run that ended in good order."""
    words = os.pread(lock, 300, 0).decode(errors="replace").split()
    return "".join(c for c in " ".join(words) if c.isprintable())


def json_bytes(data: Any) -> bytes:
    return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_bytes(), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as e:
        raise DamagedFile(f"{path}: cannot be read ({e}); {remedy}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def write_synced(path: Path, data: bytes) -> None:
    try:
        with open(path, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:  # a full disk does not say for which file
        raise OSError(e.errno, e.strerror, str(path)) from None


def sync(path: Path) -> None:
    """Makes a file or folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(out: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary path to write a file or folder to, which becomes `out` when the block succeeds.

    Everything is synced before the rename. On failure nothing is left, and an earlier `out` stays as it was.
    What a killed writer of `out` left beside it is removed first.

    Args:
        out: a path without links or `..` in it (`Path.resolve`): they could lead elsewhere once folders are made.
        check: raises UserError unless what is at `out` may be replaced; asked again just before the rename.

    Raises:
        UserError: if `check` does, or the disk refuses, for instance because it is full.
    """
    if out != out.resolve():
        raise ValueError(f"{out} is not resolved")
    check(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(out)
        scratch = Path(tempfile.mkdtemp(prefix=f".tmp-{out.name}.", dir=out.parent))
        lock = os.open(scratch, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another folder") from None
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        new, old = scratch / "new", scratch / "old"
        yield new
        if new.is_dir():
            for file in new.iterdir():
                sync(file)
        sync(new)
        check(out)
        if out.is_dir():
            out.rename(old)  # a folder cannot be renamed over another
        new.rename(out)
        sync(out.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror}; nothing was left there: free space, or choose another"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _clear_leftovers(out: Path) -> None:
    """Remove scratch folders of writers of `out` that were killed: those that live hold a lock on theirs."""
    for left in out.parent.glob(f".tmp-{glob.escape(out.name)}.????????"):
        with contextlib.suppress(OSError):
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (left / "old").exists() and not out.exists():
                    (left / "new").rename(out)  # whole: it was killed between its two renames
                shutil.rmtree(left)
            finally:
                os.close(lock)
