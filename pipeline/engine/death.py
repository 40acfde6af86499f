"""Tells of the death of an engine's process to who waits for its answer.

    watch(llm.llm_engine.engine_core, processes)

A process that fails sends vLLM's client a last message. One that is killed (`kill -9`, the kernel for want of memory)
sends none: the client then refuses what comes next, but never wakes the thread that waits in it.
"""

from collections.abc import Collection
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any


def watch(client: Any, processes: Collection[BaseProcess]) -> None:
    """From now on, have whoever waits in vLLM's `client` get an `EngineDeadError` when one of these processes ends."""

    def tell() -> None:
        wait([process.sentinel for process in processes])
        release(client)

    if processes:
        Thread(target=tell, name="engine-death", daemon=True).start()


def release(client: Any) -> None:
    """Fail what waits for an answer of a dead engine, and what would begin to wait."""
    from vllm.v1.engine.exceptions import EngineDeadError

    client.resources.engine_dead = True  # first: a call that is not in the tables below is refused by it
    client.outputs_queue.put_nowait(EngineDeadError())
    answers: list[Future[Any]] = list(client.utility_results.values())
    for answer in answers:
        with suppress(InvalidStateError):  # it came just before the end
            answer.set_exception(EngineDeadError())
