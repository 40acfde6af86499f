"""The project from Python: a small set of names that stay.

    from pipeline import api as rv

    config = rv.compose(["experiment=micro", "tasks=[gsm8k]"])
    rv.run(config)                                     # as the command line does
    rv.cells("results/runs/micro.json")                # a pandas DataFrame, one row a cell
    with rv.Session(config, alpha=[-1, 0, 1]) as model:
        model.ask("Question: …")

An executed example: docs/python.md. What is not named here may change. A mistake raises `UserError`, whose text is the line
that the command line would print. Import it before vLLM; and guard a script's code by `if __name__ == "__main__":` where the
engine runs in processes of its own (on GPUs), because these import the script again.
"""

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported; progress is told by cell

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.ask.session import Answer, Decoding, Session
from pipeline.config.compose import compose
from pipeline.errors import UserError
from pipeline.manifest import Manifest, PlannedCell, read_manifest
from pipeline.records import Record, read_record
from pipeline.stages import run
from pipeline.weights import steer, vector
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.plain import write_plain
from pipeline.weights.steer import Term
from pipeline.weights.vector import Vector

__all__ = [
    "Answer",
    "Checkpoint",
    "Decoding",
    "Session",
    "Term",
    "UserError",
    "Vector",
    "apply",
    "cells",
    "compose",
    "export",
    "extract",
    "run",
    "samples",
]


def cells(manifest: str | Path) -> pd.DataFrame:
    """The cells of a run, one row each, in the order of its plan.

    Args:
        manifest: `results/runs/<experiment>.json`; the records lie beside its folder.

    Returns:
        Columns: family, condition, benchmark (names); label, start, alpha, seed, prompt of the condition; score, stderr
        (0 to 1), n, mean_tokens, share_truncated, share_not_extracted; seconds; key; and problem: why a cell has no score.

    Raises:
        UserError: if there is no such manifest.
    """
    rows = []
    for planned, entry, record, problem in _records(*_open(manifest)):
        metrics: dict[str, Any] = dict(record.metrics) if record else {}
        kept = ("score", "stderr", "n", "mean_tokens", "share_truncated", "share_not_extracted")
        rows.append(
            {
                **planned.place._asdict(),
                **{name: getattr(entry, name) for name in ("label", "start", "alpha", "seed", "prompt")},
                **{name: metrics.get(name) for name in kept},
                "seconds": record.cost["seconds"] if record else None,
                "key": planned.key,
                "problem": problem,
            }
        )
    return pd.DataFrame(rows)


def samples(
    manifest: str | Path,
    family: str | None = None,
    condition: str | None = None,
    benchmark: str | None = None,
) -> pd.DataFrame:
    """The documents of a run's cells, one row each; None takes every family, condition or benchmark.

    Returns:
        Columns: family, condition, benchmark, and the fields of a sample (doc_id, prompt, target, output, score, …;
        ARCHITECTURE.md has them all). Cells without a record have no rows.

    Raises:
        UserError: if there is no such manifest or name, or samples are damaged.
    """
    read, results = _open(manifest)
    chosen = {"family": family, "condition": condition, "benchmark": benchmark}
    known = {"family": read.families, "condition": read.conditions, "benchmark": read.benchmarks}
    for what, name in chosen.items():
        if name is not None and name not in known[what]:
            raise UserError(f"{what}={name}: not in this run; it has {', '.join(known[what])}")
    rows = []
    for planned, _, record, _ in _records(read, results):
        place = planned.place._asdict()
        if record is not None and all(name in (None, place[what]) for what, name in chosen.items()):
            rows += [place | dict(sample) for sample in record.samples()]
    return pd.DataFrame(rows)


def extract(grpo: str, sft: str, out: str | Path) -> Vector:
    """v = θ_GRPO − θ_SFT of two checkpoints (folders or hub ids), written to `out`/vector.safetensors.

    Raises:
        UserError: if the donors do not fit each other, or `out` holds something else.
    """
    found = vector.extract(Checkpoint.open(grpo), Checkpoint.open(sft), Path(out), compact=True)
    return Vector.open(found)


def apply(target: str, terms: Sequence[Term], out: str | Path) -> Path:
    """The target with Σ α·v added, as a complete checkpoint in the folder `out`.

    Raises:
        UserError: if something does not fit, or `out` holds something else.
    """
    return steer.apply(Checkpoint.open(target), terms, Path(out))


def export(terms: Sequence[Term], out: str | Path) -> Path:
    """Σ α·v as an ordinary safetensors file in fp32, for other tools.

    Raises:
        UserError: if the vectors do not fit each other, or `out` is something else.
    """
    return write_plain(terms, Path(out))


def _open(manifest: str | Path) -> tuple[Manifest, Path]:
    path = Path(manifest)
    return read_manifest(path), path.resolve().parent.parent


def _records(
    manifest: Manifest, results: Path
) -> Iterator[tuple[PlannedCell, Any, Record | None, str | None]]:
    """Each planned cell with its condition, its record, and why there is none."""
    for planned in manifest.cells:
        record, problem = None, None
        try:
            record = read_record(results, planned.key)
            problem = None if record else "not evaluated"
        except UserError as e:
            problem = str(e)
        yield planned, manifest.conditions[planned.condition], record, problem
