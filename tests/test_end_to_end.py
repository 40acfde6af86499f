"""The whole path on the embedded family with a real engine, on a few documents."""

import json
from typing import Any

import pytest

from pipeline.config.compose import compose
from pipeline.evaluate import runner
from pipeline.records import read_record
from pipeline.stages import prepare
from pipeline.stages import run as run_stages
from tests import warm

pytestmark = pytest.mark.engine
OVERRIDES = [
    "experiment=micro",
    "limit=6",
    "variant_limit=4",
    "alpha=[-1,0,0.5]",
    "conditions.random.seeds=[0]",
]
OVERRIDES += ["conditions.minus_random.seeds=[0]", "benchmarks.bbh.subtasks=[navigate,object_counting]"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("demo")
    overrides = [*OVERRIDES, f"results={root / 'results'}", f"tables={root / 'tables'}"]
    ran = warm.run("-m", "pipeline", *overrides, engine=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return {"root": root, "overrides": overrides, "out": ran.stdout}


def test_every_cell_has_a_record_that_says_what_it_is(demo: dict[str, Any]) -> None:
    plan = prepare(compose(demo["overrides"]))
    assert not plan.missing() and len(plan.unique()) > 40
    for cell in plan.unique():
        record = read_record(plan.results, cell.key)
        assert record is not None
        samples = record.samples()
        assert record.metrics["n"] == len(samples) > 0
        assert record.metrics["score"] == pytest.approx(sum(s["score"] for s in samples) / len(samples))
        assert record.provenance["versions"]["vllm"] and record.inputs["weights"]["checkpoint"]
        for sample in samples:
            assert sample["prompt"].startswith("<|im_start|>") and sample["finish"] in (
                "stop",
                "length",
                "scored",
            )
            if sample["finish"] != "scored":
                assert 0 < sample["tokens"] <= cell.benchmark.config.max_gen_toks


def test_the_prompt_condition_stands_in_the_prompt(demo: dict[str, Any]) -> None:
    plan = prepare(compose(demo["overrides"]))
    for cell in plan.cells:
        record = read_record(plan.results, cell.key)
        assert record is not None
        for sample in record.samples():
            assert ("Think step by step.\n" in sample["prompt"]) == (cell.condition.prompt == "think")


def test_every_condition_has_weights_of_its_own_and_alpha_zero_the_target_s(demo: dict[str, Any]) -> None:
    plan = prepare(compose(demo["overrides"]))
    found = {}
    for cell in plan.cells:
        if cell.benchmark.name == "sciq" and cell.condition.prompt == "plain":
            record = read_record(plan.results, cell.key)
            assert record is not None
            found[cell.condition.name] = str([s["loglikelihoods"] for s in record.samples()])
    assert found["baseline"] == found["alpha=0.0"]
    different = (
        "baseline",
        "vector",
        "minus_vector",
        "random-s0",
        "minus_random-s0",
        "sft",
        "grpo",
        "alpha=0.5",
    )
    assert len({found[name] for name in different}) == len(different)


def test_tables_figures_and_wandb_runs_are_written(demo: dict[str, Any]) -> None:
    tables = demo["root"] / "tables" / "micro"
    for name in ("main", "adversarial", "controls", "alpha_sweep"):
        assert (tables / f"{name}.md").stat().st_size and (tables / f"{name}.tex").stat().st_size
    assert list(tables.glob("alpha*.png")) and list(tables.glob("alpha*.pdf"))
    assert list((demo["root"] / "results" / "wandb").glob("offline-run-*"))
    assert "+Vector" in demo["out"]


def test_a_second_run_starts_no_engine_and_computes_nothing(
    demo: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine(*args: Any) -> None:
        raise AssertionError("an engine was started")

    monkeypatch.setattr(runner, "Engine", engine)
    cells = demo["root"] / "results" / "cells"
    before = {p: p.stat().st_mtime_ns for p in cells.rglob("*")}
    lines: list[str] = []
    run_stages(compose(demo["overrides"]), lines.append)
    assert "0 to do" in lines[0]
    assert {p: p.stat().st_mtime_ns for p in cells.rglob("*")} == before


def test_tables_are_the_same_bytes_when_rendered_again(demo: dict[str, Any]) -> None:
    tables = demo["root"] / "tables" / "micro"
    before = {p.name: p.read_bytes() for p in tables.iterdir()}
    assert before
    run_stages(compose([*demo["overrides"], "stages=[render]"]), lambda line: None)
    assert {p.name: p.read_bytes() for p in tables.iterdir()} == before


def test_a_cell_that_is_gone_is_computed_again_to_the_same_answers(demo: dict[str, Any]) -> None:
    plan = prepare(compose(demo["overrides"]))
    cell = next(c for c in plan.cells if (c.condition.name, c.benchmark.name) == ("alpha=0.5", "gsm8k"))
    folder = plan.results / "cells" / cell.key
    before = (folder / "samples.jsonl").read_bytes()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    ran = warm.run("-m", "pipeline", *demo["overrides"], "stages=[evaluate]", engine=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "[  1/1]" in ran.stdout
    assert (folder / "samples.jsonl").read_bytes() == before
    assert json.loads((folder / "record.json").read_text())["metrics"]["n"] == 6
