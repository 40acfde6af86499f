"""Every command that the comments of conf/ and the Makefile give can be run: it composes, and its folders are where others look."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipeline.__main__ import VERBS
from pipeline.config.compose import compose
from pipeline.config.explain import CONF
from pipeline.config.schema import Config
from pipeline.donors.command import FOLDER, OPTIONS
from pipeline.donors.compose import compose_recipe
from pipeline.donors.recipe import Recipe
from pipeline.files import ROOT

FILES = sorted(CONF.rglob("*.yaml"))
LAUNCHED = ("experiment", "recipe")
NAMES = [str(path.relative_to(CONF)) for path in FILES]


def head(path: Path) -> list[str]:
    """The comments that a file begins with, without their marks."""
    lines = path.read_text().splitlines()
    first = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.lstrip("# ") for line in lines[:first] if not line.startswith("# @package")]


def commands(text: str) -> list[list[str]]:
    """The arguments of each `python -m pipeline …` and, by way of the Makefile, of each `make …` in a line of comments."""
    found = [shlex.split(given) for given in re.findall(r"python -m pipeline\b([^()`]*)", text)]
    for target, given in re.findall(r"\bmake ([a-z-]+)((?: [A-Z]+=[^\s()]+)*)", text):
        found += made(target, *shlex.split(given))
    return found


def made(target: str, *variables: str) -> list[list[str]]:
    """The arguments of each `python -m pipeline …` that a target of the Makefile would run."""
    command = ["make", "-n", "-o", ".venv/.done", "PYTHON=false", target, *variables]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.split(">")[0] for line in ran.stdout.splitlines() if "-m pipeline " in line]
    assert lines, f"make {target} runs nothing"
    return [shlex.split(line.split("-m pipeline ", 1)[1], comments=True) for line in lines]


def composed(arguments: list[str]) -> Config | Recipe:
    """What a command would run."""
    verb = arguments[0] if arguments and "=" not in arguments[0] else "run"
    assert verb in VERBS
    overrides = arguments if verb == "run" else arguments[1:]
    if verb == "donors":
        return compose_recipe([given for given in overrides if given.split("=")[0] not in OPTIONS])
    return compose(overrides)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_at_the_head_of_a_file_composes(name: str) -> None:
    for line in head(CONF / name):
        for arguments in commands(line):
            composed(arguments)


@pytest.mark.parametrize("name", [name for name in NAMES if name.split("/")[0] in LAUNCHED])
def test_every_file_that_is_launched_begins_with_its_command(name: str) -> None:
    group, stem = name.removesuffix(".yaml").split("/")
    first = commands(head(CONF / name)[0])
    assert all(f"{group}={stem}" in arguments for arguments in first[:1]) and first
    assert composed(first[0]).name == stem


def test_each_group_with_commands_is_read() -> None:
    """The patterns above find what is there: a group that loses its last command, or is written otherwise, shows."""
    found = {name.split("/")[0] for name in NAMES for line in head(CONF / name) if commands(line)}
    assert found >= {
        "conditions",
        "config.yaml",
        "donors.yaml",
        "experiment",
        "family",
        "launcher",
        "prompts",
        "recipe",
        "suite",
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("family/")])
def test_donors_are_trained_into_the_folder_where_their_family_looks(name: str) -> None:
    described = OmegaConf.to_container(OmegaConf.load(CONF / name))
    assert isinstance(described, dict)
    trained = [c for line in head(CONF / name) for c in commands(line) if c[0] == "donors"]
    assert bool(trained) == ("donors" in described)
    for arguments in trained:
        folder = OmegaConf.create({"results": compose([]).results, "donors": described["donors"]}).donors
        assert Path(folder) == FOLDER / composed(arguments).name


def test_the_families_of_the_seeds_are_trained_into_the_folders_where_their_experiment_looks() -> None:
    outs = {
        given.removeprefix("out=")
        for c in made("families")
        if c[0] == "donors"
        for given in c
        if "out=" in given
    }
    families = compose(["experiment=micro_seeds"]).families.values()
    assert {str(Path(family.target.id).parent) for family in families} == outs
    assert len(outs) == 5


@pytest.mark.parametrize("recipe", [path.stem for path in (CONF / "recipe").glob("*.yaml")])
def test_make_donors_trains_a_recipe_with_what_it_is_given(recipe: str) -> None:
    (arguments,) = made("donors", f"EXPERIMENT={recipe}", "ARGS=seed=1 sft.lr=1e-5 out=here")
    assert arguments[:2] == ["donors", f"recipe={recipe}"] and "out=here" in arguments
    found = composed(arguments)
    assert isinstance(found, Recipe)
    assert (found.name, found.seed, found.sft.lr) == (recipe, 1, 1e-5)


@pytest.mark.parametrize("target", ["reproduce", "authors", "sweep"])
def test_a_long_run_asks_the_doctor_first_about_what_it_runs(target: str) -> None:
    doctor, run = made(target, "ARGS=engine=cpu limit=7", "HELD=cpu")
    assert doctor[0] == "doctor" and run[0] != "doctor"
    asked, started = composed(doctor), composed(run)
    assert isinstance(asked, Config) and isinstance(started, Config)
    assert asked.engine == started.engine and asked.families == started.families
    assert asked.benchmarks == started.benchmarks


@pytest.mark.parametrize("target", ["reproduce", "authors", "sweep"])
def test_what_cuda_needs_is_asked_before_its_build_is_downloaded(target: str) -> None:
    def asks(*given: str) -> tuple[bool, str]:
        ran = subprocess.run(
            ["make", "-n", target, *given], capture_output=True, text=True, cwd=ROOT, check=True
        )
        before, asked, after = ran.stdout.partition("pipeline.commands.doctor_cuda")
        return bool(asked), before if asked else ran.stdout

    asked, before = asks("HELD=")
    assert asked and "pip install" not in before
    assert not asks("HELD=gpu")[0], "the doctor asks it of what is installed"
    assert not asks("HELD=cpu", "ARGS=engine=cpu")[0]
