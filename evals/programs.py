"""Programs out of free answers: HumanEval as an instruction, in the form that lm-eval calls.

The program is the last code block that defines the function, after the prompt's own imports and helpers; an answer without
a block counts as a program if it defines the function. What runs it, and when it passes, is `evals.code`.
"""

import re
from typing import Any

from evals import sandbox
from evals.code import (  # their names stay: the file is in the keys of other benchmarks
    _verdicts,
    _without_body,
)

Doc = dict[str, Any]

_BLOCK = re.compile(r"```(?:[Pp]ython3?|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def verdicts(resps: list[list[str]], docs: list[Doc]) -> list[list[str]]:
    """A filter over documents {prompt, entry_point, test}: verdicts in the shape of `resps`."""
    return _verdicts(resps, docs, program)


def program(doc: Doc, answer: str) -> sandbox.Program | None:
    """The prompt's helpers and the answer's program; None where no block defines the function."""
    name = doc["entry_point"]
    defines = re.compile(rf"^\s*(?:async )?def {re.escape(name)}\b", re.MULTILINE)
    blocks = [block for block in _BLOCK.findall(answer) if defines.search(block)]
    if not blocks and "```" not in answer and defines.search(answer):
        blocks = [answer]
    if not blocks:
        return None
    setup = _without_body(doc["prompt"])
    return sandbox.Program(
        source=f"{setup}\n{blocks[-1]}", tests=f"{doc['test']}\ncheck({name})", names=(name,), setup=setup
    )
