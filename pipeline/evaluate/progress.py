"""One line for each finished cell, with an estimate of what is left."""

import time
from collections.abc import Callable

from pipeline.plan.plan import Cell
from pipeline.records import Metrics


def name_of(cell: Cell) -> str:
    """A cell as people read it."""
    return f"{cell.family.name} · {cell.condition.label} · {cell.benchmark.name}"


class Progress:
    """Counts cells, and reports each that is finished.

    Args:
        total: cells that are to be computed.
        expected: seconds that all of them are expected to take, in a unit of their own: real ones are measured.
    """

    def __init__(self, total: int, expected: float, report: Callable[[str], None]) -> None:
        self.total, self.expected, self.report = total, expected, report
        self.computed = self.skipped = 0
        self.past = 0.0  # of `expected`
        self.started: float | None = None

    def start(self) -> None:
        """Count time from here, the first time that this is called: an engine's start is no cell's work."""
        self.started = self.started or time.monotonic()

    def skip(self, expected: float = 0.0, cells: int = 1) -> None:
        """A cell that needs no work: its record is there already, or it was given up."""
        self.skipped += cells
        self.expected -= expected

    def done(self, cell: Cell, metrics: Metrics, seconds: float, expected: float = 0.0) -> None:
        """A cell that was computed in so many seconds, of which the last job was expected to take so many."""
        self.computed += 1
        score = f"{100 * metrics['score']:5.1f} % of {metrics['n']}"
        self._tell(f"{name_of(cell):<60} {score}  {seconds:5.1f} s", expected)

    def shard(self, name: str, seconds: float, expected: float) -> None:
        """A shard that was computed, not the last of its cell."""
        self._tell(f"{name:<60} {seconds:5.1f} s", expected)

    def _tell(self, text: str, expected: float) -> None:
        self.start()
        self.past += expected
        spent = time.monotonic() - (self.started or 0.0)
        left = spent / self.past * max(self.expected - self.past, 0.0) if self.past else 0.0
        self.report(f"[{self.computed + self.skipped:>3}/{self.total}] {text}  (left: {_minutes(left)})")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
