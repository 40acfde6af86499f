"""lm-eval's samples as ours, one for each document, and their summary."""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.engine.engine import Engine
from pipeline.errors import UserError
from pipeline.plan.plan import Cell

if TYPE_CHECKING:
    pass


NOT_EXTRACTED = "[invalid]"  # what lm-eval's filters return when nothing matches


def merge(
    rows: list[dict[str, Any]], subtask: str | None, task: Any, engine: Engine, cell: Cell, start: int
) -> list[dict[str, Any]]:
    """lm-eval's samples, one for each filter, as one for each document."""
    b = cell.task.config
    merged: dict[int, dict[str, Any]] = {}
    for row in rows:
        doc_id, doc = row["doc_id"], row["doc"]
        sample = merged.get(doc_id)
        if sample is None:
            sample = merged[doc_id] = {
                "doc_id": start + len(merged),
                "subtask": subtask,
                "source_doc": doc["source_doc"],
                "prompt": row["arguments"][0][0],
                "target": _text(row["target"]),
                "output": "",
                "extracted": {},
                "scores": {},
            }
            if task.OUTPUT_TYPE == "multiple_choice":
                choices = [arguments[1] for arguments in row["arguments"]]
                likelihoods = [float(r[0][0]) for r in row["resps"]]
                options = task.doc_to_choice(
                    doc
                )  # acc_norm divides by their length in characters, as lm-eval does
                lengths = [len(o) if b.metric.startswith("acc_norm,") else 1 for o in options]
                chosen = max(range(len(options)), key=lambda i: likelihoods[i] / lengths[i])
                sample["output"] = choices[chosen]
                sample["loglikelihoods"] = likelihoods
                sample |= {"prompt_tokens": 0, "tokens": 0, "finish": "scored"}
            else:
                sample["output"] = row["resps"][0][0]
                sample |= asdict(engine.lm.generations[(task.config.task, doc_id)])
        if task.OUTPUT_TYPE != "multiple_choice":
            sample["extracted"][row["filter"]] = _text(row["filtered_resps"][0])
        for metric in row["metrics"]:
            value = row[metric]
            sample["scores"][f"{metric},{row['filter']}"] = float(
                value[0] if isinstance(value, list) else value
            )
    for sample in merged.values():
        wanted = [b.metric, *b.also]
        absent = [m for m in wanted if m not in sample["scores"]]
        if absent:
            raise UserError(
                f"benchmarks.{cell.task.benchmark}: no metric '{absent[0]}'; lm-eval gave {', '.join(sample['scores'])}"
            )
        sample["scores"] = {m: sample["scores"][m] for m in wanted}
        sample["score"] = sample["scores"][b.metric]
    return list(merged.values())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def summarise(samples: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """Means over documents.

    `stderr` is lm-eval's: the sample standard error (Bessel-corrected) of documents taken as independent, in the metric's
    unit (0 to 1); None for one document. Tables have intervals that know of clusters (pipeline/analysis/statistics.py).
    """
    n = len(samples)
    scores = [s["score"] for s in samples]
    score = math.fsum(scores) / n
    squares = math.fsum((x - score) ** 2 for x in scores)
    main_filter = metric.rsplit(",", 1)[1]
    generated = [s for s in samples if s["finish"] != "scored"]
    return {
        "metric": metric,
        "score": score,
        "stderr": math.sqrt(squares / (n - 1) / n) if n > 1 else None,
        "n": n,
        "values": {m: math.fsum(s["scores"][m] for s in samples) / n for m in samples[0]["scores"]},
        "share_not_extracted": _share(generated, lambda s: s["extracted"].get(main_filter) == NOT_EXTRACTED),
        "share_truncated": _share(generated, lambda s: s["finish"] == "length"),
        "mean_tokens": math.fsum(s["tokens"] for s in generated) / len(generated) if generated else 0.0,
    }


def _share(samples: list[dict[str, Any]], is_so: Callable[[dict[str, Any]], bool]) -> float:
    return sum(map(is_so, samples)) / len(samples) if samples else 0.0
