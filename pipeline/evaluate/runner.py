"""Evaluate cells: steer the engine to a cell's weights, run its benchmark through lm-eval, write its record.

    evaluate(plan, report=print)

Cells are ordered so that an engine starts once for each architecture and weights change once for each condition;
each finished cell is on disk before the next begins. lm-eval does prompts, requests, filters and metrics; what is
ours is where documents come from (`pipeline.documents`), the prompt condition, and the counts of tokens and cut answers.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from evals import sandbox
from pipeline.config.schema import PromptConfig
from pipeline.engine.arrangement import Arrangement
from pipeline.engine.engine import Engine
from pipeline.errors import UserError
from pipeline.evaluate.again import DOCUMENTS, check_answers
from pipeline.evaluate.jobs import make_jobs
from pipeline.evaluate.joining import join_whole, take
from pipeline.evaluate.narrow import narrow, spans
from pipeline.evaluate.progress import Progress, name_of
from pipeline.evaluate.provenance import chat_template_sha, provenance_of
from pipeline.evaluate.samples import merge, summarise
from pipeline.evaluate.tasks import load_task, manager_of
from pipeline.plan.family import Family
from pipeline.plan.grid import Benchmark, Condition, allowed_differences, takes_chat_template
from pipeline.plan.plan import Cell, Plan
from pipeline.records import Cost, GpuSource, Metrics, Sample, is_done, read_record, write_record
from pipeline.shards import Shard, ShardRecord, read_shard, tidy, write_shard

DEATHS_PER_CELL = 2  # engines, or workers of a cluster, that may die on one cell before it is given up


class EngineDied(UserError):
    """As many engines as `DEATHS_PER_CELL` died on one cell; the next cell gets a new one."""


def evaluate(plan: Plan, report: Callable[[str], None] = print) -> int:
    """Compute every cell that has no record yet and return how many were computed.

    Raises:
        UserError: if the engine cannot start, a swap fails, a document cannot be read, or cells had to be given up;
            finished cells stay.
    """
    missing = plan.missing()
    if not missing:
        return 0
    runner = Runner(plan, report)
    runner.check(missing)
    jobs = make_jobs(plan, in_order(missing), workers=1)
    given_up = []
    progress = Progress(len(missing), jobs.seconds(), report)
    last = {job.cell.family.name: job.key for job in jobs.waiting}
    try:
        join_whole(plan, jobs, progress)
        for job in jobs.waiting:
            if is_done(plan.results, job.cell.key):  # another run was quicker
                if jobs.finished(job):
                    progress.skip(job.seconds)
            else:
                runner.ready(job.cell)
                progress.start()
                started = time.monotonic()
                try:
                    metrics = runner.run(job.cell, job.shard)
                    take(plan, jobs, job, metrics, time.monotonic() - started, progress)
                except EngineDied:
                    given_up.append(job)
                    jobs.give_up(job, progress)
            if last[job.cell.family.name] == job.key:
                runner.check_again()
    finally:
        runner.close()
        tidy(plan.results)
    if given_up:
        raise UserError(
            f"given up after {DEATHS_PER_CELL} engines died on each: {', '.join(job.name for job in given_up)}; run again, with less"
            " in memory (engine.max_num_seqs, engine.kv_cache_gb, engine.gpu_memory_utilization)"
        )
    return progress.computed


def in_order(cells: Iterable[Cell]) -> list[Cell]:
    """By engine, then by weights, so that both change as seldom as possible."""
    listed = list(cells)
    engines = list(dict.fromkeys(c.family.architecture for c in listed))
    weights = list(dict.fromkeys(str(c.inputs["weights"]) for c in listed))
    return sorted(
        listed, key=lambda c: (engines.index(c.family.architecture), weights.index(str(c.inputs["weights"])))
    )


@dataclass(frozen=True)
class Asked:
    """The samples of documents that were asked, of so many that the cell has."""

    samples: list[Sample]
    documents: int


class Runner:
    """Holds the live engine, and runs one cell after the other."""

    def __init__(self, plan: Plan, report: Callable[[str], None] = print) -> None:
        self.plan, self.report = plan, report
        self.engine: Engine | None = None
        self.architecture = ""  # of the engine
        self.loaded = ""  # the weights that it holds; nothing until a swap is certified
        self.gpu: GpuSource | None = None  # that it computes on
        self.computed: list[tuple[Cell, Shard | None]] = []  # by this engine, since it was last asked again
        self.swaps = 0  # since the first of them

    def check(self, cells: list[Cell]) -> None:
        """Try the sandbox and open the vectors, so that a mistake shows before an engine starts."""
        if any(cell.benchmark.config.runs_code for cell in cells):
            level = sandbox.require(self.plan.config.allow_unsandboxed)
            self.report(f"candidate programs run in: {level}")
        for cell in {(c.family.name, c.condition): c for c in cells}.values():
            self.plan.terms(cell.family, cell.condition)

    def ready(self, cell: Cell) -> None:
        """Start the engine that a cell needs, if it is not the one that runs."""
        self._engine(cell.family)

    def hold(self, family: Family, condition: Condition) -> Engine:
        """The engine with the weights of a row, certified; it is started where none runs that can hold them."""
        engine = self._engine(family)
        self._steer(engine, family, condition)
        return engine

    def run(self, cell: Cell, shard: Shard | None = None) -> Metrics | None:
        """Evaluate one cell and write its record, or one shard of it; an engine that dies on it is replaced once.

        Returns:
            The metrics of the cell; None for a shard.

        Raises:
            EngineDied: if the second one dies too.
        """
        for attempt in range(1, DEATHS_PER_CELL + 1):
            engine = self._engine(cell.family)
            try:
                return self._run(engine, cell, shard)
            except Exception as e:  # vLLM tells of a dead worker in several ways
                if isinstance(e, UserError) or engine.alive():
                    raise
                cause = engine.last_error()
                self.close()
                again = (
                    "it is tried again"
                    if attempt < DEATHS_PER_CELL
                    else f"given up after {DEATHS_PER_CELL} such deaths"
                )
                self.report(
                    f"the engine died on {name_of(cell)}; {again}" + (f" ({cause:.200})" if cause else "")
                )
        raise EngineDied(f"{DEATHS_PER_CELL} engines died on {name_of(cell)}")

    def check_again(self) -> None:
        """Steer back to the first cell that the engine has computed, and ask some of its documents again.

        Nothing is asked of an engine whose weights have not changed since then.

        Raises:
            AnswersMoved: if the answers are not those of the record.
            UserError: if the engine has died.
        """
        computed, swaps, engine = self.computed, self.swaps, self.engine
        self.computed, self.swaps = [], 0
        if engine is None or not computed or not swaps:
            return
        first, shard = computed[0]
        before = self._recorded(first, shard)
        if before is None:
            raise UserError(f"the record of {name_of(first)} has gone while the run went on; run again")
        try:
            self._steer(engine, first.family, first.condition)
            after = self._ask(engine, first, shard, most=DOCUMENTS).samples
        except Exception as e:
            if isinstance(e, UserError) or engine.alive():
                raise
            self.close()
            raise UserError(
                f"the engine died when it was asked {name_of(first)} again; its cells are kept, run again"
            ) from e
        check_answers(name_of(first), before, after, self.plan.config.engine, len(computed))

    def _recorded(self, cell: Cell, shard: Shard | None) -> list[Sample] | None:
        """The samples of a finished cell, or of a finished shard, whose cell may have been joined since; None if they are gone."""
        if shard is not None and (found := read_shard(self.plan.results, cell.key, shard)) is not None:
            return found.samples
        record = read_record(self.plan.results, cell.key)
        if record is None:
            return None
        samples = record.samples()
        return samples if shard is None else [samples[number] for number in shard.span(len(samples))]

    def close(self) -> None:
        """End the engine, if one runs."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def _run(self, engine: Engine, cell: Cell, shard: Shard | None) -> Metrics | None:
        self._steer(engine, cell.family, cell.condition)
        clock, started = time.monotonic(), datetime.now(UTC)
        asked = self._ask(engine, cell, shard)
        cost = Cost(
            seconds=round(time.monotonic() - clock, 3),
            generated_tokens=engine.lm.generated_tokens,
            prompt_tokens=engine.lm.prompt_tokens,
            requests=engine.lm.requests,
        )
        chat = takes_chat_template(cell.family.config, cell.condition.start)
        template = chat_template_sha(engine.lm.tokenizer) if chat else None
        provenance = provenance_of(self.plan.config, cell, started, template, self.gpu)
        metrics = None
        if shard is None:
            metrics = summarise(asked.samples, cell.benchmark.config.metric)
            write_record(self.plan.results, cell.inputs, metrics, cost, provenance, asked.samples)
        else:
            done = ShardRecord(asked.documents, cost, provenance, asked.samples)
            write_shard(self.plan.results, cell.key, shard, done)
        if asked.samples:
            self.computed.append((cell, shard))
        return metrics

    def _engine(self, family: Family) -> Engine:
        """The engine of a family's architecture: the one that runs, or a new one in its place, once it has been asked again."""
        if self.engine is not None and not self.engine.ended() and self.architecture != family.architecture:
            self.check_again()
        # vLLM would wait for ever for the answer of a process that was killed between two questions.
        if self.engine is None or self.engine.ended() or self.architecture != family.architecture:
            self.close()
            self.report(f"starting the engine for {family.target.source}")
            self.engine = Engine(family.engine(self.plan.config.engine), family.target.path)
            if family.config.template is not None:
                self.engine.set_chat_template(family.template_source.path)
            self.architecture, self.loaded, self.gpu = family.architecture, "", self.engine.gpu()
            self.computed, self.swaps = [], 0
        return self.engine

    def _steer(self, engine: Engine, family: Family, condition: Condition) -> None:
        start, terms = family.checkpoint(condition.start), self.plan.terms(family, condition)
        weights = f"{start.path} {terms}"
        if weights != self.loaded:
            self.loaded = ""
            config = self.plan.config
            allowed = allowed_differences(config, family.name, condition)
            engine.steer(start.path, terms, wide=config.steer.wide, allowed=allowed)
            self.loaded = weights
            self.swaps += bool(self.computed)

    def _ask(self, engine: Engine, cell: Cell, shard: Shard | None = None, most: int | None = None) -> Asked:
        """Ask every document of a cell's benchmark, or of a shard of them, or at most so many of the first of these."""
        from lm_eval.evaluator import evaluate as lm_evaluate

        engine.arrange(Arrangement(cell.condition.order, cell.condition.at_once))
        engine.lm.reset()  # each answer's length is looked up by its place among those to its document
        prompt, limit = self.plan.config.prompts[cell.condition.prompt], cell.benchmark.limit
        tasks = self._tasks(cell.benchmark, prompt)
        sizes = [min(len(task.eval_docs), limit or len(task.eval_docs)) for task in tasks.values()]
        asked = (range(sum(sizes)) if shard is None else shard.span(sum(sizes)))[:most]
        samples: list[Sample] = []
        parts = spans(sizes, asked)
        chosen = {subtask: task for (subtask, task), span in zip(tasks.items(), parts, strict=True) if span}
        for task, size, span in zip(tasks.values(), sizes, parts, strict=True):
            if len(span) < size:
                narrow(task, span)
        if not chosen:  # more shards than documents
            return Asked(samples, sum(sizes))
        results = lm_evaluate(
            lm=engine.lm,
            task_dict={"tasks": {task.config.task: task for task in chosen.values()}},
            limit=limit,
            system_instruction=prompt.system,
            apply_chat_template=takes_chat_template(cell.family.config, cell.condition.start),
            fewshot_as_multiturn=True,
            bootstrap_iters=0,
            log_samples=True,
        )
        for subtask, task in chosen.items():
            rows = results["samples"][task.config.task]
            start = asked.start + len(samples)
            samples += merge(rows, subtask, task, engine, cell.benchmark, start=start)
        return Asked(samples, sum(sizes))

    def _tasks(self, benchmark: Benchmark, prompt: PromptConfig) -> dict[str | None, Any]:
        """The lm-eval task of each subtask, with our documents and the prompt condition."""
        manager = manager_of(self.plan.benchmarks)
        return {s: load_task(manager, benchmark, s, prompt) for s in benchmark.subtasks}
