"""Evaluate cells on a Ray cluster: one worker for each GPU or tensor-parallel group, all fed from one queue.

    python -m pipeline experiment=paper launcher=ray launcher.address=auto

Each finished cell lands in the store by the same rename as in a local run, so the working directory, `results`,
checkpoints and the hub's cache must lie on a file system that all nodes share, at the same path. Planning, vectors and
tables stay in the driver. Here is how a cluster is reached and how many workers it has room for; `queue` hands out the
cells, and `actor` is what runs on the nodes.

Covers workers that die. Does not cover a driver that dies (the same command goes on from the finished cells), nor nodes
that join after the start.
"""

import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from pipeline.config.schema import Config, Device, EngineConfig, LauncherConfig
from pipeline.errors import UserError
from pipeline.evaluate.jobs import make_jobs
from pipeline.evaluate.queue import Queue
from pipeline.evaluate.runner import Runner, in_order
from pipeline.plan.plan import Plan
from pipeline.shards import tidy

STORE_BYTES = 100_000_000  # of Ray's store where it is started here: only the plan is in it, and a container has little room


def evaluate(plan: Plan, report: Callable[[str], None] = print) -> int:
    """Compute every cell that has no record yet and return how many were computed.

    Raises:
        UserError: if there is no cluster, a worker finds a mistake in the input, or cells had to be given up;
            finished cells stay.
    """
    cells = in_order(plan.missing())
    if not cells:
        return 0
    Runner(plan, report).check(cells)
    connect(plan.config)
    import ray

    cluster: Any = ray  # it has no types for what is used here
    room = resources(plan.config.engine, plan.config.launcher, cluster.nodes())
    try:
        return Queue(plan, make_jobs(plan, cells, room[0]), room, report).drain()
    finally:
        tidy(plan.results)


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
        options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
        if launcher.address is None:
            options["object_store_memory"] = STORE_BYTES
        address = launcher.address or "local"  # not one that happens to run here
        ray.init(address, logging_level=logging.ERROR, **options)
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
    reason = " ".join(str(error).split())[:160]
    if launcher.address is None:
        return UserError(
            f"launcher=ray: Ray does not start on this machine ({reason}); set RAY_TMPDIR to a short path if it is about"
            " a socket, or add launcher=local, which runs one engine without it"
        )
    return UserError(
        f"launcher.address={launcher.address}: no Ray cluster answers ({reason}); start"
        " one with `ray start --head`, or leave the address out"
    )


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
