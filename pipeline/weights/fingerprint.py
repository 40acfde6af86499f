"""Fingerprints of weights: one pass over all bytes, remembered.

    scan = cached_scan(files, names, scan_all)
    fingerprint(shapes, scan.digests)

The fingerprint of a model is the same however its tensors are sharded and ordered, and differs when one bit of one
tensor, its name, dtype or shape differs. A remembered scan counts only while path, size and times of all files are the
same; one that cannot be read is made anew.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import ascii_digest, parse_json, read_bytes, write_json
from pipeline.weights.floats import Bits, all_finite
from pipeline.weights.safetensors import raw_bytes


@dataclass(frozen=True)
class Scan:
    """What one pass over all bytes found: the sha256 of each tensor, and the tensors with NaN or infinity."""

    digests: dict[str, str]
    non_finite: list[str]


def fingerprint(shapes: Mapping[str, tuple[str, tuple[int, ...]]], digests: Mapping[str, str]) -> str:
    """sha256 over name, dtype, shape and sha256 of the bytes of every tensor in order of names.

    Args:
        shapes: name → (dtype, shape).
        digests: name → sha256 of the bytes.
    """
    return ascii_digest(
        [[name, shapes[name][0], list(shapes[name][1]), digests[name]] for name in sorted(digests)]
    )


def scan_tensor(parts: Iterator[Bits], dtype: str) -> tuple[str, bool]:
    """sha256 of a tensor's bytes, and whether all its entries, whose bits these are, are finite."""
    digest, finite = hashlib.sha256(), True
    for piece in parts:
        digest.update(raw_bytes(piece))
        finite = finite and all_finite(piece, dtype)
    return digest.hexdigest(), finite


def cached_scan(files: Iterable[Path], names: Iterable[str], scan: Callable[[], Scan]) -> Scan:
    """`scan()` of the tensors `names`, or its earlier result when path, size and times of all files are the same.

    The results lie in the folder RV_CACHE, or results/.cache when that is not set.
    """
    stamps = []
    for file in sorted(files):
        stat = file.stat()  # two fine-tunes have one size, and copying tools keep the time of change
        stamps.append([str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino])
    path = Path(os.environ.get("RV_CACHE", "results/.cache")) / f"{ascii_digest(stamps)}.json"
    known = _remembered(path)
    if known is not None and known.digests.keys() == set(names):
        return known
    found = scan()
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not correctness
        write_json(path, asdict(found))
    return found


def _remembered(path: Path) -> Scan | None:
    """The scan in a file of the cache, if it is one."""
    try:
        found = Scan(**parse_json(read_bytes(path)))
    except (OSError, ValueError, TypeError, UserError):
        return None
    texts = isinstance(found.digests, dict) and isinstance(found.non_finite, list)
    texts = texts and all(isinstance(text, str) for text in (*found.digests.values(), *found.non_finite))
    return found if texts else None
