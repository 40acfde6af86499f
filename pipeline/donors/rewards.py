"""Rewards of GRPO: the exact answer, and a little for its form."""

import re
from typing import Any


def final_answer(text: str) -> str | None:
    """The number after the last `####`, without commas; None where there is none."""
    found = re.findall(r"#### (-?[0-9][0-9.,]*)", text)
    return found[-1].replace(",", "").rstrip(".") if found else None


def correctness(completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
    """1.0 where the completion's final number is the answer's, which must have one."""
    pairs = [
        (final_answer(text), final_answer(right)) for text, right in zip(completions, answer, strict=True)
    ]
    return [float(found is not None and found == right) for found, right in pairs]


def form(completions: list[str], **_: Any) -> list[float | None]:
    """0.1 where the text has `####` once and ends with it and a number.

    What comes before it on its line does not count, and points and commas alone pass for a number.
    """
    return [0.1 * bool(re.fullmatch(r"(?s)((?!####).)*#### -?[0-9.,]+\s*", text)) for text in completions]
