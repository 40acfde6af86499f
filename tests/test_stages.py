"""The stages: what is wrong with the machine or the cluster is told first, and damaged records are computed again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import stages
from pipeline.config.schema import Config, Device, EngineConfig, Launcher, LauncherConfig
from pipeline.engine import environment
from pipeline.errors import UserError
from pipeline.evaluate import cluster, runner
from pipeline.records import cell_folder, is_done
from tests import synthetic


def fails(message: str) -> Any:
    def fail(*_: Any) -> None:
        raise UserError(message)

    return fail


@pytest.mark.parametrize("kind", Launcher)
def test_a_damaged_record_is_set_aside_before_its_cell_is_evaluated(
    kind: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: Any) -> str:
        return synthetic.write_cell(tmp_path, {"alpha": 1.0}, synthetic.samples([True], {}))

    for module in (cluster, runner):
        monkeypatch.setattr(module, "evaluate", write)
    key = write()
    (cell_folder(tmp_path, key) / "samples.jsonl").write_text("")
    named = SimpleNamespace(label="Baseline", name="gsm8k")
    cell = SimpleNamespace(key=key, condition=named, benchmark=named)
    config = Config(launcher=LauncherConfig(kind=kind))
    plan: Any = SimpleNamespace(config=config, results=tmp_path, missing=lambda: [cell])
    lines: list[str] = []
    stages.evaluate(plan, lines.append)
    assert is_done(tmp_path, key), "what was computed has been dropped"
    assert ["a damaged record of Baseline · gsm8k was moved to" in line for line in lines] == [True]


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    """A run on a cluster, whose first download fails."""
    monkeypatch.setattr(stages, "prepare", fails("downloaded"))
    launcher = LauncherConfig(kind=Launcher.ray, address=address)
    config = Config(
        name="x", results=str(tmp_path), launcher=launcher, engine=EngineConfig(device=Device.gpu)
    )
    stages.run(config, lambda line: None)


def test_a_cluster_on_a_machine_without_a_gpu_is_refused_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "check_device", fails("no GPU on this machine"))
    with pytest.raises(UserError, match="^no GPU on this machine"):
        run(tmp_path, monkeypatch, None)


def test_a_cluster_elsewhere_needs_no_gpu_on_this_machine_and_is_reached_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "check_device", fails("no GPU on this machine"))
    monkeypatch.setattr(cluster, "probe", lambda launcher: None)
    monkeypatch.setattr(cluster, "connect", fails("no GPU on the cluster"))
    with pytest.raises(UserError, match="^no GPU on the cluster"):
        run(tmp_path, monkeypatch, "auto")


def test_ray_that_is_not_installed_is_told_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "check_device", lambda device: None)
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="^launcher=ray: Ray is not installed"):
        run(tmp_path, monkeypatch, None)
