"""lm-eval tasks that ask some of their documents, under their own numbers and with their own examples.

    narrow(task, range(100, 200))

lm-eval's `samples` would number the documents anew and draw other examples: it draws those of all documents from one
random sequence. Here requests are built up to the last document, and those before the first are then dropped.
"""

from collections.abc import Iterator
from typing import Any


def narrow(task: Any, span: range) -> None:
    """Have lm-eval ask and score the documents in `span` alone.

    Args:
        task: an lm-eval task; its `doc_iterator` and `build_all_requests` are replaced.
    """
    every, build_all = task.doc_iterator, task.build_all_requests

    def documents(**options: Any) -> Iterator[tuple[int, Any]]:
        return ((number, doc) for number, doc in every(**options) if number in span)

    def build(**options: Any) -> None:
        task.doc_iterator = every
        build_all(**options | {"limit": span.stop})
        task.doc_iterator = documents
        task._instances = [request for request in task.instances if request.doc_id in span]

    task.doc_iterator, task.build_all_requests = documents, build


def spans(sizes: list[int], span: range) -> list[range]:
    """The part of `span` that lies in each of several tasks, in the tasks' own numbers; tasks have so many documents."""
    found, start = [], 0
    for size in sizes:
        found.append(range(max(span.start - start, 0), max(min(span.stop - start, size), 0)))
        start += size
    return found
