"""Runs of the pipeline as processes that can be watched and killed, with all that they start.

    run = Run(root)                    # a small micro experiment, with results and tables under root
    run.wait_for(lambda r: "vector written" in r.output())
    run.kill()                         # SIGKILL to the whole tree

A process belongs to a run if it has the run's token in its environment, is in the run's session, or was started by such a
process: vLLM's rename themselves over their environment, and the sandbox clears it.
"""

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from pipeline.files import ROOT

SMALL = [
    "experiment=micro",
    "tasks=[gsm8k,humaneval,sciq]",
    "conditions=sweep",
    "alpha=[-1,-0.5,0.25,0.5,0.75,1,1.5]",
    "limit=30",
    "benchmarks.gsm8k.variants=[]",
    "benchmarks.humaneval.variants=[]",
    "benchmarks.sciq.variants=[]",
]
CELLS = 24
TOKEN = "PIPELINE_TEST_TOKEN"


def command(root: Path, *more: str) -> list[str]:
    """The command line of a small experiment."""
    places = [f"results={root / 'results'}", f"tables={root / 'tables'}"]
    return [sys.executable, "-m", "pipeline", *SMALL, *places, *more]


def finished(root: Path) -> list[Path]:
    """The records that are there; half a record lies in a folder of another name."""
    return sorted((root / "results" / "cells").glob("[!.]*/record.json"))


class Run:
    """A process of the pipeline in a session of its own; `output` is what it and its children have printed."""

    def __init__(self, root: Path, *more: str, arguments: list[str] | None = None) -> None:
        self.root, self.token = root, uuid.uuid4().hex
        self.log = root / f"{self.token}.log"
        self.before = set(root.rglob("*"))
        self.temporary = root / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "RV_"))}
        environment |= {TOKEN: self.token, "OMP_NUM_THREADS": "1", "NETRC": str(root / "netrc")}
        environment |= {"TMPDIR": str(self.temporary)}
        with open(self.log, "w") as out:
            self.process = subprocess.Popen(
                arguments or command(root, *more),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )
        atexit.register(self.kill)  # a test that fails leaves nothing running

    def output(self) -> str:
        return self.log.read_text()

    def new(self, pattern: str) -> list[Path]:
        """Paths under root that were not there before this run."""
        return [path for path in self.root.glob(pattern) if path not in self.before]

    def wait_for(self, happened: Callable[["Run"], bool]) -> bool:
        """Wait until `happened`, or the process has ended; returns whether it happened."""
        while not happened(self):
            if self.process.poll() is not None:
                return happened(self)
            time.sleep(0.002)
        return True

    def ends(self) -> int:
        """The exit status, once it has ended."""
        return self.process.wait()

    def is_gone(self) -> bool:
        """True, once all its processes have ended; a test's own limit of time is the only one."""
        while self.alive():
            time.sleep(0.05)
        return True

    def alive(self) -> list[int]:
        """Processes of this run that live, zombies aside."""
        found, parents = set(), {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):  # it has just ended, or is none
                pid = int(entry.name)
                state, parent, _, session = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:4]
                token = f"{TOKEN}={self.token}".encode()
                if state == "Z":
                    continue
                parents[pid] = int(parent)
                if int(session) == self.process.pid or token in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(pid)
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found)

    def names(self) -> str:
        """The command lines of its processes."""
        return " ".join(map(_name, self.alive()))

    def engines(self) -> list[int]:
        """Those of them that are engines in a process apart."""
        return [pid for pid in self.alive() if "EngineCore" in _name(pid)]

    def kill(self) -> None:
        """End the whole tree as a machine that loses power does."""
        while pids := self.alive():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self.process.wait()


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""
