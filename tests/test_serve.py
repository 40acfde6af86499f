"""The line that `apply` ends with serves the steered checkpoint, typed as it is told."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pipeline.commands.apply import serving
from pipeline.config.compose import compose
from pipeline.files import ROOT
from tests.test_ask import HUGO


def told(folder: Path) -> str:
    """The command that `apply` tells to type next."""
    command = [sys.executable, "-m", "pipeline", "apply", "experiment=micro", f"out={folder / 'a b'}"]
    ran = subprocess.run([*command, f"results={folder}"], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout.rstrip().splitlines()[-1].removeprefix("to serve it: ")


def test_the_command_names_the_vllm_of_this_environment_and_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    *variables, program, verb, folder = shlex.split(serving(compose(["experiment=micro"]), tmp_path / "a b"))
    assert (verb, folder, variables) == ("serve", str(tmp_path / "a b"), ["VLLM_CPU_KVCACHE_SPACE=1"])
    assert Path(program) == Path(sys.executable).parent / "vllm"
    (tmp_path / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "vllm").chmod(0o755)  # the environment is active
    assert serving(compose(["experiment=paper"]), Path("out")) == "vllm serve out"


@pytest.mark.slow
@pytest.mark.engine
def test_what_apply_tells_to_type_answers_as_the_steered_model_does(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (tmp_path / "log").open("wb")
    served = subprocess.Popen(
        f"exec env {told(tmp_path)} --host 127.0.0.1 --port {port} --dtype float32",
        shell=True,
        stdout=log,
        stderr=log,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        turn = {
            "model": str(tmp_path / "a b"),
            "messages": [{"role": "user", "content": HUGO}],
            "temperature": 0,
        }
        answer = asked(f"http://127.0.0.1:{port}", turn, served)
        assert answer["choices"][0]["message"]["content"].endswith("#### 63")
    finally:
        served.terminate()
        served.wait(timeout=60)


def asked(
    address: str, turn: dict[str, object], server: subprocess.Popen[bytes]
) -> dict[str, list[dict[str, dict[str, str]]]]:
    """The answer of the server once it has started."""
    body = json.dumps(turn).encode()
    while server.poll() is None:
        request = urllib.request.Request(
            f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server has ended")


LM_EVAL = """task: hugo
dataset_path: json
dataset_kwargs: {{data_files: {{test: {documents}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [], max_gen_toks: 64, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list: [{{name: last, filter: [{{function: regex, regex_pattern: "#### ([0-9]+)"}}, {{function: take_first}}]}}]
"""


@pytest.mark.slow
@pytest.mark.engine
def test_the_lm_eval_command_of_this_environment_asks_a_steered_model_through_vllm(tmp_path: Path) -> None:
    model = shlex.split(told(tmp_path))[-1]
    documents = tmp_path / "test.jsonl"
    documents.write_text(json.dumps({"question": HUGO, "answer": "63"}) + "\n")
    (tmp_path / "hugo.yaml").write_text(LM_EVAL.format(documents=documents))
    program = str(Path(sys.executable).parent / "lm_eval")
    options = f"pretrained={model},max_model_len=512,dtype=float32,enforce_eager=True"
    command = [
        program,
        "--model",
        "vllm",
        "--model_args",
        options,
        "--tasks",
        "hugo",
        "--apply_chat_template",
    ]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HOME": str(tmp_path / "hub")}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (written,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(written.read_text())["results"]["hugo"]["exact_match,last"] == 1.0
