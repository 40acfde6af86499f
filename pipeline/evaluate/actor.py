"""One worker of a cluster: the Ray actor that runs in a process of its own, on the node that Ray chose.

Only plain data and `UserError` cross between it and the driver, which has no engine and need not know vLLM's errors.
"""

import os
import platform
import sys
from dataclasses import dataclass, replace
from typing import Any

from evals import sandbox
from pipeline.config.compose import changed
from pipeline.engine.engine import SteeringError
from pipeline.errors import UserError
from pipeline.evaluate.again import AnswersMoved
from pipeline.evaluate.runner import Runner
from pipeline.manifest import manifest_path
from pipeline.plan.plan import Plan
from pipeline.records import Metrics, is_done
from pipeline.shards import Shard

# Prefixes of the variables that workers take over.
ENVIRONMENT = ("HF_", "VLLM_", "RV_", "TOKENIZERS_", "TQDM_")


class WorkerFailed(UserError):
    """What ended a worker and need not end the next: its engine does not start, or its GPU fails."""


@dataclass(frozen=True)
class Process:
    """What a worker takes over from the driver's process."""

    folder: str
    arguments: list[str]  # records name the command
    environment: dict[str, str]

    @classmethod
    def current(cls) -> "Process":
        environment = {k: v for k, v in os.environ.items() if k.startswith(ENVIRONMENT)}
        return cls(os.getcwd(), sys.argv, environment)


class Actor:
    """A `Runner` behind Ray.

    Args:
        process: of the driver.
        plan: a reference to the plan, in a list, so that Ray does not fetch it before the environment is set.
    """

    def __init__(self, process: Process, plan: list[Any]) -> None:
        os.chdir(process.folder)
        os.environ.update(process.environment)
        sys.argv = process.arguments
        self.reference = plan[0]

    def start(self) -> None:
        """Take the plan, and check that this node can run it.

        Raises:
            UserError: if the node does not see the run's files, or cannot isolate programs that have to run.
        """
        import ray

        plan: Plan = ray.get(self.reference)
        manifest = manifest_path(plan.results, plan.config.name)
        if not manifest.is_file():
            raise UserError(
                f"{platform.node()}: no {manifest} in {os.getcwd()}; the working directory and results must lie on a"
                " file system that all nodes share"
            )
        if any(task.config.runs_code for task in plan.benchmarks):
            sandbox.require(plan.config.allow_unsandboxed)
        if plan.config.engine.tensor_parallel_size == 1:  # a killed worker leaves no engine behind
            engine = replace(plan.config.engine, in_process=True)
            plan = replace(plan, config=changed(plan.config, engine=engine))
        self.plan = plan
        self.cells = {cell.key: cell for cell in plan.cells}
        self.runner = Runner(plan)

    def run(self, key: str, shard: Shard | None) -> Metrics | None:
        """Evaluate a cell and return its metrics, or a shard of it; None for a shard, or if its record is there already.

        Raises:
            UserError: for a mistake that every worker would find.
            WorkerFailed: for whatever else ends the cell.
        """
        if is_done(self.plan.results, key):
            return None
        try:
            return self.runner.run(self.cells[key], shard)
        except Exception as e:
            engine_runs = self.runner.engine is not None and not isinstance(e, SteeringError)
            if isinstance(e, UserError) and engine_runs:
                raise
            raise WorkerFailed(reason(e)) from None  # in words: the driver need not know the class

    def check_again(self) -> None:
        """Ask the engine some documents of its first cell again, if its weights have changed since.

        Raises:
            AnswersMoved: if the answers are not those of the record.
            WorkerFailed: if they cannot be had.
        """
        try:
            self.runner.check_again()
        except Exception as e:
            if isinstance(e, AnswersMoved):
                raise
            raise WorkerFailed(reason(e)) from None


def reason(error: Exception) -> str:
    """What ended a worker, in one line: Ray says it last, others first."""
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, UserError):
        return lines[0]
    is_rays = type(error).__module__.startswith("ray.")
    return f"{type(error).__name__}: {lines[-1 if is_rays else 0].strip()[:200]}"
