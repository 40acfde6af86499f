"""lm-eval's samples as ours, one for each document, and their summary.

lm-eval gives one sample for each document and filter; a record has one for each document, with what each filter
extracted, every score that the benchmark keeps, and what the answer cost.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pipeline.config.schema import BenchmarkConfig
from pipeline.engine.engine import Engine
from pipeline.errors import UserError
from pipeline.evaluate.answers import joined, of_answer
from pipeline.plan.grid import Benchmark
from pipeline.records import Answer, Metrics, Sample

NOT_EXTRACTED = "[invalid]"  # what lm-eval's filters return when nothing matches


def merge(
    rows: Sequence[dict[str, Any]],
    subtask: str | None,
    task: Any,
    engine: Engine,
    benchmark: Benchmark,
    start: int,
) -> list[Sample]:
    """lm-eval's samples of one task, as one for each document.

    Args:
        rows: lm-eval's samples, one for each document and filter.
        task: the lm-eval task.
        start: the `doc_id` of the first document.

    Raises:
        UserError: if the benchmark's metric is none of the task's, or a score or log-likelihood is not finite.
    """
    if benchmark.config.samples == 1:
        return _merge(rows, subtask, task, engine, benchmark, start)
    answers = [
        _merge(of_answer(rows, task, number), subtask, task, engine, benchmark, start, number)
        for number in range(benchmark.config.samples)
    ]
    return [joined(of_document) for of_document in zip(*answers, strict=True)]


def _merge(
    rows: Iterable[dict[str, Any]],
    subtask: str | None,
    task: Any,
    engine: Engine,
    column: Benchmark,
    start: int,
    number: int = 0,
) -> list[Sample]:
    """One answer to each document, the first or the one of that number."""
    benchmark, where = column.config, f"benchmarks.{column.origin}"
    merged: dict[int, Sample] = {}
    for row in rows:
        sample = merged.get(row["doc_id"])
        if sample is None:
            sample = _new_sample(row, start + len(merged), subtask, task, engine, benchmark, number)
            merged[row["doc_id"]] = sample
        if task.OUTPUT_TYPE != "multiple_choice":
            sample["extracted"][row["filter"]] = str(row["filtered_resps"][0])
        for metric in row["metrics"]:
            value = row[metric]
            sample["scores"][f"{metric},{row['filter']}"] = float(
                value[0] if isinstance(value, list) else value
            )
    for sample in merged.values():
        _keep_scores(sample, benchmark, where)
    return list(merged.values())


def _new_sample(
    row: dict[str, Any],
    doc_id: int,
    subtask: str | None,
    task: Any,
    engine: Engine,
    benchmark: BenchmarkConfig,
    number: int,
) -> Sample:
    """What all filters of a document share."""
    sample = Sample(
        doc_id=doc_id,
        subtask=subtask,
        source_doc=row["doc"]["source_doc"],
        prompt=row["arguments"][0][0],
        target=str(row["target"]),
        output="",
        extracted={},
        scores={},
        score=0.0,
        prompt_tokens=0,
        tokens=0,
        finish="scored",
    )
    if task.OUTPUT_TYPE == "multiple_choice":
        likelihoods = [float(response[0][0]) for response in row["resps"]]
        # acc_norm divides by the options' lengths in characters, as lm-eval does
        options = task.doc_to_choice(row["doc"])
        lengths = [len(o) if benchmark.metric.startswith("acc_norm,") else 1 for o in options]
        chosen = max(range(len(options)), key=lambda i: likelihoods[i] / lengths[i])
        sample["output"] = row["arguments"][chosen][1]
        sample["loglikelihoods"] = likelihoods
    else:
        generation = engine.lm.generations[(task.config.task, row["doc_id"])][number]
        sample["output"] = row["resps"][0][0]
        sample["prompt_tokens"] = generation.prompt_tokens
        sample["tokens"] = generation.tokens
        sample["finish"] = generation.finish
    return sample


def _keep_scores(sample: Sample, benchmark: BenchmarkConfig, where: str) -> None:
    """Leave the scores that the benchmark names, the first of which is the document's."""
    found, kept = sample["scores"], (benchmark.metric, *benchmark.also)
    for metric in kept:
        if metric not in found:
            raise UserError(f"{where}: no metric '{metric}'; lm-eval gave {', '.join(found)}")
    sample["scores"] = {metric: found[metric] for metric in kept}
    sample["score"] = found[benchmark.metric]
    if not all(map(math.isfinite, (*sample["scores"].values(), *sample.get("loglikelihoods", [])))):
        raise UserError(
            f"{where}: the scores of document {sample['doc_id']} are not finite: the model's logits overflow, or the"
            " metric is not defined there; use engine.dtype=float32, or another metric"
        )


def summarise(samples: Sequence[Sample], metric: str) -> Metrics:
    """Means over documents; shares and lengths over answers.

    `stderr` is lm-eval's: the sample standard error (Bessel-corrected) of documents taken as independent, in the metric's
    unit (0 to 1); None for one document. Tables have intervals that know of clusters (pipeline/analysis/design.py).
    """
    n = len(samples)
    scores = [s["score"] for s in samples]
    score = math.fsum(scores) / n
    squares = math.fsum((x - score) ** 2 for x in scores)
    main_filter = metric.rsplit(",", 1)[1]
    answers = [answer for s in samples for answer in s.get("answers", [s])]
    generated = [answer for answer in answers if answer["finish"] != "scored"]
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


def _share(answers: Sequence[Answer], is_so: Callable[[Answer], bool]) -> float:
    return sum(map(is_so, answers)) / len(answers) if answers else 0.0
