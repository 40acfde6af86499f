"""What a model is asked, word for word: every benchmark of `authors`, `paper` and `pairs` under every prompt condition.

Read with Qwen2.5's own tokenizer, and kept here with a stand-in whose chat template has the same shape. A system turn of
the template's own stands only where neither prompt nor task has one; nothing follows the assistant's header but the prefill
of a task; no token is put before the text.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.commands.prompt import Prompt, build
from pipeline.config.compose import compose
from pipeline.errors import UserError
from pipeline.evaluate.tasks import load_tokenizer
from pipeline.plan.grid import asked_of, columns, rows
from pipeline.plan.sources import find_sources
from tests.hub import SPECIAL, TEMPLATE

PROBLEM = "Find $x$ if $x+1=3$."
SOLUTION = {"solution": "So $x=2$: $\\boxed{2}$.", "answer": "2"}
STEM = "def add(a: int, b: int) -> int:\n"
DOCUMENTS: dict[str, Any] = {  # the fields of each public file
    "math/aime24.jsonl": {"id": 0, "problem": PROBLEM, **SOLUTION},
    "math/aime25.jsonl": {"problem": PROBLEM, "answer": "2", "id": "0"},
    "math/amc23.jsonl": {"id": 0, "question": PROBLEM, "answer": 2.0},
    "math/minerva_math.jsonl": {"problem": f"{PROBLEM}  ", "solution": SOLUTION["solution"], "idx": 0},
    "math/olympiadbench.jsonl": {"id": 1, "question": PROBLEM, "final_answer": ["2"], "solution": ["…"]},
    "math/math500.jsonl": {"problem": PROBLEM, **SOLUTION},
    "gsm8k/test.jsonl": {"question": "Ann has 2 pens and buys 1. How many?", "answer": "2+1=3\n#### 3"},
    "sciq/test.json": {
        "question": "What melts?",
        **{"distractor1": "steam", "distractor2": "fog", "distractor3": "rain"},
        **{"correct_answer": "ice", "support": "Ice melts."},
    },
    "humaneval/HumanEval.jsonl": {
        "task_id": "HumanEval/0",
        "prompt": f'{STEM}    """ Adds. """\n',
        "entry_point": "add",
        "canonical_solution": "    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    },
    "bbh/bbh/navigate.json": {"input": "Take 1 step. Are you back?", "target": "No"},
}
MATHEMATICS = ("aime24", "aime25", "amc23", "minerva_math", "olympiadbench", "math500", "math500_3000")
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
NAVIGATE = "Given a series of navigation instructions, determine whether one would end up back at the starting point.\n\n"
CODE = f'```python\n{STEM}    """ Adds. """\n\n'
PROGRAM = f"Write a solution to the following problem and make sure that it passes the tests:\n{CODE}```\n"
ENDS = ["</s>", "<|im_end|>", "<|endoftext|>"]


def turns(user: str, system: str = "You are Qwen.", prefill: str = "") -> str:
    """A conversation as Qwen2.5's template writes it, up to the answer."""
    start = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
    return f"{start}<|im_start|>assistant\n{prefill}"


PAPER: dict[
    str, Callable[[str], tuple[str, list[str] | None]]
] = {  # of the prefix: what is asked, and its stops
    "gsm8k": lambda think: (
        turns(f"{think}Question: Ann has 2 pens and buys 1. How many?\nAnswer:"),
        ["Question:", "</s>", "<|im_end|>"],
    ),
    "humaneval": lambda think: (
        turns(think + PROGRAM, prefill=f"Here is the completed function:\n{CODE}"),
        ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
    ),
    "sciq": lambda think: (turns(f"{think}Ice melts.\nQuestion: What melts?\nAnswer:"), None),
    "bbh": lambda think: (
        turns(f"{think}Q: Take 1 step. Are you back?\nA: Let's think step by step.", NAVIGATE),
        ["</s>", "Q:", "<|im_end|>"],
    ),
    "humaneval_instruction": lambda think: (turns(think + PROGRAM), ENDS),
    "sciq_written": lambda think: (
        turns(
            f"{think}Ice melts.\nQuestion: What melts?\nA. steam\nB. fog\nC. rain\nD. ice\n"
            'End with a line "Answer: " and the letter of the right option.'
        ),
        ENDS,
    ),
    "bbh_plain": lambda think: (
        turns(f"{think}Q: Take 1 step. Are you back?\nA:", NAVIGATE),
        ["</s>", "Q:", "<|im_end|>"],
    ),
    "bbh_zeroshot": lambda think: (
        turns(f"{think}Q: Take 1 step. Are you back?\nA:", NAVIGATE),
        ["</s>", "Q:", "<|im_end|>"],
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target's tokenizer, and one document of every benchmark."""
    root = tmp_path_factory.mktemp("prompts")
    for name, document in DOCUMENTS.items():
        path = root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("bbh"):
            path.write_text(json.dumps({"examples": [document]}))
        else:
            path.write_text(json.dumps([document] if name.endswith(".json") else document))
    letters = {letter: number for number, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(SPECIAL)
    (root / "target").mkdir()
    tokenizer.save(str(root / "target" / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[2],
        "chat_template": TEMPLATE,
    }
    (root / "target" / "tokenizer_config.json").write_text(json.dumps(settings))
    return root


def asked(place: Path, experiment: str, benchmark: str, condition: str, *more: str) -> Prompt:
    """The first document of a benchmark under a condition, as a run asks the first family."""
    family = next(iter(compose([f"experiment={experiment}"]).chosen_families()))
    fixed = [f"families=[{family}]", f"families.{family}.target.id={place / 'target'}"]
    fixed += [f"data.folder={place / 'data'}", f"results={place / 'results'}"]
    if experiment != "authors":
        fixed += ["benchmarks.humaneval.dataset.files.test=humaneval/HumanEval.jsonl"]
        fixed += ["benchmarks.humaneval_instruction.dataset.files.test=humaneval/HumanEval.jsonl"]
        fixed += [f"benchmarks.{b}.subtasks=[navigate]" for b in PAPER if b.startswith("bbh")]
    config = compose([f"experiment={experiment}", *fixed, *more])
    sources = find_sources(config)
    (column,) = (c for c in columns(config) if c.name == benchmark)
    (row,) = (r for r in rows(config) if r.name == condition)
    column = asked_of(config.families[family], sources.benchmark(column))
    return build(config, sources, column, row, 0)


def check(found: Prompt, text: str, stops: list[str] | None) -> None:
    assert found.text == text
    assert (found.generation or {}).get("until") == stops


@pytest.mark.parametrize("benchmark", MATHEMATICS)
def test_mathematics_is_the_problem_alone_and_again_with_the_boxed_instruction(
    place: Path, benchmark: str
) -> None:
    stops = ["\n\nQuestion:", *ENDS]
    for condition, text in (
        ("baseline", turns(PROBLEM)),
        ("vector", turns(PROBLEM)),
        ("baseline_boxed", turns(PROBLEM, BOXED)),
        ("grpo_boxed", turns(PROBLEM, BOXED)),
    ):
        found = asked(place, "authors", benchmark, condition)
        check(found, text, stops)
        assert found.target == "2"


@pytest.mark.parametrize("benchmark", PAPER)
def test_the_paper_s_benchmarks_are_asked_as_they_are_and_with_its_sentence_before_the_question(
    place: Path, benchmark: str
) -> None:
    check(asked(place, "paper", benchmark, "baseline"), *PAPER[benchmark](""))
    check(asked(place, "paper", benchmark, "vector_think"), *PAPER[benchmark]("Think step by step.\n"))
    check(asked(place, "pairs", benchmark, "vector"), *PAPER[benchmark](""))


def test_nothing_is_put_before_the_first_turn(place: Path) -> None:
    tokenizer = load_tokenizer(str(place / "target"))
    text = asked(place, "authors", "math500", "baseline").text
    assert tokenizer(text).input_ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_the_turn_of_the_authors_script_can_be_asked_in_its_place(place: Path) -> None:
    change = '+benchmarks.math500.changes.doc_to_text="Question: {{problem}}\nAnswer:"'
    found = asked(place, "authors", "math500", "baseline", change)
    check(found, turns(f"Question: {PROBLEM}\nAnswer:"), ["\n\nQuestion:", *ENDS])


@pytest.mark.parametrize(
    "override",
    [
        r'prompts.think.prefix="Think.\n"',
        r'prompts.boxed.system="One.\nTwo."',
        r'+benchmarks.gsm8k.changes.doc_to_text="{{question}}\nAnswer:"',
    ],
)
def test_a_line_break_that_the_shell_has_not_made_is_refused(override: str) -> None:
    with pytest.raises(UserError) as refused:
        compose(["experiment=paper", override])
    where = override.lstrip("+").partition("=")[0]
    assert str(refused.value).startswith(f"{where}: expected a line break") and "\n" not in str(refused.value)
    compose(["experiment=paper", override.replace(r"\n", "\n")])  # as the shell makes it of $'…'


def test_latex_in_a_prompt_is_no_line_break() -> None:
    system = r'prompts.boxed.system="Say $a \neq b$ in \boxed{}."'
    assert r"\neq" in str(compose(["experiment=paper", system]).prompts["boxed"].system)
