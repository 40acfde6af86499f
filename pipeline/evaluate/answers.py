"""Several answers to one document: each scored by itself, then joined.

lm-eval asks a document as often as the task's `repeats` says, and its filters and metrics then see one answer, most often
the first. Here each answer in its turn is filtered and scored by lm-eval as if it were the only one, so that every task's
filters and metrics mean what they mean for one answer.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.records import Answer, Sample


def of_answer(rows: Sequence[dict[str, Any]], task: Any, number: int) -> Iterator[dict[str, Any]]:
    """lm-eval's samples, as they would be if the answer `number` to each document were the only one.

    Args:
        rows: lm-eval's samples, one for each document and filter, with all answers in `resps`.
        task: the lm-eval task that they are of; its instances are left with that answer.
    """
    answers = {row["doc_id"]: row["resps"][0] for row in rows}
    for instance in task.instances:
        instance.resps = [answers[instance.doc_id][number]]
    task.apply_filters()
    filtered = {instance.doc_id: instance.filtered_resps for instance in task.instances}
    for row in rows:
        only = filtered[row["doc_id"]][row["filter"]]
        metrics = task.process_results(row["doc"], [only])
        kept = {"resps": [[answers[row["doc_id"]][number]]], "filtered_resps": [only]}
        yield row | kept | {"metrics": list(metrics), **metrics}


def joined(answers: Sequence[Sample]) -> Sample:
    """One document's answers as one sample: the first one's texts, and means over all.

    Under the benchmark's metric, `avg@k` is the mean of the k answers, which is the document's score, and `pass@k` the
    best of them: 1 if any is right.
    """
    k, first = len(answers), answers[0]
    score = _mean([answer["score"] for answer in answers])
    sample = first.copy()
    sample["scores"] = {m: _mean([a["scores"][m] for a in answers]) for m in first["scores"]}
    sample["scores"] |= {f"avg@{k}": score, f"pass@{k}": max(answer["score"] for answer in answers)}
    sample["score"] = score
    sample["tokens"] = _mean([answer["tokens"] for answer in answers])
    sample["answers"] = [
        Answer(
            output=answer["output"],
            extracted=answer["extracted"],
            scores=answer["scores"],
            score=answer["score"],
            tokens=answer["tokens"],
            finish=answer["finish"],
        )
        for answer in answers
    ]
    return sample


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
