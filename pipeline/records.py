"""The store: one folder for each finished cell, named by its content key.

    results/cells/<key>/record.json     metrics, cost, provenance, and all that was hashed into the key
    results/cells/<key>/samples.jsonl   one line a document

A folder appears by one rename, so a record is there whole or not at all (pipeline/files.py); one run at a time holds
the store (pipeline/lock.py). What is read is checked here, and only here: the checksums of both files, that the key is
the digest of the inputs, and the type of every field. Whatever fails is `DamagedFile` with its reason. Nothing here
knows how a record was made. Formats: ARCHITECTURE.md.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, Field, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict

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
    write_synced,
)

SCHEMA = 1
Number = Annotated[FiniteFloat, Field(ge=-1e60, le=1e60)]  # whose powers, in a variance, are finite too
SAMPLES = "samples.jsonl"


class Inputs(TypedDict, total=False):
    """All that was hashed into a key (pipeline/plan/keys.py says what each part holds).

    Other versions hash other parts, so none is required: the key is their digest, and that is checked.
    """

    protocol: int
    weights: dict[str, Any]
    model: dict[str, Any]
    tokenizer: str
    prompt: dict[str, Any]
    task: dict[str, Any]
    documents: list[dict[str, Any]]
    rows: dict[str, str | None]
    perturbation: dict[str, Any] | None
    decoding: str | dict[str, Any]  # "greedy", or how answers were sampled
    arrangement: dict[str, int | None]  # of the documents, where they were asked again in another
    engine: dict[str, Any]
    versions: dict[str, str]


class Metrics(TypedDict):
    """Means over the documents of a cell; scores and shares are 0 to 1."""

    metric: str  # "metric,filter" as lm-eval names it
    score: Number
    stderr: Number | None  # None for a single document
    n: int  # documents
    values: dict[str, Number]  # the score under each metric that was kept
    share_not_extracted: Number
    share_truncated: Number
    mean_tokens: Number


class Cost(TypedDict):
    """What a cell took, without the engine's start and the swap of weights."""

    seconds: Number
    generated_tokens: int
    prompt_tokens: int
    requests: int


class Source(TypedDict):
    """A checkpoint, as it was named; the commit for one of the hub."""

    id: str
    revision: str | None
    subfolder: NotRequired[str]
    merge_into: NotRequired[str]  # it is an adapter, in this checkpoint of the family


class GpuSource(TypedDict):
    """The GPU that answers were computed on; of a tensor-parallel group every model that is in it."""

    model: str
    driver: str | None
    cuda: str | None  # of torch; None where it is built for another platform


def _moment(text: str) -> str:
    datetime.fromisoformat(text)
    return text


def _with_device(engine: dict[str, Any]) -> dict[str, Any]:
    """What the cost of a run is counted by."""
    device, parallel = engine.get("device"), engine.get("tensor_parallel_size", 1)
    if device not in ("cpu", "gpu") or type(parallel) is not int or not 1 <= parallel <= 2**16:
        raise ValueError(f"device {device!r:.30} × {parallel!r:.30} is none")
    return engine


class ShardSource(TypedDict):
    """A shard of a cell's documents, which one worker asked."""

    first: int  # of its documents, by doc_id
    documents: int
    host: str
    started: Annotated[str, AfterValidator(_moment)]
    seconds: Number
    git: str | None


class Provenance(TypedDict):
    """How a record was made; nothing of it is in the key."""

    family: dict[str, Source]  # by part: target, sft, grpo, base
    allow_config_differences: NotRequired[list[str]]
    engine: Annotated[dict[str, Any], AfterValidator(_with_device)]
    versions: dict[str, str]
    host: str
    started: Annotated[str, AfterValidator(_moment)]  # ISO 8601, UTC
    command: str
    git: str | None
    chat_template_sha: NotRequired[str | None]
    sandbox: NotRequired[str | None]
    gpu: NotRequired[GpuSource]
    shards: NotRequired[list[ShardSource]]  # where the documents were shared out among workers
    notes: NotRequired[list[str]]  # what a reader of the answers should know


class Answer(TypedDict):
    """One answer to a document."""

    output: str  # of scored options, the likeliest
    extracted: dict[str, str]  # filter → answer
    scores: dict[str, Number]  # "metric,filter" → score
    score: Number  # under the benchmark's metric
    tokens: Number
    finish: str  # stop, length, or scored


class Sample(Answer):
    """One document and its answer: of several, the first, with the means of their scores and lengths."""

    doc_id: int
    subtask: str | None
    source_doc: int  # the plain document that a perturbed one was made from
    prompt: str
    target: str
    prompt_tokens: int
    answers: NotRequired[list[Answer]]  # all of them, where there are several
    loglikelihoods: NotRequired[list[FiniteFloat]]  # of each option


class _SamplesFile(TypedDict):
    sha256: str


class _Content(TypedDict):
    """What record.json must hold, beside its key and checksum."""

    inputs: dict[str, Any]
    metrics: Metrics
    cost: Cost
    provenance: Provenance
    samples: _SamplesFile


_CONTENT, _SAMPLES = TypeAdapter(_Content), TypeAdapter(list[Sample])


@dataclass(frozen=True)
class Record:
    """One evaluated cell, as read from its folder."""

    folder: Path
    inputs: Inputs
    metrics: Metrics
    cost: Cost
    provenance: Provenance
    samples_sha256: str

    def samples(self) -> list[Sample]:
        """All samples in document order.

        Raises:
            DamagedFile: if the file is not the one that the record was written with, or a sample lacks what is read.
        """
        return parse_samples(self._samples_bytes(), self.folder / SAMPLES)

    def check_samples(self) -> None:
        """Compare the samples' bytes with the record's checksum.

        Raises:
            DamagedFile: if they differ.
        """
        self._samples_bytes()

    def _samples_bytes(self) -> bytes:
        return read_checked(self.folder / SAMPLES, self.samples_sha256)


def read_checked(path: Path, expected: str) -> bytes:
    """The bytes of a file that have this sha256.

    Raises:
        DamagedFile: if they have another, or cannot be read.
    """
    try:
        data = read_bytes(path)
    except (OSError, UserError) as e:
        raise DamagedFile(f"{path}: cannot be read ({e}); {_remedy(path.parent)}") from None
    if sha256(data) != expected:
        raise DamagedFile(f"{path}: checksum differs from its record; {_remedy(path.parent)}")
    return data


def parse_samples(data: bytes, path: Path) -> list[Sample]:
    """The samples that the lines of `path` are.

    Raises:
        DamagedFile: if a line is none, or a sample lacks what is read.
    """
    try:
        rows = [json.loads(line) for line in data.splitlines()]
    except (ValueError, RecursionError) as e:
        raise DamagedFile(f"{path}: cannot be read ({e}); {_remedy(path.parent)}") from None
    check_types(_SAMPLES, rows, path)
    return rows


def sample_lines(samples: Sequence[Sample]) -> bytes:
    """Samples as their file has them, one line each."""
    return "".join(json.dumps(s, ensure_ascii=False, allow_nan=False) + "\n" for s in samples).encode()


def cell_folder(results: Path, key: str) -> Path:
    """Where the record of a cell is, or will be."""
    return results / "cells" / key


def is_done(results: Path, key: str) -> bool:
    """Whether the cell has a record whose bytes are what was written."""
    try:
        record = read_record(results, key)
        if record is not None:
            record.check_samples()
    except DamagedFile:
        return False
    return record is not None


def set_aside(results: Path, key: str) -> Path | None:
    """Move what is left of a damaged record away, so that it can be computed again; None if it is whole or not there."""
    folder = cell_folder(results, key)
    return None if not folder.exists() or is_done(results, key) else move_away(results, folder)


def read_record(results: Path, key: str) -> Record | None:
    """The record of `key`, or None if it has not been computed.

    Raises:
        DamagedFile: if it is there but is not what was written, belongs to another key, or lacks what is read.
    """
    folder = cell_folder(results, key)
    path = folder / "record.json"
    if not path.is_file():
        return None
    data = read_sealed(path)
    check_types(_CONTENT, data, path)
    if data.get("key") != key or _digest(data["inputs"], path) != key:
        raise DamagedFile(f"{path}: its inputs are those of another cell than {key[:12]}; {_remedy(folder)}")
    return Record(
        folder,
        data["inputs"],
        data["metrics"],
        data["cost"],
        data["provenance"],
        data["samples"]["sha256"],
    )


def sealed(data: dict[str, Any]) -> bytes:
    """Data as a JSON file of the store, with the version of its format and a checksum of its content."""
    data = {"schema": SCHEMA} | data
    return json_bytes(data | {"sha256": digest(data)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `sealed` has made.

    Raises:
        DamagedFile: if it is not what was written, or a later version wrote it.
    """
    data: dict[str, Any] = read_json(path, _remedy(path.parent))
    seal = data.pop("sha256", None) if isinstance(data, dict) else None
    if seal is None or seal != _digest(data, path):
        raise DamagedFile(f"{path}: checksum differs from its content; {_remedy(path.parent)}")
    if data.get("schema") != SCHEMA:
        raise DamagedFile(
            f"{path}: written in format {data.get('schema')}, this version reads {SCHEMA}; {_remedy(path.parent)}"
        )
    return data


def _digest(data: Any, path: Path) -> str:
    """The digest of what was read from `path`; 1e999 is read as infinity and has none."""
    try:
        return digest(data)
    except (ValueError, RecursionError) as e:
        raise DamagedFile(f"{path}: cannot be read ({e}); {_remedy(path.parent)}") from None


def check_types(expected: TypeAdapter[Any], data: Any, path: Path) -> None:
    """Compare the types of `data` with those that are declared above; what is not declared may stand beside it.

    Raises:
        DamagedFile: naming the first field that differs.
    """
    try:
        expected.validate_python(data, strict=True)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        found = "" if first["type"] == "missing" else f", found {first['input']!r:.60}"
        raise DamagedFile(f"{path}: {field}: {first['msg']}{found}; {_remedy(path.parent)}") from None


def _remedy(folder: Path) -> str:
    return f"remove {folder} and run again"


def write_record(
    results: Path,
    inputs: Mapping[str, Any],
    metrics: Metrics,
    cost: Cost,
    provenance: Provenance,
    samples: Sequence[Sample],
) -> str:
    """Write a cell in one step and return its key, the digest of `inputs`.

    If the cell is there already (another run was quicker), that record stays.
    """
    key = digest(inputs)
    lines = sample_lines(samples)
    data = {
        "key": key,
        "inputs": inputs,
        "metrics": metrics,
        "cost": cost,
        "provenance": provenance,
        "samples": {
            "file": SAMPLES,
            "sha256": sha256(lines),
            "rows": len(samples),
        },
    }
    with interrupt.deferred(), new_folder(cell_folder(results, key)) as folder:
        write_synced(folder / SAMPLES, lines)
        write_synced(folder / "record.json", sealed(data))
    return key
