"""Fingerprints of weights: one pass over all bytes, remembered."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from pipeline.weights.safetensors import all_finite, raw_bytes

Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside: two threads on small pieces and shared cores were 10 to 40 times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_parallel(function: Callable[[str], Result], names: Iterable[str]) -> list[Result]:
    """`function` of every tensor's name, for a few tensors at a time, each on one core."""
    with one_thread(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, names))


@dataclass(frozen=True)
class Scan:
    """What one pass over all bytes found: the sha256 of each tensor, and the tensors with NaN or infinity."""

    digests: dict[str, str]
    non_finite: list[str]


def fingerprint(shapes: Mapping[str, tuple[str, tuple[int, ...]]], digests: Mapping[str, str]) -> str:
    """sha256 over name, dtype, shape and sha256 of the bytes of every tensor in order of names.

    `shapes` maps a name to (dtype, shape). Sharding and the order in the files do not matter.
    """
    rows = [[name, shapes[name][0], list(shapes[name][1]), digests[name]] for name in sorted(digests)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def scan_tensor(parts: Iterator[torch.Tensor]) -> tuple[str, bool]:
    """sha256 of a tensor's bytes, and whether all its entries are finite."""
    digest, finite = hashlib.sha256(), True
    for piece in parts:
        digest.update(raw_bytes(piece))
        finite = finite and all_finite(piece)
    return digest.hexdigest(), finite


def cached_scan(files: list[Path], scan: Callable[[], Scan]) -> Scan:
    """`scan()`, or its earlier result when path, size and time of change of all files are the same.

    The results lie in the folder RV_CACHE, or results/.cache when that is not set.
    """
    stamps = []
    for file in sorted(files):
        stat = file.stat()  # two fine-tunes have one size, and copying tools keep the time of change
        stamps.append([str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino])
    name = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
    path = Path(os.environ.get("RV_CACHE", "results/.cache")) / f"{name}.json"
    try:
        known = json.loads(path.read_text())
        return Scan(known["digests"], known["non_finite"])
    except (OSError, ValueError, TypeError, KeyError):
        pass
    found = scan()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{path.stem}-{os.getpid()}")
        temporary.write_text(json.dumps(found.__dict__))
        temporary.replace(path)
    except OSError:
        pass  # a cache that cannot be written costs time, not correctness
    return found
