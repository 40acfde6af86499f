"""What goes wrong around a run: disks, the hub, signals, engines, the clock, and models that answer nothing of use.

Each ends with one line that names the thing and the remedy, or with an honest record; nothing that was whole is lost.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import hub
from pipeline.checkpoint import Checkpoint
from pipeline.config import ROOT
from pipeline.errors import UserError
from pipeline.records import DamagedRecord, is_done, move_away, read_manifest, write_manifest, write_record
from pipeline.vector import Term, apply, extract
from tests import synthetic, tiny
from tests.hub import Hub, Repository

SAMPLES = [{"doc_id": i, "score": 1.0, "output": "four"} for i in range(4)]


def record(results: Path, alpha: float, output: str = "four") -> str:
    return write_record(results, {"alpha": alpha}, {}, {}, {}, [s | {"output": output} for s in SAMPLES])


# --- disks


def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    yield from mounted(tmp_path / "small", "size=256k")


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pipeline(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, stdin=subprocess.DEVNULL)


def test_a_full_disk_while_a_record_is_written_leaves_the_earlier_ones_and_no_half_one(small: Path) -> None:
    first = record(small, 1.0)
    before = files(small)
    with pytest.raises(OSError, match=r"No space left on device: .*samples\.jsonl"):
        record(small, 2.0, "x" * 200_000)
    assert files(small) == before and is_done(small, first)
    assert not list(small.rglob(".tmp-*"))


def test_a_full_disk_while_a_checkpoint_is_applied_leaves_the_earlier_one(
    small: Path, tmp_path: Path
) -> None:
    folders = [tiny.write(tmp_path / name, seed) for seed, name in enumerate(("target", "sft", "grpo"))]
    target, sft, grpo = (Checkpoint.open(str(folder)) for folder in folders)
    vector = extract(grpo, sft, tmp_path / "vector")
    apply(target, [Term(str(vector), 1.0)], small / "steered")
    before = files(small)
    assert sum(map(len, before.values())) > 128 * 1024, "a second one must not fit"
    with pytest.raises(UserError, match="No space left") as refused:
        apply(target, [Term(str(vector), 0.5)], small / "steered")
    assert str(small / "steered") in str(refused.value) and "free space" in str(refused.value)
    assert files(small) == before and not list(small.rglob(".tmp-*"))


@pytest.mark.parametrize("options", ["size=16k", "size=1m,ro"], ids=["full", "read-only"])
def test_tables_that_cannot_be_written_are_one_line(options: str, tmp_path: Path) -> None:
    synthetic.write_run(tmp_path / "results", documents=4)
    for tables in mounted(tmp_path / "tables", options):
        places = [f"results={tmp_path / 'results'}", f"tables={tables}"]
        ran = pipeline("experiment=micro", "name=synthetic", "stages=[render]", *places)
        assert ran.returncode == 2
        assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1, ran.stderr
        assert str(tables) in ran.stderr and "free space" in ran.stderr
        assert not list(tables.rglob(".tmp-*"))


def test_results_in_a_read_only_folder_are_one_line(tmp_path: Path) -> None:
    for results in mounted(tmp_path / "results", "size=1m,ro"):
        ran = pipeline("experiment=micro", "stages=[extract]", f"results={results}")
        assert ran.returncode == 2
        assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1, ran.stderr
        assert str(results) in ran.stderr and "Read-only" in ran.stderr


# --- damage


def test_a_manifest_with_a_changed_byte_is_refused(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, {"experiment": "e", "cells": [{"key": "a" * 64}]})
    assert read_manifest(path) == {"experiment": "e", "cells": [{"key": "a" * 64}]}
    path.write_text(path.read_text().replace("aaaa", "aaab", 1))
    with pytest.raises(DamagedRecord, match="checksum differs.*run the experiment again"):
        read_manifest(path)


def test_two_damaged_things_of_one_name_are_both_kept(tmp_path: Path) -> None:
    for content in ("one", "two"):
        (tmp_path / "vector").write_text(content)
        move_away(tmp_path, tmp_path / "vector")
    assert sorted(path.read_text() for path in tmp_path.glob("damaged/*/vector")) == ["one", "two"]


# --- the hub

COMMIT = "a" * 40
REFUSALS = {
    401: "hf auth login",
    403: "hf auth login",
    404: "check the spelling",
    429: "wait some minutes",
    503: "run again later",
    "silence": "HF_HUB_OFFLINE=1",
    "hang up": "HF_HUB_OFFLINE=1",
    "cut": "run again",
}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a model and a data set, an empty cache, and no waiting between two attempts."""
    import huggingface_hub.constants as constants
    from huggingface_hub.utils import _http

    tiny.write(tmp_path / "hub" / "model", 1)
    (tmp_path / "hub" / "data").mkdir()
    (tmp_path / "hub" / "data" / "test.jsonl").write_text('{"question": "2+2"}\n' * 400)
    repositories = [Repository("models", "our/thing", COMMIT, tmp_path / "hub" / "model")]
    repositories += [Repository("datasets", "our/thing", COMMIT, tmp_path / "hub" / "data")]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    with Hub(repositories) as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.endpoint)
        template = f"{made.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield made


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize("fault", REFUSALS)
def test_what_the_hub_refuses_is_one_line_and_nothing_half_is_taken_for_whole(
    fault: int | str, kind: str, served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    served.fault = fault
    with pytest.raises(UserError) as refused:
        hub.fetch("our/thing", COMMIT, kind)
    line = str(refused.value)
    assert "our/thing" in line and REFUSALS[fault] in line and "\n" not in line and len(line) < 500, line
    assert 1 <= len(served.requests) <= 60, "it must ask, and give up"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not whole in the hub's cache"):
        hub.fetch("our/thing", COMMIT, kind)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    served.fault = None
    folder = hub.fetch("our/thing", COMMIT, kind)
    assert folder.name == COMMIT
    original = files(tmp_path / "hub" / ("model" if kind == "model" else "data"))
    assert {p.name: d for p, d in files(folder).items()} == {p.name: d for p, d in original.items()}


# --- signals

INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from pipeline import __main__, interrupt, records, stages

def run(config, report):
    report("writing")
    rename = os.rename
    def interrupted(*names):
        for number in map(int, sys.argv[2].split(",")):
            os.kill(os.getpid(), number)
        rename(*names)
    os.rename = interrupted
    records.write_record(Path(sys.argv[1]), {"alpha": 1.0}, {}, {}, {}, [{"score": 1.0}])
    os.rename = rename
    report("not reached")

stages.run = run
interrupt.install()
sys.exit(__main__.main(["experiment=micro"]))
"""


def interrupted(results: Path, *numbers: int) -> subprocess.CompletedProcess[str]:
    """A run that is sent signals when its first record is about to be renamed into its place."""
    arguments = [str(results), ",".join(str(int(number)) for number in numbers)]
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments], capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_finishes_the_record_and_says_how_to_go_on(number: int, tmp_path: Path) -> None:
    ran = interrupted(tmp_path, number)
    assert ran.returncode == 128 + number
    assert ran.stderr.count("\n") == 1 and "the same command goes on from there" in ran.stderr
    assert ran.stdout == "writing\n"
    (key,) = [path.name for path in (tmp_path / "cells").iterdir()]
    assert is_done(tmp_path, key)


def test_the_second_signal_stops_at_once(tmp_path: Path) -> None:
    ran = interrupted(tmp_path, signal.SIGTERM, signal.SIGINT)
    assert ran.returncode == 130 and ran.stdout == "writing\n"
    (left,) = (tmp_path / "cells").iterdir()
    assert left.name.startswith(".tmp-")
