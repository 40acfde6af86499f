"""lm-eval tasks with our documents, changes, examples and prompt conditions.

    manager = manager_of(plan.benchmarks)
    task = load_task(manager, plan.benchmarks[0], subtask=None, prompt=config.prompts["plain"])

Stock tasks are taken as lm-eval has them; what a benchmark changes in one is said in its file under conf/benchmark/.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import asdict, fields
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import code
from pipeline import documents as data
from pipeline.config.schema import BenchmarkConfig, PromptConfig, plain
from pipeline.errors import UserError
from pipeline.plan.grid import Benchmark
from pipeline.plan.keys import TASKS

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

LENGTH = {"max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"}
DECODING = {"until", "do_sample", "temperature", "top_p", *LENGTH}  # what a task that is sampled may say
JOINING = {"take_first_k", "majority_vote"}
FEWSHOT_SEED = 1234  # simple_evaluate's default


def load_tokenizer(where: str, revision: str | None = None, subfolder: str | None = None) -> Any:
    """The tokenizer of a checkpoint; code of its own is never run.

    Raises:
        UserError: if it cannot be read.
    """
    from transformers import AutoTokenizer

    # It warns of one model's flaw for all in folders.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        return AutoTokenizer.from_pretrained(
            where, revision=revision, subfolder=subfolder or "", trust_remote_code=False
        )
    except Exception as e:  # tokenizers raises nothing narrower
        reason = " ".join(str(e).split())[:160]
        raise UserError(f"{where}: its tokenizer cannot be read ({reason}); fetch it again") from e


def check_task(loaded: Any, benchmark: Benchmark) -> None:
    """Answers must be greedy or sampled as the benchmark says, filters exist, and documents have what they are asked with.

    Args:
        loaded: the lm-eval task.

    Raises:
        UserError: naming the document or setting.
    """
    from jinja2 import TemplateError

    where, name = f"benchmarks.{benchmark.origin}", loaded.config.task
    kwargs = loaded.config.generation_kwargs or {}
    if kwargs.get("do_sample", bool(kwargs.get("temperature"))) and not benchmark.config.temperature:
        raise UserError(
            f"{where}: '{name}' samples; set {where}.temperature, or do_sample: false in the generation_kwargs of its"
            " changes"
        )
    try:
        for ensemble in loaded._filters:
            for make in ensemble.filters:
                make()
    except (re.error, TypeError, ValueError) as e:
        raise UserError(f"{where}: a filter of '{name}' cannot be made ({e}); fix it") from e
    for number, doc in enumerate(islice(loaded.eval_docs, benchmark.limit)):
        given = {key: value for key, value in doc.items() if value is not None}  # it would be asked as "None"
        try:
            loaded.doc_to_text(given), loaded.doc_to_target(given)
            if loaded.OUTPUT_TYPE == "multiple_choice":
                loaded.doc_to_choice(given)
            if benchmark.config.runs_code:
                code.check(given)
        except (TemplateError, LookupError, TypeError, ValueError, AttributeError, UserError) as e:
            raise UserError(
                f"{where}: document {number} of '{name}' lacks what is asked"
                f" ({type(e).__name__}: {' '.join(str(e).split())[:160]}); fix it, or leave it out"
            ) from e


def most_new_tokens(loaded: Any) -> int:
    """The tokens that an answer of this lm-eval task may have; 0 where options are scored."""
    from lm_eval.models.utils import normalize_gen_kwargs

    if loaded.OUTPUT_TYPE != "generate_until":
        return 0
    most: int = normalize_gen_kwargs(dict(loaded.config.generation_kwargs or {}))["max_gen_toks"]
    return most


def manager_of(benchmarks: Iterable[Benchmark]) -> "TaskManager":
    """lm-eval's index of the folders that have the tasks of these benchmarks."""
    benchmarks = list(benchmarks)
    names = {
        benchmark.config.task.format(subtask=subtask)
        for benchmark in benchmarks
        for subtask in benchmark.subtasks
    }
    return task_manager(
        frozenset(names), tuple(dict.fromkeys(f for benchmark in benchmarks for f in benchmark.task_folders))
    )


@lru_cache
def task_manager(names: frozenset[str] = frozenset(), own: tuple[str, ...] = ()) -> "TaskManager":
    """lm-eval's index of tasks: its own, ours in evals/tasks, and those of the folders `own`.

    With `names`, of its own only the folders that these begin with, and for one that is in none of them those whose
    files have its name: to parse all 14,000 files takes 6 s.
    """
    from lm_eval import tasks

    _prepare_lm_eval()
    if not names:
        return tasks.TaskManager(include_path=[str(TASKS), *own])
    folders = sorted(path for path in Path(tasks.__file__).parent.iterdir() if path.is_dir())
    found = [path for path in folders if any(name.startswith(path.name) for name in names)]
    manager = _index_of(found, own)
    if missing := names.difference(manager.all_subtasks):
        manager = _index_of([path for path in folders if path in found or _says(path, missing)], own)
    return manager


def _index_of(folders: Iterable[Path], own: tuple[str, ...]) -> "TaskManager":
    from lm_eval import tasks

    return tasks.TaskManager(include_path=[*map(str, folders), str(TASKS), *own], include_defaults=False)


def _says(folder: Path, names: frozenset[str]) -> bool:
    """Whether a file in a folder has one of these names in its text."""
    texts = (path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return any(name.encode() in text for text in texts for name in names)


@cache
def _prepare_lm_eval() -> None:
    from lm_eval import utils

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # lm-eval compiles a task's template again for every document, a quarter of the time of a tiny model's cell
    utils.env.from_string = lru_cache(utils.env.from_string)


def load_task(manager: "TaskManager", benchmark: Benchmark, subtask: str | None, prompt: PromptConfig) -> Any:
    """An lm-eval task with our documents, changes, examples and prompt condition.

    Raises:
        UserError: if lm-eval has no task of that name, it does not fit what the benchmark says of it, or its
            documents or examples cannot be had.
    """
    b, where = benchmark.config, f"benchmarks.{benchmark.origin}"
    name = b.task.format(subtask=subtask)
    settings = _settings(manager, name, b, where)
    documents = data.load(
        asdict(b.dataset), benchmark.folder, subtask, b.form, benchmark.perturbation, benchmark.seed
    )
    if b.num_fewshot:
        _check_split_of_examples(settings, benchmark, list(documents), benchmark.folder)
    spec = {"task": name, **plain(b.changes), "custom_dataset": lambda **_: documents}
    loaded = _loaded(manager, spec if b.num_fewshot else spec | _without_examples(b), benchmark, documents)
    _take_examples(loaded, b, where)
    _check_metrics(loaded, b, where)
    if b.max_gen_toks is not None:
        if loaded.OUTPUT_TYPE != "generate_until":
            raise UserError(f"{where}.max_gen_toks: '{name}' scores options and generates nothing; remove it")
        loaded.set_config(key="generation_kwargs", value={"max_gen_toks": b.max_gen_toks}, update=True)
    if b.temperature:
        _sample(loaded, b, where)
    if prompt.prefix:
        _prefix(loaded, prompt.prefix)
    return loaded


def _settings(manager: "TaskManager", name: str, b: BenchmarkConfig, where: str) -> dict[str, Any]:
    """What lm-eval's file of a task says, with the benchmark's changes, which must be keys of a task."""
    from lm_eval.config.task import TaskConfig

    if name not in manager.all_subtasks:
        raise UserError(f"{where}.task: lm-eval has no task '{name}'; see `lm_eval ls tasks`")
    defaults = manager.task_index[name].cfg or {}
    unknown = sorted(set(b.changes) - {f.name for f in fields(TaskConfig)})
    if unknown:
        raise UserError(
            f"{where}.changes: '{unknown[0]}' is no key of an lm-eval task; known: {', '.join(defaults)}"
        )
    settings: dict[str, Any] = defaults | plain(b.changes)
    asked = settings.get("test_split") or settings.get("validation_split")
    if asked != b.dataset.split:
        raise UserError(f"{where}: '{name}' asks the split '{asked}'; set {where}.dataset.split={asked}")
    return settings


def _without_examples(b: BenchmarkConfig) -> dict[str, Any]:
    """Changes that name no split of examples: lm-eval opens it even where there are none."""
    nowhere = dict.fromkeys(("training_split", "validation_split", "fewshot_split", "fewshot_config"))
    return nowhere | {"test_split": b.dataset.split}


def _loaded(manager: "TaskManager", spec: dict[str, Any], benchmark: Benchmark, documents: Any) -> Any:
    """The task of a specification, once its first document has been asked."""
    from jinja2 import TemplateError

    where, name = f"benchmarks.{benchmark.origin}", spec["task"]
    try:  # an inline group is lm-eval's way to take a stock task with overrides
        loaded = manager.load([{"group": "cell", "task": [spec]}])["tasks"][name]
        first = loaded.eval_docs[0]
        loaded.doc_to_text(first), loaded.doc_to_target(first)
        if loaded.OUTPUT_TYPE == "multiple_choice":
            loaded.doc_to_choice(first)
    except (TemplateError, LookupError, TypeError, ValueError, AttributeError) as e:
        columns = ", ".join(documents[benchmark.config.dataset.split].column_names)
        raise UserError(
            f"{where}: '{name}' cannot ask its documents ({type(e).__name__}: {' '.join(str(e).split())[:160]}); found"
            f" the columns {columns}; see {where}.task, {where}.changes and {where}.dataset"
        ) from e
    return loaded


def _take_examples(loaded: Any, b: BenchmarkConfig, where: str) -> None:
    """Have a task show as many examples as its benchmark says, of which there must be enough."""
    loaded.set_config(key="num_fewshot", value=b.num_fewshot)
    loaded.set_fewshot_seed(seed=FEWSHOT_SEED)
    itself = loaded.fewshot_cfg.split == b.dataset.split  # a document is no example of its own
    available = len(loaded.sampler.df) - itself
    if b.num_fewshot > available:
        raise UserError(
            f"{where}.num_fewshot={b.num_fewshot}: '{loaded.config.task}' has {available} examples; lower it"
        )


def _check_metrics(loaded: Any, b: BenchmarkConfig, where: str) -> None:
    filters = [f["name"] for f in loaded.config.filter_list or [{"name": "none"}]]
    metrics = [f"{metric},{f}" for metric in loaded.aggregation() for f in filters]
    for metric in (b.metric, *b.also):
        if metric not in metrics:
            raise UserError(
                f"{where}: '{loaded.config.task}' has no metric '{metric}'; it has {' and '.join(metrics)}"
            )


def _prefix(loaded: Any, prefix: str) -> None:
    """Begin what is asked with `prefix`, and leave the examples as they are."""
    stock = loaded.doc_to_text

    def prefixed(doc: dict[str, Any], doc_to_text: Any = None) -> Any:
        text = stock(doc, doc_to_text)  # doc_to_text is given for few-shot examples alone
        return prefix + text if doc_to_text is None else text

    loaded.doc_to_text = prefixed


def _sample(loaded: Any, b: BenchmarkConfig, where: str) -> None:
    """Have a task's answers sampled, so often and in the way that its benchmark says."""
    name = loaded.config.task
    if loaded.OUTPUT_TYPE != "generate_until":
        raise UserError(f"{where}.temperature: '{name}' scores options and generates nothing; remove it")
    other = sorted(set(loaded.config.generation_kwargs or {}) - DECODING)
    if other:
        raise UserError(
            f"{where}.temperature: '{name}' also sets '{other[0]}', of which a benchmark says nothing; leave it out of"
            f" {where}.changes.generation_kwargs"
        )
    for ensemble in loaded.config.filter_list or []:
        for step in ensemble["filter"]:
            if step["function"] in JOINING:
                raise UserError(
                    f"{where}.temperature: '{name}' has the filter '{step['function']}', which makes one answer of"
                    f" several; each is scored by itself: name others in {where}.changes.filter_list"
                )
    sampling = {"do_sample": True, "temperature": b.temperature, "top_p": b.top_p}
    loaded.set_config(key="generation_kwargs", value=sampling, update=True)
    loaded.set_config(key="repeats", value=b.samples)


def _check_split_of_examples(
    settings: dict[str, Any], benchmark: Benchmark, splits: list[str], folder: str | None
) -> None:
    """Refuse few-shot examples where lm-eval would find no split, or would fall back to the documents asked."""
    b, where = benchmark.config, f"benchmarks.{benchmark.origin}"
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
