"""Programs from answers, and pass@1: as the stock tasks build them, with the verdicts of the sandbox."""

import ast
import functools
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Union

import datasets
import lm_eval.tasks
import pytest
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from evals import code, sandbox
from pipeline.errors import UserError

ROOT = Path(__file__).parent.parent
DATA = Path("../shared/data")
STOCK = Path(lm_eval.tasks.__file__).parent

# Problems of our own in HumanEval's form: (signature and docstring, right body, wrong body, tests).
SMALL = [
    (
        'def double(x: int) -> int:\n    """ Twice x.\n    >>> double(2)\n    4\n    """\n',
        "    return 2 * x\n",
        "    return 2 + x\n",
        "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-3) == -6\n",
    ),
    (
        'from typing import List\n\n\ndef total(xs: List[float]) -> float:\n    """ The sum of xs. """\n',
        "    result = 0.0\n    for x in xs:\n        result += x\n    return result\n",
        "    return sum(xs[1:])\n",
        "def check(candidate):\n    assert abs(candidate([0.1, 0.2, 0.3]) - 0.6) < 1e-9\n    assert candidate([]) == 0\n",
    ),
    (
        'def shift(s: str) -> str:\n    return s[1:] + s[:1]\n\n\ndef unshift(s: str) -> str:\n    """ Undo shift. """\n',
        "    return s[-1:] + s[:-1]\n",
        "    return s\n",
        "def check(candidate):\n    for s in ('abc', 'hello'):\n        assert candidate(shift(s)) == s\n",
    ),
    (
        'def words(text):\n    """ Count words. """\n',
        "    from collections import Counter\n    return Counter(text.split())\n",
        "    return {}\n",
        "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate('a b a') == {'a': 2, 'b': 1}\n",
    ),
    (
        'def root(x):\n    """ The square root; ValueError below zero. """\n',
        "    import math\n    return math.sqrt(x)\n",
        "    return abs(x) ** 0.5\n",
        "def check(candidate):\n    assert candidate(9) == 3\n    try:\n        candidate(-1)\n"
        "    except ValueError:\n        pass\n    else:\n        assert False\n",
    ),
    (
        'def pairs(xs):\n    """ Neighbours, as tuples. """\n',
        "    return list(zip(xs, xs[1:]))\n",
        "    return [list(p) for p in zip(xs, xs[1:])]\n",
        "def check(candidate):\n    assert candidate([1, 2, 3]) == [(1, 2), (2, 3)]\n",
    ),
]


def small_documents() -> list[dict[str, Any]]:
    names = [
        next(n.name for n in reversed(ast.parse(prompt).body) if isinstance(n, ast.FunctionDef))
        for prompt, *_ in SMALL
    ]
    return [
        {"task_id": f"small/{i}", "prompt": prompt, "canonical_solution": right, "wrong": wrong, "test": test}
        | {"entry_point": names[i]}
        for i, (prompt, right, wrong, test) in enumerate(SMALL)
    ]


def documents(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


def verdicts(docs: list[dict[str, Any]], answers: list[str]) -> dict[str, str]:
    code._known.clear()  # every program is run
    given = code.humaneval_verdicts([[answer] for answer in answers], docs)
    return {doc["task_id"]: verdict for doc, (verdict,) in zip(docs, given, strict=True)}


def not_passed(given: dict[str, str]) -> dict[str, str]:
    return {task: verdict for task, verdict in given.items() if verdict != "passed"}


def passed(given: dict[str, str]) -> list[str]:
    return [task for task, verdict in given.items() if verdict == "passed"]


# Changes every value that a function can return.
OFF = """
def off(value):
    if isinstance(value, bool): return not value
    if isinstance(value, (int, float)): return value + 1
    if isinstance(value, str): return value + "x"
    if isinstance(value, (list, tuple)): return type(value)([*value, None])
    if isinstance(value, dict): return {**value, None: None}
    return 0
"""


def off(doc: dict[str, Any]) -> str:
    """The canonical solution, with every result changed."""
    name = doc["entry_point"]
    return f"{doc['canonical_solution']}\nright = {name}\n{OFF}\ndef {name}(*args):\n    return off(right(*args))\n"


# ---- verdicts ----


def test_right_answers_pass_and_wrong_ones_fail() -> None:
    docs = small_documents()
    assert not_passed(verdicts(docs, [doc["canonical_solution"] for doc in docs])) == {}
    for wrong in (
        [doc["wrong"] for doc in docs],
        ["    return None\n"] * len(docs),
        [off(doc) for doc in docs],
    ):
        assert passed(verdicts(docs, wrong)) == []


def test_all_canonical_solutions_of_humaneval_pass() -> None:
    docs = documents("humaneval/HumanEval.jsonl.gz")
    assert len(docs) == 164
    assert not_passed(verdicts(docs, [doc["canonical_solution"] for doc in docs])) == {}


def test_all_broken_solutions_of_humaneval_fail() -> None:
    docs = documents("humaneval/HumanEval.jsonl.gz")
    assert passed(verdicts(docs, [off(doc) for doc in docs])) == []


@pytest.mark.slow
def test_solutions_of_humaneval_without_result_fail() -> None:
    docs = documents("humaneval/HumanEval.jsonl.gz")
    assert passed(verdicts(docs, ["    return None\n"] * len(docs))) == []


@pytest.mark.slow
def test_all_canonical_solutions_of_humaneval_plus_pass_but_one() -> None:
    """HumanEval/32 cannot pass: its tests unpack a number (an upstream defect)."""
    docs = documents("humanevalplus/HumanEvalPlus-OriginFmt.jsonl.gz")
    assert len(docs) == 164
    assert list(not_passed(verdicts(docs, [doc["canonical_solution"] for doc in docs]))) == ["HumanEval/32"]


@pytest.mark.slow
def test_humaneval_has_the_same_verdicts_ten_times_under_load() -> None:
    docs = documents("humaneval/HumanEval.jsonl.gz")
    half = [off(doc) if i % 2 else doc["canonical_solution"] for i, doc in enumerate(docs)]
    quiet = verdicts(docs, half)
    assert len(passed(quiet)) == 82
    spin = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(spin) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        for _ in range(10):
            assert verdicts(docs, half) == quiet
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_several_answers_to_one_document_are_judged_one_by_one() -> None:
    doc = small_documents()[0]
    given = code.humaneval_verdicts([[doc["wrong"], doc["canonical_solution"]], [""]], [doc, doc])
    assert given == [["failed: AssertionError:", "passed"], ["[invalid]"]]


def test_a_program_is_run_once_unless_it_ran_out_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    docs, ran = small_documents()[:2], []

    def run(programs: list[sandbox.Program]) -> list[sandbox.Verdict]:
        ran.append([program.source for program in programs])
        return [sandbox.Verdict("timeout" if "slow" in p.source else "passed") for p in programs]

    monkeypatch.setattr(code, "_known", {})
    monkeypatch.setattr(sandbox, "run", run)
    quick, slow = (
        f"{doc['prompt']}    {body}" for doc, body in zip(docs, ("quick()", "slow()"), strict=True)
    )
    for _ in range(2):
        given = code.humaneval_verdicts([["    quick()", "    quick()"], ["    slow()"]], docs)
        assert given == [["passed", "passed"], ["timeout"]]
    assert ran == [[quick, slow], [slow]]
    assert code.humaneval_verdicts([["    other()"]], docs[:1]) == [["passed"]]
    assert len(ran) == 3


def test_an_answer_without_code_is_not_extracted_and_scores_zero() -> None:
    doc = small_documents()[0]
    for answer in ("", "  \n", "```\nreturn 2 * x\n```"):
        assert code.humaneval_program(doc, answer) is None
    assert code.pass_at_1(doc, ["[invalid]"]) == {"pass@1": 0.0}


def test_only_passed_is_a_pass() -> None:
    assert code.pass_at_1({}, ["passed"]) == {"pass@1": 1.0}
    for verdict in ("failed", "failed: passed", "timeout: not done after 60 s", "passed: or so"):
        assert code.pass_at_1({}, [verdict]) == {"pass@1": 0.0}


def test_an_answer_cannot_redefine_what_the_tests_rely_on() -> None:
    doc = small_documents()[2]
    cheat = "    return s\ndef shift(s):\n    return s\n"
    assert verdicts([doc], [cheat]) == {"small/2": "failed: AssertionError:"}


def test_a_prompt_without_docstring_is_still_a_function() -> None:
    doc = small_documents()[0] | {"prompt": "def double(x: int) -> int:\n"}
    assert verdicts([doc], [doc["canonical_solution"]]) == {"small/0": "passed"}


def test_a_prompt_that_is_no_python_is_an_error_in_one_line() -> None:
    with pytest.raises(UserError, match="must be Python") as caught:
        code.humaneval_program(small_documents()[0] | {"prompt": "Write a function."}, "    return 1")
    assert "\n" not in str(caught.value)


HUMANEVAL = small_documents()[0]
ODD = {
    # (what is changed in a document, what the message names)
    "no entry point": (HUMANEVAL, {"entry_point": None}, "entry_point"),
    "an empty entry point": (HUMANEVAL, {"entry_point": ""}, "entry_point"),
    "an entry point that is a number": (HUMANEVAL, {"entry_point": 1}, "entry_point"),
    "an entry point of another prompt": (HUMANEVAL, {"entry_point": "treble"}, "define 'treble'"),
    "an entry point that calls": (HUMANEVAL, {"entry_point": "double), (double"}, "entry_point"),
    "a prompt without a function": (HUMANEVAL, {"prompt": "x = 1\n"}, "define 'double'"),
    "no prompt": (HUMANEVAL, {"prompt": None}, "prompt"),
    "no tests": (HUMANEVAL, {"test": None}, "test"),
    "empty tests": (HUMANEVAL, {"test": ""}, "test"),
    "tests without check": (
        HUMANEVAL,
        {"test": "def verify(candidate):\n    assert candidate(2) == 4\n"},
        "check",
    ),
    "a check that is no function": (HUMANEVAL, {"test": "check = print\n"}, "check"),
    "a check that is never awaited": (HUMANEVAL, {"test": f"async {HUMANEVAL['test']}"}, "check"),
    "a check of nothing": (HUMANEVAL, {"test": "def check():\n    assert double(2) == 4\n"}, "check"),
    "a check that asks nothing": (HUMANEVAL, {"test": "def check(candidate):\n    pass\n"}, "check"),
    "no list of tests": ({}, {"text": "Add."}, "entry_point"),
    "a list of no tests": ({}, {"test_list": []}, "test_list"),
    "a list of empty tests": ({}, {"test_list": ["", "", ""]}, "test_list"),
    "a list of numbers": ({}, {"test_list": [1, 2, 3]}, "test_list"),
    "tests that ask nothing": ({}, {"test_list": ["assert True"] * 3}, "test_list"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_document_that_can_judge_no_answer_is_refused_in_one_line(name: str) -> None:
    doc, changed, message = ODD[name]
    given = {key: value for key, value in (doc | changed).items() if value is not None}
    with pytest.raises(UserError, match=message) as caught:
        code.check(given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize("name", ["humaneval/HumanEval", "humanevalplus/HumanEvalPlus-OriginFmt"])
def test_every_document_of_the_benchmarks_is_accepted(name: str) -> None:
    for doc in documents(f"{name}.jsonl.gz"):
        code.check(doc)


def test_documents_of_mbpps_form_are_accepted() -> None:
    for doc in MBPP:
        code.check(doc)


# ---- programs as the stock tasks build them ----


def stock_function(task: str, name: str) -> Any:
    """A function of a stock task's utils.py, without the rest of the file, which asks the hub when it is imported."""
    tree = ast.parse((STOCK / task / "utils.py").read_text())
    functions: list[ast.stmt] = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    scope: dict[str, Any] = {"re": re, "Union": Union}
    exec(compile(ast.Module(functions, []), "stock", "exec"), scope)
    return scope[name]


ANSWERS = [
    "    return 1\n",
    "    return 1\n```\nThis returns one.",
    "    return 1\n\n```python\nprint(f())\n```\n",
    "Here it is:\n```python\ndef f():\n    return 1\n```",
    "def f():\n    return 1\n```",
    "python\ndef f():\n    return 1\n```\nand\n```python\nx\n```",
    "\n    return 1\n",
    "``\n    return 1",
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_humaneval_programs_are_those_of_the_stock_task(answer: str) -> None:
    doc = {
        "prompt": 'def f():\n    """ One. """\n',
        "test": "def check(c): assert c() == 1",
        "entry_point": "f",
    }
    ((expected,),) = stock_function("humaneval", "build_predictions_instruct")([[answer]], [doc])
    program = code.humaneval_program(doc, answer)
    assert program is not None and program.source == expected


@pytest.mark.parametrize("answer", ANSWERS)
def test_mbpp_programs_are_those_of_the_stock_task(answer: str) -> None:
    """With the end of the fence's line put back, without which the stock task drops the first word."""
    build = stock_function("mbpp", "build_predictions")
    ((expected,),) = build([["\n" + answer]], [{}])
    program = code.mbpp_program({"test_list": ["assert f() == 1"]}, answer)
    assert (program.source if program else "") == expected
    assert build([["def f():\n    return 1\n```"]], [{}]) == [[" f():\n    return 1"]]


@pytest.mark.parametrize(("ours", "stock"), [("humaneval", "humaneval_instruct"), ("mbpp", "mbpp_instruct")])
def test_task_files_differ_from_the_stock_ones_only_where_they_say(ours: str, stock: str) -> None:
    def fields(path: Path) -> dict[str, Any]:
        return lm_eval.tasks._yaml_loader.load_yaml(path, resolve_func=False)

    mine, theirs = fields(ROOT / f"evals/tasks/{ours}.yaml"), fields(STOCK / ours / f"{stock}.yaml")
    changed = {"task", "unsafe_code", "metric_list", "filter_list", "process_results", "fewshot_config"}
    assert {k: v for k, v in mine.items() if k not in changed} == {
        k: v for k, v in theirs.items() if k not in changed
    }
    assert [f["name"] for f in mine["filter_list"]] == [f["name"] for f in theirs["filter_list"]]


# ---- MBPP ----

MBPP = [
    {
        "task_id": i,
        "text": "Write a function to add two numbers.",
        "code": "def add(a, b):\r\n  return a + b",
        "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(-1, 1) == 0"],
    }
    for i in range(1, 6)
]


def test_mbpp_tests_use_what_the_program_defines() -> None:
    """Like MBPP's own test of chains of pairs: a class of the answer, and a module that it imported."""
    answer = """
import math
class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b
def longest(pairs):
    return max(pairs, key=lambda p: p.b - p.a).b
```"""
    tests = ["assert longest([Pair(1, 2), Pair(1, 9)]) == 9", "assert math.isclose(longest([Pair(0, 1)]), 1)"]
    assert code.mbpp_verdicts([[answer]], [{"test_list": tests}]) == [["passed"]]
    assert code.mbpp_verdicts([[answer]], [{"test_list": [*tests, "assert missing(1)"]}]) == [
        ["failed: NameError: name 'missing' is not defined"]
    ]


def test_mbpp_tests_compare_with_functions_of_their_own() -> None:
    tests = ["assert math.isclose(half(3), 1.5)", "assert sorted(half(x) for x in (4, 2)) == [1, 2]"]
    own = "class math:\n    isclose = lambda *a, **k: True\nsorted = lambda *a: [1, 2]\n"
    for answer, passed in (
        ("def half(x): return x / 2", True),
        ("import math\ndef half(x): return x / 2", True),
        (f"{own}def half(x): return x / 2", True),
        (f"{own}def half(x): return 0", False),
    ):
        ((verdict,),) = code.mbpp_verdicts([[answer + "\n```"]], [{"test_list": tests}])
        assert (verdict == "passed") is passed, verdict


def test_mbpp_answers_without_a_closed_block_are_not_extracted() -> None:
    given = code.mbpp_verdicts([["def add(a, b):\n  return a + b"], [MBPP[0]["code"] + "\n```"]], MBPP[:2])
    assert given == [["[invalid]"], ["passed"]]


# ---- through lm-eval ----


class Scripted(LM):
    """A model that answers from the document, and keeps the prompts it saw."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.prompts = answer, []  # type: ignore[var-annotated]

    def generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        self.prompts += [request.args[0] for request in requests]
        return [self.answer(i, request.doc) for i, request in enumerate(requests)]

    def loglikelihood(self, requests: Any, **_: Any) -> Any:
        raise AssertionError("no option is scored in these tasks")

    loglikelihood_rolling = loglikelihood


@functools.cache
def manager() -> TaskManager:
    return TaskManager(include_path=str(ROOT / "evals/tasks"), include_defaults=False)


def evaluate(task: str, splits: dict[str, list[dict[str, Any]]], model: Scripted) -> dict[str, Any]:
    data = datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in splits.items()})
    loaded = manager().load([{"group": "g", "task": [{"task": task, "custom_dataset": lambda **_: data}]}])
    return evaluator.evaluate(model, {"tasks": loaded["tasks"]}, log_samples=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("task", ["rv_humaneval", "rv_humaneval_plus"])
def test_lm_eval_scores_humaneval_with_our_verdicts(task: str) -> None:
    docs = small_documents()
    model = Scripted(
        lambda i, doc: doc["wrong"] if i == 1 else "" if i == 2 else doc["canonical_solution"] + "```"
    )
    results = evaluate(task, {"test": docs}, model)
    assert results["results"][task]["pass@1,create_test"] == pytest.approx(4 / 6)
    samples = sorted(results["samples"][task], key=lambda s: s["doc_id"])
    assert [s["pass@1"] for s in samples] == [1, 0, 0, 1, 1, 1]
    assert [s["filtered_resps"][0].partition(":")[0] for s in samples[:3]] == [
        "passed",
        "failed",
        "[invalid]",
    ]
    assert model.prompts[0].endswith(f"Here is the completed function:\n```python\n{docs[0]['prompt']}\n")
    assert "lm_eval.tasks.humaneval.utils" not in sys.modules


def test_lm_eval_scores_mbpp_with_the_examples_of_its_prompt_split() -> None:
    model = Scripted(lambda i, doc: doc["code"] + "\n```" if i == 0 else "    return 0\n```")
    results = evaluate("rv_mbpp", {"test": MBPP[:2], "prompt": MBPP}, model)
    assert results["results"]["rv_mbpp"]["pass@1,extract_code"] == pytest.approx(1 / 2)
    assert model.prompts[0].count("Your code should pass these tests:") == 4
    assert model.prompts[0].count("return a + b\n```") == 3
    assert model.prompts[0].endswith("```python\n")
    assert "lm_eval.tasks.mbpp.utils" not in sys.modules
