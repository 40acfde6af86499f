"""One engine, many who ask: questions wait in a queue and are answered one after the other, on one thread.

    desk = Desk()
    server = Thread(target=…)            # other threads: desk.do(lambda: model.ask("…"))
    desk.work()                          # this thread answers, until it is interrupted

vLLM and lm-eval are not made for several threads, and an engine holds one set of weights at a time.
"""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from pipeline.errors import UserError

WAITING = 32  # questions that may wait
POLL = (
    0.5  # seconds: a signal that comes just before a wait begins, or to another thread, does not end the wait
)
T = TypeVar("T")


class Desk:
    """A queue of work that one thread does."""

    def __init__(self, most: int = WAITING) -> None:
        self._jobs: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue(most)
        self._closed = False

    def do(self, job: Callable[[], T]) -> T:
        """What `job` returns or raises, done by the thread that works here.

        Raises:
            UserError: if too many wait already, or the desk is closed.
        """
        answer: Future[T] = Future()
        try:
            self._jobs.put_nowait((job, answer))
        except queue.Full:
            raise UserError(f"{self._jobs.maxsize} questions wait already; ask again later") from None
        if self._closed:  # perhaps after `close` looked
            self.close()
        return answer.result()

    def work(self) -> None:
        """Do what comes, for ever; an interruption ends it and whatever waits is refused."""
        try:
            while True:
                try:
                    job, answer = self._jobs.get(timeout=POLL)
                except queue.Empty:
                    continue
                try:
                    answer.set_result(job())
                except Exception as e:  # noqa: BLE001 - it belongs to the one who asked
                    answer.set_exception(e)
                except BaseException:
                    answer.set_exception(_ended())
                    raise
        finally:
            self.close()

    def close(self) -> None:
        """Refuse what waits, and what comes."""
        self._closed = True
        while True:
            try:
                _, answer = self._jobs.get_nowait()
            except queue.Empty:
                return
            answer.set_exception(_ended())


def _ended() -> UserError:
    return UserError("the playground has ended; start it again")
