"""Host memory that is used again, for tensors that are made, copied somewhere and dropped, one after the other.

    memory = Memory()
    tensor = memory.tensor(numel, torch.bfloat16)     # its memory is given out again when the last view of it is gone

A page that a process touches for the first time costs more than to read a page from the file cache.
"""

import mmap
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # it takes a second to import: only who asks for a tensor pays
    import torch

ALIGNMENT = 64  # bytes
SMALLEST = 1 << 28  # bytes of a block; pages that are never touched take no memory


class Memory:
    """Blocks that are given out from their start on, and again from the start when all of one has come back."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []
        self.lock = threading.RLock()

    def tensor(self, numel: int, dtype: "torch.dtype") -> "torch.Tensor":
        """A flat tensor on the CPU, its entries undefined."""
        import torch

        size = numel * dtype.itemsize
        with self.lock:
            block = next((block for block in self.blocks if block.end + size <= len(block.memory)), None)
            if block is None:
                block = _Block(_fresh(max(size, SMALLEST)))
                self.blocks = [held for held in self.blocks if held.used] + [
                    block
                ]  # the others were too small
            view = block.memory[block.end : block.end + size]
            block.end += -(-size // ALIGNMENT) * ALIGNMENT
            block.used += 1
        weakref.finalize(
            view, self._take_back, block
        )  # torch holds the view as long as a tensor uses its memory
        return torch.from_numpy(view).view(dtype)

    def _take_back(self, block: "_Block") -> None:
        with self.lock:
            block.used -= 1
            if not block.used:
                block.end = 0


def _fresh(size: int) -> NDArray[np.uint8]:
    """Memory of its own. numpy would ask for huge pages, for which a kernel with little free memory moves others about:
    three times as long as small pages take, and no faster afterwards."""
    return np.frombuffer(mmap.mmap(-1, size), np.uint8)


@dataclass
class _Block:
    memory: NDArray[np.uint8]
    end: int = 0  # of what is given out
    used: int = 0  # tensors that use it
