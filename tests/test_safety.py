"""Secrets stay where they are, pickles stay shut, a model's own code is never run, and a page runs nothing.

What cannot climb out of its folder (names, ids, files of the configuration) is in tests/test_bad_input.py; what a
candidate program cannot do, in tests/test_sandbox.py.
"""

import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals import code, sandbox
from pipeline.__main__ import main
from pipeline.analysis.results import read_results
from pipeline.errors import UserError
from pipeline.evaluate.provenance import without_secrets
from pipeline.evaluate.tasks import load_tokenizer
from pipeline.files import ROOT
from pipeline.records import write_record
from pipeline.report.page import document as report
from pipeline.report.tables.build import build
from tests import synthetic, tiny
from tests.browser import BINARY, Browser
from tests.test_bad_input import Place, place, sound  # noqa: F401
from tests.test_tables import manifest

CANARIES = {
    name: f"canary{number}x{'0123456789abcdef' * 2}"
    for number, name in enumerate(
        (
            "WANDB_API_KEY",
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HUGGINGFACE_TOKEN",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "OPENAI_API_KEY",
            "GITHUB_TOKEN",
            "DATABASE_PASSWORD",
        )
    )
}
ON_THE_COMMAND_LINE = "canaryonthecommandline"


# Secrets


@pytest.mark.skipif(sandbox.probe() is sandbox.Level.none, reason="nothing isolates programs here")
def test_a_candidate_that_shouts_its_environment_shouts_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    document = {
        "prompt": "def one():\n",
        "entry_point": "one",
        "test": "def check(candidate):\n    raise ValueError(candidate())\n",
    }
    answer = (
        "    import os\n"
        "    found = [str(dict(os.environ))]\n"
        f"    for path in ('/proc/self/environ', '/proc/1/environ', '{Path.home()}/.netrc', '{Path.home()}/.cache'):\n"
        "        try:\n            found.append(open(path).read())\n"
        "        except OSError as e:\n            found.append(str(e))\n"
        "    return ' '.join(found)\n"
    )
    ((verdict,),) = code.humaneval_verdicts([[answer]], [document])
    assert verdict.startswith("failed: ") and "PYTHONHASHSEED" in verdict
    assert "canary" not in verdict


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("python -m pipeline x=secretsecret", "python -m pipeline x=***"),
        ("target.id=hf_abcdefghijklmnopqrst", "target.id=***"),
        ("launcher.address=me:pass@host:1", "launcher.address=***@host:1"),
        ("id=https://me:pass@host/x", "id=https://***@host/x"),
        ("conditions.vector.alpha=0.5 name=micro", "conditions.vector.alpha=0.5 name=micro"),
        ("+benchmark@benchmarks.arc=arc", "+benchmark@benchmarks.arc=arc"),
    ],
)
def test_a_command_is_recorded_without_its_secrets(
    text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secretsecret")
    assert without_secrets(text) == shown


def everything(root: Path) -> dict[str, bytes]:
    """The bytes of every file under `root`, those inside archives too."""
    found = {}
    for path in root.rglob("*"):
        if not path.is_file():
            continue
        found[str(path)] = raw = path.read_bytes()
        if path.suffix == ".gz":
            found[f"{path}!"] = gzip.decompress(raw)
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found |= {f"{path}!{name}": archive.read(name) for name in archive.namelist()}
    return found


def run_with_canaries(tmp_path: Path, *overrides: str) -> dict[str, bytes]:
    """Run the pipeline with canaries in the environment and the command; what was written, by file."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pipeline", "experiment=micro", "tracking.mode=offline"),
            f"families.micro.donors=me:{ON_THE_COMMAND_LINE}@host:1",
            *(f"results={tmp_path / 'results'}", f"tables={tmp_path / 'tables'}", *overrides),
        ],
        capture_output=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        env=os.environ | CANARIES | {"HOME": str(tmp_path / "home"), "TMPDIR": str(folder(tmp_path / "tmp"))},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return everything(tmp_path) | {"stdout": ran.stdout, "stderr": ran.stderr}


def assert_no_canary(written: dict[str, bytes], *parts: str) -> None:
    names = " ".join(written)
    for part in parts:
        assert part in names, part
    for name, raw in written.items():
        for secret in (*CANARIES.values(), ON_THE_COMMAND_LINE):
            assert secret.encode() not in raw, name


def test_no_secret_is_in_what_rendering_and_tracking_write(tmp_path: Path) -> None:
    few = {name: synthetic.CONDITIONS[name] for name in ("baseline", "vector")}
    numerics = {"device": "cpu", "dtype": "float32"}
    synthetic.write_run(
        tmp_path / "results", experiment="micro", conditions=few, documents=5, engine=numerics
    )
    written = run_with_canaries(tmp_path, "stages=[render,track]")
    assert_no_canary(written, "offline-run-", ".wandb", "report.html", "main.md")


@pytest.mark.slow
@pytest.mark.engine
def test_no_secret_is_in_anything_that_a_run_writes_and_no_planted_pickle_or_code_runs(
    tmp_path: Path,
) -> None:
    family = Path(shutil.copytree(ROOT / "models" / "micro", tmp_path / "models"))
    marker = tmp_path / "opened"
    for part in ("target", "sft", "grpo"):
        plant(family / part, marker)
    written = run_with_canaries(
        tmp_path,
        *("limit=3", "variant_limit=2", "alpha=[0.5]", "tasks=[gsm8k,humaneval,sciq]"),
        *("conditions.random.seeds=[0]", "conditions.minus_random.seeds=[0]"),
        *(f"families.micro.{part}.id={family / part}" for part in ("target", "sft", "grpo")),
    )
    assert not marker.exists()
    assert_no_canary(
        written, "record.json", "samples.jsonl", "offline-run-", ".wandb", "report.html", "main.md"
    )


def folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


# Pickles and code


class Planted:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


PICKLES = (
    "pytorch_model.bin",
    "model.pt",
    "training_args.bin",
    "optimizer.pth",
    "tokenizer.pkl",
    "consolidated.00.ckpt",
)


def plant(model: Path, marker: Path) -> None:
    """Pickles and Python files beside a sound checkpoint; each of them leaves `marker` when it is opened or run."""
    for name in PICKLES:
        (model / name).write_bytes(pickle.dumps(Planted(marker)))
    own = f"import os\nos.makedirs({str(marker)!r}, exist_ok=True)\n"
    for module in ("configuration_own", "modeling_own", "tokenization_own"):
        (model / f"{module}.py").write_text(own + "class Own: pass\n")
    own_classes = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    config = json.loads((model / "config.json").read_text()) | {"auto_map": own_classes}
    (model / "config.json").write_text(json.dumps(config))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_own.Own", None]}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))


def test_the_planted_pickle_would_leave_its_mark(tmp_path: Path) -> None:
    plant(tiny.write(tmp_path / "model"), tmp_path / "opened")
    pickle.loads((tmp_path / "model" / PICKLES[0]).read_bytes())  # noqa: S301
    assert (tmp_path / "opened").exists()


def test_nothing_up_to_the_engine_opens_a_pickle_or_runs_a_model_s_code(
    place: Place,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marker, opened = place.root / "opened", []
    for part in ("target", "sft", "grpo"):
        plant(place.root / part, marker)
    watching = [True]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and str(arguments[0]).endswith((*PICKLES, "_own.py")):
            opened.append(arguments[0])

    sys.addaudithook(watch)  # it cannot be removed: `watching` ends it
    try:
        with pytest.raises(AssertionError, match="an engine was started"):
            main(place.overrides)
    finally:
        watching.clear()
    assert opened == [] and not marker.exists()


def test_a_tokenizer_of_its_own_is_refused_without_a_question(tmp_path: Path) -> None:
    model = tiny.write(tmp_path / "model")
    plant(model, tmp_path / "opened")
    (model / "tokenizer.json").unlink()
    settings = json.loads((model / "tokenizer_config.json").read_text()) | {"tokenizer_class": "Own"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="its tokenizer cannot be read"):
        load_tokenizer(str(model))
    assert not (tmp_path / "opened").exists()


def test_no_option_turns_a_model_s_code_on() -> None:
    sources = [path.read_text() for folder in ("pipeline", "evals") for path in (ROOT / folder).rglob("*.py")]
    assert not any("trust_remote_code=True" in text or "pickle.load" in text for text in sources)


# The page


@pytest.mark.skipif(BINARY is None, reason="no Chromium on this machine")
def test_whatever_a_record_holds_does_nothing_in_a_browser(tmp_path: Path) -> None:
    attacks = [
        "<script>window.planted = 1</script>",
        "</script><script>window.planted = 2</script>",
        "<img src=x onerror='window.planted = 3'>",
        "<svg/onload=window.planted=4>",
        "\"><iframe srcdoc='<script>parent.planted=5</script>'></iframe>",
        "' onmouseover='window.planted=6' x='",
        "<!--<script>window.planted = 7</script>",
        "javascript:window.planted=8",
        "{{constructor.constructor('window.planted=9')()}}",
        "\\u003cscript\\u003ewindow.planted=10\\u003c/script\\u003e",
        "&lt;script&gt;window.planted=11&lt;/script&gt;",
    ]
    hostile = " ".join(attacks)
    keys = {}
    for name, right in (("baseline", [True, False]), ("vector", [False, True])):
        rows = synthetic.samples(right)
        for row in rows:
            row |= {"output": hostile, "prompt": hostile, "target": hostile, "subtask": hostile}
            row |= {"extracted": {hostile: hostile}, "finish": hostile}
        metrics = {"metric": "exact_match,none", "score": 0.5, "stderr": 0.0, "n": 2}
        metrics |= {"values": {"exact_match,none": 0.5}, "share_not_extracted": 0.0, "share_truncated": 0.0}
        provenance = {"engine": {"device": "cpu", "tensor_parallel_size": 1}, "versions": {hostile: hostile}}
        provenance |= {
            "host": hostile,
            "started": "2026-01-01T00:00:00+00:00",
            "command": hostile,
            "git": hostile,
        }
        provenance |= {"family": {"target": {"id": hostile, "revision": hostile}}, "sandbox": hostile}
        cost = {"seconds": 1.0, "generated_tokens": 5, "prompt_tokens": 5, "requests": 2}
        inputs = {"name": name, "prompt": {"prefix": hostile}, "task": {"names": [hostile]}}
        keys[name, "b"] = write_record(
            tmp_path, inputs, metrics | {"mean_tokens": 3.0}, cost, provenance, rows
        )
    made = manifest(keys, {"b": synthetic.benchmark(hostile)}, label=hostile)
    vector = replace(made.conditions["vector"], label=hostile)
    made = replace(made, conditions={**made.conditions, "vector": vector})
    results = read_results(made, tmp_path)
    page = report.render(results, build(results), [], tmp_path / "out")
    browser = Browser(1280, 900)
    try:
        browser.requested.clear()
        browser.open(page)
        browser.wait_for("document.getElementById('count').textContent !== ''")
        browser.evaluate(
            "document.querySelectorAll('*').forEach(e => e.dispatchEvent(new Event('mouseover')))"
        )
        assert browser.evaluate("window.planted") is None
        assert browser.evaluate("document.querySelectorAll('iframe, img[src=x], svg[onload]').length") == 0
        assert browser.evaluate("document.querySelector('.sides pre').textContent") == hostile
        assert browser.console == []
        assert {url.split(":")[0] for url in browser.requested} <= {"file", "data"}
    finally:
        browser.close()
