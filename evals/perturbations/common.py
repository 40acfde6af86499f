"""What the four families of perturbations share: the registry, sentences, irrelevant facts, typing errors,
number words.

A perturbation is a function of one document. It returns a changed copy, or None for a document that it cannot
change soundly; such documents are left out, never passed through unchanged. Everything random comes from the
generator that it is handed.
"""

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Document = dict[str, Any]


Function = Callable[[Document, random.Random, str | None], Document | None]  # document, generator, subtask


@dataclass(frozen=True)
class Perturbation:
    """A perturbation of one benchmark form.

    `version` is raised whenever the same seed would give other documents; `id` (`larger_numbers.v2`)
    names both and is what goes into a cell's key. `without` are subtasks in which it can change nothing.
    The function's docstring says what changes, what must stay true and the source.
    """

    name: str
    form: str
    version: int
    function: Function
    without: frozenset[str] = frozenset()

    @property
    def id(self) -> str:
        return f"{self.name}.v{self.version}"


REGISTRY: dict[str, dict[str, Perturbation]] = {}


def perturbation(form: str, version: int, without: Iterable[str] = ()) -> Callable[[Function], Function]:
    """Decorator: registers a function under its own name for a benchmark form."""

    def register(function: Function) -> Function:
        REGISTRY.setdefault(form, {})[function.__name__] = Perturbation(
            function.__name__, form, version, function, frozenset(without)
        )
        return function

    return register


# Sentences --------------------------------------------------------------------------------------------------

ABBREVIATION = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|St|Mt|Jr|Sr|vs|etc|No|U\.S|a\.m|p\.m|A\.M|P\.M|e\.g|i\.e|oz|lbs?|ft|in|[A-Z])\.$"
)


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with the white space after it: joined, they give the text back."""
    parts: list[str] = []
    for piece in re.findall(r".+?(?:[.!?]+[\"'”’)]*(?=\s+[A-Z0-9$\"“(])\s+|$)", text, flags=re.DOTALL):
        if parts and ABBREVIATION.search(parts[-1].rstrip()):
            parts[-1] += piece
        else:
            parts.append(piece)
    return parts


# Words that a thing just mentioned could be taken for; a place or a building is no "he" or "she".
REFERS_BACK = re.compile(
    r"\b(?:it|its|they|them|their|this|that|these|those|both|each|there)\b|^(?:\W*\w+\W+){0,2}?(?:another|others?|rest"
    r"|remaining|ones?|then|some|half|all|none|neither|either|such|same|so|also)\b",
    re.IGNORECASE,
)

# Plain facts about things that no question asks for. {n} becomes a number where a number may distract, else
# "many".
FACTS = (
    "The town library keeps {n} atlases on its top shelf.",
    "A museum in another country owns {n} antique clocks.",
    "The old lighthouse on the coast has {n} steps.",
    "A theatre in a distant city stores {n} painted masks.",
    "The castle on the hill has {n} narrow windows.",
    "The chapel in the valley has {n} oak benches.",
    "A harbour office keeps {n} lanterns in its cellar.",
    "A pottery abroad owns {n} clay ovens.",
    "The opera house in the capital has {n} velvet curtains.",
    "A gallery overseas shows {n} marble statues.",
    "The royal palace displays {n} silver crowns.",
    "A workshop in a faraway town owns {n} thimbles.",
    "The mountain hotel has {n} wooden balconies.",
    "An embassy abroad flies {n} coloured flags.",
    "The cathedral in the old quarter has {n} bronze bells.",
    "A mill in the remote north runs {n} looms.",
)


def words(text: str) -> set[str]:
    """The words of four letters or more, without endings: two texts on one topic have some in common."""
    return {re.sub(r"(?:ies|es|s|y)$", "", word) for word in re.findall(r"[a-z]{4,}", text.lower())}


def irrelevant_facts(
    rng: random.Random, text: str, count: int, numbers: Sequence[int] | None = None
) -> list[str]:
    """`count` facts that share no word with `text`, with a number from `numbers` if there are any.

    Returns fewer when the text leaves fewer to choose from.
    """
    common = words("with have from that this their many keep keeps other another owns runs shows town")
    known = words(text) - common
    usable = [fact for fact in FACTS if not words(fact) & known]
    chosen = rng.sample(usable, min(count, len(usable)))
    return [fact.format(n=rng.choice(numbers) if numbers else "many") for fact in chosen]


# Numbers ----------------------------------------------------------------------------------------------------

UNITS: list[str] = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen",
)
TENS: list[str] = re.findall(r"\w+", "zero ten twenty thirty forty fifty sixty seventy eighty ninety")
NUMBER_WORD = re.compile(
    r"\b(?:"
    + "|".join(UNITS + TENS[2:])
    + r"|hundreds?|thousands?|millions?|billions?|dozens?|half|halves|halved?"
    r"|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|twentieths?|once|twice|thrice"
    r"|double[ds]?|triple[ds]?|quadruple[ds]?|first|second|both|pairs?|couples?|single|percent\w*|fold|\w+fold|score)\b",
    re.IGNORECASE,
)


def number_words(value: int) -> str:
    """An integer from 0 to 999 999 999 in English words: 1360 is "one thousand three hundred sixty"."""
    for size, name in ((1_000_000, "million"), (1000, "thousand"), (100, "hundred")):
        if value >= size:
            rest = f" {number_words(value % size)}" if value % size else ""
            return f"{number_words(value // size)} {name}{rest}"
    if value < 20:
        return UNITS[value]
    return TENS[value // 10] + (f"-{UNITS[value % 10]}" if value % 10 else "")


def exact(number: str) -> Fraction:
    """The value of a decimal number as written, commas allowed."""
    return Fraction(number.replace(",", ""))


# Typing errors ----------------------------------------------------------------------------------------------

# Words that one swap or one doubled letter turns into another English word.
CONFUSABLE = re.compile(
    r"angel|angels|angle|angles|bale|bales|ball|balls|barely|barley|barn|barns|bear|beat|beats|beds|been"
    r"|begin|being|bellow|below|betas|bets|biting|bits|blot|blots|board|bolt|bolts|bowel|brag|bran|bred"
    r"|broad|calm|caned|canned|carb|carbs|carton|cartons|cartoon|carve|casual|causal|cause|cavern|choose"
    r"|chop|chops|chose|clam|clot|clots|cloud|coast|colt|colts|coma|comas|comma|commas|coop|coops|coral"
    r"|corps|corral|cost|could|crab|crabs|crave|crops|crud|cups|curd|dairy|desert|dessert|diary|diner"
    r"|diners|dinner|dinners|droops|drops|ears|eats|elbow|eras|fated|feed|field|filed|files|filing|filling"
    r"|fined|finned|fired|fires|flies|flour|form|forth|forty|fried|fries|from|froth|gaol|gird|girl|goal"
    r"|good|grade|grid|hated|holly|hoops|hoot|hoped|hoping|hopping|hops|late|later|latte|latter|lion|lions"
    r"|liter|liters|litters|loin|loins|loose|looses|lose|loses|losing|loss|lots|marital|martial|meds|meet"
    r"|meters|mole|moles|moped|mopped|noted|nuclear|paper|papers|part|parts|pearl|perfect|perform"
    r"|performed|performs|pile|pined|pinned|planed|planned|pole|poll|polls|pots|prat|prefect|puts|quiet"
    r"|quite|rated|rating|ratting|reserve|reverse|ridding|riding|rods|roots|rots|sacred|salt|salts|salve"
    r"|sauce|scared|scaring|scarred|shoots|shot|shots|signing|signs|silt|silver|singing|sings|slat|slats"
    r"|slave|slid|slit|sliver|slop|snog|solid|song|songs|spear|spilt|spit|split|spot|spots|stake|staring"
    r"|starring|steak|steep|step|steps|stoops|stop|stops|striped|stripped|super|supper|taped|taping"
    r"|tapping|tarp|tear|teas|there|three|tins|tired|tires|tons|toons|trail|trails|trap|traps|trial|trials"
    r"|tried|tries|unclear|united|untied|vines|warp|weed|wrap|wraps|writing"
)


def mistype(word: str, rng: random.Random) -> str:
    """The word with two inner letters swapped or one doubled; its first and last letter stay."""
    swaps = [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]]
    if swaps and rng.random() < 0.7:
        i = rng.choice(swaps)
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    i = rng.choice([i for i in range(1, len(word) - 1) if word[i] not in (word[i - 1], word[i + 1])] or [1])
    return word[:i] + word[i] + word[i:]


def mistype_text(text: str, rng: random.Random, keep: Iterable[str] = (), share: float = 0.15) -> str | None:
    """The text with typing errors in about `share` of its plain words, at least two if it has them; None
    without any.

    A plain word has four letters or more, all lower case, stands between white space or sentence punctuation,
    is no number word, no word of `keep` and none that a slip would turn into another word.
    """
    kept = {word.lower() for word in keep}
    spans = [
        match.span()
        for match in re.finditer(r"(?<![^\s(])[a-z]{4,}(?=[.,;:?!)]*(?:\s|$))", text)
        if match.group() not in kept
        and not NUMBER_WORD.fullmatch(match.group())
        and not CONFUSABLE.fullmatch(match.group())
    ]
    if not spans:
        return None
    count = max(min(2, len(spans)), round(share * len(spans)))
    for start, end in sorted(rng.sample(spans, count), reverse=True):
        text = text[:start] + mistype(text[start:end], rng) + text[end:]
    return text
