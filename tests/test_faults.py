"""What goes wrong around a run: disks, the hub, signals, engines, the clock, and models that answer nothing of use.

Each ends with one line that names the thing and the remedy, or with an honest record; nothing that was whole is lost.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file

from pipeline import hub
from pipeline.errors import UserError
from pipeline.files import ROOT, move_away
from pipeline.manifest import manifest_path, read_manifest
from pipeline.records import DamagedFile, Record, is_done, read_record
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.steer import Term, apply
from pipeline.weights.vector import extract
from tests import synthetic, tiny, warm
from tests.hub import Hub, Repository
from tests.processes import CELLS, Run, command, finished


def record(results: Path, alpha: float, output: str = "four") -> str:
    rows = [sample | {"output": output} for sample in synthetic.samples([True] * 4, {})]
    return synthetic.write_cell(results, {"alpha": alpha}, rows)


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
    return warm.run("-m", "pipeline", *arguments)


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


def test_results_in_a_read_only_folder_are_rendered_elsewhere(tmp_path: Path) -> None:
    for results in mounted(tmp_path / "results", "size=8m"):
        synthetic.write_run(results, documents=4)
        subprocess.run(["mount", "-o", "remount,ro", str(results)], check=True)
        places = [f"results={results}", f"tables={tmp_path / 'tables'}"]
        ran = pipeline("experiment=micro", "name=synthetic", "stages=[render]", *places)
        assert ran.returncode == 0, ran.stderr
        assert (tmp_path / "tables" / "synthetic" / "main.md").is_file()


# --- damage


def test_a_manifest_with_a_changed_byte_is_refused(tmp_path: Path) -> None:
    made = synthetic.write_run(tmp_path, documents=1)
    path = manifest_path(tmp_path, made.experiment)
    assert read_manifest(path) == made
    key = made.cells[0].key
    path.write_text(path.read_text().replace(key, key[1:] + key[0], 1))
    with pytest.raises(DamagedFile, match="checksum differs.*run the experiment again"):
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
from pipeline import __main__, interrupt, stages
from tests import synthetic

def run(config, report):
    report("writing")
    rename = os.rename
    def interrupted(*names):
        for number in map(int, sys.argv[2].split(",")):
            os.kill(os.getpid(), number)
        rename(*names)
    os.rename = interrupted
    synthetic.write_cell(Path(sys.argv[1]), {"alpha": 1.0}, synthetic.samples([True], {}))
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


WITH_CHILDREN = """
import os, signal, subprocess, sys, time
from pipeline import interrupt
interrupt.install()
if os.fork() == 0:
    print(os.getpid(), flush=True)
    subprocess.run([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"])
def wait():
    while True:  # a signal that comes just before a sleep begins does not end it
        time.sleep(0.01)
try:
    wait()
except KeyboardInterrupt:
    print("first", flush=True)
    wait()
"""


def test_the_second_signal_ends_the_processes_that_the_run_started_and_theirs(tmp_path: Path) -> None:
    run = subprocess.Popen([sys.executable, "-c", WITH_CHILDREN], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert run.stdout is not None
    started = [psutil.Process(int(run.stdout.readline())) for _ in range(2)]
    try:
        run.send_signal(signal.SIGTERM)
        assert run.stdout.readline() == "first\n"
        run.send_signal(signal.SIGINT)
        assert run.wait() == 128 + signal.SIGINT
        gone, alive = psutil.wait_procs(started, timeout=60)
        assert not alive
    finally:
        for process in started:
            with contextlib.suppress(psutil.Error):
                process.kill()
        run.stdout.close()


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("in_process", ["true", "false"])
def test_ctrl_c_in_the_middle_of_the_cells_leaves_whole_records_and_no_process(
    in_process: str, tmp_path: Path
) -> None:
    run = Run(tmp_path, "limit=null", f"engine.in_process={in_process}")
    assert run.wait_for(lambda run: "[  1/" in run.output()), run.output()[-2000:]
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
    assert run.ends() == 130, run.output()[-2000:]
    assert run.is_gone() and not list(tmp_path.rglob(".tmp-*"))
    assert "the same command goes on from there" in run.output() and "Traceback" not in run.output()
    done = finished(tmp_path)
    assert 1 <= len(done) < CELLS and all(is_done(tmp_path / "results", p.parent.name) for p in done)


# --- engines


@pytest.mark.slow
@pytest.mark.engine
def test_an_engine_ends_when_its_run_is_killed(tmp_path: Path) -> None:
    run = Run(tmp_path, "limit=null", "engine.in_process=false")
    assert run.wait_for(lambda run: "[  1/" in run.output()), run.output()[-2000:]
    try:
        assert run.engines()
        os.kill(run.process.pid, signal.SIGKILL)  # the driver alone, as the kernel does for want of memory
        run.ends()
        assert run.is_gone()
    finally:
        run.kill()


DYING = """
import sys
from pipeline import __main__
from pipeline.engine.engine import Engine
Engine.extension = "tests.faults.DyingExtension"
if __name__ == "__main__":
    sys.exit(__main__.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.engine
def test_a_cell_whose_engine_died_is_tried_again_once_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIED_ONCE", str(tmp_path / "died"))
    (tmp_path / "dying.py").write_text(DYING)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = ["tasks=[gsm8k]", "alpha=[-1,0.5,1]", "limit=null", "engine.in_process=false"]
    run = Run(
        tmp_path, arguments=[sys.executable, str(tmp_path / "dying.py"), *command(tmp_path, *options)[3:]]
    )
    assert run.ends() == 2, run.output()[-3000:]
    output = run.output()
    assert output.count("α = 0.5 · gsm8k; it is tried again") == 1
    assert output.count("α = −1 · gsm8k; it is tried again") == 1
    assert output.count("α = −1 · gsm8k; given up after 2 such deaths") == 1
    assert output.rstrip().splitlines()[-1].startswith("error: given up after 2 engines died on each: micro")
    assert "pipeline/" not in output.rstrip().splitlines()[-1]
    assert len(finished(tmp_path)) == 3 and run.is_gone()


@pytest.mark.slow
@pytest.mark.engine
def test_too_little_memory_at_the_start_names_what_to_lower(tmp_path: Path) -> None:
    run = Run(tmp_path, "engine.kv_cache_gb=100000", "stages=[extract,evaluate]")
    assert run.ends() == 2, run.output()[-3000:]
    last = run.output().rstrip().splitlines()[-1]
    assert last.startswith("error: ") and "engine.kv_cache_gb" in last, run.output()[-3000:]
    assert run.is_gone()


# --- the clock, and models that answer nothing of use

BACKWARDS = """
import sys, time
from datetime import datetime
began = time.time()
time.time = lambda: began - 1000 * time.monotonic()
from pipeline import __main__
from pipeline.evaluate import runner
class Clock(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.fromtimestamp(time.time(), tz)
runner.datetime = Clock
sys.exit(__main__.main(sys.argv[1:]))
"""
SAYS = {"nothing": "<|im_end|>", "stop tokens": "<|endoftext|>", "half characters": "ÿ", "one letter": "A"}


@pytest.fixture(scope="module")
def degenerate(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Record]:
    """Records of models that say one token for ever, made while the clock ran backwards: (what it says, task)."""
    root = tmp_path_factory.mktemp("degenerate")
    options = ["tasks=[gsm8k,humaneval,sciq]", "alpha=[]", "limit=4", "stages=[evaluate,render]"]
    for name, token in SAYS.items():
        folder = root / name
        shutil.copytree(ROOT / "models" / "micro" / "target", folder)
        state = load_file(folder / "model.safetensors")
        ids = Checkpoint.open(str(folder)).token_ids
        for key, tensor in state.items():
            if "o_proj" in key or "down_proj" in key:
                tensor.zero_()
        state["model.norm.weight"].fill_(1.0)
        embedding = state["model.embed_tokens.weight"]
        embedding.zero_()[:, 0] = (
            1.0  # every token leads to the same state, whose largest logit is that token's
        )
        embedding[ids[token], 0] = 2.0
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        family = name.replace(" ", "_")
        options += [f"+family@families.{family}=model", f"families.{family}.target.id='{folder}'"]
        options.append(f"families.{family}.label={family}")
    options.append(f"families=[{','.join(name.replace(' ', '_') for name in SAYS)}]")
    run = Run(root, arguments=[sys.executable, "-c", BACKWARDS, *command(root, *options)[3:]])
    assert run.ends() == 0, run.output()[-3000:]
    found = {}
    for cell in read_manifest(root / "results" / "runs" / "micro.json").cells:
        made = read_record(root / "results", cell.key)
        assert made is not None
        found[cell.family.replace("_", " "), cell.benchmark] = made
    return found


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("task", ["gsm8k", "humaneval"])
@pytest.mark.parametrize("says", SAYS)
def test_a_model_that_says_nothing_of_use_gets_an_honest_record(
    says: str, task: str, degenerate: dict[tuple[str, str], Record]
) -> None:
    made = degenerate[says, task]
    assert made.metrics["score"] == 0.0 and made.metrics["n"] == 4
    assert made.metrics["share_truncated"] == (0.0 if says == "nothing" else 1.0)
    assert task != "gsm8k" or made.metrics["share_not_extracted"] == 1.0
    for sample in made.samples():
        # half a character is none
        expected = {"stop tokens": "<|endoftext|>", "one letter": "A"}.get(says, "")
        assert sample["output"] == expected * (len(sample["output"]) // max(1, len(expected)))
        assert bool(sample["output"]) == bool(expected)
        assert sample["finish"] == ("stop" if says == "nothing" else "length")
        assert sample["tokens"] <= 1 if says == "nothing" else sample["tokens"] > 90


@pytest.mark.slow
@pytest.mark.engine
def test_a_clock_that_runs_backwards_moves_no_duration(degenerate: dict[tuple[str, str], Record]) -> None:
    assert all(0 < made.cost["seconds"] < 900 for made in degenerate.values())
    started = [made.provenance["started"] for made in degenerate.values()]
    assert started == sorted(started, reverse=True) and len(set(started)) > 1
