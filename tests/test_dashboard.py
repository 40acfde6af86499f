"""The W&B workspace: what would be sent to the server, and that its panels show what is logged."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.__main__ import main
from pipeline.config.schema import Config
from pipeline.tracking import dashboard, server
from tests.test_tracking import config as config
from tests.test_tracking import logged, track, tracked

pytest.importorskip("wandb_workspaces")


@pytest.fixture
def panels(config: Config, capsys: pytest.CaptureFixture[str]) -> dict[str, list[dict[str, Any]]]:
    """{section: its panels} of what a dry run prints."""
    out = Path(config.tables) / "synthetic"
    Image.new("RGB", (2, 2)).save(out / "alpha_sweep.png")
    own = [f"results={config.results}", f"tables={config.tables}", "name=synthetic", "dry_run=true"]
    assert main(["dashboard", "experiment=paper", *own]) == 0
    sent = json.loads(capsys.readouterr().out)
    bank = sent["section"]["panelBankConfig"]["sections"]
    (runs,) = sent["section"]["runSets"]
    (chosen,) = runs["filters"]["filters"]
    assert (chosen["key"]["name"], chosen["value"]) == ("experiment", "synthetic")
    return {section["name"].split(" (")[0]: section["panels"] for section in bank}


def metrics(panel: dict[str, Any]) -> list[str]:
    return list(panel["config"].get("metrics") or panel["config"].get("mediaKeys"))


def test_the_panels_show_what_a_reader_of_the_paper_looks_for(
    panels: dict[str, list[dict[str, Any]]],
) -> None:
    assert list(panels) == [
        "Accuracy against α",
        "Ours beside published",
        "Robustness",
        "Controls",
        "Unreadable and cut answers",
        "Figures",
    ]
    (curve,) = panels["Accuracy against α"]
    assert (curve["viewType"], curve["config"]["xAxis"]) == ("Run History Line Plot", "alpha")
    (beside,) = panels["Ours beside published"]
    assert {name.rsplit("/")[-1] for name in metrics(beside)} == {"ours", "published"}
    (controls,) = panels["Controls"]
    assert {name.rsplit("/")[-1] for name in metrics(controls)} == {"baseline", "vector", "random-s0"}


def test_every_name_in_a_panel_is_one_that_is_logged(
    config: Config, panels: dict[str, list[dict[str, Any]]]
) -> None:
    track(config)
    history = logged(config)["summary"]["history"]
    names = {name for found in panels.values() for panel in found for name in metrics(panel)}
    assert len(names) >= 8
    for name in {*names, "alpha"}:
        assert name in history or f"{name}._type" in history, name


def test_without_records_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "experiment=micro", f"results={tmp_path}", "dry_run=true"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "no such manifest" in told


def test_a_server_that_refuses_is_one_line(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    own = [f"results={config.results}", "name=synthetic", "tracking.entity=me"]
    assert main(["dashboard", "experiment=paper", *own]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "dry_run=true" in told


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """{address: view} of a server that is played by this dictionary."""
    from wandb_workspaces.workspaces import Workspace

    kept: dict[str, Any] = {}

    def save(self: Any) -> None:
        self._internal_name = self._internal_name or f"nw-{len(kept)}-v"
        kept[self.url] = self

    def load(url: str) -> Any:
        if url not in kept:
            raise ValueError("Workspace not found")
        return kept[url]

    address = property(lambda self: f"https://server/{self.entity}/{self.project}?nw={self._internal_name}")
    monkeypatch.setattr(server, "silence", lambda: "")
    monkeypatch.setattr(Workspace, "url", address)
    monkeypatch.setattr(Workspace, "save", save)
    monkeypatch.setattr(Workspace, "from_url", load)
    return kept


def test_the_same_view_is_made_once_and_each_project_has_its_own(
    config: Config, views: dict[str, Any]
) -> None:
    mine = tracked(config, entity="me")
    first = dashboard.show(mine, {})
    assert dashboard.show(mine, {}) == first and list(views) == [first]
    assert "/me/other?" in dashboard.show(tracked(config, entity="me", project="other"), {})
    assert "/you/other?" in dashboard.show(tracked(config, entity="you", project="other"), {})
    assert len(views) == 3


def test_a_view_that_was_deleted_on_the_server_is_made_anew(config: Config, views: dict[str, Any]) -> None:
    mine = tracked(config, entity="me")
    dashboard.show(mine, {})
    views.clear()
    assert dashboard.show(mine, {}) in views
