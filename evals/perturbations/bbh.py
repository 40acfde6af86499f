"""Perturbations of BIG-Bench-Hard-like documents {input, target}.

Options are lines `(A) text` or `- text` after a line `Options:`. The kinds follow studies of option
order (arXiv:2309.03882), irrelevant context (arXiv:2302.00093) and prompt format (arXiv:2310.11324).
"""

import random
import re

from evals.perturbations.common import Document, irrelevant_facts, perturbation

OPTION = re.compile(r"^(\([A-Z]\)|-) (.*)$", re.MULTILINE)


@perturbation("bbh", version=1)
def irrelevant_preamble(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """Two sentences without numbers stand in a paragraph of their own before the input.

    Must stay true: every character of the input, and the target; the new sentences share no content word with
    it.
    """
    facts = irrelevant_facts(rng, document["input"], 2)
    if len(facts) < 2:
        return None
    return {**document, "input": " ".join(facts) + "\n\n" + document["input"]}


NO_LISTS = ("boolean_expressions", "dyck_languages", "multistep_arithmetic_two", "sports_understanding")
NO_OPTIONS = (*NO_LISTS, "object_counting", "web_of_lies", "word_sorting")


@perturbation("bbh", version=1, without=NO_OPTIONS)
def option_order(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """The options stand in another order, and the target is the letter that the right one now has.

    Changes: the texts behind the letters (the letters stay in order), or the order of "- Yes" lines that have
    no letter. Must stay true: the set of options and the text of the right one; everything before "Options:".
    Left out: tasks without options, and documents in which two options are the same or the target is none of
    them.
    """
    head, marker, listed = document["input"].rpartition("\nOptions:\n")
    lines = OPTION.findall(listed)
    options = [text.strip() for _, text in lines]
    if (
        not marker
        or len(lines) != len(listed.rstrip().split("\n"))
        or len(set(options)) < max(2, len(options))
    ):
        return None
    lettered = lines[0][0] != "-"
    labels = [label for label, _ in lines]
    target = document["target"].strip()
    right = options[labels.index(target)] if lettered and target in labels else target
    if right not in options:
        return None
    order = rng.sample(options, len(options))
    if order == options:
        order = [*options[1:], options[0]]
    text = "\n".join(f"{label} {option}" for label, option in zip(labels, order, strict=True))
    return {
        **document,
        "input": head + marker + text,
        "target": labels[order.index(right)] if lettered else document["target"],
    }


# Where a task's body has a list: what comes before it, the list, what comes after it, and what separates the
# items.
LISTS = {
    "word_sorting": (r"(.*List:) (.+)()", r" +"),
    "object_counting": (r"(I have) (.+)\. (How many .+\?)", r", and |, | and "),
    "navigate": (r"(.*?\?) ((?:[^.\n]+\. ?)+)(\n.*)", r"(?<=\.) +"),
    "logical_deduction": (r"(.*?: [^.:]+\.) ((?:[^.\n]+\. ?)+)(\n.*)", r"(?<=\.) +"),
    "tracking_shuffled": (r"(.*?) (First, .*?Finally, [^.]+\.) (.*)", r"(?<=\.) +(?=Then|Finally)"),
    "web_of_lies": (r"(Question:) (.+\.) (Does .+\?)", r"(?<=\.) +"),
}


def bullets(items: list[str]) -> str:
    return "".join(f"\n* {item.strip()}" for item in items)


def bulleted_options(text: str) -> str:
    """Each option on a bullet of its own, with its letter if it has one."""
    head, marker, listed = text.rpartition("\nOptions:\n")
    lines = listed.rstrip().split("\n")
    if not marker or not all(OPTION.match(line) for line in lines):
        return text
    return f"{head}\n\nOptions:{bullets([line.removeprefix('- ') for line in lines])}"


def bulleted_body(text: str, subtask: str) -> str:
    """The list in the body of a task that has one on bullets; other texts as they are."""
    for task, (pattern, separator) in LISTS.items():
        match = re.fullmatch(pattern, text, re.DOTALL) if subtask.startswith(task) else None
        if match:
            head, items, tail = match.groups()
            colon = "" if head[-1] in ":.?" else ":"
            newline = "\n" if tail and tail[0] != "\n" else ""
            return head + colon + bullets(re.split(separator, items.strip())) + newline + tail
    return text


@perturbation("bbh", version=1, without=NO_LISTS)
def reformatted_lists(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """Lists stand on bullets: the options, and the items, steps or statements in the body of the tasks that
    have them.

    Changes: line breaks, bullets and the commas that separated items. Option labels "(A)" stay, since the
    answer is extracted by them. Must stay true: every word in its order, and the target. Left out: documents
    without a list. Source: arXiv:2310.11324 (spurious features of the prompt's format).
    """
    changed = bulleted_options(bulleted_body(document["input"], subtask or ""))
    return {**document, "input": changed} if changed != document["input"] else None
