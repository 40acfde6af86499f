"""One family that cannot be opened does not stop the others: it is left out with its line, and the exit status says so."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config.compose import compose
from pipeline.errors import UserError
from pipeline.files import ROOT
from pipeline.plan.grid import make_grid
from pipeline.stages import prepare
from tests import synthetic, tiny, warm
from tests.documents import sums
from tests.hub import Hub, environment, fill, write_repositories

FAMILY = "{label: %s, target: {id: %s}, sft: {id: %s}, grpo: {id: %s}}"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A target, sound donors, and documents."""
    target = tiny.write(tmp_path / "target", 0)
    state = load_file(target / "model.safetensors")
    for seed, part in enumerate(("sft", "grpo"), start=1):
        tiny.write(tmp_path / part, tiny.moved(state, seed))
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    (tmp_path / "data" / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in sums(2, 3)))
    return tmp_path


def overrides(place: Path, grpo: Path, *more: str, sft: Path | None = None) -> list[str]:
    """Two families, of which the second has this donor, and the first this one."""
    first = FAMILY % ("good", place / "target", sft or place / "sft", place / "grpo")
    second = FAMILY % ("bad", place / "target", place / "sft", grpo)
    fixed = ["experiment=micro", "tasks=[gsm8k]", "conditions=[baseline,vector]", "data.generator=null"]
    fixed += [f"data.folder={place / 'data'}", "families=[good,bad]", "tracking=disabled"]
    fixed += [f"results={place / 'results'}", f"tables={place / 'tables'}"]
    return [*fixed, f"+families.good={first}", f"+families.bad={second}", *more]


def pipeline(*arguments: str, engine: bool = False) -> subprocess.CompletedProcess[str]:
    return warm.run("-m", "pipeline", *arguments, engine=engine)


def not_there(place: Path) -> tuple[Path, str]:
    return place / "none", "families.bad.grpo: no folder"


def of_another_shape(place: Path) -> tuple[Path, str]:
    return tiny.write(place / "other", 3, intermediate_size=128), "use one shape"


def of_another_function(place: Path) -> tuple[Path, str]:
    state = tiny.moved(load_file(place / "target" / "model.safetensors"), 4)
    return tiny.write(place / "other", state, rope_theta=5e5), "use models that compute the same function"


def cut(place: Path) -> tuple[Path, str]:
    other = tiny.write(place / "other", 3)
    file = other / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    return other, "is truncated"


def too_large(place: Path) -> tuple[Path, str]:
    """θ + v leaves float32; it shows only when the vector is beside its target."""
    norms = {"target": 3.3895e38, "sft": 3.2e38, "grpo": 3.2e38, "other": 3.38e38}
    tiny.write(place / "other", load_file(place / "grpo" / "model.safetensors"))
    for part, value in norms.items():
        file = place / part / "model.safetensors"
        state = load_file(file)
        state["model.norm.weight"] = torch.full_like(state["model.norm.weight"], value)
        save_file(state, file, metadata={"format": "pt"})
    return place / "other", "NaN or infinite"


@pytest.mark.parametrize("spoil", [not_there, of_another_shape, of_another_function, cut, too_large])
def test_a_family_that_is_refused_is_left_out_and_the_others_are_extracted(
    spoil: object, place: Path
) -> None:
    assert callable(spoil)
    other, message = spoil(place)
    ran = pipeline(*overrides(place, other, "stages=[extract]"))
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1, ran.stderr
    assert ran.stderr.startswith("error: bad was left out: ") and message in ran.stderr
    (line,) = (line for line in ran.stdout.splitlines() if line.startswith("bad is left out: "))
    assert message in line
    manifest = json.loads((place / "results" / "runs" / "micro.json").read_text())
    assert list(manifest["families"]) == ["good"] and manifest["cells"]
    vectors = [p for p in (place / "results" / "vectors").iterdir() if (p / "vector.safetensors").is_file()]
    assert vectors


def test_what_is_left_is_rendered_and_the_status_still_says_so(place: Path) -> None:
    given = overrides(place, place / "none")
    good = compose([o for o in given if not o.startswith("families=")] + ["families=[good]"])
    for cell in prepare(good).unique():
        synthetic.write_cell(place / "results", cell.inputs, synthetic.samples([True, False]))
    ran = pipeline(*given, "stages=[extract,evaluate,render]", engine=True)
    assert ran.returncode == 2 and ran.stderr.startswith("error: bad was left out: "), ran.stderr
    assert "50.0" in (place / "tables" / "micro" / "main.md").read_text()


def test_a_family_that_is_alone_is_a_mistake_and_nothing_is_written(place: Path) -> None:
    other, message = of_another_shape(place)
    ran = pipeline(*overrides(place, other, "families=[bad]", "stages=[extract]"))
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and message in ran.stderr
    assert "left out" not in ran.stdout + ran.stderr
    assert not (place / "results" / "runs").exists() and not (place / "results" / "vectors").exists()


def test_when_none_is_left_the_first_mistake_is_told(place: Path) -> None:
    both = overrides(place, place / "none", sft=place / "nowhere")
    ran = pipeline("plan", *both)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1
    assert ran.stderr.startswith(f"error: families.good.sft: no folder {place / 'nowhere'}")


def test_a_condition_that_adds_the_vector_of_a_refused_family_goes_with_it(place: Path) -> None:
    own = "+conditions.both={label: Both, terms: [{alpha: 1.0}, {alpha: 1.0, family: bad}]}"
    ran = pipeline("plan", *overrides(place, place / "none", own, "conditions=[baseline,vector,both]"))
    assert ran.returncode == 2 and "bad was left out" in ran.stderr
    assert "+Vector" in ran.stdout and "Both" not in ran.stdout


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Hub]]:
    root = tmp_path_factory.mktemp("pairs")
    named = [f"families.verl_1p5b.{part}.subfolder=runs-{part}" for part in ("sft", "grpo")]
    config = compose(["experiment=pairs", f"results={root / 'results'}", *named])
    with Hub(write_repositories(root / "hub", config)) as hub:
        fill(root / "cache", hub, config)
        yield root, hub


def test_every_known_pair_is_planned_and_one_whose_folders_are_not_known_waits_for_them(
    pairs: tuple[Path, Hub],
) -> None:
    root, hub = pairs
    fixed = ["plan", "experiment=pairs", f"results={root / 'results'}", f"tables={root / 'tables'}"]

    def plan(*more: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline", *fixed, *more]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)

    online = hub.environment(root / "cache")
    ran = plan(env=online)
    assert ran.returncode == 0, ran.stderr
    (waits,) = (line for line in ran.stdout.splitlines() if line.startswith("verl_1p5b: "))
    assert "9 of 10 conditions are left out" in waits and "jayminban/RLVR-vs-SFT" in waits
    assert "families.verl_1p5b.sft.subfolder and families.verl_1p5b.grpo.subfolder" in waits
    assert "trained_1p5b: " in ran.stdout and "make donors EXPERIMENT=qwen2.5-1.5b" in ran.stdout
    only = ("families=[verl_1p5b]", "families.verl_1p5b.sft.subfolder=null")
    listed = plan(*only, env=online)
    assert listed.returncode == 2 and listed.stderr.count("\n") == 1, listed.stderr
    assert "name one of its folders in subfolder: runs-grpo, runs-sft" in listed.stderr
    at_root = plan("families=[gsm8k_1p5b]", "families.gsm8k_1p5b.sft.subfolder=runs", env=online)
    assert at_root.returncode == 2 and "at the root of its repository: leave subfolder out" in at_root.stderr
    named = [f"families.verl_1p5b.{part}.subfolder=runs-{part}" for part in ("sft", "grpo")]
    whole = plan(*named, env=environment(root / "cache", HF_HUB_OFFLINE="1"))
    assert whole.returncode == 0, whole.stderr
    assert "verl_1p5b (Qwen2.5-1.5B (GSM8K, verl))" in whole.stdout
    for text in (
        ran.stdout,
        whole.stdout,
    ):  # families that share a target share its cells, estimated and planned
        estimated, cells = (
            re.search(r"= (\d+) cells;", text),
            re.search(r"(\d+) cells \(\d+ more share", text),
        )
        assert estimated is not None and cells is not None and estimated[1] == cells[1]


def test_an_adapter_of_a_donor_whose_folder_is_not_known_waits_with_it() -> None:
    grpo = "families.verl_1p5b.grpo"
    adapter = [f"{grpo}.id=me/adapter", f"{grpo}.merge_into=sft"]
    config = compose(["experiment=pairs", "families=[verl_1p5b]", *adapter])
    (line,) = make_grid(config).left_out
    assert "9 of 10" in line and line.endswith("name them in families.verl_1p5b.sft.subfolder")
    named = [*adapter, "families.verl_1p5b.sft.subfolder=runs/a"]
    assert not make_grid(compose(["experiment=pairs", "families=[verl_1p5b]", *named])).left_out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('target.subfolder="?"', "target.subfolder: expected a folder inside"),
        (
            "template=sft",
            "template=sft: the family has no such checkpoint; set families.verl_1p5b.sft.subfolder",
        ),
        ("sft.subfolder=../runs", "sft.subfolder: expected a folder inside"),
        ("sft.subfolder=.", "sft.subfolder: expected a folder inside"),
        ("sft.subfolder=''", "sft.subfolder: expected a folder inside"),
    ],
)
def test_a_folder_that_must_be_known_is_asked_for_in_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        compose(["experiment=pairs", f"families.verl_1p5b.{override}"])
    assert str(refused.value).startswith(f"families.verl_1p5b.{message}") and "\n" not in str(refused.value)
