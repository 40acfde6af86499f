"""W&B runs, read back as W&B's own records."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import compose
from pipeline.errors import UserError
from pipeline.plan import Plan
from pipeline.records import write_record
from pipeline.stages import prepare
from pipeline.tracking import track

OVERRIDES = ["experiment=micro", "tasks=[gsm8k]", "benchmarks.gsm8k.variants=[larger_numbers]", "alpha=[0.5]"]
OVERRIDES += ["~conditions.random", "~conditions.minus_random"]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A plan with a made-up record for every cell, on a machine where no W&B key is known."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    made = prepare(compose([*OVERRIDES, f"results={tmp_path / 'results'}", f"tables={tmp_path / 'tables'}"]))
    for i, cell in enumerate(made.unique()):
        fill(made, cell.inputs, 0.25 + i / 100)
    return made


def fill(plan: Plan, inputs: dict[str, Any], score: float) -> None:
    sample = {"doc_id": 0, "prompt": "2+2?", "target": "4", "output": "<b>4</b>", "score": 1.0, "tokens": 3}
    metrics = {
        "score": score,
        "stderr": 0.01,
        "share_truncated": 0.0,
        "share_not_extracted": 0.0,
        "mean_tokens": 3.0,
    }
    provenance = {"versions": {"vllm": "1"}, "family": {"target": {"id": "t", "revision": None}}}
    write_record(plan.results, inputs, metrics, {"seconds": 2.0, "generated_tokens": 6}, provenance, [sample])


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a .wandb file: a LevelDB log (blocks of 32 KiB, records in pieces) after W&B's header of 7 bytes."""
    position, pending = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        pending += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield pending
            pending = b""


def logged(results: Path) -> dict[str, dict[str, Any]]:
    """{run name: {"id", "group", "type", "config", "history"}} of every offline run."""
    from wandb.proto import wandb_internal_pb2 as pb

    runs: dict[str, dict[str, Any]] = {}
    for path in sorted((results / "wandb").glob("offline-run-*/run-*.wandb")):
        entry: dict[str, Any] = {"history": {}}
        for data in log_records(path.read_bytes()):
            record = pb.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                run = record.run
                entry |= {
                    "name": run.display_name,
                    "id": run.run_id,
                    "group": run.run_group,
                    "type": run.job_type,
                }
                entry["config"] = {u.key: json.loads(u.value_json) for u in run.config.update}
            if record.WhichOneof("record_type") == "history":
                for item in record.history.item:
                    entry["history"]["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        assert entry["name"] not in runs
        runs[entry["name"]] = entry
    return runs


def test_every_condition_is_a_run_of_its_experiment(plan: Plan) -> None:
    lines: list[str] = []
    track(plan, lines.append)
    runs = logged(plan.results)
    assert set(runs) == {f"micro {c.label}" for c in plan.conditions} | {"summary"}
    assert {run["group"] for run in runs.values()} == {"micro"}
    vector = runs["micro +Vector"]
    assert (vector["config"]["alpha"], vector["config"]["prompt"]["prefix"]) == (1.0, "")
    scores = {c.task.name: c for c in plan.cells if c.condition.name == "vector"}
    assert vector["config"]["keys"] == {name: cell.key for name, cell in scores.items()}
    history = vector["history"]
    assert history["gsm8k/tokens_per_second"] == 3.0 and history["gsm8k/larger_numbers/score"] > 0.25
    assert "offline" in lines[-1] and "wandb sync" in lines[-1]


def test_the_sweep_stands_in_the_summary(plan: Plan) -> None:
    track(plan, lambda line: None)
    summary = logged(plan.results)["summary"]["history"]
    assert any("alpha_sweep" in key for key in summary)


def test_logging_again_adds_nothing(plan: Plan) -> None:
    track(plan, lambda line: None)
    before = sorted((plan.results / "wandb").rglob("*.wandb"))
    lines: list[str] = []
    track(plan, lines.append)
    assert sorted((plan.results / "wandb").rglob("*.wandb")) == before and lines == []


def test_ids_come_from_the_cells(plan: Plan, tmp_path: Path) -> None:
    track(plan, lambda line: None)
    other = prepare(compose([*OVERRIDES, f"results={tmp_path / 'again'}", f"tables={tmp_path / 'tables'}"]))
    for i, cell in enumerate(other.unique()):
        fill(other, cell.inputs, 0.25 + i / 100)
    track(other, lambda line: None)
    ids = [{name: run["id"] for name, run in logged(p.results).items()} for p in (plan, other)]
    assert ids[0] == ids[1]


def test_an_incomplete_condition_is_not_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    made = prepare(compose([*OVERRIDES, f"results={tmp_path / 'results'}"]))
    for cell in made.cells:
        if cell.condition.name == "baseline":
            fill(made, cell.inputs, 0.5)
    track(made, lambda line: None)
    assert set(logged(made.results)) == {"micro Baseline", "summary"}


def test_disabled_writes_nothing(plan: Plan) -> None:
    plan.config.tracking.mode = type(plan.config.tracking.mode).disabled
    track(plan, lambda line: None)
    assert not (plan.results / "wandb").exists()


def test_an_unreachable_server_is_one_line_and_no_failure(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    lines: list[str] = []
    track(plan, lines.append)
    assert len(lines) == 1 and "not logged" in lines[0] and "tracking.mode=offline" in lines[0]
    assert "0" * 40 not in lines[0]


def test_online_without_a_key_is_refused(plan: Plan) -> None:
    plan.config.tracking.mode = type(plan.config.tracking.mode).online
    with pytest.raises(UserError, match="wandb login"):
        track(plan, lambda line: None)
