"""Adversarial variants of benchmark documents: deterministic, seeded, each answer recomputed where it
changes.

    from evals.perturbations import names, perturb
    names("gsm8k")                                       # what there is for a form
    variant = perturb("gsm8k", "larger_numbers", documents, seed=0)
    len(variant) / len(documents)                        # the share that could be changed soundly

A form is a layout of documents, not a data set: `gsm8k` {question, answer}, `sciq` {question, support,
distractor1..3, correct_answer}, `humaneval` {task_id, prompt, entry_point, canonical_solution, test} and
`bbh` {input, target}. The micro benchmarks have the same layouts. The paper (arXiv:2509.01363) evaluates on
adversarial variants of its own that are not published; these stand in their place and are not the paper's
sets.

Covered: the changes and the proof of each answer (tests/test_perturbations_*.py). Not covered: whether a
model finds a variant hard, and languages other than English.
"""

import difflib
import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

from evals.perturbations import bbh, gsm8k, humaneval, sciq  # noqa: F401 - each registers what it defines
from evals.perturbations.common import REGISTRY, Document, Perturbation
from pipeline.errors import UserError

T = TypeVar("T")
__all__ = ["Perturbation", "get", "names", "perturb"]


def names(form: str) -> list[str]:
    """The names of a form's perturbations, in the order of their definition."""
    return list(_lookup(form, REGISTRY, "benchmark form"))


def get(form: str, name: str) -> Perturbation:
    """One perturbation. Raises UserError, with the nearest known name, when there is none of that name."""
    return _lookup(name, _lookup(form, REGISTRY, "benchmark form"), f"{form} perturbation")


def _lookup(name: str, table: Mapping[str, T], what: str) -> T:
    if name in table:
        return table[name]
    nearest = difflib.get_close_matches(name, table, n=1, cutoff=0.0)[0]
    raise UserError(f"unknown {what} {name!r}: expected one of {', '.join(table)}; did you mean {nearest!r}?")


def perturb(
    form: str, name: str, documents: Sequence[Document], seed: int = 0, subtask: str | None = None
) -> list[Document]:
    """The documents that the perturbation can change soundly, changed, in their order.

    Each has the fields of its original with the same types, and `source_doc`, the index of the original.
    What a document becomes depends on the seed, the perturbation's id, the subtask and the document's index,
    not on other documents. Raises UserError for an unknown form or name.
    """
    chosen = get(form, name)
    result = []
    for index, document in enumerate(documents):
        rng = random.Random(f"{seed}/{form}/{chosen.id}/{subtask}/{index}")
        changed = chosen.function(dict(document), rng, subtask)
        if changed is not None and changed != document:
            result.append({**changed, "source_doc": index})
    return result
