"""Steered checkpoints written from the command line, and pushed by the hub's own client to a server on this machine."""

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import lock
from pipeline.__main__ import main
from pipeline.config.compose import compose
from pipeline.files import ROOT
from pipeline.stages import extract, prepare
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.steer import Term, steered_tensors
from tests import synthetic
from tests.hub import environment
from tests.test_two_at_once import another

OVERRIDES = ["experiment=micro", "tasks=[gsm8k]", "benchmarks.gsm8k.variants=[]", "limit=40"]
OVERRIDES += ["tracking=disabled"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector, and records of the target (half of the answers are right) and of +Vector (three quarters)."""
    results = tmp_path_factory.mktemp("publish") / "results"
    plan = prepare(compose([*OVERRIDES, f"results={results}"]))
    extract(plan, lambda line: None)
    for cell in plan.unique():
        right = {"baseline": [True, False] * 20, "vector": [True, True, True, False] * 10}
        if cell.condition.name in right:
            samples = synthetic.samples(right[cell.condition.name])
            for i, sample in enumerate(
                samples
            ):  # in words: prompts that differ in numbers alone are one template
                sample["prompt"] = f"What is {chr(97 + i // 10)}{chr(97 + i % 10)}?"
            synthetic.write_cell(results, cell.inputs, samples)
    return results


def arguments(results: Path, *own: str) -> list[str]:
    return ["apply", *OVERRIDES, f"results={results}", *own]


def push(results: Path, out: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *arguments(results, "push=me/steered", f"out={out}")]
    env = environment(results / "cache", HF_ENDPOINT=endpoint, HF_TOKEN="hf_none")
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)


class Uploads:
    """What the hub's client sends: repositories, and their files as they are after the commits."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.stored: dict[str, bytes] = {}  # by sha256
        uploads = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.reply(uploads.post(self.path, body))

            def do_PUT(self) -> None:
                name = self.path.rsplit("/", 1)[1]
                uploads.stored[name] = self.rfile.read(int(self.headers["Content-Length"]))
                self.reply({})

            def reply(self, value: object) -> None:
                content = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def post(self, path: str, body: bytes) -> object:
        """The answer to one request; weights go to the large file storage, and all else into the commit."""
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            self.files.setdefault(name, {})
            return {"url": f"{self.endpoint}/{name}", "name": name, "id": name}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "preupload" in parts:
            modes = [(f["path"], f["path"].endswith(".safetensors")) for f in json.loads(body)["files"]]
            files = [
                {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
                for name, large in modes
            ]
            return {"files": files}
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            return {
                "transfer": "basic",
                "objects": [
                    o | {"actions": {"upload": {"href": f"{self.endpoint}/store/{o['oid']}", "header": {}}}}
                    for o in objects
                ],
            }
        name = "/".join(parts[2:4])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[name][value["path"]] = self.stored[value["oid"]]
        url = f"{self.endpoint}/{name}/commit/{'c' * 40}"
        return {"success": True, "commitOid": "c" * 40, "commitUrl": url, "hookOutput": ""}


@pytest.fixture
def uploads() -> Iterator[Uploads]:
    found = Uploads()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_apply_writes_the_steered_checkpoint_with_what_was_measured(results: Path, tmp_path: Path) -> None:
    assert main(arguments(results, "alpha=1", f"out={tmp_path / 'steered'}")) == 0
    written = Checkpoint.open(str(tmp_path / "steered"))
    (vector,) = results.glob("vectors/*/vector.safetensors")
    for name, tensor in steered_tensors(str(ROOT / "models/micro/target"), [Term(str(vector), 1.0)]):
        assert written.read(name).equal(tensor), name
    card = (tmp_path / "steered" / "README.md").read_text()
    (row,) = (line for line in card.splitlines() if line.startswith("| Arithmetic"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:3] == ["plain", "40"] and cells[3].startswith("50.0 ±") and cells[4].startswith("75.0 ±")
    assert cells[5].startswith("+25.0 [") and "Evaluated and made by" in card


def test_what_was_not_measured_is_said(results: Path, tmp_path: Path) -> None:
    assert main(arguments(results, "alpha=0.125", f"out={tmp_path / 'steered'}")) == 0
    assert "Nothing yet at α = 0.125" in (tmp_path / "steered" / "README.md").read_text()


def test_a_dry_run_shows_cards_and_files_and_writes_nothing(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["dry_run=true", "push=me/steered", f"out={tmp_path / 'steered'}"]
    assert main(arguments(results, *own)) == 0
    shown = capsys.readouterr().out
    size = (ROOT / "models/micro/target/model.safetensors").stat().st_size
    assert f"{size:,} bytes  model.safetensors" in shown and "+25.0 [" in shown
    assert "─── me/steered-vector" in shown and "bytes  vector.safetensors" in shown
    assert not (tmp_path / "steered").exists()


@pytest.mark.parametrize("name", ["steered", "me/steered/more", "me/", "me/a b"])
def test_a_name_that_the_hub_would_refuse_is_refused_before_anything_is_done(
    name: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(results, f"push={name}")) == 2
    said = capsys.readouterr()
    assert f"push={name}: expected a repository of the hub" in said.err and not said.out


def test_checkpoint_and_vector_are_pushed_whole(results: Path, tmp_path: Path, uploads: Uploads) -> None:
    out = tmp_path / "steered"
    ran = push(results, out, uploads.endpoint)
    assert ran.returncode == 0, ran.stderr
    assert uploads.files["me/steered"] == {path.name: path.read_bytes() for path in out.iterdir()}
    card = uploads.files["me/steered"]["README.md"].decode()
    assert "+25.0 [" in card and "python -m pipeline apply experiment=micro" in card
    pushed = uploads.files["me/steered-vector"]
    (vector,) = results.glob("vectors/*/vector.safetensors")
    assert pushed["vector.safetensors"] == vector.read_bytes()
    assert "‖v‖" in pushed["README.md"].decode()


def test_a_card_tells_no_secret_and_no_folder_of_this_machine(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["push=me/steered", "dry_run=true", "tracking.entity=wandb-key-0123"]
    monkeypatch.setenv("WANDB_API_KEY", "wandb-key-0123")
    monkeypatch.setattr("sys.argv", ["pipeline", *arguments(results, *own)])
    assert main(arguments(results, *own)) == 0
    shown = capsys.readouterr().out
    assert "v = θ(grpo) − θ(sft)" in shown and str(ROOT) not in shown
    assert "tracking.entity=***" in shown and "wandb-key-0123" not in shown


def test_apply_waits_for_a_run_that_holds_the_results(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with another(results) as other:
        monkeypatch.setattr(lock.time, "sleep", lambda seconds: other.communicate("x"))
        assert main(arguments(results, f"out={tmp_path / 'steered'}")) == 0
    assert "waiting for the run 'other'" in capsys.readouterr().out


def test_a_hub_that_refuses_is_one_line_and_the_checkpoint_stays(results: Path, tmp_path: Path) -> None:
    ran = push(results, tmp_path / "steered", "http://127.0.0.1:9")
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and "was not pushed" in ran.stderr, ran.stderr
    assert (tmp_path / "steered" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("family=micr", "did you mean 'micro'?"),
        ("alpha=much", "alpha=much: expected a finite number"),
        ("alpha=nan", "alpha=nan: expected a finite number"),
        ("dry_run=yes", "dry_run=yes: expected true or false"),
        ("dry_run", "override not understood (expected key=value)"),
    ],
)
def test_a_mistake_is_one_line(
    argument: str, message: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(results, argument)) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and message in told
