"""What `export` writes is read by the tools that it is for, and says the same as our own files."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.__main__ import main
from pipeline.errors import UserError
from pipeline.files import ROOT
from pipeline.manifest import Manifest
from pipeline.records import read_record
from pipeline.report import lm_eval_files
from pipeline.weights.vector import Vector
from tests import synthetic

FAMILY = ROOT / "models" / "micro"
HALVES = (
    "+conditions.halves={label: halves, terms: [{alpha: 0.5, part: {layers: [0, 1]}},"
    " {alpha: 1.5, part: {modules: [mlp]}}, {alpha: -0.25}]}"
)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export") / "results"


def run(verb: str, results: Path, *arguments: str) -> int:
    common = ["experiment=micro", f"results={results}", f"tables={results / 'tables'}", "tasks=[gsm8k]"]
    return main([verb, *common, *arguments])


def weights(folder: Path) -> Tensors:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


# A vector


def test_a_vector_is_read_by_safetensors_and_added_by_torch(results: Path) -> None:
    out = results.parent / "vector"
    assert run("export", results, "format=vector", f"out={out}") == 0
    vector, target, sft, grpo = (
        weights(folder) for folder in (out, FAMILY / "target", FAMILY / "sft", FAMILY / "grpo")
    )
    assert vector.keys() == target.keys()
    for name, difference in vector.items():
        assert difference.dtype == torch.float32
        assert torch.equal(difference, grpo[name].float() - sft[name].float())
    steered = results.parent / "steered"
    assert run("apply", results, "alpha=0.5", f"out={steered}") == 0
    ours = weights(steered)
    assert all(torch.equal(ours[name], target[name] + 0.5 * vector[name]) for name in target)


def test_a_part_is_exported_as_a_row_multiplies_it(results: Path) -> None:
    out = results.parent / "mlp"
    assert run("export", results, "conditions=parts", "format=vector", "condition=mlp", f"out={out}") == 0
    vector = weights(out)
    assert {name for name, t in vector.items() if t.any()} == {name for name in vector if ".mlp." in name}
    assert Vector.open(out).description["form"] == "dense"


# A recipe of mergekit


def merged(recipe: Path) -> Tensors:
    """What mergekit's documentation says that a linear recipe with filters gives."""
    document = yaml.safe_load(recipe.read_text())
    assert document["merge_method"] == "linear" and document["parameters"] == {"normalize": False}
    total: Tensors = {}
    for part in document["models"]:
        weight = part["parameters"]["weight"]
        for name, tensor in weights(Path(part["model"]["model"]["path"])).items():
            by_filter = weight if isinstance(weight, list) else [{"value": weight}]
            factor = next(c["value"] for c in by_filter if "filter" not in c or c["filter"] in name)
            total[name] = total.get(name, torch.zeros(())) + factor * tensor.float()
    return total


ROWS = {
    "the whole vector": ["alpha=0.5"],
    "a donor": ["condition=grpo"],
    "a mask": ["conditions=parts", "condition=mlp"],
    "a sum": ["conditions=parts", HALVES, "condition=halves"],
}


@pytest.mark.parametrize("row", ROWS)
def test_a_recipe_of_mergekit_gives_the_weights_that_apply_writes(row: str, results: Path) -> None:
    recipe, steered = results.parent / f"{row}.yml", results.parent / f"{row} steered"
    assert run("export", results, *ROWS[row], "format=mergekit", f"out={recipe}") == 0
    assert run("apply", results, *ROWS[row], f"out={steered}") == 0
    ours, theirs = weights(steered), merged(recipe)
    if row != "a donor":
        assert any(not torch.equal(tensor, weights(FAMILY / "target")[name]) for name, tensor in ours.items())
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("mergekit") is None, reason="mergekit is not installed")
@pytest.mark.parametrize("row", ROWS)
def test_mergekit_itself_gives_the_weights_that_apply_writes(row: str, results: Path) -> None:
    recipe, steered = results.parent / f"{row}.yml", results.parent / f"{row} steered"
    assert run("export", results, *ROWS[row], "format=mergekit", f"out={recipe}") == 0
    assert run("apply", results, *ROWS[row], f"out={steered}") == 0
    out = results.parent / f"{row} merged"
    command = [
        sys.executable,
        "-m",
        "mergekit.scripts.run_yaml",
        str(recipe),
        str(out),
        "--no-copy-tokenizer",
    ]
    subprocess.run(command, check=True, capture_output=True)
    ours, theirs = weights(steered), weights(out)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert theirs[name].dtype == tensor.dtype
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-6)


# Samples and results of lm-eval


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Path, Path]:
    """A manifest, its store, and the folder that was written of it."""
    store = tmp_path_factory.mktemp("store")
    few = {name: synthetic.CONDITIONS[name] for name in ("baseline", "vector")}
    manifest = synthetic.write_run(store, conditions=few, documents=12)
    out = store / "exported"
    said = lm_eval_files.write(manifest, store, out)
    assert len(said) == 2
    return manifest, store, out


def test_lm_evals_own_tools_read_results_and_samples(exported: tuple[Manifest, Path, Path]) -> None:
    from datasets import load_dataset
    from lm_eval.utils import (
        get_file_datetime,
        get_file_task_name,
        get_results_filenames,
        get_sample_results_filenames,
        make_table,
    )

    manifest, store, out = exported
    files = [str(path) for path in (out / "micro__vector").iterdir()]
    (results,), samples = get_results_filenames(files), get_sample_results_filenames(files)
    content = json.loads(Path(results).read_text())
    assert {get_file_task_name(Path(file).name) for file in samples} == content["n-samples"].keys()
    assert len({get_file_datetime(Path(file).name) for file in samples}) == 1
    table = make_table(content)
    (cell,) = (c for c in manifest.cells if (c.condition, c.benchmark) == ("vector", "gsm8k"))
    record = read_record(store, cell.key)
    assert record is not None
    assert f"{record.metrics['score']:.4f}" in next(r for r in table.splitlines() if "GSM8K form" in r)
    assert "BBH form" in make_table(content, "groups")
    (of_task,) = (file for file in samples if "/samples_gsm8k_" in file)
    rows = load_dataset("json", data_files=of_task, split="train", cache_dir=str(store / "cache"))
    assert [row["exact_match"] for row in rows] == [sample["score"] for sample in record.samples()]


def test_a_sample_has_the_fields_that_lm_eval_logs(
    exported: tuple[Manifest, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.dummy import DummyLM

    monkeypatch.setattr(DummyLM, "tokenizer_name", str(FAMILY / "target"))  # its own is on the hub
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "test.jsonl").write_text('{"q": "1 + 1?", "a": "2"}\n')
    task: dict[str, Any] = {
        "task": "sum",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "test.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "exact_match"}],
    }
    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    found = simple_evaluate(
        model="dummy",
        model_args="pretrained=dummy",
        tasks=[task],
        log_samples=True,
        evaluation_tracker=tracker,
    )
    assert found is not None
    samples = found.pop("samples")
    tracker.save_results_aggregated(found, samples)
    tracker.save_results_samples("sum", samples["sum"])
    (theirs,) = (tmp_path / "theirs").rglob("samples_sum_*.jsonl")
    (ours,) = exported[2].glob("micro__vector/samples_gsm8k_*.jsonl")
    logged, written = (json.loads(path.read_text().splitlines()[0]) for path in (theirs, ours))
    assert logged.keys() == written.keys()
    assert {key: type(value) for key, value in logged.items()} == {
        key: type(value) for key, value in written.items()
    }
    (theirs,), (ours,) = (
        (tmp_path / "theirs").rglob("results_*.json"),
        exported[2].glob("micro__vector/res*.json"),
    )
    needed = {
        "results",
        "group_subtasks",
        "configs",
        "versions",
        "n-shot",
        "higher_is_better",
        "n-samples",
        "task_hashes",
    }
    logged, written = json.loads(theirs.read_text()), json.loads(ours.read_text())
    assert needed <= logged.keys() and needed <= written.keys()
    assert logged["results"]["sum"].keys() == written["results"]["gsm8k"].keys()


def test_exporting_twice_gives_the_same_bytes_and_foreign_files_stay(
    exported: tuple[Manifest, Path, Path], tmp_path: Path
) -> None:
    manifest, store, out = exported
    before = {path: path.read_bytes() for path in out.rglob("*.json*")}
    lm_eval_files.write(manifest, store, out)
    assert {path: path.read_bytes() for path in out.rglob("*.json*")} == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="was not written by export"):
        lm_eval_files.write(manifest, store, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_record_that_is_damaged_is_left_out_and_named(tmp_path: Path) -> None:
    few = {name: synthetic.CONDITIONS[name] for name in ("baseline", "vector")}
    manifest = synthetic.write_run(tmp_path, conditions=few, documents=6)
    damaged = next(c for c in manifest.cells if (c.condition, c.benchmark) == ("vector", "sciq"))
    (tmp_path / "cells" / damaged.key / "samples.jsonl").write_text("{}\n")
    said = lm_eval_files.write(manifest, tmp_path, tmp_path / "out", condition="vector")
    assert any(line.startswith("left out: micro / vector / sciq") for line in said)
    assert not list((tmp_path / "out").rglob("samples_sciq_*")) and list(
        (tmp_path / "out").rglob("samples_gsm8k_*")
    )


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "format: expected one of vector, mergekit, lm_eval, found none"),
        (["format=gguf"], "format: expected one of vector, mergekit, lm_eval, found 'gguf'"),
        (["format=vector", "alpha=1"], "alpha=1: format=vector takes none"),
        (["format=vector", "condition=random-s0"], "expected a row that adds one vector, found noise"),
        (["format=vector", "condition=baseline"], "found none"),
        (["format=mergekit", "alpha=x"], "alpha=x: expected a finite number"),
        (["format=mergekit", "condition=vectr"], "no such row; did you mean 'vector'?"),
        (["format=mergekit", "condition=random-s0"], "mergekit has no noise of a vector's norm"),
        (["format=mergekit", "conditions=parts", "condition=trimmed"], "trim=0.2: mergekit does not trim"),
        (["format=lm_eval"], "no such manifest; run the experiment first"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    arguments: list[str], said: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = results.parent / "never"
    assert run("export", results, *arguments, f"out={out}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error
    assert not out.exists()


def test_a_file_of_ones_own_is_not_replaced(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = results.parent / "own.yml"
    own.write_text("mine: true\n")
    assert run("export", results, "format=mergekit", f"out={own}") == 2
    assert "was not written by export" in capsys.readouterr().err and own.read_text() == "mine: true\n"
