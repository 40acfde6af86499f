"""What vLLM, its libraries and its processes print: kept in a file, and shown only when an engine fails.

    with captured() as log:
        start()                     # what is printed meanwhile, and later by processes started here, is in `log`
    error_in(text(log))             # the last error that a process told before it ended

A run prints a line for each cell; warnings of Triton, NUMA and torch between them say nothing about it. With the
variable VLLM_LOGGING_LEVEL=INFO (or DEBUG, WARNING) everything is printed as vLLM prints it.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import IO

from pipeline.files import write_file

ERROR = re.compile(r"\b((?:\w+\.)*\w*(?:Error|Exception)): (\S.*)")


@contextmanager
def captured() -> Iterator[IO[bytes]]:
    """Redirect the error stream, as a descriptor, into the temporary file that is given.

    Libraries write to the descriptor past Python, and processes that are started in the block inherit it.
    """
    log = tempfile.TemporaryFile()  # noqa: SIM115 - the engine keeps it
    if os.environ.get("VLLM_LOGGING_LEVEL", "ERROR").upper() not in ("ERROR", "CRITICAL"):
        yield log
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    os.dup2(log.fileno(), 2)
    try:
        yield log
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


@contextmanager
def with_descriptor() -> Iterator[None]:
    """Have an output stream that is a descriptor, which vLLM asks for when it starts: that of a notebook may be none."""
    try:
        sys.stdout.fileno()
    except (AttributeError, OSError):  # io.UnsupportedOperation is one
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield
    else:
        yield


def text(log: IO[bytes]) -> str:
    """All that has been printed into `log` so far."""
    return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")


def error_in(printed: str) -> str | None:
    """The last error in what was printed, in one line: "ValueError: …"; None if there is none.

    vLLM's own process raises "Engine core initialization failed. See root cause above": here is what is above.
    """
    found = [
        (m[1].rpartition(".")[2], m[2].strip()) for m in ERROR.finditer(printed) if "root cause" not in m[2]
    ]
    return f"{found[-1][0]}: {found[-1][1]}" if found else None


def keep(printed: str) -> Path:
    """Write what an engine that failed had printed beside the other caches, and return the file."""
    path = Path(os.environ.get("RV_CACHE", "results/.cache")) / "engine.log"
    write_file(path, printed.encode())
    return path
