"""What engines print is kept from the terminal, and what ended one is found in it."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.schema import EngineConfig
from pipeline.engine import engine, output
from pipeline.errors import UserError

CORE_FAILED = """\
(EngineCore pid=77) ERROR 11-21 14:19:11 [core.py:880] Traceback (most recent call last):
(EngineCore pid=77) ERROR 11-21 14:19:11 [core.py:880]     raise ValueError(
(EngineCore pid=77) ERROR 11-21 14:19:11 [core.py:880] ValueError: To serve at least one request, 4 GiB KV cache is needed
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def test_what_libraries_and_processes_print_is_captured_and_what_comes_after_is_not(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with output.captured() as log:
        os.write(2, b"Warning: NUMA binding\n")
        print("FutureWarning", file=sys.stderr)
        later = subprocess.Popen(
            [sys.executable, "-c", "input(); import os; os.write(2, b'late\\n')"], stdin=-1
        )
    os.write(2, b"ours\n")
    later.communicate(b"\n")
    assert "Warning: NUMA binding\n" in output.text(log) and "late\n" in output.text(log)
    assert capfd.readouterr().err.removeprefix("FutureWarning\n") == "ours\n"


def test_everything_is_printed_to_those_who_ask_for_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    with output.captured():
        os.write(2, b"Warning: NUMA binding\n")
    assert capfd.readouterr().err == "Warning: NUMA binding\n"


@pytest.mark.parametrize(
    ("printed", "error"),
    [
        (CORE_FAILED, "ValueError: To serve at least one request, 4 GiB KV cache is needed"),
        ("torch.OutOfMemoryError: CUDA out of memory.\n", "OutOfMemoryError: CUDA out of memory."),
        ("Error: no name before it\nall is well\n", "Error: no name before it"),
        ("WARNING: Triton is disabled\n", None),
        ("", None),
    ],
)
def test_the_last_error_is_found_in_what_was_printed(printed: str, error: str | None) -> None:
    assert output.error_in(printed) == error


def test_an_engine_that_does_not_start_is_one_line_with_its_root_cause_and_where_the_rest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: engine.Engine, weights: Path) -> None:
        os.write(2, CORE_FAILED.encode())
        raise RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")

    monkeypatch.setenv("RV_CACHE", str(tmp_path))
    monkeypatch.setattr(engine.Engine, "_load", fail)
    monkeypatch.setattr(engine, "prepare_environment", lambda config: None)
    with pytest.raises(UserError) as caught:
        engine.Engine(EngineConfig(), tmp_path)
    assert str(caught.value) == (
        "the engine did not start: ValueError: To serve at least one request, 4 GiB KV cache is needed;"
        f" all that it printed is in {tmp_path / 'engine.log'}"
    )
    assert (tmp_path / "engine.log").read_text() == CORE_FAILED


def test_an_engine_can_start_where_the_output_is_no_descriptor() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as notebook:
        with output.with_descriptor():
            assert sys.stdout.fileno() >= 0
        print("shown")
    assert notebook.getvalue() == "shown\n"
