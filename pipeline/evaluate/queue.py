"""The queue of jobs that feeds the workers of a cluster, and what happens when one of them dies.

A worker keeps its engine and is handed the job that changes it least: a cell, or a shard of a long one. A worker or node
that dies, or whose GPU fails, loses the job that it was running: that goes to another worker, and is given up when a
second one dies on it. Cells are joined here, once the last of their shards is back.
"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluate.actor import Actor, Process, WorkerFailed, reason
from pipeline.evaluate.jobs import Job, Jobs
from pipeline.evaluate.joining import join_whole, take
from pipeline.evaluate.progress import Progress
from pipeline.evaluate.runner import DEATHS_PER_CELL
from pipeline.plan.plan import Plan

NOTICE_AFTER = 60.0  # seconds without a running worker before the user is told
MOST_DEATHS = 4  # workers that may die one after the other in one place, on whatever cells, before none is started there


@dataclass
class Worker:
    """What the driver knows of one worker: its Ray actor, the job it runs and what its engine holds."""

    actor: Any
    job: Job | None = None
    checks: bool = False  # whether it asks its first job again
    architecture: str = ""
    weights: str = ""
    since: float = 0.0
    deaths: int = 0  # of workers in its place, since one of them has finished a job


class Queue:
    """Jobs that are left to do, and the workers that do them.

    Args:
        jobs: what is to be computed.
        room: how many workers, and what Ray reserves for each (`cluster.resources`).
        report: is told of finished cells and of workers that died.
    """

    def __init__(
        self,
        plan: Plan,
        jobs: Jobs,
        room: tuple[int, dict[str, Any]],
        report: Callable[[str], None],
    ) -> None:
        import ray

        self.ray: Any = ray  # it has no types for what is used here
        self.plan, self.report = plan, report
        self.jobs, self.waiting = jobs, jobs.waiting
        self.deaths: Counter[str] = Counter()  # of workers, by the key of the job that they ran
        self.given_up: dict[str, str] = {}  # names of jobs, and what the last worker on each died of
        self.cause = ""  # of the last death
        cells = {job.cell.key for job in jobs.waiting} | {cell.key for cell in jobs.whole}
        self.progress = Progress(len(cells), jobs.seconds(), report)
        count, self.options = room
        self.reference = ray.put(plan)
        self.running: dict[Any, Worker] = {}  # by the future of what each does
        for _ in range(min(count, len(self.waiting))):
            self._start_worker()
        report(f"{len(self.running)} workers on {len(self.ray.nodes())} nodes")

    def drain(self) -> int:
        """Run every job and return how many cells were computed.

        Raises:
            UserError: if no worker stays alive, cells had to be given up, or a worker finds a mistake in the input.
        """
        try:
            join_whole(self.plan, self.jobs, self.progress)
            while self.waiting or any(worker.job or worker.checks for worker in self.running.values()):
                if not self.running:
                    left = len({job.cell.key for job in self.waiting})
                    raise UserError(
                        f"no worker stays alive, {left} cells are left; the last one died of: {self.cause};"
                        " fix that (more is in Ray's logs) and run again"
                    )
                ended, _ = self.ray.wait(list(self.running), timeout=NOTICE_AFTER)
                if not ended and not any(worker.job or worker.checks for worker in self.running.values()):
                    self.report("waiting for the cluster to start a worker")
                for future in ended:
                    self._take(future, self.running.pop(future))
        finally:
            for worker in self.running.values():  # those that never started, or all of them after a mistake
                self.ray.kill(worker.actor)
        if self.given_up:
            *_, cause = self.given_up.values()
            raise UserError(
                f"given up after {DEATHS_PER_CELL} workers died on each: {', '.join(self.given_up)}; the last one died of:"
                f" {cause}; run again, with less on a GPU"
            )
        return self.progress.computed

    def _take(self, future: Any, worker: Worker) -> None:
        """Take the result of what a worker did, and hand it its next job; the last is followed by its first again."""
        job, worker.job = worker.job, None
        checked, worker.checks = worker.checks, False
        try:
            metrics = self.ray.get(future)
        except self.ray.exceptions.RayError as e:
            error = getattr(e, "cause", None) or e  # what its task raised, if it lives
            if isinstance(error, UserError) and not isinstance(error, WorkerFailed):
                raise error from None
            self.ray.kill(worker.actor)  # Ray also says that it is gone when it has merely lost sight of it
            if checked:
                return self.report(
                    f"a worker died before it was asked its first cell again ({reason(error)})"
                )
            return self._replace(worker, job, reason(error))
        if job is not None:
            take(self.plan, self.jobs, job, metrics, time.monotonic() - worker.since, self.progress)
            if metrics is not None or job.shard is not None:
                worker.deaths = 0
        # after a death it may be the GPU: jobs that a worker died on are left to those that run
        suspect = worker.deaths and any(other.job for other in self.running.values())
        if jobs := [j for j in self.waiting if not (suspect and j.key in self.deaths)]:
            self._hand_out(worker, jobs)
        elif not checked and worker.weights:
            worker.checks = True
            self.running[worker.actor.check_again.remote()] = worker

    def _replace(self, worker: Worker, job: Job | None, cause: str) -> None:
        """Put another worker in the place of one that died, and its job back, unless too many died there or on it."""
        self.cause = cause
        if job is None:
            self.report(f"a worker died while it was starting ({cause})")
        else:
            self.deaths[job.key] += 1
            again = self.deaths[job.key] < DEATHS_PER_CELL
            self.report(
                f"a worker died on {job.name} ({cause}); "
                + ("it is tried again" if again else f"given up after {DEATHS_PER_CELL} such deaths")
            )
            if again:
                self.waiting.append(job)
            else:
                self.given_up[job.name] = cause
                self.jobs.give_up(job, self.progress)
        if worker.deaths + 1 < MOST_DEATHS:
            self._start_worker(worker.deaths + 1)

    def _hand_out(self, worker: Worker, jobs: list[Job]) -> None:
        job = choose(jobs, worker, self.running.values())
        self.waiting.remove(job)
        worker.job, worker.since = job, time.monotonic()
        worker.architecture, worker.weights = job.architecture, job.weights
        self.running[worker.actor.run.remote(job.cell.key, job.shard)] = worker

    def _start_worker(self, deaths: int = 0) -> None:
        actor = self.ray.remote(Actor).options(**self.options).remote(Process.current(), [self.reference])
        self.running[actor.start.remote()] = Worker(actor, deaths=deaths)


def choose(jobs: list[Job], worker: Worker, others: Iterable[Worker]) -> Job:
    """The next job for a worker: with the weights that it holds, else for the engine that it runs, else new; the longest first.

    A new engine is the one with the most work left for each worker that runs it, so that few have to change theirs later.
    New weights are those with the most work left for each worker that would hold them, ones that nobody holds first: so
    each swap serves as many jobs as possible, and what is handed out last is short.
    """
    others = list(others)
    holders = Counter(other.weights for other in others)
    engines = Counter(other.architecture for other in others)
    of_engine, of_weights = defaultdict[str, float](float), defaultdict[str, float](float)
    for job in jobs:
        of_engine[job.architecture] += job.seconds
        of_weights[job.weights] += job.seconds

    def cost(job: Job) -> tuple[bool, bool, float, bool, float, float]:
        engine, weights = job.architecture, job.weights
        share = of_engine[engine] / engines[engine] if engines[engine] else math.inf
        left = of_weights[weights] / (1 + holders[weights])
        changes = engine != worker.architecture, weights != worker.weights
        return *changes, -share, weights in holders, -left, -job.seconds

    return min(jobs, key=cost)
