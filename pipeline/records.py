"""The store: one folder for each finished cell, named by its content key.

    results/cells/<key>/record.json     metrics, cost, provenance, and all that was hashed into the key
    results/cells/<key>/samples.jsonl   one line a document

A folder appears by one rename, so a record is there whole or not at all; samples carry a checksum.
How a folder is written whole: pipeline/files.py. One run at a time holds the store: pipeline/lock.py.
Formats: ARCHITECTURE.md. Nothing here knows how a record was made.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import interrupt
from pipeline.errors import UserError
from pipeline.files import (
    DamagedFile,
    digest,
    json_bytes,
    move_away,
    new_folder,
    read_bytes,
    read_json,
    sha256,
    write_json,
    write_synced,
)

SCHEMA = 1


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
            DamagedFile: if the file is not the one that the record was written with.
        """
        return [json.loads(line) for line in self._samples().splitlines()]

    def check(self) -> bool:
        """True; or `DamagedFile`, as `samples` raises it."""
        return bool(self._samples()) or True

    def _samples(self) -> bytes:
        path = self.folder / "samples.jsonl"
        try:
            data = read_bytes(path)
        except (OSError, UserError) as e:
            raise DamagedFile(f"{path}: cannot be read ({e}); remove {self.folder} and run again") from None
        if sha256(data) != self.samples_sha256:
            raise DamagedFile(f"{path}: checksum differs from its record; remove {self.folder} and run again")
        return data


def cell_folder(results: Path, key: str) -> Path:
    return results / "cells" / key


def is_done(results: Path, key: str) -> bool:
    """Whether the cell has a record whose bytes are what was written."""
    try:
        record = read_record(results, key)
        return record is not None and record.check()
    except DamagedFile:
        return False


def set_aside(results: Path, key: str) -> Path | None:
    """Move what is left of a damaged record away, so that it can be computed again; None if it is whole or not there."""
    folder = cell_folder(results, key)
    return None if not folder.exists() or is_done(results, key) else move_away(results, folder)


def read_record(results: Path, key: str) -> Record | None:
    """The record of `key`, or None if it has not been computed.

    Raises:
        DamagedFile: if it is there but is not what was written.
    """
    folder = cell_folder(results, key)
    path = folder / "record.json"
    if not path.is_file():
        return None
    data = read_json(path, f"remove {folder} and run again")
    sealed = data.pop("sha256", None) if isinstance(data, dict) else None
    if sealed is None or sealed != digest(data) or data.get("key") != key:
        raise DamagedFile(f"{path}: checksum differs from its content; remove {folder} and run again")
    if data.get("schema") != SCHEMA:
        raise DamagedFile(
            f"{path}: written in format {data.get('schema')}, this version reads {SCHEMA}; run again"
        )
    try:
        inputs, metrics, cost, provenance = (data[k] for k in ("inputs", "metrics", "cost", "provenance"))
        return Record(folder, inputs, metrics, cost, provenance, data["samples"]["sha256"])
    except (KeyError, TypeError) as e:
        raise DamagedFile(f"{path}: has no {e}, which this version reads; run again") from None


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
            "sha256": sha256(lines),
            "rows": len(samples),
        },
    }
    data["sha256"] = digest(data)
    with interrupt.deferred(), new_folder(cell_folder(results, key)) as folder:
        write_synced(folder / "samples.jsonl", lines)
        write_synced(folder / "record.json", json_bytes(data))
    return key


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
    manifest = read_json(path, "run the experiment again")
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != digest(manifest):
        raise DamagedFile(f"{path}: checksum differs from its content; run the experiment again")
    return manifest
