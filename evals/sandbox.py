"""Runs candidate programs where they can harm nothing, and says which of them pass their tests.

    program = Program(source="def add(a, b): return a + b", tests="assert add(1, 2) == 3", names=("add",))
    verdicts = run([program])

Two processes share one sandbox for each program (`sandbox_child.py`). The *candidate* holds the program and
serves calls over a pipe; the *checker* holds the tests and calls the program through that pipe. What comes
back is rebuilt by the checker as plain data (`sandbox_protocol.py`), and compared by the checker's own code.
After the tests returned, the checker writes a token that this module drew for this one program: the token is
the verdict, an exit status never is. Tests and token reach the checker after the candidate was forked off, so
nothing in the candidate's memory, frames, environment or descriptors knows them, and an object that claims to
equal everything never takes part in a comparison.

In force at the levels `bubblewrap` and `namespaces`:

- own user, mount, pid, network, ipc and uts namespaces; no capabilities, no new privileges;
- no network, not even the host's loopback;
- a root that holds nothing but the system's libraries, the interpreter, numpy and the checker, read-only: no
  home, no results, no /proc, no device but /dev/null; a private /tmp for so many bytes and files; four
  constants as environment;
- limits on CPU time, wall time, memory, file size, open files and output; no core dumps;
- a list of the system calls that a program may make (`sandbox_seccomp.py`): others do not exist for it, such as
  those for keyrings, for memory that no limit counts and for the mode and owner of a file;
- one process with one thread: a program that asks for another, for a socket, or to signal or trace a
  process is killed on the spot;
- everything dies with its namespace: at the limit, at the verdict, at an interrupt, and when the evaluating
  process dies.

Level `none` keeps the two processes, the limits on each process, the list of system calls and the loss of
capabilities, but the program has the file access of the user, the memory of the user's other processes in
/proc among it. It is refused unless explicitly allowed.

Not covered: bugs of the kernel; side channels; machines without seccomp, or neither x86_64 nor aarch64 (they
have no level at all). Under bubblewrap the files in /tmp are counted twenty times a second, so that a program
may make more of them before it is ended. The token proves that the tests returned, not that the tests are good.
Different from program and tests in one interpreter: the tests do not see changes made in place to an argument,
cannot hand functions of their own to the program, and get no arrays from it (a numpy scalar is a number).
"""

import contextlib
import functools
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import StrEnum, auto
from pathlib import Path
from typing import Literal

from pipeline.errors import UserError

CHILD = Path(__file__).with_name("sandbox_child.py")
MODULES = [CHILD.with_name(f"sandbox_{part}.py") for part in ("protocol", "seccomp")]  # what it imports
NAMESPACES = Path(__file__).with_name("sandbox_namespaces.py")
# A fixed hash seed makes the order of a set, and with it the verdict, the same in every run.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "LANG": "C.UTF-8", "HOME": "/tmp"}

Process = subprocess.Popen[bytes]


class Level(StrEnum):
    """What isolates the candidate, best first. Its name is recorded with results."""

    bubblewrap = auto()
    namespaces = auto()
    none = auto()


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    CPU time decides, since it does not depend on the machine's load; wall time only ends what sleeps. For
    comparison: the `code_eval` of lm-eval's stock tasks gives 3 s of wall time and sets no other limit.
    """

    cpu_seconds: int = 10
    wall_seconds: float = 120.0
    memory_bytes: int = 2 * 2**30
    file_bytes: int = 16 * 2**20  # of any one file, and of standard output and error together
    temporary_bytes: int = 64 * 2**20  # of everything in /tmp
    files: int = 4096  # in /tmp
    open_files: int = 64


@dataclass(frozen=True)
class Program:
    """A candidate and the tests that judge it, all of it Python source.

    `source` is the untrusted program. `tests` must return without raising. `names` are the globals that the
    tests take from the program. `setup` is trusted code that the tests rely on, run before `names` are bound.
    """

    source: str
    tests: str
    names: tuple[str, ...]
    setup: str = ""


@dataclass(frozen=True)
class Verdict:
    """`passed` only with the token; `timeout` if a limit on time ended the program; `detail` is one line."""

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
    """Judge every program, `workers` at a time (default: this process's CPUs); verdicts in the same order.

    An interrupt ends the programs that run, at once, and starts no more.

    Raises:
        UserError: if `level` (default: that of `require`) does not start here. That is never a verdict.
    """
    running = _Running()
    judge = functools.partial(_judge, running=running, level=level or require(), limits=limits or Limits())
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        try:
            return list(pool.map(judge, programs))
        except BaseException:
            running.end()
            raise


def probe() -> Level:
    """The best level at which a program passes its test on this machine; tried once in a process."""
    return _probe()[0]


_unsandboxed_allowed = False


def require(allow_unsandboxed: bool = False) -> Level:
    """The level in force, for the whole process: once allowed, programs may run unsandboxed.

    Raises:
        UserError: if this machine can isolate nothing and nobody allowed that.
    """
    global _unsandboxed_allowed
    _unsandboxed_allowed |= allow_unsandboxed
    level, reasons = _probe()
    if level is Level.none and not _unsandboxed_allowed:
        raise UserError(
            "programs cannot be run safely: expected bubblewrap or unprivileged user namespaces, found "
            f"neither ({reasons}); install bubblewrap, or set allow_unsandboxed=true if you trust the model"
        )
    return level


@functools.cache
def _probe() -> tuple[Level, str]:
    reasons = []
    program = Program("def f(): return 1", "assert f() == 1", ("f",))
    for level in (Level.bubblewrap, Level.namespaces):
        try:
            if _judge(program, _Running(), level, Limits()).passed:
                return level, ""
        except UserError as error:
            reasons.append(str(error))
    return Level.none, "; ".join(reasons)


class _Running:
    """The sandboxes of one `run`, each a process group, so that all can be ended together."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.processes: set[Process] = set()
        self.ended = False

    @contextlib.contextmanager
    def started(self, command: list[str]) -> Iterator[Process]:
        with self.lock:
            if self.ended:
                raise CancelledError
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
            self.processes.add(process)
        try:
            yield process
        except BaseException:
            _kill(process)
            raise
        finally:
            with self.lock:
                self.processes.remove(process)

    def end(self) -> None:
        with self.lock:
            self.ended = True
            for process in self.processes:
                _kill(process)


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.killpg(process.pid, signal.SIGKILL)


def _judge(program: Program, running: _Running, level: Level, limits: Limits) -> Verdict:
    token = secrets.token_hex(16)
    job = json.dumps(asdict(program) | {"token": token}).encode()
    late = False
    with running.started(_command(level, limits)) as process:
        try:
            out, err = process.communicate(job, limits.wall_seconds)
        except subprocess.TimeoutExpired:
            late = True
            _kill(process)
            out, err = process.communicate()
    # The checker alone holds this pipe: "ready" once the candidate is confined, then one line of verdict.
    ready, _, report = out.decode().partition("\n")
    if ready != "ready":
        lines = err.decode(errors="replace").strip().splitlines() or [f"exit status {process.returncode}"]
        raise UserError(f"sandbox level {level} does not start: {lines[-1]}")
    if late:
        return Verdict("timeout", f"not done after {limits.wall_seconds:g} s")
    if not report:
        return Verdict("failed", "the checker ended without a verdict")
    answer = json.loads(report)
    if answer.get("token") == token:
        return Verdict("passed")
    return Verdict(answer["status"], answer["detail"])


def _command(level: Level, limits: Limits) -> list[str]:
    """The command line that runs sandbox_child.py at `level`.

    Raises:
        UserError: if that needs a program which is not installed.
    """
    packages, visible = _visible()
    # -I would do, but for the hash seed, which comes from the environment.
    python = [os.path.realpath(sys.executable), "-s", "-S", "-P"]
    what = asdict(limits) | {"packages": packages, "own_tmp": level is not Level.none}
    child = [*python, str(CHILD), json.dumps(what)]
    if level is Level.none:
        return child
    if level is Level.namespaces:
        spec = {"visible": visible, "bytes": limits.temporary_bytes, "files": limits.files, "command": child}
        return [*python, str(NAMESPACES), json.dumps(spec)]
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UserError("bwrap is not installed")
    command = [bwrap, "--unshare-all", "--cap-drop", "ALL", "--die-with-parent", "--as-pid-1"]
    command += ["--size", str(limits.temporary_bytes), "--tmpfs", "/tmp"]
    for path in visible:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--dev-bind" if path.startswith("/dev/") else "--ro-bind", path, path]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp", "--", *child]


@functools.cache
def _visible() -> tuple[str | None, list[str]]:
    """The folder to import numpy from, if there is one, and every path that the sandbox shows, in place."""
    python = os.path.realpath(sys.executable)
    paths = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/etc/alternatives", "/dev/null"]
    paths += [f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64", python, str(CHILD), *map(str, MODULES)]
    packages = None
    spec = importlib.util.find_spec("numpy")  # the tests of HumanEval+ import it
    if spec is not None and spec.submodule_search_locations:
        numpy = Path(spec.submodule_search_locations[0])
        packages = str(numpy.parent)
        paths += [str(numpy), str(numpy.with_name("numpy.libs"))]
    return packages, [path for path in dict.fromkeys(paths) if os.path.exists(path)]
