"""The Python face: the example of docs/python.md is run as it stands, and the notebook beside it says the same."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from pipeline import api as rv
from pipeline.files import ROOT
from pipeline.weights.checkpoint import Checkpoint
from tests import tiny, warm

GUIDE = (ROOT / "docs" / "python.md").read_text()
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.M | re.S)
(SHOWN,) = re.findall(r"^It prints.*?^```\n(.*?)^```$", GUIDE, re.M | re.S)
# The same answers as an evaluation's, also where the documents before draw few-shot examples: each is asked alone.
COMPARED = """
for condition in ("baseline", "vector"):
    rows = rv.samples("results/runs/shots.json", condition=condition).to_dict("records")
    with rv.Session(shots, conditions=[condition]) as model:
        for row in rows:
            (answer,) = model.ask_document("gsm8k", row["doc_id"])
            assert (answer.text, answer.score, answer.prompt) == (row["output"], row["score"], row["prompt"]), row
print("compared", len(rows))
"""


def ran(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder that has the shipped models where the repository has them."""
    if not (folder / "models").exists():
        (folder / "models").symlink_to(ROOT / "models")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return warm.run("-c", code, cwd=folder, env=environment, engine=True)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the example was run, and what it printed."""
    folder = tmp_path_factory.mktemp("python")
    done = ran(EXAMPLE, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


@pytest.mark.engine
def test_the_example_runs_and_prints_what_the_guide_shows(example: tuple[Path, str]) -> None:
    _, printed = example
    assert printed.endswith(SHOWN), printed


@pytest.mark.engine
def test_the_example_leaves_a_vector_its_half_and_a_checkpoint(example: tuple[Path, str]) -> None:
    results = example[0] / "results"
    whole = rv.Vector.open(results / "mine")
    with safe_open(results / "half.safetensors", "pt") as half:  # another reader than ours
        assert set(half.keys()) == set(whole.shapes)
        for name in whole.shapes:
            assert (half.get_tensor(name) == whole.read(name) * 0.5).all(), name
    target, steered = Checkpoint.open("models/micro/target"), Checkpoint.open(str(results / "half"))
    assert steered.fingerprint != target.fingerprint


@pytest.mark.engine
def test_cells_and_samples_agree(example: tuple[Path, str]) -> None:
    manifest = example[0] / "results/runs/python.json"
    cells, samples = rv.cells(manifest), rv.samples(manifest)
    assert len(samples) == cells["n"].sum() == 100 and cells["problem"].isna().all()
    means = samples.groupby("condition")["score"].mean()
    for cell in cells.to_dict("records"):
        assert cell["score"] == pytest.approx(means[cell["condition"]])
    assert set(rv.samples(manifest, condition="vector")["condition"]) == {"vector"}
    with pytest.raises(rv.UserError, match="condition=vectr: not in this run; it has baseline, vector"):
        rv.samples(manifest, condition="vectr")


@pytest.mark.engine
def test_a_damaged_cell_is_a_row_with_its_problem(example: tuple[Path, str], tmp_path: Path) -> None:
    ran(f"import shutil; shutil.copytree({str(example[0] / 'results')!r}, 'results')", tmp_path)
    manifest = tmp_path / "results/runs/python.json"
    first, second = rv.cells(manifest)["key"]
    (tmp_path / "results/cells" / first / "record.json").write_text("{}")
    (tmp_path / "results/cells" / second / "record.json").unlink()
    problems = rv.cells(manifest)["problem"].tolist()
    assert "checksum differs" in problems[0] and problems[1] == "not evaluated"


@pytest.mark.engine
def test_a_document_that_is_asked_alone_is_answered_as_in_a_run(tmp_path: Path) -> None:
    overrides = ["experiment=micro", "tasks=[gsm8k]", "benchmarks.gsm8k.variants=[]", "limit=4", "name=shots"]
    overrides += [
        "conditions=[baseline,vector]",
        "stages=[extract,evaluate]",
        "benchmarks.gsm8k.num_fewshot=2",
    ]
    overrides += ["benchmarks.gsm8k.max_gen_toks=60"]
    done = ran(
        f"from pipeline import api as rv\nshots = rv.compose({overrides!r})\nrv.run(shots)\n{COMPARED}",
        tmp_path,
    )
    assert done.stdout.endswith("compared 4\n"), done.stderr[-3000:]


def test_vectors_are_combined_as_the_terms_say(tmp_path: Path) -> None:
    donors = [str(ROOT / "models/micro" / part) for part in ("grpo", "sft", "base")]
    one = rv.extract(donors[0], donors[1], tmp_path / "one")
    other = rv.extract(donors[1], donors[2], tmp_path / "other")
    terms = [rv.Term(str(one.path), 0.5), rv.Term(str(other.path), -2.0)]
    out = rv.export(terms, tmp_path / "sum.safetensors")
    with safe_open(out, "pt") as summed:
        for name in one.shapes:
            assert (summed.get_tensor(name) == one.read(name) * 0.5 + other.read(name) * -2.0).all(), name
    assert rv.export(terms[:1], out) == out  # a sum of ours is replaced
    with pytest.raises(rv.UserError, match="at least one term"):
        rv.export([], out)
    with pytest.raises(rv.UserError, match="noise has no file"):
        rv.export([rv.Term(str(one.path), 1.0, 3)], out)
    with pytest.raises(rv.UserError, match="not a sum that we wrote"):
        rv.export(terms, one.path)
    with pytest.raises(rv.UserError, match="is a folder"):
        rv.export(terms, tmp_path)


def test_vectors_that_do_not_fit_or_overflow_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    state = tiny.weights(tiny.config(), seed=1)
    for name, scale in (("sft", 0.1), ("grpo", 100.0)):
        tiny.write(tmp_path / name, tiny.moved(state, 2, scale=scale))
    far = rv.extract(str(tmp_path / "grpo"), str(tmp_path / "sft"), tmp_path / "far")
    micro = [str(ROOT / "models/micro" / part) for part in ("grpo", "sft")]
    other = rv.extract(micro[0], micro[1], tmp_path / "other")
    with pytest.raises(rv.UserError, match="use a smaller α"):
        rv.export([rv.Term(str(far.path), 3e38)], tmp_path / "sum")
    with pytest.raises(rv.UserError, match="has other tensors or shapes"):
        rv.export([rv.Term(str(far.path), 1.0), rv.Term(str(other.path), 1.0)], tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def cells_of(notebook: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_notebook_has_the_code_of_the_guide_and_its_outputs() -> None:
    notebook = json.loads((ROOT / "docs/example.ipynb").read_text())
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    code = cells_of(notebook, "code")
    sources = ["".join(cell["source"]) for cell in code]
    assert "\n\n".join(sources) + "\n" == EXAMPLE
    printed = "".join("".join(o["text"]) for cell in code for o in cell["outputs"] if o["name"] == "stdout")
    for line in SHOWN.splitlines():
        assert line in printed
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


def test_the_names_of_the_guide_are_those_of_the_module() -> None:
    named = set(re.findall(r"^\| `(\w+)\(", GUIDE, re.M)) | set(re.findall(r"\brv\.(\w+)", GUIDE))
    assert named <= set(rv.__all__) and all(hasattr(rv, name) for name in rv.__all__)
