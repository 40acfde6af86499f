"""Small Python functions in the form of HumanEval (arXiv 2107.03374): docstring with example, body, check.

A function is one of eleven families with constants filled in; the examples and the check's expected values
are computed by running the canonical solution. Two documents never have the same body.
"""

import random
from typing import Any

WORDS = ["apple", "river", "stone", "cloud", "green", "tiger", "music", "paper"]

# name: (argument, its type, result type, docstring, body); {a} and {b} are constants
FAMILIES = {
    "add": ("x", "int", "int", "Return x plus {a}.", "    return x + {a}\n"),
    "multiply": ("x", "int", "int", "Return x times {a}.", "    return x * {a}\n"),
    "linear": ("x", "int", "int", "Return x times {a} plus {b}.", "    return x * {a} + {b}\n"),
    "shift": ("x", "int", "int", "Return x plus {a}, times {b}.", "    return (x + {a}) * {b}\n"),
    "between": (
        "x",
        "int",
        "bool",
        "Return True if x is greater than {a} and less than {b}.",
        "    return x > {a} and x < {b}\n",
    ),
    "remainder": (
        "x",
        "int",
        "bool",
        "Return True if x plus {a} is divisible by {b}.",
        "    return (x + {a}) % {b} == 0\n",
    ),
    "larger": (
        "numbers",
        "list[int]",
        "list[int]",
        "Return the numbers greater than {a}, each plus {b}.",
        "    return [n + {b} for n in numbers if n > {a}]\n",
    ),
    "smaller": (
        "numbers",
        "list[int]",
        "list[int]",
        "Return the numbers less than {a}, each times {b}.",
        "    return [n * {b} for n in numbers if n < {a}]\n",
    ),
    "total": (
        "numbers",
        "list[int]",
        "int",
        "Return the sum of the numbers greater than {a}, plus {b}.",
        (
            "    total = {b}\n    for n in numbers:\n        if n > {a}:\n            total += n\n"
            "    return total\n"
        ),
    ),
    "count": (
        "numbers",
        "list[int]",
        "int",
        "Return how many numbers are greater than {a} or less than {b}.",
        (
            "    count = 0\n    for n in numbers:\n        if n > {a} or n < {b}:\n            count += 1\n"
            "    return count\n"
        ),
    ),
    "repeat": (
        "text",
        "str",
        "str",
        "Return the first {a} letters of text, repeated {b} times.",
        "    return text[:{a}] * {b}\n",
    ),
}


def _argument(rng: random.Random, kind: str) -> Any:
    if kind == "int":
        return rng.randint(0, 40)
    if kind == "str":
        return rng.choice(WORDS)
    return [rng.randint(0, 40) for _ in range(rng.randint(3, 5))]


def sample(rng: random.Random) -> dict[str, str]:
    """One function with HumanEval's fields, less `task_id`; its check sees two results or more."""
    while True:
        name = rng.choice(list(FAMILIES))
        argument, kind, result, doc, body = FAMILIES[name]
        a, b = rng.randint(2, 4 if kind == "str" else 40), rng.randint(2, 40)
        header, body = f"def {name}({argument}: {kind}) -> {result}:\n", body.format(a=a, b=b)
        scope: dict[str, Any] = {}
        exec(header + body, scope)  # our own text, from the table above
        example, *cases = [(case, scope[name](case)) for case in (_argument(rng, kind) for _ in range(7))]
        if len({repr(value) for _, value in cases}) > 1:
            break
    shown = f"    >>> {name}({example[0]!r})\n    {example[1]!r}\n"
    checks = "".join(f"    assert candidate({case!r}) == {value!r}\n" for case, value in cases)
    return {
        "prompt": f'{header}    """ {doc.format(a=a, b=b)}\n{shown}    """\n',
        "entry_point": name,
        "canonical_solution": body,
        "test": f"\n\ndef check(candidate):\n{checks}",
    }
