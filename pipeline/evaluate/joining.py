"""A cell whose documents were shared out, joined: its record is that of a cell that one worker has asked.

Samples are put behind each other in document order, and every metric is computed on all of them by the code that
summarises an undivided cell: the mean over subtasks or answers of the whole is not that of the shards' means.
"""

import math
from collections.abc import Sequence

from pipeline.config.schema import EngineConfig
from pipeline.errors import UserError
from pipeline.evaluate.jobs import Job, Jobs
from pipeline.evaluate.progress import Progress
from pipeline.evaluate.samples import summarise
from pipeline.plan.plan import Cell, Plan
from pipeline.records import Cost, GpuSource, Metrics, Provenance, ShardSource, is_done, write_record
from pipeline.shards import Shard, ShardRecord, read_shard, remove, shard_folder


def join_whole(plan: Plan, jobs: Jobs, progress: Progress) -> None:
    """Join the cells of which a run that was killed left every shard."""
    for cell in jobs.whole:
        if joined := join(plan, cell, jobs.counts[cell.key]):
            progress.done(cell, joined[0], joined[1]["seconds"])


def take(
    plan: Plan, jobs: Jobs, job: Job, metrics: Metrics | None, seconds: float, progress: Progress
) -> None:
    """Take note of a finished job, and join its cell if it was the last shard.

    Args:
        metrics: of a whole cell; None if its record was there already, or of a shard.
    """
    last = jobs.finished(job)
    if job.shard is not None and not last:
        return progress.shard(job.name, seconds, job.seconds)
    if job.shard is not None:
        joined = join(plan, job.cell, job.shard.count)
        metrics, seconds = (joined[0], joined[1]["seconds"]) if joined else (None, 0.0)
    if metrics is None:
        progress.skip(job.seconds)
    else:
        progress.done(job.cell, metrics, seconds, job.seconds)


def join(plan: Plan, cell: Cell, count: int) -> tuple[Metrics, Cost] | None:
    """Write a cell's record from its shards, which are then removed; None if it has a record already.

    Raises:
        UserError: if a shard is not there or not what was written.
    """
    joined = None
    if not is_done(plan.results, cell.key):
        shards = [Shard(number, count) for number in range(1, count + 1)]
        done = [_read(plan, cell, shard) for shard in shards]
        samples = [sample for each in done for sample in each.samples]
        metrics, cost = summarise(samples, cell.benchmark.config.metric), _cost(done)
        provenance = _provenance(shards, done, cell.family.engine(plan.config.engine))
        write_record(plan.results, cell.inputs, metrics, cost, provenance, samples)
        joined = metrics, cost
    remove(plan.results, cell.key)
    return joined


def _read(plan: Plan, cell: Cell, shard: Shard) -> ShardRecord:
    found = read_shard(plan.results, cell.key, shard)
    if found is None:
        folder = shard_folder(plan.results, cell.key, shard)
        raise UserError(f"{folder}: expected a shard that a worker has written; remove it and run again")
    return found


def _cost(done: Sequence[ShardRecord]) -> Cost:
    """What all workers took together."""
    return Cost(
        seconds=round(math.fsum(each.cost["seconds"] for each in done), 3),
        generated_tokens=sum(each.cost["generated_tokens"] for each in done),
        prompt_tokens=sum(each.cost["prompt_tokens"] for each in done),
        requests=sum(each.cost["requests"] for each in done),
    )


def _provenance(shards: Sequence[Shard], done: Sequence[ShardRecord], engine: EngineConfig) -> Provenance:
    """That of the first shard, with every shard named."""
    made = done[0].provenance.copy()
    made["started"] = min(each.provenance["started"] for each in done)
    made["shards"] = [
        ShardSource(
            first=shard.span(each.documents).start,
            documents=len(each.samples),
            host=each.provenance["host"],
            started=each.provenance["started"],
            seconds=each.cost["seconds"],
            git=each.provenance["git"],
        )
        for shard, each in zip(shards, done, strict=True)
    ]
    gpus = [each.provenance["gpu"] for each in done if "gpu" in each.provenance]
    if gpus:
        models = " and ".join(dict.fromkeys(gpu["model"] for gpu in gpus))
        made["gpu"] = GpuSource(model=models, driver=gpus[0]["driver"], cuda=gpus[0]["cuda"])
    if not engine.is_exact:
        made["notes"] = [
            f"its documents were asked in {len(done)} shards; in {engine.dtype} an answer can move with the batch"
            " (docs/repeatability.md)"
        ]
    return made
