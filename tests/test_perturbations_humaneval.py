"""HumanEval-like perturbations: every canonical solution still passes its tests, in a process of its own."""

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from typing import Any

import pytest

from evals.perturbations import names, perturb
from tests.test_perturbations_common import SOURCES, load, pairs

# Runs each program in a namespace of its own and names those that fail; the token proves that none ended the
# process.
RUNNER = """
import json, sys, traceback
failed = []
for i, program in enumerate(json.load(sys.stdin)):
    try:
        exec(program, {"__name__": f"program_{i}"})
    except BaseException as error:
        failed.append((i, repr(error)))
print("RAN ALL", json.dumps(failed))
"""


def program(document: dict[str, Any]) -> str:
    call = f"check({document['entry_point']})"
    return "\n".join([document["prompt"] + document["canonical_solution"], document["test"], call])


def failures(programs: list[str]) -> list[Any]:
    run = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(programs),
        text=True,
        capture_output=True,
        timeout=300,
    )
    last = run.stdout.strip().split("\n")[-1]
    assert last.startswith("RAN ALL "), run.stderr[-500:]
    found: list[Any] = json.loads(last.removeprefix("RAN ALL "))
    return found


def without_docstrings(code: str) -> str:
    """The syntax tree without docstrings and lone strings, which cannot change what runs."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            lone = [n for n in node.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
            node.body = [n for n in node.body if n not in lone] or [ast.Pass()]
    return ast.dump(tree)


def solution(document: dict[str, Any]) -> str:
    return document["prompt"] + document["canonical_solution"]


@pytest.mark.parametrize("name", names("humaneval"))
@pytest.mark.parametrize("source", SOURCES)
def test_every_canonical_solution_passes_the_perturbed_tests(source: str, name: str):
    assert failures([program(changed) for _, changed in pairs(source, "humaneval", name)]) == []


def test_the_runner_notices_failures_and_exits():
    assert [i for i, _ in failures(["assert 1 == 2", "pass", "raise SystemExit(0)", "boom"])] == [0, 2, 3]


@pytest.mark.parametrize("source", SOURCES)
def test_a_wrong_solution_fails_the_renamed_tests(source: str):
    """The tests still test: with a body that returns a strange object, they fail."""
    broken = []
    for _, changed in pairs(source, "humaneval", "renamed"):
        broken.append(program({**changed, "canonical_solution": "    return object()\n"}))
    assert len(failures(broken)) == len(broken)


@pytest.mark.parametrize(
    ("name", "least"),
    [("renamed", 1.0), ("reworded_signature", 1.0), ("docstring_noise", 0.98), ("no_examples", 0.97)],
)
def test_nearly_all_public_documents_are_kept(name: str, least: float):
    assert len(pairs("public", "humaneval", name)) >= least * len(load("public", "humaneval"))


# Renamed


@pytest.mark.parametrize("source", SOURCES)
def test_renaming_is_one_to_one_on_the_programs_names(source: str):
    for original, changed in pairs(source, "humaneval", "renamed"):
        old, new = (
            [
                (token.type, token.string)
                for token in tokenize.generate_tokens(io.StringIO(solution(doc)).readline)
                if token.type != tokenize.STRING
            ]
            for doc in (original, changed)
        )
        changes = {(a, b) for (_, a), (_, b) in zip(old, new, strict=True) if a != b}
        assert len({a for a, _ in changes}) == len({b for _, b in changes})
        assert (original["entry_point"], changed["entry_point"]) in changes
        assert not {b for _, b in changes} & {a for _, a in old}  # no new name was in use before


@pytest.mark.parametrize("source", SOURCES)
def test_the_old_function_is_called_nowhere(source: str):
    for original, changed in pairs(source, "humaneval", "renamed"):
        text = changed["prompt"] + changed["canonical_solution"] + changed["test"]
        assert not re.search(rf"(?<![\w.'\"]){re.escape(original['entry_point'])}\(", text)


def test_arguments_are_renamed_in_the_docstring_but_english_words_are_not():
    document = {
        "task_id": "t",
        "prompt": 'def add(a, text, n):\n    """ Given a string text and an integer a, return a text `text` n-th times.\n    >>> add(1, "a text", 2)\n    """\n',
        "canonical_solution": "    return a * n\n",
        "entry_point": "add",
        "test": "def check(candidate):\n    assert candidate(1, 'x', 2) == 2\n",
    }
    changed = perturb("humaneval", "renamed", [document])[0]
    name = changed["entry_point"]
    assert changed["prompt"] == (
        f"def {name}(u, input_text, v):\n"
        '    """ Given a string input_text and an integer u, return a text `input_text` v-th times.\n'
        f'    >>> {name}(1, "a text", 2)\n    """\n'
    )


def test_a_local_variable_with_the_functions_name_stays():
    document = {
        "task_id": "t",
        "prompt": 'def total(xs):\n    """ Sum of xs. """\n',
        "canonical_solution": "    total = 0\n    for x in xs:\n        total += x\n    return total\n",
        "entry_point": "total",
        "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n",
    }
    changed = perturb("humaneval", "renamed", [document])[0]
    assert changed["canonical_solution"] == document["canonical_solution"].replace("xs", "arg1")


# Docstrings


@pytest.mark.parametrize("name", ["docstring_noise", "no_examples"])
@pytest.mark.parametrize("source", SOURCES)
def test_only_the_docstring_changes(source: str, name: str):
    for original, changed in pairs(source, "humaneval", name):
        assert without_docstrings(solution(original)) == without_docstrings(solution(changed))
        assert (
            changed["prompt"].split('"""')[0].split("'''")[0]
            == original["prompt"].split('"""')[0].split("'''")[0]
        )


@pytest.mark.parametrize("source", SOURCES)
def test_no_example_is_left_and_no_line_is_new(source: str):
    for original, changed in pairs(source, "humaneval", "no_examples"):
        assert ">>>" not in changed["prompt"]
        old, new = iter(original["prompt"].split("\n")), changed["prompt"].split("\n")
        assert all(line in old for line in new)  # a subsequence of the lines
        assert changed["entry_point"] + "(" in changed["prompt"]


def test_notes_and_constraints_after_the_examples_stay():
    prompts = {
        document["task_id"]: document["prompt"] for _, document in pairs("public", "humaneval", "no_examples")
    }
    for task, words in {
        "HumanEval/68": "Constraints:",
        "HumanEval/84": "@N integer",
        "HumanEval/99": "Rounding away from zero means",
        "HumanEval/110": "It is assumed that the input lists",
        "HumanEval/130": "You are given a non-negative integer number n",
        "HumanEval/139": "The function will receive an integer",
        "HumanEval/151": "If the input list is empty, return 0.",
        "HumanEval/63": "fibfib(n) == fibfib(n-1)",
    }.items():
        assert words in prompts[task], task


@pytest.mark.parametrize("source", SOURCES)
def test_docstring_noise_spares_examples_numbers_quotes_and_names(source: str):
    for original, changed in pairs(source, "humaneval", "docstring_noise"):
        old, new = original["prompt"].split("\n"), changed["prompt"].split("\n")
        assert len(old) == len(new)
        for a, b in zip(old, new, strict=True):
            spared = r"\d+|(?<!\w)'[^' ]+'|\"[^\" ]+\"|\w*_\w*|[A-Z]\w*"
            assert re.findall(spared, a) == re.findall(spared, b)
            assert a == b or not re.search(r">>>|==|=>|➞", a)


# Signature


@pytest.mark.parametrize("source", SOURCES)
def test_the_reworded_signature_has_the_same_parameters_and_types(source: str):
    for original, changed in pairs(source, "humaneval", "reworded_signature"):
        old, new = (
            next(
                n
                for n in ast.parse(solution(doc)).body
                if isinstance(n, ast.FunctionDef) and n.name == doc["entry_point"]
            )
            for doc in (original, changed)
        )
        assert ast.dump(ast.Module(old.body, [])) == ast.dump(ast.Module(new.body, []))
        plain = [ast.unparse(f.args).lower().replace("optional[str]", "str | none") for f in (old, new)]
        assert plain[0] == plain[1]
        returns = [
            ast.unparse(f.returns).lower().replace("optional[str]", "str | none") if f.returns else ""
            for f in (old, new)
        ]
        assert (
            returns[0].replace("optional[int]", "int | none").replace("optional[float]", "float | none")
            == returns[1]
        )
