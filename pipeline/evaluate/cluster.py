"""Evaluate cells on a Ray cluster: one worker for each GPU or tensor-parallel group, all fed from one queue.

    python -m pipeline experiment=paper launcher=ray launcher.address=auto

A worker keeps its engine and is handed the cell that changes it least. Each finished cell lands in the store by the same
rename as in a local run, so the working directory, `results`, checkpoints and the hub's cache must lie on a file system
that all nodes share, at the same path. A worker or node that dies, or whose GPU fails, loses the cell that it was running:
that cell goes to another worker, and is given up when a second one dies on it. Planning, vectors and tables stay in the
driver.

Covers workers that die. Does not cover a driver that dies (the same command goes on from the finished cells), nor nodes
that join after the start.
"""

import logging
import math
import os
import platform
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from evals import sandbox
from pipeline.config.compose import changed
from pipeline.config.schema import Config, Device, EngineConfig, LauncherConfig
from pipeline.engine.engine import SteeringError
from pipeline.errors import UserError
from pipeline.evaluate.runner import ATTEMPTS, Progress, Runner, in_order
from pipeline.evaluate.runner import name_of as _name
from pipeline.plan.plan import Cell, Plan
from pipeline.records import is_done, manifest_path

PATIENCE = 60.0  # seconds without a running worker before the user is told
LIVES = 4  # workers that may die one after the other in one place, on whatever cells, before none is started there


class WorkerFailed(UserError):
    """What ended a worker and need not end the next: its engine does not start, or its GPU fails."""


@dataclass
class Worker:
    """What the driver knows of one worker: its Ray actor, the cell it runs and what its engine holds."""

    actor: Any
    cell: Cell | None = None
    architecture: str = ""
    weights: str = ""
    since: float = 0.0
    deaths: int = 0  # of workers in its place, since one of them has finished a cell


class Actor:
    """The Ray actor: a `Runner` in a process of its own, on the node that Ray chose."""

    def __init__(self, process: dict[str, Any], plan: list[Any]) -> None:
        os.chdir(process["folder"])
        os.environ.update(process["environment"])
        sys.argv = process["arguments"]  # records name the command
        self.reference = plan[0]  # in a list, so that Ray does not fetch it before the environment is set

    def start(self) -> None:
        """Take the plan, and check that this node can run it.

        Raises:
            UserError: if the node does not see the run's files, or cannot isolate programs that have to run.
        """
        import ray

        self.plan: Plan = ray.get(self.reference)
        manifest = manifest_path(self.plan.results, self.plan.config.name)
        if not manifest.is_file():
            raise UserError(
                f"{platform.node()}: no {manifest} in {os.getcwd()}; the working directory and results must lie on a"
                " file system that all nodes share"
            )
        if any(task.config.runs_code for task in self.plan.tasks):
            sandbox.require(self.plan.config.allow_unsandboxed)
        if self.plan.config.engine.tensor_parallel_size == 1:
            engine = replace(
                self.plan.config.engine, in_process=True
            )  # a killed worker leaves no engine behind
            self.plan = replace(self.plan, config=changed(self.plan.config, engine=engine))
        self.cells = {cell.key: cell for cell in self.plan.cells}
        self.runner = Runner(self.plan)

    def run(self, key: str) -> dict[str, Any] | None:
        """Evaluate a cell and return its metrics; None if its record is there already.

        Raises:
            UserError: for a mistake that every worker would find.
            WorkerFailed: for whatever else ends the cell.
        """
        if is_done(self.plan.results, key):
            return None
        try:
            return self.runner.run(self.cells[key])
        except Exception as e:
            runs = self.runner.engine is not None and not isinstance(e, SteeringError)
            if isinstance(e, UserError) and runs:
                raise
            raise WorkerFailed(_reason(e)) from None  # in words: the driver need not know the class


def evaluate(plan: Plan, report: Callable[[str], None] = print) -> int:
    """Compute every cell that has no record yet and return how many were computed.

    Raises:
        UserError: if there is no cluster, a worker finds a mistake in the input, or cells had to be given up;
            finished cells stay.
    """
    cells = list(in_order(plan.missing()))
    if not cells:
        return 0
    Runner(plan, report).check(cells)
    connect(plan.config)
    return Queue(plan, cells, report).drain()


def probe(launcher: LauncherConfig) -> None:
    """Find out in seconds what `connect` would run into after minutes.

    Raises:
        UserError: if Ray is not installed, or nothing answers at the address.
    """
    if find_spec("ray") is None:
        raise UserError("launcher=ray: Ray is not installed; install the extra 'cluster'")
    host, _, port = (launcher.address or "").rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as e:
            raise _no_answer(launcher, e) from None


def connect(config: Config) -> None:
    """Connect to the configured cluster, or to one that is started on this machine for the time being; once.

    Raises:
        UserError: if Ray is not installed, no cluster answers at the address, or it has no room for a worker.
    """
    launcher = config.launcher
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    probe(launcher)
    import ray

    if ray.is_initialized():
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        address = launcher.address or "local"  # not one that happens to run here
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (OSError, RuntimeError, ValueError) as e:
        raise _no_answer(launcher, e) from None
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there
    started: Any = ray  # it has no types for what is used here
    resources(config.engine, launcher, started.nodes())


def disconnect() -> None:
    """End the connection, and the cluster with it if it was started here; nothing where there is none."""
    if ray := sys.modules.get("ray"):
        ray.shutdown()


def _no_answer(launcher: LauncherConfig, error: Exception) -> UserError:
    return UserError(
        f"launcher.address={launcher.address}: no Ray cluster answers ({' '.join(str(error).split())[:160]}); start"
        " one with `ray start --head`, or leave the address out"
    )


class Queue:
    """Cells that are left to do, and the workers that do them."""

    def __init__(self, plan: Plan, cells: list[Cell], report: Callable[[str], None]) -> None:
        import ray

        self.ray: Any = ray  # it has no types for what is used here
        self.plan, self.report = plan, report
        self.cells = cells
        self.deaths: dict[str, int] = {}
        self.given_up: dict[str, str] = {}  # names of cells, and what the last worker on each died of
        self.cause = ""  # of the last death
        self.progress = Progress(len(cells), report)
        count, self.options = resources(plan.config.engine, plan.config.launcher, self.ray.nodes())
        self.reference = ray.put(plan)
        self.running: dict[Any, Worker] = {}
        for _ in range(min(count, len(cells))):
            self._start_worker()
        report(f"{len(self.running)} workers on {len(self.ray.nodes())} nodes")

    def drain(self) -> int:
        """Run every cell and return how many were computed."""
        try:
            while self.cells or any(worker.cell for worker in self.running.values()):
                if not self.running:
                    raise UserError(
                        f"no worker stays alive, {len(self.cells)} cells are left; the last one died of: {self.cause};"
                        " mend that (more is in Ray's logs) and run again"
                    )
                ended, _ = self.ray.wait(list(self.running), timeout=PATIENCE)
                if not ended and not any(worker.cell for worker in self.running.values()):
                    self.report("waiting for the cluster to start a worker")
                for future in ended:
                    self._take(future, self.running.pop(future))
        finally:
            for worker in self.running.values():  # those that never started, or all of them after a mistake
                self.ray.kill(worker.actor)
        if self.given_up:
            *_, cause = self.given_up.values()
            raise UserError(
                f"given up after {ATTEMPTS} workers died on each: {', '.join(self.given_up)}; the last one died of:"
                f" {cause}; run again, with less on a GPU"
            )
        return self.progress.computed

    def _take(self, future: Any, worker: Worker) -> None:
        """What became of a worker's cell; then its next one."""
        cell, worker.cell = worker.cell, None
        try:
            metrics = self.ray.get(future)
        except self.ray.exceptions.RayError as e:
            error = getattr(e, "cause", None) or e  # what its task raised, if it lives
            if isinstance(error, UserError) and not isinstance(error, WorkerFailed):
                raise error from None
            self.ray.kill(worker.actor)  # Ray also says that it is gone when it has merely lost sight of it
            return self._bury(worker, cell, _reason(error))
        if cell is not None and metrics is None:
            self.progress.skip()
        elif cell is not None and metrics is not None:
            self.progress.done(cell, metrics, time.monotonic() - worker.since)
            worker.deaths = 0
        # after a death it may be the GPU: cells that a worker died on are left to those that run
        suspect = worker.deaths and any(other.cell for other in self.running.values())
        if cells := [c for c in self.cells if not (suspect and c.key in self.deaths)]:
            self._hand_out(worker, cells)

    def _bury(self, worker: Worker, cell: Cell | None, cause: str) -> None:
        """A worker is gone: another takes its place, and one its cell, unless too many have died there or on it."""
        self.cause = cause
        if cell is None:
            self.report(f"a worker died while it was starting ({cause})")
        else:
            self.deaths[cell.key] = self.deaths.get(cell.key, 0) + 1
            again = self.deaths[cell.key] < ATTEMPTS
            self.report(
                f"a worker died on {_name(cell)} ({cause}); "
                + ("it is tried again" if again else f"given up after {ATTEMPTS} such deaths")
            )
            if again:
                self.cells.append(cell)
            else:
                self.given_up[_name(cell)] = cause
                self.progress.skip()
        if worker.deaths + 1 < LIVES:
            self._start_worker(worker.deaths + 1)

    def _hand_out(self, worker: Worker, cells: list[Cell]) -> None:
        cell = choose(cells, worker, self.running.values())
        self.cells.remove(cell)
        worker.cell, worker.since = cell, time.monotonic()
        worker.architecture, worker.weights = cell.family.architecture, str(cell.inputs["weights"])
        self.running[worker.actor.run.remote(cell.key)] = worker

    def _start_worker(self, deaths: int = 0) -> None:
        kept = ("HF_", "VLLM_", "RV_", "TOKENIZERS_", "TQDM_")
        process = {
            "folder": os.getcwd(),
            "arguments": sys.argv,
            "environment": {k: v for k, v in os.environ.items() if k.startswith(kept)},
        }
        actor = self.ray.remote(Actor).options(**self.options).remote(process, [self.reference])
        self.running[actor.start.remote()] = Worker(actor, deaths=deaths)


def _reason(error: Exception) -> str:
    """What ended a worker, in one line: Ray says it last, others first."""
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, UserError):
        return lines[0]
    is_rays = type(error).__module__.startswith("ray.")
    return f"{type(error).__name__}: {lines[-1 if is_rays else 0].strip()[:200]}"


def resources(
    engine: EngineConfig, launcher: LauncherConfig, nodes: list[dict[str, Any]]
) -> tuple[int, dict[str, Any]]:
    """How many workers, and what Ray reserves for each.

    Args:
        nodes: as `ray.nodes()` gives them.

    Raises:
        UserError: if the cluster has no room for a single worker.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    options: dict[str, Any] = {"max_restarts": 0, "scheduling_strategy": "SPREAD"}
    if engine.device is Device.gpu:
        each = engine.tensor_parallel_size
        most = sum(int(node.get("GPU", 0)) // each for node in alive)
        if most == 0:
            raise UserError(
                f"the cluster has no node with {each} GPU(s); check `ray status`, or add engine=cpu to run on CPUs"
            )
        return min(launcher.workers or most, most), options | {"num_gpus": each, "num_cpus": 1}
    cpus = [int(node["CPU"]) for node in alive if node.get("CPU", 0) >= 1]
    if not cpus:
        raise UserError("the cluster has no node with a CPU to spare; check `ray status`")
    count = launcher.workers or len(cpus)
    return count, options | {"num_cpus": max(1, min(cpus) // math.ceil(count / len(cpus)))}


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
