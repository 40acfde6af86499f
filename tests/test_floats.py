"""Sums and conversions without torch: the same bits as torch's."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.files import ROOT
from pipeline.weights import floats, tensors
from pipeline.weights.floats import BITS

# ties, their neighbours, the largest numbers, subnormal ones, infinities, and NaN with every kind of payload
ODD = [0, 1, 0x7FFF, 0x8000, 0x8001, 0x18000, 0x17FFF, 0x7F7F8000, 0x7F7FFFFF, 0x7F7F7FFF, 0x477FF000]
ODD += [0x33000000, 0x33000001, 0x387FC000, 0x7F800000, 0x7F800001, 0x7F80FFFF, 0x7FC00000, 0x7FFFFFFF]
FP32 = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from(ODD + [bits | 1 << 31 for bits in ODD]))


DTYPES = list(BITS)


def odd(count: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.uint32, count, elements=FP32)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None)  # the first call compiles
@given(
    st.integers(1, 70).flatmap(lambda n: st.tuples(odd(n), odd(n))), st.sampled_from([1.0, -0.7, 3e38, 0.0])
)
def test_a_sum_is_torchs_bit_for_bit(dtype: str, both: tuple[np.ndarray, np.ndarray], factor: float) -> None:
    """α·δ in fp32, then θ + α·δ in fp32, then one rounding."""
    raw, values = both[0], both[1].view(np.float32)
    bits = raw if dtype == "F32" else (raw >> 16).astype(np.uint16)
    theta, delta = tensors.from_bits(bits.copy(), dtype), torch.from_numpy(values.copy())
    expected = (theta.float() + delta * np.float32(factor)).to(theta.dtype)
    every, some, places = bits.copy(), bits.copy(), np.arange(0, len(bits), 3, dtype=np.int32)
    floats.add(every, dtype, values, factor)
    floats.add(some, dtype, values[::3].copy(), factor, places)
    numbers = ~expected.isnan().numpy()
    theirs = tensors.to_bits(expected)
    assert np.array_equal(every[numbers], theirs[numbers])
    assert np.array_equal(tensors.from_bits(every, dtype).isnan().numpy(), ~numbers)
    chosen = np.zeros(len(bits), bool)
    chosen[places] = True
    assert np.array_equal(some[chosen], every[chosen])
    kept = ~chosen & ~theta.isnan().numpy()  # fp16 goes through fp32, where a NaN becomes a quiet one
    assert np.array_equal(some[kept], bits[kept])


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 40).flatmap(odd))
def test_finite_is_what_torch_calls_finite(dtype: str, raw: np.ndarray) -> None:
    bits = raw if dtype == "F32" else (raw >> 16).astype(np.uint16)
    assert floats.all_finite(bits, dtype) == bool(tensors.from_bits(bits, dtype).isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", range(11))
def test_one_number_that_is_not_finite_shows_wherever_it_is(dtype: str, place: int) -> None:
    largest = {"BF16": 0x7F7F, "F16": 0x7BFF, "F32": 0x7F7FFFFF}[dtype]
    bits = np.full(11, largest, BITS[dtype])
    assert floats.all_finite(bits, dtype)
    bits[place] = largest + 1
    assert not floats.all_finite(bits, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_16_bit_number_is_widened_as_torch_does(dtype: str) -> None:
    bits = np.arange(1 << 16).astype(BITS[dtype]) << (16 if dtype == "F32" else 0)
    ours, theirs = floats.widened(bits, dtype), tensors.from_bits(bits, dtype).float().numpy()
    numbers = ~np.isnan(theirs)
    assert np.array_equal(ours.view(np.uint32)[numbers], theirs.view(np.uint32)[numbers])
    assert np.array_equal(np.isnan(ours), ~numbers)


def test_bits_and_tensors_share_memory() -> None:
    for dtype, kind in tensors.DTYPES.items():
        tensor = torch.arange(5).to(kind)
        tensors.to_bits(tensor)[2] = 0
        assert tensors.from_bits(tensors.to_bits(tensor), dtype).tolist() == [0, 1, 0, 3, 4]


def test_extract_apply_and_plan_import_no_torch() -> None:
    imports = "import sys, pipeline.weights.steer, pipeline.weights.vector, pipeline.stages; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", imports], cwd=ROOT, check=True)
