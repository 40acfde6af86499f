"""What must be true of the donors' recipes, rewards, overlap check and training runs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from evals import micro
from pipeline.donors import Recipe, correctness, final_answer, form, load_recipe, make_donors, overlap
from pipeline.errors import UserError

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "models" / "micro"
MINIATURE = {
    "base_examples": 300,
    "base_batch": 2,
    "target_examples": 64,
    "hidden": 64,
    "layers": 1,
    "vocabulary": 400,
    "train_documents": 96,
    "grpo_steps": 8,
    "grpo_prompts": 4,
    "grpo_rollouts": 4,
    "grpo_microbatch": 16,
    "grpo_max_tokens": 24,
    "grpo_lr": 1e-3,
    "save_steps": 2,
}


def command(out: Path, **settings: object) -> list[str]:
    values = [f"{key}={value}" for key, value in (MINIATURE | settings).items()]
    return [sys.executable, "-m", "pipeline.donors", "recipe=conf/recipe/micro.yaml", f"out={out}", *values]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def train(out: Path, **settings: object) -> None:
    subprocess.run(command(out, **settings), cwd=ROOT, env=environment(), check=True, capture_output=True)


def train_until(sign: Path, out: Path) -> None:
    """Start training and kill it, with no chance to clean up, as soon as ``sign`` exists."""
    process = subprocess.Popen(
        command(out), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not sign.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def weights(out: Path) -> dict[str, bytes]:
    return {
        stage: (out / stage / "model.safetensors").read_bytes() for stage in ("base", "target", "sft", "grpo")
    }


def record(out: Path, stage: str) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((out / stage / "training.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("donors") / "whole"
    train(out)
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
def test_each_stage_starts_from_the_one_before_and_changes_its_weights(miniature: Path) -> None:
    assert len(set(weights(miniature).values())) == 4
    assert not list(miniature.glob("*/checkpoints"))
    for stage in ("base", "target", "sft", "grpo"):
        assert record(miniature, stage)["curve"]
    assert any("reward" in entry for entry in record(miniature, "grpo")["curve"])  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_finished_family_is_not_trained_again(miniature: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in miniature.glob("*/*")}
    train(miniature)
    assert {path: path.stat().st_mtime_ns for path in miniature.glob("*/*")} == before


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(miniature: Path, tmp_path: Path) -> None:
    train_until(tmp_path / "base" / "checkpoints" / "checkpoint-4" / "trainer_state.json", tmp_path)
    train_until(tmp_path / "grpo" / "checkpoints" / "checkpoint-2" / "trainer_state.json", tmp_path)
    train(tmp_path)
    assert record(tmp_path, "base")["resumed_from_step"] != 0
    assert record(tmp_path, "grpo")["resumed_from_step"] != 0
    assert weights(tmp_path) == weights(miniature)


@pytest.mark.slow
def test_another_seed_gives_another_family(miniature: Path, tmp_path: Path) -> None:
    train(tmp_path, seed=1)
    mine, other = weights(miniature), weights(tmp_path)
    assert all(mine[stage] != other[stage] for stage in mine)


@pytest.mark.slow
def test_rewards_rise_when_grpo_trains_a_model_with_room_to_learn(tmp_path: Path) -> None:
    settings = {"init": SHIPPED / "target", "grpo_start": "init", "grpo_steps": 60, "grpo_prompts": 16}
    settings |= {"grpo_rollouts": 8, "grpo_microbatch": 128, "grpo_max_tokens": 144, "grpo_lr": 1e-4}
    train(tmp_path, train_documents=500, **settings)
    curve = [entry["reward"] for entry in record(tmp_path, "grpo")["curve"] if "reward" in entry]  # type: ignore
    assert sum(curve[-2:]) / 2 > sum(curve[:2]) / 2 + 0.03
