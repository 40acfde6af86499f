"""Work on many tensors at a time, each on one core.

    in_parallel(write, names)
    with thread_pool() as pool:
        pool.submit(read, name)
        for result in in_order(jobs, pool, ahead=8):
            ...

Guards against torch's own threads: two of them on small pieces and shared cores were 10 to 40 times slower.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

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
    """Torch on one thread inside the block, where this process has imported it."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
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


def in_order(
    jobs: Iterable[Callable[[], Result]], pool: Executor, ahead: int
) -> Generator[Result, None, None]:
    """The results of jobs in their order, of which threads make up to `ahead` before they are taken.

    However it ends, no job of it runs any more when it has ended.
    """
    made: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            made.append(pool.submit(job))
            if len(made) > ahead:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()
    finally:
        for left in made:
            left.cancel()
        wait(made)
