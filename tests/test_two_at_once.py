"""Two runs on one results folder: one waits and says for whom, and the locks of killed runs are taken over."""

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import lock
from pipeline.files import ROOT
from pipeline.lock import held
from tests.processes import command, finished
from tests.writers import WRITERS, left

HOLD = """
import sys
from pathlib import Path
from pipeline.lock import held
with held(Path(sys.argv[1]), "other", print):
    print("held", flush=True)
    sys.stdin.read(1)
"""

FORK = """
import os, sys, time
from pathlib import Path
from pipeline.lock import held
with held(Path(sys.argv[1]), "other", print):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(600)
"""


@contextmanager
def another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds `folder` until it is told to go on."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, **pipes
    )  # type: ignore[call-overload]
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_run_waits_for_the_one_that_holds_the_folder_and_says_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    with another(tmp_path) as other:

        def no_more_waiting(seconds: float) -> None:
            other.communicate("x")

        monkeypatch.setattr(lock.time, "sleep", no_more_waiting)
        with held(tmp_path, "mine", lines.append):
            assert other.returncode == 0, "both held the folder"
    (line,) = lines
    assert line.startswith(f"waiting for the run 'other' of pid {other.pid} on ") and str(tmp_path) in line
    assert " since 20" in line and "Ctrl-C" in line


def test_the_lock_of_a_killed_run_is_taken_over_and_what_it_left_is_removed(tmp_path: Path) -> None:
    whole = tmp_path / "cells" / "whole"
    whole.mkdir(parents=True)
    for writer, place in (("file", "table"), ("folder", "cells/x"), ("file", ".cache/y")):
        left(WRITERS[writer], tmp_path / place)
    lines: list[str] = []
    with another(tmp_path) as other:
        assert len(list(tmp_path.rglob(".tmp-*"))) == 0
        left(WRITERS["folder"], tmp_path / "cells" / "x")
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    with held(tmp_path, "mine", lines.append):
        assert list(tmp_path.rglob(".tmp-*")) == [] and whole.is_dir()
    (line,) = lines
    assert f"the run 'other' of pid {other.pid} on " in line and "was killed" in line
    assert not (tmp_path / ".lock").exists()


def test_a_lock_file_from_another_host_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("the run 'paper' of pid 7 on node12 since 2026-01-01 00:00:00+00:00")
    lines: list[str] = []
    with held(tmp_path, "mine", lines.append):
        pass
    (line,) = lines
    assert "pid 7 on node12" in line and "taken over" in line


@pytest.mark.parametrize("content", [b"", b"\xff\x00\x1b[31m\n" * 200])
def test_a_lock_file_without_sense_stops_nobody(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(content)
    lines: list[str] = []
    with held(tmp_path, "mine", lines.append):
        pass
    assert all(len(line) < 500 and line.isprintable() for line in lines)


def test_removing_the_lock_file_lets_a_waiting_run_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with another(tmp_path) as other:
        monkeypatch.setattr(lock.time, "sleep", lambda seconds: (tmp_path / ".lock").unlink())
        with held(tmp_path, "mine", lambda line: None):
            assert other.poll() is None


def test_where_there_are_no_locks_the_run_goes_on_says_so_and_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / ".tmp-x").touch()
    lines: list[str] = []
    with held(tmp_path, "mine", lines.append):
        pass
    assert len(lines) == 1 and "no locks on this file system" in lines[0]
    assert (tmp_path / ".tmp-x").exists()


def test_a_forked_child_that_outlives_its_run_does_not_keep_the_lock(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FORK, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        lines: list[str] = []
        with held(tmp_path, "mine", lines.append):
            assert "was killed" in lines[0]
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.engine
def test_of_two_runs_that_start_together_one_computes_and_the_other_finds_it_done(tmp_path: Path) -> None:
    logs = [tmp_path / f"{name}.log" for name in "ab"]
    runs = []
    for log in logs:
        with open(log, "w") as out:
            runs.append(
                subprocess.Popen(command(tmp_path), stdout=out, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
            )
    assert [run.wait() for run in runs] == [0, 0], [log.read_text()[-2000:] for log in logs]
    texts = [log.read_text() for log in logs]
    waited = [text for text in texts if "waiting for the run 'micro' of pid" in text]
    assert len(waited) == 1
    assert str(runs[1 - texts.index(waited[0])].pid) in waited[0]
    assert "starting the engine" not in waited[0] and " 0 to do" in waited[0]
    assert sum(len(re.findall(r"^\[ *\d+/", text, re.M)) for text in texts) == len(finished(tmp_path))
    assert not list(tmp_path.rglob(".tmp-*")) and not list(tmp_path.rglob(".lock"))


def test_what_a_killed_run_left_inside_of_what_it_left_is_removed_too(tmp_path: Path) -> None:
    left(WRITERS["nested"], tmp_path / "vectors" / "out")
    assert len(list(tmp_path.rglob(".tmp-*"))) == 2
    with held(tmp_path, "next", lambda line: None):
        assert not list(tmp_path.rglob(".tmp-*"))
