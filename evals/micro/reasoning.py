"""Five subtasks in the input style of BIG-Bench Hard (arXiv 2210.09261), each with a short chain of thought.

A sample is the document (`input`, `target`) and the chain, which ends in `So the answer is X.` as the
chains of BIG-Bench Hard's own prompts do.
"""

import itertools
import random
import re

Sample = tuple[dict[str, str], str]

FRUITS = ["apple", "banana", "orange", "plum", "peach", "grape"]
INSTRUMENTS = ["flute", "piano", "drum", "violin", "trumpet", "clarinet"]
FURNITURE = ["chair", "table", "lamp", "bed", "stove", "couch"]
COUNTS = ["", "", "two ", "three ", "four "]
SHELVES = {
    "On a shelf, there are three books": ("{} book", ["red", "blue", "green", "black", "white", "orange"]),
    "On a branch, there are three birds": ("{}", ["robin", "crow", "hawk", "quail", "falcon", "owl"]),
}
BALLS = ["red", "blue", "green", "pink", "black", "white"]


def _answer(target: str) -> str:
    return f"So the answer is {target}."


def _expression(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.25:
        return rng.choice(["True", "False", "not True", "not False"])
    if rng.random() < 0.35:
        return f"{rng.choice(['', 'not '])}( {_expression(rng, depth - 1)} )"
    return f"{_expression(rng, depth - 1)} {rng.choice(['and', 'or'])} {_expression(rng, depth - 1)}"


def _simplify(text: str) -> str:
    """One pass of the first rule that applies: brackets around a value, negations, "and", "or".

    A disjunction waits while a conjunction stands beside it, which is Python's precedence.
    """
    value = "(?:True|False)"
    for pattern, result in (
        (rf"\( ({value}) \)", lambda m: m[1]),
        (rf"not ({value})", lambda m: str(m[1] != "True")),
        (rf"({value}) and ({value})", lambda m: str(m[1] == m[2] == "True")),
        (rf"(?<!and )({value}) or ({value})(?! and)", lambda m: str("True" in m.groups())),
    ):
        simpler = re.sub(pattern, result, text)
        if simpler != text:
            return simpler
    raise ValueError(f"not a Boolean expression: {text}")


def boolean_expressions(rng: random.Random) -> Sample:
    text = ""
    while not 3 <= len(re.findall("True|False", text)) <= 4:
        text = _expression(rng, 3)
    forms = [text]
    while forms[-1] not in ("True", "False"):
        forms.append(_simplify(forms[-1]))
    return {"input": f"{text} is", "target": forms[-1]}, "\n".join(
        ["", *forms[1:], _answer(forms[-1])]
    ).strip()


def object_counting(rng: random.Random) -> Sample:
    kinds = {"fruits": FRUITS, "musical instruments": INSTRUMENTS, "objects": FURNITURE}
    asked = rng.choice(list(kinds))
    present = rng.sample(kinds[asked], rng.randint(2, 5))
    others = [] if asked == "objects" else rng.sample(FURNITURE, rng.randint(0, 2))
    things = rng.sample(present + others, len(present + others))
    listed, lines, total = [], [], 0
    for thing in things:
        count = rng.choice(COUNTS)
        article = "an " if thing[0] in "aeiou" else "a "
        listed.append(f"{count or article}{_plural(thing) if count else thing}")
        if thing in present:
            total += {"": 1, "two ": 2, "three ": 3, "four ": 4}[count]
            lines.append(f"{listed[-1]}: {total}")
    text = f"I have {', '.join(listed[:-1])}, and {listed[-1]}. How many {asked} do I have?"
    return {"input": text, "target": str(total)}, "\n".join([*lines, _answer(str(total))])


def _plural(thing: str) -> str:
    return thing + ("es" if thing.endswith("ch") else "s")


def navigate(rng: random.Random) -> Sample:
    ways = {"left": (-1, 0), "right": (1, 0), "forward": (0, 1), "backward": (0, -1)}
    back = {"left": "right", "right": "left", "forward": "backward", "backward": "forward"}
    while True:
        walk = [(rng.randint(1, 9), rng.choice(list(ways))) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.6:  # else nearly every walk would end elsewhere
            walk += [(count, back[way]) for count, way in walk]
            rng.shuffle(walk)
            if rng.random() < 0.3:
                walk[0] = (rng.randint(1, 9), walk[0][1])
        if 2 <= len(walk) <= 5:
            break
    x = y = 0
    lines, moves = [], []
    for count, way in walk:
        x, y = x + count * ways[way][0], y + count * ways[way][1]
        moves.append(f"Take {count} step{'s' * (count > 1)} {way}.")
        lines.append(f"({x}, {y})")
    target = "Yes" if (x, y) == (0, 0) else "No"
    text = (
        "If you follow these instructions, do you return to the starting point? Always face forward. "
        f"{' '.join(moves)}\nOptions:\n- Yes\n- No"
    )
    return {"input": text, "target": target}, "\n".join([*lines, _answer(target)])


def tracking_shuffled_objects_three_objects(rng: random.Random) -> Sample:
    people = ["Alice", "Bob", "Claire"]
    balls = rng.sample(BALLS, 3)
    held = dict(zip(people, balls, strict=True))
    start = ", ".join(f"{who} has a {ball} ball" for who, ball in held.items()).replace(
        ", Claire", ", and Claire"
    )
    swaps, lines = [], []
    for when in ("First", "Then", "Finally"):
        a, b = rng.sample(people, 2)
        held[a], held[b] = held[b], held[a]
        swaps.append(f"{when}, {a} and {b} swap balls.")
        lines.append(f"{a} and {b} swap balls: " + ", ".join(f"{who}: {ball}" for who, ball in held.items()))
    asked = rng.choice(people)
    target = f"({'ABC'[balls.index(held[asked])]})"
    options = "\n".join(f"({letter}) {ball} ball" for letter, ball in zip("ABC", balls, strict=True))
    text = (
        "Alice, Bob, and Claire are playing a game. At the start of the game, they are each holding a ball: "
        f"{start}.\nAs the game progresses, pairs of players trade balls. {' '.join(swaps)} "
        f"At the end of the game, {asked} has the\nOptions:\n{options}"
    )
    return {"input": text, "target": target}, "\n".join(
        [*lines, f"{asked} has the {held[asked]} ball.", _answer(target)]
    )


def logical_deduction_three_objects(rng: random.Random) -> Sample:
    scene = rng.choice(list(SHELVES))
    form, words = SHELVES[scene]
    order = rng.sample(words, 3)
    places = ["the leftmost", "the second from the left", "the rightmost"]
    facts = [
        rng.choice([f"The {form.format(a)} is to the left of the {form.format(b)}.",
                    f"The {form.format(b)} is to the right of the {form.format(a)}."])
        for a, b in itertools.pairwise(order)
    ]  # fmt: skip
    if rng.random() < 0.5:  # a place in the row and the order of the other two
        at = rng.randrange(3)
        a, b = (thing for thing in order if thing != order[at])
        facts = [
            f"The {form.format(order[at])} is {places[at]}.",
            f"The {form.format(a)} is to the left of the {form.format(b)}.",
        ]
    listed = [("an " if word[0] in "aeiou" else "a ") + form.format(word) for word in rng.sample(order, 3)]
    shown = rng.sample(order, 3)
    asked = rng.randrange(3)
    options = "\n".join(
        f"({letter}) The {form.format(word)} is {places[asked]}"
        for letter, word in zip("ABC", shown, strict=True)
    )
    target = f"({'ABC'[shown.index(order[asked])]})"
    text = (
        "The following paragraphs each describe a set of three objects arranged in a fixed order. "
        f"The statements are logically consistent within each paragraph. {scene}: {listed[0]}, {listed[1]}, "
        f"and {listed[2]}. {' '.join(rng.sample(facts, 2))}\nOptions:\n{options}"
    )
    found = f"The order is: {', '.join(order)}.\nThe {form.format(order[asked])} is {places[asked]}."
    return {"input": text, "target": target}, f"{found}\n{_answer(target)}"


# subtask: (generator, the description that lm-eval's bbh_cot_zeroshot gives as the system message)
SUBTASKS = {
    "boolean_expressions": (boolean_expressions, "Evaluate the result of a random Boolean expression.\n\n"),
    "logical_deduction_three_objects": (
        logical_deduction_three_objects,
        "A logical deduction task which requires deducing the order of a sequence of objects.\n\n",
    ),
    "navigate": (
        navigate,
        (
            "Given a series of navigation instructions, determine whether one would end up back at the "
            "starting point.\n\n"
        ),
    ),
    "object_counting": (
        object_counting,
        "Questions that involve enumerating objects and asking the model to count them.\n\n",
    ),
    "tracking_shuffled_objects_three_objects": (
        tracking_shuffled_objects_three_objects,
        (
            "A task requiring determining the final positions of a set of objects given their initial "
            "positions and a description of a sequence of swaps.\n\n"
        ),
    ),
}
