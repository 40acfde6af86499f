"""The hub's metric `code_eval` for machines without the hub: the same interface, programs in our sandbox.

`evaluate.load("code_eval")`, which the stock task humaneval_instruct calls when it is imported, takes a folder of that name
in the working folder before it asks the hub; `benchmarks.parity` starts `lm_eval` here. So the comparison of HumanEval is
one of prompts, answers and how a program is made of an answer, with one judge of programs on both sides.
"""

import re
from typing import Any

import datasets
import evaluate

from evals import sandbox


class CodeEval(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": datasets.Sequence(text), "references": text})
        return evaluate.MetricInfo(description="pass@1", citation="", features=features)

    def _compute(
        self, predictions: list[list[str]], references: list[str], k: list[int]
    ) -> tuple[dict[str, float], dict[int, Any]]:
        programs = [
            sandbox.Program(
                source=answers[0],
                tests=tests,
                names=tuple(re.findall(r"(?:check\(|assert )(\w+)", tests)[-1:]),
            )
            for answers, tests in zip(predictions, references, strict=True)
        ]
        passed = [verdict.status == "passed" for verdict in sandbox.run(programs)]
        return {"pass@1": sum(passed) / len(passed)}, {}
