"""Runs candidate programs where they can harm nothing, and says which of them pass their tests.

    verdicts = run([Program(source="def add(a, b): return a + b", tests="assert add(1, 2) == 3", names=("add",))])

Two processes share one sandbox for each program (`sandbox_child.py`). The *candidate* holds the program and serves calls over
a pipe; the *checker* holds the tests and calls the program through that pipe. Only plain values come back. After the tests
returned, the checker writes a token that this module drew for this one program: that token is the verdict, an exit status
never is. The tests and the token reach the checker after the candidate was forked off, so nothing in the candidate's memory,
frames, environment or descriptors knows them, and an object that is "equal to everything" never reaches a comparison.

In force at the levels `bubblewrap` and `namespaces`:
- own user, mount, pid, network, ipc and uts namespaces; no capabilities, no new privileges; no network, not even the host's loopback;
- a root holding nothing but the system's libraries, the interpreter, numpy and the checker, all read-only: no home, no results, no /proc, no
  /sys, no devices but /dev/null; a private /tmp of limited size; an environment of four constants;
- limits on CPU time, wall time, memory, file size, open files, and output; one process with one thread (seccomp); no core dumps;
- everything dies with its namespace: at the limit, at the verdict, and when the evaluating process dies.

Level `none` keeps the two processes, the limits and the seccomp filter, but shares file system, network and process table with the user:
a program can then read and write what the user can. It is refused unless it is allowed explicitly.

Not covered: bugs of the kernel; side channels; a host without seccomp, or neither x86_64 nor aarch64 (it has no level). The token proves
that the tests returned, not that the tests are good. Where this differs from running program and tests in one interpreter: the tests do not
see a change made in place to an argument, cannot pass functions of their own to the program, and see no array (a numpy scalar is a number).
"""

import functools
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pipeline.errors import UserError

CHILD = Path(__file__).with_name("sandbox_child.py")
NAMESPACES = Path(__file__).with_name("sandbox_namespaces.py")
# A fixed hash seed makes the order of a set, and with it the verdict, the same in every run.
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
}


class Level(StrEnum):
    """What isolates the candidate, best first; its value is recorded with results."""

    BUBBLEWRAP = "bubblewrap"
    NAMESPACES = "namespaces"
    NONE = "none"


@dataclass(frozen=True)
class Limits:
    """What one program may use. CPU time is the limit that decides, since it does not depend on the machine's load;
    wall time only ends what sleeps. lm-eval's own scorer gives 3 s of wall time and no other limit."""

    cpu_seconds: int = 10
    wall_seconds: float = 120.0
    memory_bytes: int = 2 * 2**30
    file_bytes: int = 16 * 2**20  # one file; standard output and error together
    temporary_bytes: int = 64 * 2**20  # everything in /tmp
    open_files: int = 64


@dataclass(frozen=True)
class Program:
    """A candidate and the tests that judge it, all Python source.

    `source` is the untrusted program. `tests` runs in the checker and must return without raising. `names` are the globals
    that the tests take from the program. `setup` is trusted code that the tests rely on; it runs before `names` are bound.
    """

    source: str
    tests: str
    names: tuple[str, ...]
    setup: str = ""


@dataclass(frozen=True)
class Verdict:
    """`passed` only if the checker wrote the token; `timeout` if a limit on time ended the program; `detail` is one short line."""

    status: Literal["passed", "failed", "timeout"]
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def run(
    programs: Sequence[Program],
    workers: int | None = None,
    limits: Limits | None = None,
    level: Level | None = None,
) -> list[Verdict]:
    """Judge every program, `workers` at a time (default: the CPUs of this process), and return verdicts in the same order.

    `level` defaults to what `probe` finds. Raises UserError if the sandbox itself does not start: that is never a verdict.
    """
    level = level or probe()
    judge = functools.partial(_judge, level=level, limits=limits or Limits())
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(judge, programs))


_found: Level | None = None


def probe(allow_unsandboxed: bool = False) -> Level:
    """Find the best level at which a trivial program passes on this machine; the answer is kept for the life of the process.

    Raises UserError if no level isolates anything, unless `allow_unsandboxed`.
    """
    global _found
    if _found is None:
        reasons = []
        for level in (Level.BUBBLEWRAP, Level.NAMESPACES):
            try:
                _judge(
                    Program("def f(): return 1", "assert f() == 1", ("f",)),
                    level,
                    Limits(),
                )
            except UserError as error:
                reasons.append(f"{level}: {error}")
            else:
                _found = level
                return level
        if not allow_unsandboxed:
            raise UserError(
                "cannot run candidate programs: expected bubblewrap or unprivileged user namespaces, found neither "
                f"({'; '.join(reasons)}); install bubblewrap, or allow unsandboxed programs if you trust the model"
            )
        _found = Level.NONE
    return _found


def _judge(program: Program, level: Level, limits: Limits) -> Verdict:
    token = secrets.token_hex(16)
    process = subprocess.Popen(
        _command(level, limits),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        cwd="/",
        start_new_session=True,
    )
    late = False
    try:
        out, err = process.communicate(
            json.dumps(asdict(program) | {"token": token}).encode(), limits.wall_seconds
        )
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    # The checker alone holds this pipe. It writes "ready" once the candidate is confined, then one line of verdict.
    ready, _, report = out.decode().partition("\n")
    if ready != "ready":
        lines = err.decode(errors="replace").strip().splitlines() or [f"exit status {process.returncode}"]
        raise UserError(f"the sandbox ({level}) did not start: {lines[-1]}")
    if late:
        return Verdict("timeout", f"ended after {limits.wall_seconds:g} s")
    if not report:
        return Verdict("failed", "the checker ended without a verdict")
    answer = json.loads(report)
    if answer.get("token") == token:
        return Verdict("passed")
    return Verdict(answer["status"], answer["detail"])


def _command(level: Level, limits: Limits) -> list[str]:
    """The command line that runs sandbox_child.py at `level`."""
    packages, visible = _visible()
    python = os.path.realpath(sys.executable)
    options = [
        "-s",
        "-S",
        "-P",
    ]  # -I without -E: the hash seed comes from the environment
    child = [
        python,
        *options,
        str(CHILD),
        json.dumps(asdict(limits) | {"packages": packages}),
    ]
    if level is Level.NONE:
        return child
    if level is Level.NAMESPACES:
        spec = {
            "visible": visible,
            "temporary_bytes": limits.temporary_bytes,
            "command": child,
        }
        return [python, *options, str(NAMESPACES), json.dumps(spec)]
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UserError("bwrap is not installed")
    command = [
        bwrap,
        "--unshare-all",
        "--cap-drop",
        "ALL",
        "--die-with-parent",
        "--as-pid-1",
    ]
    command += ["--size", str(limits.temporary_bytes), "--tmpfs", "/tmp"]
    for path in visible:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += [
                "--dev-bind" if path.startswith("/dev/") else "--ro-bind",
                path,
                path,
            ]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp", "--", *child]


@functools.cache
def _visible() -> tuple[str | None, list[str]]:
    """The folder to import third-party packages from, and every path that the sandbox shows, at the place where it is outside."""
    python = os.path.realpath(sys.executable)
    paths = [
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/etc/ld.so.cache",
        "/etc/alternatives",
        "/dev/null",
    ]
    paths += [f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64", python, str(CHILD)]
    packages = None
    # numpy is what HumanEval+ tests import; nothing else of the evaluating environment is shown.
    spec = importlib.util.find_spec("numpy")
    if spec is not None and spec.submodule_search_locations:
        numpy = Path(spec.submodule_search_locations[0])
        packages = str(numpy.parent)
        paths += [str(numpy), str(numpy.with_name("numpy.libs"))]
    return packages, [path for path in dict.fromkeys(paths) if os.path.exists(path)]
