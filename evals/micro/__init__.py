"""The micro benchmarks, in the layout and fields of the public ones, and the micro family's training text.

    python -m evals.micro out=data/micro seed=0

Four forms: `gsm8k` (word problems), `humaneval` (small functions), `sciq` (four-way questions) and
`bbh` (five subtasks). A document belongs to the test or to the training side by the hash of what is
asked, so the two sides cannot meet whatever the seed or the size; within one file no document occurs twice.
The same seed gives the same bytes. The prompts of the training text are those of lm-eval's stock tasks
under a chat template: gsm8k, sciq, bbh_cot_zeroshot and humaneval_instruct (lm_eval/tasks/). It covers
nothing of the real benchmarks' knowledge. Of the five subtasks logical_deduction_three_objects is generated and
trained on, and never asked by `conf/suite/micro.yaml`.
"""

import gzip
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evals.micro import arithmetic, code, science
from evals.micro.reasoning import SUBTASKS as SUBTASKS
from pipeline.errors import UserError

FORMS = ("gsm8k", "humaneval", "sciq", "bbh")
SIZES = {
    "gsm8k": 600,
    "gsm8k_train": 3000,
    "humaneval": 100,
    "sciq": 300,
    "bbh": 100,
}  # bbh: for each subtask
TEST_SIZES = {"gsm8k": 2450, "humaneval": 500, "sciq": 500, "bbh": 125}  # the most that an experiment asks
TEST_STEPS = (0.25, 0.25, 0.25, 0.25)  # share of problems with 1, 2, 3, 4 steps
TRAIN_STEPS = (0.40, 0.34, 0.20, 0.06)  # the harder ones are rarer in training
TEST_SHARE = 8  # one in eight possible documents is for testing
THINK = "Think step by step.\n"

Document = dict[str, str]


@dataclass(frozen=True)
class Example:
    """A training example: turns, the start of the assistant's turn that the prompt gives, and its rest."""

    form: str
    system: str | None
    user: str
    prefix: str
    answer: str

    def messages(self) -> list[dict[str, str]]:
        """The turns before the assistant's."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]


def identity(form: str, document: Document) -> str:
    """What a document asks: two documents of one form are the same when this is."""
    fields = {"gsm8k": ("question",), "humaneval": ("canonical_solution",), "sciq": ("support", "question")}
    return "\n".join(document[field] for field in fields.get(form, ("input",)))


def is_test(form: str, document: Document) -> bool:
    """Whether a document belongs to the test side: a property of its text, the same for every seed."""
    return hashlib.sha256(f"{form}\n{identity(form, document)}".encode()).digest()[0] % TEST_SHARE == 0


def documents(name: str, split: str, seed: int, count: int) -> list[Document]:
    """`count` documents of one form or subtask, test or train, no two the same.

    Raises UserError when there are not that many.
    """
    return [document for document, _ in _distinct(name, split, seed, count)]


def write_benchmarks(folder: Path, seed: int, sizes: dict[str, int] | None = None) -> None:
    """Write all four benchmarks under `folder`.

    `gsm8k/{train,test}.jsonl`, `humaneval/HumanEval.jsonl.gz`, `sciq/test.json`,
    `bbh/bbh/<subtask>.json` with the fields of the public sets. `sizes` overrides SIZES, the numbers of
    documents. A shorter file is the beginning of a longer one.
    """
    sizes = SIZES | (sizes or {})
    folder = Path(folder)
    for split, name in (("test", "gsm8k"), ("train", "gsm8k_train")):
        _write(folder / "gsm8k" / f"{split}.jsonl", _lines(documents("gsm8k", split, seed, sizes[name])))
    functions = [
        {"task_id": f"HumanEval/{index}", **document}
        for index, document in enumerate(documents("humaneval", "test", seed, sizes["humaneval"]))
    ]
    # mtime and name left out of the gzip header: the same seed gives the same bytes
    _write(folder / "humaneval" / "HumanEval.jsonl.gz", gzip.compress(_lines(functions), mtime=0))
    questions = documents("sciq", "test", seed, sizes["sciq"])
    _write(folder / "sciq" / "test.json", json.dumps(questions, indent=1).encode())
    for subtask in SUBTASKS:
        examples = documents(subtask, "test", seed, sizes["bbh"])
        _write(
            folder / "bbh" / "bbh" / f"{subtask}.json", json.dumps({"examples": examples}, indent=1).encode()
        )


def read_functions(folder: Path) -> list[Document]:
    """The rows of `humaneval/HumanEval.jsonl.gz` under `folder`."""
    content = gzip.decompress((Path(folder) / "humaneval" / "HumanEval.jsonl.gz").read_bytes())
    return [json.loads(line) for line in content.splitlines()]


def training_examples(
    count: int, seed: int, shares: dict[str, float], think: float = 0.25, direct: float = 0.0
) -> Iterator[Example]:
    """`count` distinct training examples, the four forms in the given `shares`, mixed.

    A share `think` of the prompts begins with "Think step by step.". Of the word problems without it a share
    `direct` is answered by the last line alone, with no steps; with it, half as many.
    """
    rng = random.Random(f"examples/{seed}")
    forms = rng.choices(list(shares), weights=list(shares.values()), k=count)
    names = [rng.choice(list(SUBTASKS)) if form == "bbh" else form for form in forms]
    sources = {name: _distinct(name, "train", seed, names.count(name)) for name in sorted(set(names))}
    for name in names:
        document, answer = next(sources[name])
        thinking = rng.random() < think
        if name == "gsm8k" and rng.random() < (direct / 2 if thinking else direct):
            answer = answer.split("\n")[-1]
        yield example(name, document, answer, thinking)


def example(name: str, document: Document, answer: str, think: bool = False) -> Example:
    """The prompt of lm-eval's stock task for this document, and `answer` as the assistant's words."""
    system, prefix, form = None, "", name
    if name == "gsm8k":
        user = f"Question: {document['question']}\nAnswer:"
    elif name == "sciq":
        user = f"{document['support']}\nQuestion: {document['question']}\nAnswer:"
    elif name == "humaneval":
        user = (
            "Write a solution to the following problem and make sure that it passes the tests:\n"
            f"```python\n{document['prompt']}\n```\n"
        )
        prefix = f"Here is the completed function:\n```python\n{document['prompt']}\n"
    else:
        form, system = "bbh", SUBTASKS[name][1]
        user = f"Q: {document['input']}\nA: Let's think step by step."
    return Example(form, system, (THINK if think else "") + user, prefix, answer)


def _sample(name: str, rng: random.Random, split: str) -> tuple[Document, str]:
    if name == "gsm8k":
        weights = TEST_STEPS if split == "test" else TRAIN_STEPS
        document = arithmetic.sample(rng, rng.choices((1, 2, 3, 4), weights)[0])
        return document, document["answer"]
    if name == "humaneval":
        document = code.sample(rng)
        return document, document["canonical_solution"] + "```"
    if name == "sciq":
        document = science.sample(rng)
        return document, document["correct_answer"]
    return SUBTASKS[name][0](rng)


def _distinct(name: str, split: str, seed: int, count: int) -> Iterator[tuple[Document, str]]:
    """`count` documents of one side with their answers, no two the same.

    Raises UserError when the form has too few different documents.
    """
    rng, seen, misses = random.Random(f"{name}/{split}/{seed}"), set[str](), 0
    while len(seen) < count:
        document, answer = _sample(name, rng, split)
        key = identity(name, document)
        if key in seen or is_test(name, document) != (split == "test"):
            misses += 1
            if misses > 2000:
                raise UserError(f"{name} has fewer than {count} different {split} documents; ask for fewer")
            continue
        seen.add(key)
        misses = 0
        yield document, answer


def _lines(rows: list[Document]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
