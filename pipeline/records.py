"""The store: one folder for each finished cell, named by its content key.

    results/cells/<key>/record.json     metrics, cost, provenance, and all that was hashed into the key
    results/cells/<key>/samples.jsonl   one line a document

A folder appears by one rename, so a record is there whole or not at all; samples carry a checksum.
Formats: ARCHITECTURE.md. Nothing here knows how a record was made.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

SCHEMA = 1


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
    """Move what is left of a damaged record to results/damaged, so that it can be computed again."""
    folder = cell_folder(results, key)
    if not folder.exists() or is_done(results, key):
        return None
    (results / "damaged").mkdir(exist_ok=True)
    away = Path(tempfile.mkdtemp(prefix=f"{key[:16]}-", dir=results / "damaged"))
    os.rename(folder, away)
    return away


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
        parts = [data[name] for name in ("inputs", "metrics", "cost", "provenance", "samples")]
        return Record(folder, *parts[:4], parts[4]["sha256"])
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
    with new_folder(cell_folder(results, key)) as folder:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        _write(temporary, _json_bytes(data))
        temporary.chmod(0o644)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def manifest_path(results: Path, experiment: str) -> Path:
    return results / "runs" / f"{experiment}.json"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        UserError: if there is none, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; plan or run the experiment first")
    manifest: dict[str, Any] = _read_json(path, "run the experiment again")
    return manifest


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
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
