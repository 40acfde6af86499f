"""Compiled loops against the same in plain numpy or Python, and the cache that they are kept in."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.files import ROOT, ascii_digest
from pipeline.weights import floats, kernels, noise
from pipeline.weights.packed import DENSE, Changes, pack, set_bits
from pipeline.weights.safetensors import PIECE

# bf16: zeros of both signs, numbers, subnormal ones, infinities, NaN
BF16 = [0, 0x8000, 0x3F80, 0xBF80, 0x3F81, 0x0001, 0x8001, 0x7F80, 0xFF80, 0x7FC0, 0x7F7F]
TAKEN_APART = [0, 1, 0x10000, 0x80000000, 0x3F800000, 0x3F800001, 0x7F]


def packed_by_numpy(values: np.ndarray) -> bytes:
    """The compact form of a piece as pipeline/weights/packed.py describes it."""
    bits = values.view(np.uint32)
    filled = bits[bits != 0]
    lower = (filled & 0xFFFF).astype(np.uint16)
    parts = ((filled >> 16).astype(np.uint16), lower[lower != 0])
    body = b"".join(part.tobytes() for part in (*parts, np.packbits(bits != 0), np.packbits(lower != 0)))
    body += bytes(-len(body) % 8)
    if len(body) >= 4 * len(bits):
        return np.array([DENSE, 0], np.uint32).tobytes() + bits.tobytes()
    return np.array([len(filled), np.count_nonzero(lower)], np.uint32).tobytes() + body


def noise_by_numpy(seed: int, name: str, index: int, count: int, square: float, numel: int) -> np.ndarray:
    """A piece of the random control as pipeline/weights/noise.py describes it."""
    key = int(ascii_digest(["noise", seed, name, index])[:16], 16)
    z = np.arange(1, -(-count // 4) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    drawn = noise.normal_values()[z.view(np.uint16)[:count]].astype(np.float32)
    own = float(np.square(drawn.astype(np.int64)).sum())
    return drawn * np.float32(math.sqrt(square * count / numel / own))


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 300), st.integers(0, 2**32), st.sampled_from([0.0, 0.02, 0.2, 0.9, 1.0]))
def test_the_bits_of_a_mask_are_found_where_numpy_finds_them(count: int, seed: int, share: float) -> None:
    filled = np.random.default_rng(seed).random(count) < share
    mask = np.packbits(filled)
    if len(mask):
        mask[-1] |= 0xFF >> (count % 8 or 8)  # what lies behind the last entry counts for nothing
    expected = np.flatnonzero(filled)
    assert np.array_equal(set_bits(mask, count, len(expected)), expected)
    assert kernels.count_bits(mask, count) == len(expected)
    for wrong in (len(expected) - 1, len(expected) + 1):
        if wrong >= 0:
            with pytest.raises(ValueError, match="expected"):
                set_bits(mask, count, wrong)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(0, 2**32), st.integers(1, len(TAKEN_APART)))
def test_the_compact_form_is_what_numpy_makes_of_its_description(count: int, seed: int, kinds: int) -> None:
    draw = np.random.default_rng(seed)
    bits = draw.choice(np.array(TAKEN_APART[:kinds], np.uint32), count)
    values = bits.view(np.float32)
    expected = packed_by_numpy(values)
    assert pack(Changes(None, values), count) == expected
    listed = (draw.random(count) < 0.5) | (bits != 0)  # zeros among them, or not
    for mask in (None, np.packbits(listed)):
        changes = Changes(np.flatnonzero(listed).astype(np.int32), values[listed], mask)
        assert pack(changes, count) == expected


def test_a_whole_piece_is_packed_as_numpy_packs_it() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=PIECE).astype(np.float32)
    values.view(np.uint32)[draw.random(PIECE) < 0.9] &= np.uint32(0xFFFF0000)
    values[draw.random(PIECE) < 0.8] = 0
    assert pack(Changes(None, values), PIECE) == packed_by_numpy(values)


@settings(deadline=None)
@given(
    arrays(np.uint16, 30, elements=st.sampled_from(BF16)),
    arrays(np.uint16, 30, elements=st.sampled_from(BF16)),
)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_differences_are_numpys_bit_for_bit(dtype: str, plus: np.ndarray, minus: np.ndarray) -> None:
    if dtype == "F32":
        plus, minus = (bits.astype(np.uint32) << 16 | bits for bits in (plus, minus))
    places = np.arange(1, 30, 2, dtype=np.int32)
    with np.errstate(all="ignore"):
        expected = (floats.widened(plus, dtype) - floats.widened(minus, dtype))[places]
    found = floats.subtracted(plus, minus, dtype, places)
    numbers = ~np.isnan(expected)
    assert np.array_equal(found.view(np.uint32)[numbers], expected.view(np.uint32)[numbers])
    assert np.array_equal(np.isnan(found), ~numbers)


class _Shaped:
    """What noise asks of a vector, for a tensor of two pieces."""

    shapes = {"x": (PIECE + 1001,)}
    tensors = {"x": "x"}


def test_noise_is_what_numpy_makes_of_its_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(noise._squares, "x", 12.5)
    drawn = noise.Noise(_Shaped(), "x", 3)
    drawn.square = 12.5
    for index, count in enumerate((PIECE, 1001)):
        expected = noise_by_numpy(3, "x", index, count, 12.5, PIECE + 1001)
        assert np.array_equal(drawn.piece(index).values.view(np.uint32), expected.view(np.uint32))


def test_llvm_s_library_has_no_attributes_of_python() -> None:
    """vLLM asks every object of every module for its `__dict__`: the library would answer with a C function."""
    assert kernels.ffi.lib.LLVMPY_GetVersionInfo is not None
    assert not hasattr(kernels.ffi.lib, "__dict__")


WIDEN = """
import numpy as np
from pipeline.weights.floats import widened
assert widened(np.array([0x3F80], np.uint16), "BF16") == 1
"""


def run(cache: Path, **variables: str) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)} | variables
    subprocess.run([sys.executable, "-c", WIDEN], cwd=ROOT, env=environment, check=True)


def test_what_is_compiled_is_kept_and_a_damaged_cache_does_no_harm(tmp_path: Path) -> None:
    def kept() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}

    run(tmp_path)
    first = kept()
    assert first and all(kernels.SOURCE in file.name for file in first)
    run(tmp_path)
    assert kept() == first
    for file in first:
        file.write_bytes(file.read_bytes()[:30])
    run(tmp_path)
    for file in first:
        file.write_bytes(b"")
        file.chmod(0)
    run(tmp_path)


def test_without_a_folder_to_keep_it_in_it_is_compiled_anew(tmp_path: Path) -> None:
    run(tmp_path, NUMBA_CACHE_LOCATOR_CLASSES="ZipCacheLocator")  # a place that no file of ours has
    assert not list(tmp_path.iterdir())
