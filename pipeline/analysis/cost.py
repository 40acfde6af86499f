"""What records cost: tokens, time and GPUs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.analysis.scores import CellScores


@dataclass(frozen=True)
class Cost:
    """The sum over records."""

    cells: int
    documents: int
    prompt_tokens: int
    generated_tokens: int
    seconds: float
    gpu_hours: float | None  # None where no GPU had a part in it

    @property
    def rate(self) -> float | None:
        """Generated tokens per second; None where no time was taken."""
        return self.generated_tokens / self.seconds if self.seconds else None


def cost_of(cells: Iterable[CellScores]) -> Cost:
    """The cost of cells as they were read; an average has none."""
    pairs = [(cell, cell.record) for cell in cells if cell.record is not None]
    records = [record for _, record in pairs]
    gpus = [_gpus(record.provenance["engine"]) for record in records]
    gpu_seconds = sum(n * record.cost["seconds"] for n, record in zip(gpus, records, strict=True))
    return Cost(
        cells=len(pairs),
        documents=sum(len(cell.docs) for cell, _ in pairs),
        prompt_tokens=sum(record.cost["prompt_tokens"] for record in records),
        generated_tokens=sum(record.cost["generated_tokens"] for record in records),
        seconds=sum(record.cost["seconds"] for record in records),
        gpu_hours=gpu_seconds / 3600 if any(gpus) else None,
    )


def _gpus(engine: Mapping[str, Any]) -> int:
    return int(engine.get("tensor_parallel_size", 1)) if engine["device"] == "gpu" else 0
