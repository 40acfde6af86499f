"""Commands in processes of their own that need not import torch, lm-eval or vLLM again.

    ran = warm.run("-m", "pipeline", "plan", "experiment=micro", env=os.environ | {"HF_HUB_OFFLINE": "1"})
    ran = warm.run("-m", "pipeline", "experiment=micro", "limit=3", engine=True)

The imports of a command that plans take 2 s of CPU and those of an engine 11 s, more than what most tests have it do. So a
server imports them once and forks for each command. The command is run as Python runs it: a process of its own with its own
arguments, environment, folder and standard streams, `__main__`, exit status and handlers at the exit. What libraries read
from the environment when they are imported is part of which server is asked. A test of what happens before or during the
imports, of signals or of a terminal starts a Python of its own.
"""

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.files import ROOT
from pipeline.weights import floats

LIGHT = (
    "pipeline.stages",
    "pipeline.report.render",
    "pipeline.evaluate.checks",
    "pipeline.weights.kernels",
    "lm_eval.tasks",
    "transformers",
)
MOST = 3  # servers at a time: each holds what it has imported
READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "VLLM_", "OMP_", "TORCH", "TQDM_", "WANDB_")


def run(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    given: str = "",
    engine: bool = False,
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run([sys.executable, *arguments], …)` returns.

    Args:
        arguments: `-m MODULE …` or `-c CODE …`.
        given: the standard input.
        engine: the command starts an engine like that of `engine=cpu`, in its own process.
    """
    variables = dict(os.environ if env is None else env)
    key = (engine, *sorted(item for item in variables.items() if item[0].startswith(READ_AT_IMPORT)))
    server = SERVERS.pop(key, None) or Server(engine, variables)
    SERVERS[key] = server  # the last that was asked
    while len(SERVERS) > MOST:
        SERVERS.pop(next(iter(SERVERS))).close()
    try:
        return server.run(arguments, variables, cwd, given)
    except BaseException:
        SERVERS.pop(key).close()
        raise


class Server:
    """A process that has imported what commands need."""

    def __init__(self, engine: bool, env: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "tests.warm", *(["engine"] if engine else [])]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=ROOT, text=True
        )

    def run(
        self, arguments: tuple[str, ...], env: dict[str, str], cwd: Path, given: str
    ) -> subprocess.CompletedProcess[str]:
        assert self.process.stdin and self.process.stdout
        with tempfile.TemporaryDirectory() as folder:
            streams = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
            streams[0].write_text(given)
            asked = {"arguments": arguments, "env": env, "cwd": str(cwd), "streams": list(map(str, streams))}
            print(json.dumps(asked), file=self.process.stdin, flush=True)
            status = self.process.stdout.readline()
            assert status, "the server has ended"
            printed = [path.read_text() for path in streams[1:]]
        return subprocess.CompletedProcess([sys.executable, *arguments], int(status), *printed)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


SERVERS: dict[Any, Server] = {}


@atexit.register
def close() -> None:
    """End all servers."""
    while SERVERS:
        SERVERS.popitem()[1].close()


def serve(modules: tuple[str, ...]) -> None:
    """Import `modules`, and fork for each command on the standard input; returns in the fork, with the command run."""
    gc.disable()
    for module in modules:
        importlib.import_module(module)
    floats.widened(
        np.zeros(1, np.uint16), "BF16"
    )  # the first kernel that is called makes numba import the rest
    gc.enable()
    gc.freeze()
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            return become(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(arguments: list[str], env: dict[str, str], cwd: str, streams: list[str]) -> None:
    """Run a command in this process, as if Python had been started with it."""
    for number, path in enumerate(streams):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the other one has read ahead
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    kind, what, *rest = arguments
    sys.path[:1] = [cwd if kind == "-m" else "", *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = ["-c" if kind == "-c" else what, *rest]
    random.seed()
    atexit.unregister(close)
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(main))


if __name__ == "__main__":
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # as pipeline/__main__.py does
    imported = LIGHT
    if sys.argv[1:] == ["engine"]:
        from pipeline.config.compose import compose
        from pipeline.engine.environment import prepare_environment

        prepare_environment(compose(["experiment=micro"]).engine)
        imported = (*LIGHT, "pipeline.engine.lm")
    serve(imported)
