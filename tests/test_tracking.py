"""W&B runs, read back as W&B's own records."""

import hashlib
import json
import subprocess
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline import stages
from pipeline.config.compose import changed, compose
from pipeline.config.schema import Config, Stage, Tracking
from pipeline.errors import UserError
from pipeline.manifest import Manifest, read_manifest
from pipeline.tracking import logger, server
from pipeline.tracking.track import track as log_to_wandb
from tests import synthetic

CONDITIONS = ("baseline", "vector", "random-s0", "alpha=-0.5", "alpha=0.0", "alpha=0.5")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A finished run of one family, on a machine where no W&B key is known."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return finished(tmp_path)


def finished(root: Path) -> Config:
    """A vector and a record for every cell of a few conditions, and what was rendered."""
    results, out = root / "results", root / "tables" / "synthetic"
    synthetic.write_run(
        results,
        families={
            "micro": synthetic.family(
                "micro", published_size="1.5B", geometry=synthetic.write_geometry(results)
            )
        },
        conditions={name: synthetic.CONDITIONS[name] for name in CONDITIONS},
        benchmarks={name: synthetic.BENCHMARKS[name] for name in ("gsm8k", "gsm8k@larger_numbers")},
        documents=30,
        engine={"dtype": "float32"},
    )
    (results / "vectors" / "v" / "vector.safetensors").write_bytes(b"any bytes")
    out.mkdir(parents=True)
    (out / "main.md").write_text("| a | b |")
    return compose(["name=synthetic", f"results={results}", f"tables={root / 'tables'}"])


def tracked(config: Config, **values: Any) -> Config:
    """The configuration with other values of `tracking`."""
    return changed(config, tracking=replace(config.tracking, **values))


def track(config: Config) -> list[str]:
    lines: list[str] = []
    log_to_wandb(config, manifest(config), lines.append)
    return lines


def manifest(config: Config) -> Manifest:
    return read_manifest(Path(config.results) / "runs" / "synthetic.json")


def records(path: Path) -> list[dict[str, Any]]:
    """The records of a .wandb file by W&B's own reader: what `wandb leet inspect --json` starts."""
    from wandb.util import get_core_path

    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", path]
    read = subprocess.run([*command, path.parent.parent], check=True, capture_output=True, text=True)
    return [json.loads(line) for line in read.stdout.split("\n")[:-1]]


def logged(config: Config, project: str = "reasoning-vectors") -> dict[str, dict[str, Any]]:
    """{run name: {"id", "group", "type", "config", "history", "steps", "artifacts"}} of a project's offline runs.

    The project is that of the default entity, or `<entity>/<project>`.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(config.results).glob("wandb/offline-run-*/run-*.wandb")):
        entry: dict[str, Any] = {"history": {}, "steps": [], "artifacts": []}
        for record in records(path):
            if record["type"] == "run":
                run = record["run"]
                entry |= {"name": run["display_name"], "id": run["run_id"]}
                entry["project"] = "/".join([*filter(None, [run.get("entity")]), run["project"]])
                entry |= {"group": run["run_group"], "type": run["job_type"]}
                entry["config"] = run["config"]["update"]
            elif record["type"] == "history":
                step = record["history"]["item"]
                entry["steps"].append(step)
                entry["history"] |= step
            elif record["type"] == "artifact" and record["artifact"]["type"] == "vector":  # tables are too
                entry["artifacts"].append(record["artifact"])
        if entry["project"] == project:
            assert entry["name"] not in found
            found[entry["name"]] = entry
    return found


def test_every_condition_is_a_run_of_its_experiment_and_target(config: Config) -> None:
    lines = track(config)
    found, planned = logged(config), manifest(config)
    labels = [planned.conditions[name].label for name in CONDITIONS]
    assert set(found) == {f"micro {label}" for label in labels} | {"summary"}
    groups = {name: run["group"] for name, run in found.items()}
    assert groups.pop("summary") == "synthetic/summary" and set(groups.values()) == {"synthetic/micro"}
    vector = found["micro +Vector"]
    assert (vector["config"]["alpha"], vector["config"]["condition"]) == (1.0, "vector")
    cells = {c.benchmark: c.key for c in planned.cells if c.condition == "vector"}
    assert vector["config"]["keys"] == cells and len(cells) == 2
    assert "offline" in lines[-1] and "wandb sync" in lines[-1]


def test_a_run_has_scores_tokens_throughput_and_samples_by_benchmark(config: Config) -> None:
    track(config)
    history = logged(config)["micro +Vector"]["history"]
    for name in ("gsm8k", "gsm8k/larger_numbers"):
        assert 0 < history[f"{name}/score"] < 1 and history[f"{name}/n"] == 30
        tokens = history[f"{name}/generated_tokens"]
        assert tokens > 0 and history[f"{name}/tokens_per_second"] == tokens / history[f"{name}/seconds"]
        assert history[f"{name}/metrics/exact_match,none"] == history[f"{name}/score"]
        samples = f"{name}/samples"
        assert (history[f"{samples}._type"], history[f"{samples}.nrows"]) == ("table-file", logger.SAMPLES)


def test_the_vector_is_an_artifact_that_refers_to_its_file_by_checksum(config: Config) -> None:
    track(config)
    found, file = logged(config), Path(config.results) / "vectors" / "v" / "vector.safetensors"
    md5 = b64encode(hashlib.md5(file.read_bytes()).digest()).decode()
    for name in ("micro +Vector", "micro +Random (seed 0)", "micro α = −0.5"):
        (artifact,) = found[name]["artifacts"]
        (entry,) = artifact["manifest"]["contents"]
        assert (entry["ref"], entry["digest"]) == (file.resolve().as_uri(), md5) and "local_path" not in entry
        assert json.loads(artifact["metadata"])["key"] == "v"
        history = found[name]["history"]
        assert (history["geometry/norm"], history["geometry/sparsity"]) == (2.0, 0.8)
        assert (history["geometry/modules.nrows"], history["geometry/layers.nrows"]) == (2, 3)
    for name in ("micro Baseline", "micro α = 0"):
        assert not found[name]["artifacts"] and "geometry/norm" not in found[name]["history"]


def test_a_run_has_the_geometry_of_its_own_target(config: Config) -> None:
    own = Path(config.results) / "vectors" / "v" / "geometry-t.json"
    other = json.loads(own.read_text())
    other["total"]["relative_norm"] = 7.0
    own.with_name("geometry-a.json").write_text(json.dumps(other))
    track(config)
    run = logged(config)["micro +Vector"]
    assert run["history"]["geometry/relative_norm"] == 2.0 / 50
    assert "relative_norm" not in json.loads(run["artifacts"][0]["metadata"]), "it is not the vector's alone"


def test_the_summary_has_the_curve_over_alpha_the_comparisons_and_the_tables(config: Config) -> None:
    track(config)
    summary = logged(config)["summary"]
    curve = [(step["alpha"], step["sweep/micro/gsm8k"]) for step in summary["steps"] if "alpha" in step]
    assert [alpha for alpha, _ in curve] == [-0.5, 0.0, 0.5, 1.0]
    assert curve == sorted(curve, key=lambda point: point[1]), "the skill of these records grows with α"
    history = summary["history"]
    assert history["gain/micro/gsm8k/vector/published"] == 2.6  # paper_tables/published.yaml
    assert history["gain/micro/gsm8k/vector/ours"] == pytest.approx(
        history["score/micro/gsm8k/vector"] - history["score/micro/gsm8k/baseline"]
    )
    assert {"score/micro/gsm8k/random-s0", "robustness/micro/gsm8k@larger_numbers/vector"} <= history.keys()
    assert history["share/micro/gsm8k/vector/cut"] == 0 == history["share/micro/gsm8k/vector/unreadable"]
    assert history["tables/main._type"] == "html-file" and history["alpha_sweep._type"] == "table-file"


def test_logging_again_adds_nothing(config: Config) -> None:
    track(config)
    before = sorted(Path(config.results).rglob("*.wandb"))
    assert track(config) == [] and sorted(Path(config.results).rglob("*.wandb")) == before


def test_ids_come_from_the_cells(config: Config, tmp_path: Path) -> None:
    other = finished(tmp_path / "again")
    ids = []
    for one in (config, other):
        track(one)
        ids.append({name: run["id"] for name, run in logged(one).items()})
    assert ids[0] == ids[1] and len(set(ids[0].values())) == len(ids[0])


def test_an_incomplete_condition_is_logged_when_it_is_whole_and_the_summary_stays_one_run(
    config: Config, tmp_path: Path
) -> None:
    moved = []
    for cell in manifest(config).cells:
        if cell.condition == "vector" and cell.benchmark == "gsm8k":
            record = Path(config.results) / "cells" / cell.key / "record.json"
            moved.append((record, record.rename(tmp_path / "record.json")))
    track(config)
    partial = logged(config)
    assert "micro +Vector" not in partial and {"micro Baseline", "summary"} <= partial.keys()
    for record, away in moved:
        away.rename(record)
    track(config)
    whole = logged(config)  # no name is there twice
    assert whole["summary"]["id"] == partial["summary"]["id"] and "micro +Vector" in whole
    place = "score/micro/gsm8k/vector"
    assert place in whole["summary"]["history"] and place not in partial["summary"]["history"]


def test_another_rendering_reaches_the_summary_alone(config: Config) -> None:
    track(config)
    before = logged(config)
    (Path(config.tables) / "synthetic" / "other.md").write_text("| c | d |")
    (line,) = track(config)
    after = logged(config)
    assert "1 runs logged" in line and after.keys() == before.keys()
    assert after["summary"]["id"] == before["summary"]["id"]
    assert "tables/other._type" in after["summary"]["history"].keys() - before["summary"]["history"].keys()


@pytest.mark.parametrize(
    ("what", "place"),
    [("project", "other"), ("entity", "other/reasoning-vectors")],
    ids=["project", "entity"],
)
def test_another_project_gets_all_runs_and_the_first_keeps_its_own(
    what: str, place: str, config: Config
) -> None:
    track(config)
    other = tracked(config, **{what: "other"})
    track(other)
    assert len(logged(config)) == len(logged(config, place)) == len(CONDITIONS) + 1
    assert track(other) == []


def test_disabled_writes_nothing(config: Config) -> None:
    assert track(tracked(config, mode=Tracking.disabled)) == []
    assert not (Path(config.results) / "wandb").exists()


@pytest.mark.parametrize("name", ["disabled", "offline", "dryrun", "online", "", "garbage"])
def test_auto_is_what_the_environment_says(
    name: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", name)
    expected = {"disabled": "disabled", "online": "online", "": "online"}
    assert server.mode(config) == expected.get(name, "offline")
    online = tracked(config, mode=Tracking.online)
    assert server.mode(online) == "online", "what the configuration says comes first"


def test_online_without_a_key_is_refused_before_anything_is_done(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    monkeypatch.setattr(stages, "_run", lambda *a: done.append(a))
    online = tracked(config, mode=Tracking.online)
    with pytest.raises(UserError, match="wandb login"):
        stages.run(online)
    assert not done
    stages.run(changed(online, stages=[Stage.extract]))
    assert done, "who does not log needs no key"


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("WANDB_BASE_URL", "wandb.mycorp.com", "not uploaded (wandb.mycorp.com"),
        ("WANDB_MODE", "garbage", "WANDB_MODE=garbage: expected one of online"),
    ],
)
def test_an_address_or_mode_that_is_none_costs_one_line_and_loses_nothing(
    variable: str, value: str, told: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv(variable, value)
    assert told in track(config)[0]
    assert len(logged(config)) == len(CONDITIONS) + 1


def test_a_setting_that_wandb_refuses_costs_one_line(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_CONSOLE", "garbage")
    (line,) = track(config)
    assert "nothing more is logged" in line and "console" in line and "\n" not in line
    monkeypatch.delenv("WANDB_CONSOLE")
    track(config)
    assert len(logged(config)) == len(CONDITIONS) + 1


@pytest.fixture
def hanging() -> Iterator[Callable[[str], str]]:
    """Starts a server that never answers `POST`, or nothing at all, or that knows no key; returns its address."""
    ended, servers = threading.Event(), []

    class Handler(BaseHTTPRequestHandler):
        silent: tuple[str, ...] = ()
        status = 200

        def answer(self) -> None:
            if self.command in self.silent:
                ended.wait()
                return
            self.send_response(self.status if self.command == "POST" else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    def start(what: str) -> str:
        silent = {"POST": ("POST",), "all": ("GET", "POST"), "key": ()}[what]
        kind = type("Silent", (Handler,), {"silent": silent, "status": 401 if what == "key" else 200})
        started = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        threading.Thread(target=started.serve_forever, daemon=True).start()
        servers.append(started)
        return f"http://127.0.0.1:{started.server_port}"

    yield start
    ended.set()
    for started in servers:
        started.shutdown()
        started.server_close()


@pytest.mark.parametrize("behaviour", ["refuses", "hangs", "hangs when data come", "knows no such key"])
def test_a_server_that_takes_nothing_costs_one_line_and_loses_nothing(
    behaviour: str, config: Config, hanging: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.ANSWER_WITHIN + server.UPLOAD_WITHIN <= 15, "so long a run is held up"
    monkeypatch.setattr(server, "ANSWER_WITHIN", 0.5)
    monkeypatch.setattr(server, "UPLOAD_WITHIN", 2.0)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    modes = {"hangs": "all", "hangs when data come": "POST", "knows no such key": "key"}
    address = "http://127.0.0.1:9" if behaviour == "refuses" else hanging(modes[behaviour])
    monkeypatch.setenv("WANDB_BASE_URL", address)
    (line,) = track(config)
    assert "not uploaded" in line and "wandb sync" in line and "0" * 40 not in line
    assert len(logged(config)) == len(CONDITIONS) + 1
    before = sorted(Path(config.results).rglob("*.wandb"))
    (again,) = track(config)
    assert "not uploaded" in again and sorted(Path(config.results).rglob("*.wandb")) == before


def test_what_has_been_uploaded_is_left_alone(
    config: Config, hanging: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's command is played by one that leaves its marks: no server of W&B's can be had here."""
    command = tmp_path / "bin" / "wandb"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\nshift 2\nfor run; do echo "$run" >> {tmp_path}/uploaded; touch "$run/run.wandb.synced"; done\n'
    )
    command.chmod(0o755)
    monkeypatch.setattr(server.sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("WANDB_BASE_URL", hanging("POST"))
    track(config)  # without a key
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert track(config) == [f"W&B: {len(CONDITIONS) + 1} runs logged online"]
    assert len((tmp_path / "uploaded").read_text().splitlines()) == len(CONDITIONS) + 1
    assert track(config) == []
