"""Training text and problems, and the evaluation documents that they must not share."""

import json
import math
import random
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evals import micro
from pipeline import documents, hub
from pipeline.donors.recipe import Recipe
from pipeline.donors.rewards import final_answer
from pipeline.errors import UserError

SOLUTIONS = "humaneval, solutions"  # what a code document is known by: its prompt holds an example drawn anew


def generated_text(recipe: Recipe, stage: str, seed: int) -> list[micro.Example]:
    """Generated text of all four forms for the base or the target."""
    count, arithmetic, direct = (
        getattr(recipe, f"{stage}_{name}") for name in ("examples", "arithmetic", "direct")
    )
    rest = 1 - arithmetic
    shares = {"gsm8k": arithmetic, "humaneval": 0.15 * rest, "sciq": 0.4 * rest, "bbh": 0.45 * rest}
    return list(micro.training_examples(count, seed, shares, recipe.think, direct))


def training_problems(recipe: Recipe) -> tuple[list[micro.Example], dict[str, list[str]]]:
    """The donors' training examples, and the evaluation documents by benchmark: prompts, and solutions of code.

    Raises UserError when they cannot be read, or are too few for a step of GRPO.
    """
    if recipe.data is None:  # trained on problems of the recipe's seed, tested on those of seed 0
        train: Iterable[dict[str, str]] = micro.documents(
            "gsm8k", "train", recipe.seed, micro.SIZES["gsm8k_train"]
        )
        sizes = micro.TEST_SIZES | dict.fromkeys(sorted(micro.SUBTASKS), micro.TEST_SIZES["bbh"])
        held_out = {
            name: [micro.example(name, row, "").user for row in micro.documents(name, "test", 0, sizes[name])]
            for name in ("gsm8k", "sciq", "humaneval", *sorted(micro.SUBTASKS))
        }
        functions = micro.documents("humaneval", "test", 0, sizes["humaneval"])
        held_out[SOLUTIONS] = [row["canonical_solution"] for row in functions]
    elif (folder := Path(recipe.data)).is_dir():
        train = _lines(folder / "gsm8k" / "train.jsonl", "question", "answer")
        test = _lines(folder / "gsm8k" / "test.jsonl", "question")
        held_out = {"gsm8k": [_as_problem(row["question"]) for row in test], **evaluated_documents(folder)}
    else:
        train, test = _from_hub(recipe.data, recipe.data_revision)
        try:
            benchmarks = evaluated_documents(None)
        except UserError as error:
            raise UserError(str(error).replace("set data.folder to", "give data=FOLDER to")) from error
        held_out = {f"{recipe.data}, test": [_as_problem(row["question"]) for row in test], **benchmarks}
    rng = random.Random(f"direct/{recipe.seed}")
    examples = []
    for index, row in enumerate(list(train)[: recipe.train_documents]):
        answer = row["answer"].split("\n")[-1] if rng.random() < recipe.sft_direct else row["answer"]
        think = math.ceil((index + 1) * recipe.think) > math.ceil(index * recipe.think)  # spread evenly
        examples.append(micro.example("gsm8k", row, answer, think))
    if len(examples) < recipe.grpo_prompts:
        raise UserError(
            f"training data: expected at least grpo_prompts={recipe.grpo_prompts} documents, found"
            f" {len(examples)}; give more, or a smaller grpo_prompts"
        )
    return examples, held_out


def _as_problem(question: str) -> str:
    """The prompt of a training problem that asks this."""
    return micro.example("gsm8k", {"question": question}, "").user


def _lines(path: Path, *needed: str) -> list[dict[str, str]]:
    """The rows of a file of GSM8K; UserError for the first that lacks a field."""
    if not path.is_file():
        raise UserError(f"training data: expected {path}, found none; give data a folder that holds gsm8k/")
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            raise UserError(f"{path}, line {number}: expected a JSON object; mend it") from None
        if line.strip():
            rows.append(_row(row, f"{path}, line {number}", needed))
    if not rows:
        raise UserError(f"{path}: expected problems, a JSON object a line, found none")
    return rows


def _row(row: Any, where: str, needed: Iterable[str]) -> dict[str, str]:
    """The row with its texts; UserError where one lacks, or an answer does not end in its number."""
    for field in needed:
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise UserError(f"{where}: expected an object with a text in {field!r}; mend it")
        if field == "answer" and final_answer(row["answer"].rstrip().split("\n")[-1]) is None:
            raise UserError(
                f"{where}: expected an answer whose last line is '#### n', found {row['answer'][-40:]!r}"
            )
    return {field: row[field].rstrip() if field == "answer" else row[field] for field in needed}


def _from_hub(name: str, revision: str | None) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The training and test rows of GSM8K, or of a repository that is laid out like it."""
    from datasets import load_dataset

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"data={name} is neither a folder nor a hub id such as openai/gsm8k; check the spelling"
        )
    folder = hub.fetch(name, revision, kind="dataset")
    try:
        splits = load_dataset(str(folder), "main")
        train, test = list(splits["train"]), list(splits["test"])
    except Exception as error:  # the library has no one type for what it cannot read
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"data={name}: expected GSM8K's splits train and test ({reason})") from error
    return (
        [_row(row, f"{name}, row {n} of train", ("question", "answer")) for n, row in enumerate(train)],
        [_row(row, f"{name}, row {n} of test", ("question",)) for n, row in enumerate(test)],
    )


def evaluated_documents(folder: Path | None) -> dict[str, list[str]]:
    """What the evaluated documents ask, as training problems would: SciQ's, HumanEval's and BBH's, as far as a folder
    holds them (its GSM8K is read with the training split); of the hub those of all four.
    """
    from pipeline.config.compose import compose

    asks = {"sciq": "question", "humaneval": "prompt", "bbh": "input"}
    if folder is None:
        asks["gsm8k"] = "question"
    found = {}
    for name, benchmark in compose(["experiment=paper"]).benchmarks.items():
        subtasks: list[str | None] = [*benchmark.subtasks] or [None]
        for subtask in subtasks if benchmark.form in asks else ():
            dataset = asdict(benchmark.dataset)
            file = dataset["files"]["test"].format(subtask=subtask)
            if folder is None or (folder / file).is_file():
                where = None if folder is None else str(folder)
                rows = documents.load(dataset, where, subtask, form=benchmark.form)["test"]
                found[subtask or name] = [_as_problem(text) for text in rows[asks[benchmark.form]]]
                if "canonical_solution" in rows.column_names:
                    found[SOLUTIONS] = [str(text) for text in rows["canonical_solution"]]
    return found
