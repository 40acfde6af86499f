"""The store of shards: what is finished of a cell whose documents are shared out among workers.

    results/shards/<key>.2-of-5/shard.json      which documents, cost, provenance
    results/shards/<key>.2-of-5/samples.jsonl   one line a document

A folder appears by one rename and carries our mark, as scratch folders do (pipeline/files.py). Shards are there until
their cell is joined (pipeline/evaluate/joining.py). A run that was killed leaves them; the next run takes those of the
cells that it still has to do, whose key says that all inputs are the same, and removes the others. Only folders with our
mark are removed, and no link is followed.
"""

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from pipeline import interrupt
from pipeline.errors import UserError
from pipeline.files import MARK, DamagedFile, new_folder, read_bytes, sha256, write_synced
from pipeline.records import (
    SAMPLES,
    Cost,
    Provenance,
    Sample,
    check_types,
    parse_samples,
    read_checked,
    read_sealed,
    sample_lines,
    sealed,
)

NAME = re.compile(r"([0-9a-f]{64})\.([1-9]\d{0,5})-of-([1-9]\d{0,5})")


@dataclass(frozen=True, order=True)
class Shard:
    """A contiguous share of a cell's documents: the `number`th, from 1, of `count`, whose sizes differ by at most one."""

    number: int
    count: int

    def span(self, documents: int) -> range:
        """Its documents, of so many."""
        return range((self.number - 1) * documents // self.count, self.number * documents // self.count)

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count}"


class _Content(TypedDict):
    """What shard.json holds, beside the version of its format and its checksum."""

    key: str
    number: int
    count: int
    documents: int  # of the whole cell
    cost: Cost
    provenance: Provenance
    samples: str  # sha256 of their file


_CONTENT = TypeAdapter(_Content)


@dataclass(frozen=True)
class ShardRecord:
    """What one worker did of a cell."""

    documents: int  # of the whole cell
    cost: Cost
    provenance: Provenance
    samples: list[Sample]


def shard_folder(results: Path, key: str, shard: Shard) -> Path:
    """Where a finished shard is, or will be."""
    return results / "shards" / f"{key}.{shard.number}-of-{shard.count}"


def write_shard(results: Path, key: str, shard: Shard, done: ShardRecord) -> None:
    """Write a finished shard in one step; one that is there already stays."""
    lines = sample_lines(done.samples)
    content = _Content(
        key=key,
        number=shard.number,
        count=shard.count,
        documents=done.documents,
        cost=done.cost,
        provenance=done.provenance,
        samples=sha256(lines),
    )
    final = shard_folder(results, key, shard)
    with interrupt.deferred(), new_folder(final) as folder:
        write_synced(folder / SAMPLES, lines)
        write_synced(folder / "shard.json", sealed(dict(content)))
        write_synced(folder / MARK, final.name.encode())


def read_shard(results: Path, key: str, shard: Shard) -> ShardRecord | None:
    """A finished shard; None if it is not there.

    Raises:
        DamagedFile: if it is there but is not what was written, or another one.
    """
    folder = shard_folder(results, key, shard)
    path = folder / "shard.json"
    if not path.is_file():
        return None
    data = read_sealed(path)
    check_types(_CONTENT, data, path)
    if (data["key"], data["number"], data["count"]) != (key, shard.number, shard.count):
        raise DamagedFile(f"{path}: it is of another shard; remove {folder} and run again")
    samples = parse_samples(read_checked(folder / SAMPLES, data["samples"]), folder / SAMPLES)
    if [sample["doc_id"] for sample in samples] != list(shard.span(data["documents"])):
        raise DamagedFile(f"{folder / SAMPLES}: not the documents of {shard}; remove {folder} and run again")
    return ShardRecord(data["documents"], data["cost"], data["provenance"], samples)


def take_over(results: Path, keys: Collection[str]) -> dict[str, list[Shard]]:
    """What earlier runs left of the cells `keys`: the finished shards of each, of one cutting. All else of ours is removed.

    Of several cuttings of one cell the one is kept of which most is done.
    """
    found: dict[str, dict[int, list[Shard]]] = defaultdict(lambda: defaultdict(list))
    for key, shard in _ours(results):
        if key in keys and _is_whole(results, key, shard):
            found[key][shard.count].append(shard)
        else:
            _remove(shard_folder(results, key, shard))
    kept = {}
    for key, cuttings in found.items():
        best = max(cuttings, key=lambda count: (len(cuttings[count]) / count, count))
        kept[key] = sorted(cuttings.pop(best))
        for shard in (shard for others in cuttings.values() for shard in others):
            _remove(shard_folder(results, key, shard))
    return kept


def remove(results: Path, key: str) -> None:
    """Remove the shards of a cell, which has its record now."""
    for other, shard in list(_ours(results)):
        if other == key:
            _remove(shard_folder(results, key, shard))


def tidy(results: Path) -> None:
    """Remove the folder of shards if none is in it; not while workers write to it."""
    with contextlib.suppress(OSError):
        (results / "shards").rmdir()


def _ours(results: Path) -> Iterator[tuple[str, Shard]]:
    """The folders of shards that carry our mark."""
    root = results / "shards"
    if root.is_symlink() or not root.is_dir():
        return
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    for name in names:
        matched = NAME.fullmatch(name)
        mark = root / name / MARK
        with contextlib.suppress(OSError, UserError):
            if matched and not mark.is_symlink() and read_bytes(mark, limit=200) == name.encode():
                yield matched[1], Shard(int(matched[2]), int(matched[3]))


def _is_whole(results: Path, key: str, shard: Shard) -> bool:
    try:
        return read_shard(results, key, shard) is not None
    except DamagedFile:
        return False


def _remove(folder: Path) -> None:
    """Remove the files of a shard, the mark last; what else is in the folder is not ours and stays with it."""
    with contextlib.suppress(OSError):
        for name in ("shard.json", SAMPLES, MARK):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
