"""Files: digests, reading and atomic writing, in one place.

    key = digest(inputs)
    data = read_json(path, "run again")                    a regular file, or one line that says what is wrong
    write_json(results / "runs" / "micro.json", data)      whole or not at all
    with new_folder(results / "cells" / key) as folder:    a folder that appears by one rename
        ...

What is being written lies in a scratch folder `.tmp-rv.<name>.<random>` beside its place, with a file in it that says
for what it is, and a lock that ends with its writer. So a run can tell what killed writers left from what living ones
write and from what is not ours. It removes the first alone, and follows no link.
"""

import ast
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ".tmp-rv."  # what the names of scratch folders begin with
MARK = ".reasoning-vectors"  # the file in a folder of ours that holds the name of what is written there
_DEPTH = 100  # of nested JSON: more than any sound file has, few enough for every function that recurses


class DamagedFile(UserError):
    """A record, manifest or other file of ours whose bytes are not what was written."""


# Digests


def digest(value: Any) -> str:
    """sha256 (64 hex characters) of a JSON-serialisable value; floats enter with all their digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return sha256(text.encode())


def ascii_digest(value: Any) -> str:
    """As `digest`, over the layout that fingerprints of weights and tokenizers have: ASCII, with spaces."""
    return sha256(json.dumps(value, sort_keys=True).encode())


def sha256(data: bytes) -> str:
    """sha256 of bytes, as 64 hex characters."""
    return hashlib.sha256(data).hexdigest()


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


def sha256_of_file(path: Path) -> str:
    """sha256 of a file's bytes.

    Raises:
        UserError: if it is not a regular file.
        OSError: if it cannot be read.
    """
    with open(open_regular(path), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# Reading


def open_regular(path: Path) -> int:
    """A descriptor for reading a file; a pipe or a device, for which a read may wait for ever, is refused.

    Raises:
        UserError: if it is not a regular file.
        OSError: if it cannot be opened.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        found = kinds.get(stat.S_IFMT(mode), "a device")
        raise UserError(f"{path} is {found}; expected a file: check the path")
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises:
        UserError: if it is not a regular file, or a longer one.
        OSError: if it cannot be read.
    """
    with open(open_regular(path), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if limit is not None and size > limit:
            raise UserError(f"{path} has {size:,} bytes; expected at most {limit:,}: check the file")
        return stream.read()


def parse_json(data: bytes) -> Any:
    """JSON in UTF-8 as Python data that every function here can take: numbers are finite, texts can be encoded.

    Raises:
        ValueError: if it is anything else, or nested too deep.
    """
    text = data.decode("utf-8")
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if _is_deep(value):
        raise ValueError("nested too deep")
    if re.search(r"\\u[dD][89a-fA-F]", text):  # a surrogate: half a character unless its other half follows
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _is_deep(value: Any) -> bool:
    """Whether JSON data is nested deeper than `_DEPTH`: level by level, since a function that recurses would fail."""
    level: list[Any] = [[value]]
    for _ in range(_DEPTH):
        inside = (part.values() if isinstance(part, dict) else part for part in level)
        level = [part for parts in inside for part in parts if isinstance(part, dict | list)]
    return bool(level)


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{digits} is too large")
    return number


def read_json(path: Path, remedy: str) -> Any:
    """What is in a JSON file of ours.

    Raises:
        DamagedFile: if it cannot be read; `remedy` says what to do.
    """
    try:
        return parse_json(read_bytes(path))
    except (OSError, ValueError, UserError) as e:
        raise DamagedFile(f"{path}: cannot be read ({e}); {remedy}") from None


# Writing


def json_bytes(data: Any) -> bytes:
    """JSON as our files have it: indented by one, UTF-8, a line end at the end."""
    return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, data: Any) -> None:
    """Replace `path` by `data` as JSON in one step."""
    write_file(path, json_bytes(data))


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step."""
    with _folder_of(path), _scratch(path) as scratch:
        write_synced(scratch / "new", data)
        os.replace(scratch / "new", path)
        sync(path.parent)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final` by one rename when the block ends without an error.

    If `final` has appeared in the meantime it stays, and the new folder is dropped.
    """
    with _folder_of(final), _scratch(final) as scratch:
        new = scratch / "new"
        new.mkdir()
        yield new
        try:
            os.rename(new, final)
        except OSError:
            if not final.is_dir():
                raise
        sync(final.parent)


def resolved(out: Path) -> Path:
    """A path to write to, without links or `..` in it.

    Raises:
        UserError: if it leads nowhere: links in a circle, or a name that is too long.
    """
    try:
        found = out.resolve()
        found.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle
        reason = error.strerror if isinstance(error, OSError) else "its links lead in a circle"
        raise UserError(f"cannot write {str(out)[:120]}: {reason}; choose another path") from None
    if any(len(os.fsencode(part)) > 255 for part in found.parts):  # asked of the disk only where folders are
        raise UserError(f"cannot write {str(out)[:120]}: a name has at most 255 bytes; choose another path")
    return found


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
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_folder_of(out))
            remove_leftovers(out.parent, of=out.name)
            scratch = stack.enter_context(_scratch(out))
        except OSError as error:
            raise UserError(f"cannot write {out}: {error.strerror}; choose another folder") from None
        try:
            new = scratch / "new"
            yield new
            if new.is_dir():
                for file in new.iterdir():
                    sync(file)
            sync(new)
            check(out)
            if out.is_dir():
                out.rename(scratch / "old")  # a folder cannot be renamed over another
            new.rename(out)
            sync(out.parent)
        except OSError as error:
            raise UserError(
                f"cannot write {out}: {error.strerror}; nothing was left there: free space, or choose another"
            ) from None


def write_synced(path: Path, data: bytes) -> None:
    """Write a file that is on the disk when this returns."""
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


def move_away(results: Path, damaged: Path) -> Path:
    """Move a damaged file or folder to results/damaged, and return where it is now."""
    (results / "damaged").mkdir(exist_ok=True)
    away = Path(tempfile.mkdtemp(prefix=f"{damaged.name[:16]}-", dir=results / "damaged"))
    os.rename(damaged, away / damaged.name)
    return away / damaged.name


# Folders, and the scratch folders in them


def make_folder(folder: Path) -> list[Path]:
    """Make a folder where there is none, and return the folders that were made for it, the innermost first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the innermost first, until one is not empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextmanager
def _folder_of(out: Path) -> Iterator[None]:
    """Make the folder in which `out` is to be, and remove it again if the block fails."""
    made = make_folder(out.parent)
    try:
        yield
    except BaseException:
        remove_empty(made)
        raise


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A scratch folder beside `out` to write it in, marked and locked; it is removed at the end."""
    scratch, lock = _new_scratch(out)
    try:
        yield scratch
    finally:
        with contextlib.suppress(OSError):
            _empty(scratch, out.name)
        os.close(lock)
        with contextlib.suppress(OSError):
            scratch.rmdir()


def _new_scratch(out: Path) -> tuple[Path, int]:
    """The scratch folder, and the descriptor of its mark, which holds the lock."""
    name = os.fsdecode(os.fsencode(out.name)[:200])  # a name has at most 255 bytes
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{name}.", dir=out.parent))
        with contextlib.ExitStack() as undo:
            undo.callback(lambda path: shutil.rmtree(path, ignore_errors=True), scratch)
            with contextlib.suppress(FileNotFoundError):  # another run took the empty folder for a leftover
                lock = os.open(scratch / MARK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                undo.callback(os.close, lock)
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(lock, fcntl.LOCK_EX)
                os.write(lock, os.fsencode(out.name))
                if os.fstat(lock).st_nlink:  # or it has done so now
                    undo.pop_all()
                    return scratch, lock


def remove_leftovers(folder: Path, of: str | None = None) -> None:
    """Remove the scratch folders in `folder` whose writers were killed; with `of`, writers of that name alone."""
    found: list[str] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [e.path for e in entries if e.name.startswith(SCRATCH) and e.is_dir(follow_symlinks=False)]
    for left in found:
        with contextlib.suppress(OSError):
            _remove_leftover(Path(left), of)


def _remove_leftover(left: Path, of: str | None) -> None:
    try:
        lock = os.open(left / MARK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        left.rmdir()  # its writer was killed before it marked it; fails where it is not empty, and so not ours
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
        name = os.fsdecode(os.pread(lock, 1000, 0))
        if not stat.S_ISREG(os.fstat(lock).st_mode) or of not in (None, name):
            return
        _empty(left, name)
    finally:
        os.close(lock)
    left.rmdir()


def _empty(scratch: Path, name: str) -> None:
    """Remove what is in a scratch folder, its mark last; what `name` was before goes back if nothing replaced it."""
    old = scratch / "old"
    if old.exists() and Path(name).name == name and not os.path.lexists(scratch.parent / name):
        old.rename(scratch.parent / name)
    for path in scratch.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    (scratch / MARK).unlink(missing_ok=True)
