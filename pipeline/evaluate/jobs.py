"""What workers are handed: cells, the long ones of which are shared out by documents.

    jobs = make_jobs(plan, cells, workers=8)
    jobs.waiting            # Job(cell, shard 2 of 5, 310 s expected), …
    jobs.finished(job)      # whether its cell is whole now

A cell that takes long beside what each worker has to do would keep one worker busy while the others have nothing left. It
is cut into shards of contiguous documents. Where is said by the plan's estimate (documents × tokens), or by the shards
that a killed run left, and so by nothing that changes from one try to the next.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evaluate.progress import Progress, name_of
from pipeline.plan.estimate import documents_of, tokens_of
from pipeline.plan.plan import Cell, Plan
from pipeline.shards import Shard, take_over

SHARE = 1 / 8  # of what each worker has to do: a cell that takes longer is cut


@dataclass(frozen=True, eq=False)
class Job:
    """A cell, or a shard of one."""

    cell: Cell
    shard: Shard | None
    seconds: float  # that it is expected to take, beside those of other jobs

    @property
    def architecture(self) -> str:
        return self.cell.family.architecture

    @property
    def weights(self) -> str:
        return str(self.cell.inputs["weights"])

    @property
    def key(self) -> str:
        """Of the cell, with the shard."""
        return self.cell.key if self.shard is None else f"{self.cell.key} {self.shard}"

    @property
    def name(self) -> str:
        """As people read it."""
        return name_of(self.cell) if self.shard is None else f"{name_of(self.cell)}, {self.shard}"


class Jobs:
    """What is left to do, and which cells wait for more shards.

    Args:
        waiting: the jobs.
        counts: of cells that are cut, into how many shards, by key.
        whole: cells whose shards are all there, left by a run that was killed before it joined them.
    """

    def __init__(self, waiting: list[Job], counts: dict[str, int], whole: list[Cell]) -> None:
        self.waiting, self.counts, self.whole = waiting, counts, whole
        self._left = Counter(job.cell.key for job in waiting)
        self._given_up = set[str]()

    def seconds(self) -> float:
        """What all jobs are expected to take."""
        return math.fsum(job.seconds for job in self.waiting)

    def finished(self, job: Job) -> bool:
        """Take note that a job is done; whether nothing of its cell is left."""
        self._left[job.cell.key] -= 1
        return not self._left[job.cell.key]

    def give_up(self, job: Job, progress: Progress) -> None:
        """Take note that a job will not be done, and so its cell; other shards of it are kept for the next run."""
        again = job.cell.key in self._given_up
        self._given_up.add(job.cell.key)
        progress.skip(job.seconds, cells=0 if again else 1)


def make_jobs(plan: Plan, cells: Sequence[Cell], workers: int) -> Jobs:
    """The jobs that `cells` are, in their order; what earlier runs finished of them is taken over."""
    left = take_over(plan.results, {cell.key for cell in cells})
    expected = expected_seconds(cells)
    most = sum(expected) / workers * SHARE if workers > 1 else math.inf
    waiting, counts, whole = [], {}, []
    for cell, seconds in zip(cells, expected, strict=True):
        done = left.get(cell.key, [])
        count = done[0].count if done else _shards(cell, seconds, most, plan.config.launcher.shard_documents)
        if count == 1 and not done:
            waiting.append(Job(cell, None, seconds))
            continue
        shards = [Shard(number, count) for number in range(1, count + 1)]
        counts[cell.key] = count
        waiting += [Job(cell, shard, seconds / count) for shard in shards if shard not in done]
        whole += [cell] if len(done) == count else []
    return Jobs(waiting, counts, whole)


def expected_seconds(cells: Sequence[Cell]) -> list[float]:
    """What each cell is expected to take, by the plan's estimate; one that nobody counted as long as the longest."""
    speeds = [cell.family.config.tokens_per_second for cell in cells]
    slowest = min(filter(None, speeds), default=1.0)
    known = [
        tokens_of(cell.benchmark) / (speed or slowest) for cell, speed in zip(cells, speeds, strict=True)
    ]
    longest = max(known, default=0.0) or 1.0
    return [seconds or longest for seconds in known]


def _shards(cell: Cell, seconds: float, most: float, least: int | None) -> int:
    """Into how many shards a cell is cut, so that each takes `most` seconds and has `least` documents.

    A row that is asked in an arrangement of its own is never cut: it is what measures how much the batch moves.
    """
    if least is None or cell.condition.order is not None or cell.condition.at_once is not None:
        return 1
    return max(1, min(math.ceil(seconds / most), documents_of(cell.benchmark) // least))
