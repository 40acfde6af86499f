"""What training text shares with evaluation documents."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

from evals import micro
from pipeline.donors.data import HeldOut
from pipeline.errors import UserError
from pipeline.files import write_json

WINDOW = 13  # words in a row that count as shared text, as in the GPT-3 report (arXiv 2005.14165, appendix C)


class Overlap(TypedDict):
    """What two sets of texts share."""

    documents: int  # held-out texts
    same: int  # those that training has word for word
    shared_text: (
        int  # those with 13 words in a row that training has too: many in generated text, made of templates
    )


def overlap(training: Iterable[str], held_out: Iterable[str]) -> Overlap:
    """What two sets of texts share, letter case and spacing aside."""
    held = [text.lower().split() for text in held_out]
    held_windows = {window for words in held for window in _windows(words)}
    whole: set[int] = set()
    shared: set[int] = set()
    for text in training:
        words = text.lower().split()
        whole.add(hash(tuple(words)))
        shared.update(window for window in _windows(words) if window in held_windows)
    return {
        "documents": len(held),
        "same": sum(hash(tuple(words)) in whole for words in held),
        "shared_text": sum(any(window in shared for window in _windows(words)) for words in held),
    }


def _windows(words: list[str]) -> Iterator[int]:
    return (hash(tuple(words[start : start + WINDOW])) for start in range(len(words) - WINDOW + 1))


def record_overlap(
    training: Mapping[str, list[micro.Example]], held_out: Iterable[HeldOut], out: Path
) -> None:
    """Write overlap.json: what the training text of each stage shares with each benchmark.

    Raises:
        UserError: if training has a held-out document word for word.
    """
    found = {
        f"{stage} / {benchmark.name}": overlap(
            (_compared_text(example, benchmark.are_solutions) for example in examples), benchmark.texts
        )
        for stage, examples in training.items()
        for benchmark in held_out
    }
    write_json(out / "overlap.json", found)
    shared = {name: row["same"] for name, row in found.items() if row["same"]}
    if shared:
        raise UserError(f"training and evaluation data share problems: {shared}; see {out / 'overlap.json'}")


def _compared_text(example: micro.Example, as_solution: bool) -> str:
    """What an example is compared by: what it asks, or the code that answers it."""
    return example.answer.removesuffix("```") if as_solution else example.user.removeprefix(micro.THINK)
