"""Documents of a folder: what no model could be asked, and what no memory could hold, is one line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from evals import perturbations
from pipeline import documents
from pipeline.errors import UserError

SOUND = {
    "gsm8k": {"question": "1 + 1?", "answer": "#### 2"},
    "sciq": {"question": "q", "support": "", "correct_answer": "d"}
    | {f"distractor{i}": f"{i}" for i in (1, 2, 3)},
    "bbh": {"input": "not True is", "target": "False"},
}
FIELDS_OF = [(form, field) for form, row in SOUND.items() for field in row if field != "support"]


def of_files(name: str) -> dict[str, Any]:
    return {"id": "", "files": {"test": name}, "split": "test", "json_field": None, "source_field": None}


@pytest.mark.parametrize(("form", "field"), FIELDS_OF)
def test_a_document_with_an_empty_question_or_answer_is_refused(
    form: str, field: str, tmp_path: Path
) -> None:
    path = tmp_path / f"{form}.jsonl"
    path.write_text(json.dumps(SOUND[form]) + "\n")
    asked = of_files(path.name)
    assert len(documents.load(asked, str(tmp_path), form=form)["test"]) == 1
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in (SOUND[form], SOUND[form] | {field: " \n"})))
    with pytest.raises(UserError, match=f"document 1 of the split 'test' has no text in '{field}'"):
        documents.load(of_files(other.name), str(tmp_path), form=form)


def test_documents_are_perturbed_once_however_many_cells_ask_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asked.jsonl").write_text(json.dumps(SOUND["bbh"] | {"input": "not ( True ) is"}) + "\n")
    asked, perturb, calls = of_files("asked.jsonl"), perturbations.perturb, []

    def counted(form: str, name: str, rows: list[dict[str, Any]], **given: Any) -> list[dict[str, Any]]:
        calls.append(given["seed"])
        return perturb(form, name, rows, **given)

    monkeypatch.setattr(perturbations, "perturb", counted)
    how: dict[str, Any] = {
        "subtask": "boolean_expressions",
        "form": "bbh",
        "perturbation": "irrelevant_preamble",
    }
    first, again, other = (documents.load(asked, str(tmp_path), **how, seed=seed) for seed in (0, 0, 1))
    assert calls == [0, 1]
    first["test"] = other["train"] = []  # a task changes its own splits alone
    assert len(again["test"]) == 1 and "train" not in again


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_small_file_that_unpacks_to_more_than_a_memory_holds_is_refused(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MOST_BYTES", 2**20)
    text = json.dumps(SOUND["gsm8k"] | {"question": "x" * 2**21}).encode()
    path = tmp_path / f"test.{suffix}"
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    with pytest.raises(UserError, match="unpacks to more than 1,048,576 bytes|expected at most 1,048,576"):
        documents.load(of_files(path.name), str(tmp_path), form="gsm8k")
