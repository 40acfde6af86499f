"""Answers side by side in a terminal.

    print(side_by_side(model.ask("…"), width=110))

Columns where there is room for them, else one under the other. What a model writes is text: characters that would
steer the terminal are shown as their code.
"""

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

from pipeline.ask.session import Answer

LEAST = 28  # characters of a column
GAP = "  │ "


def side_by_side(answers: Sequence[Answer], width: int) -> str:
    """The answers with their rows' labels, in columns of equal width, or one under the other."""
    columns: dict[str, list[str]] = {}
    for answer in answers:
        columns.setdefault(answer.label, []).append(_text(answer))
    each = (width - len(GAP) * (len(columns) - 1)) // max(1, len(columns))
    if each < LEAST:
        return "\n".join(f"─── {label}\n{_joined(texts)}" for label, texts in columns.items())
    blocks = [
        [textwrap.shorten(label, each, placeholder="…"), "─" * each, *_wrapped(_joined(texts), each)]
        for label, texts in columns.items()
    ]
    lines = zip_longest(*blocks, fillvalue="")
    return "\n".join(GAP.join(f"{cell:<{each}}" for cell in line).rstrip() for line in lines)


def plain(text: str) -> str:
    """The text with every character that steers a terminal shown as its code."""
    return "".join(
        c if c.isprintable() or c == "\n" else "    " if c == "\t" else repr(c)[1:-1] for c in text
    )


def _text(answer: Answer) -> str:
    """An answer, and below it what it cost and scored."""
    facts = [] if answer.score is None else [f"score {answer.score:g}"]
    if answer.finish != "scored":
        facts += [f"{answer.tokens:g} tokens"]
    if answer.finish == "length":
        facts += ["cut at the limit"]
    return f"{plain(answer.text)}\n[{', '.join(facts)}]" if facts else plain(answer.text)


def _joined(texts: Sequence[str]) -> str:
    return "\n\n".join(texts)


def _wrapped(text: str, width: int) -> list[str]:
    lines = (
        textwrap.wrap(line, width, drop_whitespace=False, replace_whitespace=False)
        for line in text.split("\n")
    )
    return [piece for pieces in lines for piece in (pieces or [""])]
