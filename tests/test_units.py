"""Copies of templates, near-duplicates and guessing, on the generators' own documents and on written ones."""

import random
from collections import Counter

import numpy as np

from evals.micro import arithmetic, code, reasoning
from pipeline.analysis.guessing import guessing, sameness
from pipeline.analysis.units import Units, count, merge, near_duplicates, skeletons, templates

STORY = (
    "Tom has three red apples and his sister Ann has twice as many green ones. On Monday they sell half of all "
    "their apples at the market for two dollars each, and on Tuesday they eat four of those that are left over. "
)


def same(labels: np.ndarray, a: int, b: int) -> bool:
    return bool(labels[a] == labels[b])


def test_generated_programs_have_eleven_templates() -> None:
    rng = random.Random(1)
    documents = [code.sample(rng) for _ in range(200)]
    labels = templates([document["prompt"] for document in documents])
    assert count(labels).units == len(code.FAMILIES) == 11
    by_name = {(document["entry_point"], label) for document, label in zip(documents, labels, strict=True)}
    assert len(by_name) == 11


def test_word_problems_are_grouped_by_their_operators() -> None:
    answers = [
        "She has 2*3=<<2*3=6>>6.\n#### 6",
        "He has <<4*9=36>>36 left.\n#### 36",
        "<<1+1=2>>2 <<2*3=6>>6\n#### 6",
        "no steps",
    ]
    labels = skeletons(answers)
    assert same(labels, 0, 1)
    assert count(labels) == Units(documents=4, units=3, largest=2)
    rng = random.Random(2)
    found = count(skeletons([arithmetic.sample(rng, rng.randint(1, 4))["answer"] for _ in range(300)]))
    assert 10 < found.units < 120


def test_near_duplicates_are_found_and_others_are_not() -> None:
    other = "A train leaves the city at noon and travels for five hours at forty miles an hour to reach the coast."
    texts = [
        STORY + "How many apples are left?",
        STORY + "How much money do they have?",
        STORY.replace("Tom", "Bob") + "How many apples are left?",
        other,
        other.replace("noon", "dawn"),
        "What is the capital of France?",
    ]
    labels = near_duplicates(texts)
    assert same(labels, 0, 1) and same(labels, 0, 2)
    assert not same(labels, 0, 3)
    assert not same(labels, 0, 5)


def test_equal_texts_are_one_unit_however_short_or_common() -> None:
    labels = near_duplicates(["Yes?", "yes ?", "No?", "Yes?", "Yes?"])
    assert count(labels) == Units(documents=5, units=2, largest=4)


def test_the_task_s_own_wording_makes_no_duplicates() -> None:
    rng = random.Random(3)
    texts = [reasoning.navigate(rng)[0]["input"] for _ in range(60)]  # long instructions, short walks
    assert count(near_duplicates(texts)).largest <= 3


def test_subtasks_are_compared_within_themselves() -> None:
    labels = near_duplicates([STORY, STORY, STORY], within=["a", "a", "b"])
    assert same(labels, 0, 1)
    assert not same(labels, 0, 2)


def test_labels_are_joined_through_chains() -> None:
    assert merge([0, 0, 1, 2, 3], [5, 6, 6, 7, 7]).tolist() == [0, 0, 0, 1, 1]


def test_six_thousand_prompts_in_blocks_give_what_one_block_gives() -> None:
    rng = random.Random(4)
    texts = [reasoning.object_counting(rng)[0]["input"] for _ in range(1500)]
    whole = near_duplicates(texts + texts[:700])
    assert [same(whole, i, 1500 + i) for i in range(700)] == [True] * 700


def test_chance_and_majority_are_read_within_subtasks() -> None:
    targets = ["True", "False", "True", "True", "(A)", "(B)", "(C)", "(D)"]
    subtasks = ["boolean"] * 4 + ["choice"] * 4
    found = guessing(targets, subtasks)
    # Of 12 ordered pairs of Boolean answers 6 agree; the four choices never do.
    assert found.chance == (6 / 12 + 0) / 2
    assert found.majority == (3 / 4 + 1 / 4) / 2


def test_answers_that_are_all_different_cannot_be_guessed() -> None:
    assert guessing([str(i) for i in range(100)]).chance == 0
    assert guessing(["A", "B"] * 500).chance == np.float64(2 * 500 * 499 / (1000 * 999))


def test_one_answer_to_all_is_seen() -> None:
    assert sameness(["Yes"] * 40 + ["(A)"] * 40, ["navigate"] * 40 + ["tracking"] * 40) == 1.0
    assert sameness(["Yes", "No"] * 20) == 0.5


def test_near_duplicates_are_those_of_comparing_every_pair() -> None:
    rng = random.Random(5)
    words = [f"w{i}" for i in range(60)]
    stories = [rng.choices(words, k=rng.randint(1, 40)) for _ in range(40)]
    texts = ["", "", "w1", "w1 w2"]
    for story in rng.choices(stories, k=300):
        edited = list(story)
        for _ in range(rng.choice([0, 1, 1, 2, 4, 9])):
            edited[rng.randrange(len(edited))] = rng.choice(words)
        texts.append(" ".join(edited))
    for similar in (0.5, 0.8, 1.0):
        found, expected = near_duplicates(texts, similar=similar), by_every_pair(texts, similar)
        np.testing.assert_array_equal(found[:, None] == found, expected[:, None] == expected)


def by_every_pair(texts: list[str], similar: float) -> np.ndarray:
    """Labels of near-duplicates, by the Jaccard similarity of every pair."""
    split = [text.split() for text in texts]
    sets = [{tuple(text[i : i + 3]) for i in range(max(1, len(text) - 2))} for text in split]
    spread = Counter(shingle for one in sets for shingle in one)
    sets = [{shingle for shingle in one if spread[shingle] <= 0.5 * len(texts)} for one in sets]
    labels = np.arange(len(texts))
    for i, a in enumerate(sets):
        for j, b in enumerate(sets[:i]):
            if texts[i] == texts[j] or (a & b and len(a & b) >= similar * len(a | b)):
                labels[labels == labels[i]] = labels[j]
    return labels
