"""Long cells shared out among workers of a real Ray cluster: the records of one engine, whatever is killed on the way."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Run

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.engine]

OPTIONS = [
    "conditions=sweep",
    "tasks=[gsm8k,sciq,bbh]",
    "alpha=[1]",
    "stages=[extract,evaluate]",
    "limit=null",
    "benchmarks.gsm8k.limit=20",
    "benchmarks.gsm8k.samples=2",
    "benchmarks.gsm8k.temperature=0.7",
    "benchmarks.sciq.limit=150",
    "benchmarks.bbh.limit=10",
    "benchmarks.bbh.variants=[]",
]
ON_RAY = ["launcher=ray", "launcher.workers=2", "launcher.shard_documents=6"]
CELLS, SHARDS = 6, 18


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's own starves its workers on a busy machine
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "300000")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # the names of its sockets have at most 107 bytes


def records(root: Path) -> dict[str, dict[str, Any]]:
    found = (root / "results" / "cells").glob("[!.]*/record.json")
    return {path.parent.name: json.loads(path.read_text()) for path in found}


def finished_shards(root: Path) -> dict[str, str]:
    """When each was started, by the name of its folder."""
    found = (root / "results" / "shards").glob("[!.]*/shard.json")
    return {path.parent.name: json.loads(path.read_text())["provenance"]["started"] for path in found}


def outcome(root: Path) -> dict[str, Any]:
    """What must not depend on how a cell was computed: inputs, metrics, counted tokens, and every byte of the samples."""
    found = {}
    for key, record in records(root).items():
        cost = {name: n for name, n in record["cost"].items() if name != "seconds"}
        samples = (root / "results" / "cells" / key / "samples.jsonl").read_bytes()
        found[key] = (record["inputs"], record["metrics"], cost, samples)
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same cells, whole, by one engine."""
    root = tmp_path_factory.mktemp("whole")
    run = Run(root, *OPTIONS)
    assert run.ends() == 0, run.output()[-3000:]
    found = records(root)
    assert len(found) == CELLS and not any("shards" in record["provenance"] for record in found.values())
    return outcome(root)


def workers(run: Run) -> list[int]:
    """The processes of our actors."""
    return [pid for pid in run.alive() if "ray::Actor" in Path(f"/proc/{pid}/cmdline").read_text()]


def is_whole(root: Path, reference: dict[str, Any]) -> None:
    """Every record is that of the undivided run and names its shards, and nothing is left of them."""
    assert outcome(root) == reference
    named = [record["provenance"]["shards"] for record in records(root).values()]
    assert sum(map(len, named)) == SHARDS
    assert not (root / "results" / "shards").exists()


def once(count: int) -> Callable[[Run], bool]:
    """Whether so many shards are finished, of cells that are joined or not."""

    def happened(run: Run) -> bool:
        joined = sum(len(record["provenance"]["shards"]) for record in records(run.root).values())
        return joined + len(finished_shards(run.root)) >= count

    return happened


@pytest.mark.parametrize("event", ["nothing", "a worker killed"])
def test_joined_records_are_those_of_one_engine(
    event: str, tmp_path: Path, reference: dict[str, Any]
) -> None:
    run = Run(tmp_path, *OPTIONS, *ON_RAY)
    assert run.wait_for(once(2)), run.output()[-3000:]
    if event == "a worker killed":
        os.kill(workers(run)[0], signal.SIGKILL)
    assert run.ends() == 0, run.output()[-3000:]
    assert run.output().count("a worker died on ") == (0 if event == "nothing" else 1), run.output()[-3000:]
    is_whole(tmp_path, reference)


def test_a_run_that_is_killed_loses_no_shard_that_was_finished(
    tmp_path: Path, reference: dict[str, Any]
) -> None:
    run = Run(tmp_path, *OPTIONS, *ON_RAY)
    assert run.wait_for(once(4)), run.output()[-3000:]
    run.kill()
    left, done = finished_shards(tmp_path), set(records(tmp_path))
    assert left and len(done) < CELLS, "killed too late"
    again = Run(tmp_path, *OPTIONS, *ON_RAY)
    assert again.ends() == 0, again.output()[-3000:]
    is_whole(tmp_path, reference)
    for name, started in left.items():
        key = name.partition(".")[0]
        if key not in done:
            assert started in {s["started"] for s in records(tmp_path)[key]["provenance"]["shards"]}, (
                "computed twice"
            )


def test_one_engine_goes_on_from_the_shards_of_a_cluster(tmp_path: Path, reference: dict[str, Any]) -> None:
    run = Run(tmp_path, *OPTIONS, *ON_RAY)
    assert run.wait_for(once(1)), run.output()[-3000:]
    run.kill()
    done = {name.partition(".")[0] for name in finished_shards(tmp_path)} | set(records(tmp_path))
    again = Run(tmp_path, *OPTIONS)
    assert again.ends() == 0, again.output()[-3000:]
    assert outcome(tmp_path) == reference
    cut = {key for key, record in records(tmp_path).items() if "shards" in record["provenance"]}
    assert cut == done and done, "only cells that were begun in shards are finished in them"
