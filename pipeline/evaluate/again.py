"""Asking documents of a finished cell again: whether an engine that was steered back answers as it did at first.

The certificate says that the weights are the files'. This says that the answers are those of the record: what lies
between weights and answers (caches, compiled code, buffers) has come through all swaps too.
"""

from collections.abc import Sequence

from pipeline.config.schema import EngineConfig
from pipeline.errors import UserError
from pipeline.records import Sample

DOCUMENTS = 32  # that are asked again, at most
TOLERANCE = 1e-3  # of a log-likelihood


class AnswersMoved(UserError):
    """An engine that was steered back answers differently than its own record says."""


def check_answers(
    name: str, before: Sequence[Sample], after: Sequence[Sample], engine: EngineConfig, since: int
) -> None:
    """Compare the answers of an engine that was steered back with those of its first cell's record.

    In float32, or where the engine is batch invariant, all must be the same. Elsewhere answers move with the batch, which
    was larger the first time: at most half of them may.

    Args:
        name: of the cell, for the message.
        before: the record's samples.
        after: as many of the first of them as were asked again.
        since: cells that the engine has computed.

    Raises:
        AnswersMoved: if more answers differ than may.
    """
    moved = [a["doc_id"] for b, a in zip(before, after, strict=False) if not _is_same(b, a)]
    if len(moved) > (0 if engine.is_exact else len(after) // 2):
        shown = ", ".join(map(str, moved[:5])) + (", …" if len(moved) > 5 else "")
        raise AnswersMoved(
            f"steered back to the weights of {name}, the engine answers {len(moved)} of {len(after)} documents differently"
            f" than in the record (document {shown}): do not trust the {since} cells that it has computed; remove their"
            " records and run again with engine.swap=restart"
        )


def _is_same(before: Sample, after: Sample) -> bool:
    """Whether two samples have one question and one answer."""
    options = zip(before.get("loglikelihoods", []), after.get("loglikelihoods", []), strict=False)
    parts = [(s["prompt"], s["output"], s["finish"], s["tokens"]) for s in (before, after)]
    return parts[0] == parts[1] and all(abs(x - y) <= TOLERANCE for x, y in options)
