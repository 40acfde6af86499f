"""Training text and problems, and the evaluation documents that they must not share."""

import json
import math
import random
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import micro
from pipeline import documents, hub
from pipeline.config.compose import compose
from pipeline.donors.recipe import Recipe, TextStage
from pipeline.donors.rewards import final_answer
from pipeline.errors import UserError

if TYPE_CHECKING:  # it takes seconds to import: only training pays
    from datasets import Dataset

Row = dict[str, str]
"""A problem of GSM8K: its question, and its answer where it is one to train on."""


@dataclass(frozen=True)
class HeldOut:
    """The evaluation documents of one benchmark, in the words that training would use."""

    name: str
    texts: list[str]
    are_solutions: bool = False  # of code, whose prompts are drawn with other examples each time


def generated_text(stage: TextStage, seed: int, think: float) -> list[micro.Example]:
    """Generated text of all four forms for the base or the target."""
    rest = 1 - stage.arithmetic
    shares = {"gsm8k": stage.arithmetic, "humaneval": 0.15 * rest, "sciq": 0.4 * rest, "bbh": 0.45 * rest}
    return list(micro.training_examples(stage.examples, seed, shares, think, stage.direct))


def training_problems(recipe: Recipe) -> tuple[list[micro.Example], list[HeldOut]]:
    """The donors' training examples, and the evaluation documents that they must not share.

    Raises:
        UserError: if they cannot be read, or are too few for a step of GRPO.
    """
    rows, held_out = _read(recipe)
    rng = random.Random(f"direct/{recipe.seed}")
    examples = []
    for index, row in enumerate(rows[: recipe.data.documents]):
        answer = row["answer"].split("\n")[-1] if rng.random() < recipe.sft.direct else row["answer"]
        think = math.ceil((index + 1) * recipe.think) > math.ceil(index * recipe.think)  # spread evenly
        examples.append(micro.example("gsm8k", row, answer, think))
    if len(examples) < recipe.grpo.prompts:
        raise UserError(
            f"training data: expected at least grpo.prompts={recipe.grpo.prompts} documents, found"
            f" {len(examples)}; give more, or a smaller grpo.prompts"
        )
    return examples, held_out


def _read(recipe: Recipe) -> tuple[list[Row], list[HeldOut]]:
    """The training rows and what is held out: generated, from a folder, or from the hub."""
    if recipe.data.id is None:
        return _generated_problems(recipe.seed), [*_generated_documents()]
    folder = Path(recipe.data.id)
    if folder.is_dir():
        rows = _lines(folder / "gsm8k" / "train.jsonl", "question", "answer")
        test = _lines(folder / "gsm8k" / "test.jsonl", "question")
        name, documents_of = "gsm8k", folder
    else:
        rows, test = _from_hub(recipe.data.id, recipe.data.revision)
        name, documents_of = f"{recipe.data.id}, test", None
    asked = HeldOut(name, [_as_problem(row["question"]) for row in test])
    return rows, [asked, *evaluated_documents(documents_of)]


@lru_cache(maxsize=1)
def _generated_problems(seed: int) -> list[Row]:
    """The generated problems to train on; not to be changed."""
    return micro.documents("gsm8k", "train", seed, micro.SIZES["gsm8k_train"])


@cache
def _generated_documents() -> tuple[HeldOut, ...]:
    """The documents of the generated benchmarks: training draws from its own seed, evaluation from seed 0."""
    sizes = micro.TEST_SIZES | dict.fromkeys(sorted(micro.SUBTASKS), micro.TEST_SIZES["bbh"])
    held_out = []
    for name in ("gsm8k", "sciq", "humaneval", *sorted(micro.SUBTASKS)):
        rows = micro.documents(name, "test", 0, sizes[name])
        held_out.append(HeldOut(name, [micro.example(name, row, "").user for row in rows]))
    functions = micro.documents("humaneval", "test", 0, sizes["humaneval"])
    solutions = [row["canonical_solution"] for row in functions]
    return *held_out, HeldOut("humaneval, solutions", solutions, are_solutions=True)


def _as_problem(question: str) -> str:
    """The prompt of a training problem that asks this."""
    return micro.example("gsm8k", {"question": question}, "").user


def _lines(path: Path, *needed: str) -> list[Row]:
    """The rows of a file of GSM8K.

    Raises:
        UserError: for a missing or empty file, and for the first row that lacks a field.
    """
    if not path.is_file():
        raise UserError(
            f"training data: expected {path}, found none; set data.id to a folder that holds gsm8k/"
        )
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            raise UserError(f"{path}, line {number}: expected a JSON object; fix it") from None
        if line.strip():
            rows.append(_row(row, f"{path}, line {number}", needed))
    if not rows:
        raise UserError(f"{path}: expected problems, a JSON object a line, found none")
    return rows


def _row(row: Any, where: str, needed: Iterable[str]) -> Row:
    """The texts of a row that was read.

    Raises:
        UserError: if one is missing, or an answer does not end in its number.
    """
    for field in needed:
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise UserError(f"{where}: expected an object with a text in {field!r}; fix it")
        if field == "answer" and final_answer(row["answer"].rstrip().split("\n")[-1]) is None:
            raise UserError(
                f"{where}: expected an answer whose last line is '#### n', found {row['answer'][-40:]!r}"
            )
    return {field: row[field].rstrip() if field == "answer" else row[field] for field in needed}


def _from_hub(name: str, revision: str | None) -> tuple[list[Row], list[Row]]:
    """The training and test rows of GSM8K, or of a repository that is laid out like it.

    Raises:
        UserError: if it is no such repository, cannot be fetched, or a row lacks a field.
    """
    from datasets import load_dataset

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"data.id={name} is neither a folder nor a hub id such as openai/gsm8k; check the spelling"
        )
    folder = hub.fetch(name, revision, kind="dataset")
    try:
        splits = load_dataset(str(folder), "main")
        train, test = list(splits["train"]), list(splits["test"])
    except Exception as error:  # the library has no one type for what it cannot read
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"data.id={name}: expected GSM8K's splits train and test ({reason})") from error
    return (
        [_row(row, f"{name}, row {n} of train", ("question", "answer")) for n, row in enumerate(train)],
        [_row(row, f"{name}, row {n} of test", ("question",)) for n, row in enumerate(test)],
    )


def evaluated_documents(folder: Path | None) -> list[HeldOut]:
    """The documents of the paper's experiment, as training problems that ask the same.

    Args:
        folder: those of SciQ, HumanEval and BBH that are there (its GSM8K is read with the training split); None:
            those of all four, from the hub.

    Raises:
        UserError: if they cannot be read.
    """
    asks = {"sciq": "question", "humaneval": "prompt", "bbh": "input"}
    if folder is None:
        asks["gsm8k"] = "question"
    found = []
    for name, benchmark in compose(["experiment=paper"]).benchmarks.items():
        if benchmark.form not in asks:
            continue
        dataset = asdict(benchmark.dataset)
        subtasks: list[str | None] = [*benchmark.subtasks] or [None]
        for subtask in subtasks:
            if (
                folder is not None
                and not (folder / dataset["files"]["test"].format(subtask=subtask)).is_file()
            ):
                continue
            rows = _test_rows(dataset, folder, subtask, benchmark.form)
            texts = [_as_problem(text) for text in rows[asks[benchmark.form]]]
            found.append(HeldOut(subtask or name, texts))
            if "canonical_solution" in rows.column_names:
                solutions = [str(text) for text in rows["canonical_solution"]]
                found.append(HeldOut(f"{name}, solutions", solutions, are_solutions=True))
    return found


def _test_rows(dataset: dict[str, Any], folder: Path | None, subtask: str | None, form: str) -> "Dataset":
    try:
        where = None if folder is None else str(folder)
        return documents.load(dataset, where, subtask, form=form)["test"]
    except UserError as error:  # its remedy is for experiments
        raise UserError(str(error).replace("set data.folder to", "set data.id to")) from error
