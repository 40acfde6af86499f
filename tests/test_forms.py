"""The forms of SciQ, HumanEval and BBH in which "Think step by step." can act: what is asked, and what is made of an answer."""

import pytest

from evals import choices, programs
from evals.sandbox import require
from pipeline.config.compose import compose

DOC = {
    "question": "What do plants take in?",
    "correct_answer": "carbon dioxide",
    "distractor1": "helium",
    "distractor2": "argon",
    "distractor3": "neon gas",
    "support": "Plants breathe.",
}
RIGHT = choices.gold(DOC)
WRONG = next(letter for letter in choices.LETTERS if letter != RIGHT)


def test_the_options_are_lettered_in_an_order_that_the_file_does_not_set() -> None:
    text = choices.question(DOC)
    assert text.startswith("Plants breathe.\nQuestion: What do plants take in?\nA. ")
    assert f"\n{RIGHT}. carbon dioxide\n" in text
    swapped = DOC | {"distractor1": "neon gas", "distractor3": "helium"}
    assert choices.question(swapped) == text
    assert choices.question(DOC | {"support": ""}).startswith("Question:")
    golds = [choices.gold(DOC | {"question": f"What is {n}?"}) for n in range(400)]
    assert all(60 <= golds.count(letter) <= 140 for letter in choices.LETTERS), "no letter is the likely one"


@pytest.mark.parametrize(
    ("answer", "flexible", "strict"),
    [
        (f"Answer: {RIGHT}", RIGHT, RIGHT),
        (f"Plants need it.\n\n**Answer: {RIGHT}.**", RIGHT, RIGHT),
        (f"It could be {WRONG}. But no.\nAnswer: ({RIGHT})", RIGHT, RIGHT),
        (f"The answer is {WRONG}, I thought; the answer is {RIGHT}.", RIGHT, choices.INVALID),
        (f"so \\boxed{{{RIGHT}}}", RIGHT, choices.INVALID),
        (f"so \\boxed{{\\text{{{RIGHT}}}}}", RIGHT, choices.INVALID),
        (f"{RIGHT}. carbon dioxide", RIGHT, choices.INVALID),
        ("Not helium. They take in Carbon Dioxide.", RIGHT, choices.INVALID),
        (f"Answer: {RIGHT}\nBut then they also use argon", RIGHT, choices.INVALID),
        ("Answer: Anything at all", choices.INVALID, choices.INVALID),
        ("A plant takes in air", choices.INVALID, choices.INVALID),
        ("", choices.INVALID, choices.INVALID),
    ],
)
def test_the_letter_of_an_answer(answer: str, flexible: str, strict: str) -> None:
    assert choices.flexible([[answer]], [DOC]) == [[flexible]]
    assert choices.strict([[answer]], [DOC]) == [[strict]]
    assert choices.scores(DOC, [flexible]) == {"exact_match": float(flexible == RIGHT)}


PROGRAM = {
    "prompt": 'from typing import List\n\ndef total(xs: List[int]) -> int:\n    """The sum."""\n',
    "entry_point": "total",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n",
}
SOUND = "def total(xs: List[int]) -> int:\n    return sum(xs)\n"
FALSE = "def total(xs: List[int]) -> int:\n    return 0\n"


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        (f"First I add them up.\n```python\n{SOUND}```\nThat is it.", True),
        (f"```python\n{FALSE}```\nNo, better:\n```python\n{SOUND}```\nand `print(1)`", True),
        (f"```python\n{SOUND}```\nIts use:\n```python\nprint(total([1]))\n```", True),
        (f"```\n{SOUND}```", True),
        (f"```python\n{SOUND}", True),
        (SOUND, True),
        (f"```python\n{FALSE}```", False),
        ("    return sum(xs)\n", False),
        ("I do not know.", False),
        ("", False),
    ],
)
def test_the_program_of_an_answer(answer: str, passes: bool) -> None:
    require(True)
    ((verdict,),) = programs.verdicts([[answer]], [PROGRAM])
    assert (verdict == "passed") == passes, verdict


def test_the_suite_of_the_paper_has_both_forms_and_marks_them() -> None:
    benchmarks = compose(["experiment=paper"]).benchmarks
    for stock, form in (
        ("sciq", "sciq_written"),
        ("humaneval", "humaneval_instruction"),
        ("bbh", "bbh_plain"),
        ("bbh", "bbh_zeroshot"),
    ):
        assert benchmarks[form].label.startswith(f"{benchmarks[stock].label} (")
        assert benchmarks[form].dataset.id == benchmarks[stock].dataset.id
        assert benchmarks[stock].published and not benchmarks[form].published
    assert benchmarks["bbh_plain"].changes == {"doc_to_text": "Q: {{input}}\nA:"}
