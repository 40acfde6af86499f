"""What `doctor` finds on GPUs: an nvidia-smi and a driver's library that a test makes, and all that may be wrong with them."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands import doctor_cuda, doctor_gpu
from pipeline.commands.finding import Finding
from pipeline.config.compose import compose
from pipeline.config.schema import Launcher
from pipeline.engine import environment, gpus
from pipeline.evaluate import launcher
from pipeline.files import ROOT

H200 = "NVIDIA H200, 9.0, 143771, 143000, 580.95.05"
SMI = """#!/bin/sh
[ "$1" = "--query-gpu=name,compute_cap,memory.total,memory.free,driver_version" ] || exit 1
[ "$2" = "--format=csv,noheader,nounits" ] || exit 1
cat <<'END'
{lines}
END
exit {status}
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU, the CUDA build, a driver that fits it, headers and a compiler."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    monkeypatch.setattr(gpus, "DEVICES", tmp_path / "dev")
    monkeypatch.setattr(gpus, "WSL_TOOLS", str(tmp_path / "wsl"))
    monkeypatch.setattr(gpus, "torchs_cuda", lambda: (13, 0))
    monkeypatch.setattr(gpus, "newest_cuda", lambda: (13, 1))
    monkeypatch.setattr(environment, "_vllm_build", lambda: None)
    monkeypatch.setattr(doctor_cuda.sysconfig, "get_path", lambda name: str(tmp_path / name))
    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    smi(tmp_path / "bin", H200)


def smi(folder: Path, *lines: str, status: int = 0) -> None:
    """An nvidia-smi in `folder` that prints these lines."""
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(SMI.format(lines="\n".join(lines), status=status))
    (folder / "nvidia-smi").chmod(0o755)


def look(*overrides: str, weights_gb: float = 15.0) -> list[Finding]:
    config = compose(["experiment=paper", "engine=gpu", *overrides])
    return list(doctor_gpu.gpu(config, weights_gb))


def lacking(*overrides: str, weights_gb: float = 15.0) -> Finding:
    (found,) = [f for f in look(*overrides, weights_gb=weights_gb) if f.level != "ok"]
    return found


def test_a_machine_that_has_everything_is_ok() -> None:
    assert [f"{f.level} {f.what}" for f in look()] == ["ok driver", "ok GPU", "ok compiler"]
    assert "149.9 of 150.8 GB free" in look()[1].text


@pytest.mark.parametrize(
    ("card", "overrides", "weights", "says"),
    [
        ("Tesla V100, 7.0, 32768, 32000, 580.1", ["engine.dtype=float16"], 3.0, "7.5 or higher is needed"),
        ("Tesla T4, 7.5, 15360, 15000, 580.1", [], 3.0, "engine.dtype=float16"),
        ("NVIDIA L4, 8.9, 23034, 12000, 580.1", [], 3.0, "lower that below 0.52"),
        ("NVIDIA L4, 8.9, 23034, 22800, 580.1", [], 28.0, "raise engine.tensor_parallel_size"),
        (
            "NVIDIA L4, 8.9, 23034, 22800, 580.1",
            ["engine.kv_cache_gb=40"],
            3.0,
            "raise engine.tensor_parallel",
        ),
    ],
)
def test_a_card_that_cannot_hold_the_engine_fails_with_its_remedy(
    card: str, overrides: list[str], weights: float, says: str, tmp_path: Path
) -> None:
    smi(tmp_path / "bin", card)
    found = lacking(*overrides, weights_gb=weights)
    assert found.level == "fail" and says in found.text and card.split(",")[0] in found.text


def test_what_is_lacking_on_a_card_is_not_lacking_where_its_remedy_is_taken(tmp_path: Path) -> None:
    smi(tmp_path / "bin", "Tesla T4, 7.5, 15360, 15000, 580.1")
    assert all(f.level == "ok" for f in look("engine.dtype=float16", weights_gb=3.0))
    smi(tmp_path / "bin", *["NVIDIA L4, 8.9, 23034, 22800, 580.1"] * 2)
    assert all(f.level == "ok" for f in look("engine.tensor_parallel_size=2", weights_gb=28.0))


def test_fewer_cards_than_a_group_takes_fail() -> None:
    assert "1 found, engine.tensor_parallel_size=2" in lacking("engine.tensor_parallel_size=2").text


@pytest.mark.parametrize(("lines", "status"), [((H200,), 9), (("No devices were found",), 0)])
def test_an_nvidia_smi_that_fails_is_a_warning(lines: tuple[str, ...], status: int, tmp_path: Path) -> None:
    smi(tmp_path / "bin", *lines, status=status)
    found = lacking()
    assert found.level == "warning" and "check the driver" in found.text


def test_a_name_with_commas_and_an_unknown_capability_are_read(tmp_path: Path) -> None:
    smi(tmp_path / "bin", "Card, the big one, [N/A], 24000, 24000, 580.1")
    (card,) = gpus.query()
    assert card.name == "Card, the big one" and card.capability is None
    assert all(f.level == "ok" for f in look(weights_gb=3.0))


def test_the_gpu_of_wsl2_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "dev" / "nvidia0").unlink()
    assert not gpus.present() and "no GPU" in lacking().text
    (tmp_path / "dev" / "dxg").touch()
    (tmp_path / "bin" / "nvidia-smi").unlink()
    smi(tmp_path / "wsl", H200)
    assert all(f.level == "ok" for f in look())


def test_a_driver_too_old_for_torchs_cuda_fails_and_one_of_the_same_major_version_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpus, "newest_cuda", lambda: (12, 9))
    found = lacking()
    assert found.level == "fail" and "up to 12.9, torch needs 13.0" in found.text
    monkeypatch.setattr(gpus, "torchs_cuda", lambda: (12, 10))
    assert all(f.level == "ok" for f in look())
    monkeypatch.setattr(gpus, "newest_cuda", lambda: None)
    assert lacking().level == "warning"


def test_headers_and_compiler_that_are_absent_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no-such-compiler is not there" in lacking().text
    monkeypatch.setenv("CC", sys.executable)
    (tmp_path / "include" / "Python.h").unlink()
    assert "python3-dev" in lacking().text


@pytest.mark.parametrize(
    "overrides", [["engine=cpu"], ["stages=[render]"], ["launcher.kind=ray", "launcher.address=auto"]]
)
def test_a_run_that_needs_no_gpu_here_asks_for_none(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "dev" / "nvidia0").unlink()
    assert [f.level for f in look(*overrides)] == ["ok"]


def old_driver(folder: Path) -> None:
    """A driver's library for CUDA 12.8."""
    source = "int cuDriverGetVersion(int *version) { *version = 12080; return 0; }"
    (folder / "cuda.c").write_text(source)
    build = ["gcc", "-shared", "-o", str(folder / "libcuda.so.1"), str(folder / "cuda.c")]
    subprocess.run(build, check=True)


def test_a_driver_or_card_that_is_too_old_is_told_before_anything_is_installed(tmp_path: Path) -> None:
    old_driver(tmp_path)
    smi(tmp_path / "bin", "Tesla P100, 6.0, 16384, 16000, 535.1", H200)
    bare = [sys.executable, "-S", "-m", "pipeline.commands.doctor_cuda"]  # the standard library alone
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    asked = subprocess.run(bare, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert asked.returncode == 2 and not asked.stdout
    lines = asked.stderr.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["error", "driver"], ["error", "GPU"]]
    assert "up to 12.8, torch needs 13.0" in lines[0] and "P100" in lines[1]


def test_the_driver_says_which_cuda_it_runs(tmp_path: Path) -> None:
    old_driver(tmp_path)
    ask = [sys.executable, "-c", "from pipeline.engine.gpus import newest_cuda; print(newest_cuda())"]
    for folder, answer in ((tmp_path, "(12, 8)"), (tmp_path / "dev", "None")):
        environment = {"LD_LIBRARY_PATH": str(folder), "PATH": "/usr/bin:/bin"}
        asked = subprocess.run(ask, env=environment, capture_output=True, text=True, check=True)
        assert asked.stdout.strip() == answer


@pytest.mark.parametrize(
    ("line", "version"), [("cuda: Optional[str] = '13.0'", (13, 0)), ("cuda: Optional[str] = None", None)]
)
def test_torchs_cuda_is_read_without_importing_it(
    line: str, version: tuple[int, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "torch" / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip: str = '7.1'\n")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert gpus.torchs_cuda() == version


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 3),
        ("", 0),
        ("1", 1),
        ("0, 2", 2),
        ("2,7,0", 1),
        ("-1", 0),
        ("GPU-8a3f,MIG-11cc", 2),
        ("0,1,2", 3),
    ],
)
def test_the_gpus_that_may_be_used_are_those_that_cuda_would_see(
    visible: str | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(tmp_path / "bin", *[H200] * 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.count() == count


def test_the_doctor_looks_at_the_gpus_that_cuda_would_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = H200.replace("143000", "20000")
    smi(tmp_path / "bin", busy, H200, busy)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert all(f.level == "ok" for f in look())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert "21.0 of 150.8 GB free" in lacking("launcher=local").text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "0 found, engine.tensor_parallel_size=1" in lacking().text and "CUDA_VISIBLE" in lacking().text


def test_without_nvidia_smi_the_devices_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "bin" / "nvidia-smi").unlink()
    (tmp_path / "dev" / "nvidia1").touch()
    (tmp_path / "dev" / "nvidia-uvm").touch()
    assert gpus.count() == 2


@pytest.mark.parametrize(
    ("overrides", "cards", "kind", "says"),
    [
        ([], 8, Launcher.ray, "it has 8 GPUs: 8 workers, one for each; launcher=local runs one engine alone"),
        (["engine.tensor_parallel_size=2"], 8, Launcher.ray, "8 GPUs: 4 workers, one for each group of 2;"),
        (["engine.tensor_parallel_size=2"], 3, Launcher.local, ""),
        ([], 1, Launcher.local, ""),
        (["launcher=local"], 8, Launcher.local, ""),
        (["launcher=ray"], 1, Launcher.ray, ""),
        (["engine=cpu"], 8, Launcher.local, ""),
        (["stages=[extract,render]"], 8, Launcher.local, ""),
    ],
)
def test_several_gpus_are_used_by_a_worker_each_unless_the_user_says_otherwise(
    overrides: list[str],
    cards: int,
    kind: Launcher,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    smi(tmp_path / "bin", *[H200] * cards)
    lines: list[str] = []
    config = compose(["experiment=paper", "engine=gpu", *overrides])
    assert launcher.decided(config, lines.append).launcher.kind is kind
    assert [says in line for line in lines] == [True] * bool(says)
    found = [f for f in look(*overrides) if f.what == "launcher"]
    assert [f"launcher: {f.text}" for f in found] == lines, "the doctor says the same"
    assert all(f.level == "ok" for f in found)


def test_several_gpus_without_ray_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    smi(tmp_path / "bin", H200, H200)
    assert launcher.decided(compose(["experiment=paper"]), lambda line: None).launcher.kind is Launcher.local
    found = lacking()
    assert (found.what, found.level) == ("launcher", "warning") and "one engine on 1 of 2 GPUs" in found.text
