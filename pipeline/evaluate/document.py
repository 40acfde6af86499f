"""One document of a benchmark: found by its number, asked, and scored, as a run does with all of them.

    found = find(lambda subtask: load_task(manager, benchmark, subtask, prompt), benchmark, 3)
    ask(engine, benchmark, found, system=None, chat=True)["score"]

The prompt is that of a run to the last example: lm-eval draws the examples of all documents from one random sequence, so
those before the document are drawn too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.engine.engine import Engine
from pipeline.errors import UserError
from pipeline.evaluate.samples import merge
from pipeline.evaluate.tasks import FEWSHOT_SEED
from pipeline.plan.grid import Benchmark
from pipeline.records import Sample

Template = Callable[..., str]  # messages, as lm-eval hands them over → a prompt


@dataclass(frozen=True)
class Found:
    """A document of an lm-eval task: its `doc_id` in a record, and its place in the subtask."""

    number: int
    subtask: str | None
    task: Any
    index: int

    @property
    def doc(self) -> dict[str, Any]:
        """The document, as the task has it."""
        found: dict[str, Any] = self.task.eval_docs[self.index]
        return found


def find(load: Callable[[str | None], Any], benchmark: Benchmark, number: int) -> Found:
    """The document of that number, counted from 0 over the subtasks.

    Args:
        load: gives the lm-eval task of a subtask.

    Raises:
        UserError: if there are not so many.
    """
    if number < 0:
        raise UserError(f"document={number}: expected a number from 0")
    start = 0
    for subtask in benchmark.subtasks:
        task = load(subtask)
        size = min(len(task.eval_docs), benchmark.limit or len(task.eval_docs))
        if number < start + size:
            return Found(number, subtask, task, number - start)
        start += size
    raise UserError(f"document={number}: {benchmark.name} has {start} documents, counted from 0")


def requests_of(found: Found, system: str | None, template: Template | None) -> list[Any]:
    """lm-eval's requests for the document, which are then the task's only ones.

    Args:
        template: makes the prompt of a chat; None where none is applied.
    """
    task, index = found.task, found.index
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    task.build_all_requests(
        limit=index + 1,
        rank=0,
        world_size=1,
        system_instruction=system,
        apply_chat_template=template is not None,
        fewshot_as_multiturn=True,
        chat_template=template,
    )
    task._instances = [request for request in task.instances if request.doc_id == index]
    requests: list[Any] = task._instances
    return requests


def ask(engine: Engine, benchmark: Benchmark, found: Found, system: str | None, chat: bool) -> Sample:
    """The model's answer to the document with its scores, as a record has it.

    Raises:
        UserError: if the prompt does not fit the engine, or a score is not finite.
    """
    lm, task = engine.lm, found.task
    requests = requests_of(found, system, lm.apply_chat_template if chat else None)
    lm.reset()
    repeated = [request for request in requests for _ in range(request.repeats or 1)]
    for answer, request in zip(getattr(lm, requests[0].request_type)(repeated), repeated, strict=True):
        request.resps.append(answer)
    task.apply_filters()
    row = {
        "doc_id": found.index,
        "doc": requests[0].doc,
        "target": task.doc_to_target(requests[0].doc),
        "arguments": [request.args for request in requests],
        "resps": [request.resps for request in requests],
    }
    rows = []
    for name in requests[0].filtered_resps:
        filtered = [request.filtered_resps[name] for request in requests]
        metrics = task.process_results(requests[0].doc, filtered)
        rows.append(row | {"filter": name, "filtered_resps": filtered, "metrics": list(metrics)} | metrics)
    (sample,) = merge(rows, found.subtask, task, engine, benchmark, start=found.number)
    return sample
