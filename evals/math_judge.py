"""Judges answers to mathematics problems with math-verify, each in a process of its own.

    python -P evals/math_judge.py < work.json
    {"workers": 2, "cpu_seconds": 10, "jobs": [{"forms": ["\\\\frac{1}{2}"], "answer": "It is $0.5$."}, …]}

A job is the forms of one gold answer, and a model's answer. For each job, in order, the standard output has
`[extracted, right]`: the text that math-verify took for the answer (null: none), and whether it equals a form.

math-verify bounds its time by an alarm signal, which needs the main thread and cannot end an operation in C, such as a
power with more digits than the memory holds. So it runs here without: this process imports it once and forks off a child
for each job, and the kernel ends a child at its limit of CPU time or memory. An answer that ends its child is wrong, as
is one that raises. Every child starts from the same state and hash seed, so a verdict depends neither on the other jobs
nor, counted in CPU time, on the load of the machine.

Run with -P: beside this file lies evals/math.py, which must not stand for the standard library's math.
"""

import json
import logging
import math
import os
import re
import resource
import sys
from typing import Any, NoReturn

from math_verify import LatexExtractionConfig, parse, verify
from sympy import log

MEMORY_BYTES = 2 * 2**30  # of addresses
SHOWN = 1000  # characters of what was extracted that are kept: a pipe holds them
# What is in a box, and nothing else: math-verify would go on to another formula or number where it cannot read the box.
BOX = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]
# math-verify 0.9 reads a percentage in prose, but its grammar for formulas lacks one of the names that it asks for.
PERCENTAGE = re.compile(r"(-?[\d.,]+)\s*\\?%")

Verdict = tuple[str | None, bool]  # the text that was extracted, None without one; whether it is right


def main() -> None:
    """Judge the jobs of the standard input."""
    logging.disable()  # math-verify warns that it has no limit of time
    work = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    _warm_up()
    json.dump(judge_all(work["jobs"], work["workers"], work["cpu_seconds"]), sys.stdout)


def judge_all(jobs: list[dict[str, Any]], workers: int, cpu_seconds: int) -> list[Verdict]:
    """The verdict on each job, from `workers` children at a time."""
    verdicts: list[Verdict] = [(None, False)] * len(jobs)
    running: dict[int, tuple[int, int]] = {}  # process → job, pipe
    for number, job in enumerate(jobs):
        if len(running) == workers:
            _collect(running, verdicts)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            _judge_and_end(job, write, cpu_seconds)
        os.close(write)
        running[child] = (number, read)
    while running:
        _collect(running, verdicts)
    return verdicts


def judge(forms: list[str], answer: str) -> Verdict:
    """What was extracted from `answer`, and whether it equals one of the gold answer's forms; here, without limits."""
    extracted = extract(answer)
    return text_of(extracted), is_right(forms, extracted)


def extract(answer: str) -> list[Any]:
    """What math-verify takes for the answer: its text, and its value where it can be read; empty if there is none.

    Of an answer with a box, what is in the last one; else the last formula, else the last number.
    """
    found = (
        parse(answer, BOX, parsing_timeout=None)
        if "\\boxed{" in answer
        else parse(answer, parsing_timeout=None)
    )
    text = text_of(found)
    if text is not None and (share := PERCENTAGE.fullmatch(text)):
        return [text, *parse(f"{share[1]}%", parsing_timeout=None)]
    return found


def text_of(extracted: list[Any]) -> str | None:
    """The text of what was extracted, None without one."""
    return next((part[:SHOWN] for part in extracted if isinstance(part, str) and part), None)


def is_right(forms: list[str], extracted: list[Any]) -> bool:
    """Whether what was extracted equals one of the forms, by value or letter by letter."""
    gold = [part for form in forms for part in read_gold(form)]
    return verify(gold, extracted, float_rounding=decimals_of(gold), timeout_seconds=None)


def read_gold(form: str) -> list[Any]:
    """A form of a gold answer: its value, where it can be read, then its text."""
    return parse(f"\\boxed{{{form}}}", BOX, parsing_timeout=None)


def decimals_of(gold: list[Any]) -> int:
    """To how many decimals floats are compared: math-verify's six, but six digits of a gold answer below 0.001.

    Rounded to six decimals, 6.72e-5 would equal 6.7e-5, and 2.88e-19 would equal 0.
    """
    sizes = [abs(part).evalf() for part in gold if getattr(part, "is_number", False) and part.is_real]
    return max([6, *(6 + math.floor(-log(size, 10)) for size in sizes if 0 < size < 1e-3)])


def _warm_up() -> None:
    """Load what is loaded at the first use, LaTeX's grammar and sympy's simplification, once for all children."""
    judge(["x^2+2x+1"], "\\boxed{(x+1)^2}")
    judge(["\\{\\sqrt{2},1\\}"], "The answer is $1, \\sqrt 2$.")


def _judge_and_end(job: dict[str, Any], pipe: int, cpu_seconds: int) -> NoReturn:
    """In a child: tell what was extracted and the verdict, and end without the parent's handlers and buffers."""
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        extracted = extract(job["answer"])
        os.write(pipe, json.dumps(text_of(extracted)).encode() + b"\n")
        os.write(pipe, json.dumps(is_right(job["forms"], extracted)).encode() + b"\n")
    finally:
        os._exit(0)


def _collect(running: dict[int, tuple[int, int]], verdicts: list[Verdict]) -> None:
    """Wait for a child and read what it told before its end."""
    child, _ = os.wait()
    number, pipe = running.pop(child)
    with os.fdopen(pipe) as told:
        lines = [json.loads(line) for line in told]
    verdicts[number] = (lines[0] if lines else None, lines[1:] == [True])


if __name__ == "__main__":
    main()
