"""Word problems of one to four steps in the form of GSM8K (arXiv 2110.14168).

Each step of an answer is one line with the computation repeated as `<<a+b=c>>`, and the last line is
`#### n`, so that the annotations can be replayed. Three kinds of story: a quantity that changes (order
matters), amounts defined one by another (order does not), and shopping (two products or a remainder). All
numbers are written as digits, all are positive integers, and no number occurs twice in a question.
"""

import random
import re

NAMES = [
    "Tom",
    "Anna",
    "Ben",
    "Lucy",
    "Sam",
    "Mia",
    "Jack",
    "Ella",
    "Leo",
    "Nora",
    "Max",
    "Ruby",
    "Adam",
    "Kate",
    "Omar",
    "Lily",
    "Paul",
    "Sara",
    "Hugo",
    "Jane",
]
OBJECTS = [
    "apples",
    "books",
    "coins",
    "shells",
    "cards",
    "pens",
    "stamps",
    "eggs",
    "roses",
    "balls",
    "cups",
    "nuts",
]
BOXES = ["boxes", "bags", "jars", "baskets"]
PLACES = ["park", "garden", "shop", "school"]

GAIN = [
    "{n} buys {b} more {o}.",
    "{m} gives {b} {o} to {n}.",
    "Then {n} finds {b} {o} in the {p}.",
    "{n} wins {b} {o} at the {p}.",
]
LOSS = [
    "{n} gives {b} {o} to {m}.",
    "{n} loses {b} {o} at the {p}.",
    "Then {n} sells {b} {o}.",
    "{m} takes {b} {o} from {n}.",
]


class _Unfit(Exception):
    """The drawn numbers leave the allowed range."""


class _Ledger:
    """Draws numbers that have not stood in the question yet and keeps every result within 1..limit."""

    def __init__(self, rng: random.Random, limit: int) -> None:
        self.rng, self.limit = rng, limit
        self.used: set[int] = set()
        self.steps: list[tuple[str, str]] = []  # expression, and the line with {} in its place

    def draw(self, low: int, high: int) -> int:
        numbers = [number for number in range(low, high + 1) if number not in self.used]
        if not numbers:
            raise _Unfit
        number = self.rng.choice(numbers)
        self.used.add(number)
        return number

    def step(self, expression: str, line: str) -> int:
        result = evaluate(expression)
        if not 1 <= result <= self.limit:
            raise _Unfit
        self.steps.append((expression, line))
        return result


def evaluate(expression: str) -> int:
    """The value of `a<op>b` with op one of `+ - * /`; a division must come out even."""
    left, operator, right = re.fullmatch(r"(\d+)([-+*/])(\d+)", expression).groups()  # type: ignore[union-attr]
    a, b = int(left), int(right)
    if operator == "/":
        if b == 0 or a % b:
            raise ValueError(f"{expression} does not come out even")
        return a // b
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


def _changing(ledger: _Ledger, steps: int) -> str:
    """One person's amount that grows and shrinks, sometimes counted in boxes first or shared at the end."""
    rng, (n, m), o, p = (
        ledger.rng,
        ledger.rng.sample(NAMES, 2),
        ledger.rng.choice(OBJECTS),
        ledger.rng.choice(PLACES),
    )
    if rng.random() < 0.3:
        box = rng.choice(BOXES)
        a, b = ledger.draw(2, 12), ledger.draw(2, 12)
        sentences = [f"{n} has {a} {box} with {b} {o} in each."]
        total = ledger.step(f"{a}*{b}", f"{n} has {{}} {o}.")
        steps -= 1
    else:
        total = ledger.draw(5, ledger.limit // 2)
        sentences = [f"{n} has {total} {o}."]
    divisors = [k for k in range(2, 10) if total % k == 0]
    share = steps == 1 and bool(divisors) and rng.random() < 0.3
    for _ in range(steps - share):
        gain = total < 5 or rng.random() < 0.5
        b = ledger.draw(2, ledger.limit // 2 if gain else total - 1)
        sentences.append(rng.choice(GAIN if gain else LOSS).format(n=n, m=m, o=o, p=p, b=b))
        total = ledger.step(f"{total}{'+' if gain else '-'}{b}", f"{n} has {{}} {o}.")
    if share:
        k = rng.choice(divisors)
        if k in ledger.used:
            raise _Unfit
        box = rng.choice(BOXES)
        sentences.append(f"{n} shares the {o} equally among {k} {box}.")
        ledger.step(f"{total}/{k}", f"Each has {{}} {o}.")
        sentences.append(f"How many {o} are in each of the {box}?")
    else:
        sentences.append(f"How many {o} does {n} have now?")
    return " ".join(sentences)


def _relative(ledger: _Ledger, steps: int) -> str:
    """Amounts defined one by another: more than, fewer than, times as many as; sometimes two together."""
    rng, names, o = ledger.rng, ledger.rng.sample(NAMES, 5), ledger.rng.choice(OBJECTS)
    amounts = [ledger.draw(3, ledger.limit // 2)]
    sentences = [f"{names[0]} has {amounts[0]} {o}."]
    together = steps > 1 and rng.random() < 0.4
    for who, before in zip(names[1 : steps + 1 - together], names, strict=False):
        last = amounts[-1]
        kind = rng.choice("+-*") if last <= ledger.limit // 3 else rng.choice("+-")
        b = ledger.draw(2, {"+": ledger.limit // 2, "-": last - 1, "*": 5}[kind])
        words = {"+": "{b} more {o} than", "-": "{b} fewer {o} than", "*": "{b} times as many {o} as"}[kind]
        sentences.append(f"{who} has {words.format(b=b, o=o)} {before}.")
        amounts.append(ledger.step(f"{last}{kind}{b}", f"{who} has {{}} {o}."))
    before, who = names[len(amounts) - 2], names[len(amounts) - 1]
    if together:
        ledger.step(f"{amounts[-2]}+{amounts[-1]}", f"Together they have {{}} {o}.")
        sentences.append(f"How many {o} do {before} and {who} have together?")
    else:
        sentences.append(f"How many {o} does {who} have?")
    return " ".join(sentences)


def _shopping(ledger: _Ledger, steps: int) -> str:
    """Goods at a price each: the cost, the cost of two goods, or what is left of the money."""
    n, (o, q) = ledger.rng.choice(NAMES), ledger.rng.sample(OBJECTS, 2)
    left = steps in (2, 4)
    goods = [o] if steps <= 2 else [o, q]
    buying, costs = [], []
    for good in goods:
        k, price = ledger.draw(2, 12), ledger.draw(2, 12)
        buying.append(f"{n} buys {k} {good} for {price} dollars each.")
        costs.append(ledger.step(f"{k}*{price}", f"The {good} cost {{}} dollars."))
    if len(costs) == 2:
        costs = [ledger.step(f"{costs[0]}+{costs[1]}", "All cost {} dollars.")]
    if not left:
        return " ".join([*buying, f"How many dollars does {n} spend?"])
    money = ledger.draw(costs[0] + 1, ledger.limit)
    ledger.step(f"{money}-{costs[0]}", f"{n} has {{}} dollars left.")
    return " ".join([f"{n} has {money} dollars.", *buying, f"How many dollars does {n} have left?"])


def sample(rng: random.Random, steps: int, limit: int = 100) -> dict[str, str]:
    """One problem, `{"question", "answer"}`, of 1 to 4 `steps`; all numbers lie in 1..`limit`."""
    while True:
        ledger = _Ledger(rng, limit)
        try:
            question = rng.choice([_changing, _relative, _shopping])(ledger, steps)
        except (_Unfit, IndexError):
            continue
        lines = [line.format(f"{e}=<<{e}={evaluate(e)}>>{evaluate(e)}") for e, line in ledger.steps]
        if len(lines) == steps:
            return {
                "question": question,
                "answer": "\n".join([*lines, f"#### {evaluate(ledger.steps[-1][0])}"]),
            }
