"""What runs inside the sandbox: a checker that holds the tests, and a candidate that holds the program.

    python -s -S -P sandbox_child.py '{"cpu_seconds": 10, …}' < job.json

`sandbox.py` starts it and says what it guards against. Order matters: the candidate is forked off and
confined before the checker reads the job (tests and token), so the candidate's memory cannot hold them. The
two speak in the frames of `sandbox_protocol.py`. The candidate is never believed: what it sends is made anew
as plain data, and an object that stays with it is a `Remote` to the checker, which equals nothing but itself
and whose calls and attributes are again questions to the candidate. Standard library only.
"""

import builtins
import json
import os
import random
import re
import resource
import select
import signal
import sys
import types
from collections.abc import Sequence
from typing import Any, NoReturn

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from evals import sandbox_seccomp
from evals.sandbox_protocol import decode, encode, receive, send
from evals.sandbox_seccomp import prctl

sys.path.pop()  # programs do not look there


def limit(limits: dict[str, Any]) -> None:
    """Limit this process. The kernel kills it at the hard limit of CPU time, whatever signals it ignores."""
    cpu, memory = limits["cpu_seconds"], limits["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# ---- the candidate ----


class Objects:
    """Objects that have no plain form stay in the candidate; the checker knows them by number."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def number(self, thing: Any) -> int:
        self.kept.append(thing)
        return len(self.kept) - 1


def confine(kept: tuple[int, int], limits: dict[str, Any]) -> None:
    """Leave this process its limits, the two descriptors `kept`, and no way to reach another process."""
    prctl(1, signal.SIGKILL)  # dies with the checker
    output = os.memfd_create("output")
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    low, high = sorted(kept)
    for first, end in ((3, low), (low + 1, high), (high + 1, 2**16)):
        os.closerange(first, end)
    limit(limits)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_bytes"], limits["file_bytes"]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits["open_files"], limits["open_files"]))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it; here too much output ends the program
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sandbox_seccomp.drop_capabilities()
    sandbox_seccomp.install()


def serve(requests: int, answers: int) -> NoReturn:
    """Run the program and answer the checker's questions until it goes away."""
    random.seed(0)
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    objects = Objects()
    while True:
        question, *arguments = decode(receive(requests), objects.kept.__getitem__)
        value: Any = None
        try:
            if question == "exec":
                exec(compile(arguments[0], "candidate", "exec"), vars(module))
            elif question == "names":
                value = {name: vars(module)[name] for name in arguments[0] if name in vars(module)}
            elif question == "call":
                value = arguments[0](*arguments[1], **arguments[2])
            elif question == "getattr":
                value = getattr(*arguments)
            elif question == "setattr":
                setattr(*arguments)
            elif question == "list":
                value = list(arguments[0])
            answer = encode(("ok", value), objects.number)
        except BaseException as error:  # noqa: BLE001  the tests decide what an exception means
            known = next(c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins")
            answer = encode(("error", type(error).__name__, known, str(error)[:200]), objects.number)
        send(answers, answer)


# ---- the checker ----


class Checker:
    """Asks the candidate, and writes the one line that is the verdict."""

    def __init__(self, pid: int, requests: int, answers: int, limits: dict[str, Any]) -> None:
        self.pid, self.requests, self.answers, self.limits = pid, requests, answers, limits
        os.set_blocking(requests, False)
        self.verdict = os.dup(1)
        null = os.open("/dev/null", os.O_WRONLY)
        os.dup2(null, 1)  # what the tests print is no verdict
        os.dup2(null, 2)

    def check(self, job: dict[str, Any]) -> NoReturn:
        """Run the job's tests against the candidate, and write the token if they return."""
        tests: dict[str, Any] = {"__name__": "tests"}
        try:
            exec(compile(job["setup"], "setup", "exec"), tests)
            self.ask("exec", job["source"])
            given = self.ask("names", job["names"])
            for name in job["names"]:  # and no other name
                tests.pop(name, None)
                if name in given:
                    tests[name] = given[name]
            exec(compile(job["tests"], "tests", "exec"), tests)
        except BaseException as error:  # noqa: BLE001  whatever the tests raise is a failure
            self.finish("failed", f"{type(error).__name__}: {error}")
        os.write(self.verdict, json.dumps({"token": job["token"]}).encode())
        os._exit(0)

    def finish(self, status: str, detail: str) -> NoReturn:
        """Write a verdict that is not `passed`; at once, whatever the tests would have caught.

        `detail` may quote the program: half a surrogate pair could not be written to a record.
        """
        detail = re.sub(r"0x[0-9a-f]+", "0x…", " ".join(detail.split()))[:200]  # addresses vary between runs
        detail = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in detail)
        os.write(self.verdict, json.dumps({"status": status, "detail": detail}).encode())
        os._exit(0)

    def candidate_ended(self) -> NoReturn:
        os.kill(self.pid, signal.SIGKILL)  # of no effect unless it lives on behind a closed pipe
        _, status, usage = os.wait4(self.pid, 0)
        if not os.WIFSIGNALED(status):
            code = os.WEXITSTATUS(status)
            self.finish("failed", f"the program exited with status {code} before the tests returned")
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU or usage.ru_utime + usage.ru_stime >= self.limits["cpu_seconds"]:
            self.finish("timeout", f"used {self.limits['cpu_seconds']} s of CPU time")
        reasons: dict[int, str] = {
            signal.SIGSYS: "the program made a forbidden system call",
            signal.SIGXFSZ: f"the program wrote more than {self.limits['file_bytes']} bytes",
        }
        self.finish("failed", reasons.get(number, f"the program was ended by signal {number}"))

    def wait(self, reading: Sequence[int] = (), writing: Sequence[int] = ()) -> None:
        """Until the candidate has sent or taken something. No option of bubblewrap limits the files in /tmp."""
        ready = False
        while not ready:
            if self.limits["own_tmp"] and files_in_tmp() > self.limits["files"]:
                os.kill(self.pid, signal.SIGKILL)
                self.finish("failed", f"the program made more than {self.limits['files']} files")
            ready = any(select.select(reading, writing, (), 0.05))

    def ask(self, *question: Any) -> Any:
        """The candidate's answer; what it raised is raised here as the nearest built-in exception."""
        frame = encode(question, number_of)
        try:
            send(self.requests, frame, lambda: self.wait(writing=[self.requests]))
            answer = receive(self.answers, lambda: self.wait(reading=[self.answers]))
            match decode(answer, lambda number: Remote(self, number)):
                case ("ok", value):
                    return value
                case ("error", str(name), str(known), str(message)):
                    pass
                case _:
                    raise ValueError("neither an answer nor an error")
        except (EOFError, BrokenPipeError):
            self.candidate_ended()
        except Exception as error:  # noqa: BLE001  the candidate may have sent anything
            self.finish("failed", f"the program returned no plain value: {error}")
        kind = getattr(builtins, known, None)
        # StopIteration would end a loop of the tests quietly.
        if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(kind, StopIteration):
            kind = RuntimeError
        text = message if kind.__name__ == name else f"{name}: {message}"
        try:
            raised = kind(text)
        except TypeError:  # UnicodeDecodeError and its like take more arguments
            raised = RuntimeError(text)
        raise raised


class Remote:
    """An object that lives in the candidate. It has no value here: it equals itself alone."""

    __slots__ = ("_checker", "_number")

    def __init__(self, checker: Checker, number: int) -> None:
        object.__setattr__(self, "_checker", checker)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._checker.ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._checker.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._checker.ask("setattr", self, name, value)

    def __iter__(self) -> Any:
        return iter(self._checker.ask("list", self))


def files_in_tmp() -> int:
    """Files, folders and links in the file system of /tmp, deleted ones that are open among them."""
    found = os.statvfs("/tmp")
    return found.f_files - found.f_ffree


def number_of(thing: Any) -> int:
    if type(thing) is not Remote:
        raise TypeError(f"a program cannot be given a {type(thing).__name__} of the tests")
    return thing._number


def main() -> None:
    limits = json.loads(sys.argv[1])
    if limits["packages"]:
        sys.path.append(limits["packages"])
    prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: dies with what started it
    # It may have died before. Then nobody waits, and nobody would end a program that sleeps.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
    signal.alarm(int(limits["wall_seconds"]) + 10)
    prctl(4, 0)  # PR_SET_DUMPABLE: neither process can be traced or read by the other, or dump core
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                confine((requests[0], answers[1]), limits)
            except BaseException as error:  # noqa: BLE001  said by the checker
                send(answers[1], repr(error).encode())
            else:
                send(answers[1], b"confined")
                serve(requests[0], answers[1])
        finally:
            os._exit(1)
    os.close(requests[0])
    os.close(answers[1])
    state = receive(answers[0])
    if state != b"confined":
        sys.exit(f"the program could not be confined: {state.decode()}")
    os.write(1, b"ready\n")
    limit(limits)
    random.seed(0)
    Checker(pid, requests[1], answers[0], limits).check(json.load(sys.stdin))


if __name__ == "__main__":
    main()
