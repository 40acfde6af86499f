"""What holds for every perturbation: lookup, determinism, fields. Also the documents that its sister files
test on."""

import functools
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from evals.micro import write_benchmarks
from evals.perturbations import get, names, perturb
from pipeline.errors import UserError

PUBLIC = Path(__file__).parents[1] / "../shared/data"
FORMS = ("gsm8k", "sciq", "humaneval", "bbh")
KINDS = [(form, name) for form in FORMS for name in names(form)]
SOURCES = ("micro", "public")
SUBTASKS = ("navigate", "object_counting", "logical_deduction_three_objects", "boolean_expressions")

# The fields that each kind may change; everything else is compared with the original.
CHANGES = {
    ("gsm8k", "larger_numbers"): {"question", "answer"},
    ("gsm8k", "more_steps"): {"question", "answer"},
    ("gsm8k", "irrelevant_sentences"): {"question"},
    ("gsm8k", "sentence_order"): {"question"},
    ("gsm8k", "digits_as_words"): {"question"},
    ("gsm8k", "typing_noise"): {"question"},
    ("gsm8k", "units_and_names"): {"question", "answer"},
    ("sciq", "choice_order"): {"question"},
    ("sciq", "close_distractor"): {"distractor1", "distractor2", "distractor3"},
    ("sciq", "no_support"): {"support"},
    ("sciq", "irrelevant_support"): {"support"},
    ("humaneval", "renamed"): {"prompt", "entry_point", "canonical_solution", "test"},
    ("humaneval", "docstring_noise"): {"prompt"},
    ("humaneval", "no_examples"): {"prompt"},
    ("humaneval", "reworded_signature"): {"prompt"},
    ("bbh", "option_order"): {"input", "target"},
    ("bbh", "irrelevant_preamble"): {"input"},
    ("bbh", "reformatted_lists"): {"input"},
}


@functools.cache
def micro_folder() -> tempfile.TemporaryDirectory[str]:
    folder: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory()
    write_benchmarks(Path(folder.name), seed=0)
    return folder


@functools.cache
def load(source: str, form: str, subtask: str = "navigate") -> tuple[dict[str, Any], ...]:
    """The test documents of a form, of the micro benchmarks or the public ones (skips where these are
    missing)."""
    root = Path(micro_folder().name) if source == "micro" else PUBLIC
    if not root.exists():
        pytest.skip(f"no public data at {PUBLIC}")
    if form == "gsm8k":
        return tuple(json.loads(line) for line in (root / "gsm8k/test.jsonl").read_text().splitlines())
    if form == "humaneval":
        return tuple(json.loads(line) for line in gzip.open(root / "humaneval/HumanEval.jsonl.gz", "rt"))
    if form == "sciq":
        return tuple(json.loads((root / "sciq/test.json").read_text()))
    return tuple(json.loads((root / f"bbh/bbh/{subtask}.json").read_text())["examples"])


@functools.cache
def variant(
    source: str, form: str, name: str, seed: int = 0, subtask: str = "navigate"
) -> tuple[dict[str, Any], ...]:
    return tuple(perturb(form, name, load(source, form, subtask), seed, subtask))


def pairs(
    source: str, form: str, name: str, subtask: str = "navigate"
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(original, perturbed) for every document that was kept; there is at least one, so that no test passes
    on none."""
    documents = load(source, form, subtask)
    found = [
        (documents[changed["source_doc"]], changed) for changed in variant(source, form, name, 0, subtask)
    ]
    assert found
    return found


def test_each_form_has_its_kinds_and_no_other():
    assert set(KINDS) == set(CHANGES)


def test_an_unknown_name_is_answered_with_the_nearest_one():
    with pytest.raises(UserError, match="did you mean 'larger_numbers'") as error:
        get("gsm8k", "large_numbers")
    assert "\n" not in str(error.value)


def test_an_unknown_form_is_answered_with_the_nearest_one():
    with pytest.raises(UserError, match="did you mean 'gsm8k'"):
        names("gsm8")


@pytest.mark.parametrize(("form", "name"), KINDS)
def test_every_kind_has_a_versioned_id_and_says_what_must_stay_true(form: str, name: str):
    kind = get(form, name)
    assert kind.id == f"{name}.v{kind.version}"
    assert "Must stay true" in " ".join((kind.function.__doc__ or "").split())


@pytest.mark.parametrize(("form", "name"), KINDS)
@pytest.mark.parametrize("source", SOURCES)
def test_only_the_intended_fields_change_and_each_document_does(source: str, form: str, name: str):
    for original, changed in pairs(source, form, name):
        assert changed.keys() == original.keys() | {"source_doc"}
        different = {field for field in original if changed[field] != original[field]}
        assert different and different <= CHANGES[form, name]
        assert all(type(changed[field]) is type(original[field]) for field in original)


@pytest.mark.parametrize(("form", "name"), KINDS)
def test_the_same_seed_gives_the_same_documents_in_order(form: str, name: str):
    documents = load("micro", form)[:60]
    once, again = (perturb(form, name, documents, 0, "navigate") for _ in range(2))
    assert once == again
    assert [doc["source_doc"] for doc in once] == sorted({doc["source_doc"] for doc in once})


FIXED = ("no_support", "no_examples", "reworded_signature", "reformatted_lists", "digits_as_words")
RANDOM = [kind for kind in KINDS if kind[1] not in FIXED]


@pytest.mark.parametrize(("form", "name"), RANDOM)
def test_another_seed_gives_other_documents(form: str, name: str):
    subtask = "logical_deduction_three_objects"
    documents = load("micro", form, subtask)[:60]
    assert perturb(form, name, documents, 0, subtask) != perturb(form, name, documents, 1, subtask)


@pytest.mark.parametrize(("form", "name"), KINDS)
def test_a_document_becomes_the_same_whatever_stands_after_it(form: str, name: str):
    whole = [doc for doc in variant("micro", form, name) if doc["source_doc"] < 40]
    assert perturb(form, name, load("micro", form)[:40], 0, "navigate") == whole


@pytest.mark.parametrize(("form", "name"), KINDS)
def test_the_originals_are_left_alone(form: str, name: str):
    documents = [dict(document) for document in load("micro", form)[:30]]
    perturb(form, name, documents, 0, "navigate")
    assert documents == list(load("micro", form)[:30])
