"""Perturbations of SciQ-like documents {question, support, distractor1, distractor2, distractor3, correct_answer}.

lm-eval scores the four options by log-likelihood after ``support, Question: ..., Answer:``. The kinds follow the
robustness studies of multiple choice (arXiv:2309.03882: option order; arXiv:2307.03172 and 2302.00093: text that
does not help).
"""

import random
import re

from evals.perturbations.common import Context, Document, irrelevant_facts, perturbation, sentences

OPTIONS = ("distractor1", "distractor2", "distractor3", "correct_answer")


@perturbation("sciq", version=1)
def irrelevant_support(document: Document, rng: random.Random, context: Context) -> Document | None:
    """Three sentences about other things are put into the support, at random places between its sentences.

    Must stay true: every sentence of the support and their order, the question, the options and the answer; the new
    sentences share no content word with any of them. Left out: documents without a support.
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
