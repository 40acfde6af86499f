"""Runs killed with SIGKILL, process tree and all, at random moments of every stage: nothing is lost, nothing doubled.

    make test-kill                        51 kills; a seed of its own for the moments: KILL_SEED=7 make test-kill

A moment is chosen by what has just appeared on the disk or in the output, and a random time after that. What the kill hit
is told from what is there afterwards, counted, and printed. The report (report.html) and the table of costs are left out
of the comparison: they tell times.
"""

import collections
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint import Checkpoint
from pipeline.records import read_record
from pipeline.vector import Term, apply, extract
from tests import tiny
from tests.processes import CELLS, Run, finished

pytestmark = [pytest.mark.kill, pytest.mark.engine, pytest.mark.timeout(1800)]
SEED = int(os.environ.get("KILL_SEED", "0"))
APPLY = """
import sys
from pathlib import Path
from pipeline.checkpoint import Checkpoint
from pipeline.vector import Term, apply
apply(Checkpoint.open(sys.argv[1]), [Term(sys.argv[2], 0.5)], Path(sys.argv[3]))
"""
Event = Callable[[Run], bool]


def left(root: Path, where: str = "**") -> list[Path]:
    """What is being written, or was."""
    return list(root.glob(f"{where}/.tmp-*"))


def rendering(run: Run) -> bool:
    return (run.root / "tables" / "micro" / ".lock").exists()


def logging(run: Run) -> bool:
    """Whether a W&B run is there that is not marked as logged."""
    folder = run.root / "results" / "wandb"
    marked = {path.name.split(".")[0] for path in folder.glob("logged/*")}
    return any(path.name.rsplit("-", 1)[1] not in marked for path in folder.glob("offline-run-*"))


def one_more_cell(run: Run) -> bool:
    return "starting the engine" in run.output() and "[  1/" in run.output()


STAGES: dict[str, tuple[int, Event, float]] = {  # kills, what to wait for, and at most how many seconds more
    "start and plan": (8, lambda run: True, 4.0),
    "extract": (6, lambda run: bool(left(run.root, "results/vectors")), 0.02),
    "engine start": (6, lambda run: "starting the engine" in run.output(), 10.0),
    "generation and scoring": (9, one_more_cell, 1.0),
    "record writing": (5, lambda run: bool(left(run.root, "results/cells")), 0.0),
    "rendering": (6, rendering, 1.5),
    "W&B logging": (5, logging, 0.5),
}
APPLIED = 6


def hit(run: Run) -> str:
    """What a run is at, told from its output, its processes and what lies on the disk."""
    output, names = run.output(), " ".join(_name(pid) for pid in run.alive())
    if left(run.root, "results/vectors"):
        return "extract"
    if left(run.root, "results/cells"):
        return "record writing"
    if rendering(run):
        return "rendering"
    if "report:" in output:
        return "W&B logging"
    if "starting the engine" not in output:
        return "start and plan"
    if "bwrap" in names:
        return "scoring"
    return "generation" if "[  1/" in output else "engine start"


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def answers(root: Path) -> dict[str, Any]:
    """Everything in the records but times, cost and provenance, and the bytes of the samples."""
    found: dict[str, Any] = {}
    for path in finished(root):
        record = read_record(root / "results", path.parent.name)
        assert record is not None and record.check()
        found[path.parent.name] = (
            record.inputs,
            record.metrics,
            (path.parent / "samples.jsonl").read_bytes(),
        )
    return found


def rendered(root: Path) -> dict[str, bytes]:
    folder = root / "tables" / "micro"
    files = [p for p in folder.iterdir() if p.stem not in ("cost", "report")]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all runs are; `reference` in it is a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("kill")
    run = Run(root / "work")
    assert run.ends() == 0, run.output()[-3000:]
    assert len(finished(root / "work")) == CELLS
    (root / "work").rename(root / "reference")
    yield root
    shutil.rmtree(root, ignore_errors=True)


def test_a_run_killed_in_every_stage_ends_as_an_undisturbed_one(root: Path) -> None:
    chance, counts = random.Random(SEED), collections.Counter[str]()
    work, written = root / "work", dict[Path, tuple[int, int]]()
    for stage, (kills, event, at_most) in STAGES.items():
        done = 0
        while done < kills:
            run = Run(work)
            happened = run.wait_for(event)
            if happened:
                time.sleep(chance.uniform(0, at_most))
            if run.process.poll() is not None:
                assert run.process.returncode == 0, run.output()[-3000:]
                assert stage in ("rendering", "W&B logging"), (
                    f"the run ended before '{stage}' came: {run.output()[-2000:]}"
                )
                shutil.rmtree(work / "results" / "wandb")  # there is nothing left to log
                continue
            found = hit(run)
            run.kill()
            assert run.alive() == []
            counts[found] += 1
            done += 1
            print(f"kill {sum(counts.values())}: {found}", file=sys.stderr, flush=True)
            for path in finished(work):
                stat = path.stat()
                assert written.setdefault(path, (stat.st_ino, stat.st_mtime_ns)) == (
                    stat.st_ino,
                    stat.st_mtime_ns,
                )
            assert all(path.is_file() for path in written), "a record is gone"
            answers(work)  # every record that is there is whole
    last = Run(work)
    assert last.ends() == 0, last.output()[-3000:]
    assert last.alive() == []
    print(f"kills by what they hit: {dict(counts)}, {sum(counts.values())} in all", file=sys.stderr)
    assert set(counts) == {
        "start and plan",
        "extract",
        "engine start",
        "generation",
        "scoring",
        "record writing",
        "rendering",
        "W&B logging",
    }
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in written} == written
    assert answers(work) == answers(root / "reference")
    assert rendered(work) == rendered(root / "reference")
    assert left(work) == [] and list(work.rglob(".lock")) == []
    runs = [path.name.rsplit("-", 1)[1] for path in (work / "results" / "wandb").glob("offline-run-*")]
    logged = [path.name.split(".")[0] for path in (work / "results" / "wandb" / "logged").iterdir()]
    assert sorted(runs) == sorted(logged), "a W&B run is there twice, or without being whole"
    ours = {path.name for path in (work / "tmp").iterdir()}
    print(f"in TMPDIR: {sorted(ours)[:40]}", file=sys.stderr)


def test_a_killed_apply_leaves_nothing_or_the_whole_checkpoint(root: Path) -> None:
    chance, counts = random.Random(SEED), collections.Counter[str]()
    settings = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "rows": 8192}
    state = tiny.weights(tiny.config(**settings), seed=1)
    where = root / "apply"
    folders = [tiny.write(where / "target", state, **settings)]
    folders += [tiny.write(where / n, tiny.moved(state, s), **settings) for n, s in (("sft", 2), ("grpo", 3))]
    target, sft, grpo = (Checkpoint.open(str(folder)) for folder in folders)
    vector = extract(grpo, sft, where / "vector")
    apply(target, [Term(str(vector), 0.5)], where / "reference")
    whole = {path.name: path.read_bytes() for path in (where / "reference").iterdir()}
    out = where / "out"
    arguments = [sys.executable, "-c", APPLY, str(folders[0]), str(vector), str(out)]
    while sum(counts.values()) < APPLIED:
        run = Run(where, arguments=arguments)
        run.wait_for(lambda run: bool(left(where, ".")))
        time.sleep(chance.uniform(0, 0.15))
        if run.process.poll() is None:
            counts["apply"] += bool(left(where, "."))
            counts["apply, after the rename"] += not left(where, ".")
        run.kill()
        if out.exists():
            assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
            shutil.rmtree(out)
    print(f"kills by what they hit: {dict(counts)}", file=sys.stderr)
    assert counts["apply"] >= APPLIED // 2
    run = Run(where, arguments=arguments)
    assert run.ends() == 0, run.output()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    assert left(where, ".") == []
