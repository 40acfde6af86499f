"""SciQ-like perturbations: the question keeps its one right answer."""

import re

import pytest

from evals.perturbations import perturb
from evals.perturbations.sciq import KINDS
from tests.test_perturbations_common import SOURCES, load, pairs

OPTIONS = ("distractor1", "distractor2", "distractor3", "correct_answer")


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
def test_one_distractor_becomes_the_answer_with_one_word_exchanged(source: str):
    for original, changed in pairs(source, "sciq", "close_distractor"):
        different = [field for field in OPTIONS if changed[field] != original[field]]
        assert len(different) == 1 and different[0] != "correct_answer"
        new, answer = changed[different[0]].lower().split(), original["correct_answer"].lower().split()
        exchanged = [word for word, old in zip(new, answer, strict=True) if word != old]
        assert len(exchanged) == 1
        everything = " ".join(original[field] for field in ("question", "support", *OPTIONS)).lower()
        assert not re.search(rf"\b{exchanged[0].strip('.,')}\b", everything)


@pytest.mark.parametrize(
    ("question", "answer", "known", "new"),
    [
        ("What joins nuclei?", "nuclear fusion", "fission", None),  # the counterpart is named already
        ("What joins nuclei?", "nuclear fusion", "fire", "nuclear fission"),
        ("What does not join nuclei?", "nuclear fusion", "fire", None),
        ("What carries blood to the heart?", "veins", "arteries", "capillaries"),
        ("Which organ makes seeds?", "an ovary", "a leaf", None),  # "an testis"
        ("Which oxide?", "carbon dioxide (CO2)", "a leaf", None),
        ("Who?", "darwin", "newton", None),
    ],
)
def test_only_a_free_counterpart_of_the_answer_is_taken(
    question: str, answer: str, known: str, new: str | None
) -> None:
    fields = {"question": question, "support": f"Not {known}.", "correct_answer": answer}
    document = fields | {"distractor1": "stone", "distractor2": "wind", "distractor3": "sand"}
    changed = perturb("sciq", "close_distractor", [document])
    assert [
        d for c in changed for d in (c["distractor1"], c["distractor2"], c["distractor3"]) if d == new
    ] == ([new] if new else [])
    assert bool(changed) == (new is not None)


def test_no_two_terms_of_a_kind_are_the_same():
    assert all(len(set(terms)) == len(terms) > 1 for terms in KINDS)


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
