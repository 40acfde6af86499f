"""In which order requests are handed to the engine, and how many at a time.

    Arrangement(order=1, at_once=128).batches(1319)        positions of the requests, batch by batch

In float32 answers depend on neither. In bf16 kernels add in an order that depends on what else is in the batch, and an
answer can move: a row that is asked again in another arrangement shows how far (docs/repeatability.md).
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Arrangement:
    """The plain one is lm-eval's order, all at once; the engine then takes as many as it has room for."""

    order: int | None = None  # the seed of another order
    at_once: int | None = None  # requests that are asked at a time, at most

    def batches(self, requests: int) -> list[list[int]]:
        """Positions of so many requests, each in one batch, in the order in which they are asked.

        With `at_once` there are two batches at least, so that few documents are not all in one batch again.
        """
        positions = list(range(requests))
        if self.order is not None:
            random.Random(self.order).shuffle(positions)
        size = max(requests, 1) if self.at_once is None else max(1, min(self.at_once, (requests + 1) // 2))
        return [positions[start : start + size] for start in range(0, requests, size)]
