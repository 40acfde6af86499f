"""The same run twice gives the same records, and neither the batch nor the order of documents moves an answer.

On the embedded family in float32 on the CPU, over four benchmarks, with the target and one α of the sweep.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evals.micro import write_benchmarks
from pipeline.config.schema import Device, EngineConfig
from pipeline.engine.environment import prepare_environment
from pipeline.files import ROOT
from pipeline.manifest import manifest_path, read_manifest
from pipeline.records import read_record

DOCUMENTS = 80  # of each benchmark and subtask
FREE = ("started", "host", "command", "git")  # what provenance may differ in


def documents(folder: Path, backwards: bool) -> Path:
    """The first documents of each generated benchmark, in their order or from the last to the first."""
    import gzip

    write_benchmarks(folder, 0)
    for path in folder.rglob("*.*"):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode()
        if path.suffix == ".json":
            rows = json.loads(text)
            if isinstance(rows, dict):  # BBH
                rows["examples"] = turned(rows["examples"], backwards)
            else:
                rows = turned(rows, backwards)
            text = json.dumps(rows)
        else:
            text = "".join(turned(text.splitlines(keepends=True), backwards))
        path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())
    return folder


def turned(rows: list[Any], backwards: bool) -> list[Any]:
    return rows[:DOCUMENTS][::-1] if backwards else rows[:DOCUMENTS]


def evaluated(root: Path, data: Path, *overrides: str) -> dict[tuple[str, str], Any]:
    """The records of a run from scratch, by condition and benchmark."""
    results = root / "results"
    ran = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pipeline",
                "experiment=micro",
                "stages=[extract,evaluate]",
                "alpha=[0.5]",
            ),
            *("conditions=baseline", "benchmarks.gsm8k.variants=[]", "data.generator=null"),
            *(f"data.folder={data}", f"results={results}", f"tables={root / 'tables'}", *overrides),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    cells = read_manifest(manifest_path(results, "micro")).cells
    return {(c.condition, c.benchmark): read_record(results, c.key) for c in cells}


@pytest.mark.slow
@pytest.mark.engine
def test_records_repeat_and_answers_move_neither_with_the_batch_nor_with_the_order(tmp_path: Path) -> None:
    plain, backwards = (documents(tmp_path / name, name == "backwards") for name in ("plain", "backwards"))
    first = evaluated(tmp_path / "first", plain)
    again = evaluated(tmp_path / "again", plain)
    other = evaluated(tmp_path / "other", backwards, "engine.max_num_seqs=16")
    assert first.keys() == again.keys() == other.keys() and len(first) == 8
    asked = moved = 0
    largest = 0.0
    for place, record in first.items():
        twin = again[place]
        assert (record.inputs, record.metrics) == (twin.inputs, twin.metrics)
        assert record.cost | {"seconds": 0} == twin.cost | {"seconds": 0}
        assert record.provenance | dict.fromkeys(FREE) == twin.provenance | dict.fromkeys(FREE)
        assert record.samples_sha256 == twin.samples_sha256
        answers, others = (
            {(s["subtask"], s["prompt"], s["target"]): s for s in r.samples()} for r in (record, other[place])
        )
        assert answers.keys() == others.keys() and len(answers) > 30
        for which, sample in answers.items():
            asked += 1
            moved += any(
                sample[part] != others[which][part] for part in ("output", "score", "finish", "tokens")
            )
            pairs = zip(
                sample.get("loglikelihoods", []), others[which].get("loglikelihoods", []), strict=True
            )
            largest = max([largest, *(abs(a - b) for a, b in pairs)])
    print(f"\n{asked} answers, {moved} moved with batch and order; log-likelihoods by at most {largest:.2g}")
    assert moved == 0
    assert largest < 1e-3


@pytest.mark.parametrize("wanted", [True, False])
def test_batch_invariance_reaches_vllm_s_environment(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.pop("VLLM_BATCH_INVARIANT", None)
    prepare_environment(EngineConfig(device=Device.gpu, batch_invariant=wanted))
    assert os.environ.get("VLLM_BATCH_INVARIANT") == ("1" if wanted else None)
