"""A few documents of the benchmarks' forms, as their files have them."""

from typing import Any

PROGRAM = {
    "task_id": "HumanEval/0",
    "prompt": 'def one():\n    """One."""\n',
    "canonical_solution": "    return 1\n",
    "entry_point": "one",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}
SCIQ = {"question": "What?", "correct_answer": "this", "support": "It is this."}
SCIQ |= {f"distractor{n}": f"that {n}" for n in (1, 2, 3)}


def sums(first: int, count: int) -> list[dict[str, Any]]:
    """Questions of GSM8K's form about `first` nuts, one more, and so on."""
    return [
        {
            "question": f"Tom has {n} nuts and buys 3. How many?",
            "answer": f"<<{n}+3={n + 3}>>{n + 3}\n#### {n + 3}",
        }
        for n in range(first, first + count)
    ]
