"""The queue of cells that feeds the workers of a cluster, and what happens when one of them dies.

A worker keeps its engine and is handed the cell that changes it least. A worker or node that dies, or whose GPU fails,
loses the cell that it was running: that cell goes to another worker, and is given up when a second one dies on it.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluate.actor import Actor, Process, WorkerFailed, reason
from pipeline.evaluate.progress import Progress, name_of
from pipeline.evaluate.runner import DEATHS_PER_CELL
from pipeline.plan.plan import Cell, Plan

NOTICE_AFTER = 60.0  # seconds without a running worker before the user is told
MOST_DEATHS = 4  # workers that may die one after the other in one place, on whatever cells, before none is started there


@dataclass
class Worker:
    """What the driver knows of one worker: its Ray actor, the cell it runs and what its engine holds."""

    actor: Any
    cell: Cell | None = None
    checks: bool = False  # whether it asks its first cell again
    architecture: str = ""
    weights: str = ""
    since: float = 0.0
    deaths: int = 0  # of workers in its place, since one of them has finished a cell


class Queue:
    """Cells that are left to do, and the workers that do them.

    Args:
        cells: what is to be computed.
        room: how many workers, and what Ray reserves for each (`cluster.resources`).
        report: is told of finished cells and of workers that died.
    """

    def __init__(
        self,
        plan: Plan,
        cells: list[Cell],
        room: tuple[int, dict[str, Any]],
        report: Callable[[str], None],
    ) -> None:
        import ray

        self.ray: Any = ray  # it has no types for what is used here
        self.report = report
        self.cells = cells
        self.deaths: Counter[str] = Counter()  # of workers, by the key of the cell that they ran
        self.given_up: dict[str, str] = {}  # names of cells, and what the last worker on each died of
        self.cause = ""  # of the last death
        self.progress = Progress(len(cells), report)
        count, self.options = room
        self.reference = ray.put(plan)
        self.running: dict[Any, Worker] = {}  # by the future of what each does
        for _ in range(min(count, len(cells))):
            self._start_worker()
        report(f"{len(self.running)} workers on {len(self.ray.nodes())} nodes")

    def drain(self) -> int:
        """Run every cell and return how many were computed.

        Raises:
            UserError: if no worker stays alive, cells had to be given up, or a worker finds a mistake in the input.
        """
        try:
            while self.cells or any(worker.cell or worker.checks for worker in self.running.values()):
                if not self.running:
                    raise UserError(
                        f"no worker stays alive, {len(self.cells)} cells are left; the last one died of: {self.cause};"
                        " fix that (more is in Ray's logs) and run again"
                    )
                ended, _ = self.ray.wait(list(self.running), timeout=NOTICE_AFTER)
                if not ended and not any(worker.cell or worker.checks for worker in self.running.values()):
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
        """Take the result of what a worker did, and hand it its next cell; the last is followed by its first again."""
        cell, worker.cell = worker.cell, None
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
            return self._replace(worker, cell, reason(error))
        if cell is not None and metrics is None:
            self.progress.skip()
        elif cell is not None:
            self.progress.done(cell, metrics, time.monotonic() - worker.since)
            worker.deaths = 0
        # after a death it may be the GPU: cells that a worker died on are left to those that run
        suspect = worker.deaths and any(other.cell for other in self.running.values())
        if cells := [c for c in self.cells if not (suspect and c.key in self.deaths)]:
            self._hand_out(worker, cells)
        elif not checked and worker.weights:
            worker.checks = True
            self.running[worker.actor.check_again.remote()] = worker

    def _replace(self, worker: Worker, cell: Cell | None, cause: str) -> None:
        """Put another worker in the place of one that died, and its cell back, unless too many died there or on it."""
        self.cause = cause
        if cell is None:
            self.report(f"a worker died while it was starting ({cause})")
        else:
            self.deaths[cell.key] += 1
            again = self.deaths[cell.key] < DEATHS_PER_CELL
            self.report(
                f"a worker died on {name_of(cell)} ({cause}); "
                + ("it is tried again" if again else f"given up after {DEATHS_PER_CELL} such deaths")
            )
            if again:
                self.cells.append(cell)
            else:
                self.given_up[name_of(cell)] = cause
                self.progress.skip()
        if worker.deaths + 1 < MOST_DEATHS:
            self._start_worker(worker.deaths + 1)

    def _hand_out(self, worker: Worker, cells: list[Cell]) -> None:
        cell = choose(cells, worker, self.running.values())
        self.cells.remove(cell)
        worker.cell, worker.since = cell, time.monotonic()
        worker.architecture, worker.weights = cell.family.architecture, str(cell.inputs["weights"])
        self.running[worker.actor.run.remote(cell.key)] = worker

    def _start_worker(self, deaths: int = 0) -> None:
        actor = self.ray.remote(Actor).options(**self.options).remote(Process.current(), [self.reference])
        self.running[actor.start.remote()] = Worker(actor, deaths=deaths)


def choose(cells: list[Cell], worker: Worker, others: Iterable[Worker]) -> Cell:
    """The next cell for a worker: with the weights that it holds, else for the engine that it runs, else new.

    A new engine is the one with the most cells left for each worker that runs it, so that few have to change theirs
    later. Among equals, weights that no other worker holds come first, so that each swap serves as many cells as possible.
    """
    others = list(others)
    held = {other.weights for other in others}
    engines = Counter(other.architecture for other in others)
    left = Counter(cell.family.architecture for cell in cells)

    def cost(cell: Cell) -> tuple[bool, bool, float, bool]:
        architecture, weights = cell.family.architecture, str(cell.inputs["weights"])
        share = left[architecture] / engines[architecture] if engines[architecture] else math.inf
        return architecture != worker.architecture, weights != worker.weights, -share, weights in held

    return min(cells, key=cost)
