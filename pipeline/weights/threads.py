"""Work on many tensors at a time, each on one core.

    in_parallel(write, names)
    with thread_pool() as pool:
        pool.submit(read, name)

Guards against torch's own threads: two of them on small pieces and shared cores were 10 to 40 times slower.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Result = TypeVar("Result")
CORES = os.sched_getaffinity(
    0
)  # of this process at its start: vLLM binds its CPU workers to some of them later


def thread_pool(threads: int | None = None) -> ThreadPoolExecutor:
    """Threads on the cores that this process was started with; as many as there are cores, at most 16, by default."""
    return ThreadPoolExecutor(
        threads or min(16, len(CORES)), initializer=os.sched_setaffinity, initargs=(0, CORES)
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside the block."""
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
