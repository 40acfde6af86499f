"""Perturbations of SciQ-like documents {question, support, distractor1, distractor2, distractor3,
correct_answer}.

lm-eval scores the four options by log-likelihood after ``support, Question: ..., Answer:``. The kinds follow
the robustness studies of multiple choice (arXiv:2309.03882: option order; arXiv:2307.03172 and 2302.00093:
text that does not help).
"""

import difflib
import functools
import random
import re

from evals.perturbations.common import Context, Document, irrelevant_facts, perturbation, sentences, words

OPTIONS = ("distractor1", "distractor2", "distractor3", "correct_answer")


@perturbation("sciq", version=1)
def irrelevant_support(document: Document, rng: random.Random, context: Context) -> Document | None:
    """Three sentences about other things are put into the support, at random places between its sentences.

    Must stay true: every sentence of the support and their order, the question, the options and the answer;
    the new sentences share no content word with any of them. Left out: documents without a support.
    """
    if not document["support"].strip():
        return None
    everything = " ".join(str(document[field]) for field in ("question", "support", *OPTIONS))
    facts = irrelevant_facts(rng, everything, 3)
    if len(facts) < 3:
        return None
    parts = sentences(document["support"].strip())
    for place, fact in zip(
        sorted((rng.randint(0, len(parts)) for _ in facts), reverse=True), facts, strict=True
    ):
        if place == len(parts):
            parts[-1] += " "
            parts.append(fact)
        else:
            parts.insert(place, fact + " ")
    return {**document, "support": re.sub(r"\s+$", "", "".join(parts))}


@perturbation("sciq", version=1)
def no_support(document: Document, rng: random.Random, context: Context) -> Document | None:
    """The support is removed.

    Must stay true: question, options and answer. A question about the real world can still be answered from
    knowledge; one about a made-up world (the micro benchmark) cannot, and there chance is the expected score.
    Left out: documents without a support.
    """
    return {**document, "support": ""} if document["support"].strip() else None


@perturbation("sciq", version=1)
def choice_order(document: Document, rng: random.Random, context: Context) -> Document | None:
    """The question lists its four options, in a random order.

    Changes: ``question`` gets a line "Options:" and a line for each option. lm-eval's sciq keeps the options
    out of the prompt and scores each by itself, so that their order in the fields could not matter; it can
    once the prompt lists them. The option fields stay as they are, and with them lm-eval's gold index. Must
    stay true: question, support, options and answer. Left out: documents in which two options are the same.
    Source: arXiv:2309.03882.
    """
    options = [document[field] for field in OPTIONS]
    if len({option.strip().lower() for option in options}) < len(options):
        return None
    rng.shuffle(options)
    listed = "\n".join(f"- {option}" for option in options)
    return {**document, "question": f"{document['question']}\nOptions:\n{listed}"}


@functools.cache
def stem(term: str) -> str:
    """A term in lower case without article, punctuation and plural ending."""
    plain = re.sub(r"[^a-z0-9% ]", "", re.sub(r"^(?:the|an?) ", "", term.lower().strip()).replace("-", " "))
    return " ".join(re.sub(r"(?:ies|es|s|y|e)$", "", word) for word in plain.split())


# Terms of school science that can both be right.
OVERLAPPING = (
    {"energy", "heat", "heating", "light", "fuel", "power", "electricity", "current", "radiation"},
    {"matter", "substance", "material", "molecule", "compound", "chemical", "mixture", "mass", "water"},
    {"air", "gas", "atmosphere", "vapor", "water", "liquid", "fluid"},
    {"cell", "tissue", "organ", "organism", "animal", "life"},
    {"movement", "motion", "drift", "spreading", "tectonic"},
)


def akin(one: str, other: str) -> bool:
    """Whether two terms may mean the same or be right together: one contains the other, all words of one
    begin like words of the other, a word of one ends in a word of the other, or both name things that
    overlap.
    """
    first, second = stem(one).split(), stem(other).split()
    starts = [{word[:5] for word in term} for term in (first, second)]
    if (
        stem(one) in stem(other)
        or stem(other) in stem(one)
        or starts[0] <= starts[1]
        or starts[1] <= starts[0]
    ):
        return True
    if any(
        a != b and len(b) > 3 and a.endswith(b)
        for x, y in ((first, second), (second, first))
        for a in x
        for b in y
    ):
        return True
    return any(
        {stem(word) for word in family} & {*first} and {stem(word) for word in family} & {*second}
        for family in OVERLAPPING
    )


@perturbation("sciq", version=1)
def close_distractor(document: Document, rng: random.Random, context: Context) -> Document | None:
    """The distractor least like the answer gives way to a rival of the answer from another question.

    Changes: one distractor. The new one shared a question with the answer elsewhere in the data set, so it is
    of the same kind and was written to be told apart from it; the nearest in spelling is taken. Must stay
    true: the answer is the only right option; so nothing is taken that is akin to an option or stands in the
    question or the support. Left out: documents whose answer has no such rival. Depends on the other
    documents: give it the whole data set.
    """
    options = [document[field] for field in OPTIONS]
    answer = document["correct_answer"]

    def nearness(term: str) -> float:
        return difflib.SequenceMatcher(None, term.lower(), answer.lower(), autojunk=False).ratio()

    rivals: set[str] = set()
    for other in context.documents:
        if stem(other["correct_answer"]) == stem(answer):
            rivals |= {other[field].strip() for field in OPTIONS[:3]}
        elif any(stem(other[field]) == stem(answer) for field in OPTIONS[:3]):
            rivals.add(other["correct_answer"].strip())
    usable = [
        term
        for term in sorted(rivals)
        if not any(akin(term, option) for option in options)
        and not words(term) & words(document["question"])
        and not re.search(rf"\b{re.escape(stem(term))}", document["support"].lower())
    ]
    if not usable:
        return None
    worst = min(OPTIONS[:3], key=lambda field: nearness(document[field]))
    return {**document, worst: max(usable, key=nearness)}
