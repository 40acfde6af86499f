"""Mathematics: gold answers are right, wrong ones wrong, and no answer can stop, crash or sway the scorer."""

import json
import random
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks.hendrycks_math import utils as hendrycks

from evals import math, math_judge
from pipeline.commands import prompt as prompts
from pipeline.config.compose import compose
from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.evaluate.tasks import load_task, manager_of
from pipeline.files import ROOT
from pipeline.plan import keys
from pipeline.plan.grid import columns
from pipeline.plan.sources import find_sources
from pipeline.stages import prepare
from tests import tiny

SHARED = Path("../shared/data/math")
FILES = ("aime24", "aime25", "amc23", "minerva_math", "olympiadbench", "math500")
DOCUMENTS: dict[str, dict[str, Any]] = {  # one in the shape of each file, of the hub's where it differs
    "025": {"problem": "How long?", "question": "How long?", "answer": "025", "solution": "It is 25."},
    "73": {"Problem": "How long?", "Answer": 73, "Solution": "It is 73.", "ID": "2024-II-4"},
    "336^\\circ": {"problem": "Which angle?", "answer": "336^\\circ"},
    "27": {"id": 0, "problem": "How far?", "answer": 27.0, "question": "How far?"},
    "4.5e33": {
        "problem": "How bright?",
        "solution": "\\boxed{1}, no, it is \\boxed{4.5e33} erg/s.",
        "idx": 1,
    },
    "$69$,$84$": {"question": "Which $n$?", "final_answer": ["$69$,$84$"], "answer_type": "Numerical"},
    "\\frac{14}{3}": {
        "problem": "How much?",
        "solution": "$\\boxed{\\frac{14}{3}}$",
        "answer": "\\frac{14}{3}",
    },
}


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHARED / f"{name}.jsonl").read_text().splitlines() if line]


def right(gold: str, answer: str) -> bool:
    """In this process: ten times as quick, and without limits."""
    return math_judge.judge(math.forms(gold), answer)[1]


@pytest.mark.parametrize("gold", DOCUMENTS)
def test_question_and_gold_answer_are_found_in_documents_of_every_shape(gold: str) -> None:
    doc = DOCUMENTS[gold]
    assert math.gold(doc) == gold
    assert math.question(doc) == (doc.get("question") or doc.get("problem") or doc["Problem"])


@pytest.mark.parametrize(
    "doc", [{"problem": "Why?"}, {"problem": "Why?", "answer": ""}, {"problem": "Why?", "solution": "So."}]
)
def test_a_document_without_a_gold_answer_is_refused(doc: dict[str, Any]) -> None:
    with pytest.raises(LookupError, match="expected"):
        math.gold(doc)


def test_the_gold_answer_of_made_up_documents_is_right_and_that_of_another_wrong() -> None:
    golds = [math.gold(doc) for doc in DOCUMENTS.values()]
    judged = math.judge([(gold, f"So it is $\\boxed{{{other}}}$.") for gold in golds for other in golds])
    assert [verdict.right for verdict in judged] == [a == b for a in golds for b in golds]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmarks' own files are not here")
def test_the_gold_answer_of_every_document_is_right(name: str) -> None:
    golds = [math.gold(row) for row in rows(name)]
    assert [gold for gold in golds if not right(gold, f"So the answer is $\\boxed{{{gold}}}$.")] == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmarks' own files are not here")
def test_the_gold_answers_without_a_value_are_those_of_the_table_in_the_docs() -> None:
    def has_a_value(gold: str) -> bool:
        read = [part for form in math.forms(gold) for part in math_judge.read_gold(form)]
        values = [part for part in read if not isinstance(part, str)]
        return bool(values) and math_judge.verify(values, values, timeout_seconds=None)

    found = {(f, n) for f in FILES for n, row in enumerate(rows(f)) if not has_a_value(math.gold(row))}
    table = re.findall(r"^\| (\w+) \| (\d+) \|", (ROOT / "docs" / "math.md").read_text(), re.M)
    assert found == {(name, int(number)) for name, number in table}


EQUAL = [
    ("\\frac{1}{2}", "It is $0.5$."),
    ("\\frac{1}{2}", "First $\\boxed{3}$, then: $\\boxed{\\dfrac12}$"),
    ("27", "\\boxed{27.0}"),
    ("025", "The answer is 25."),
    ("x=5", "\\boxed{5}"),
    ("58,500", "\\boxed{58500}"),
    ("$69$,$84$", "\\boxed{84, 69}"),
    ("\\text{Evelyn}", "\\boxed{Evelyn}"),
    ("90^\\circ", "\\boxed{90}"),
    ("4.5e33", "$4.50 \\times 10^{33}$ erg/s"),
    ("2.88e-19", "\\boxed{2.88 \\cdot 10^{-19} \\text{ J}}"),
    (".0000672", "\\boxed{6.72\\times 10^{-5}}"),
    ("62.5%", "\\boxed{62.5\\%}"),
    ("62.5%", "62.5 percent"),
    ("50", "That is $30$ of $60$: $\\boxed{50\\%}$."),
    ("\\frac{1}{2}", "\\boxed{50 \\%}"),
    ("-1./3", "\\boxed{-\\frac{1}{3}}"),
    ("$(-\\infty, 0) \\cup\\{1\\}$.", "\\boxed{(-\\infty,0)\\cup\\{1\\}}"),
]
DIFFERENT = [
    ("\\frac{1}{2}", "\\boxed{0.5}, or rather $\\boxed{0.51}$"),
    ("27", "27 or 28"),
    ("27", ""),
    ("27", "$27$, but for the \\boxed{"),
    ("60", "That is $30$ of $60$: $\\boxed{50\\%}$."),
    ("3", "From $3$ follows $\\boxed{E_1}$."),  # the box cannot be read: no other formula counts
    ("4.5e33", "\\boxed{403.66}"),  # 4.5 · e · 33
    ("2.88e-19", "\\boxed{2.9 \\times 10^{-19}}"),
    ("2.88e-19", "\\boxed{0}"),
    (".0000672", "\\boxed{0.000067}"),
    (
        "\\frac{1}{3} E_{1}+\\frac{2}{3} E_{2}",
        "\\boxed{\\frac{2}{3}}",
    ),  # cannot be read: no number in it counts
]


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_an_answer_with_the_value_of_the_gold_answer_is_right(gold: str, answer: str) -> None:
    assert right(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_an_answer_with_another_value_is_wrong(gold: str, answer: str) -> None:
    assert not right(gold, answer)


HOSTILE = [
    "\\boxed{\\dfrac{5^{\\left(5^{\\left(5^{\\left(5^5\\right)}\\right)} - 4\\right)} - 5}{16}}",  # hangs math-verify
    "The answer is 9**9**9**9",
    "$((10^9)!)!$",
    "$\\binom{10^9}{5\\cdot 10^8}$",
    "$" + "\\frac{" * 3000 + "1" + "}{2}" * 3000 + "$",
    "\\boxed{" * 5000,
    "$" * 20001,
    "\\boxed{\\int_0^1 e^{x^2}\\sin(x^3)\\ln x\\,dx}",
    "\ud800 \x00 \\boxed{\u0663\u222b\ufffd",
    "1 " * 2000,
]


def test_hostile_answers_are_wrong_within_their_time_and_harm_no_other() -> None:
    asked = [
        job for text in HOSTILE for job in (("7", text), (text[:9], f"\\boxed{{{text[:9]}}}"), ("7", "$7$"))
    ]
    judged = math.judge(asked, cpu_seconds=1)
    assert [verdict.right for verdict in judged[::3]] == [False] * len(HOSTILE)
    assert [verdict.right for verdict in judged[2::3]] == [True] * len(HOSTILE)
    ended = judged[0], judged[12]  # one while it was compared, the other while it was read
    assert ended == ("\\frac{5^{(5^{(5^{(5^5)})} - 4)} - 5}{16}", math.INVALID)


def test_a_verdict_does_not_depend_on_order_workers_or_company() -> None:
    jobs = [{"forms": math.forms(gold), "answer": answer} for gold, answer in EQUAL + DIFFERENT]
    alone = [math_judge.judge_all([job], 1, 10)[0] for job in jobs]
    order = random.Random(0).sample(range(len(jobs)), len(jobs))
    together = math_judge.judge_all([jobs[i] for i in order], 3, 10)
    assert [together[order.index(i)] for i in range(len(jobs))] == alone
    assert [verdict for _, verdict in alone] == [True] * len(EQUAL) + [False] * len(DIFFERENT)


def test_answers_are_judged_in_any_thread() -> None:
    math._known.clear()
    found: list[list[math.Judged]] = []
    asked = [("\\frac{3}{4}", "\\boxed{0.75}"), ("\\frac{3}{4}", "\\boxed{0.7}")]
    threads = [threading.Thread(target=lambda: found.append(math.judge(asked))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[verdict.right for verdict in judged] for judged in found] == [[True, False]] * 2


def test_without_math_verify_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text("raise ImportError('No module named math_verify')")
    monkeypatch.setattr(math, "JUDGE", judge)
    with pytest.raises(
        UserError, match=r"cannot be judged.*No module named math_verify.*make setup"
    ) as caught:
        math.judge([("1", "one")])
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "math").mkdir()
    lines = [json.dumps({"problem": f"What is {n} plus {n}?", "answer": str(2 * n)}) for n in (1, 2, 3, 4)]
    for name in FILES:
        (folder / "math" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    model = tiny.write(tmp_path_factory.mktemp("models") / "model")
    return ["experiment=model", "suite=math", f"families.model.target.id={model}", f"data.folder={folder}"]


@pytest.fixture(scope="module")
def config(overrides: list[str]) -> Config:
    return compose(overrides)


ANSWERS = ["It is $\\boxed{2}$.", "$x = 4$", "6", "I cannot say."]


@pytest.mark.parametrize("name", FILES)
def test_both_measures_stand_side_by_side_on_the_same_answers(name: str, config: Config) -> None:
    task = next(task for task in columns(config) if task.name == name)
    benchmark = find_sources(config).benchmark(task)
    loaded = load_task(manager_of([benchmark]), benchmark, None, config.prompts["plain"])
    loaded.build_all_requests(rank=0, world_size=1)
    for request, answer in zip(loaded.instances, ANSWERS, strict=True):
        request.resps = [answer]
    loaded.apply_filters()

    def scores(request: Any, filtered: str) -> dict[str, float]:
        return loaded.process_results(request.doc, [request.filtered_resps[filtered]])

    requests = loaded.instances
    assert [scores(r, "flexible-extract") for r in requests] == [{"math_verify": x} for x in (1, 1, 1, 0)]
    assert [scores(r, "boxed") for r in requests] == [{"exact_match": x} for x in (1, 0, 0, 0)]
    stock = [
        hendrycks.process_results({"solution": f"\\boxed{{{2 * n}}}"}, [answer])["exact_match"]
        for n, answer in enumerate(ANSWERS, 1)
    ]
    assert [scores(r, "none") for r in requests] == [{"exact_match": x} for x in stock] and sum(stock) == 2
    extracted = [r.filtered_resps["flexible-extract"] for r in requests]
    assert extracted == ["2", "x = 4", "6", math.INVALID]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmarks' own files are not here")
def test_the_comparison_of_strings_is_that_of_hendrycks_math500_on_its_own_documents() -> None:
    documents = rows("math500")
    for doc, other in zip(documents, [*documents[1:], documents[0]], strict=True):
        for answer in (doc["answer"], f"${doc['answer']}$", doc["solution"], other["answer"]):
            theirs = hendrycks.process_results(doc, [answer])["exact_match"]
            assert math.equals_as_strings(math.gold(doc), answer) == bool(theirs)


def test_the_key_moves_with_the_scorer_and_what_it_is_made_of(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        keys._task_definition.cache_clear()
        return next(cell.key for cell in prepare(config).cells if cell.benchmark.name == "amc23")

    before = key()
    plain = keys.code_fingerprint, keys._version
    monkeypatch.setattr(
        keys, "code_fingerprint", lambda path: (path.name == "math_judge.py") or plain[0](path)
    )
    assert key() != before
    monkeypatch.setattr(keys, "code_fingerprint", plain[0])
    monkeypatch.setattr(
        keys, "_version", lambda *names: "9" if names[0] == "math-verify" else plain[1](*names)
    )
    assert key() != before
    monkeypatch.undo()
    assert key() == before
    keys._task_definition.cache_clear()


def test_the_boxed_prompt_is_a_system_turn_before_the_bare_question(overrides: list[str]) -> None:
    def shown(*further: str) -> str:
        asked = {"task": "amc23", "document": "1"}
        return " ".join(prompts.show(compose([*overrides, *further]), asked).split())

    instruction = "Please reason step by step, and put your final answer within \\boxed{}."
    boxed = shown("conditions.baseline.prompt=boxed")
    assert f"<|im_start|> system {instruction} <|im_end|>" in boxed
    assert "<|im_start|> user What is 2 plus 2? <|im_end|>" in boxed
    assert instruction not in shown() and "user What is 2 plus 2? <" in shown()
