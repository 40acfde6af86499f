"""What training text shares with evaluation documents."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from evals import micro
from pipeline.donors.data import SOLUTIONS
from pipeline.errors import UserError

WINDOW = 13  # words in a row that count as shared text, as in the GPT-3 report (arXiv 2005.14165, appendix C)


def overlap(training: Iterable[str], held_out: Iterable[str]) -> dict[str, int]:
    """What two sets of texts share, letter case and spacing aside.

    `documents`: held-out texts; `same`: those that stand in training word for word; `shared_text`:
    those with 13 words in a row that also stand in training (many in generated text, where sentences follow
    templates).
    """
    held = [text.lower().split() for text in held_out]
    wanted = {window for words in held for window in _windows(words)}
    whole: set[int] = set()
    shared: set[int] = set()
    for text in training:
        words = text.lower().split()
        whole.add(hash(tuple(words)))
        shared.update(window for window in _windows(words) if window in wanted)
    return {
        "documents": len(held),
        "same": sum(hash(tuple(words)) in whole for words in held),
        "shared_text": sum(any(window in shared for window in _windows(words)) for words in held),
    }


def _windows(words: list[str]) -> Iterator[int]:
    return (hash(tuple(words[start : start + WINDOW])) for start in range(len(words) - WINDOW + 1))


def record_overlap(
    training: dict[str, list[micro.Example]], held_out: dict[str, list[str]], out: Path
) -> None:
    """Write overlap.json; raise UserError when a held-out document stands in training."""
    found = {
        f"{stage} / {name}": overlap(
            (
                example.answer.removesuffix("```")
                if name == SOLUTIONS
                else example.user.removeprefix(micro.THINK)
                for example in examples
            ),
            texts,
        )
        for stage, examples in training.items()
        for name, texts in held_out.items()
    }
    (out / "overlap.json").write_text(json.dumps(found, indent=1))
    shared = {name: row["same"] for name, row in found.items() if row["same"]}
    if shared:
        raise UserError(f"training and evaluation data share problems: {shared}; see {out / 'overlap.json'}")
