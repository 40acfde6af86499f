"""The store: whole records or none, and damage is seen."""

import json
from pathlib import Path

import pytest

from pipeline.files import digest, new_folder, write_json
from pipeline.records import DamagedFile, cell_folder, is_done, read_record, set_aside, write_record

SAMPLES = [{"doc_id": i, "score": float(i % 2), "output": "naïve \u2028 text"} for i in range(4)]


def written(results: Path, alpha: float = 0.7) -> str:
    return write_record(
        results, {"alpha": alpha}, {"score": 0.5}, {"seconds": 1.0}, {"host": "here"}, SAMPLES
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    record = read_record(tmp_path, written(tmp_path))
    assert record is not None
    assert (record.inputs, record.metrics, record.samples()) == ({"alpha": 0.7}, {"score": 0.5}, SAMPLES)


def test_a_key_that_was_never_computed_has_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path, digest("nothing")) is None


def test_alpha_in_the_last_digit_changes_the_key(tmp_path: Path) -> None:
    assert written(tmp_path, 0.7) != written(tmp_path, 0.7000000000000001)


def test_the_first_record_of_a_key_stays(tmp_path: Path) -> None:
    key = written(tmp_path)
    before = (cell_folder(tmp_path, key) / "record.json").read_bytes()
    write_record(tmp_path, {"alpha": 0.7}, {"score": 0.9}, {}, {}, SAMPLES[:1])
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
    assert list((tmp_path / "cells").iterdir()) == []


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
 "metrics": {"score": 1.0, "n": 1},
 "cost": {"seconds": 0.5},
 "provenance": {"host": "here"},
 "samples": {
  "file": "samples.jsonl", "sha256": "bb4a5a2f88ddc0c604dda8127e4516b3a08f130552cdf96b0b4251be1833bf1b", "rows": 1
 },
 "sha256": "12b67471cb668f8cf2659cef474823975a2f957bc95c1a29261d3a5b593b0550"
}
"""
OLD_SAMPLES = (
    '{"doc_id": 0, "subtask": null, "source_doc": 0, "prompt": "1 + 1?", "target": "2", "output": "2 ü",'
    ' "extracted": {"strict-match": "2"}, "scores": {"exact_match,strict-match": 1.0}, "score": 1.0,'
    ' "prompt_tokens": 4, "tokens": 2, "finish": "stop"}\n'
)


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
        ({"schema": 2}, "written in format 2, this version reads 1; run again"),
        ({"schema": None}, "written in format None"),
        ({"metrics": None}, "has no 'metrics', which this version reads; run again"),
        ({"samples": "samples.jsonl"}, "which this version reads; run again"),
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
