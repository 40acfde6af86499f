"""Checksums of the rows of a matrix: the same number on the host and on any device.

    row_checksums(matrix)                    # int64, one for each row, on the CPU

A row is read as 64-bit words, each of four 16-bit or two 32-bit entries; its checksum is Σ_j m(w_j)·k_j modulo 2⁶⁴, where
m(w) = w ⊕ (w ≫ 32) spreads the upper entries of a word and k_j is a pseudo-random odd number. m has an inverse and k_j is
odd, so a change within one word always shows; one of several words is missed with a probability of about 2⁻⁴⁷. Words
make it ten times as fast as entries would be.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.weights import kernels

HOST_BLOCK = 1 << 15  # words that are copied at a time
DEVICE_BLOCK = 1 << 24  # words that a device sums at a time: vLLM has taken most of its memory


def row_checksums(matrix: torch.Tensor, first: int = 0) -> torch.Tensor:
    """The checksum of every row of a matrix whose entries have 16 or 32 bits.

    Args:
        matrix: [rows, columns], on any device.
        first: the number of its first column, if it is a part of a wider one: a multiple of the entries in a word. The
            checksum of a row is the sum, modulo 2⁶⁴, of those of its parts.

    Returns:
        int64 [rows], on the CPU.
    """
    entries = 8 // matrix.element_size()
    if first % entries:
        raise ValueError(f"first is {first}; expected a multiple of {entries}")
    rows, columns = matrix.shape
    count = -(-columns // entries)
    if not rows or not count:
        return torch.zeros(rows, dtype=torch.int64)
    factors = _factors(first // entries, count)
    if matrix.device.type == "cpu":
        return torch.from_numpy(_host_sums(matrix, count, factors))
    on_device, step = torch.from_numpy(factors).to(matrix.device), max(1, DEVICE_BLOCK // count)
    blocks = (matrix[start : start + step] for start in range(0, rows, step))
    return torch.cat([device_sums(_words(block), on_device) for block in blocks]).cpu()


def _words(matrix: torch.Tensor) -> torch.Tensor:
    """The rows as int64, filled up with zeros to whole words; where they are so already, the same memory."""
    if missing := -matrix.shape[1] % (8 // matrix.element_size()):
        matrix = torch.nn.functional.pad(matrix, (0, missing))
    matrix = matrix.contiguous()
    return (matrix.clone() if matrix.data_ptr() % 8 else matrix).view(torch.int64)


def _host_sums(matrix: torch.Tensor, count: int, factors: NDArray[np.int64]) -> NDArray[np.int64]:
    """On one core, and past Python's lock: several threads can sum at a time."""
    rows, step = len(matrix), max(1, HOST_BLOCK // count)
    sums = np.empty(rows, np.uint64)
    is_words = (
        matrix.is_contiguous()
        and not matrix.data_ptr() % 8
        and matrix.shape[1] * matrix.element_size() == 8 * count
    )
    for start in range(0, rows, rows if is_words else step):  # a block that is copied stays in a core's cache
        end = rows if is_words else min(start + step, rows)
        words = _words(matrix[start:end]).numpy().view(np.uint64)
        kernels.word_sums(words, factors.view(np.uint64), sums[start:end])
    return sums.view(np.int64)


def device_sums(words: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """What `_host_sums` computes, in torch's operations."""
    mixed = (words >> 32).bitwise_and_(0xFFFFFFFF).bitwise_xor_(words)
    return mixed.mul_(factors).sum(dim=1)


@lru_cache(maxsize=64)
def _factors(first: int, count: int) -> NDArray[np.int64]:
    """A pseudo-random odd number for each word of a row (the finaliser of SplitMix64)."""
    z = np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    factors: NDArray[np.int64] = ((z ^ (z >> np.uint64(31))) | np.uint64(1)).view(np.int64)
    return factors
