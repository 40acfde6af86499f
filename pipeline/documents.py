"""Documents of a benchmark: from the hub at a pinned revision, or from a folder with the same files.

The folder is laid out as in `BenchmarkConfig.dataset.files`: gsm8k/test.jsonl, humaneval/HumanEval.jsonl.gz,
sciq/test.json, bbh/bbh/<subtask>.json, … . `fingerprint` identifies the documents without loading them: by the
bytes of local files, or by id and revision on the hub.
"""

import gzip
import io
import json
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import perturbations
from pipeline import hub
from pipeline.errors import UserError
from pipeline.files import read_bytes, sha256_of_file

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_sha256 = lru_cache(maxsize=256)(sha256_of_file)

FIELDS = {
    "gsm8k": ("question", "answer"),
    "humaneval": ("prompt", "entry_point", "test"),
    "sciq": ("question", "support", "correct_answer", "distractor1", "distractor2", "distractor3"),
    "bbh": ("input", "target"),
}
"""The texts that every document of a form has."""
MAY_BE_EMPTY = ("support",)  # many documents of SciQ come without
MOST_BYTES = 2**29  # of one file, once it is unpacked


def name_of(dataset: dict[str, Any]) -> str:
    """What messages call a data set: its hub id, or one of its files."""
    return dataset["id"] or next(iter(dataset["files"].values()), "documents")


def files_of(dataset: dict[str, Any], folder: str, subtask: str | None) -> dict[str, Path]:
    """Split → file under `folder`, for those splits that are there.

    Raises:
        UserError: if the split whose documents are asked is missing.
    """
    asked = dataset["split"]
    found = {}
    for split, name in dataset["files"].items():
        path = Path(folder) / name.format(subtask=subtask)
        if path.is_file():
            found[split] = path
        elif split == asked:
            raise UserError(
                f"{path}: no such file (documents of {name_of(dataset)}); check data.folder={folder}"
            )
    if asked not in found:
        raise UserError(
            f"{name_of(dataset)}: its files name no split '{asked}'; set dataset.files.{asked}, or unset data.folder"
        )
    return found


def fingerprint(
    dataset: dict[str, Any], folder: str | None, subtask: str | None, examples: bool
) -> dict[str, str | None]:
    """What identifies the documents: {split: sha256 of the file}, or hub id, configuration and commit.

    Splits that are not asked count only where `examples` may be taken from them.

    Raises:
        UserError: if the files cannot be had.
    """
    if folder is None:
        config = dataset["config"].format(subtask=subtask) if dataset["config"] else None
        commit = _snapshot(dataset["id"], dataset["revision"]).name
        return {"hub": dataset["id"], "config": config, "revision": commit}
    files = files_of(dataset, folder, subtask)
    return {s: _sha256(path) for s, path in files.items() if examples or s == dataset["split"]}


def load(
    dataset: dict[str, Any],
    folder: str | None = None,
    subtask: str | None = None,
    form: str = "none",
    perturbation: str | None = None,
    seed: int = 0,
) -> "DatasetDict":
    """The splits of one benchmark or subtask; the split that is asked, perturbed if `perturbation` is named.

    Every document asked carries `source_doc`: the index of the plain document that it is or was made from, or
    where `source_field` tells that several were made from one problem, the index of the first of them.

    Raises:
        UserError: if the documents cannot be had, or the perturbation fits none of them.
    """
    from datasets import DatasetDict

    asked = _asked(json.dumps(dataset, sort_keys=True), folder, subtask, form, perturbation, seed)
    return DatasetDict({**_splits(dataset, folder, subtask), dataset["split"]: asked})


def _splits(dataset: dict[str, Any], folder: str | None, subtask: str | None) -> "DatasetDict":
    """The splits as they are in their files or on the hub."""
    if folder is None:
        return _from_hub(dataset["id"], dataset["config"], dataset["revision"], subtask)
    files = files_of(dataset, folder, subtask)
    return _from_files(tuple((k, str(v)) for k, v in files.items()), dataset["json_field"])


@lru_cache(maxsize=512)  # BBH alone has 27 subtasks, each with its variants
def _asked(
    described: str, folder: str | None, subtask: str | None, form: str, perturbation: str | None, seed: int
) -> "Dataset":
    """The documents that are asked, made once: every condition asks the same ones.

    Args:
        described: the data set, as JSON.
    """
    from datasets import Dataset

    dataset = json.loads(described)
    splits, asked = _splits(dataset, folder, subtask), dataset["split"]
    if asked not in splits:
        raise UserError(
            f"{name_of(dataset)}: expected a split '{asked}', found {', '.join(splits)}; set dataset.split"
        )
    _check_fields(splits, name_of(dataset), form, folder)
    documents = [dict(row) for row in splits[asked]]
    if perturbation is None:
        documents = _with_sources(documents, dataset)
    else:
        documents = _perturbed(documents, name_of(dataset), form, perturbation, seed, subtask)
    return Dataset.from_list(documents)


def _check_fields(splits: "DatasetDict", name: str, form: str, folder: str | None) -> None:
    """Refuse documents without the texts that their form has, and questions and answers that are empty."""
    for split, listed in splits.items():
        for field in FIELDS.get(form, ()):
            column = listed[field] if field in listed.column_names else [None]
            may_be_empty = field in MAY_BE_EMPTY
            wrong = next(
                (
                    i
                    for i, value in enumerate(column)
                    if not isinstance(value, str) or not (may_be_empty or value.strip())
                ),
                None,
            )
            if wrong is not None:
                raise UserError(
                    f"{name}: document {wrong} of the split '{split}' has no text in '{field}', which the form"
                    f" '{form}' asks; fix the documents{f' in {folder}' if folder else ''}"
                )


def _with_sources(documents: list[dict[str, Any]], dataset: dict[str, Any]) -> list[dict[str, Any]]:
    """Plain documents with their `source_doc`: their own index, or that of the first with the same `source_field`."""
    field = dataset["source_field"]
    if field is not None and not all(field in row for row in documents):
        raise UserError(f"{name_of(dataset)}: documents have no field '{field}'; set dataset.source_field")
    first: dict[Any, int] = {}
    return [
        row | {"source_doc": first.setdefault(row[field] if field else i, i)}
        for i, row in enumerate(documents)
    ]


def _perturbed(
    documents: list[dict[str, Any]],
    name: str,
    form: str,
    perturbation: str,
    seed: int,
    subtask: str | None,
) -> list[dict[str, Any]]:
    """The documents that a perturbation makes of these; it sets their `source_doc`."""
    try:
        perturbed = perturbations.perturb(form, perturbation, documents, seed=seed, subtask=subtask)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        raise UserError(
            f"{name}: a document cannot be perturbed by '{perturbation}' ({type(e).__name__}: {e}); check"
            f" that every document has the fields of the form '{form}'"
        ) from e
    if not perturbed:
        raise UserError(
            f"perturbation '{perturbation}' fits no document of {name}"
            f"{f' ({subtask})' if subtask else ''}; remove it from the benchmark's variants"
        )
    return perturbed


@lru_cache(maxsize=64)
def _from_files(files: tuple[tuple[str, str], ...], json_field: str | None) -> "DatasetDict":
    from datasets import Dataset, DatasetDict
    from pyarrow import ArrowException

    splits = {}
    for split, path in files:
        rows = _rows(Path(path), json_field)
        try:
            splits[split] = Dataset.from_list(rows)
        except (ArrowException, ValueError, TypeError, OverflowError) as e:
            reason = " ".join(str(e).split())[:160]
            raise UserError(f"{path}: its rows are no table with one type a column ({reason}); fix it") from e
    return DatasetDict(splits)


def _rows(path: Path, json_field: str | None) -> list[dict[str, Any]]:
    """Rows of a JSON or JSON-lines file, gzipped or not: its bytes as they are now, past the cache of `datasets`."""
    try:
        text = _unpacked(path).decode("utf-8")
        if json_field is not None:
            rows = json.loads(text)[json_field]
        elif text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, KeyError, TypeError, OSError, EOFError, zlib.error, RecursionError) as e:
        raise UserError(f"{path}: cannot be read as JSON rows ({type(e).__name__}: {e}); fix it") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected a list of JSON objects, found something else; check the file")
    if not rows:
        raise UserError(f"{path}: expected documents, found none; the file is empty")
    return rows


def _unpacked(path: Path) -> bytes:
    """The bytes of a file, gzipped or not; a small file can stand for more than a memory holds."""
    raw = read_bytes(path, MOST_BYTES)
    if path.suffix != ".gz":
        return raw
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
        unpacked = stream.read(MOST_BYTES + 1)
    if len(unpacked) > MOST_BYTES:
        raise UserError(f"{path}: unpacks to more than {MOST_BYTES:,} bytes; check the file")
    return unpacked


@lru_cache(maxsize=64)
def _from_hub(name: str, config: str | None, revision: str | None, subtask: str | None) -> "DatasetDict":
    from datasets import load_dataset

    config = config.format(subtask=subtask) if config else None
    # by way of the snapshot: without a network load_dataset takes whichever revision is in its cache
    folder = _snapshot(name, revision)
    try:
        return load_dataset(str(folder), config)
    except Exception as e:
        raise UserError(
            f"{name}{f' ({config})' if config else ''} at {revision}: cannot be read"
            f" ({' '.join(str(e).split())[:160]}); set data.folder to use local files"
        ) from e


@lru_cache(maxsize=64)
def _snapshot(name: str, revision: str | None) -> Path:
    """The folder of a data set in the hub's cache, downloaded where it is not there; its name is the commit."""
    try:
        return hub.fetch(name, revision, kind="dataset")
    except UserError as e:
        raise UserError(f"{e}; or set data.folder to use local files") from e
