"""Evaluate cells: steer the engine to a cell's weights, run its benchmark through lm-eval, write its record.

    evaluate(plan, report=print)

Cells are ordered so that an engine starts once for each architecture and weights change once for each condition;
each finished cell is on disk before the next begins. lm-eval does prompts, requests, filters and metrics; what is
ours is where documents come from (`evals.data`), the prompt condition, and the counts of tokens and cut answers.
"""

import hashlib
import logging
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import code, data, sandbox
from pipeline.checkpoint import EMBEDDING
from pipeline.config import ROOT, Config, EngineConfig, PromptConfig
from pipeline.engine import Engine
from pipeline.errors import UserError
from pipeline.plan import TASKS, Cell, Condition, Family, Plan, Task, takes_chat_template, versions
from pipeline.records import is_done, write_record
from pipeline.vector import check_compatible

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

ATTEMPTS = 2  # engines, or workers of a cluster, that may die on one cell before it is given up
NOT_EXTRACTED = "[invalid]"  # what lm-eval's filters return when nothing matches


class EngineDied(UserError):
    """As many engines as `ATTEMPTS` died on one cell; the next cell gets a new one."""


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
    given_up = []
    progress = Progress(len(missing), report)
    try:
        for cell in in_order(missing):
            if is_done(plan.results, cell.key):  # another run was quicker
                progress.skip()
                continue
            runner.ready(cell)
            progress.start()
            started = time.monotonic()
            try:
                metrics = runner.run(cell)
            except EngineDied:
                given_up.append(cell)
                progress.skip()
                continue
            progress.done(cell, metrics, time.monotonic() - started)
    finally:
        runner.close()
    if given_up:
        raise UserError(
            f"given up after {ATTEMPTS} engines died on each: {', '.join(map(name_of, given_up))}; run again, with less"
            " in memory (engine.max_num_seqs, engine.kv_cache_gb, engine.gpu_memory_utilization)"
        )
    return progress.computed


def name_of(cell: Cell) -> str:
    """A cell as people read it."""
    return f"{cell.family.name} · {cell.condition.label} · {cell.task.name}"


def in_order(cells: Iterable[Cell]) -> Iterator[Cell]:
    """By engine, then by weights, so that both change as seldom as possible."""
    listed = list(cells)
    engines = list(dict.fromkeys(c.family.architecture for c in listed))
    weights = list(dict.fromkeys(str(c.inputs["weights"]) for c in listed))
    listed.sort(key=lambda c: (engines.index(c.family.architecture), weights.index(str(c.inputs["weights"]))))
    return iter(listed)


class Progress:
    """One line for each finished cell, with an estimate of what is left."""

    def __init__(self, total: int, report: Callable[[str], None]) -> None:
        self.total, self.report = total, report
        self.computed = self.skipped = 0
        self.started: float | None = None

    def start(self) -> None:
        """Count time from here, the first time that this is called: an engine's start is no cell's work."""
        self.started = self.started or time.monotonic()

    def skip(self) -> None:
        self.skipped += 1

    def done(self, cell: Cell, metrics: dict[str, Any], seconds: float) -> None:
        self.computed += 1
        finished = self.computed + self.skipped
        self.start()
        left = (time.monotonic() - (self.started or 0.0)) / self.computed * (self.total - finished)
        score = f"{100 * metrics['score']:5.1f} % of {metrics['n']}"
        self.report(
            f"[{finished:>3}/{self.total}] {name_of(cell):<60} {score}  {seconds:5.1f} s  (left: {_minutes(left)})"
        )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


class Runner:
    """Holds the live engine and what is loaded, and runs one cell after the other."""

    def __init__(self, plan: Plan, report: Callable[[str], None] = print) -> None:
        self.plan, self.report = plan, report
        self.engine: Engine | None = None
        self.architecture = self.weights = ""

    def check(self, cells: list[Cell]) -> None:
        """Try the sandbox and open the vectors, so that a mistake shows before an engine starts."""
        if any(cell.task.config.runs_code for cell in cells):
            level = sandbox.require(self.plan.config.allow_unsandboxed)
            self.report(f"candidate programs run in: {level}")
        for cell in {(c.family.name, c.condition): c for c in cells}.values():
            self.plan.terms(cell.family, cell.condition)

    def ready(self, cell: Cell) -> None:
        """Start the engine that a cell needs, if it is not the one that runs."""
        self._engine(cell.family)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Evaluate one cell, write its record and return its metrics; an engine that dies on it is replaced once.

        Raises:
            EngineDied: if the second one dies too.
        """
        for attempt in range(1, ATTEMPTS + 1):
            engine = self._engine(cell.family)
            try:
                return self._run(engine, cell)
            except Exception as e:  # vLLM tells of a dead worker in several ways
                if isinstance(e, UserError) or engine.alive():
                    raise
                self.close()
                again = (
                    "it is tried again" if attempt < ATTEMPTS else f"given up after {ATTEMPTS} such deaths"
                )
                self.report(f"the engine died on {name_of(cell)}; {again}")
        raise EngineDied(f"{ATTEMPTS} engines died on {name_of(cell)}")

    def _run(self, engine: Engine, cell: Cell) -> dict[str, Any]:
        self._steer(engine, cell.family, cell.condition)
        began, started = time.monotonic(), datetime.now(UTC)
        engine.lm.reset()
        samples = self._samples(engine, cell)
        lm = engine.lm
        cost = {
            "seconds": round(time.monotonic() - began, 3),
            "generated_tokens": lm.generated_tokens,
            "prompt_tokens": lm.prompt_tokens,
            "requests": lm.requests,
        }
        metrics = summarise(samples, cell.task.config.metric)
        chat = takes_chat_template(cell.family.config, cell.condition.weights)
        template = chat_template_sha(lm.tokenizer) if chat else None
        provenance = _provenance(self.plan.config, cell, started, template)
        write_record(self.plan.results, cell.inputs, metrics, cost, provenance, samples)
        return metrics

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def _engine(self, family: Family) -> Engine:
        if self.engine is None or self.architecture != family.architecture:
            self.close()
            self.report(f"starting the engine for {family.target.source}")
            self.engine = Engine(self.plan.config.engine, family.target.path)
            self.architecture, self.weights = family.architecture, ""
        return self.engine

    def _steer(self, engine: Engine, family: Family, condition: Condition) -> None:
        start, terms = family.checkpoint(condition.weights), self.plan.terms(family, condition)
        wanted = f"{start.path} {terms}"
        if wanted != self.weights:
            self.weights = ""  # until the swap is certified nothing is loaded
            engine.steer(start.path, terms)
            self.weights = wanted

    def _samples(self, engine: Engine, cell: Cell) -> list[dict[str, Any]]:
        from lm_eval.evaluator import evaluate as lm_evaluate

        prompt = self.plan.config.prompts[cell.condition.prompt]
        tasks = self._tasks(cell.task, prompt)
        results = lm_evaluate(
            lm=engine.lm,
            task_dict={"tasks": {task.config.task: task for task in tasks.values()}},
            limit=cell.task.limit,
            system_instruction=prompt.system,
            apply_chat_template=takes_chat_template(cell.family.config, cell.condition.weights),
            fewshot_as_multiturn=True,
            bootstrap_iters=0,
            log_samples=True,
        )
        samples: list[dict[str, Any]] = []
        for subtask, task in tasks.items():
            rows = results["samples"][task.config.task]
            samples += _merge(rows, subtask, task, engine, cell, start=len(samples))
        return samples

    def _tasks(self, task: Task, prompt: PromptConfig) -> dict[str | None, Any]:
        """The lm-eval task of each subtask, with our documents and the prompt condition."""
        manager = manager_of(self.plan.tasks)
        return {s: load_task(manager, self.plan.config, task, s, prompt) for s in task.subtasks}


def check_inputs(plan: Plan, vectors: bool) -> None:
    """Everything that the missing cells read: found wrong here, nothing has been written.

    `vectors`: these too; they are not there yet if the stage 'extract' is still to come.

    Raises:
        UserError: for a checkpoint, tokenizer, task, document or vector that a cell could not be computed with.
    """
    missing = plan.missing()
    if vectors:
        for cell in {(c.family.name, c.condition): c for c in missing}.values():
            plan.terms(cell.family, cell.condition)
    for cell in {(c.family.name, c.condition.weights): c for c in missing}.values():
        checkpoint = cell.family.checkpoint(cell.condition.weights)
        check_compatible(cell.family.target, checkpoint, checkpoint)
    for family in {c.family.name: c.family for c in missing}.values():
        _check_tokenizer(family, plan.config.engine)
    manager = manager_of(plan.tasks)
    for task in {c.task.name: c.task for c in missing}.values():
        for subtask in task.subtasks:
            loaded = load_task(manager, plan.config, task, subtask, PromptConfig())
            _check_task(loaded, task)


def load_tokenizer(where: str, revision: str | None = None) -> Any:
    """The tokenizer of a checkpoint; code of its own is never run.

    Raises:
        UserError: if it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=False)
    except Exception as e:  # tokenizers raises nothing narrower
        reason = " ".join(str(e).split())[:160]
        raise UserError(f"{where}: its tokenizer cannot be read ({reason}); fetch it again") from e


def _check_tokenizer(family: Family, engine: EngineConfig) -> None:
    target, question = family.target, "What is asked?"
    tokenizer = load_tokenizer(str(target.path))
    rows = target.resolve(EMBEDDING).shape[0]
    if max(tokenizer.get_vocab().values(), default=-1) >= rows:
        raise UserError(
            f"{target.source}: its tokenizer has ids up to {max(tokenizer.get_vocab().values())}, its embedding only"
            f" {rows} rows; copy the tokenizer that the model was trained with into it"
        )
    positions = target.config.get("max_position_embeddings")
    rope = target.config.get("rope_scaling") or target.config.get("rope_parameters") or {}
    scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
    if positions and not scaled and engine.max_model_len > positions:
        raise UserError(
            f"engine.max_model_len={engine.max_model_len}: {target.source} has {positions} positions; lower it"
        )
    if family.config.chat:
        try:
            turn = [{"role": "user", "content": question}]
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        except Exception as e:  # a template raises what it likes
            reason = f"cannot be applied ({' '.join(str(e).split())[:160]})"
            raise UserError(f"{target.source}: its chat template {reason}; mend it or set chat=false") from e
        if question not in text:
            raise UserError(f"{target.source}: its chat template leaves the user's turn out; mend it")


def _check_task(loaded: Any, task: Task) -> None:
    """Answers must be greedy, filters must be, and every document must have what it is asked with."""
    from jinja2 import TemplateError

    where, name = f"benchmarks.{task.benchmark}", loaded.config.task
    kwargs = loaded.config.generation_kwargs or {}
    if kwargs.get("do_sample", bool(kwargs.get("temperature"))):
        raise UserError(
            f"{where}: '{name}' samples; set do_sample: false in the generation_kwargs of its changes"
        )
    try:
        for ensemble in loaded._filters:
            for make in ensemble.filters:
                make()
    except (re.error, TypeError, ValueError) as e:
        raise UserError(f"{where}: a filter of '{name}' cannot be made ({e}); mend it") from e
    for number, doc in enumerate(islice(loaded.eval_docs, task.limit)):
        given = {key: value for key, value in doc.items() if value is not None}  # it would be asked as "None"
        try:
            loaded.doc_to_text(given), loaded.doc_to_target(given)
            if loaded.OUTPUT_TYPE == "multiple_choice":
                loaded.doc_to_choice(given)
            if task.config.runs_code:
                code.check(given)
        except (TemplateError, LookupError, TypeError, ValueError, AttributeError, UserError) as e:
            raise UserError(
                f"{where}: document {number} of '{name}' has not what is asked"
                f" ({type(e).__name__}: {' '.join(str(e).split())[:160]}); mend it, or leave it out"
            ) from e


def manager_of(tasks: Iterable[Task]) -> "TaskManager":
    """lm-eval's index of these tasks, or of all that there are where one is in no folder of its name."""
    names = {task.config.task.format(subtask=subtask) for task in tasks for subtask in task.subtasks}
    return task_manager(frozenset(names))


@lru_cache
def task_manager(names: frozenset[str] = frozenset()) -> "TaskManager":
    """lm-eval's index of tasks: its own, and ours in evals/tasks.

    With `names`, of its own only the folders that these begin with: reading all 13,000 files takes 6 s.
    """
    from lm_eval import tasks

    _prepare_lm_eval()
    if names:
        folders = [path for path in Path(tasks.__file__).parent.iterdir() if path.is_dir()]
        named = [str(path) for path in folders if any(name.startswith(path.name) for name in names)]
        manager = tasks.TaskManager(include_path=[*named, str(TASKS)], include_defaults=False)
        if names <= set(manager.all_subtasks):
            return manager
    return tasks.TaskManager(include_path=str(TASKS))


@cache
def _prepare_lm_eval() -> None:
    from lm_eval import utils

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # lm-eval compiles a task's template again for every document, a quarter of the time of a tiny model's cell
    utils.env.from_string = lru_cache(utils.env.from_string)


def load_task(
    manager: "TaskManager", config: Config, task: Task, subtask: str | None, prompt: PromptConfig
) -> Any:
    """An lm-eval task with our documents, changes, examples and prompt condition.

    Raises:
        UserError: if lm-eval has no task of that name, it does not fit what the benchmark says of it, or its
            documents or examples cannot be had.
    """
    from jinja2 import TemplateError
    from lm_eval.config.task import TaskConfig

    b, where = task.config, f"benchmarks.{task.benchmark}"
    name = b.task.format(subtask=subtask)
    if name not in manager.all_subtasks:
        raise UserError(f"{where}.task: lm-eval has no task '{name}'; see `lm_eval ls tasks`")
    defaults = manager.task_index[name].cfg or {}
    unknown = sorted(set(b.changes) - {f.name for f in fields(TaskConfig)})
    if unknown:
        raise UserError(
            f"{where}.changes: '{unknown[0]}' is no key of an lm-eval task; known: {', '.join(defaults)}"
        )
    settings = defaults | b.changes
    asked = settings.get("test_split") or settings.get("validation_split")
    if asked != b.dataset.split:
        raise UserError(f"{where}: '{name}' asks the split '{asked}'; set {where}.dataset.split={asked}")
    documents = data.load(
        asdict(b.dataset), config.data.folder, subtask, b.form, task.perturbation, config.perturbation_seed
    )
    spec = {"task": name, **b.changes, "custom_dataset": lambda **_: documents}
    if b.num_fewshot == 0:  # lm-eval opens the split of the examples even where there are none
        spec |= {
            "training_split": None,
            "validation_split": None,
            "fewshot_split": None,
            "fewshot_config": None,
        }
        spec["test_split"] = asked
    else:
        _check_split_of_examples(settings, task, list(documents), config.data.folder)
    try:  # an inline group is lm-eval's way to take a stock task with overrides
        loaded = manager.load([{"group": "cell", "task": [spec]}])["tasks"][name]
        first = loaded.eval_docs[0]
        loaded.doc_to_text(first), loaded.doc_to_target(first)
        if loaded.OUTPUT_TYPE == "multiple_choice":
            loaded.doc_to_choice(first)
    except (TemplateError, LookupError, TypeError, ValueError, AttributeError) as e:
        columns = ", ".join(documents[b.dataset.split].column_names)
        raise UserError(
            f"{where}: '{name}' cannot ask its documents ({type(e).__name__}: {' '.join(str(e).split())[:160]}); found"
            f" the columns {columns}; see {where}.task, {where}.changes and {where}.dataset"
        ) from e
    loaded.set_config(key="num_fewshot", value=b.num_fewshot)
    loaded.set_fewshot_seed(seed=1234)  # simple_evaluate's default
    available = len(loaded.sampler.df) - (loaded.fewshot_cfg.split == asked)  # never the document itself
    if b.num_fewshot > available:
        raise UserError(f"{where}.num_fewshot={b.num_fewshot}: '{name}' has {available} examples; lower it")
    filters = [f["name"] for f in loaded.config.filter_list or [{"name": "none"}]]
    metrics = [f"{metric},{f}" for metric in loaded.aggregation() for f in filters]
    for metric in (b.metric, *b.also):
        if metric not in metrics:
            raise UserError(f"{where}: '{name}' has no metric '{metric}'; it has {' and '.join(metrics)}")
    if b.max_gen_toks is not None:
        if loaded.OUTPUT_TYPE != "generate_until":
            raise UserError(f"{where}.max_gen_toks: '{name}' scores options and generates nothing; remove it")
        loaded.set_config(key="generation_kwargs", value={"max_gen_toks": b.max_gen_toks}, update=True)
    if prompt.prefix:
        stock = loaded.doc_to_text

        def prefixed(doc: dict[str, Any], doc_to_text: Any = None) -> Any:
            text = stock(doc, doc_to_text)  # doc_to_text is given for few-shot examples alone
            return prompt.prefix + text if doc_to_text is None else text

        loaded.doc_to_text = prefixed
    return loaded


def _check_split_of_examples(
    settings: dict[str, Any], task: Task, splits: list[str], folder: str | None
) -> None:
    """Refuse few-shot examples where lm-eval would find no split, or would fall back to the documents asked."""
    b, where = task.config, f"benchmarks.{task.benchmark}"
    examples = settings.get("fewshot_config") or {}
    split = examples.get("split") or settings.get("fewshot_split")
    if split is None and "samples" in examples:
        return
    if split is None:  # lm-eval's own order; it would go on to the documents that are asked
        split = settings.get("training_split") or (
            settings.get("validation_split") if settings.get("test_split") else None
        )
    if split is None:
        raise UserError(
            f"{where}.num_fewshot={b.num_fewshot}: the task '{b.task}' names no split of examples; set"
            f" {where}.changes.fewshot_split, or num_fewshot=0"
        )
    if split not in splits:
        file = b.dataset.files.get(split, f"<file> and name it in {where}.dataset.files.{split}")
        remedy = f"add {folder}/{file}" if folder else f"name another in {where}.changes.fewshot_split"
        raise UserError(
            f"{where}.num_fewshot={b.num_fewshot}: expected examples in the split '{split}', found only"
            f" {', '.join(splits)}; {remedy}, or set num_fewshot=0"
        )


def _merge(
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
    unit (0 to 1); None for one document. Tables have intervals that know of clusters (pipeline/statistics.py).
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


def chat_template_sha(tokenizer: Any) -> str:
    """sha256 of the text of the chat template, which lm-eval's results name likewise."""
    return hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()


def _provenance(
    config: Config, cell: Cell, started: datetime, chat_template_sha: str | None
) -> dict[str, Any]:
    return {
        "family": {
            part: {"id": source.id, "revision": getattr(cell.family, part).revision}
            for part in ("target", "sft", "grpo", "base")
            if (source := getattr(cell.family.config, part)) is not None
        },
        "engine": {k: getattr(v, "value", v) for k, v in asdict(config.engine).items()},
        "chat_template_sha": chat_template_sha,
        "sandbox": str(sandbox.probe()) if cell.task.config.runs_code else None,
        "versions": versions() | {"python": platform.python_version()},
        "host": platform.node(),
        "started": started.isoformat(timespec="seconds"),
        "command": without_secrets("python -m pipeline " + shlex.join(sys.argv[1:])),
        "git": _git_commit(),
    }


def without_secrets(text: str) -> str:
    """Text without the keys and tokens that the environment holds, hub tokens and passwords in addresses."""
    for name, value in os.environ.items():
        if re.search("KEY|TOKEN|SECRET|PASSWORD", name) and len(value) >= 8:
            text = text.replace(value, "***")
    return re.sub(r"\bhf_\w{16,}|(?<=[/=])[^/@=\s]+:[^/@\s]+(?=@)", "***", text)


def _git_commit() -> str | None:
    if "RV_GIT" not in os.environ:
        asked = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
        )
        os.environ["RV_GIT"] = asked.stdout.strip()
    return os.environ["RV_GIT"] or None
