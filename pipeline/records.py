"""The store: one folder for each finished cell, named by its content key.

    results/cells/<key>/record.json     metrics, cost, provenance, and all that was hashed into the key
    results/cells/<key>/samples.jsonl   one line a document

A folder appears by one rename, so a record is there whole or not at all; samples carry a checksum.
What is being written is named `.tmp-…`; one run at a time holds the store (`held`), and removes what killed runs left.
Formats: ARCHITECTURE.md. Nothing here knows how a record was made.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline import interrupt
from pipeline.errors import UserError

SCHEMA = 1
POLL = 0.5  # seconds between two looks at a lock that another run holds


class DamagedRecord(UserError):
    """A record or manifest whose bytes are not what was written."""


def digest(value: Any) -> str:
    """sha256 (64 hex characters) of a JSON-serialisable value; floats enter with all their digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """One evaluated cell, as read from its folder."""

    folder: Path
    inputs: dict[str, Any]
    metrics: dict[str, Any]
    cost: dict[str, Any]
    provenance: dict[str, Any]
    samples_sha256: str

    def samples(self) -> list[dict[str, Any]]:
        """All samples in document order.

        Raises:
            DamagedRecord: if the file is not the one that the record was written with.
        """
        return [json.loads(line) for line in self._samples().splitlines()]

    def check(self) -> bool:
        """True; or `DamagedRecord`, as `samples` raises it."""
        return bool(self._samples()) or True

    def _samples(self) -> bytes:
        path = self.folder / "samples.jsonl"
        try:
            data = path.read_bytes()
        except OSError as e:
            raise DamagedRecord(
                f"{path}: cannot be read ({e.strerror}); remove {self.folder} and run again"
            ) from None
        if hashlib.sha256(data).hexdigest() != self.samples_sha256:
            raise DamagedRecord(
                f"{path}: checksum differs from its record; remove {self.folder} and run again"
            )
        return data


def cell_folder(results: Path, key: str) -> Path:
    return results / "cells" / key


def is_done(results: Path, key: str) -> bool:
    """Whether the cell has a record whose bytes are what was written."""
    try:
        record = read_record(results, key)
        return record is not None and record.check()
    except DamagedRecord:
        return False


def set_aside(results: Path, key: str) -> Path | None:
    """Move what is left of a damaged record away, so that it can be computed again; None if it is whole or not there."""
    folder = cell_folder(results, key)
    return None if not folder.exists() or is_done(results, key) else move_away(results, folder)


def move_away(results: Path, damaged: Path) -> Path:
    """Move a damaged file or folder to results/damaged, and return where it is now."""
    (results / "damaged").mkdir(exist_ok=True)
    away = Path(tempfile.mkdtemp(prefix=f"{damaged.name[:16]}-", dir=results / "damaged"))
    os.rename(damaged, away / damaged.name)
    return away / damaged.name


def read_record(results: Path, key: str) -> Record | None:
    """The record of `key`, or None if it has not been computed.

    Raises:
        DamagedRecord: if it is there but is not what was written.
    """
    folder = cell_folder(results, key)
    path = folder / "record.json"
    if not path.is_file():
        return None
    data = _read_json(path, f"remove {folder} and run again")
    sealed = data.pop("sha256", None) if isinstance(data, dict) else None
    if sealed is None or sealed != digest(data) or data.get("key") != key:
        raise DamagedRecord(f"{path}: checksum differs from its content; remove {folder} and run again")
    if data.get("schema") != SCHEMA:
        raise DamagedRecord(
            f"{path}: written in format {data.get('schema')}, this version reads {SCHEMA}; run again"
        )
    try:
        inputs, metrics, cost, provenance = (data[k] for k in ("inputs", "metrics", "cost", "provenance"))
        return Record(folder, inputs, metrics, cost, provenance, data["samples"]["sha256"])
    except (KeyError, TypeError) as e:
        raise DamagedRecord(f"{path}: has no {e}, which this version reads; run again") from None


def write_record(
    results: Path,
    inputs: dict[str, Any],
    metrics: dict[str, Any],
    cost: dict[str, Any],
    provenance: dict[str, Any],
    samples: list[dict[str, Any]],
) -> str:
    """Write a cell in one step and return its key, the digest of `inputs`.

    If the cell is there already (another run was quicker), that record stays.
    """
    key = digest(inputs)
    lines = "".join(json.dumps(s, ensure_ascii=False, allow_nan=False) + "\n" for s in samples).encode()
    data = {
        "schema": SCHEMA,
        "key": key,
        "inputs": inputs,
        "metrics": metrics,
        "cost": cost,
        "provenance": provenance,
        "samples": {
            "file": "samples.jsonl",
            "sha256": hashlib.sha256(lines).hexdigest(),
            "rows": len(samples),
        },
    }
    data["sha256"] = digest(data)
    with interrupt.deferred(), new_folder(cell_folder(results, key)) as folder:
        _write(folder / "samples.jsonl", lines)
        _write(folder / "record.json", _json_bytes(data))
    return key


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
        _sync(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, data: Any) -> None:
    """Replace `path` by `data` as JSON in one step."""
    write_file(path, _json_bytes(data))


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        _write(temporary, data)
        temporary.chmod(0o644)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def manifest_path(results: Path, experiment: str) -> Path:
    return results / "runs" / f"{experiment}.json"


def write_manifest(results: Path, manifest: dict[str, Any]) -> Path:
    """Replace the manifest of an experiment, and return its path."""
    path = manifest_path(results, manifest["experiment"])
    write_json(path, manifest | {"sha256": digest(manifest)})
    return path


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        UserError: if there is none, or it is not what was written.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; run the experiment first")
    manifest = _read_json(path, "run the experiment again")
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != digest(manifest):
        raise DamagedRecord(f"{path}: checksum differs from its content; run the experiment again")
    return manifest


# --- one run at a time


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


def _json_bytes(data: Any) -> bytes:
    return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _read_json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_bytes(), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as e:
        raise DamagedRecord(f"{path}: cannot be read ({e}); {remedy}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _write(path: Path, data: bytes) -> None:
    try:
        with open(path, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:  # a full disk does not say for which file
        raise OSError(e.errno, e.strerror, str(path)) from None


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
