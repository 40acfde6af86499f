r"""What an answer looks like, apart from whether it is right: steps, expected form, readable, cut.

    traits_of(samples, "exact_match,flexible-extract").steps      share of each document's answers with steps

Found from the recorded texts, by rules that fit every benchmark with free text:

- *readable*: the benchmark's filter extracts an answer;
- *in form*: the strict filter extracts one too (`#### 18`, `So the answer is`, `\boxed{}`); NaN where there is none;
- *steps*: a line, a sentence or an equation stands before the answer; NaN for programs;
- *cut*: the answer hit the token limit.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.analysis.design import Codes, Floats
from pipeline.evaluate.samples import NOT_EXTRACTED
from pipeline.records import Answer, Sample

STRICT = ("strict-match", "boxed")  # filters that read an answer in the expected form alone
_ANSWER = re.compile(r"####|\bthe (?:final |correct )?answer is\b|\\boxed", re.IGNORECASE)
_STATEMENT = re.compile(r"\w[^\n]*?(?:[.!?](?=\s)|\n)|=")


@dataclass(frozen=True)
class Traits:
    """Of each document (n,): the share of its answers with a trait; NaN where the trait has no meaning there."""

    steps: Floats
    in_form: Floats
    readable: Floats
    cut: Floats
    answers: tuple[str, ...]  # what was read from the first answer to each document; of programs the whole

    def subset(self, kept: Codes) -> "Traits":
        """Those of some documents, given by position."""
        return Traits(
            self.steps[kept],
            self.in_form[kept],
            self.readable[kept],
            self.cut[kept],
            tuple(self.answers[i] for i in kept),
        )


def traits_of(samples: Sequence[Sample], metric: str) -> Traits | None:
    """The traits of samples in their order; None where options were scored and nothing was written.

    Args:
        metric: "metric,filter" of the benchmark.
    """
    if all(sample["finish"] == "scored" for sample in samples):
        return None
    main_filter = metric.rsplit(",", 1)[-1]
    is_program = metric.startswith("pass")
    strict = next((name for name in STRICT if name in samples[0]["extracted"]), None)

    def share(has: Callable[[Answer], bool], is_meant: bool = True) -> Floats:
        if not is_meant:
            return np.full(len(samples), np.nan)
        answers = (s.get("answers", [s]) for s in samples)
        return np.array([sum(has(a) for a in of_one) / len(of_one) for of_one in answers])

    return Traits(
        steps=share(lambda a: has_steps(a["output"]), not is_program),
        in_form=share(lambda a: a["extracted"].get(strict or "") != NOT_EXTRACTED, strict is not None),
        readable=share(lambda a: a["extracted"].get(main_filter) != NOT_EXTRACTED),
        cut=share(lambda a: a["finish"] == "length"),
        answers=tuple(
            s["output"] if is_program else s["extracted"].get(main_filter, s["output"]) for s in samples
        ),
    )


def has_steps(text: str) -> bool:
    """Whether something stands before the answer: a whole line or sentence, or an equation."""
    mark = _ANSWER.search(text)
    if mark is not None:
        return _STATEMENT.search(text[: mark.start()]) is not None
    lines = [line for line in re.split(r"\n|(?<=[.!?])\s", text) if re.search(r"\w", line)]
    return len(lines) > 1 or "=" in text


def average(found: Sequence[Traits]) -> Traits:
    """Mean over cells of the same documents."""
    steps, in_form, readable, cut = (
        np.mean([getattr(traits, name) for traits in found], axis=0)
        for name in ("steps", "in_form", "readable", "cut")
    )
    return Traits(steps, in_form, readable, cut, found[0].answers)
