"""SciQ-like perturbations: the question keeps its one right answer."""

import re

import pytest

from tests.test_perturbations_common import SOURCES, load, pairs

OPTIONS = ("distractor1", "distractor2", "distractor3", "correct_answer")


def opening(term: str) -> str:
    """The first three letters after an article: the same for singular and plural."""
    return re.sub(r"^(?:an?|the) ", "", term.lower().strip())[:3]


@pytest.mark.parametrize("source", SOURCES)
def test_the_question_lists_each_option_once_in_varying_order(source: str):
    places = []
    for original, changed in pairs(source, "sciq", "choice_order"):
        question, _, listed = changed["question"].partition("\nOptions:\n")
        lines = [line.removeprefix("- ") for line in listed.split("\n")]
        assert question == original["question"]
        assert sorted(lines) == sorted(original[field] for field in OPTIONS)
        places.append(lines.index(original["correct_answer"]))
    # Each of the four places is taken about equally often: three standard deviations of a binomial.
    expected, spread = len(places) / 4, (len(places) * 3 / 16) ** 0.5
    assert all(abs(places.count(place) - expected) < 3 * spread for place in range(4))


@pytest.mark.parametrize("source", SOURCES)
def test_one_distractor_changes_to_one_that_was_wrong_for_the_same_answer_elsewhere(source: str):
    documents = load(source, "sciq")
    for original, changed in pairs(source, "sciq", "close_distractor"):
        different = [field for field in OPTIONS if changed[field] != original[field]]
        assert len(different) == 1 and different[0] != "correct_answer"
        new = changed[different[0]]
        assert new.lower() not in {original[field].lower() for field in OPTIONS}
        together = [
            {document[field].lower().strip() for field in OPTIONS}
            for document in documents
            if document is not original and new in (document[field].strip() for field in OPTIONS)
        ]
        assert any(
            opening(original["correct_answer"]) == opening(option)
            for options in together
            for option in options
        )


@pytest.mark.parametrize("source", SOURCES)
def test_the_support_is_gone_and_only_where_there_was_one(source: str):
    found = pairs(source, "sciq", "no_support")
    assert all(changed["support"] == "" and original["support"] for original, changed in found)
    assert len(found) == sum(bool(document["support"].strip()) for document in load(source, "sciq"))


@pytest.mark.parametrize("source", SOURCES)
def test_the_support_keeps_its_words_in_order_and_gets_three_sentences_that_name_no_option(source: str):
    for original, changed in pairs(source, "sciq", "irrelevant_support"):
        old, new = original["support"].split(), iter(changed["support"].split())
        assert all(word in new for word in old)  # a subsequence: each word is found after the one before it
        added = changed["support"]
        for sentence in re.split(r"(?<=[.!?])\s+", original["support"].strip()):
            added = added.replace(sentence, "", 1)
        assert added.count(".") == 3 and added.count(" many ") == 3
        for field in OPTIONS:
            assert not re.search(rf"\b{re.escape(original[field].lower())}\b", added.lower())
