"""`doctor`: a line for each check, the remedy where something is wrong, status 1 only for what stops this run."""

from pathlib import Path

import pytest

from evals import sandbox
from pipeline.__main__ import main
from pipeline.commands import doctor
from pipeline.errors import UserError

HAS_GPU = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no key, an empty cache, folders of this test's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(doctor, "_unreachable", lambda url: "no answer (played)")
    for name in ("WANDB_API_KEY", "HF_TOKEN", "RV_CACHE"):
        monkeypatch.delenv(name, raising=False)


def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, *overrides: str) -> tuple[int, list[str]]:
    capsys.readouterr()
    folders = [f"results={tmp_path / 'results'}", f"tables={tmp_path / 'tables'}"]
    status = main(["doctor", *folders, *overrides])
    said = capsys.readouterr()
    assert not said.err
    return status, said.out.splitlines()


def of(lines: list[str], what: str) -> list[str]:
    return [line for line in lines if line[9:].startswith(f"{what}:")]


def test_a_machine_that_runs_the_tests_can_run_micro_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, lines = run(capsys, tmp_path, "experiment=micro", "allow_unsandboxed=true")
    assert status == 0, lines
    assert {line.split()[0] for line in lines} <= {"ok", "warning"}
    for what in ("Python", "packages", "GPU", "memory", "disk", "hub", "W&B", "sandbox", "folder", "work"):
        assert of(lines, what), what
    assert not (tmp_path / "results").exists() and not (tmp_path / "tables").exists()


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU here")
def test_the_paper_needs_a_gpu_and_says_what_to_run_without(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, lines = run(capsys, tmp_path, "experiment=paper")
    assert status == 1
    (line,) = of(lines, "GPU")
    assert line.startswith("fail") and "make demo" in line


def test_a_hub_that_cannot_be_reached_stops_only_what_is_not_in_the_cache(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["experiment=model", "families.model.target.id=some/model", f"data.folder={tmp_path}"]
    status, lines = run(capsys, tmp_path, *overrides)
    assert status == 1
    (line,) = of(lines, "hub")
    assert line.startswith("fail") and "some/model" in line and "HF_HOME" in line
    monkeypatch.setattr(doctor, "_cached", lambda source: True)
    (line,) = of(run(capsys, tmp_path, *overrides)[1], "hub")
    assert line.startswith("warning") and "HF_HUB_OFFLINE=1" in line
    monkeypatch.setattr(doctor, "_unreachable", lambda url: None)
    assert all(line.startswith("ok") for line in of(run(capsys, tmp_path, *overrides)[1], "hub"))


def test_a_server_that_answers_with_an_error_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(401)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.undo()
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert doctor._unreachable(url) is None
        server.shutdown()
    assert "no answer" in str(doctor._unreachable(url))


def test_keys_are_told_of_and_never_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-wandb")
    monkeypatch.setenv("HF_TOKEN", "canary-hub")
    monkeypatch.setattr(doctor, "_unreachable", lambda url: None)
    overrides = ["experiment=model", "families.model.target.id=some/model", f"data.folder={tmp_path}"]
    _, lines = run(capsys, tmp_path, *overrides)
    assert "known" in of(lines, "hub token")[0] and "a key is known" in of(lines, "W&B")[0]
    assert "canary" not in "\n".join(lines)


def test_online_without_a_key_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, lines = run(capsys, tmp_path, "experiment=micro", "tracking.mode=online")
    assert status == 1 and "wandb login" in of(lines, "W&B")[0]


def test_an_old_package_and_a_missing_one_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"torch": "1.13.0", "scipy": None}
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: found.get(name, real(name)))
    status, lines = run(capsys, tmp_path, "experiment=micro")
    assert status == 1
    old, absent = of(lines, "package")
    assert "torch 1.13.0, expected" in old and ">=2.11" in old and "make setup" in old
    assert "scipy is not installed" in absent


def test_a_machine_that_isolates_nothing_fails_unless_it_is_allowed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(allow: bool) -> sandbox.Level:
        if allow:
            return sandbox.Level.none
        raise UserError("programs cannot be run safely; install bubblewrap")

    monkeypatch.setattr(sandbox, "require", refuse)
    status, lines = run(capsys, tmp_path, "experiment=micro")
    assert status == 1 and of(lines, "sandbox")[0].startswith("fail")
    status, lines = run(capsys, tmp_path, "experiment=micro", "allow_unsandboxed=true")
    assert status == 0 and of(lines, "sandbox")[0].startswith("warning")
    status, lines = run(capsys, tmp_path, "experiment=micro", "tasks=[gsm8k]")
    assert status == 0 and "executes no programs" in of(lines, "sandbox")[0]


def test_a_full_disk_fails(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10**6})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    status, lines = run(capsys, tmp_path, "experiment=micro")
    assert status == 1 and "free space" in of(lines, "disk")[0]


def test_vectors_and_downloads_that_fit_one_disk_only_apart_fail_and_folders_are_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = [f"families.qwen1_5b.{part}.id=models/micro/{part}" for part in ("sft", "grpo")]
    overrides = ["experiment=paper", "families=[1.5b]", "engine=cpu", *model]
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 7 * 10**9}))
    status, lines = run(capsys, tmp_path, *overrides)
    (line,) = of(lines, "disk")
    assert line.startswith("fail") and "about 7.2 GB needed" in line  # two of 3.1 to download, 1 of results
    overrides.append("families.qwen1_5b.base.id=models/micro/base")
    status, lines = run(capsys, tmp_path, *overrides)
    assert of(lines, "disk")[0].startswith("ok")


def test_a_folder_that_cannot_be_written_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, lines = run(capsys, tmp_path, "experiment=micro", "tables=/proc/tables")
    assert status == 1
    (line,) = [line for line in of(lines, "folder") if "tables" in line]
    assert line.startswith("fail") and "/proc/tables" in line


def test_documents_that_are_not_there_fail(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    overrides = ["experiment=micro", "data.generator=null", f"data.folder={tmp_path / 'none'}"]
    status, lines = run(capsys, tmp_path, *overrides)
    assert status == 1 and any("data.folder=" in line for line in of(lines, "folder"))


def test_little_memory_is_a_warning(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, lines = run(
        capsys, tmp_path, "experiment=micro", "engine.kv_cache_gb=100000", "allow_unsandboxed=true"
    )
    assert status == 0
    assert of(lines, "memory")[0].startswith("warning") and "kv_cache_gb" in of(lines, "memory")[0]


def test_a_mistake_in_the_configuration_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "experiment=micr"]) == 2
    assert "did you mean 'micro'?" in capsys.readouterr().err
