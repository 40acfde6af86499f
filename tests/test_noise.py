"""The numbers of the random control: their generator, their distribution, and that they stay what they are."""

import hashlib
import math
import random

import numpy as np
import pytest
import torch

from pipeline.weights import kernels, noise
from pipeline.weights.safetensors import PIECE


def test_the_words_are_those_of_splitmix64() -> None:
    """The first numbers that the generator's reference code prints for the state 0."""
    expected = [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
        0xF88BB8A8724C81EC,
        0x1B39896A51A8749B,
    ]
    words = np.empty(5, np.uint64)
    kernels.random_words(np.uint64(0), words)
    assert words.tolist() == expected
    kernels.random_words(np.uint64(2**64 - 0x9E3779B97F4A7C15), words)
    assert words[1] == expected[0], "the state wraps around"


@pytest.mark.parametrize("count", [1, 3, 4, 4095, 4096, 4097, 10_001])
def test_each_16_bits_of_the_words_choose_a_value(count: int) -> None:
    key = 2**63 + 12345
    words = np.empty(-(-count // 4), np.uint64)
    kernels.random_words(np.uint64(key), words)
    expected = noise.normal_values()[words.view(np.uint16)[:count]]
    drawn, square = noise.normal_numbers(key, count)
    assert np.array_equal(drawn, expected) and drawn.dtype == np.float32
    assert square == sum(int(value) ** 2 for value in expected)


def test_the_values_are_the_normal_distribution_in_whole_numbers() -> None:
    values = torch.from_numpy(noise.normal_values()).double()
    assert torch.equal(values, values.round()) and torch.equal(values, -values.flip(0))
    assert bool((values.diff() >= 0).all()) and len(values.unique()) > 60_000
    z = values / noise.ONE
    assert z.square().mean().item() == pytest.approx(1, abs=1e-3)
    assert z.pow(4).mean().item() == pytest.approx(3, abs=0.02)
    share = (z.abs() < 1).double().mean().item()
    assert share == pytest.approx(math.erf(1 / math.sqrt(2)), abs=1e-4)


def test_the_numbers_are_what_records_were_made_with() -> None:
    """Raise NOISE_VERSION when this has to change: it is in the keys of the cells whose answers depend on it."""
    assert noise.NOISE_VERSION == 2
    table = noise.normal_values().astype(np.int32).tobytes()
    numbers = noise.normal_numbers(12345, 1001)[0].astype(np.int32).tobytes()
    assert hashlib.sha256(table).hexdigest()[:16] == "ee46eda6f743ea9b"
    assert hashlib.sha256(numbers).hexdigest()[:16] == "bc0157d591b19d90"


def test_a_longer_piece_begins_with_the_shorter_one() -> None:
    assert np.array_equal(noise.normal_numbers(7, 1001)[0][:13], noise.normal_numbers(7, 13)[0])


def test_squares_add_up_to_the_same_in_any_order() -> None:
    drawn, square = noise.normal_numbers(11, PIECE)
    exact = sum(int(n) ** 2 for n in drawn.tolist())
    assert noise._square(drawn) == square == exact < 2**53
    shuffled = drawn.tolist()
    random.Random(0).shuffle(shuffled)
    assert noise._square(np.array(shuffled, np.float32)) == exact


def test_pieces_of_one_key_apart_are_unlike_each_other() -> None:
    drawn = np.stack([noise.normal_numbers(key, 40_000)[0] for key in (1, 2, 3, 2**63)])
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.03
