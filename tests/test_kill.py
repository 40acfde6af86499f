"""Runs killed with SIGKILL, process tree and all, at random moments of every stage: nothing is lost, nothing doubled.

    make test-kill                        51 kills; other moments: KILL_SEED=7 make test-kill

A moment is a random time after something has appeared on the disk or in the output. What the kill hit is told from what
is there at that moment, counted, and printed. Compared with an undisturbed run are vectors, records, tables and figures
byte by byte, but for times, costs and provenance (and so the table of costs and report.html, which hold them).
"""

import collections
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.records import read_record
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.steer import Term, apply
from pipeline.weights.vector import extract
from tests import synthetic, tiny
from tests.processes import CELLS, Run, finished

pytestmark = [pytest.mark.kill, pytest.mark.timeout(3600)]
SEED = int(os.environ.get("KILL_SEED", "0"))
STARTING = "starting the engine"
Event = Callable[[Run], bool]


def written(pattern: str) -> Event:
    """Whether something of that name is there that an earlier run did not leave."""
    return lambda run: bool(run.new(pattern))


def says(text: str) -> Event:
    return lambda run: text in run.output()


def rendering(run: Run) -> bool:
    try:
        return f"pid {run.process.pid} " in next(run.root.glob("tables/*/.lock")).read_text()
    except (OSError, StopIteration):
        return False


def hit(run: Run) -> str:
    """What a run is at, told from its output, its processes and what lies on the disk."""
    output = run.output()
    if run.new("results/vectors/.tmp-*"):
        return "extract"
    if run.new("results/cells/.tmp-*"):
        return "record writing"
    if rendering(run):
        return "rendering"
    if run.new("results/wandb/offline-run-*") or "report: " in output:
        return "W&B logging"
    if STARTING not in output:
        return "start and plan"
    if "bwrap" in run.names():
        return "scoring"
    return "generation" if "[  1/" in output else "engine start"


class Kills:
    """Kills runs, counts what was hit, and checks after each that every record that was there still is, untouched."""

    def __init__(self, root: Path, *options: str) -> None:
        self.root, self.options = root, options
        self.chance, self.counts = random.Random(SEED), collections.Counter[str]()
        self.records: dict[Path, tuple[int, int]] = {}

    def kill(self, times: int, event: Event, at_most: float, again: str = "") -> None:
        """Kill as many runs, each up to `at_most` seconds after `event`.

        A run that ends before that does not count; the folder `again` is removed then, so that the next one has work.
        """
        goal = sum(self.counts.values()) + times
        while sum(self.counts.values()) < goal:
            run = Run(self.root, *self.options)
            happened = run.wait_for(event)
            time.sleep(self.chance.uniform(0, at_most))
            at = hit(run)
            ended = run.process.poll()
            run.kill()
            assert run.alive() == []
            if ended is not None:
                assert ended == 0, run.output()[-3000:]
                assert happened or again, f"the moment never came: {run.output()[-2000:]}"
                if again:
                    shutil.rmtree(self.root / again)
                continue
            self.counts[at] += 1
            for path in finished(self.root):
                self.records.setdefault(path, identity(path))
            self.check()

    def check(self) -> None:
        assert {path: identity(path) for path in self.records} == self.records, "computed more than once"
        answers(self.root)

    def finish(self) -> Run:
        """The same command, to its end; nothing is left of all the others."""
        last = Run(self.root, *self.options)
        assert last.ends() == 0, last.output()[-3000:]
        print(f"\nkills by what they hit: {dict(self.counts)}", file=sys.stderr)
        assert last.alive() == []
        assert list(self.root.rglob(".tmp-*")) == [] and list(self.root.rglob(".lock")) == []
        self.check()
        return last


def identity(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def answers(root: Path) -> dict[str, Any]:
    """Everything in the records but times, cost and provenance, and the bytes of the samples; each must be whole."""
    found: dict[str, Any] = {}
    for path in finished(root):
        record = read_record(root / "results", path.parent.name)
        assert record is not None
        record.check_samples()
        found[path.parent.name] = (
            record.inputs,
            record.metrics,
            (path.parent / "samples.jsonl").read_bytes(),
        )
    return found


def files(folder: Path) -> dict[str, bytes]:
    names = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in names
        if p.name != "report.html" and p.stem != "cost"
    }


def test_killed_while_it_plans_and_extracts(tmp_path: Path) -> None:
    kills = Kills(tmp_path / "work", "stages=[extract]")
    began, run = time.monotonic(), Run(kills.root, *kills.options)
    run.wait_for(says(" to do"))
    took = time.monotonic() - began
    assert run.ends() == 0
    vectors, data = files(kills.root / "results" / "vectors"), files(kills.root / "results" / "data")
    shutil.rmtree(kills.root)
    kills.kill(8, lambda run: True, took)
    kills.kill(6, written("results/vectors/.tmp-*"), 0.02, again="results/vectors")
    kills.finish()
    assert set(kills.counts) == {"start and plan", "extract"} and min(kills.counts.values()) >= 3
    assert files(kills.root / "results" / "vectors") == vectors
    assert files(kills.root / "results" / "data") == data


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run of all stages to its end, and how many seconds its engine took to start and finish a cell."""
    root = tmp_path_factory.mktemp("undisturbed")
    run = Run(root, "tracking=disabled")
    run.wait_for(says(STARTING))
    starting = time.monotonic()
    run.wait_for(says("[  1/"))
    took = time.monotonic() - starting
    assert run.ends() == 0, run.output()[-3000:]
    assert len(finished(root)) == CELLS
    return root, took


@pytest.mark.engine
@pytest.mark.parametrize("stage", ["engine start", "answers", "record writing"])
def test_killed_while_it_evaluates(stage: str, undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    reference, took = undisturbed
    kills = Kills(tmp_path, "tracking=disabled")
    if stage == "engine start":
        kills.kill(6, says(STARTING), took)
    elif stage == "answers":
        kills.kill(9, says("[  1/"), 1.0)
        assert {"generation", "scoring"} <= set(kills.counts)
    else:
        kills.kill(5, written("results/cells/.tmp-*"), 0.0)
    assert kills.counts[stage] >= 3 or stage == "answers"
    kills.finish()
    assert answers(tmp_path) == answers(reference)
    assert files(tmp_path / "tables") == files(reference / "tables")


def test_killed_while_it_renders_and_logs(tmp_path: Path) -> None:
    kills = Kills(tmp_path / "work", "name=synthetic", "stages=[render,track]")
    synthetic.write_run(kills.root / "results", documents=20, engine={"dtype": "float32"})
    run = Run(kills.root, *kills.options)
    assert run.ends() == 0, run.output()[-3000:]
    tables = kills.root / "tables"
    rendered = files(tables)
    logged = sorted(path.name for path in (kills.root / "results" / "wandb" / "logged").iterdir())
    shutil.rmtree(tables)
    shutil.rmtree(kills.root / "results" / "wandb")
    kills.kill(6, rendering, 1.5, again="results/wandb")
    kills.kill(5, written("results/wandb/offline-run-*"), 0.5, again="results/wandb")
    kills.finish()
    assert set(kills.counts) >= {"rendering", "W&B logging"}
    assert files(tables) == rendered
    wandb = kills.root / "results" / "wandb"
    assert sorted(path.name for path in (wandb / "logged").iterdir()) == logged
    runs = [path.name.rsplit("-", 1)[1] for path in wandb.glob("offline-run-*")]
    assert sorted(runs) == sorted(name.split(".")[0] for name in logged), "logged twice, or half"


APPLY = """
import sys
from pathlib import Path
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.steer import Term, apply
apply(Checkpoint.open(sys.argv[1]), [Term(sys.argv[2], 0.5)], Path(sys.argv[3]))
"""


def test_killed_while_it_applies(tmp_path: Path) -> None:
    chance, counts = random.Random(SEED), collections.Counter[str]()
    settings = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "rows": 8192}
    state = tiny.weights(tiny.config(**settings), seed=1)
    folders = [tiny.write(tmp_path / "target", state, **settings)]
    for name, seed in (("sft", 2), ("grpo", 3)):
        folders.append(tiny.write(tmp_path / name, tiny.moved(state, seed), **settings))
    target, sft, grpo = (Checkpoint.open(str(folder)) for folder in folders)
    vector = extract(grpo, sft, tmp_path / "vector")
    whole = files(apply(target, [Term(str(vector), 0.5)], tmp_path / "reference"))
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", APPLY, str(folders[0]), str(vector), str(out)]
    while sum(counts.values()) < 6:
        run = Run(tmp_path, arguments=arguments)
        run.wait_for(written(".tmp-rv.out.*"))
        time.sleep(chance.uniform(0, 0.08))
        if run.process.poll() is None:
            counts["apply" if run.new(".tmp-rv.out.*") else "after apply"] += 1
        run.kill()
        if out.exists():
            assert files(out) == whole
            shutil.rmtree(out)
    print(f"\nkills by what they hit: {dict(counts)}", file=sys.stderr)
    assert counts["apply"] >= 3
    run = Run(tmp_path, arguments=arguments)
    assert run.ends() == 0, run.output()
    assert files(out) == whole and list(tmp_path.glob(".tmp-*")) == []
