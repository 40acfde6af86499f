"""The container's build file: what it copies is here, what the project needs is copied, and it runs as a user."""

import json
import shlex

from pipeline.__main__ import VERBS
from pipeline.files import ROOT

LINES = [
    line
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]


def instructions(name: str) -> list[str]:
    return [line.split(None, 1)[1] for line in LINES if line.split(None, 1)[0] == name]


def test_what_is_copied_is_here_and_is_let_through() -> None:
    let_through = {
        line[1:].split("/")[0] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"
    }
    sources = [s for line in instructions("COPY") for s in shlex.split(line)[1:-1]]
    assert sources and all((ROOT / source).exists() for source in sources)
    assert set(sources) == let_through


def test_everything_that_an_installation_reads_is_copied() -> None:
    copied = " ".join(instructions("COPY"))
    for needed in ("Makefile", "pyproject.toml", "requirements", "README.md", "pipeline", "evals", "conf"):
        assert needed in copied, needed


def test_it_is_set_up_from_the_lock_and_run_as_a_user() -> None:
    names = [line.split()[0] for line in LINES]
    setup = next(i for i, line in enumerate(LINES) if "make setup ACCELERATOR=gpu" in line)
    assert names.index("USER") < setup and instructions("USER") == ["researcher"]
    assert instructions("FROM") == ["python:3.11-bookworm"]
    entry, command = (json.loads(instructions(name)[0]) for name in ("ENTRYPOINT", "CMD"))
    assert entry[-2:] == ["-m", "pipeline"] and command[0] in VERBS
