"""The geometry report against plain definitions on whole tensors."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.errors import UserError
from pipeline.weights import geometry
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.vector import Vector, extract
from tests import tiny

ALPHAS = [-1.0, 0.0, 0.1, 1.0]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RV_CACHE", str(tmp_path_factory.mktemp("cache")))


def opened(path: Path) -> Checkpoint:
    return Checkpoint.open(str(path))


def family(
    folder: Path, dtype: torch.dtype = torch.bfloat16, rows: int = 4200
) -> dict[str, dict[str, torch.Tensor]]:
    """Writes base, target, sft, grpo and the vector v; the embedding is longer than one piece."""
    base = tiny.weights(tiny.config(rows), 0, dtype=dtype)
    states = {"base": base, "target": tiny.moved(base, 1, 0.9), "sft": tiny.moved(base, 2, 0.9)}
    states["grpo"] = tiny.moved(states["sft"], 3, 0.2, 0.001)
    for role, state in states.items():
        tiny.write(folder / role, state, rows=rows)
    extract(opened(folder / "grpo"), opened(folder / "sft"), folder / "v")
    return states


def report(folder: Path, **others: Checkpoint) -> dict:
    return geometry.report(Vector.open(folder / "v"), opened(folder / "target"), ALPHAS, **others)


def flat(states: dict[str, torch.Tensor], names) -> torch.Tensor:
    return torch.cat([states[name].double().flatten() for name in names])


def cell(found: dict, module: str, layer: int) -> dict:
    (row,) = [row for row in found["cells"] if (row["module"], row.get("layer")) == (module, layer)]
    return row


@pytest.mark.parametrize("group", ["total", "cell", "module", "layer"])
def test_norms_and_sparsity_are_those_of_the_whole_tensors(tmp_path, group):
    states = family(tmp_path)
    found = report(tmp_path)
    rows = {
        "total": (found["total"], lambda name: True),
        "cell": (cell(found, "up_proj", 1), lambda name: name == UP),
        "module": (
            next(r for r in found["modules"] if r["module"] == "q_proj"),
            lambda name: ".q_proj." in name,
        ),
        "layer": (next(r for r in found["layers"] if r["layer"] == 0), lambda name: ".layers.0." in name),
    }
    row, chosen = rows[group]
    names = [name for name in states["sft"] if chosen(name)]
    v = flat(states["grpo"], names) - flat(states["sft"], names)
    assert row["entries"] == len(v)
    assert row["norm"] == pytest.approx(v.norm().item(), rel=1e-6)
    assert row["relative_norm"] == pytest.approx(
        (v.norm() / flat(states["target"], names).norm()).item(), rel=1e-6
    )
    assert row["sparsity"] == pytest.approx((v == 0).double().mean().item())
    assert 0.5 < row["sparsity"] < 0.99


def test_entries_lost_in_rounding_and_rounding_error_are_those_of_the_sum(tmp_path):
    states = family(tmp_path)
    rows = {row["alpha"]: row for row in cell(report(tmp_path), "up_proj", 1)["alphas"]}
    assert list(rows) == [-1.0, 0.1, 1.0]
    theta = states["target"][UP]
    v = states["grpo"][UP].float() - states["sft"][UP].float()
    for alpha, row in rows.items():
        result = (theta.float() + alpha * v).to(torch.bfloat16)
        changed = v != 0
        assert row["lost_in_rounding"] == pytest.approx(
            ((result == theta) & changed).sum().item() / changed.sum().item()
        )
        error = result.double() - theta.double() - alpha * v.double()
        assert row["rounding"] == pytest.approx(
            (error.norm() / (alpha * v.double()).norm()).abs().item(), rel=1e-6
        )
    assert rows[0.1]["lost_in_rounding"] > rows[1.0]["lost_in_rounding"] > 0


def test_rounding_in_fp32_is_small_and_not_nought(tmp_path):
    family(tmp_path, torch.float32)
    row = report(tmp_path)["total"]["alphas"][-1]
    assert 0 < row["rounding"] < 1e-3
    assert row["lost_in_rounding"] < 1e-3


def test_directions_are_measured_against_both_other_differences(tmp_path):
    states = family(tmp_path)
    found = report(tmp_path, base=opened(tmp_path / "base"), sft=opened(tmp_path / "sft"))
    v = (states["grpo"][UP].double() - states["sft"][UP].double()).flatten()
    for key, plus in (("target-base", "target"), ("sft-base", "sft")):
        d = (states[plus][UP].double() - states["base"][UP].double()).flatten()
        row = cell(found, "up_proj", 1)["directions"][key]
        assert row["cosine"] == pytest.approx(torch.dot(v, d).item() / (v.norm() * d.norm()).item(), abs=1e-6)
        both = (v != 0) & (d != 0)
        assert row["sign_agreement"] == pytest.approx((v.sign() == d.sign())[both].double().mean().item())
    assert report(tmp_path)["total"]["directions"] == {}
    assert list(report(tmp_path, base=opened(tmp_path / "base"))["total"]["directions"]) == ["target-base"]


def test_a_vector_has_cosine_one_with_itself(tmp_path):
    family(tmp_path)
    found = geometry.report(
        Vector.open(tmp_path / "v"), opened(tmp_path / "grpo"), [1.0], base=opened(tmp_path / "sft")
    )
    row = found["total"]["directions"]["target-base"]
    assert row == {"cosine": pytest.approx(1.0), "sign_agreement": 1.0}


def test_a_vector_of_zeros_has_shares_of_nothing(tmp_path):
    states = family(tmp_path, rows=96)
    tiny.write(tmp_path / "a", states["sft"])
    with safe_open(tmp_path / "v" / "vector.safetensors", "pt") as stored:
        metadata = stored.metadata()
    zeros = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in states["sft"].items()}
    save_file(zeros, tmp_path / "v" / "vector.safetensors", metadata=metadata)
    found = geometry.report(
        Vector.open(tmp_path / "v"), opened(tmp_path / "a"), [1.0], base=opened(tmp_path / "a")
    )
    assert (found["total"]["norm"], found["total"]["sparsity"]) == (0.0, 1.0)
    assert found["total"]["alphas"] == [
        {"alpha": 1.0} | dict.fromkeys(("lost_in_rounding", "rounding", "cosine", "arrives"))
    ]
    assert found["total"]["directions"]["target-base"] == {"cosine": None, "sign_agreement": None}
    assert "—" in geometry.table(found)


@pytest.mark.parametrize("alpha", [1e8, -1e38])
def test_an_alpha_at_which_the_sum_is_not_finite_is_refused(tmp_path, alpha):
    family(tmp_path, torch.float16, rows=96)
    with pytest.raises(UserError, match="θ \\+ αv is NaN or infinite in F16 at α = .*; use a smaller α"):
        geometry.report(Vector.open(tmp_path / "v"), opened(tmp_path / "target"), [1.0, alpha])


def test_norms_beyond_the_squares_of_fp32_are_measured(tmp_path):
    states = family(tmp_path, torch.float32, rows=96)
    huge = {name: tensor * 1e25 for name, tensor in states["target"].items()}
    tiny.write(tmp_path / "huge", huge)
    found = geometry.report(Vector.open(tmp_path / "v"), opened(tmp_path / "huge"), [1.0])
    norm = math.sqrt(sum(float((tensor.double() ** 2).sum()) for tensor in huge.values()))
    assert found["total"]["relative_norm"] == pytest.approx(found["total"]["norm"] / norm, rel=1e-9)


def test_rows_of_padding_are_left_out(tmp_path):
    states = family(tmp_path, rows=96)
    embedding = "model.embed_tokens.weight"
    short = states["target"] | {embedding: states["target"][embedding][:90].clone()}
    tiny.write(tmp_path / "short", short, rows=90)
    found = geometry.report(Vector.open(tmp_path / "v"), opened(tmp_path / "short"), [])
    (row,) = [row for row in found["modules"] if row["module"] == "embed_tokens"]
    v = (states["grpo"][embedding].float() - states["sft"][embedding].float())[:90]
    assert row["entries"] == 90 * 64
    assert row["norm"] == pytest.approx(v.norm().item(), rel=1e-6)


def test_another_architecture_is_refused(tmp_path):
    family(tmp_path)
    tiny.write(tmp_path / "wide", intermediate_size=128, rows=4200)
    with pytest.raises(UserError, match="has shape"):
        geometry.report(Vector.open(tmp_path / "v"), opened(tmp_path / "wide"), [])


def test_the_report_is_json_and_the_table_comes_from_it(tmp_path):
    family(tmp_path)
    found = json.loads(json.dumps(report(tmp_path, base=opened(tmp_path / "base")), allow_nan=False))
    lines = geometry.table(found).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [
        r["module"] for r in found["modules"]
    ] + ["all"]
    assert len({line.count("|") for line in lines}) == 1
    assert math.isclose(
        sum(r["norm"] ** 2 for r in found["modules"]), found["total"]["norm"] ** 2, rel_tol=1e-9
    )
