"""LoRA adapters and folders of a repository as checkpoints of a family."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config.compose import compose
from pipeline.errors import UserError
from pipeline.plan.plan import Plan
from pipeline.stages import prepare
from pipeline.weights.adapter import merged
from pipeline.weights.checkpoint import Checkpoint, Folder
from tests import tiny
from tests.adapters import ALPHA, RANK, names, write_adapter


def expected(model: Path, adapter: Path, scale: float) -> dict[str, torch.Tensor]:
    state, parts = load_file(model / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for module in names():
        a, b = (parts[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        state[f"{module}.weight"] = state[f"{module}.weight"].float() + scale * (b @ a)
    return state


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "model", 0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RV_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, ALPHA / RANK),
        ({"use_rslora": True}, ALPHA / RANK**0.5),
        ({"lora_alpha": 1.5}, 1.5 / RANK),
    ],
)
def test_an_adapter_is_merged_in_float32(
    settings: dict[str, Any], scale: float, model: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", **settings)
    found = merged(Folder.find(str(adapter)), Checkpoint.open(str(model)))
    wanted = expected(model, adapter, scale)
    assert found.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        whole = found.read(name)
        assert whole.dtype == tensor.dtype, name
        assert torch.equal(whole, tensor) if tensor.dtype == torch.bfloat16 else torch.allclose(whole, tensor)
    assert found.read("model.layers.0.mlp.down_proj.weight").dtype == torch.float32


def test_a_module_can_have_an_alpha_of_its_own(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", alpha_pattern={"layers.1.mlp.down_proj": 12})
    found = merged(Folder.find(str(adapter)), Checkpoint.open(str(model)))
    plain, doubled = expected(model, adapter, ALPHA / RANK), expected(model, adapter, 12 / RANK)
    own = "model.layers.1.mlp.down_proj.weight"
    for name in map("{}.weight".format, names()):
        assert torch.allclose(found.read(name), (doubled if name == own else plain)[name])


def test_the_first_pattern_that_fits_a_module_gives_its_alpha(model: Path, tmp_path: Path) -> None:
    patterns = {r"layers\.1\.mlp\.down_proj": 12, "down_proj": 3}
    adapter = write_adapter(tmp_path / "adapter", alpha_pattern=patterns)
    found = merged(Folder.find(str(adapter)), Checkpoint.open(str(model)))
    for layer, alpha in ((0, 3), (1, 12)):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        assert torch.allclose(found.read(name), expected(model, adapter, alpha / RANK)[name])


def test_a_layer_that_was_trained_in_full_takes_the_place_of_the_models(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    norm = torch.full((64,), 3.0)
    save_file(load_file(file) | {"base_model.model.model.norm.weight": norm}, file)
    found = merged(Folder.find(str(adapter)), Checkpoint.open(str(model)))
    assert torch.equal(found.read("model.norm.weight"), norm)


def test_a_merged_model_is_made_once_and_anew_for_other_bytes(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")

    def made() -> Checkpoint:
        return merged(Folder.find(str(adapter)), Checkpoint.open(str(model)))

    first = made()
    written = (first.path / "model.safetensors").stat().st_mtime_ns
    assert made().path == first.path and (first.path / "model.safetensors").stat().st_mtime_ns == written
    shutil.rmtree(adapter)
    write_adapter(adapter, seed=1)
    assert made().fingerprint != first.fingerprint


def spoil(**changes: Any) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def rename(old: str, new: str) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        save_file({name.replace(old, new): tensor for name, tensor in load_file(file).items()}, file)

    return change


def hold(state: dict[str, torch.Tensor]) -> Callable[[Path], None]:
    return lambda adapter: save_file(state, adapter / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil(peft_type="IA3"), "expected peft_type 'LORA', found 'IA3'"),
        (spoil(use_dora=True), "expected use_dora False, found True"),
        (spoil(bias="all"), "expected bias 'none', found 'all'"),
        (
            spoil(init_lora_weights="pissa_niter_16"),
            "expected init_lora_weights True, found 'pissa_niter_16'",
        ),
        (spoil(alora_invocation_tokens=[1]), "expected alora_invocation_tokens None, found [1]"),
        (spoil(layer_replication=[[0, 1], [0, 1]]), "expected layer_replication None, found [[0, 1]"),
        (spoil(alpha_pattern={"(": 3}), "alpha_pattern is {'(': 3}; expected regular expressions"),
        (spoil(alpha_pattern=["q_proj"]), "alpha_pattern is ['q_proj']; expected regular expressions"),
        (hold({}), "holds no tensor of an adapter"),
        (
            hold({f"base_model.model.{names()[0]}.lora_{side}.weight": torch.tensor(1.0) for side in "AB"}),
            "self_attn.q_proj.weight has rank 0",
        ),
        (spoil(lora_alpha="six"), "lora_alpha is 'six'; expected a number"),
        (spoil(lora_alpha=float("1e999")), "not valid JSON"),
        (
            rename("q_proj", "k_proj"),
            "it adapts model.layers.0.self_attn.k_proj.weight of the shape [64, 64]",
        ),
        (
            rename("layers.1", "layers.7"),
            "has no such tensor; name the model that it was trained on (my/tiny)",
        ),
        (rename("lora_B", "lora_embedding_B"), "is no part of an adapter of linear layers"),
        (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), "expected a LoRA adapter with"),
        (lambda adapter: (adapter / "adapter_config.json").unlink(), "does not exist"),
    ],
)
def test_an_adapter_that_is_not_covered_is_refused_in_one_line(
    change: Callable[[Path], None], message: str, model: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    change(adapter)
    with pytest.raises(UserError) as refused:
        merged(Folder.find(str(adapter)), Checkpoint.open(str(model)))
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "cache" / "merged").exists()


def planned(root: Path, *overrides: str) -> Plan:
    data = root / "data" / "gsm8k"
    if not data.is_dir():
        data.mkdir(parents=True)
        (data / "test.jsonl").write_text(json.dumps({"question": "1 2", "answer": "#### 3"}) + "\n")
    fixed = ["experiment=micro", "tasks=[gsm8k]", f"data.folder={data.parent}", "data.generator=null"]
    fixed += [f"results={root / 'results'}", f"families.micro.target.id={root / 'model'}"]
    return prepare(compose([*fixed, "families.micro.base.id=", *overrides]))


def vector_key(plan: Plan) -> str:
    (found,) = {c.key for c in plan.cells if (c.condition.name, c.benchmark.name) == ("vector", "gsm8k")}
    return found


def test_donors_can_be_adapters_of_the_target_and_of_each_other(model: Path, tmp_path: Path) -> None:
    for part, seed in (("sft", 1), ("grpo", 2)):
        write_adapter(tmp_path / part, seed=seed)
    donors = [f"families.micro.{part}.id={tmp_path / part}" for part in ("sft", "grpo")]
    donors += ["families.micro.sft.merge_into=target", "families.micro.grpo.merge_into=sft"]
    plan = planned(tmp_path, *donors)
    family = plan.families["micro"]
    assert family.sft is not None and family.grpo is not None
    second = load_file(tmp_path / "grpo" / "adapter_model.safetensors")
    module = names()[0]
    added = (
        ALPHA
        / RANK
        * (
            second[f"base_model.model.{module}.lora_B.weight"]
            @ second[f"base_model.model.{module}.lora_A.weight"]
        )
    )
    difference = family.grpo.read(f"{module}.weight") - family.sft.read(f"{module}.weight")
    assert torch.allclose(difference, added, atol=1e-6)
    before = vector_key(plan)
    assert vector_key(planned(tmp_path, *donors)) == before
    shutil.rmtree(tmp_path / "grpo")
    write_adapter(tmp_path / "grpo", seed=2, lora_alpha=7)
    assert vector_key(planned(tmp_path, *donors)) != before, "the adapter is in the key"
    shutil.rmtree(tmp_path / "grpo")
    write_adapter(tmp_path / "grpo", seed=2)
    assert vector_key(planned(tmp_path, *donors)) == before
    into_target = [*donors[:3], "families.micro.grpo.merge_into=target"]
    assert vector_key(planned(tmp_path, *into_target)) != before, "what it is merged into is in the key"


def test_a_checkpoint_can_be_a_folder_in_a_repository(model: Path, tmp_path: Path) -> None:
    state = load_file(model / "model.safetensors")
    for number, name in enumerate(("runs/sft", "runs/grpo")):
        tiny.write(tmp_path / "repository" / name, tiny.moved(state, seed=number))
    donors = [f"families.micro.{part}.id={tmp_path / 'repository'}" for part in ("sft", "grpo")]
    donors += [f"families.micro.{part}.subfolder=runs/{part}" for part in ("sft", "grpo")]
    inside = planned(tmp_path, *donors)
    whole = [
        f"families.micro.{part}.id={tmp_path / 'repository' / 'runs' / part}" for part in ("sft", "grpo")
    ]
    assert vector_key(inside) == vector_key(planned(tmp_path, *whole)), "the weights are the same"
    swapped = [
        *donors[:2],
        "families.micro.sft.subfolder=runs/grpo",
        "families.micro.grpo.subfolder=runs/sft",
    ]
    assert vector_key(planned(tmp_path, *swapped)) != vector_key(inside)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sft.subfolder=runs/none"], "has no folder runs/none; check the spelling of its subfolder"),
        (["sft.subfolder=../model"], "families.micro.sft.subfolder: expected a folder inside"),
        (["sft.subfolder=/etc"], "families.micro.sft.subfolder: expected a folder inside"),
        (
            ["sft.merge_into=grpo"],
            "families.micro.sft.merge_into: expected one of target, base, found 'grpo'",
        ),
        (["grpo.merge_into=trget"], "families.micro.grpo.merge_into: expected one of target, base, sft"),
        (["sft.merge_into=base"], "families.micro.sft.merge_into=base: the family has no such checkpoint"),
        (["target.merge_into=base"], "families.micro.target.merge_into: a target is a whole model"),
        (["sft.merge_into=target"], "expected a LoRA adapter with adapter_config.json"),
        ([], "holds an adapter, not a model; say in merge_into which checkpoint"),
    ],
)
def test_a_mistake_in_where_a_checkpoint_lies_is_one_line(
    overrides: list[str], message: str, model: Path, tmp_path: Path
) -> None:
    tiny.write(tmp_path / "sft", tiny.moved(load_file(model / "model.safetensors"), 1))
    write_adapter(tmp_path / "grpo")
    donors = [f"families.micro.{part}.id={tmp_path / part}" for part in ("sft", "grpo")]
    with pytest.raises(UserError) as refused:
        planned(tmp_path, *donors, *(f"families.micro.{o}" for o in overrides))
    assert message in str(refused.value) and "\n" not in str(refused.value)
