"""Perturbations of BIG-Bench-Hard-like documents {input, target}.

Options are lines ``(A) text`` or ``- text`` after a line ``Options:``. The kinds follow studies of option order
(arXiv:2309.03882), irrelevant context (arXiv:2302.00093) and prompt format (arXiv:2310.11324).
"""

import random
import re

from evals.perturbations.common import Context, Document, irrelevant_facts, perturbation

OPTION = re.compile(r"^(\([A-Z]\)|-) (.*)$", re.MULTILINE)


@perturbation("bbh", version=1)
def irrelevant_preamble(document: Document, rng: random.Random, context: Context) -> Document | None:
    """Two sentences without numbers stand in a paragraph of their own before the input.

    Must stay true: every character of the input, and the target; the new sentences share no content word with it.
    """
    facts = irrelevant_facts(rng, document["input"], 2)
    if len(facts) < 2:
        return None
    return {**document, "input": " ".join(facts) + "\n\n" + document["input"]}
