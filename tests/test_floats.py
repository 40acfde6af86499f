"""Conversions without torch: the same bits as torch's."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.files import ROOT
from pipeline.weights import floats, tensors
from pipeline.weights.floats import BITS

# ties, their neighbours, the largest numbers, subnormal ones, infinities, and NaN with every kind of payload
ODD = [0, 1, 0x7FFF, 0x8000, 0x8001, 0x18000, 0x17FFF, 0x7F7F8000, 0x7F7FFFFF, 0x7F7F7FFF, 0x477FF000]
ODD += [0x33000000, 0x33000001, 0x387FC000, 0x7F800000, 0x7F800001, 0x7F80FFFF, 0x7FC00000, 0x7FFFFFFF]
FP32 = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from(ODD + [bits | 1 << 31 for bits in ODD]))


@pytest.mark.parametrize("dtype", BITS)
@given(bits=arrays(np.uint32, st.integers(1, 40), elements=FP32))
def test_rounding_is_torchs_bit_for_bit(dtype: str, bits: np.ndarray) -> None:
    ours, theirs = np.empty(len(bits), BITS[dtype]), np.empty(len(bits), BITS[dtype])
    floats.narrow(bits.view(np.float32).copy(), dtype, ours)
    tensors.narrow(bits.view(np.float32).copy(), dtype, theirs)
    numbers = ~np.isnan(bits.view(np.float32))
    assert np.array_equal(ours[numbers], theirs[numbers])
    assert all(np.isnan(floats.widened(ours, dtype)) == ~numbers), (
        "NaN stays NaN, and nothing else becomes it"
    )


@pytest.mark.parametrize("dtype", BITS)
def test_every_16_bit_number_is_widened_as_torch_does(dtype: str) -> None:
    bits = np.arange(1 << 16).astype(BITS[dtype]) << (16 if dtype == "F32" else 0)
    ours, theirs = floats.widened(bits, dtype), tensors.widened(bits, dtype)
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
