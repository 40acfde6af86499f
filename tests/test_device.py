"""Sums that torch makes on a device against those of the host's loops, bit for bit: on the CPU, and on CUDA if there is one."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import UserError
from pipeline.weights import device as device_module
from pipeline.weights.architecture import EMBEDDING
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.packed import DENSE, Layout
from pipeline.weights.safetensors import PIECE
from pipeline.weights.steer import Term, steered_tensors
from pipeline.weights.threads import thread_pool
from pipeline.weights.vector import Vector, extract
from tests import tiny

ROWS = PIECE // 64 + 300  # the embedding is two pieces
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
VECTORS = {"few": (ROWS, 0.2), "all": (ROWS, 1.0), "fewer": (PIECE // 64 - 100, 0.3), "more": (2 * ROWS, 0.3)}
NORM = "model.norm.weight"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=DTYPES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, and vectors of several pairs of donors of its dtype, in both forms."""
    root, name = tmp_path_factory.mktemp(request.param), request.param
    write(root / "target", name, state(name))
    for vector, (rows, share) in VECTORS.items():
        sft = state(name, rows)
        write(root / vector / "sft", name, sft)
        write(root / vector / "grpo", name, tiny.moved(sft, 2, share=share, scale=0.3))
        donors = [Checkpoint.open(str(root / vector / part)) for part in ("grpo", "sft")]
        for form in ("compact", "dense"):
            extract(*donors, root / vector / form, compact=form == "compact")
    return root


def state(dtype: str, rows: int = ROWS) -> dict[str, torch.Tensor]:
    """Random weights with zeros of both signs among them."""
    weights = tiny.weights(tiny.config(rows=rows), seed=0, dtype=DTYPES[dtype])
    for tensor in weights.values():
        tensor.view(-1)[::7] = 0.0
        tensor.view(-1)[::5] = -0.0
    return weights


def write(folder: Path, dtype: str, weights: dict[str, torch.Tensor]) -> Path:
    return tiny.write(folder, weights, rows=len(weights[EMBEDDING]), torch_dtype=dtype)


def terms(family: Path, form: str) -> dict[str, list[Term]]:
    few, everything, fewer, more = (str(family / name / form) for name in VECTORS)
    return {
        "none": [],
        "some entries": [Term(few, 0.7)],
        "some entries, α below 0": [Term(few, -0.7)],
        "all entries": [Term(everything, -1.3)],
        "several": [Term(few, 0.7), Term(everything, -0.2), Term(few, 0.5, 3)],
        "noise": [Term(everything, 1.0, 5)],
        "fewer rows": [Term(fewer, 0.7)],
        "more rows": [Term(more, 0.7)],
        "several of other rows": [Term(fewer, 0.1), Term(more, 0.7), Term(fewer, 0.4, 3), Term(few, 0.1)],
    }


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def assert_equal(target: Path, chosen: list[Term], device: torch.device = CPU, **options: Any) -> None:
    """Both sides give the same tensors under the same names in the same order."""
    host = {name: tensor.clone() for name, tensor in steered_tensors(str(target), chosen, **options)}
    found = dict(steered_tensors(str(target), chosen, **options, device=device))
    assert list(found) == list(host)
    for name, expected in host.items():
        assert found[name].device.type == device.type and found[name].dtype == expected.dtype
        assert torch.equal(bits(found[name]), bits(expected)), name


@pytest.mark.parametrize("wide", [False, True], ids=["rounded", "wide"])
@pytest.mark.parametrize("form", ["compact", "dense"])
@pytest.mark.parametrize("chosen", terms(Path(), ""))
def test_a_device_makes_the_bits_that_the_host_makes(
    family: Path, chosen: str, form: str, wide: bool
) -> None:
    assert_equal(family / "target", terms(family, form)[chosen], wide=wide)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("form", ["compact", "dense"])
def test_cuda_makes_the_bits_that_the_host_makes(family: Path, form: str) -> None:
    for chosen in terms(family, form).values():
        assert_equal(family / "target", chosen, torch.device("cuda"))


def test_the_vectors_have_pieces_of_every_kind(family: Path) -> None:
    """Without this the test above could pass on packed pieces alone."""
    found = set()
    for name in VECTORS:
        info = Vector.open(family / name / "compact").tensors[EMBEDDING]
        counts = np.fromfile(info.file, np.uint32, 2, offset=info.start)
        found.add("dense" if counts[0] == DENSE else "with lower halves" if counts[1] else "upper halves")
    assert found == {"with lower halves"} if family.name.startswith("bfloat16") else "dense" in found


@pytest.mark.parametrize("slots", [1, 3])
def test_slots_are_used_again_and_pieces_read_one_by_one(
    family: Path, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "TOGETHER", 1)
    monkeypatch.setattr(device_module, "SLOTS", slots)
    with thread_pool(4) as pool:
        assert_equal(family / "target", terms(family, "compact")["several"], pool=pool)


@pytest.mark.parametrize("donor", ["fewer", "more"])
def test_a_tensor_takes_the_rows_of_another_checkpoint(family: Path, donor: str) -> None:
    chosen = [Term(str(family / donor / "compact"), 0.7)]
    assert_equal(family / donor / "sft", chosen, like=str(family / "target"))


@pytest.mark.parametrize("rows", [0, ROWS - 1], ids=["where the vector reaches", "behind it"])
def test_what_is_not_finite_is_refused_where_a_vector_reaches_it(
    family: Path, rows: int, tmp_path: Path
) -> None:
    dtype = next(name for name in DTYPES if family.name.startswith(name))
    weights = state(dtype)
    weights[EMBEDDING][rows, 3] = float("nan")
    target = write(tmp_path / "target", dtype, weights)
    chosen = terms(family, "compact")["fewer rows"]
    if rows:
        assert_equal(target, chosen)
    else:
        assert f"{EMBEDDING} is NaN or infinite" in refusal(target, chosen)


@pytest.mark.parametrize("times", [1, 2])
def test_a_sum_that_overflows_is_refused(family: Path, times: int) -> None:
    for name in ("some entries", "all entries"):
        (term,) = terms(family, "compact")[name]
        line = refusal(family / "target", [Term(term.vector, 3e38)] * times)
        assert "after the sum; use a smaller α" in line


def refusal(target: Path, chosen: list[Term]) -> str:
    """The line with which both sides refuse."""
    lines = []
    for where in (None, CPU):
        with pytest.raises(UserError) as refused:
            list(steered_tensors(str(target), chosen, device=where))
        lines.append(str(refused.value))
    assert lines[0] == lines[1]
    return lines[0]


@pytest.mark.parametrize("part", ["changed", "longer"])
def test_a_mask_that_does_not_fit_its_counts_is_refused(family: Path, part: str, tmp_path: Path) -> None:
    vector = tmp_path / "vector.safetensors"
    vector.write_bytes((family / "few" / "compact" / vector.name).read_bytes())
    info = Vector.open(vector).tensors[EMBEDDING]
    changed, needed = (int(n) for n in np.fromfile(vector, np.uint32, 2, offset=info.start))
    layout = Layout.of(changed, needed, PIECE)
    with open(vector, "r+b") as stream:
        stream.seek(info.start + 8 + (layout.lower if part == "changed" else layout.changed) + 5)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 4]))
    line = refusal(family / "target", [Term(str(vector), 0.7)])
    assert line == f"{vector}: its entries cannot be unpacked; extract it again"


@pytest.fixture
def begun(family: Path, tmp_path: Path) -> tuple[Path, Iterator[Any]]:
    """A checkpoint of its own whose tensors are being made, and the rest of them."""
    dtype = next(name for name in DTYPES if family.name.startswith(name))
    target = write(tmp_path / "target", dtype, state(dtype))
    tensors = steered_tensors(str(target), terms(family, "compact")["some entries"], device=CPU)
    next(tensors)
    return target, tensors


def test_a_file_that_changes_while_it_is_read_is_refused(begun: tuple[Path, Iterator[Any]]) -> None:
    target, tensors = begun
    save_file(state("float32"), target / "model.safetensors", metadata={"format": "pt", "again": "yes"})
    with pytest.raises(UserError, match="changed after it was opened"):
        list(tensors)


def test_files_are_closed_when_nobody_takes_the_rest(begun: tuple[Path, Any]) -> None:
    target, tensors = begun
    folder = str(target)

    def opened() -> list[str]:
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return [link for link in links if os.path.exists(link) and os.readlink(link).startswith(folder)]

    assert opened()
    tensors.close()
    assert not opened()
