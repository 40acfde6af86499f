"""Checksums of rows: what they are, that every change shows, and that host and device agree."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import checksums
from pipeline.engine.checksums import device_sums, row_checksums

DTYPES = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def matrix(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Any bits, those of NaN and of negative zero among them."""
    size = dtype.itemsize
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (rows, columns * size), generator=generator, dtype=torch.uint8)
    return raw.view(dtype)


def by_definition(row: torch.Tensor) -> int:
    """The checksum in Python's own numbers."""
    size = row.element_size()
    raw = row.contiguous().view(torch.uint8).numpy().tobytes()
    raw += bytes(-len(raw) % 8)
    total = 0
    for j in range(len(raw) // 8):
        word = int.from_bytes(raw[8 * j : 8 * j + 8], "little")
        z = (j + 1) * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        total += (word ^ word >> 32) * ((z ^ z >> 31) | 1)
    assert size in (2, 4)
    return (total + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 64), (700, 130)])
def test_a_checksum_is_what_its_definition_says(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    rows = matrix(*shape, dtype)
    assert row_checksums(rows).tolist() == [by_definition(row) for row in rows]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_nothing_sums_to_nothing(shape: tuple[int, int]) -> None:
    assert row_checksums(torch.zeros(shape)).tolist() == [0] * shape[0]


@settings(deadline=None)  # the first call compiles
@given(st.sampled_from(list(DTYPES)), st.integers(0, 8), st.integers(0, 2**32))
def test_any_changed_bit_shows(dtype: torch.dtype, column: int, seed: int) -> None:
    before = matrix(4, 9, dtype, seed % 1000)
    after = before.clone()
    bit = seed % (8 * dtype.itemsize)
    bits = after.view(DTYPES[dtype])
    bits[2, column] ^= torch.tensor(1).bitwise_left_shift(torch.tensor(bit)).to(bits.dtype)
    changed = row_checksums(before) != row_checksums(after)
    assert changed.tolist() == [False, False, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_two_entries_that_change_places_show(dtype: torch.dtype) -> None:
    """The upper entries of words are the ones that the least of a product depends on."""
    draw = random.Random(0)
    before = matrix(1, 4096, dtype)
    bits = before.view(DTYPES[dtype])
    sums = row_checksums(before)
    for _ in range(3000):
        a, b = (4 * draw.randrange(1024) + 3 for _ in range(2))
        if bits[0, a] == bits[0, b]:
            continue
        after = before.clone()
        moved = after.view(DTYPES[dtype])
        moved[0, a], moved[0, b] = bits[0, b], bits[0, a]
        assert row_checksums(after) != sums


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_parts_of_a_row_add_up(dtype: torch.dtype) -> None:
    whole = matrix(6, 1000, dtype)
    parts = [row_checksums(whole[:, start : start + 256], first=start) for start in range(0, 1000, 256)]
    assert torch.equal(torch.stack(parts).sum(0), row_checksums(whole))
    with pytest.raises(ValueError, match="expected a multiple of"):
        row_checksums(whole, first=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_that_is_not_in_rows_or_not_aligned_sums_to_the_same(dtype: torch.dtype) -> None:
    rows = matrix(64, 48, dtype)
    assert torch.equal(row_checksums(rows.t().contiguous().t()), row_checksums(rows))
    shifted = torch.cat([torch.zeros(1, dtype=dtype), rows.flatten()])[1:].view(64, 48)
    assert torch.equal(row_checksums(shifted), row_checksums(rows))
    wide = matrix(64, 200, dtype)
    assert torch.equal(row_checksums(wide[:, 8:56]), row_checksums(wide[:, 8:56].clone()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_device_sums_as_the_host_does(dtype: torch.dtype) -> None:
    rows = matrix(300, 4096, dtype)
    factors = torch.from_numpy(checksums._factors(0, 4096 * dtype.itemsize // 8))
    assert torch.equal(device_sums(rows.view(torch.int64), factors), row_checksums(rows))
