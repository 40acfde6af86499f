"""Where checkpoints were trained from is measured; what differs in config.json is allowed by name; lost entries are warned of."""

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import stages
from pipeline.analysis.results import read_results
from pipeline.config.compose import compose
from pipeline.config.schema import EngineConfig, Swap
from pipeline.engine.engine import Engine
from pipeline.errors import UserError
from pipeline.evaluate.checks import check_weights
from pipeline.evaluate.runner import Runner
from pipeline.plan.estimate import describe
from pipeline.plan.grid import make_grid
from pipeline.plan.plan import Plan
from pipeline.report import formats
from pipeline.report.tables import alpha_sweep, controls, main
from pipeline.weights.architecture import EMBEDDING
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.compatibility import check_compatible
from pipeline.weights.geometry_report import GeometryReport, read_report
from pipeline.weights.initialisation import measure
from pipeline.weights.steer import Term, steered_tensors
from tests import synthetic, tiny
from tests.documents import sums


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A family of one start, and documents."""
    base = tiny.write(tmp_path / "base", 0)
    state = load_file(base / "model.safetensors")
    tiny.write(tmp_path / "target", tiny.moved(state, 1, scale=0.02))
    sft = tiny.moved(state, 2, scale=0.02)
    tiny.write(tmp_path / "sft", sft)
    tiny.write(tmp_path / "grpo", tiny.moved(sft, 3, scale=0.02))
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    (tmp_path / "data" / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in sums(2, 3)))
    return tmp_path


def planned(place: Path, *more: str) -> Plan:
    family = [f"families.micro.{part}.id={place / part}" for part in ("target", "sft", "grpo", "base")]
    fixed = ["experiment=micro", "tasks=[gsm8k]", "conditions=[baseline,vector]", "data.generator=null"]
    fixed += [f"data.folder={place / 'data'}", f"results={place / 'results'}", *family]
    return stages.prepare(compose([*fixed, *more]))


def extracted(place: Path, *more: str) -> tuple[GeometryReport, list[str]]:
    plan, lines = planned(place, *more), list[str]()
    stages.extract(plan, lines.append)
    return read_report(plan.geometry_file(plan.families["micro"])), lines


def test_distances_are_those_of_the_whole_weights(place: Path) -> None:
    parts = {p: Checkpoint.open(str(place / p)) for p in ("base", "sft", "grpo", "target")}
    others = {part: parts[part] for part in ("sft", "grpo", "target")}
    found = measure("base", parts["base"], others, v=2.0)

    def flat(part: str) -> torch.Tensor:
        return torch.cat([parts[part].read(n).double().flatten() for n in sorted(parts[part].tensors)])

    base = flat("base")
    for part in others:
        difference = flat(part) - base
        distance = found["distances"][part]
        assert distance["norm"] == pytest.approx(float(difference.norm()), rel=1e-6)
        assert distance["relative"] == pytest.approx(float(difference.norm() / base.norm()), rel=1e-6)
        assert distance["of_vector"] == pytest.approx(float(difference.norm() / 2), rel=1e-6)
        assert distance["equal"] == pytest.approx(float((difference == 0).double().mean()))


def test_the_report_has_them_and_a_second_run_reads_them(place: Path) -> None:
    report, lines = extracted(place)
    assert report["initialisation"]["reference"] == "base"
    assert list(report["initialisation"]["distances"]) == ["sft", "grpo", "target"]
    assert any("distance from the base, of its norm: sft 0." in line for line in lines)
    again, lines = extracted(place)
    assert again == report and not lines
    from_target, _ = extracted(place, "families.micro.base.id=")
    assert from_target["initialisation"]["reference"] == "target"


def test_donors_of_another_pretraining_are_refused_with_the_figures_and_can_be_forced(place: Path) -> None:
    for part, seed in (("sft", 7), ("grpo", 8)):
        shutil.rmtree(place / part)
        tiny.write(place / part, seed)  # of the same shapes
    with pytest.raises(UserError) as refused:
        extracted(place)
    message = str(refused.value)
    assert "\n" not in message and "of its norm away" in message and "% of the entries equal" in message
    assert f"sft {place / 'sft'}" in message and f"target {place / 'target'}" not in message
    assert "families.micro.allow_other_initialisation=true" in message
    plan = planned(place)
    assert not plan.vector_folder(plan.families["micro"]).exists(), "nothing is kept"
    report, _ = extracted(place, "families.micro.allow_other_initialisation=true")
    assert (report["initialisation"]["distances"]["sft"]["relative"] or 0) > 0.3
    with pytest.raises(UserError):
        extracted(place)  # what was forced once is not taken for granted


def at_distance(state: dict[str, torch.Tensor], share: float, seed: int) -> dict[str, torch.Tensor]:
    """The weights, moved by this share of their norm."""
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
    norms = [math.sqrt(sum(float((t.float() ** 2).sum()) for t in s.values())) for s in (state, noise)]
    scale = share * norms[0] / norms[1]
    return {name: tensor.float() + scale * noise[name] for name, tensor in state.items()}


@pytest.mark.parametrize(("share", "believed"), [(0.06, True), (0.2, True), (0.45, False), (1.4, False)])
def test_a_fine_tune_is_believed_and_a_model_far_from_its_base_is_not(
    share: float, believed: bool, place: Path
) -> None:
    state = load_file(place / "base" / "model.safetensors")
    for part, seed in (("sft", 7), ("grpo", 8)):
        moved = at_distance(state, share, seed)
        save_file(moved, place / part / "model.safetensors", metadata={"format": "pt"})
    with nullcontext() if believed else pytest.raises(UserError, match="a choice: docs/pairs.md"):
        report, _ = extracted(place)
        assert report["initialisation"]["distances"]["sft"]["relative"] == pytest.approx(share, rel=0.01)


def edited(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "bookkeeping",
    [{"unsloth_version": "2025.1"}, {"_attn_implementation_autoset": True}, {"transformers_version": "4.4"}],
)
def test_bookkeeping_in_config_json_is_no_difference(bookkeeping: dict[str, object], place: Path) -> None:
    edited(place / "grpo" / "config.json", **bookkeeping)
    parts = [Checkpoint.open(str(place / p)) for p in ("target", "sft", "grpo")]
    assert check_compatible(*parts) == []


def test_another_difference_is_refused_until_it_is_allowed_by_name_and_then_noted(place: Path) -> None:
    edited(place / "grpo" / "config.json", residual_scale=2)
    edited(place / "sft" / "config.json", residual_scale=2)
    with pytest.raises(UserError) as refused:
        extracted(place)
    assert "residual_scale is None" in str(refused.value) and "allow_config_differences" in str(refused.value)
    report, _ = extracted(place, "families.micro.allow_config_differences=[residual_scale]")
    assert any("residual_scale is None" in note and "allows" in note for note in report["notes"])
    with pytest.raises(UserError):
        extracted(place, "families.micro.allow_config_differences=[residual_scales]")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "allow_config_differences=['a b']",
            "allow_config_differences: expected keys of config.json, found 'a b'",
        ),
        ("allow_config_differences=[a,a]", "allow_config_differences: 'a' is listed twice"),
        ("allow_other_initialisation=perhaps", "allow_other_initialisation: "),
    ],
)
def test_a_mistake_in_what_is_allowed_is_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        compose(["experiment=micro", f"families.micro.{override}"])
    assert str(refused.value).startswith(f"families.micro.{message}") and "\n" not in str(refused.value)


def test_donors_of_two_dtypes_are_subtracted_and_noted(place: Path) -> None:
    state = {name: tensor.float() for name, tensor in load_file(place / "grpo" / "model.safetensors").items()}
    save_file(state, place / "grpo" / "model.safetensors", metadata={"format": "pt"})
    report, _ = extracted(place)
    assert any("is stored in BF16" in note and "in F32" in note for note in report["notes"])


def test_a_vector_that_is_lost_in_rounding_is_warned_of(place: Path) -> None:
    """Steps of a hundredth of what bf16 can hold, as a rate of 5e-7 makes them."""
    state = {name: tensor.float() for name, tensor in load_file(place / "sft" / "model.safetensors").items()}
    small = {name: tensor * (1 + 1e-4 * torch.randn(tensor.shape)) for name, tensor in state.items()}
    for part, weights in (("sft", state), ("grpo", small)):
        save_file(weights, place / part / "model.safetensors", metadata={"format": "pt"})
    report, lines = extracted(place)
    (at_one,) = report["total"]["alphas"]
    assert (at_one["lost_in_rounding"] or 0) > 0.9
    (line,) = (line for line in lines if "warning" in line)
    assert "of the changed entries are lost in rounding" in line and "at cosine" in line
    _, again = extracted(place)
    assert any("warning" in line for line in again), "each run says so"


def test_what_arrives_of_a_vector_is_measured(place: Path) -> None:
    report, lines = extracted(place)
    (at_one,) = report["total"]["alphas"]
    target, sft, grpo = (load_file(place / p / "model.safetensors") for p in ("target", "sft", "grpo"))
    meant = torch.cat([(grpo[n].float() - sft[n].float()).double().flatten() for n in sorted(target)])
    steered = {n: (target[n].float() + (grpo[n].float() - sft[n].float())).bfloat16() for n in target}
    arriving = torch.cat([(steered[n].double() - target[n].double()).flatten() for n in sorted(target)])
    assert at_one["arrives"] == pytest.approx(float(arriving.norm() / meant.norm()), rel=1e-6)
    cosine = float(arriving @ meant / arriving.norm() / meant.norm())
    assert at_one["cosine"] == pytest.approx(cosine, rel=1e-6)
    assert not any("warning" in line for line in lines)


def test_a_sum_in_float32_loses_nothing_and_is_not_warned_of(place: Path) -> None:
    state = {name: tensor.float() for name, tensor in load_file(place / "sft" / "model.safetensors").items()}
    small = {name: tensor * (1 + 1e-4 * torch.randn(tensor.shape)) for name, tensor in state.items()}
    for part, weights in (("sft", state), ("grpo", small)):
        save_file(weights, place / part / "model.safetensors", metadata={"format": "pt"})
    report, lines = extracted(place, "steer.dtype=float32")
    (at_one,) = report["total"]["alphas"]
    assert (at_one["lost_in_rounding"] or 0) < 0.01 and at_one["cosine"] == pytest.approx(1, abs=1e-4)
    assert not any("warning" in line for line in lines)
    rounded, lines = extracted(place)
    assert rounded["total"]["alphas"][0]["lost_in_rounding"] != at_one["lost_in_rounding"]
    assert any("warning" in line for line in lines)
    vector = planned(place).vector(planned(place).families["micro"])
    target = load_file(place / "target" / "model.safetensors")
    for name, tensor in steered_tensors(str(place / "target"), [Term(str(vector), 0.5)], wide=True):
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, target[name].float() + (small[name] - state[name]) * 0.5), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["steer.dtype=bfloat16"], "steer.dtype: expected float32, or null"),
        (
            ["steer.dtype=float32", "engine.dtype=bfloat16"],
            "steer.dtype=float32: the engine computes in bfloat16",
        ),
        (
            ["steer.dtype=float32", "engine.swap=restart"],
            "steer.dtype=float32: a checkpoint that is written for",
        ),
        (["steer.dtyp=float32"], "unknown configuration key 'steer.dtyp'; did you mean 'dtype'?"),
    ],
)
def test_a_mistake_in_the_sum_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        compose(["experiment=micro", *overrides])
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


def test_float32_on_a_card_is_in_the_estimate() -> None:
    config = compose(["experiment=micro", "engine.device=gpu", "steer.dtype=float32"])
    assert "memory: weights in float32 take twice those of bf16" in describe(config, make_grid(config), {})
    rounded = compose(["experiment=micro", "engine.device=gpu", "engine.dtype=bfloat16"])
    assert "memory:" not in describe(rounded, make_grid(rounded), {})


@pytest.mark.parametrize(("lost", "said"), [(0.02, False), (0.61, True)])
def test_a_table_has_a_footnote_where_much_of_v_is_lost(lost: float, said: bool, tmp_path: Path) -> None:
    named = synthetic.write_geometry(tmp_path / "results")
    path = tmp_path / "results" / "vectors" / "v" / "geometry-t.json"
    data = json.loads(path.read_text())
    for at in data["total"]["alphas"]:
        at["lost_in_rounding"] = lost
    path.write_text(json.dumps(data))
    families = {"micro": synthetic.family("micro", geometry=named)}
    made = synthetic.write_run(tmp_path / "results", families=families, documents=12)
    results = read_results(made, tmp_path / "results")
    for module in (main, controls, alpha_sweep):
        text = formats.markdown(module.table(results))
        assert ("61% at α = −1, 61% at α = 1" in text) == said, module.__name__


@pytest.mark.engine
def test_a_sum_in_float32_reaches_the_engine(tmp_path: Path) -> None:
    part = ["experiment=micro", "tasks=[gsm8k]", "conditions=[vector]", "limit=2", "variant_limit=1"]
    part += [f"results={tmp_path / 'results'}", f"tables={tmp_path / 'tables'}", "tracking=disabled"]
    stages.run(compose([*part, "steer.dtype=float32"]), lambda line: None)
    plan = stages.prepare(compose([*part, "steer.dtype=float32"]))
    assert not plan.missing()
    (cell,) = (c for c in plan.cells if (c.condition.name, c.benchmark.name) == ("vector", "gsm8k"))
    assert cell.inputs["weights"]["sum"] == "float32"


class WrittenEngine(Engine):
    """An engine that is started anew for each weights, up to the point where vLLM would load them."""

    def __init__(self, model: Path) -> None:
        self.config, self.model, self.started_on = EngineConfig(swap=Swap.restart), model, model

    def _start(self, weights: Path) -> None:
        self.started_on = weights

    def _stop(self) -> None:
        pass

    def _forget_prompts(self) -> None:
        pass


def test_what_is_allowed_to_differ_is_allowed_where_a_checkpoint_is_written_for_the_engine(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RV_CACHE", str(place / "cache"))
    for part in ("sft", "grpo"):
        edited(place / part / "config.json", residual_scale=2)
    allowed = "families.micro.allow_config_differences=[residual_scale]"
    report, _ = extracted(place, allowed)
    assert any("residual_scale" in note for note in report["notes"])
    plan = planned(place, allowed)
    family = plan.families["micro"]
    (vector,) = (condition for _, condition in plan.rows() if condition.name == "vector")
    engine = WrittenEngine(family.target.path)
    runner = Runner(plan, lambda line: None)
    runner._steer(engine, family, vector)
    (term,) = plan.terms(family, vector)
    written = load_file(engine.started_on / "model.safetensors")
    for name, tensor in steered_tensors(str(place / "target"), [term]):
        assert torch.equal(written[name], tensor), name


@pytest.mark.parametrize("swap", ["in_place", "restart"])
def test_a_donor_of_other_shapes_is_not_asked_by_an_engine_that_is_started_on_it(
    swap: str, place: Path
) -> None:
    state = load_file(place / "grpo" / "model.safetensors")
    shutil.rmtree(place / "grpo")
    tiny.write(place / "grpo", state | {EMBEDDING: state[EMBEDDING][:92].clone()}, rows=92)
    plan = planned(place, "conditions=[baseline,grpo]", f"engine.swap={swap}", "engine.max_model_len=128")
    with (
        nullcontext()
        if swap == "in_place"
        else pytest.raises(UserError, match=r"\[92, 64\], .* \[96, 64\]; leave")
    ):
        check_weights(plan.rows(), plan.config.engine)
