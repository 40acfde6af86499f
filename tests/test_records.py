"""The store: whole records or none, and damage is seen."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.files import digest, new_folder, write_json
from pipeline.records import DamagedFile, cell_folder, is_done, read_record, set_aside
from tests import synthetic

SAMPLES = [s | {"output": "naïve \u2028 text"} for s in synthetic.samples([False, True, False, True], {})]


def written(results: Path, alpha: float = 0.7) -> str:
    return synthetic.write_cell(results, {"alpha": alpha}, SAMPLES)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    record = read_record(tmp_path, written(tmp_path))
    assert record is not None
    assert (record.inputs, record.samples()) == ({"alpha": 0.7}, SAMPLES)
    assert (record.metrics["score"], record.metrics["n"], record.cost["seconds"]) == (0.5, 4, 2.0)


def test_a_key_that_was_never_computed_has_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path, digest("nothing")) is None


def test_alpha_in_the_last_digit_changes_the_key(tmp_path: Path) -> None:
    assert written(tmp_path, 0.7) != written(tmp_path, 0.7000000000000001)


def test_the_first_record_of_a_key_stays(tmp_path: Path) -> None:
    key = written(tmp_path)
    before = (cell_folder(tmp_path, key) / "record.json").read_bytes()
    synthetic.write_cell(tmp_path, {"alpha": 0.7}, SAMPLES[:1])
    assert (cell_folder(tmp_path, key) / "record.json").read_bytes() == before


@pytest.mark.parametrize("file", ["record.json", "samples.jsonl"])
def test_one_changed_byte_is_noticed(tmp_path: Path, file: str) -> None:
    key = written(tmp_path)
    path = cell_folder(tmp_path, key) / file
    data = bytearray(path.read_bytes())
    position = data.index(b"0.5" if file == "record.json" else b"1.0")
    data[position : position + 3] = b"0.9"
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match=file):
        record = read_record(tmp_path, key)
        assert record is not None
        record.samples()


@pytest.mark.parametrize("file", ["record.json", "samples.jsonl"])
def test_a_cut_file_is_noticed(tmp_path: Path, file: str) -> None:
    key = written(tmp_path)
    path = cell_folder(tmp_path, key) / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedFile, match=file):
        record = read_record(tmp_path, key)
        assert record is not None
        record.samples()


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "cells" / "k") as folder:
        (folder / "half").write_text("written")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_json_is_replaced_in_one_step_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


@pytest.mark.parametrize("file", ["record.json", "samples.jsonl"])
def test_a_damaged_record_is_set_aside_and_written_again(tmp_path: Path, file: str) -> None:
    key = written(tmp_path)
    assert is_done(tmp_path, key) and set_aside(tmp_path, key) is None
    (cell_folder(tmp_path, key) / file).unlink()
    assert not is_done(tmp_path, key)
    away = set_aside(tmp_path, key)
    assert away is not None and len(list(away.iterdir())) == 1  # the file that was left
    assert written(tmp_path) == key and is_done(tmp_path, key)


OLD_KEY = "4b054768440d18b6171416f62f7287cdbfb0a466fcd6c663bf52ba9ae4bcc6f5"
OLD_RECORD = """{
 "schema": 1,
 "key": "4b054768440d18b6171416f62f7287cdbfb0a466fcd6c663bf52ba9ae4bcc6f5",
 "inputs": {"alpha": 0.1, "weights": {"checkpoint": "0f"}},
 "metrics": {
  "metric": "exact_match,strict-match", "score": 1.0, "stderr": 0.0, "n": 1,
  "values": {"exact_match,strict-match": 1.0}, "share_not_extracted": 0.0, "share_truncated": 0.0, "mean_tokens": 2.0
 },
 "cost": {"seconds": 0.5, "generated_tokens": 2, "prompt_tokens": 4, "requests": 1},
 "provenance": {
  "family": {"target": {"id": "models/micro/target", "revision": null}}, "engine": {"device": "cpu"}, "sandbox": null,
  "versions": {"vllm": "0.32.0"}, "host": "here", "started": "2026-01-01T00:00:00+00:00",
  "command": "python -m pipeline", "git": null
 },
 "samples": {
  "file": "samples.jsonl", "sha256": "bb4a5a2f88ddc0c604dda8127e4516b3a08f130552cdf96b0b4251be1833bf1b", "rows": 1
 },
 "sha256": "8ab679520a0407d43033b1f7fed89df82e9a394a7b329da86c9561ce6eef25a6"
}
"""
OLD_SAMPLES = (
    '{"doc_id": 0, "subtask": null, "source_doc": 0, "prompt": "1 + 1?", "target": "2", "output": "2 ü",'
    ' "extracted": {"strict-match": "2"}, "scores": {"exact_match,strict-match": 1.0}, "score": 1.0,'
    ' "prompt_tokens": 4, "tokens": 2, "finish": "stop"}\n'
)


PROVENANCE = json.loads(OLD_RECORD)["provenance"]


def old(tmp_path: Path, **changes: object) -> Path:
    """A record as the first version of this module wrote it; with `changes`, sealed again."""
    folder = cell_folder(tmp_path, OLD_KEY)
    folder.mkdir(parents=True)
    content = json.loads(OLD_RECORD) | changes
    if changes:
        content = {name: value for name, value in content.items() if value is not None and name != "sha256"}
        content["sha256"] = digest(content)
    (folder / "record.json").write_text(json.dumps(content))
    (folder / "samples.jsonl").write_text(OLD_SAMPLES, encoding="utf-8")
    return folder


def test_a_record_of_the_first_version_is_read(tmp_path: Path) -> None:
    old(tmp_path)
    record = read_record(tmp_path, OLD_KEY)
    assert record is not None and is_done(tmp_path, OLD_KEY)
    assert (record.metrics["score"], record.samples()[0]["output"]) == (1.0, "2 ü")
    assert digest(record.inputs) == OLD_KEY


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 2}, "written in format 2, this version reads 1; remove"),
        ({"schema": None}, "written in format None"),
        ({"metrics": None}, "metrics: Field required; remove"),
        (
            {"samples": "samples.jsonl"},
            "samples: Input should be a valid dictionary, found 'samples.jsonl'; remove",
        ),
        ({"inputs": {"alpha": 0.2}}, "its inputs are those of another cell than 4b0547684"),
        ({"key": "0" * 64}, "its inputs are those of another cell"),
        (
            {"provenance": PROVENANCE | {"engine": {}}},
            "provenance.engine: Value error, device None × 1 is none",
        ),
        (
            {"provenance": PROVENANCE | {"started": "../x"}},
            "provenance.started: Value error, Invalid isoformat",
        ),
    ],
)
def test_a_record_of_another_version_is_refused_with_the_reason_and_kept_aside(
    changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    old(tmp_path, **changes)
    with pytest.raises(DamagedFile) as caught:
        read_record(tmp_path, OLD_KEY)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    away = set_aside(tmp_path, OLD_KEY)
    assert away is not None and len(list(away.iterdir())) == 2


@pytest.mark.parametrize(
    ("part", "field", "value", "reason"),
    [
        ("metrics", "score", None, "metrics.score: Input should be a valid number, found None"),
        ("metrics", "score", "0.5", "metrics.score: Input should be a valid number, found '0.5'"),
        ("metrics", "score", True, "metrics.score: Input should be a valid number, found True"),
        ("metrics", "n", 1.5, "metrics.n: Input should be a valid integer"),
        ("metrics", "share_truncated", ..., "metrics.share_truncated: Field required"),
        ("cost", "seconds", ..., "cost.seconds: Field required"),
        ("provenance", "started", 5, "provenance.started: Input should be a valid string, found 5"),
        ("provenance", "versions", [], "provenance.versions: Input should be a valid dictionary, found []"),
    ],
)
def test_a_field_of_another_type_is_damage_with_its_reason(
    part: str, field: str, value: Any, reason: str, tmp_path: Path
) -> None:
    content = json.loads(OLD_RECORD)[part] | {field: value}
    old(tmp_path, **{part: {name: v for name, v in content.items() if v is not ...}})
    with pytest.raises(DamagedFile) as caught:
        read_record(tmp_path, OLD_KEY)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert "remove" in str(caught.value) and not is_done(tmp_path, OLD_KEY)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_score_that_is_no_finite_number_is_damage(number: str, tmp_path: Path) -> None:
    path = old(tmp_path) / "record.json"
    path.write_text(path.read_text().replace('"score": 1.0', f'"score": {number}'))
    with pytest.raises(DamagedFile, match="cannot be read"):
        read_record(tmp_path, OLD_KEY)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ('"score": 1e999', "0.score: Input should be a finite number, found inf"),
        ('"score": NaN', "0.score: Input should be a finite number, found nan"),
        ('"score": 1e308', "0.score: Input should be less than or equal to "),
        ('"score": null', "0.score: Input should be a valid number, found None"),
        ('"points": 1.0', "0.score: Field required"),
        ('"score": 1.0', None),
        ('"score": }', "cannot be read"),
    ],
)
def test_samples_are_checked_as_records_are(change: str, reason: str | None, tmp_path: Path) -> None:
    lines = OLD_SAMPLES.replace('"score": 1.0', change)
    checksum = {"sha256": hashlib.sha256(lines.encode()).hexdigest(), "rows": 1}
    folder = old(tmp_path, samples={"file": "samples.jsonl"} | checksum)
    (folder / "samples.jsonl").write_text(lines, encoding="utf-8")
    record = read_record(tmp_path, OLD_KEY)
    assert record is not None
    if reason is None:
        assert record.samples()[0]["score"] == 1.0
        return
    with pytest.raises(DamagedFile) as caught:
        record.samples()
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_samples_that_are_a_pipe_are_damage_and_not_waited_for(tmp_path: Path) -> None:
    path = old(tmp_path) / "samples.jsonl"
    path.unlink()
    os.mkfifo(path)
    assert not is_done(tmp_path, OLD_KEY)
