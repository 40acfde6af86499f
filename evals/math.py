"""Scores answers to mathematics problems (AIME, AMC, Minerva Math, OlympiadBench, MATH-500), in the form that lm-eval calls.

Two measures of the same answers. `math_verify`: what math-verify extracts has the value of the gold answer. `exact_match`:
the strings are equal as lm-eval's hendrycks_math500 compares them, by that task's own code.

math-verify runs in processes of its own (`math_judge.py`), so that no answer can stop, crash or fill this one, from
whichever thread it is asked. The files of these benchmarks differ in their fields: question and gold answer are taken from
what is there. Which gold answers math-verify cannot read, and what it reads otherwise than a mathematician: docs/math.md.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

JUDGE = Path(__file__).with_name("math_judge.py")
INVALID = "[invalid]"  # what lm-eval's filters return when nothing matches
CPU_SECONDS = 10  # for one answer, which ordinarily takes 0.02
WORKERS = 16  # at most, of some 80 MB each
QUESTION = ("question", "problem", "Problem")
ANSWER = ("final_answer", "answer", "Answer")
Doc = dict[str, Any]


class Judged(str):
    """What was extracted from an answer, INVALID where nothing was; `right` if it is the gold answer."""

    right: bool

    def __new__(cls, extracted: str | None, right: bool) -> "Judged":
        judged = super().__new__(cls, extracted or INVALID)
        judged.right = right
        return judged


def question(doc: Doc) -> str:
    """The problem alone.

    Raises:
        LookupError: if there is none.
    """
    return str(_first(doc, QUESTION)).strip()


def gold(doc: Doc) -> str:
    """The gold answer in LaTeX, several joined by commas; without a field of its own, what is boxed in the solution.

    Raises:
        LookupError: if there is none.
    """
    if not any(_is_given(doc, field) for field in ANSWER):
        return _last_box(_first(doc, ("solution",)))
    answer = _first(doc, ANSWER)
    if isinstance(answer, list):
        return ",".join(map(str, answer)).strip()
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)  # AMC23: 27.0
    return str(answer).strip()


def verdicts(resps: list[list[str]], docs: list[Doc]) -> list[list[Judged]]:
    """A filter: what math-verify makes of every answer, in the shape of `resps`."""
    jobs = [(gold(doc), answer) for answers, doc in zip(resps, docs, strict=True) for answer in answers]
    judged = iter(judge(jobs))
    return [[next(judged) for _ in answers] for answers in resps]


def scores(doc: Doc, results: list[str]) -> dict[str, float]:
    """lm-eval's process_results: `math_verify` of what `verdicts` returned, `exact_match` of any other text."""
    (answer,) = results
    if isinstance(answer, Judged):
        return {"math_verify": float(answer.right)}
    return {"exact_match": float(equals_as_strings(gold(doc), answer))}


def equals_as_strings(answer: str, text: str) -> bool:
    """The score of lm-eval's hendrycks_math500: all that stands between the first and the last dollar sign of a text."""
    from lm_eval.tasks.hendrycks_math.utils import process_results

    solution = f"\\boxed{{{answer}}}"
    return bool(process_results({"solution": solution}, [text])["exact_match"])


def judge(jobs: Sequence[tuple[str, str]], cpu_seconds: int = CPU_SECONDS) -> list[Judged]:
    """The verdict on each pair of a gold answer and an answer; each different pair is judged once in this process.

    Raises:
        UserError: if math-verify does not run here.
    """
    new = {job: _key(job) for job in jobs}
    new = {job: key for job, key in new.items() if key not in _known}
    if new:
        _known.update(zip(new.values(), _run(list(new), cpu_seconds), strict=True))
    return [_known[_key(job)] for job in jobs]


_known: dict[bytes, Judged] = {}


def forms(answer: str) -> list[str]:
    """A gold answer, and other ways to write it without which math-verify misreads it: 4.5e33 would be 4.5 · e · 33.

    Small numbers are written out: of powers, those that differ by less than 1e-15 would be equal.
    """
    written = list(dict.fromkeys([answer, answer.removesuffix(".")]))
    if number := re.fullmatch(r"([+-]?[\d.]+)e(-?)(\d+)", answer):
        power = f"{number[1]} \\times 10^{{{number[3]}}}"
        written.append(format(Decimal(answer), "f") if number[2] else power)
    if share := re.fullmatch(r"\$?([\d.]+) *\\?%\$?", answer):
        written += [f"{share[1]}\\%", share[1]]
    if "./" in answer:
        written.append(answer.replace("./", "/"))  # -1./3
    return written


def _run(jobs: list[tuple[str, str]], cpu_seconds: int) -> list[Judged]:
    workers = min(len(os.sched_getaffinity(0)), WORKERS)
    asked = [{"forms": forms(answer), "answer": text} for answer, text in jobs]
    ran = subprocess.run(
        [sys.executable, "-P", str(JUDGE)],
        input=json.dumps({"workers": workers, "cpu_seconds": cpu_seconds, "jobs": asked}),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "0"},
        start_new_session=True,  # an interrupt is for this process, which then ends the judge
    )
    if ran.returncode:
        reason = (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]
        raise UserError(f"answers cannot be judged: math-verify does not run ({reason}); run `make setup`")
    return [Judged(*verdict) for verdict in json.loads(ran.stdout)]


def _key(job: tuple[str, str]) -> bytes:
    return hashlib.sha256(repr(job).encode()).digest()  # repr: a text may hold half a character


def _is_given(doc: Doc, field: str) -> bool:
    return doc.get(field) not in (None, "", [])


def _first(doc: Doc, fields: tuple[str, ...]) -> Any:
    found = next((doc[field] for field in fields if _is_given(doc, field)), None)
    if found is None:
        raise LookupError(f"expected one of the fields {', '.join(fields)}")
    return found


def _last_box(solution: str) -> str:
    from lm_eval.tasks.hendrycks_math.utils import last_boxed_only_string, remove_boxed

    box = last_boxed_only_string(solution)
    if box is None:
        raise LookupError("expected an answer in a \\boxed of the solution")
    return str(remove_boxed(box)).strip()
