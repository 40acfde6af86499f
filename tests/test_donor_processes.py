"""Donors trained by several processes: the same mathematics, nothing left behind, and what each card would hold."""

import json
import math
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from evals import micro
from pipeline.donors import command as verb
from pipeline.donors import memory, stages
from pipeline.donors.batches import check_batches
from pipeline.donors.compose import compose_recipe
from pipeline.donors.processes import Job
from pipeline.donors.train import make_donors
from pipeline.errors import UserError
from pipeline.weights.architecture import read_config
from pipeline.weights.checkpoint import Checkpoint
from tests.test_donors import DONORS, ROOT, SHIPPED, command, environment, record

# of a batch of 4 each of two processes takes one microbatch of 2; 16 steps of SFT
SHARED: dict[str, object] = DONORS | {"sft.batch": 4, "sft.microbatch": 2, "grpo.microbatch": 8}
ALONE = SHARED | {"sft.microbatch": 4}


def recipe_of(changes: dict[str, object]) -> Any:
    return compose_recipe(["recipe=micro", *(f"{key}={value}" for key, value in changes.items())])


def start(out: Path, changes: dict[str, object], processes: int = 2) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(out, changes | {"processes": processes}),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(out: Path, changes: dict[str, object], processes: int = 2) -> None:
    process = start(out, changes, processes)
    _, told = process.communicate()
    assert process.returncode == 0, told.decode()


def ranks_at(step: Path, run: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of a stage, once the checkpoint `step` is whole."""
    while not stages.is_whole(step, 2) and run.poll() is None:
        time.sleep(0.05)
    assert run.poll() is None, run.stderr and run.stderr.read().decode()
    found = [p for p in psutil.Process(run.pid).children() if "pipeline.donors.rank" in p.cmdline()]
    assert len(found) == 2
    return found


def test_a_process_reads_the_job_that_it_was_given() -> None:
    asked = [
        micro.Example("arithmetic", None, 'What is 1 + 1?\n"\u00e4"', "Answer: ", "2"),
        micro.Example("code", "Be brief.", "f", "", "g"),
    ]
    for beginning in (None, (Path("models/micro/target"), "me/target", None), (Path("x"), "me/x", "main")):
        job = Job(recipe_of(SHARED), Path("out/sft"), beginning, asked, 2)
        assert Job.from_json(job.to_json()) == job


def assert_gone(processes: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, timeout=60)
    assert not left


def losses(out: Path, stage: str) -> list[float]:
    return [entry["loss"] for entry in record(out, stage)["curve"] if "loss" in entry]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shared") / "donors"
    finish(out, SHARED)
    return out


# ---- before anything is trained


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {},
            "sft.batch = 32 cannot be shared by 3 processes that take 32 at a time; choose another sft.microb",
        ),
        (
            {"sft.microbatch": 1, "sft.batch": 3},
            "grpo.prompts · grpo.rollouts = 16 cannot be shared by 3 proc",
        ),
        (
            {"init.id": "null"},
            "base.batch = 8 cannot be shared by 3 processes that take 1 at a time; choose another base",
        ),
    ],
)
def test_a_batch_that_processes_cannot_share_is_refused_before_anything_is_written(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        make_donors(recipe_of(DONORS | changes), tmp_path / "out", processes=3)
    assert not (tmp_path / "out").exists()


def test_an_optimizer_that_cannot_be_split_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    recipe = recipe_of(SHARED | {"optimizer": "adafactor"})
    with pytest.raises(
        UserError, match="optimizer=adafactor cannot be split .* set optimizer=adamw_torch, or processes=1"
    ):
        make_donors(recipe, tmp_path / "out", processes=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["0", "two", "-1", "1.5", "99999"])
def test_a_number_of_processes_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=f"processes={given}: expected a number from 1"):
        verb.run(["recipe=micro", f"processes={given}"], print)


def test_checkpoints_of_another_number_of_processes_are_not_gone_on_from(tmp_path: Path) -> None:
    saved = tmp_path / "sft" / "checkpoints" / "checkpoint-2"
    saved.mkdir(parents=True)
    (saved / "trainer_state.json").write_text("{}")
    recipe, target = recipe_of(DONORS), Checkpoint.open(str(SHIPPED / "target"))
    with pytest.raises(
        UserError, match="are those of processes=1, found processes=2; go on with processes=1"
    ):
        stages.run_stage(tmp_path / "sft", recipe, lambda *_: pytest.fail("began"), target, [], processes=2)


def test_a_checkpoint_is_whole_when_every_process_has_written_its_part(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text("{}")
    assert stages.is_whole(tmp_path, 1)
    assert not stages.is_whole(tmp_path, 2)
    import torch

    for rank in range(2):
        torch.save({"cpu": torch.get_rng_state()}, tmp_path / f"rng_state_{rank}.pth")
    assert stages.is_whole(tmp_path, 2)
    content = (tmp_path / "rng_state_1.pth").read_bytes()
    (tmp_path / "rng_state_1.pth").write_bytes(content[: len(content) // 2])
    assert not stages.is_whole(tmp_path, 2)


# ---- memory


def test_parameters_are_counted_from_the_configuration() -> None:
    checkpoint = Checkpoint.open(str(SHIPPED / "target"))
    counted = sum(info.numel for info in checkpoint.tensors.values())
    assert memory.Shape.of(checkpoint.config).parameters == pytest.approx(
        counted, rel=0.002
    )  # but for biases


def test_what_is_split_shrinks_with_every_card_and_the_rest_does_not() -> None:
    recipe = recipe_of(DONORS)
    config = read_config(SHIPPED / "target" / "config.json")
    two, eight = (next(iter(memory.needs(recipe, config, count, 80e9))).parts for count in (2, 8))
    for part in ("parameters", "gradients", "optimizer"):
        assert two[part] == 4 * eight[part] > 0
    assert two["optimizer"] == 2 * two["gradients"] == 2 * two["parameters"]
    for part in ("gathered layers", "activations", "logits"):
        assert two[part] == eight[part] > 0


def test_vllm_and_the_reference_model_are_part_of_grpo_alone() -> None:
    recipe = recipe_of({"grpo.vllm": "true", "grpo.vllm_memory": 0.25, "grpo.beta": 0.1})
    config = read_config(SHIPPED / "target" / "config.json")
    sft, grpo = memory.needs(recipe, config, 1, 80e9)
    assert "vLLM" not in sft.parts and grpo.parts["vLLM"] == 20e9
    assert grpo.parts["reference model"] == grpo.parts["parameters"]


def test_whether_it_fits_is_said_with_the_remedy() -> None:
    recipe = recipe_of(DONORS)
    config = read_config(SHIPPED / "target" / "config.json")
    most = max(need.total for need in memory.needs(recipe, config, 2, 0.0))
    assert memory.described(recipe, config, 2, math.ceil(most))[-1].startswith("it fits")
    assert "give more GPUs" in memory.described(recipe, config, 2, math.floor(most) - 1)[-1]


def test_a_dry_run_prints_what_each_card_would_hold_and_writes_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    given = [f"init.id={SHIPPED / 'target'}", "target.direct=0.0", "sft.microbatch=8", "grpo.microbatch=32"]
    verb.run(["recipe=micro", *given, f"out={tmp_path / 'out'}", "processes=4", "dry_run=true"], told.append)
    assert told[0].startswith("memory of each of 4 cards, estimated · sft: ")
    assert told[1].startswith("memory of each of 4 cards, estimated · grpo: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "processes"), [("smol", 2), ("qwen2.5-1.5b", 8), ("qwen2.5-7b", 8)])
def test_the_recipes_for_gpus_can_be_shared_by_those_of_one_machine(name: str, processes: int) -> None:
    recipe = compose_recipe([f"recipe={name}", "optimizer=adamw_torch"])
    check_batches(recipe, processes, ["sft", "grpo"])


# ---- two processes


@pytest.mark.slow
def test_two_processes_train_what_one_trains(shared: Path, tmp_path: Path) -> None:
    """SFT is the same mathematics; GRPO samples in each process, so that its answers are others."""
    finish(tmp_path / "alone", ALONE, processes=1)
    ours, theirs = losses(shared, "sft"), losses(tmp_path / "alone", "sft")
    assert len(ours) == len(theirs) >= 1
    assert ours == pytest.approx(theirs, rel=1e-4)
    begun, one, two = (
        load_file(folder / "model.safetensors")
        for folder in (SHIPPED / "target", tmp_path / "alone" / "sft", shared / "sft")
    )
    assert one.keys() == two.keys() and {t.dtype for t in two.values()} == {t.dtype for t in one.values()}
    moved = math.sqrt(sum(float((one[name] - begun[name]).square().sum()) for name in one))
    apart = math.sqrt(sum(float((one[name] - two[name]).square().sum()) for name in one))
    assert apart < 1e-3 * moved
    for stage in ("sft", "grpo"):
        assert record(shared, stage)["inputs"]["processes"] == 2
        assert record(tmp_path / "alone", stage)["inputs"]["processes"] == 1
        files = sorted(path.name for path in (shared / stage).iterdir())
        assert files == sorted(path.name for path in (tmp_path / "alone" / stage).iterdir())
    rewards = [entry["reward"] for entry in record(shared, "grpo")["curve"] if "reward" in entry]
    assert all(math.isfinite(reward) for reward in rewards)
    grpo = load_file(shared / "grpo" / "model.safetensors")
    assert any(not grpo[name].equal(two[name]) for name in two), "GRPO took steps"


@pytest.mark.slow
def test_a_stage_of_another_number_of_processes_is_not_reused(shared: Path, tmp_path: Path) -> None:
    recipe, problems = recipe_of(SHARED), stages.STAGES[2]
    told: list[str] = []
    target = Checkpoint.open(str(SHIPPED / "target"))
    stages.reuse_stage(recipe, shared / problems, tmp_path / "sft", target, [], told.append, processes=1)
    assert "processes" in told[0] and "trained here" in told[0]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_killed_process_ends_the_whole_with_one_line_and_the_same_command_goes_on(
    stage: str, shared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = start(out, SHARED)
    ranks = ranks_at(out / stage / "checkpoints" / "checkpoint-2", run)
    ranks[1].send_signal(signal.SIGKILL)
    _, told = run.communicate()
    assert run.returncode == 2
    last = told.decode().strip().splitlines()[-1]
    assert last.startswith(f"error: stage {stage}: process ") and "goes on from the last checkpoint" in last
    assert_gone(ranks)
    assert not (out / stage / "training.json").exists()
    finish(out, SHARED)
    assert record(out, stage)["resumed_from_step"] >= 2
    for name, tensor in load_file(shared / "sft" / "model.safetensors").items():
        assert load_file(out / "sft" / "model.safetensors")[name].equal(tensor), name


@pytest.mark.slow
def test_no_process_outlives_a_killed_run(tmp_path: Path) -> None:
    run = start(tmp_path / "out", SHARED)
    ranks = ranks_at(tmp_path / "out" / "sft" / "checkpoints" / "checkpoint-2", run)
    run.kill()
    run.wait()
    assert_gone(ranks)


@pytest.mark.slow
def test_what_a_process_says_to_the_user_is_the_line_of_the_run(tmp_path: Path) -> None:
    run = start(tmp_path / "out", SHARED | {"sft.max_tokens": 8})
    _, told = run.communicate()
    assert run.returncode == 2
    assert (
        told.decode()
        .strip()
        .splitlines()[-1]
        .startswith("error: sft.max_tokens=8: the longest training text of sft")
    )
    assert not (tmp_path / "out" / "sft" / "training.json").exists()
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["name"] == "micro"
