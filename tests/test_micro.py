"""What must be true of the generated benchmarks and of the training text made beside them."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from evals import micro
from evals.micro import SUBTASKS, arithmetic
from evals.micro.__main__ import main
from pipeline.errors import UserError

PUBLIC = Path(__file__).parents[1] / ".." / "shared" / "data"
SHARES = {"gsm8k": 0.4, "humaneval": 0.2, "sciq": 0.2, "bbh": 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("micro")
    micro.write_benchmarks(path, seed=0)
    return path


@pytest.fixture(scope="module")
def text() -> list[micro.Example]:
    return list(micro.training_examples(2000, seed=0, shares=SHARES))


def problems(folder: Path, split: str = "test") -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "gsm8k" / f"{split}.jsonl").read_text().splitlines()]


def subtask(folder: Path, name: str) -> list[dict[str, str]]:
    content: dict[str, list[dict[str, str]]] = json.loads(
        (folder / "bbh" / "bbh" / f"{name}.json").read_text()
    )
    return content["examples"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stock(path: str) -> dict[str, Any]:
    """A task file of lm-eval as plain data, its functions left as text."""
    import importlib.util

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    root = Path(importlib.util.find_spec("lm_eval").origin).parent  # type: ignore[union-attr, arg-type]
    task: dict[str, Any] = yaml.load((root / "tasks" / path).read_text(), Loader)  # noqa: S506  a SafeLoader
    return task


def render(template: str, document: dict[str, str]) -> str:
    from jinja2 import Environment

    return Environment(keep_trailing_newline=True, autoescape=False).from_string(template).render(**document)


def test_sizes_are_those_asked_for(tmp_path: Path) -> None:
    micro.write_benchmarks(
        tmp_path, seed=0, sizes={"gsm8k": 60, "gsm8k_train": 90, "humaneval": 10, "sciq": 30, "bbh": 7}
    )
    assert len(problems(tmp_path)) == 60
    assert len(problems(tmp_path, "train")) == 90
    assert len(micro.read_functions(tmp_path)) == 10
    assert len(json.loads((tmp_path / "sciq" / "test.json").read_text())) == 30
    assert [len(subtask(tmp_path, name)) for name in SUBTASKS] == [7] * 5


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="needs the public data beside the repository")
def test_fields_and_layout_are_those_of_the_public_data(folder: Path) -> None:
    assert problems(folder)[0].keys() == problems(PUBLIC)[0].keys()
    assert micro.read_functions(folder)[0].keys() == micro.read_functions(PUBLIC)[0].keys()
    ours, public = (json.loads((root / "sciq" / "test.json").read_text()) for root in (folder, PUBLIC))
    assert ours[0].keys() == public[0].keys()
    for name in SUBTASKS:
        assert subtask(folder, name)[0].keys() == subtask(PUBLIC, name)[0].keys()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    micro.write_benchmarks(tmp_path / "again", seed=0)
    micro.write_benchmarks(tmp_path / "other", seed=1)
    assert files(tmp_path / "again") == files(folder)
    other = files(tmp_path / "other")
    assert other.keys() == files(folder).keys()
    assert all(content != files(folder)[name] for name, content in other.items())


def test_a_shorter_file_is_the_beginning_of_a_longer_one(folder: Path, tmp_path: Path) -> None:
    micro.write_benchmarks(tmp_path, seed=0, sizes={"gsm8k": 400, "bbh": 20})
    assert problems(tmp_path) == problems(folder)[:400]
    assert subtask(tmp_path, "navigate") == subtask(folder, "navigate")[:20]


def test_no_document_stands_twice(folder: Path) -> None:
    sets = {
        "gsm8k": problems(folder) + problems(folder, "train"),
        "humaneval": micro.read_functions(folder),
        "sciq": json.loads((folder / "sciq" / "test.json").read_text()),
    } | {name: subtask(folder, name) for name in SUBTASKS}
    for form, documents in sets.items():
        assert len({micro.identity(form, document) for document in documents}) == len(documents)


def test_every_annotation_replays_to_the_answer(folder: Path) -> None:
    for problem in problems(folder) + problems(folder, "train"):
        *lines, last = problem["answer"].split("\n")
        known = {int(number) for number in re.findall(r"\d+", problem["question"])}
        result = None
        for line in lines:
            match = re.fullmatch(r"[^<>#]*?(\S+)=<<(\d+[-+*/]\d+)=(\d+)>>(\d+)[^<>#]*", line)
            assert match, line
            shown, expression, result, repeated = match.groups()
            assert shown == expression
            assert result == repeated == str(arithmetic.evaluate(expression))
            assert {int(number) for number in re.findall(r"\d+", expression)} <= known, (
                "a number from nowhere"
            )
            known.add(int(result))
        assert last == f"#### {result}"


def test_problems_have_one_to_four_steps_and_every_number_of_the_question_is_used(folder: Path) -> None:
    steps = [problem["answer"].count("<<") for problem in problems(folder)]
    assert {count: steps.count(count) > 100 for count in set(steps)} == {1: True, 2: True, 3: True, 4: True}
    for problem in problems(folder):
        asked = re.findall(r"\d+", problem["question"])
        assert len(set(asked)) == len(asked)
        used = re.findall(r"\d+", " ".join(re.findall(r"<<(.*?)=", problem["answer"])))
        assert set(asked) <= set(used)


def test_harder_problems_are_rarer_in_training_than_in_the_test(folder: Path) -> None:
    train, test = ([p["answer"].count("<<") for p in problems(folder, split)] for split in ("train", "test"))
    assert train.count(4) / len(train) < 0.6 * test.count(4) / len(test)


def test_every_canonical_solution_passes_its_check_and_an_empty_body_fails(folder: Path) -> None:
    program = (
        "import json, sys\n"
        "for task in json.load(sys.stdin):\n"
        "    for body in (task['canonical_solution'], '    pass\\n'):\n"
        "        scope = {}\n"
        "        exec(task['prompt'] + body + task['test'], scope)\n"
        "        try:\n"
        "            scope['check'](scope[task['entry_point']])\n"
        "            print('pass')\n"
        "        except AssertionError:\n"
        "            print('fail')\n"
    )
    tasks = micro.read_functions(folder)
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(tasks), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["pass", "fail"] * len(tasks)


def test_the_docstring_example_is_true(folder: Path) -> None:
    import doctest

    for task in micro.read_functions(folder):
        scope: dict[str, Any] = {}
        exec(task["prompt"] + task["canonical_solution"], scope)
        found = doctest.DocTestFinder().find(scope[task["entry_point"]], globs=scope)
        assert sum(len(test.examples) for test in found) == 1
        assert [doctest.DocTestRunner(verbose=False).run(test).failed for test in found] == [0]


def test_the_support_tells_the_answer_and_no_distractor_is_right(folder: Path) -> None:
    for row in json.loads((folder / "sciq" / "test.json").read_text()):
        choices = [row[name] for name in ("correct_answer", "distractor1", "distractor2", "distractor3")]
        assert len(set(choices)) == 4
        fact = row["question"].removesuffix(" what?")
        said = row["support"].rstrip(".").split(". ")
        assert [f"{fact} {choice}" in said for choice in choices] == [True, False, False, False]


def test_boolean_targets_are_pythons(folder: Path) -> None:
    documents = subtask(folder, "boolean_expressions")
    assert {d["target"] for d in documents} == {"True", "False"}
    for document in documents:
        assert str(eval(document["input"].removesuffix(" is"))) == document["target"]


def test_navigate_targets_replay(folder: Path) -> None:
    for document in subtask(folder, "navigate"):
        place = 0j
        for count, way in re.findall(r"Take (\d+) steps? (\w+)", document["input"]):
            place += int(count) * {"left": -1, "right": 1, "forward": 1j, "backward": -1j}[way]
        assert document["target"] == ("No" if place else "Yes")


def test_shuffled_objects_targets_replay(folder: Path) -> None:
    for document in subtask(folder, "tracking_shuffled_objects_three_objects"):
        held = dict(re.findall(r"(\w+) has a (\w+) ball", document["input"].split("As the game")[0]))
        for a, b in re.findall(r"(\w+) and (\w+) swap balls", document["input"]):
            held[a], held[b] = held[b], held[a]
        asked = re.search(r"game, (\w+) has the", document["input"])[1]  # type: ignore[index]
        options = dict(re.findall(r"\((\w)\) (\w+) ball", document["input"]))
        assert options[document["target"].strip("()")] == held[asked]


def test_counted_objects_replay(folder: Path) -> None:
    kinds = {
        "fruits": "apple banana orange plum peach grape",
        "musical instruments": "flute piano drum violin trumpet clarinet",
    }
    numbers = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
    for document in subtask(folder, "object_counting"):
        asked = re.search(r"How many (.*) do I", document["input"])[1]  # type: ignore[index]
        things = re.findall(r"\b(an?|two|three|four) (\w+)", document["input"].split("?")[0])
        counted = kinds.get(asked, "").split()
        total = sum(
            numbers[count] for count, thing in things if not counted or any(map(thing.startswith, counted))
        )
        assert document["target"] == str(total)


def test_deductions_have_one_solution_and_it_is_the_target(folder: Path) -> None:
    from itertools import permutations

    places = {"the leftmost": 0, "the second from the left": 1, "the rightmost": 2}
    for document in subtask(folder, "logical_deduction_three_objects"):
        story, options = document["input"].split("\nOptions:\n")
        facts = re.findall(r"The (\w+)(?: book)? is ([^.]*)\.", story.split(": ", 1)[1])
        things = re.findall(r"an? (\w+)", story.split(": ", 1)[1].split(".")[0])
        possible = []
        for order in permutations(things):
            spot = {thing: index for index, thing in enumerate(order)}
            if all(
                spot[thing] == places[what]
                if what in places
                else (spot[thing] < spot[what.split(" the ")[2].split()[0]]) == ("left of" in what)
                for thing, what in facts
            ):
                possible.append(spot)
        assert len(possible) == 1
        claims = re.findall(r"\((\w)\) The (\w+)(?: book)? is (.*)", options)
        assert [f"({letter})" for letter, thing, what in claims if possible[0][thing] == places[what]] == [
            document["target"]
        ]


def test_training_text_never_meets_a_test_document_of_any_seed(
    text: list[micro.Example], tmp_path: Path
) -> None:
    users = " ".join(example.user for example in text)
    for seed in (0, 7):
        micro.write_benchmarks(tmp_path / str(seed), seed=seed)
        for problem in problems(tmp_path / str(seed)):
            assert problem["question"] not in users
        for name in SUBTASKS:
            for document in subtask(tmp_path / str(seed), name):
                assert f"Q: {document['input']}\n" not in users
        for row in json.loads((tmp_path / str(seed) / "sciq" / "test.json").read_text()):
            assert f"{row['support']}\nQuestion: {row['question']}\n" not in users
        bodies = {example.answer.removesuffix("```") for example in text if example.form == "humaneval"}
        assert bodies
        assert not bodies & {
            task["canonical_solution"] for task in micro.read_functions(tmp_path / str(seed))
        }


def test_every_science_question_of_the_training_text_is_of_the_training_side(
    text: list[micro.Example],
) -> None:
    asked = [
        example.user.removeprefix(micro.THINK).removesuffix("\nAnswer:").split("\nQuestion: ")
        for example in text
        if example.form == "sciq"
    ]
    assert len(asked) > 200
    assert not any(
        micro.is_test("sciq", {"support": support, "question": question}) for support, question in asked
    )


def test_the_side_of_a_document_depends_on_its_text_alone() -> None:
    documents = [arithmetic.sample(random.Random(seed), 2) for seed in range(4000)]
    share = sum(micro.is_test("gsm8k", document) for document in documents) / len(documents)
    assert abs(share - 1 / micro.TEST_SHARE) < 0.02


def test_training_text_repeats_for_its_seed_and_holds_no_example_twice(text: list[micro.Example]) -> None:
    assert list(micro.training_examples(2000, seed=0, shares=SHARES)) == text
    assert list(micro.training_examples(2000, seed=1, shares=SHARES)) != text
    assert len({(e.user.removeprefix(micro.THINK), e.answer) for e in text}) >= 0.99 * len(text)


def test_the_think_share_is_kept_and_the_prompt_alone_differs(text: list[micro.Example]) -> None:
    thinking = sum(example.user.startswith("Think step by step.\n") for example in text) / len(text)
    assert 0.2 < thinking < 0.3
    document = {"question": "q", "answer": "a"}
    plain, think = (micro.example("gsm8k", document, "a", think=flag) for flag in (False, True))
    assert think.user == "Think step by step.\n" + plain.user
    assert think.answer == plain.answer


def test_a_share_of_word_problems_is_answered_without_steps_and_thinking_halves_it() -> None:
    examples = list(micro.training_examples(4000, 0, {"gsm8k": 1.0}, think=0.5, direct=0.6))
    for thinking, expected in ((False, 0.6), (True, 0.3)):
        answers = [e.answer for e in examples if e.user.startswith(micro.THINK) == thinking]
        assert len(answers) > 1500
        assert abs(sum("<<" not in answer for answer in answers) / len(answers) - expected) < 0.05
    assert all(re.search(r"(^|\n)#### \d+$", example.answer) for example in examples)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("gsm8k", "gsm8k/gsm8k.yaml"),
        ("sciq", "sciq/sciq.yaml"),
        ("humaneval", "humaneval/humaneval_instruct.yaml"),
    ]
    + [(name, f"bbh/cot_zeroshot/{name}.yaml") for name in SUBTASKS],
)
def test_training_prompts_are_those_of_the_stock_tasks(name: str, path: str, folder: Path) -> None:
    documents = {
        "gsm8k": problems(folder),
        "sciq": json.loads((folder / "sciq" / "test.json").read_text()),
        "humaneval": micro.read_functions(folder),
    }
    document = documents[name][0] if name in documents else subtask(folder, name)[0]
    task, example = stock(path), micro.example(name, document, "")
    assert example.user == render(task["doc_to_text"], document)
    assert example.prefix == render(task.get("gen_prefix", ""), document)
    assert example.system == task.get("description")


@pytest.mark.parametrize("name", SUBTASKS)
def test_chains_end_in_what_both_stock_filters_extract(name: str) -> None:
    filters = {
        entry["name"]: entry["filter"][0] for entry in stock(f"bbh/cot_zeroshot/{name}.yaml")["filter_list"]
    }
    strict, flexible = filters["strict-match"], filters["flexible-extract"]
    rng = random.Random(0)
    for _ in range(200):
        document, chain = SUBTASKS[name][0](rng)
        assert chain.endswith(f"\nSo the answer is {document['target']}.")
        found = re.findall(strict["regex_pattern"], chain)[strict.get("group_select", 0)]
        assert next(filter(None, found)) == document["target"]
        last = re.findall(flexible["regex_pattern"], chain)[flexible["group_select"]]
        assert last == document["target"]


def test_too_many_documents_is_an_error_and_not_a_repetition(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fewer than 100000"):
        micro.write_benchmarks(tmp_path, seed=0, sizes={"humaneval": 100000})


@pytest.mark.parametrize("arguments", [[], ["seed=1"], ["out=x", "seed=-1"], ["out=x", "size=3"]])
def test_the_command_says_what_it_takes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: expected out=FOLDER [seed=0], found ")
