"""Scores answers that are programs: HumanEval, HumanEval+ and MBPP, pass@1, in the form that lm-eval calls.

The stock tasks load the hub's `code_eval` with their task file and run answers in the evaluating process.
Here a filter receives all answers of a task at once, builds the programs as the stock task does, and runs
them in parallel in the sandbox. What it returns for an answer is the verdict as text: `passed`, `failed: …`,
`timeout: …`, or lm-eval's `[invalid]` where the answer holds no code. `pass_at_1` reads that.

Different from the stock tasks: 10 s of CPU time instead of 3 s on the clock, and the other limits of
`sandbox.Limits`; what `sandbox` says about arguments and arrays; and the tests use the helpers that a prompt
defines (HumanEval/32, 38, 50) as the prompt defines them, and modules such as `math` as Python has them, not
as the answer may have redefined them.

Not different: a test that is too weak. Those of HumanEval+ compare floats with `np.allclose`, for which an
empty list is close to any number: `return []` passes HumanEval/2, 4 and 45.
"""

import ast
import builtins
import hashlib
import re
import sys
from collections.abc import Callable
from typing import Any

from evals import sandbox
from pipeline.errors import UserError

INVALID = "[invalid]"
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # a zero byte, brackets nested too deep
Doc = dict[str, Any]
Build = Callable[[Doc, str], sandbox.Program | None]


def humaneval_verdicts(resps: list[list[str]], docs: list[Doc]) -> list[list[str]]:
    """A filter over documents {prompt, entry_point, test}: verdicts in the shape of `resps`."""
    return _verdicts(resps, docs, humaneval_program)


def mbpp_verdicts(resps: list[list[str]], docs: list[Doc]) -> list[list[str]]:
    """A filter over documents {test_list}: verdicts in the shape of `resps`."""
    return _verdicts(resps, docs, mbpp_program)


def pass_at_1(doc: Doc, results: list[str]) -> dict[str, float]:
    """lm-eval's process_results: 1.0 if the document's (first) answer passed, else 0.0."""
    return {"pass@1": float(results[0] == "passed")}


def humaneval_program(doc: Doc, answer: str) -> sandbox.Program | None:
    """The prompt continued by the answer up to its first code fence; None if that continuation is blank.

    This is lm-eval's `build_predictions_instruct`: the assistant's turn was prefilled with the prompt, so a
    fence ends the program. An answer without fences is taken whole. Prose stays in, and fails, even where a
    block of its own follows.
    """
    body = answer.partition("```")[0]
    if not body.strip():
        return None
    name = doc["entry_point"]
    return sandbox.Program(
        source=doc["prompt"] + body,
        tests=f"{doc['test']}\ncheck({name})",
        names=(name,),
        setup=_without_body(doc["prompt"]),
    )


def mbpp_program(doc: Doc, answer: str) -> sandbox.Program | None:
    """The answer's first code block against the document's first three tests; None without a block.

    This is lm-eval's `extract_code_blocks`, but for one defect. The opening fence stands in the prompt
    (`gen_prefix`) and is put back before searching; the stock task puts it back without the end of its line, so
    that the first word of the answer, most often `def`, is taken for the name of a language and dropped.
    """
    blocks = re.findall(r"```(?:\w+)?\n?(.*?)\n?```", f"```python\n{answer}", re.DOTALL)
    if not blocks or not blocks[0].strip():
        return None
    tests = "\n".join(doc["test_list"][:3])
    names = _free_names(tests)
    modules = {name for name in names & sys.stdlib_module_names if re.search(rf"\b{name}\.", tests)}
    return sandbox.Program(
        source=blocks[0],
        tests=tests,
        names=tuple(sorted(names - modules)),
        setup="".join(f"import {name}\n" for name in sorted(modules)),
    )


def check(doc: Doc) -> None:
    """Raises UserError unless a document of HumanEval's or MBPP's form is Python that can tell answers apart."""
    if "test_list" in doc:
        _check_mbpp(doc["test_list"])
    else:
        _check_humaneval(doc)


def _check_humaneval(doc: Doc) -> None:
    for field in ("entry_point", "prompt", "test"):
        if not isinstance(doc.get(field), str) or not doc[field].strip():
            found = str(doc.get(field))[:60]
            raise UserError(f"a HumanEval document needs {field} as text, found {found!r}: fill it in")
    name, prompt, test = doc["entry_point"], doc["prompt"], doc["test"]
    if not name.isidentifier():
        raise UserError(f"entry_point must be the name of a function, found {name[:60]!r}: fix it")
    if name not in _functions(_without_body(prompt)):
        raise UserError(f"a HumanEval prompt must define {name!r}, its entry_point: fix {prompt[:60]!r}")
    check = _functions(test).get("check")
    if check is None or not check.args.args or not _reads(check, check.args.args[0].arg):
        raise UserError(f"a HumanEval test must define check(candidate) and use it: fix {test[:60]!r}")


def _check_mbpp(tests: Any) -> None:
    if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        raise UserError(f"test_list must be a list of texts, found {str(tests)[:60]!r}: fix it")
    if not _free_names("\n".join(tests[:3])):
        raise UserError(f"the tests of test_list must call the program, found {str(tests)[:60]!r}: fix it")


def mbpp_fewshot(prompt_split: Any) -> Any:
    """The three examples that the stock task quotes: tasks 2, 3 and 4 of MBPP's split `prompt`."""
    return prompt_split.filter(lambda row: row["task_id"] in (2, 3, 4)).map(lambda row: {"is_fewshot": True})


def _verdicts(resps: list[list[str]], docs: list[Doc], build: Build) -> list[list[str]]:
    programs = [build(doc, answer) for answers, doc in zip(resps, docs, strict=True) for answer in answers]
    new = {_key(program): program for program in programs if program is not None}
    for key in new.keys() & _known.keys():
        del new[key]
    verdicts = dict(zip(new, map(_text, sandbox.run(list(new.values()))), strict=True))
    _known.update({key: text for key, text in verdicts.items() if not text.startswith("timeout")})
    verdicts |= _known
    texts = iter([INVALID if program is None else verdicts[_key(program)] for program in programs])
    return [[next(texts) for _ in answers] for answers in resps]


# Verdicts of this process: under many α a model writes most of its programs again, word for word. Not those of programs
# that ran out of time, which may have waited for something.
_known: dict[bytes, str] = {}


def _key(program: sandbox.Program) -> bytes:
    return hashlib.sha256(repr(program).encode("utf-8", "surrogatepass")).digest()


def _text(verdict: sandbox.Verdict) -> str:
    return f"{verdict.status}: {verdict.detail}" if verdict.detail else verdict.status


def _without_body(prompt: str) -> str:
    """A program of the prompt alone: it ends in a docstring, or gets a body that does nothing."""
    for program in (prompt, f"{prompt}\n    pass\n"):
        try:
            compile(program, "prompt", "exec")
        except NOT_PYTHON as error:
            reason = error
        else:
            return program
    raise UserError(
        f"a HumanEval prompt must be Python up to a function's body, found {reason!r}: fix {prompt[:60]!r}"
    )


def _free_names(tests: str) -> set[str]:
    """The names that the tests read and that neither Python nor the tests define: the program's."""
    names = [node for node in ast.walk(_parsed(tests)) if isinstance(node, ast.Name)]
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    return {node.id for node in names} - bound - set(dir(builtins))


def _functions(source: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in _parsed(source).body if isinstance(node, ast.FunctionDef)}


def _reads(function: ast.AST, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(function))


def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except NOT_PYTHON as error:
        raise UserError(f"tests must be Python, found {error!r}: fix {text[:60]!r}") from None
