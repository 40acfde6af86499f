"""BBH-like perturbations: the right option stays right, and no word is lost."""

import re

import pytest

from evals.perturbations import get, names, perturb
from tests.test_perturbations_common import PUBLIC, SUBTASKS, load, pairs

CASES = [("micro", subtask) for subtask in SUBTASKS]
CASES += [("public", path.stem) for path in sorted(PUBLIC.glob("bbh/bbh/*.json"))]
LETTERED = ["logical_deduction_three_objects", "tracking_shuffled_objects_three_objects"]


def options(text: str) -> dict[str, str]:
    """Letter to text, read by another rule than the perturbation's: what follows each "(X) " up to the line's
    end."""
    return {
        line[1]: line[4:].strip()
        for line in re.sub(r"\n\* ", "\n", text).split("\n")
        if re.match(r"\([A-Z]\) ", line)
    }


@pytest.mark.parametrize("name", names("bbh"))
@pytest.mark.parametrize(("source", "subtask"), CASES)
def test_a_subtask_is_left_out_as_a_whole_or_nearly_all_of_it_is_kept(source: str, subtask: str, name: str):
    documents = load(source, "bbh", subtask)
    kept = perturb("bbh", name, documents, 0, subtask)
    assert len(kept) == 0 if subtask in get("bbh", name).without else len(kept) > 0.9 * len(documents)


@pytest.mark.parametrize(("source", "subtask"), CASES)
def test_the_target_letter_names_the_same_text_in_another_order(source: str, subtask: str):
    documents = load(source, "bbh", subtask)
    kept = perturb("bbh", "option_order", documents, 0, subtask)
    assert len(kept) >= 0.95 * sum("\nOptions:\n" in document["input"] for document in documents)
    for changed in kept:
        original = documents[changed["source_doc"]]
        before, after = options(original["input"]), options(changed["input"])
        if before:
            assert after[changed["target"].strip("()")] == before[original["target"].strip("()")]
            assert list(after) == list(before) and sorted(after.values()) == sorted(before.values())
            assert list(after.values()) != list(before.values())
        else:
            assert changed["target"] == original["target"]
            assert sorted(changed["input"].split("\n")[-2:]) == sorted(
                line.rstrip() for line in original["input"].split("\n")[-2:]
            )


@pytest.mark.parametrize("subtask", LETTERED)
def test_the_target_letter_moves_in_most_documents(subtask: str):
    found = pairs("micro", "bbh", "option_order", subtask)
    assert sum(changed["target"] != original["target"] for original, changed in found) > len(found) / 2


@pytest.mark.parametrize(("source", "subtask"), CASES)
def test_the_preamble_stands_before_an_untouched_input_and_shares_no_number_with_it(
    source: str, subtask: str
):
    for original, changed in pairs(source, "bbh", "irrelevant_preamble", subtask):
        preamble, _, rest = changed["input"].partition("\n\n")
        assert rest == original["input"] and changed["target"] == original["target"]
        assert preamble.count(".") == 2 and not re.search(r"\d", preamble)


@pytest.mark.parametrize(("source", "subtask"), CASES)
def test_reformatting_keeps_every_word_and_every_option(source: str, subtask: str):
    documents = load(source, "bbh", subtask)
    for changed in perturb("bbh", "reformatted_lists", documents, 0, subtask):
        original = documents[changed["source_doc"]]
        joined = r"\band\b|[,.;:*\-\s]+"
        assert re.sub(joined, " ", changed["input"]).split() == re.sub(joined, " ", original["input"]).split()
        assert options(changed["input"]) == options(original["input"])
        assert "\n* " in changed["input"]


@pytest.mark.parametrize(("source", "subtask"), CASES)
def test_every_document_with_options_or_a_list_is_reformatted(source: str, subtask: str):
    documents = load(source, "bbh", subtask)
    none = {"boolean_expressions", "dyck_languages", "multistep_arithmetic_two", "sports_understanding"}
    assert len(perturb("bbh", "reformatted_lists", documents, 0, subtask)) == (
        0 if subtask in none else len(documents)
    )


def test_a_document_with_two_equal_options_is_left_out():
    document = {"input": "Which?\nOptions:\n(A) this\n(B) this\n(C) that", "target": "(A)"}
    assert perturb("bbh", "option_order", [document]) == []


def test_a_target_that_is_no_option_is_left_out():
    document = {"input": "Which?\nOptions:\n(A) this\n(B) that", "target": "(C)"}
    assert perturb("bbh", "option_order", [document]) == []
