"""What must be true of the donors' recipes, rewards, overlap check and training runs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from evals import micro
from pipeline.donors import Recipe, correctness, final_answer, form, load_recipe, make_donors, overlap
from pipeline.errors import UserError

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "models" / "micro"
# donors of the shipped target, which earns rewards from the first step
DONORS: dict[str, object] = {
    "init": SHIPPED / "target",
    "train_documents": 64,
    "grpo_steps": 6,
    "grpo_prompts": 4,
    "grpo_rollouts": 4,
    "grpo_microbatch": 16,
    "save_steps": 2,
}
# a whole family from nothing, too small to earn any: GRPO runs and changes nothing
FAMILY: dict[str, object] = DONORS | {
    "init": "null",
    "base_examples": 300,
    "base_batch": 2,
    "target_examples": 64,
    "hidden": 64,
    "layers": 1,
    "vocabulary": 400,
    "grpo_steps": 1,
    "grpo_max_tokens": 8,
}


def command(out: Path, settings: dict[str, object]) -> list[str]:
    values = [f"{key}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", "pipeline.donors", "recipe=conf/recipe/micro.yaml", f"out={out}", *values]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def train(out: Path, settings: dict[str, object]) -> None:
    subprocess.run(command(out, settings), cwd=ROOT, env=environment(), check=True, capture_output=True)


def train_until(step: Path, out: Path, settings: dict[str, object]) -> None:
    """Start training and kill it, with no chance to clean up, as soon as the checkpoint ``step`` is whole."""
    process = subprocess.Popen(
        command(out, settings),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (step / "trainer_state.json").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def weights(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in out.glob("*/model.safetensors")}


def record(out: Path, stage: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / stage / "training.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def donors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("donors") / "whole"
    train(out, DONORS)
    return out


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a 2 b\n#### 12", "12"),
        ("#### 1,200.", "1200"),
        ("#### 3\n#### 4", "4"),
        ("so 12", None),
        ("####", None),
    ],
)
def test_the_final_answer_is_the_last_number_after_the_marks(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_only_the_exact_answer_is_rewarded() -> None:
    right = ["x\n#### 12"] * 4
    assert correctness(["#### 12", "12", "#### 120", "#### 12.5"], right) == [1.0, 0.0, 0.0, 0.0]


def test_the_form_is_rewarded_whatever_the_answer_and_only_as_the_last_line() -> None:
    assert form(["steps\n#### 999"]) == [0.1]
    assert form(["#### 1\n#### 2", "#### 1\nand more", "no marks", "#### "]) == [0.0] * 4


def test_every_training_answer_earns_the_whole_reward(tmp_path: Path) -> None:
    micro.write_benchmarks(tmp_path, seed=0)
    answers = [
        json.loads(line)["answer"] for line in (tmp_path / "gsm8k" / "train.jsonl").read_text().splitlines()
    ]
    assert set(correctness(answers, answers)) == {1.0}
    assert set(form(answers)) == {0.1}


def test_overlap_sees_the_same_text_and_long_shared_passages() -> None:
    words = [f"w{index}" for index in range(20)]
    training = [" ".join(words)]
    assert overlap(training, ["W0  " + " ".join(words[1:])]) == {"documents": 1, "same": 1, "shared_text": 1}
    assert overlap(training, [" ".join([*words[:13], "x"])]) == {"documents": 1, "same": 0, "shared_text": 1}
    assert overlap(training, [" ".join([*words[:12], "x"])]) == {"documents": 1, "same": 0, "shared_text": 0}


def test_training_on_an_evaluated_problem_is_refused_before_training(tmp_path: Path) -> None:
    rows = [{"question": f"What is {a} and 1?", "answer": f"#### {a + 1}"} for a in range(4)]
    data = tmp_path / "data" / "gsm8k"
    data.mkdir(parents=True)
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "test.jsonl").write_text(json.dumps(rows[2]) + "\n")
    recipe = Recipe(init="no-such-model", data=str(tmp_path / "data"))
    with pytest.raises(UserError, match="share problems"):
        make_donors(recipe, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "overlap.json").read_text())
    assert found["donors / gsm8k"]["same"] == 1


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf" / "recipe").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_loads_typed_and_names_itself(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    for field in fields(Recipe):
        if field.type is float:
            assert isinstance(getattr(recipe, field.name), float), field.name
    assert recipe.grpo_prompts * recipe.grpo_rollouts % recipe.grpo_microbatch == 0
    assert recipe.sft_batch % recipe.sft_microbatch == 0


def test_a_misspelt_setting_is_refused_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("grpo_step: 3\n")
    with pytest.raises(UserError, match="'grpo_step', did you mean 'grpo_steps'"):
        load_recipe(tmp_path / "r.yaml")


def test_a_learning_rate_that_is_no_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("sft_lr: fast\n")
    with pytest.raises(UserError, match="sft_lr must be a number, found 'fast'"):
        load_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("seed: 1.5")
    with pytest.raises(UserError, match="seed must be a whole number, found 1.5"):
        load_recipe(tmp_path / "r.yaml")


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    from pipeline.donors import _claim

    _claim(Recipe(seed=1), tmp_path)
    _claim(Recipe(seed=1), tmp_path)
    with pytest.raises(UserError, match=r"other settings \(seed\)"):
        _claim(Recipe(seed=2), tmp_path)


def test_the_tokenizer_splits_digits_and_renders_the_turns() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "target")
    assert tokenizer.tokenize("1204") == ["1", "2", "0", "4"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    turns = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    for example in micro.training_examples(200, 5, dict.fromkeys(micro.FORMS, 0.25)):
        assert tokenizer.decode(tokenizer(example.user)["input_ids"]) == example.user


def test_the_shipped_family_is_small_and_of_one_shape() -> None:
    from safetensors import safe_open

    shapes = []
    for stage in ("base", "target", "sft", "grpo"):
        with safe_open(SHIPPED / stage / "model.safetensors", "pt") as file:
            shapes.append({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}  # noqa: SIM118
        assert (SHIPPED / stage / "tokenizer.json").read_bytes() == (
            SHIPPED / "base/tokenizer.json"
        ).read_bytes()
    assert all(shape == shapes[0] for shape in shapes)
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 16_000_000


def test_the_shipped_family_met_no_test_document() -> None:
    found = json.loads((SHIPPED / "overlap.json").read_text())
    assert {"base / gsm8k", "target / gsm8k", "donors / gsm8k"} <= found.keys()
    assert all(row["same"] == 0 and row["documents"] > 0 for row in found.values())


@pytest.mark.slow
def test_each_stage_changes_the_weights_it_starts_from(donors: Path) -> None:
    target = (SHIPPED / "target" / "model.safetensors").read_bytes()
    assert len({target, *weights(donors).values()}) == 3
    assert not list(donors.glob("*/checkpoints"))
    assert any("reward" in entry for entry in record(donors, "grpo")["curve"])


@pytest.mark.slow
def test_a_finished_family_is_not_trained_again(donors: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in donors.glob("*/*")}
    assert len(before) > 10
    train(donors, DONORS)
    assert {path: path.stat().st_mtime_ns for path in donors.glob("*/*")} == before


@pytest.mark.slow
def test_a_run_killed_in_grpo_resumes_to_the_same_weights(donors: Path, tmp_path: Path) -> None:
    train_until(tmp_path / "grpo" / "checkpoints" / "checkpoint-2", tmp_path, DONORS)
    train(tmp_path, DONORS)
    assert record(tmp_path, "grpo")["resumed_from_step"] > 0
    assert weights(tmp_path) == weights(donors)


@pytest.mark.slow
def test_a_run_killed_in_pretraining_resumes_to_the_same_family(tmp_path: Path) -> None:
    train(tmp_path / "whole", FAMILY)
    train_until(tmp_path / "killed" / "base" / "checkpoints" / "checkpoint-4", tmp_path / "killed", FAMILY)
    train(tmp_path / "killed", FAMILY)
    assert record(tmp_path / "killed", "base")["resumed_from_step"] > 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert weights(tmp_path / "whole").keys() == {"base", "target", "sft", "grpo"}


@pytest.mark.slow
def test_another_seed_gives_other_donors(donors: Path, tmp_path: Path) -> None:
    train(tmp_path, DONORS | {"seed": 1})
    mine, other = weights(donors), weights(tmp_path)
    assert mine.keys() == other.keys() == {"sft", "grpo"}
    assert all(mine[stage] != other[stage] for stage in mine)


@pytest.mark.slow
def test_rewards_rise_on_problems_seen_again_and_again(tmp_path: Path) -> None:
    train(
        tmp_path, DONORS | {"train_documents": 8, "grpo_steps": 30, "grpo_prompts": 8, "grpo_microbatch": 32}
    )
    curve = [entry["reward"] for entry in record(tmp_path, "grpo")["curve"] if "reward" in entry]
    assert len(curve) == 3
    assert curve[-1] > curve[0] + 0.05
