"""A live model to ask: one certified engine that takes the weights of any row.

    with Session(compose(["experiment=micro"]), alpha=[0, 1]) as model:
        for answer in model.ask("Question: Hugo has 29 balls. …\\nAnswer:"):
            print(answer.label, answer.text)
        model.ask_document("gsm8k", 3)[0].score

Nothing is recorded. Prompts, decoding, filters and scores are those of an evaluation (pipeline/evaluate), and every swap of
weights is certified (pipeline/engine). A vector that is not there yet is extracted first.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from evals import sandbox
from pipeline import stages
from pipeline.ask.choice import choose
from pipeline.config.explain import nearest
from pipeline.config.schema import Config
from pipeline.engine.engine import Engine
from pipeline.engine.environment import check_device
from pipeline.errors import UserError
from pipeline.evaluate.checks import check_weights
from pipeline.evaluate.document import Found, ask, find
from pipeline.evaluate.runner import Runner
from pipeline.evaluate.tasks import check_task, load_task, manager_of
from pipeline.lock import held
from pipeline.plan import revisions
from pipeline.plan.family import Family
from pipeline.plan.grid import Benchmark, Condition, make_rows, takes_chat_template
from pipeline.plan.plan import open_rows
from pipeline.plan.sources import Sources, find_sources
from pipeline.records import Sample

T = TypeVar("T")
MOST_TOKENS = 512  # of an answer, where nothing else is said
Message = Mapping[str, str]  # role and content, as chat templates take them


@dataclass(frozen=True)
class Decoding:
    """How an answer is generated; greedy at temperature 0."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None  # None: what the engine has room for, at most `MOST_TOKENS`
    seed: int = 0  # of sampled answers, beside the engine's own
    samples: int = 1  # answers to each question

    def check(self) -> None:
        """Do nothing if it can be done.

        Raises:
            UserError: naming the first number out of range.
        """
        wrong = {
            "temperature": (self.temperature, "0, or from 0.01 to 100", self._is_temperature()),
            "top_p": (self.top_p, "a share above 0 and at most 1", 0 < self.top_p <= 1),
            "max_tokens": (
                self.max_tokens,
                "a number from 1",
                self.max_tokens is None or self.max_tokens >= 1,
            ),
            "seed": (self.seed, "a number from 0", self.seed >= 0),
            "samples": (self.samples, "a number from 1 to 100", 1 <= self.samples <= 100),
        }
        for name, (found, expected, is_right) in wrong.items():
            if not is_right:
                raise UserError(f"{name}={found}: expected {expected}")
        if self.samples > 1 and not self.temperature:
            raise UserError(f"samples={self.samples}: greedy answers are all the same; set temperature too")

    def _is_temperature(self) -> bool:
        return self.temperature == 0 or 0.01 <= self.temperature <= 100


@dataclass(frozen=True)
class Answer:
    """What one row answered."""

    row: str  # name of the row
    label: str
    prompt: str  # as the model saw it
    text: str  # of scored options, the likeliest
    tokens: float
    finish: str  # stop, length, or scored
    score: float | None = None  # 0 to 1, under the benchmark's metric; None without a document
    target: str | None = None
    extracted: Mapping[str, str] | None = None  # filter → what it found in the text


class Session:
    """A live engine and the rows that it can take.

    Args:
        config: the experiment; documents can be asked of its chosen benchmarks.
        family, alpha, conditions, terms: which rows (pipeline/ask/choice.py).
        report: is told what happens meanwhile.

    Raises:
        UserError: for a mistake in the configuration, checkpoints or vectors, before an engine starts.
    """

    def __init__(
        self,
        config: Config,
        *,
        family: str | None = None,
        alpha: Sequence[float] = (),
        conditions: Sequence[str] = (),
        terms: Sequence[Mapping[str, Any]] = (),
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        check_device(config.engine.device)
        os.environ.setdefault("RV_CACHE", str(Path(config.results) / ".cache"))
        self._given = config
        self.config, asked = choose(config, family, alpha, conditions, terms)
        grid = make_rows(self.config)
        sources = (
            find_sources(self.config) if grid.benchmarks else Sources(None, revisions.pinned(self.config))
        )
        self.plan = open_rows(self.config, grid, sources)
        possible = [row.condition.name for row in grid.rows]
        for row in asked:
            if row.name not in possible:
                raise UserError("; ".join([f"condition={row.name}: cannot be asked", *grid.left_out]))
        self.rows = {row.name: row for row in asked}
        self.benchmarks = {benchmark.name: benchmark for benchmark in self.plan.benchmarks}
        self.family: Family = self.plan.families[next(iter(grid.families))]
        self._extract(report)
        check_weights([(self.family, row) for row in asked], self.config.engine)
        self._runner = Runner(self.plan, report)
        self._tasks: dict[tuple[str, str | None, str], Any] = {}

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the engine; a later question would start another."""
        self._runner.close()

    def start(self) -> None:
        """Start the engine now, not with the first question."""
        self._with(next(iter(self.rows.values())), lambda engine: None)

    def at(self, alpha: float) -> Condition:
        """A row at any strength of the family's vector, if the session has one that adds it.

        Raises:
            UserError: if α is no number that the arithmetic can take.
        """
        return choose(self._given, self.family.name, alpha=[alpha])[1][0]

    def ask(self, prompt: str | Sequence[Message], decoding: Decoding | None = None) -> list[Answer]:
        """The answers of every row to a question, or to the last turn of a conversation."""
        return [answer for row in self.rows.values() for answer in self.ask_row(row, prompt, decoding)]

    def ask_row(
        self, row: Condition, prompt: str | Sequence[Message], decoding: Decoding | None = None
    ) -> list[Answer]:
        """The answers of one row to a question, or to the last turn of a conversation: one, or `decoding.samples`.

        Raises:
            UserError: if the question does not fit the engine, or the weights cannot be certified.
        """
        decoding = decoding or Decoding()
        decoding.check()
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if not messages or not messages[-1]["content"].strip():
            raise UserError("prompt: expected a text, found none")
        return self._with(
            row, lambda engine: _generate(engine, self._text(engine, row, messages), row, decoding)
        )

    def ask_document(self, benchmark: str, number: int, decoding: Decoding | None = None) -> list[Answer]:
        """The answers of every row to a document of a benchmark, with their scores."""
        return [
            a for row in self.rows.values() for a in self.ask_row_document(row, benchmark, number, decoding)
        ]

    def ask_row_document(
        self, row: Condition, benchmark: str, number: int, decoding: Decoding | None = None
    ) -> list[Answer]:
        """The answers of one row to a document, as an evaluation asks and scores it.

        Args:
            benchmark: a benchmark of the experiment or a variant, such as gsm8k@larger_numbers.
            number: the `doc_id` of a record's samples.
            decoding: None is the benchmark's own.

        Raises:
            UserError: for a benchmark or document that is not there.
        """
        column = self._column(benchmark, decoding)
        if column.config.runs_code:
            sandbox.require(self.config.allow_unsandboxed)
        found = self._find(row, column, number)
        prompt, chat = self.config.prompts[row.prompt], self._takes_template(row)
        sample = self._with(row, lambda engine: ask(engine, column, found, prompt.system, chat))
        return _answers(row, sample)

    def document(self, benchmark: str, number: int) -> tuple[str, str]:
        """A document's question without the prompt around it, and the answer that is expected."""
        row = next(iter(self.rows.values()))
        found = self._find(row, self._column(benchmark), number)
        target = found.task.doc_to_target(found.doc)
        if isinstance(target, int):
            target = found.task.doc_to_choice(found.doc)[target]
        return str(found.task.doc_to_text(found.doc)), str(target)

    def _column(self, name: str, decoding: Decoding | None = None) -> Benchmark:
        if name not in self.benchmarks:
            raise UserError(f"task={name}: no such task{nearest(name, list(self.benchmarks))}")
        column = self.benchmarks[name]
        if decoding is None:
            return column
        decoding.check()
        config = replace(
            column.config, temperature=decoding.temperature, top_p=decoding.top_p, samples=decoding.samples
        )
        if decoding.max_tokens is not None and not config.metric.startswith("acc"):
            config = replace(config, max_gen_toks=decoding.max_tokens)
        return replace(column, config=config)

    def _find(self, row: Condition, column: Benchmark, number: int) -> Found:
        def load(subtask: str | None) -> Any:
            key = (repr(column), subtask, row.prompt)
            if key not in self._tasks:
                manager = manager_of(self.plan.benchmarks)
                self._tasks[key] = load_task(manager, column, subtask, self.config.prompts[row.prompt])
                check_task(self._tasks[key], column)
            return self._tasks[key]

        return find(load, column, number)

    def _extract(self, report: Callable[[str], None]) -> None:
        """Extract the vectors that are not there; those that are there must fit the target too."""
        for family in self.plan.families.values():
            if self.plan.parts(family):
                stages.check_vectors(self.plan, family)
        try:
            for family, row in self.plan.rows():
                self.plan.terms(family, row)
        except UserError:
            with held(self.plan.results, f"ask {self.config.name}", report):
                stages.extract(self.plan, report)

    def _with(self, row: Condition, work: Callable[[Engine], T]) -> T:
        """What `work` makes of the engine with the weights of a row."""
        try:
            return work(self._runner.hold(self.family, row))
        except Exception as e:  # vLLM tells of a dead worker in several ways
            engine = self._runner.engine
            if isinstance(e, UserError) or engine is None or engine.alive():
                raise
            cause = engine.last_error() or type(e).__name__
            self._runner.close()
            raise UserError(
                f"the engine died on this question ({cause:.200}); the next starts another"
            ) from e

    def _takes_template(self, row: Condition) -> bool:
        return takes_chat_template(self.family.config, row.start)

    def _text(self, engine: Engine, row: Condition, messages: Sequence[Message]) -> str:
        """A conversation as the model sees it, under the row's prompt."""
        prompt = self.config.prompts[row.prompt]
        turns = [{"role": "system", "content": prompt.system}] if prompt.system else []
        for message in messages:
            prefix = prompt.prefix if message["role"] == "user" else ""
            turns.append({"role": message["role"], "content": prefix + message["content"]})
        if self._takes_template(row):
            return str(engine.lm.apply_chat_template(turns))
        return "\n".join(turn["content"] for turn in turns)


def _generate(engine: Engine, text: str, row: Condition, decoding: Decoding) -> list[Answer]:
    from lm_eval.api.instance import Instance

    lm = engine.lm
    used = len(lm.tok_encode([text])[0])
    most = decoding.max_tokens or max(1, min(MOST_TOKENS, lm.max_length - used))
    if used + most > lm.max_length:
        raise UserError(
            f"the prompt has {used} tokens, the answer may have {most}, the engine has room for {lm.max_length};"
            " shorten the prompt, or raise engine.max_model_len"
        )
    options: dict[str, Any] = {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": most}
    if decoding.temperature:
        options |= {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p}
    name = ("ask", decoding.seed)
    request = Instance("generate_until", {}, (text, options), 0, (*name, decoding.samples))
    lm.reset()
    texts = lm.generate_until([request] * decoding.samples)
    ends = lm.generations[name]
    return [
        Answer(row.name, row.label, text, answer, end.tokens, end.finish)
        for answer, end in zip(texts, ends, strict=True)
    ]


def _answers(row: Condition, sample: Sample) -> list[Answer]:
    return [
        Answer(
            row.name,
            row.label,
            sample["prompt"],
            answer["output"],
            answer["tokens"],
            answer["finish"],
            answer["score"],
            sample["target"],
            answer["extracted"],
        )
        for answer in sample.get("answers", [sample])
    ]
