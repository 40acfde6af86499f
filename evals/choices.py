"""SciQ as a question with lettered options and a written answer, in the form that lm-eval calls.

The order of the options is that of a digest of question and option, so that it depends on neither the file nor a seed. Two
readings of one answer. `flexible`: the last letter or option that is said to be the answer (a box, "the answer is",
"Answer:", a line that begins with a letter), else the last option whose text is mentioned. `strict`: a last line "Answer: C".
"""

import hashlib
import re
from typing import Any

LETTERS = "ABCD"
INVALID = "[invalid]"  # what lm-eval's filters return when nothing matches
OPTIONS = ("correct_answer", "distractor1", "distractor2", "distractor3")
INSTRUCTION = 'End with a line "Answer: " and the letter of the right option.'
Doc = dict[str, Any]

_LETTER = r"[(\[*\\ ]*([A-D])(?![\w'’])"
_SAID = re.compile(rf"(?:\\boxed\{{(?:\\text\{{)?|[Aa]nswer(?: is)?:?|[Oo]ption){_LETTER}")
_LINE = re.compile(rf"^{_LETTER}(?:[).:*\]]|[ ]*$)", re.MULTILINE)  # not the article of "A plant"
_STRICT = re.compile(rf"^\W*Answer:{_LETTER}[).*\]]*\W*$")


def question(doc: Doc) -> str:
    """Support, question and options.

    Raises:
        LookupError: if an option or the question is missing.
    """
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, ordered(doc), strict=True))
    support = str(doc.get("support") or "").strip()
    asked = f"Question: {str(doc['question']).strip()}\n{options}\n{INSTRUCTION}"
    return f"{support}\n{asked}" if support else asked


def gold(doc: Doc) -> str:
    """The letter of the right option."""
    return LETTERS[ordered(doc).index(str(doc["correct_answer"]).strip())]


def ordered(doc: Doc) -> list[str]:
    """The options in the order in which they are asked.

    Raises:
        LookupError: if one is missing.
    """

    def place(text: str) -> str:
        return hashlib.sha256(f"{doc['question']}\n{text}".encode()).hexdigest()

    return sorted((str(doc[name]).strip() for name in OPTIONS), key=place)


def flexible(resps: list[list[str]], docs: list[Doc]) -> list[list[str]]:
    """A filter: the letter that each answer comes to, by any sign of it."""
    return [[_flexible(answer, doc) for answer in answers] for answers, doc in zip(resps, docs, strict=True)]


def strict(resps: list[list[str]], docs: list[Doc]) -> list[list[str]]:
    """A filter: the letter in an answer's last line, where that is as it was asked for."""
    return [[_strict(answer) for answer in answers] for answers in resps]


def scores(doc: Doc, results: list[str]) -> dict[str, float]:
    """lm-eval's process_results: 1.0 if the letter is that of the right option."""
    return {"exact_match": float(results[0] == gold(doc))}


def _flexible(answer: str, doc: Doc) -> str:
    found = [*_SAID.finditer(answer), *_LINE.finditer(answer)]
    if found:
        return max(found, key=lambda match: match.start(1))[1]
    mentioned = {
        answer.lower().rfind(option.lower()): letter
        for letter, option in zip(LETTERS, ordered(doc), strict=True)
    }
    last = max(mentioned)
    return mentioned[last] if last >= 0 else INVALID


def _strict(answer: str) -> str:
    lines = answer.strip().splitlines()
    match = _STRICT.match(lines[-1]) if lines else None
    return match[1] if match else INVALID
