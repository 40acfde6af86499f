"""Bundles: gathered from a hub of stand-ins, opened in a copy of the project without a network, whole or refused by name."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import bundle
from pipeline.__main__ import main
from pipeline.config.compose import compose
from pipeline.errors import UserError
from pipeline.files import ROOT
from tests.hub import Hub, environment, trained, write_repositories

PLAN = ["experiment=paper", "families=[1.5b]", "tasks=[gsm8k,sciq]", "engine=cpu"]
WITHOUT_NETWORK = ["unshare", "--map-root-user", "--net"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    with Hub(write_repositories(root, compose(["experiment=paper", *trained(root)]))) as hub:
        yield hub


@pytest.fixture(scope="module")
def gathered(served: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gathered")
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "bundle",
        *PLAN,
        f"out={root / 'bundle'}",
        f"results={root / 'r'}",
    ]
    env = served.environment(root / "cache")
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "make setup BUNDLE=FOLDER" in ran.stdout and "no wheels" in ran.stdout
    assert not (root / "cache" / "hub").exists()
    return root / "bundle"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What of the project a run needs, in a folder of its own."""
    for name in ("pipeline", "evals", "conf", "paper_tables", "pyproject.toml"):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, tmp_path / "project" / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, tmp_path / "project" / name)
    return tmp_path / "project"


def without_network(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a network namespace that has no network, not even a loopback interface that is up."""
    kept = {k: v for k, v in environment(project).items() if k != "HF_HOME"}
    command = [*WITHOUT_NETWORK, sys.executable, *arguments]
    return subprocess.run(command, cwd=project, env=kept, capture_output=True, text=True)


needs_namespaces = pytest.mark.skipif(
    subprocess.run([*WITHOUT_NETWORK, "true"], capture_output=True).returncode != 0,
    reason="network namespaces cannot be made here",
)


@needs_namespaces
@pytest.mark.parametrize("part_bytes", [None, 400_000])
def test_a_run_without_a_network_reads_the_bundle(
    part_bytes: int | None, gathered: Path, project: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(gathered, folder, symlinks=True)
    if part_bytes:
        assert bundle.cut(folder, part_bytes) > 1
        assert max(path.stat().st_size for path in folder.glob("bundle.tar.*")) <= part_bytes
    plan = ["-m", "pipeline", "plan", *PLAN, "data.folder=null"]
    if not part_bytes:  # of the same project: once is enough
        before = without_network(project, *plan)
        assert "is unknown" in before.stdout, before.stderr
    opened = without_network(project, "-m", "pipeline.bundle", str(folder))
    assert opened.returncode == 0, opened.stderr
    ran = without_network(project, *plan)
    assert ran.returncode == 0, ran.stderr
    assert "is unknown" not in ran.stdout and "cells" in ran.stdout
    asked = without_network(project, "-m", "pipeline", "prompt", *PLAN, "task=gsm8k")
    assert asked.returncode == 0 and "─── prompt" in asked.stdout, asked.stderr


def test_sums_are_those_of_sha256sum(gathered: Path) -> None:
    ran = subprocess.run(["sha256sum", "--check", "--quiet", bundle.SUMS], cwd=gathered, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    listed = {line.split("  ", 1)[1] for line in (gathered / bundle.SUMS).read_text().splitlines()}
    assert listed == {
        path.relative_to(gathered).as_posix()
        for path in gathered.rglob("*")
        if path.is_file() and path.name != bundle.SUMS
    }


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of three files, and a project that has none open."""
    monkeypatch.setattr(bundle, "OPENED", tmp_path / "project" / ".bundle")
    (tmp_path / "project").mkdir()
    folder = tmp_path / "bundle"
    for name in ("hub/models--a--b/blobs/0", "wheels/a.whl", "hub.lock.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(3 << 20) if "blobs" in name else b"{}")
    (folder / "hub" / "models--a--b" / "snapshots").mkdir()
    (folder / "hub" / "models--a--b" / "snapshots" / "weights").symlink_to("../blobs/0")
    assert bundle.seal(folder) == 4
    return folder


def test_parts_hold_what_the_folder_held(small: Path) -> None:
    weights = (small / "hub" / "models--a--b" / "blobs" / "0").read_bytes()
    assert bundle.cut(small, 1 << 20) == 4
    bundle.open_here(small)
    link = bundle.OPENED / "hub" / "models--a--b" / "snapshots" / "weights"
    assert link.is_symlink() and link.read_bytes() == weights
    assert not list(bundle.OPENED.parent.glob("*.tmp"))


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("harm", ["missing", "changed", "longer"])
def test_what_is_missing_or_changed_is_named_and_the_bundle_that_was_open_stays(
    parts: bool, harm: str, small: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(small, other, symlinks=True)
    bundle.open_here(other)
    if parts:
        bundle.cut(small, 1 << 20)
    name = "bundle.tar.002" if parts else "wheels/a.whl"
    content = (small / name).read_bytes()
    if harm == "missing":
        (small / name).unlink()
    else:
        (small / name).write_bytes(content + b"x" if harm == "longer" else b"x" + content[1:])
    with pytest.raises(UserError, match=f"{name}.*copy them"):
        bundle.open_here(small)
    assert bundle.OPENED.resolve() == other


@pytest.mark.parametrize(
    "sums",
    ["", "no sums\n", f"{'0' * 64}  ../../etc/passwd\n", f"{'0' * 64}  /etc/passwd\n", f"{'0' * 64} hub\n"],
)
def test_a_list_that_is_none_or_leads_elsewhere_is_refused(sums: str, small: Path) -> None:
    (small / bundle.SUMS).write_text(sums) if sums else (small / bundle.SUMS).unlink()
    with pytest.raises(UserError, match=bundle.SUMS):
        bundle.open_here(small)
    assert not bundle.OPENED.exists()


def test_a_cache_that_the_environment_names_goes_before_the_bundle(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    bundle.open_here(small)
    monkeypatch.setenv("HF_HOME", "/somewhere")
    bundle.use()
    assert "HF_HUB_CACHE" not in os.environ
    monkeypatch.delenv("HF_HOME")
    bundle.use()
    assert os.environ["HF_HUB_CACHE"] == str(small / "hub") and os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["part_gb=x"], "part_gb=x: expected a size in GB"),
        (["part_gb=0"], "part_gb=0: expected a size in GB"),
        (["part_gb=nan"], "part_gb=nan: expected a size in GB"),
        (["out={foreign}"], "expected a new folder or an earlier bundle, found precious"),
        (["out={file}"], "expected a new folder or an earlier bundle"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "precious").touch()
    (tmp_path / "file").touch()
    given = [option.format(foreign=tmp_path / "foreign", file=tmp_path / "file") for option in options]
    out = [] if given[0].startswith("out=") else [f"out={tmp_path / 'new'}"]
    before = sorted(tmp_path.rglob("*"))
    assert main(["bundle", "experiment=micro", f"results={tmp_path / 'r'}", *given, *out]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
