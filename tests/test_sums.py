"""Sums made by several threads ahead of their use, and the memory that they are made in."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import UserError
from pipeline.weights import steer
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.memory import SMALLEST, Memory
from pipeline.weights.safetensors import PIECE
from pipeline.weights.steer import Term, steered_tensors
from pipeline.weights.threads import thread_pool
from pipeline.weights.vector import extract
from tests import tiny

ROWS = PIECE // 64 + 300  # the embedding is two pieces


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 target, and the compact vectors of two pairs of donors: one changes some entries, one changes all."""
    root = tmp_path_factory.mktemp("family")
    state = tiny.weights(tiny.config(rows=ROWS), seed=0)
    tiny.write(root / "target", state, rows=ROWS)
    tiny.write(root / "sft", tiny.moved(state, 1), rows=ROWS)
    for name, share in (("few", 0.2), ("all", 1.0)):
        tiny.write(root / name / "grpo", tiny.moved(state, 2, share=share, scale=0.3), rows=ROWS)
        donors = (Checkpoint.open(str(folder)) for folder in (root / name / "grpo", root / "sft"))
        extract(*donors, root / name / "vector", compact=True)
    return root


def vectors(family: Path) -> dict[str, list[Term]]:
    few, everything = (str(family / name / "vector") for name in ("few", "all"))
    return {
        "none": [],
        "some entries": [Term(few, 0.7)],
        "all entries": [Term(everything, -1.3)],
        "several": [Term(few, 0.7), Term(everything, -0.2), Term(few, 0.5, 3)],
        "noise": [Term(everything, 1.0, 5)],
    }


@pytest.mark.parametrize("terms", ["none", "some entries", "all entries", "several", "noise"])
def test_the_sum_is_that_of_fp32_rounded_once(family: Path, terms: str) -> None:
    target = Checkpoint.open(str(family / "target"))
    chosen = vectors(family)[terms]
    for name, found in steered_tensors(str(family / "target"), chosen):
        theta = target.read(name)
        total = torch.zeros(theta.shape)
        for term in chosen:
            if term.random_seed is None:
                delta = steer.Vector.open(term.vector).read(name)
            else:
                noise = steer.Noise(steer.Vector.open(term.vector), name, term.random_seed)
                with steer.TensorSum(target.tensors[name], name, [(1.0, noise)]) as opened:
                    opened.open()
                    parts = [noise.piece(i).values for i in range(opened.pieces)]
                delta = torch.from_numpy(np.concatenate(parts)).view(theta.shape)
            total += delta * np.float32(term.alpha)
        expected = (theta.float() + total).bfloat16() if chosen else theta
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("terms", ["none", "some entries", "all entries", "several", "noise"])
def test_any_number_of_threads_gives_the_same_bits(
    family: Path, terms: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, chosen = str(family / "target"), vectors(family)[terms]
    alone = {name: tensor.clone() for name, tensor in steered_tensors(target, chosen)}
    monkeypatch.setattr(steer, "TOGETHER", 1)
    for ahead in (0, 1 << 29):
        monkeypatch.setattr(steer, "AHEAD", ahead)
        with thread_pool(4) as pool:
            found = {name: tensor.clone() for name, tensor in steered_tensors(target, chosen, pool, Memory())}
        assert list(found) == list(alone)
        assert all(
            torch.equal(found[name].view(torch.int16), alone[name].view(torch.int16)) for name in alone
        )


def test_files_are_closed_when_nobody_takes_the_rest(family: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    tensors = steered_tensors(str(family / "target"), vectors(family)["several"])
    next(tensors)
    assert opened() > before
    tensors.close()
    assert opened() == before


def test_a_sum_that_overflows_is_refused_in_the_thread_that_makes_it(family: Path) -> None:
    for terms in ("some entries", "all entries"):
        (term,) = vectors(family)[terms]
        with pytest.raises(UserError, match="is NaN or infinite in BF16 after the sum; use a smaller α"):
            list(steered_tensors(str(family / "target"), [Term(term.vector, 3e38)]))


def test_a_target_with_nan_is_refused_where_something_is_added(family: Path, tmp_path: Path) -> None:
    state = tiny.weights(tiny.config(rows=ROWS), seed=0)
    state["model.norm.weight"][3] = float("nan")
    tiny.write(tmp_path / "bad", state, rows=ROWS)
    with pytest.raises(UserError, match="model.norm.weight is NaN or infinite"):
        list(steered_tensors(str(tmp_path / "bad"), vectors(family)["some entries"]))


def test_a_file_that_changes_while_it_is_read_is_refused(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steer, "AHEAD", 0)
    state = tiny.weights(tiny.config(rows=ROWS), seed=0)
    folder = tiny.write(tmp_path / "changing", state, rows=ROWS)
    tensors = steered_tensors(str(folder), vectors(family)["some entries"])
    next(tensors)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt", "again": "yes"})
    with pytest.raises(UserError, match="changed after it was opened"):
        list(tensors)


def test_memory_is_given_out_again_when_the_last_view_of_it_has_gone() -> None:
    memory = Memory()
    first = memory.tensor(1000, torch.bfloat16)
    address, view = first.data_ptr(), first[10:20].view(2, 5).t()
    del first
    gc.collect()
    second = memory.tensor(1000, torch.bfloat16)
    assert second.data_ptr() >= address + 2000, "a view of the first lives"
    view.fill_(1.0)
    second.fill_(2.0)
    assert view.sum() == 10
    del view, second
    gc.collect()
    assert memory.tensor(10, torch.float32).data_ptr() == address


def test_tensors_that_live_share_no_memory_and_blocks_are_kept_from_swap_to_swap() -> None:
    memory = Memory()
    for _ in range(3):
        held = [memory.tensor(n, torch.float32) for n in (5, SMALLEST // 8, SMALLEST // 8, 7, 100)]
        places = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in held)
        assert all(a[1] <= b[0] for a, b in zip(places, places[1:], strict=False))
        assert len(memory.blocks) == 2
        del held, places
    big = memory.tensor(SMALLEST, torch.float32)
    assert big.nbytes == 4 * SMALLEST and len(memory.blocks) == 1, "what is idle and too small makes way"
