"""Processes that are killed, or go on, while they write a file or folder with pipeline/files.py."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.files import ROOT

# Each begins to write beside argv[1] and stops before the end.
STOP = "print('begun', flush=True); sys.stdin.read(1)"
WRITERS = {
    "folder": f"with files.new_folder(out) as new:\n  (new / 'half').write_text('x'); {STOP}",
    "replacing": f"with files.replacing(out, lambda out: None) as new:\n  new.write_text('x'); {STOP}",
    "file": f"def stop(*_): {STOP}\nfiles.os.replace = stop\nfiles.write_file(out, b'half')",
    "nested": "with files.new_folder(out) as new, files.replacing((new / 'x').resolve(), lambda out: None) as inner:\n"
    f"  inner.write_text('x'); {STOP}",
}


@contextmanager
def writing(writer: str, out: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has begun to write `out`; it goes on when it is told to."""
    script = (
        f"import sys\nfrom pathlib import Path\nfrom pipeline import files\nout = Path(sys.argv[1])\n{writer}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(out)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def left(writer: str, out: Path) -> None:
    """Leave what a killed writer of `out` leaves."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with writing(writer, out) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert list(out.parent.glob(".tmp-*")), "nothing was left"
