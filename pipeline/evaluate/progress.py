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
    """

    def __init__(self, total: int, report: Callable[[str], None]) -> None:
        self.total, self.report = total, report
        self.computed = self.skipped = 0
        self.started: float | None = None

    def start(self) -> None:
        """Count time from here, the first time that this is called: an engine's start is no cell's work."""
        self.started = self.started or time.monotonic()

    def skip(self) -> None:
        """A cell that needs no work: its record is there already, or it was given up."""
        self.skipped += 1

    def done(self, cell: Cell, metrics: Metrics, seconds: float) -> None:
        """A cell that was computed in so many seconds."""
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
