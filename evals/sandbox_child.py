"""What runs inside the sandbox: a checker that holds the tests, and a candidate that holds the program.

    python -s -S -P sandbox_child.py '{"cpu_seconds": 10, …}' < job.json

`sandbox.py` starts it and says what it guards. Order matters: the candidate is forked off and confined before the checker reads the job
(tests and token), so the candidate's memory cannot hold them. The two speak in frames (8 bytes of length, then a pickle) over two pipes.
The candidate is never believed: its pickles may name plain types only, anything else arrives as a handle (`Remote`) without value,
equal to nothing but itself, whose calls and attributes are asked for over the same pipes.
Standard library only.
"""

import builtins
import ctypes
import io
import json
import os
import pickle
import random
import re
import resource
import signal
import struct
import sys
import types
from typing import Any, NoReturn

FRAME_BYTES = 64 * 2**20  # the largest answer that the checker accepts
# The classes that an answer may name, all of them values with the equality that their documentation states.
VALUES = {
    *(
        ("builtins", n)
        for n in "bool int float complex str bytes bytearray list tuple dict set frozenset range slice".split()
    ),
    *(("datetime", name) for name in ("date", "datetime", "time", "timedelta")),
    ("collections", "deque"),
    ("decimal", "Decimal"),
    ("fractions", "Fraction"),
}
BASES = (int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)
# System calls that make processes or threads, enter namespaces or touch another process, by architecture (uapi/asm/unistd.h):
# clone fork vfork ptrace unshare setns process_vm_readv process_vm_writev io_uring_setup clone3
REFUSED_CALLS = {
    "x86_64": (0xC000003E, (56, 57, 58, 101, 272, 308, 310, 311, 425, 435)),
    "aarch64": (0xC00000B7, (220, 117, 97, 268, 270, 271, 425, 435)),
}

libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, *arguments: Any) -> None:
    if libc.prctl(option, *arguments, *[0] * (4 - len(arguments))) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def refuse_calls() -> None:
    """Install a seccomp filter under which REFUSED_CALLS fail with EPERM, for good."""
    audit_arch, refused = REFUSED_CALLS[os.uname().machine]
    load, equal, above, give = (
        0x20,
        0x15,
        0x35,
        0x06,
    )  # BPF: LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, RET|K
    code = [
        (load, 0, 0, 4),
        (equal, 1, 0, audit_arch),
        (give, 0, 0, 0x80000000),
        (load, 0, 0, 0),
    ]  # another architecture: killed
    tests = [
        (above, 0x40000000),
        *((equal, number) for number in refused),
    ]  # from 2**30 on: the x32 doubles of the same calls
    code += [(op, len(tests) - i, 0, number) for i, (op, number) in enumerate(tests)]
    code += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050001)]  # allow, EPERM
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(filters)))
    prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    prctl(22, 2, ctypes.byref(program))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def limit(limits: dict[str, Any]) -> None:
    """Set this process's own limits; past the hard limit of CPU time the kernel kills whatever signals are ignored."""
    cpu, memory = limits["cpu_seconds"], limits["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def send(fd: int, frame: bytes) -> None:
    data = memoryview(struct.pack("Q", len(frame)) + frame)
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int, most: int | None = None) -> bytes:
    """One frame; EOFError if the other side has ended, ValueError if the frame is larger than `most` bytes."""

    def read(count: int) -> bytes:
        parts = []
        while count:
            part = os.read(fd, min(count, 2**20))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    (length,) = struct.unpack("Q", read(8))
    if most is not None and length > most:
        raise ValueError(f"an answer of {length} bytes")
    return read(length)


# ---- the candidate ----


class Handles:
    """Objects that have no plain form stay in the candidate; the checker knows them by number."""

    def __init__(self) -> None:
        self.objects: list[Any] = []

    def dumps(self, value: Any) -> bytes:
        objects = self.objects

        class Pickler(pickle.Pickler):
            def persistent_id(self, obj: Any) -> int | None:
                kind = obj if isinstance(obj, type) else type(obj)
                if (
                    obj is None
                    or (kind.__module__, kind.__qualname__) in VALUES
                    or isinstance(obj, BASES)
                    or is_numpy_scalar(obj)
                ):
                    return None
                objects.append(obj)
                return len(objects) - 1

            def reducer_override(self, obj: Any) -> Any:
                if is_numpy_scalar(obj):
                    return type(obj.item()), (obj.item(),)
                for base in BASES:
                    if isinstance(obj, base):  # a subclass: what travels is its plain content
                        return base, (base(obj),)  # type: ignore[arg-type]
                return NotImplemented

        buffer = io.BytesIO()
        Pickler(buffer).dump(value)
        return buffer.getvalue()

    def loads(self, data: bytes) -> Any:
        objects = self.objects

        class Unpickler(pickle.Unpickler):
            def persistent_load(self, number: int) -> Any:
                return objects[number]

        return Unpickler(io.BytesIO(data)).load()


def is_numpy_scalar(obj: Any) -> bool:
    return type(obj).__module__ == "numpy" and hasattr(obj, "item") and not hasattr(obj, "__len__")


def confine(kept: tuple[int, int], limits: dict[str, Any]) -> None:
    """Leave this process nothing but the two descriptors `kept`, its limits, and no way to make another process."""
    prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: dies with the checker
    output = os.open(f"/tmp/output-{os.getpid()}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(f"/tmp/output-{os.getpid()}")
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    low, high = sorted(kept)
    for first, last in ((3, low), (low + 1, high), (high + 1, 2**16)):
        os.closerange(first, last)
    limit(limits)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_bytes"], limits["file_bytes"]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits["open_files"], limits["open_files"]))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it: too much output is to end the program
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    refuse_calls()


def serve(requests: int, answers: int) -> NoReturn:
    """Run the program and answer the checker's questions until it goes away."""
    random.seed(0)
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    handles = Handles()
    while True:
        value: Any = None
        question, *arguments = handles.loads(receive(requests))
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
            else:
                value = list(arguments[0])
            answer = handles.dumps(("ok", value))
        except BaseException as error:
            known = next(c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins")
            answer = handles.dumps(("error", type(error).__name__, known, str(error)[:200]))
        send(answers, answer)


# ---- the checker ----


class Checker:
    """Asks the candidate, and writes the one line that is the verdict."""

    def __init__(self, pid: int, requests: int, answers: int, limits: dict[str, Any]) -> None:
        self.pid, self.requests, self.answers, self.limits = (
            pid,
            requests,
            answers,
            limits,
        )
        self.out = os.dup(1)

    def finish(self, status: str, detail: str) -> NoReturn:
        detail = re.sub(r"0x[0-9a-f]+", "0x…", " ".join(detail.split()))[:200]
        os.write(self.out, json.dumps({"status": status, "detail": detail}).encode())
        os._exit(0)

    def ended(self) -> NoReturn:
        """The candidate is gone, or speaks nonsense: say why, whatever the tests would have caught."""
        os.kill(self.pid, signal.SIGKILL)  # of no effect if it has ended by itself
        _, status, usage = os.wait4(self.pid, 0)
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            if name == "SIGXCPU" or usage.ru_utime + usage.ru_stime >= self.limits["cpu_seconds"]:
                self.finish("timeout", f"used {self.limits['cpu_seconds']} s of CPU time")
            if name == "SIGXFSZ":
                self.finish("failed", f"wrote more than {self.limits['file_bytes']} bytes")
            self.finish("failed", f"the program was ended by {name}")
        self.finish(
            "failed",
            f"the program exited with status {os.WEXITSTATUS(status)} before the tests returned",
        )

    def ask(self, *question: Any) -> Any:
        """The candidate's answer; what it raised is raised here as the nearest built-in exception."""
        buffer = io.BytesIO()
        QuestionPickler(buffer).dump(question)
        try:
            send(self.requests, buffer.getvalue())
            frame = receive(self.answers, FRAME_BYTES)
        except (EOFError, BrokenPipeError):
            self.ended()
        except ValueError as error:
            self.finish("failed", str(error))
        try:
            verb, *rest = AnswerUnpickler(io.BytesIO(frame), self).load()
            if verb == "ok":
                (value,) = rest
                return value
            name, known, message = map(str, rest)
        except Exception as error:
            self.finish("failed", f"an answer that is no plain value: {error}")
        kind = getattr(builtins, known, None)
        # An exception that ends a loop quietly would change what the tests do.
        if (
            isinstance(kind, type)
            and issubclass(kind, Exception)
            and not issubclass(kind, (StopIteration, StopAsyncIteration))
        ):
            try:
                raised = kind(message if name == known else f"{name}: {message}")
            except TypeError:
                raised = RuntimeError(f"{name}: {message}")
        else:
            raised = RuntimeError(f"{name}: {message}")
        raise raised


class QuestionPickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> int | None:
        return obj._number if type(obj) is Remote else None


class AnswerUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, checker: Checker) -> None:
        super().__init__(file)
        self.checker = checker

    def persistent_load(self, number: int) -> "Remote":
        return Remote(self.checker, number)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in VALUES:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


class Remote:
    """An object that lives in the candidate. It has no value here: it is equal to itself alone, and asks for everything else."""

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
        items = self._checker.ask("list", self)
        if type(items) is not list:
            raise TypeError("not a list")
        return iter(items)


def check(checker: Checker, limits: dict[str, Any]) -> NoReturn:
    """Read the job, run its tests against the candidate, and write the token if they return."""
    job = json.load(sys.stdin)
    limit(limits)
    random.seed(0)
    tests: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(job["setup"], "setup", "exec"), tests)
        checker.ask("exec", job["source"])
        given = checker.ask("names", job["names"])
        tests |= {
            name: given[name] for name in job["names"] if name in given
        }  # no other name, whatever was answered
        exec(compile(job["tests"], "tests", "exec"), tests)
    except BaseException as error:
        checker.finish("failed", f"{type(error).__name__}: {error}")
    os.write(checker.out, json.dumps({"token": job["token"]}).encode())
    os._exit(0)


def main() -> None:
    limits = json.loads(sys.argv[1])
    if limits["packages"]:
        sys.path.append(limits["packages"])
    prctl(4, 0)  # PR_SET_DUMPABLE: neither process can be traced or read by the other, nor dump core
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                confine((requests[0], answers[1]), limits)
            except BaseException as error:
                send(answers[1], repr(error).encode())
            else:
                send(answers[1], b"confined")
                serve(requests[0], answers[1])
        finally:
            os._exit(1)
    os.close(requests[0])
    os.close(answers[1])
    checker = Checker(pid, requests[1], answers[0], limits)
    state = receive(answers[0], FRAME_BYTES)
    if state != b"confined":
        sys.exit(f"the program could not be confined: {state.decode()}")
    os.write(1, b"ready\n")
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    check(checker, limits)


if __name__ == "__main__":
    main()
