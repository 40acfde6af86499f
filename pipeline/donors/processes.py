"""One stage of training in several processes of this machine, one for each GPU: started together, ended together.

    train_together(Job(...), processes=8)

Each process is `python -m pipeline.donors.rank`, which reads its job from standard input. The first that fails ends the
others, and its reason is one line. None outlives this process: each watches it, and ends when it is gone. What they have
saved until then stays, and the next run goes on from it.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter

from evals import micro
from pipeline.donors.recipe import Recipe
from pipeline.errors import UserError

PARENT = "RV_TRAINING_OF"  # the process that a rank ends with
USER_ERROR = 2  # the exit status of a rank whose last line is for the user
GRACE = 20.0  # seconds that a process has to end when it is asked to
LONGEST = 300  # characters of a reason


class StageFailedError(RuntimeError):
    """A process of a stage ended before the stage did."""


@dataclass(frozen=True)
class Job:
    """What each process of a stage is given.

    Attributes:
        start: path, source and revision of the checkpoint that the stage starts from.
    """

    recipe: Recipe
    folder: Path
    start: tuple[Path, str, str | None] | None
    examples: list[micro.Example]
    processes: int

    def to_json(self) -> bytes:
        return TypeAdapter(Job).dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> "Job":
        return TypeAdapter(cls).validate_json(text)


def train_together(job: Job) -> None:
    """Run a stage to its end in `job.processes` processes.

    Raises:
        UserError: with what one of them says to the user.
        StageFailedError: if one fails otherwise, or is killed.
    """
    with ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(job.processes)]
        ranks: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, ranks)
        port = _free_port()
        for rank, log in enumerate(logs):
            ranks.append(_start(job, rank, port, log))
        failed = _wait(ranks)
        if failed is not None:
            raise _failure(job, failed, ranks[failed].returncode, _last_line(logs[failed]))


def _start(job: Job, rank: int, port: int, log: IO[bytes]) -> "subprocess.Popen[bytes]":
    threads = max(1, len(os.sched_getaffinity(0)) // job.processes)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    environment |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job.processes),
        "LOCAL_WORLD_SIZE": str(job.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        PARENT: str(os.getpid()),
    }
    with tempfile.TemporaryFile() as given:
        given.write(job.to_json())
        given.seek(0)
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.donors.rank"],
            env=environment,
            stdin=given,
            stdout=None if rank == 0 else subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the run, which ends them
        )


def _wait(ranks: "list[subprocess.Popen[bytes]]") -> int | None:
    """Wait until all have ended, or one has failed: its rank, or that of another which says why by itself."""
    while True:
        failed = [rank for rank, process in enumerate(ranks) if process.poll()]
        if failed:
            break
        if all(process.returncode == 0 for process in ranks):
            return None
        time.sleep(0.2)
    # One that is killed makes the others fail by a lost connection, and one that fails may be noticed after them.
    until = time.monotonic() + 1
    while time.monotonic() < until and any(process.poll() is None for process in ranks):
        time.sleep(0.1)
    ended = [rank for rank, process in enumerate(ranks) if process.poll()]
    speaking = [rank for rank in ended if ranks[rank].returncode == USER_ERROR]
    killed = [rank for rank in ended if ranks[rank].returncode < 0]
    return [*speaking, *killed, *failed][0]


def _end(ranks: "list[subprocess.Popen[bytes]]") -> None:
    """End those that still run; nothing that they would clean up is worth waiting long for."""
    for process in ranks:
        if process.poll() is None:
            process.terminate()
    until = time.monotonic() + GRACE
    for process in ranks:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _failure(job: Job, rank: int, status: int, line: str) -> Exception:
    if status == USER_ERROR:
        return UserError(line.removeprefix("error: "))
    how = f"was ended by signal {-status}" if status < 0 else f"failed ({line or f'exit status {status}'})"
    return StageFailedError(
        f"stage {job.folder.name}: process {rank} of {job.processes} {how}; the others were ended, and the same command"
        " goes on from the last checkpoint"
    )


def _last_line(log: IO[bytes]) -> str:
    """The last line of an error message; what torch says of a lost connection goes on below it, indented or empty."""
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.split(":")[0].endswith(("Error", "error", "Exception"))]
    return " ".join((errors or lines or [""])[-1].split())[:LONGEST]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
