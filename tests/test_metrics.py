"""The table of metrics, what is asked again, forms of a benchmark, and cells of several GPUs: runs with known answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.analysis.comparisons import gains
from pipeline.analysis.metrics import measured, metrics_of
from pipeline.analysis.noise_floor import noise_floor
from pipeline.analysis.results import Results, read_results
from pipeline.analysis.verdicts import verdicts
from pipeline.config.schema import Device, EngineConfig
from pipeline.engine.arrangement import Arrangement
from pipeline.manifest import BenchmarkEntry, Manifest, PlannedCell
from pipeline.records import read_record, write_record
from pipeline.report import terminal
from pipeline.report.sentences import verdict_reason
from pipeline.report.tables import controls, main, metrics
from pipeline.report.tables.build import build
from pipeline.tracking.summary import comparisons
from tests import synthetic
from tests.synthetic import benchmark, condition

FLEXIBLE, STRICT = "exact_match,flexible-extract", "exact_match,strict-match"
CONDITIONS = {
    "baseline": condition("Baseline", "baseline"),
    "baseline_again": condition("Baseline again", "baseline_again", role="again"),
    "vector": synthetic.CONDITIONS["vector"],
    "vector_think": synthetic.CONDITIONS["vector_think"],
}
GSM8K = {"gsm8k": benchmark("GSM8K", published="GSM8K")}
FORMS = {
    "sciq": benchmark("SciQ", published="SciQ", chance=0.25, cannot_think="its options are scored"),
    "gsm8k": benchmark("GSM8K"),
    "sciq_written": benchmark("SciQ (written)", chance=0.25, form_of="sciq"),
}


def cell(
    folder: Path,
    name: str,
    right: Sequence[bool],
    strict: Sequence[bool],
    gpu: str | None = None,
    **more: Any,
) -> str:
    """A record with both metrics; what strict does not read is not in the form."""
    rows = synthetic.samples(right)
    for row, is_strict in zip(rows, strict, strict=True):
        row["scores"] = {FLEXIBLE: row["score"], STRICT: float(is_strict)}
    key = synthetic.write_cell(folder, {"name": name}, rows, metric=FLEXIBLE, **more)
    if gpu is None:
        return key
    record = read_record(folder, key)
    assert record is not None
    provenance: Any = record.provenance | {"gpu": {"model": gpu, "driver": "580.95", "cuda": "13.0"}}
    return write_record(
        folder, {"name": name, "on": gpu}, record.metrics, record.cost, provenance, record.samples()
    )


def results_of(
    folder: Path, keys: Mapping[tuple[str, str], str], benchmarks: Mapping[str, BenchmarkEntry] = GSM8K
) -> Results:
    """A run of one family from (condition, benchmark) → key."""
    conditions = {name: CONDITIONS[name] for name, _ in keys}
    cells = tuple(PlannedCell("f", name, of, key) for (name, of), key in keys.items())
    manifest = Manifest("small", {"f": synthetic.family("F")}, dict(benchmarks), conditions, cells)
    return read_results(manifest, folder)


def test_strict_match_stands_beside_flexible_with_its_own_gain(tmp_path: Path) -> None:
    n = np.arange(100)
    keys = {
        ("baseline", "gsm8k"): cell(tmp_path, "a", n < 60, n < 20),
        ("vector", "gsm8k"): cell(tmp_path, "b", n < 65, n < 50),
    }
    results = results_of(tmp_path, keys)
    row = results.named("vector")
    assert metrics_of(results, ["gsm8k"]) == [FLEXIBLE, STRICT]
    found = {one.metric: one for one in measured(results, "f", row, "gsm8k")}
    assert [one.is_headline for one in found.values()] == [True, False]
    assert (found[FLEXIBLE].value.value, found[STRICT].value.value) == pytest.approx((0.65, 0.5))
    changes = [one.difference.value for one in found.values() if one.difference]
    assert changes == pytest.approx([0.05, 0.3])
    table = metrics.table(results)
    assert [head.text for head in table.header[1:3]] == [
        "exact_match, flexible-extract",
        "exact_match, strict-match",
    ]
    facts = {(row["condition"], row["metric"]): row for row in table.data}
    assert facts["vector", STRICT]["difference_value"] == pytest.approx(30)
    assert facts["vector", FLEXIBLE]["is_headline"] and not facts["vector", STRICT]["is_headline"]
    logged = {one.name: one.value for one in comparisons(results)}
    assert logged[f"metric/f/gsm8k/vector/{STRICT}"] == pytest.approx(50)


def test_shares_of_unreadable_and_cut_answers_are_shown(tmp_path: Path) -> None:
    rows = synthetic.samples([True] * 10)
    for row in rows[:3]:
        row["finish"] = "length"
    for row in rows[:2]:
        row["extracted"] = {"none": "[invalid]"}
    keys = {("baseline", "gsm8k"): synthetic.write_cell(tmp_path, {"name": "a"}, rows)}
    results = results_of(tmp_path, keys)
    table = metrics.table(results)
    (line,) = table.lines()
    assert [text.text for text in line.entries[-2:]] == ["20.0", "30.0"]
    assert (table.data[0]["unreadable_value"], table.data[0]["cut_value"]) == pytest.approx((20, 30))
    logged = {one.name: one.value for one in comparisons(results)}
    assert logged["share/f/gsm8k/baseline/unreadable"] == pytest.approx(20)


def test_likelihood_stands_beside_generation_in_one_block(tmp_path: Path) -> None:
    n = np.arange(60)
    scored = synthetic.samples(n < 30)
    for row in scored:
        row |= {"finish": "scored", "tokens": 0, "scores": {"acc,none": row["score"], "acc_norm,none": 1.0}}
    keys = {
        ("baseline", "sciq"): synthetic.write_cell(tmp_path, {"name": "s"}, scored, metric="acc,none"),
        ("baseline", "gsm8k"): cell(tmp_path, "g", n < 10, n < 5),
        ("baseline", "sciq_written"): cell(tmp_path, "w", n < 45, n < 40),
    }
    results = results_of(tmp_path, keys, FORMS)
    assert results.forms() == [["sciq", "sciq_written"], ["gsm8k"]]
    table = metrics.table(results)
    block = table.blocks[0]
    assert block.title == "F: SciQ (acc); SciQ (written) (exact_match, flexible-extract)"
    assert [line.label for line in block.lines] == ["Baseline: SciQ", "Baseline: SciQ (written)"]
    texts = [[text.text.split()[0] for text in line.entries] for line in block.lines]
    assert texts == [["50.0", "100.0", "–", "–", "–", "–"], ["–", "–", "75.0", "66.7", "0.0", "0.0"]]
    answers = {row["benchmark"]: row["answers"] for row in table.data}
    assert answers == {"sciq": "scored", "gsm8k": "written", "sciq_written": "written"}


def test_where_thinking_cannot_act_the_cells_that_are_asked_to_are_marked(tmp_path: Path) -> None:
    benchmarks = {name: FORMS[name] for name in ("sciq", "sciq_written")}
    manifest = synthetic.write_run(tmp_path, benchmarks=benchmarks)
    results = read_results(manifest, tmp_path)
    for table in build(results):
        if table.name in ("main", "metrics", "controls"):
            assert any("n: " in note and "(SciQ: its options are scored)" in note for note in table.notes)
    marked = {
        (row["condition"], row["benchmark"]) for row in main.table(results).data if "n" in str(row["marks"])
    }
    assert marked == {("vector_think", "sciq"), ("grpo_think", "sciq")}


def test_a_verdict_says_which_form_it_uses_and_what_the_others_show(tmp_path: Path) -> None:
    benchmarks = {name: FORMS[name] for name in ("sciq", "sciq_written")}
    skills = {"sciq": 0.5, "sciq_written": 0.75}
    results = read_results(
        synthetic.write_run(
            tmp_path,
            benchmarks=benchmarks,
            documents=400,
            skill=lambda name, of: skills[of] if name == "vector_think" else 0.5,
        ),
        tmp_path,
    )
    verdict = next(v for v in verdicts(results) if v.claim == "sciq")
    (judged,) = verdict.comparisons
    assert judged.benchmark == "sciq" and judged.outcome != "found here too"
    (other,) = judged.others
    assert other.benchmark == "sciq_written" and other.difference.value == pytest.approx(0.25, abs=0.05)
    reason = verdict_reason(results, verdict)
    assert "judged on SciQ, the form that others run" in reason
    assert "where thinking cannot act (its options are scored)" in reason
    assert "not tested: SciQ (written) +2" in reason
    alone = read_results(
        synthetic.write_run(tmp_path / "alone", benchmarks={"sciq": FORMS["sciq"]}), tmp_path / "alone"
    )
    one = next(v for v in verdicts(alone) if v.claim == "sciq")
    assert "judged on" not in verdict_reason(alone, one)


def test_what_order_and_batch_move_stands_under_baseline_and_is_not_tested(tmp_path: Path) -> None:
    n = np.arange(200)
    moved = n < 100
    moved[[0, 1, 2, 150]] ^= True  # three lost, one gained
    keys = {
        ("baseline", "gsm8k"): cell(tmp_path, "a", n < 100, n < 50),
        ("baseline_again", "gsm8k"): cell(tmp_path, "b", moved, n < 50),
        ("vector", "gsm8k"): cell(tmp_path, "c", n < 140, n < 50),
    }
    results = results_of(tmp_path, keys)
    (found,) = noise_floor(results)
    assert (found.row.name, found.again.name, found.changed, found.otherwise_read) == (
        "baseline",
        "baseline_again",
        4,
        4,
    )
    table = main.table(results)
    lines = {line.label: line.entries[0].text for line in table.lines()}
    assert lines["asked again"] == "−1.0 (4 of 200)"
    assert "asked again  −1.0 (4 of 200)" in terminal.summary(results)
    assert any(note.startswith("asked again: ") for note in table.notes)
    assert [pairing.new for pairing in gains(results)] == ["vector"], "what is asked again is not tested"
    (row,) = (row for row in table.data if row["condition"] == "baseline_again")
    assert (row["difference_value"], row["gained"], row["lost"], row["p_holm"]) == (-1, 1, 3, None)


def test_cells_of_different_gpus_are_not_paired_without_a_footnote(tmp_path: Path) -> None:
    n, h200, a100 = np.arange(40), "NVIDIA H200", "NVIDIA A100-SXM4-80GB"
    keys = {
        ("baseline", "gsm8k"): cell(tmp_path, "a", n < 20, n < 20, h200),
        ("vector", "gsm8k"): cell(tmp_path, "b", n < 25, n < 20, a100),
        ("vector_think", "gsm8k"): cell(tmp_path, "c", n < 25, n < 20, h200),
    }
    results = results_of(tmp_path, keys)
    marks = {row["condition"]: row["marks"] for row in main.table(results).data}
    assert marks == {"baseline": "", "vector": "g", "vector_think": ""}
    assert any(note.startswith("g: computed on another GPU") for note in main.table(results).notes)
    verdict = next(v for v in verdicts(results) if v.claim == "consistent")
    assert verdict.comparisons[0].marks == "g" and "marked g" in verdict_reason(results, verdict)
    assert (
        "g"
        not in controls.table(results_of(tmp_path, {k: keys[k] for k in keys if k[0] != "vector"})).marks()
    )


@pytest.mark.parametrize("requests", [0, 1, 2, 7, 300])
@pytest.mark.parametrize("at_once", [None, 1, 4, 128])
@pytest.mark.parametrize("order", [None, 1])
def test_an_arrangement_asks_everything_once(requests: int, at_once: int | None, order: int | None) -> None:
    batches = Arrangement(order, at_once).batches(requests)
    flat = [i for batch in batches for i in batch]
    assert sorted(flat) == list(range(requests)) and all(batches)
    if at_once is None:
        assert len(batches) == min(requests, 1)
    elif requests > 1:
        assert len(batches) > 1 and max(map(len, batches)) <= at_once
    if requests == 300:
        assert (flat == sorted(flat)) == (order is None)


class Output:
    """What vLLM gives for a request, as far as is read."""

    def __init__(self, prompt: list[int]) -> None:
        self.prompt_token_ids = prompt


def test_requests_are_asked_as_arranged_and_answered_in_their_own_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.engine import engine, lm

    calls: list[list[int]] = []
    emptied: list[bool] = []

    def asked(self: Any, requests: Any, generate: bool = False, sampling_params: Any = None) -> list[Output]:
        calls.append([prompt[0] for prompt in requests])
        return [Output(prompt) for prompt in requests]

    def empty() -> bool:
        emptied.append(True)
        return True

    monkeypatch.setattr(lm.VLLM, "_model_generate", asked)
    model = object.__new__(lm.SteeredLM)
    model.batch_size, model.arrangement, model.model = (
        "auto",
        Arrangement(),
        SimpleNamespace(reset_prefix_cache=empty),
    )
    model.reset()
    live = object.__new__(engine.Engine)
    live.lm = model
    live.arrange(Arrangement())
    assert not emptied, "nothing is lost where nothing changes"
    plain = model._model_generate([[i] for i in range(20)])
    assert calls == [list(range(20))]
    live.arrange(Arrangement(order=1, at_once=7))
    arranged = model._model_generate([[i] for i in range(20)])
    assert [len(call) for call in calls[1:]] == [7, 7, 6] and emptied == [True]
    assert sum(calls[1:], []) != list(range(20))
    assert [o.prompt_token_ids for o in arranged] == [o.prompt_token_ids for o in plain]
    live.arrange(Arrangement())
    assert len(emptied) == 2 and model.requests == 40


def test_the_gpu_is_named_by_its_workers_and_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.engine import engine

    told: list[Any] = [("NVIDIA H200", "13.0"), ("NVIDIA H200", "13.0")]
    live = object.__new__(engine.Engine)
    live.config = EngineConfig(device=Device.gpu)
    live.lm = SimpleNamespace(model=SimpleNamespace(collective_rpc=lambda name: told))  # type: ignore[assignment]
    card = engine.gpus.Gpu("NVIDIA H200", (9, 0), 141.0, 140.0, "580.95.05")
    monkeypatch.setattr(engine.gpus, "query", lambda: [card])
    assert live.gpu() == {"model": "NVIDIA H200", "driver": "580.95.05", "cuda": "13.0"}
    told[1] = ("NVIDIA A100", "13.0")
    monkeypatch.setattr(engine.gpus, "query", lambda: [])
    assert live.gpu() == {"model": "NVIDIA H200 and NVIDIA A100", "driver": None, "cuda": "13.0"}
    live.config = EngineConfig()
    assert live.gpu() is None
