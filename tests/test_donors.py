"""What must be true of the donors' recipes, rewards, overlap check and training runs."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from evals import micro
from pipeline import __main__ as command_line
from pipeline.config.compose import compose
from pipeline.donors import command as verb
from pipeline.donors import stages, train, trainers
from pipeline.donors.compose import compose_recipe
from pipeline.donors.data import evaluated_documents, training_problems
from pipeline.donors.overlap import overlap, record_overlap
from pipeline.donors.recipe import FORMER_KEYS, Recipe, compared, flat, settings
from pipeline.donors.rewards import correctness, final_answer, form
from pipeline.donors.train import make_donors
from pipeline.errors import UserError
from pipeline.files import digest
from pipeline.weights.checkpoint import Checkpoint

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "models" / "micro"
# donors of the shipped target, which earns rewards from the first step
DONORS: dict[str, object] = {
    "init.id": SHIPPED / "target",
    "target.direct": 0.0,
    "data.documents": 64,
    "grpo.steps": 6,
    "grpo.prompts": 4,
    "grpo.rollouts": 4,
    "grpo.microbatch": 16,
    "save_steps": 2,
}
# a whole family from nothing, too small to earn any: GRPO runs and changes nothing
FAMILY: dict[str, object] = DONORS | {
    "init.id": "null",
    "base.examples": 300,
    "base.batch": 2,
    "target.examples": 64,
    "target.direct": 0.3,
    "base.hidden": 64,
    "base.layers": 1,
    "base.vocabulary": 400,
    "grpo.steps": 1,
    "grpo.max_tokens": 8,
}


def a_recipe(changes: dict[str, Any] | None = None) -> Recipe:
    """The defaults with other values, by their keys."""
    made = Recipe(name="test")
    for key, value in (changes or {}).items():
        section, _, inner = key.rpartition(".")
        value = replace(getattr(made, section), **{inner: value}) if section else value
        made = replace(made, **{section or inner: value})
    return made


def command(out: Path, changes: dict[str, object]) -> list[str]:
    values = [f"{key}={value}" for key, value in changes.items()]
    return [sys.executable, "-m", "pipeline", "donors", "recipe=micro", f"out={out}", *values]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(out: Path, changes: dict[str, object]) -> None:
    subprocess.run(command(out, changes), cwd=ROOT, env=environment(), check=True, capture_output=True)


def run_until(step: Path, out: Path, changes: dict[str, object]) -> None:
    """Start training and kill it, with no chance to clean up, as soon as the checkpoint `step` is whole."""
    process = subprocess.Popen(
        command(out, changes),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not stages.is_whole(step) and process.poll() is None:
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
    run(out, DONORS)
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


def test_an_answer_without_a_number_rewards_nothing() -> None:
    assert correctness(["12", "#### 12"], ["no number"] * 2) == [0.0, 0.0]


def test_the_form_is_rewarded_whatever_the_answer_and_only_once_at_the_end() -> None:
    assert form(["steps\n#### 999", "so #### 5", "#### ."]) == [0.1] * 3
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


# ---- training data

ROWS: list[Any] = [{"question": f"What is {a} and 1?", "answer": f"It is.\n#### {a + 1}"} for a in range(4)]


def problems_in(folder: Path, rows: list[Any], tested: list[Any]) -> Recipe:
    """A recipe that trains donors of the shipped target on these rows, laid out as GSM8K is."""
    (folder / "gsm8k").mkdir(parents=True)
    for split, listed in (("train", rows), ("test", tested)):
        lines = (row if isinstance(row, str) else json.dumps(row) for row in listed)
        (folder / "gsm8k" / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return a_recipe(
        {
            "init.id": str(SHIPPED / "target"),
            "data.id": str(folder),
            "grpo.prompts": 4,
            "grpo.microbatch": 32,
        }
    )


def test_training_on_an_evaluated_problem_is_refused_before_training(tmp_path: Path) -> None:
    recipe = problems_in(tmp_path / "data", ROWS, ROWS[2:3])
    with pytest.raises(UserError, match="share problems"):
        make_donors(recipe, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "overlap.json").read_text())
    assert found["donors / gsm8k"]["same"] == 1


def test_a_problem_of_another_benchmark_in_the_folder_is_found_too(tmp_path: Path) -> None:
    recipe = problems_in(tmp_path / "data", ROWS, [{"question": "Another?"}])
    (tmp_path / "data" / "bbh" / "bbh").mkdir(parents=True)
    asked = {"examples": [{"input": ROWS[1]["question"], "target": "2"}]}
    (tmp_path / "data" / "bbh" / "bbh" / "multistep_arithmetic_two.json").write_text(json.dumps(asked))
    with pytest.raises(UserError, match="share problems: {'donors / multistep_arithmetic_two': 1}"):
        make_donors(recipe, tmp_path / "out")


def test_a_tested_function_with_another_example_in_its_prompt_is_found_by_its_solution(
    tmp_path: Path,
) -> None:
    tested = micro.documents("humaneval", "test", 0, 1)[0]
    asked = tested | {"prompt": tested["prompt"].replace(">>> ", ">>> 0 or ")}
    training = {"base": [micro.example("humaneval", asked, tested["canonical_solution"] + "```")]}
    micro.write_benchmarks(tmp_path, seed=0, sizes={"humaneval": 1})
    for held_out in (training_problems(a_recipe())[1], evaluated_documents(tmp_path)):
        with pytest.raises(UserError, match="share problems: {'base / humaneval, solutions': 1}"):
            record_overlap(training, held_out, tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "train.jsonl, line 5: expected a JSON object"),
        ("3", "train.jsonl, line 5: expected an object with a text in 'question'"),
        ({"answer": "#### 1"}, "train.jsonl, line 5: expected an object with a text in 'question'"),
        ({"question": "?", "answer": 1}, "train.jsonl, line 5: expected an object with a text in 'answer'"),
        (
            {"question": "?", "answer": "1"},
            "line 5: expected an answer whose last line is '#### n', found '1'",
        ),
        ({"question": "?", "answer": "#### 1\nor so"}, "line 5: expected an answer whose last line"),
    ],
)
def test_a_training_row_that_cannot_be_rewarded_is_named(row: Any, message: str, tmp_path: Path) -> None:
    recipe = problems_in(tmp_path / "data", [*ROWS, row], ROWS)
    with pytest.raises(UserError, match=message):
        make_donors(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_few_training_problems_for_a_step_are_refused_and_none_at_all(tmp_path: Path) -> None:
    recipe = problems_in(tmp_path / "few", ROWS[:3], ROWS)
    with pytest.raises(UserError, match="expected at least grpo.prompts=4 documents, found 3"):
        make_donors(recipe, tmp_path / "out")
    for empty in (problems_in(tmp_path / "a", [], ROWS), problems_in(tmp_path / "b", ROWS, [])):
        with pytest.raises(UserError, match="jsonl: expected problems, a JSON object a line, found none"):
            make_donors(empty, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"data.id": "no-such-folder"}, "data.id=no-such-folder is neither a folder nor a hub id"),
        ({"data.id": str(ROOT / "conf")}, "expected .*gsm8k/train.jsonl, found none"),
        ({"init.id": "no-such-model"}, "no-such-model is neither a folder nor a hub id"),
        ({"init.id": str(ROOT / "conf")}, "expected a Hugging Face checkpoint there"),
    ],
)
def test_data_or_an_initialisation_that_is_not_there_is_refused_before_anything_is_written(
    setting: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        make_donors(a_recipe({"init.id": str(SHIPPED / "target")} | setting), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_initialisation_without_a_tokenizer_or_a_template_is_refused(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / "target", tmp_path / "init")
    recipe = a_recipe({"init.id": str(tmp_path / "init")})
    described = json.loads((tmp_path / "init" / "tokenizer_config.json").read_text())
    described.pop("chat_template", None)
    (tmp_path / "init" / "tokenizer_config.json").write_text(json.dumps(described))
    (tmp_path / "init" / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UserError, match="its tokenizer has no chat template"):
        make_donors(recipe, tmp_path / "out")
    (tmp_path / "init" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="its configuration or tokenizer cannot be read"):
        make_donors(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prompt_begins_with_one_token_of_beginning(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(SHIPPED / "target")
    example = micro.Example("gsm8k", None, "1 + 1?", "", "#### 2")
    (plain,) = trainers.prompts_and_completions([example], tokenizer)
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    (without,) = trainers.prompts_and_completions([example], tokenizer)
    assert without["prompt"] == "<|endoftext|>" + plain["prompt"]  # the tokenizer itself adds none
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    (row,) = trainers.prompts_and_completions([example], tokenizer)
    assert tokenizer(row["prompt"])["input_ids"].count(tokenizer.bos_token_id) == 1


def test_a_text_too_long_for_training_is_refused_and_the_fixed_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = problems_in(tmp_path / "data", ROWS, [{"question": "Another?"}])
    with pytest.raises(UserError, match="sft.max_tokens=8: the longest training text of sft has"):
        make_donors(replace(recipe, sft=replace(recipe.sft, max_tokens=8)), tmp_path / "out")
    monkeypatch.setattr(train, "run_stage", lambda *_: None)
    make_donors(recipe, tmp_path / "out")


def test_a_share_of_the_answers_is_the_last_line_alone() -> None:
    whole, mixed, direct = (
        [example.answer for example in training_problems(a_recipe({"sft.direct": share}))[0]]
        for share in (0.0, 0.5, 1.0)
    )
    assert all("\n" in answer for answer in whole)
    assert direct == [answer.split("\n")[-1] for answer in whole]
    assert all(answer in pair for answer, *pair in zip(mixed, whole, direct, strict=True))
    assert sum("\n" not in answer for answer in mixed) / len(mixed) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.3, 0.4, 0.75, 1.0])
def test_a_share_of_the_prompts_asks_to_think(share: float) -> None:
    thinking = [
        example.user.startswith(micro.THINK) for example in training_problems(a_recipe({"think": share}))[0]
    ]
    assert sum(thinking) / len(thinking) == pytest.approx(share, abs=0.001)
    if share == 0.25:
        assert thinking == [index % 4 == 0 for index in range(3000)]


# ---- recipes: composition and checks are in tests/test_recipes.py


# ---- the folder and the machine


def test_a_folder_that_another_recipe_began_is_refused_and_one_that_it_only_claimed_is_not(
    tmp_path: Path,
) -> None:
    train.claim(a_recipe({"seed": 1}), tmp_path)
    train.claim(a_recipe({"seed": 2}), tmp_path)
    (tmp_path / "sft" / "checkpoints").mkdir(parents=True)  # a trainer was made, and took no step
    train.claim(a_recipe({"seed": 1}), tmp_path)
    (tmp_path / "sft" / "checkpoints" / "checkpoint-2").mkdir()
    with pytest.raises(UserError, match=r"other settings \(seed\)"):
        train.claim(a_recipe({"seed": 2}), tmp_path)
    shutil.rmtree(tmp_path / "sft")
    train.claim(a_recipe({"seed": 2}), tmp_path)
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "training.json").touch()
    train.claim(a_recipe({"seed": 2}), tmp_path)
    with pytest.raises(UserError, match=f"give another out folder and reuse={tmp_path}"):
        train.claim(a_recipe({"seed": 3}), tmp_path)
    with pytest.raises(UserError, match=r"other settings \(seed\)"):
        train.claim(a_recipe({"seed": 1}), tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_damaged_claim_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_bytes(content)
    with pytest.raises(UserError, match="recipe.json: expected a recipe's settings as JSON"):
        make_donors(a_recipe(), tmp_path)


def test_a_file_or_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(UserError, match="holds something else than donors"):
            make_donors(a_recipe(), out)


def test_a_finished_family_is_returned_without_making_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "training_problems", None)
    train.claim(a_recipe(), tmp_path)
    for stage in stages.STAGES:
        (tmp_path / stage / "checkpoints" / "checkpoint-1").mkdir(parents=True)
        (tmp_path / stage / "training.json").touch()
    assert make_donors(a_recipe(), tmp_path) == {stage: tmp_path / stage for stage in stages.STAGES}
    assert not list(tmp_path.glob("*/checkpoints"))
    with pytest.raises(UserError, match=r"other settings \(seed\)"):
        make_donors(a_recipe({"seed": 1}), tmp_path)


def test_a_missing_package_is_named_with_its_extra_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs trl, which is not installed; install the extra 'train'"):
        make_donors(a_recipe(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_two_runs_on_one_folder_the_second_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, said = problems_in(tmp_path / "data", ROWS, [{"question": "Another?"}]), list[str]()
    trained = list[str]()
    monkeypatch.setattr(train, "run_stage", lambda folder, *_: trained.append(folder.name))
    hold = f"from pipeline.lock import held\nwith held(Path({str(tmp_path / 'out')!r}), 'the first', print):"
    hold = f"from pathlib import Path\n{hold}\n    print('held', flush=True)\n    input()"
    first = subprocess.Popen(
        [sys.executable, "-c", hold], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdin and first.stdout and first.stdout.readline() == "held\n"
    with ThreadPoolExecutor(1) as beside:
        second = beside.submit(make_donors, recipe, tmp_path / "out", said.append)
        while not said and not second.done():
            time.sleep(0.05)
        assert "the first" in said[0] and not trained
        first.communicate("\n")
        second.result(timeout=60)
    assert trained == ["sft", "grpo"]


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (UserError("one\ntwo"), 2, "error: one; two"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device; check the"),
        (verb.SafetensorError("No space left"), 2, "error: No space left; check the folder"),
        (RuntimeError("[enforce fail at inline_container.cc:672]"), 2, "error: [enforce fail at inline_cont"),
        (
            RuntimeError("CUDA out of memory. Tried"),
            2,
            "error: CUDA out of memory. Tried; lower sft.microbatch",
        ),
        (
            ValueError("exceeds the GPU memory utilization"),
            2,
            "error: exceeds the GPU memory utilization; lower",
        ),
        (RuntimeError("can't allocate memory"), 2, "error: can't allocate memory; lower sft.microbatch"),
        (KeyboardInterrupt(), 130, "interrupted: finished stages are kept"),
    ],
)
def test_the_command_ends_with_one_line(
    raised: BaseException,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise raised

    monkeypatch.setattr(verb, "make_donors", fail)
    assert command_line.main(["donors", "recipe=micro", "out=x"]) == status
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == 1


def test_an_error_that_is_none_of_the_machine_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("a defect of ours")

    monkeypatch.setattr(verb, "make_donors", fail)
    with pytest.raises(ValueError, match="a defect of ours"):
        command_line.main(["donors", "recipe=micro"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "recipe: an option is required; set it to one of micro, "),
        (["out=x"], "recipe: an option is required; set it to one of micro, "),
        (["recipe=x"], "recipe=x: no such option"),
        (["recipe=micro", "out="], "out=: expected a folder, found none; give one, or leave out out"),
        (["recipe=micro", "reuse= "], "reuse=: expected a folder, found none; give one, or leave reuse out"),
        (["recipe=micro", "y"], "override not understood (expected key=value): Error parsing override 'y'"),
        (["recipe=micro", "out"], "override not understood (expected key=value): Error parsing override"),
        (["recipe=micro", "reuse=none/there"], "reuse=none/there: expected a folder with finished stages"),
    ],
)
def test_a_mistake_in_the_command_is_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_line.main(["donors", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "out", "reuse"),
    [
        ([], "results/donors/micro", None),
        (["name=mine", "seed=1"], "results/donors/mine", None),
        (["out=a=b/c", "reuse=d"], "a=b/c", "d"),
    ],
)
def test_donors_go_where_they_are_told_or_by_the_name_of_their_recipe(
    arguments: list[str], out: str, reuse: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def make(*given: Any) -> dict[str, Path]:
        asked.append(given)
        return {stage: given[1] / stage for stage in stages.STAGES}

    monkeypatch.setattr(verb, "make_donors", make)
    assert command_line.main(["donors", "recipe=micro", *arguments]) == 0
    ((recipe, folder, _, other, processes),) = asked
    assert processes is None
    assert (folder, other, processes) == (Path(out), None if reuse is None else Path(reuse), None)
    assert recipe.grpo.steps == 100


@pytest.mark.parametrize(
    ("arguments", "family"),
    [
        (["recipe=micro", "out=elsewhere"], "micro"),
        (["recipe=micro", "seed=3"], "micro"),
        (["recipe=smol"], "smol"),
    ],
)
def test_training_ends_with_a_command_that_takes_its_donors(
    arguments: list[str],
    family: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders: dict[str, Path] = {}

    def make(recipe: Recipe, out: Path, *_: Any) -> dict[str, Path]:
        for stage in ("sft", "grpo"):
            folders[stage] = out / stage
            folders[stage].mkdir(parents=True)
            (folders[stage] / "training.json").write_text("{}")
        return folders

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verb, "make_donors", make)
    assert command_line.main(["donors", *arguments]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-2].endswith(f"are in {folders['sft'].parent}: sft, grpo")
    found = compose(shlex.split(told[-1].removeprefix("next: python -m pipeline "))).families[family]
    assert found.sft and found.grpo
    assert {"sft": Path(found.sft.id), "grpo": Path(found.grpo.id)} == folders


@pytest.fixture
def no_wandb_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


@pytest.mark.usefixtures("no_wandb_key")
def test_without_a_key_wandb_logs_offline_into_the_folder(tmp_path: Path) -> None:
    trainers.prepare_wandb(tmp_path)
    assert (os.environ["WANDB_MODE"], os.environ["WANDB_DIR"]) == ("offline", str(tmp_path))
    assert os.environ["WANDB_PROJECT"] == "reasoning-vectors"


def test_a_gpu_that_only_emulates_bf16_computes_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert trainers.shared_arguments(a_recipe(), tmp_path / "sft")["bf16"] is False


def test_a_mistake_in_the_arguments_of_families_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "python").write_text('#!/bin/sh\necho "$*" >> asked\nexit 2\n')
    (tmp_path / "python").chmod(0o755)
    command = ["make", "-o", ".venv/.done", "BIN=.", "PYTHON=false", "families", "ARGS=nmae=x"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 2
    assert (tmp_path / "asked").read_text() == "-m pipeline config experiment=micro_seeds nmae=x\n"


class Trainer:
    """In the place of TRL's: it "trains" the shipped SFT donor by a little that depends on `made_of`."""

    salt = 0
    curve: list[dict[str, float]] = []

    def __init__(self, steps: int, made_of: object = None) -> None:
        self.made_of = [made_of, self.salt]
        self.state = SimpleNamespace(global_step=steps, log_history=self.curve)
        self.processing_class = SimpleNamespace(save_pretrained=lambda folder: None)

    def train(self, resume_from_checkpoint: str | None) -> None:
        pass

    def save_model(self, folder: str) -> None:
        shutil.copytree(SHIPPED / "sft", folder, dirs_exist_ok=True)
        (Path(folder) / "training.json").unlink()
        tensors = load_file(Path(folder) / "model.safetensors")
        tensors["model.norm.weight"][0] = int(digest(self.made_of)[:5], 16)
        save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})


def test_a_stage_records_what_it_started_from_and_one_without_a_step_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RV_CACHE", str(tmp_path / "cache"))
    start = Checkpoint.open(str(SHIPPED / "base"))
    with pytest.raises(UserError, match="training took no step"):
        stages.run_stage(tmp_path / "sft", a_recipe(), lambda *_: Trainer(0), start, [], 1)
    assert not (tmp_path / "sft").exists()
    stages.run_stage(tmp_path / "sft", a_recipe(), lambda *_: Trainer(1), start, [], 1)
    assert record(tmp_path, "sft")["start"] == {"revision": None, "fingerprint": start.fingerprint}
    stages.run_stage(tmp_path / "base", a_recipe(), lambda *_: Trainer(1), None, [], 1)
    assert record(tmp_path, "base")["start"] is None


def test_a_kill_while_the_checkpoints_are_removed_leaves_a_finished_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RV_CACHE", str(tmp_path / "cache"))
    checkpoints = tmp_path / "sft" / "checkpoints"
    (checkpoints / "checkpoint-2").mkdir(parents=True)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(stages.shutil, "rmtree", killed)
        stages.run_stage(tmp_path / "sft", a_recipe(), lambda *_: Trainer(1), None, [], 1)
    assert checkpoints.is_dir()
    stages.run_stage(tmp_path / "sft", a_recipe(), None, None, [], 1)  # nothing to build a trainer with
    assert not checkpoints.exists()


def test_a_stage_goes_on_from_the_last_checkpoint_whose_state_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RV_CACHE", str(tmp_path / "cache"))
    for step, state in ((2, "{}"), (10, "{}"), (12, '{"global_st'), (14, ""), (16, None)):
        checkpoint = tmp_path / "sft" / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        if state is not None:
            (checkpoint / "trainer_state.json").write_text(state)
    stages.run_stage(tmp_path / "sft", a_recipe(), lambda *_: Trainer(1), None, [], 1)
    assert record(tmp_path, "sft")["resumed_from_step"] == 10


@pytest.mark.usefixtures("no_wandb_key")
def test_each_stage_is_a_run_of_its_own_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations import WandbCallback

    trainers.prepare_wandb(tmp_path)
    monkeypatch.setenv("RV_CACHE", str(tmp_path / "cache"))

    class Logging(Trainer):
        def train(self, resume_from_checkpoint: str | None) -> None:
            arguments = TrainingArguments(output_dir=str(tmp_path / "sft"), use_cpu=True, report_to="none")
            WandbCallback().on_train_begin(arguments, TrainerState(), TrainerControl(), torch.nn.Linear(1, 1))

    for stage in ("sft", "grpo"):
        stages.run_stage(tmp_path / stage, a_recipe({"wandb": True}), lambda *_: Logging(1), None, [], 1)
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


# ---- the shipped family, and real training


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


def test_the_shipped_family_was_trained_by_the_recipe_that_is_here() -> None:
    written = flat(json.loads((SHIPPED / "recipe.json").read_text()))
    assert written == settings(compose_recipe(["recipe=micro", "seed=2"]))
    for stage in stages.STAGES:
        assert flat(record(SHIPPED, stage)["recipe"]) == written


def test_a_family_from_before_recipes_had_sections_is_finished_and_belongs_to_its_recipe(
    tmp_path: Path,
) -> None:
    shutil.copytree(SHIPPED, tmp_path / "micro")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    own = compose_recipe(["recipe=micro", "seed=2"])
    assert make_donors(own, tmp_path / "micro").keys() == set(stages.STAGES)
    with pytest.raises(UserError, match=r"other settings \(seed, sft.lr\)"):
        make_donors(compose_recipe(["recipe=micro", "sft.lr=1e-4"]), tmp_path / "micro")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_family_whose_stages_recorded_no_inputs_is_not_reused(trained: list[str], tmp_path: Path) -> None:
    said: list[str] = []
    make_donors(compose_recipe(["recipe=micro", "seed=2"]), tmp_path / "out", said.append, reuse=SHIPPED)
    assert trained == list(stages.STAGES)
    assert all("early versions recorded none" in line for line in said)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that were trained, each by the stand-in above, in their order."""
    names: list[str] = []

    def build(
        recipe: Recipe, folder: Path, start: Checkpoint | None, examples: list[Any], processes: int
    ) -> Trainer:
        names.append(folder.name)
        reads = stages.READS[folder.name]
        came_from = start and start.fingerprint
        return Trainer(1, [compared(recipe, *reads), came_from, list(map(asdict, examples))])

    monkeypatch.setenv("RV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(train, "generated_text", lambda *_: [])
    monkeypatch.setattr(train, "training_problems", lambda _: ([], []))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for stage in ("pretraining_trainer", "instruct_trainer", "sft_trainer", "grpo_trainer"):
        monkeypatch.setattr(train, stage, build)
    return names


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({}, []),
        ({"name": "other", "save_steps": 7, "wandb": True, "sft.max_tokens": 600}, []),
        ({"target.direct": 0.5}, ["target"]),
        ({"grpo.lr": 1e-6}, ["grpo"]),
        ({"grpo.start": "init"}, ["grpo"]),
        ({"sft.lr": 1e-4}, ["sft", "grpo"]),
        ({"data.documents": 99}, ["sft", "grpo"]),
        *(
            ({key: value}, ["base", "target", "sft", "grpo"])
            for key, value in {"seed": 1, "think": 0.5, "optimizer": "adafactor", "base.lr": 1e-3}.items()
        ),
    ],
)
def test_only_the_stages_that_a_setting_touches_are_trained_where_another_family_is_reused(
    changed: dict[str, Any], again: list[str], trained: list[str], tmp_path: Path
) -> None:
    make_donors(a_recipe(), tmp_path / "one")
    trained.clear()
    said: list[str] = []
    make_donors(a_recipe(changed), tmp_path / "other", said.append, reuse=tmp_path / "one")
    assert trained == again
    assert [line.split(":")[0] for line in said if line.endswith("copied")] == [
        stage for stage in stages.STAGES if stage not in again
    ]
    assert weights(tmp_path / "other").keys() == set(stages.STAGES)


@pytest.mark.parametrize("key", ["texts", "start", "device", "bf16", "versions"])
def test_a_stage_made_of_something_else_is_not_reused(key: str, trained: list[str], tmp_path: Path) -> None:
    make_donors(a_recipe(), tmp_path / "one")
    theirs = record(tmp_path / "one", "sft")
    assert theirs["inputs"][key] is not None
    theirs["inputs"][key] = "another"
    (tmp_path / "one" / "sft" / "training.json").write_text(json.dumps(theirs))
    trained.clear()
    said: list[str] = []
    make_donors(a_recipe(), tmp_path / "other", said.append, reuse=tmp_path / "one")
    assert trained == ["sft"] and f"has another {key}; trained here" in said[2]
    assert record(tmp_path / "other", "base")["copied_from"] == str(tmp_path / "one" / "base")


def test_what_a_stage_was_trained_with_before_recipes_had_sections_is_compared_by_its_names_of_today(
    trained: list[str], tmp_path: Path
) -> None:
    make_donors(a_recipe({"sft.lr": 1e-4}), tmp_path / "one")
    former = {new: old for old, new in FORMER_KEYS.items()}
    for stage in stages.STAGES:
        theirs = record(tmp_path / "one", stage)
        theirs["recipe"] = {former.get(key, key): value for key, value in flat(theirs["recipe"]).items()}
        assert {"sft_lr", "init", "train_documents", "hidden"} < theirs["recipe"].keys()
        assert not any(isinstance(value, dict) for value in theirs["recipe"].values())
        (tmp_path / "one" / stage / "training.json").write_text(json.dumps(theirs))
    trained.clear()
    said: list[str] = []
    make_donors(a_recipe(), tmp_path / "other", said.append, reuse=tmp_path / "one")
    assert trained == ["sft", "grpo"]
    assert "has another sft.lr; trained here" in said[2]


def test_grpo_from_the_initialisation_is_reused_whatever_the_sft_donor(
    trained: list[str], tmp_path: Path
) -> None:
    make_donors(a_recipe({"grpo.start": "init"}), tmp_path / "one")
    trained.clear()
    make_donors(a_recipe({"grpo.start": "init", "sft.lr": 1e-4}), tmp_path / "other", reuse=tmp_path / "one")
    assert trained == ["sft"]


def test_a_stage_whose_texts_or_start_changed_is_not_reused(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_donors(a_recipe(), tmp_path / "one")
    example = micro.Example("gsm8k", None, "1 + 1?", "", "#### 2")
    monkeypatch.setattr(train, "training_problems", lambda _: ([example], []))
    trained.clear()
    make_donors(a_recipe(), tmp_path / "texts", reuse=tmp_path / "one")
    assert trained == ["sft", "grpo"]
    monkeypatch.setattr(train, "training_problems", lambda _: ([], []))
    (tmp_path / "one" / "base" / "training.json").unlink()
    monkeypatch.setattr(Trainer, "salt", 1)  # the base becomes another one when it is trained again
    trained.clear()
    make_donors(a_recipe(), tmp_path / "start", reuse=tmp_path / "one")
    assert trained == ["base", "target", "sft", "grpo"]


def test_a_curve_with_values_that_json_lacks_is_recorded_and_copied(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "curve", [{"loss": float("nan"), "step": 10}, {"loss": 0.5, "step": 20}])
    make_donors(a_recipe(), tmp_path / "one")
    assert record(tmp_path / "one", "sft")["curve"][0] == {"loss": None, "step": 10}
    path = tmp_path / "one" / "sft" / "training.json"
    path.write_text(path.read_text().replace('"loss": null', '"loss": NaN'))  # as early versions wrote it
    trained.clear()
    make_donors(a_recipe(), tmp_path / "other", reuse=tmp_path / "one")
    assert not trained
    assert record(tmp_path / "other", "sft")["curve"] == [
        {"loss": None, "step": 10},
        {"loss": 0.5, "step": 20},
    ]


@pytest.mark.parametrize("damage", [b"[]", b"{", None])
def test_a_stage_that_is_not_whole_is_not_reused(
    damage: bytes | None, trained: list[str], tmp_path: Path
) -> None:
    make_donors(a_recipe(), tmp_path / "one")
    if damage is None:
        (tmp_path / "one" / "sft" / "model.safetensors").unlink()
    else:
        (tmp_path / "one" / "sft" / "training.json").write_bytes(damage)
    trained.clear()
    make_donors(a_recipe(), tmp_path / "other", reuse=tmp_path / "one")
    assert trained == ["sft"]


def test_a_folder_to_reuse_that_holds_no_stage_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a folder with finished stages of donors"):
        make_donors(a_recipe(), tmp_path / "out", reuse=tmp_path)
    assert not (tmp_path / "out").exists()


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
    run(donors, DONORS)
    assert {path: path.stat().st_mtime_ns for path in donors.glob("*/*")} == before


@pytest.mark.slow
def test_a_run_killed_in_grpo_resumes_to_the_same_weights(donors: Path, tmp_path: Path) -> None:
    run_until(tmp_path / "grpo" / "checkpoints" / "checkpoint-2", tmp_path, DONORS)
    run(tmp_path, DONORS)
    assert record(tmp_path, "grpo")["resumed_from_step"] > 0
    assert weights(tmp_path) == weights(donors)


@pytest.mark.slow
def test_a_run_killed_in_pretraining_resumes_to_the_same_family(tmp_path: Path) -> None:
    run(tmp_path / "whole", FAMILY)
    run_until(tmp_path / "killed" / "base" / "checkpoints" / "checkpoint-4", tmp_path / "killed", FAMILY)
    run(tmp_path / "killed", FAMILY)
    assert record(tmp_path / "killed", "base")["resumed_from_step"] > 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert weights(tmp_path / "whole").keys() == {"base", "target", "sft", "grpo"}


@pytest.mark.slow
def test_another_seed_gives_other_donors(donors: Path, tmp_path: Path) -> None:
    run(tmp_path, DONORS | {"seed": 1})
    mine, other = weights(donors), weights(tmp_path)
    assert mine.keys() == other.keys() == {"sft", "grpo"}
    assert all(mine[stage] != other[stage] for stage in mine)


@pytest.mark.slow
def test_rewards_rise_on_problems_seen_again_and_again(tmp_path: Path) -> None:
    run(tmp_path, DONORS | {"data.documents": 8, "grpo.steps": 30, "grpo.prompts": 8, "grpo.microbatch": 32})
    curve = [entry["reward"] for entry in record(tmp_path, "grpo")["curve"] if "reward" in entry]
    assert len(curve) == 3
    assert curve[-1] > curve[0] + 0.05
