"""Perturbations of GSM8K-like word problems {question, answer}.

The answer carries its computation as `<<48/2=24>>` annotations and ends in `#### n`. `larger_numbers` and
`more_steps` replay that computation in exact arithmetic and leave out every document whose annotations do not
reproduce `n`. The kinds follow GSM-Plus (arXiv:2402.19255: numerical variation, adding operation, digit
expansion, distractor insertion, problem understanding), GSM-IC (arXiv:2302.00093: irrelevant context),
GSM-Symbolic (arXiv:2410.05229: names and numbers) and R-GSM (arXiv:2402.08939: premise order).
"""

import ast
import functools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from evals.perturbations.common import (
    REFERS_BACK,
    Document,
    exact,
    irrelevant_facts,
    mistype_text,
    number_words,
    perturbation,
    sentences,
    words,
)

NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+")
ANNOTATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
FINAL = re.compile(rf"\n#### (-?(?:{NUMBER.pattern}))\s*$")

# The replay -------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def parse_expression(expression: str) -> ast.Expression | None:
    # Numbers become strings: as Python numbers 0.1 would not be exact and 007 would not parse.
    quoted = NUMBER.sub(lambda number: repr(number.group().replace(",", "")), expression)
    try:
        return ast.parse(quoted.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a zero byte, brackets nested too deep
        return None


def evaluate(expression: str, operands: Sequence[Fraction] | None = None) -> Fraction | None:
    """The exact value of an annotation's arithmetic (+ - * / and brackets), or None if it is anything else.

    `operands`, if given, take the places of the expression's numbers, in order.
    """
    replacements = None if operands is None else iter(operands)

    def value(node: ast.AST) -> Fraction:
        match node:
            case ast.Expression():
                return value(node.body)
            case ast.Constant(value=str(number)):
                return Fraction(number) if replacements is None else next(replacements)
            case ast.UnaryOp(op=ast.USub()):
                return -value(node.operand)
            case ast.BinOp():
                left, right = value(node.left), value(node.right)
                match node.op:
                    case ast.Add():
                        return left + right
                    case ast.Sub():
                        return left - right
                    case ast.Mult():
                        return left * right
                    case ast.Div():
                        return left / right
        raise ValueError(expression)

    tree = parse_expression(expression)
    try:
        return None if tree is None else value(tree)
    except (ValueError, ZeroDivisionError, RecursionError, StopIteration):
        return None


def replay(answer: str) -> list[Fraction] | None:
    """The results of an answer's annotations, or None unless each is exact and the last is `#### n`."""
    final = FINAL.search(answer)
    results = []
    for annotation in ANNOTATION.finditer(answer):
        result = evaluate(annotation[1])
        if result is None or result != evaluate(annotation[2]):
            return None
        results.append(result)
    if final is None or not results or results[-1] != exact(final[1]):
        return None
    return results


# Larger numbers ---------------------------------------------------------------------------------------------

# What may follow or precede a number that is not changed: what is a time, an age, a measure of people and
# places or a share would become absurd, what names something would become another thing, and world knowledge
# would be false.
FIXED_AFTER = re.compile(
    r"""(?: % | [-–/:'"°]\d | \d | : | [A-Za-z] | \s*/\s*\d | ['"°\#)]*\s*-?\s*
    (?: (?:more|extra|additional|full|whole|straight|consecutive|working|work|school|business|different|other|long
        |fewer|less|late|early|credit|overtime|new|old|older|younger|sick|vacation|hot|cold|rainy|sunny|week|light)\s+ )?
    (?: percent|years?|yrs?|months?|weeks?|weekends?|days?|nights?|mornings?|hours?|hrs?|minutes?|mins?|seconds?
        |[ap]\.?m\b|[AP]M\b|o'clock|times?\b|decades?|century|centuries|generations?|shifts?|seasons?|semesters?
        |degrees?|mph|kph|miles\ (?:per|an)\ hour|km/h|feet|foot|inch|inches|ft|in\b|cm|tall|th\b|of\b|best
        |-?\ ?(?:sided|legged|wheeled|star|point|grade|piece|pack)|legs?|wheels?|sides?|eyes?|ears?|hands?|arms?
        |fingers?|toes?|wings?|tyres?|tires?|quarters?|halves|sons?|daughters?|sisters?|brothers?|siblings?|children
        |kids?|parents?|cousins?|wives|husbands?|friends?|family|families|grandchildren|grandkids|nieces?|nephews?
        |roommates?|moms?|babies|pregnan\w+|courses?|meals?|bedrooms?|bathrooms?|floors?|stor(?:y|ies)|people|persons?
        |men|women|boys|girls|adults?|digits?|million|billion|thousand|hundred|dozens?|ways?|rounds?|steps?\b|games?
        |classes|members|beds?|cars?|houses?|groups?|teams?|parts?|sections?|kinds?|types?|candidates?|stages?|levels?
        |equal|sets?) )""",
    re.VERBOSE,
)
FIXED_BEFORE = re.compile(
    r"(?:[A-Za-z#]|[-–/:]|\d\s|\d[.,]|[A-Z][a-z]*\s(?:No\.?\s)?|(?:in|of|since|year)\s(?=\d{4}))$"
)

# Problems in which larger numbers may change what has to be computed, or make no sense.
NOT_SCALABLE = re.compile(
    r"""\b(?: age[ds]?|older|younger|years?\ old|born|birthday|calendar|leap|noon|midnight|o'clock|am|pm|[ap]\.m
    |round(?:s|ed|ing)?|nearest|remainder|at\ least|at\ most|minimum|maximum|up\ to|no\ more\ than|exceed\w*|limit\w*
    |threshold|capacity|enough|first\ \d|every\ \d+(?:st|nd|rd|th)|(?:over|under|above|below|between)\ \$?\d
    |(?:if|when|once|after)\ [^.]*(?:more\ than|over)|consecutive|ratio|probability|chance|likely|percentage
    |what\ percent|digit|even\ number|odd\ number|prime|IQ|score[ds]?|grades?|exams?|tests?|quiz\w*|asleep|sleeps?
    |free|weight|speed|fahrenheit|celsius|temperature|square|cube|cubic|area|perimeter|volume|triangle|rectang\w+
    |1\ \w+\ (?:is|has|equals|contains|=) )\b""",
    re.IGNORECASE | re.VERBOSE,
)
# An answer that computes beside its annotations, or with unknowns.
UNANNOTATED = re.compile(
    r"=(?!\s*[$€£]?\s*<<)|\d[a-z]\b|\b[b-zA-HJ-Z]\s*[-+*/=]|[-+*/=]\s*[b-zA-HJ-Z]\b|\bx\b(?!\s*[$\d])"
)

# Constants that a solution may use without the question giving them, and what in the question calls for them.
IMPLICIT = {
    "0": "", "1": "", "2": "", "3": "yard|feet|foot|third|tripl", "4": "month|week|quarter|season",
    "5": "nickel|week|cent", "6": "insect|week", "7": "week|day", "8": "ounce|gallon|pint|pizza|octop|spider",
    "10": "decade|dime|ten", "12": "month|year|dozen|inch|foot|feet|annual", "15": "quarter", "16": "ounce|pound",
    "20": "score", "24": "hour|day", "25": "quarter", "28": "february|week", "30": "month|day|half|minute",
    "31": "month|day|march|may|july", "36": "inch|yard", "48": "hour|day|week", "52": "week|year",
    "60": "hour|minute|second", "100": "percent|%|cent|penn|meter|hundred", "365": "day|year|daily",
    "1000": "kilo|gram|liter|milli|thousand|ton|km|kg", "3600": "second", "0.01": "percent|%|cent|penn",
    "0.05": "nickel", "0.1": "dime|ten", "0.25": "quarter", "0.5": "half",
}  # fmt: skip
SAID = {
    "half": "2 0.5", "halve": "2 0.5", "third": "3", "quarter": "4 0.25", "fourth": "4 0.25", "fifth": "5 0.2",
    "sixth": "6", "seventh": "7", "eighth": "8 0.125", "ninth": "9", "tenth": "10 0.1", "twentieth": "20 0.05",
    "twice": "2", "double": "2", "both": "2", "pair": "2", "couple": "2", "thrice": "3", "triple": "3",
    "tripled": "3", "quadruple": "4", "dozen": "12", "score": "20", "hundred": "100", "thousand": "1000",
    "million": "1000000",
}  # fmt: skip


@dataclass
class Mention:
    """A number in the question: where it stands, its value, and whether it may be changed."""

    span: tuple[int, int]
    value: Fraction
    scalable: bool


def mentions(question: str) -> list[Mention]:
    """The numbers written in digits in a question."""
    found = []
    for match in NUMBER.finditer(question):
        before, after = question[: match.start()], question[match.end() :]
        value = exact(match.group())
        year = 1800 <= value <= 2100 and "," not in match.group() and not before.endswith("$")
        bill = before.endswith("$") and re.match(r"[- ](?:bill|coin|note)s?\b", after)
        fixed = value < 2 or year or bill or FIXED_AFTER.match(after) or FIXED_BEFORE.search(before)
        found.append(Mention(match.span(), value, not fixed))
    return found


def constants(question: str, fixed: set[Fraction]) -> set[Fraction]:
    """Values that a solution may use and that stay: fixed numbers, number words, percentages, conversions."""
    lowered = question.lower()
    known = set(fixed)
    known |= {Fraction(value) for value, cue in IMPLICIT.items() if re.search(cue, lowered)}
    for word in re.findall(r"[a-z]+", lowered):
        known |= {Fraction(value) for value in SAID.get(word.removesuffix("s"), "").split()}
    known |= {Fraction(value) for value in range(1, 100) if re.search(rf"\b{number_words(value)}\b", lowered)}
    for percent in re.findall(r"([\d.]+)\s*(?:%|percent)", lowered):
        share = Fraction(percent.strip(".") or "0") / 100
        known |= {share, 1 - share, 1 + share, 100 - 100 * share, 100 + 100 * share}
    for top, bottom in re.findall(r"(\d+)/(\d+)", question):
        if int(bottom):
            share = Fraction(int(top), int(bottom))
            known |= {share, 1 - share, Fraction(top), Fraction(bottom), Fraction(bottom) - Fraction(top)}
    return known


def like(value: Fraction, written: str) -> str:
    """`value`, which has at most two decimals, written as `written` is: commas, decimals, leading
    zero."""
    decimals = len(written.partition(".")[2])
    while (value * 10**decimals).denominator != 1:
        decimals += 1
    comma = "," if "," in written else ""
    text = f"{Decimal(value.numerator) / Decimal(value.denominator):{comma}.{decimals}f}"
    return text.removeprefix("0") if written.startswith(".") else text


@dataclass
class Slot:
    """A number in the answer and what it may stand for.

    `quantity`: a number of the question with this value; `results`: the earlier steps with this result;
    `constant`: a number that never changes. `step`: the annotation whose result it is, if it is one, with
    the slots of its operands.
    """

    span: tuple[int, int]
    value: Fraction
    quantity: bool
    results: list[int]
    constant: bool
    step: tuple[str, list[int]] | None = None


@dataclass
class Problem:
    """A problem whose answer is linked to its question number by number."""

    question: str
    answer: str
    mentions: list[Mention]
    slots: list[Slot]

    def follow(self, new: dict[Fraction, Fraction]) -> list[Fraction] | None:
        """The values of all slots when the question's quantities take `new` values.

        None unless they follow in one way: a number that may stand for a quantity, for an earlier result or
        for a constant is accepted only if all of these agree on its new value. None too if a result is not
        sensible.
        """
        values: list[Fraction] = []
        results: list[Fraction] = []
        for slot in self.slots:
            if slot.step is not None:
                expression, operands = slot.step
                result = evaluate(expression, [values[i] for i in operands])
                if result is None or not sensible(slot.value, result):
                    return None
                results.append(result)
                values.append(result)
                continue
            candidates = {results[i] for i in slot.results}
            if slot.quantity:
                candidates.add(new.get(slot.value, slot.value))
            if slot.constant:
                candidates.add(slot.value)
            if len(candidates) != 1:
                return None
            values.append(candidates.pop())
        return values

    def rewrite(self, new: dict[Fraction, Fraction], values: list[Fraction]) -> Document:
        """Question and answer with the new numbers, each written in the style of the old one."""
        answer = self.answer
        for slot, value in reversed(list(zip(self.slots, values, strict=True))):
            start, end = slot.span
            answer = answer[:start] + like(value, answer[start:end]) + answer[end:]
        question = self.question
        for mention in reversed(self.mentions):
            if mention.value in new:
                start, end = mention.span
                number = like(new[mention.value], question[start:end])
                article = re.search(r"\b([Aa])n? $", question[:start])
                if article:
                    eight = re.match(r"8|1[18](?:,\d{3})*(?![\d,])", number)
                    start, number = article.start(), f"{article[1]}{'n' if eight else ''} {number}"
                question = question[:start] + number + question[end:]
        return {"question": question, "answer": answer}


def sensible(old: Fraction, new: Fraction) -> bool:
    """Whether a result kept its sign, is whole if it was whole, and has not grown out of all proportion."""
    if old <= 0 or new <= 0 or new > 200 * old or (100 * new).denominator != 1:
        return old == new
    return old.denominator != 1 or new.denominator == 1


def link(document: Document) -> Problem | None:
    """Link a problem's answer to its question, or None if that cannot be done for certain."""
    question, answer = document["question"], document["answer"]
    text = ANNOTATION.sub("<<", answer)
    if replay(answer) is None or NOT_SCALABLE.search(question) or UNANNOTATED.search(FINAL.sub("", text)):
        return None
    found = mentions(question)
    annotations = list(ANNOTATION.finditer(answer))
    literals = [exact(number) for annotation in annotations for number in NUMBER.findall(annotation[1])]
    known = constants(question, {mention.value for mention in found if not mention.scalable})
    # A small number used more often than it is mentioned may be counted from the story ("Ann, Bob and Carl").
    quantities = [mention.value for mention in found]
    known |= {n for n in quantities if n <= 12 and literals.count(n) > quantities.count(n)}
    for mention in found:
        mention.scalable = mention.scalable and mention.value not in known
        # A quantity that the computation does not use may be a restatement of one that it does.
        if mention.scalable and mention.value not in literals:
            return None
    slots: list[Slot] = []
    results: list[Fraction] = []
    for number in NUMBER.finditer(answer):
        value = exact(number.group())
        step = None
        current = annotations[len(results)] if len(results) < len(annotations) else None
        if current is not None and current.start(2) <= number.start() < current.end(2):
            operands = [
                i for i, slot in enumerate(slots) if current.start(1) <= slot.span[0] < current.end(1)
            ]
            step = (current[1], operands)
        earlier = [i for i, result in enumerate(results) if result == value]
        slots.append(Slot(number.span(), value, value in quantities, earlier, value in known, step))
        if step is not None:
            results.append(value)
    # The number after "####" is the last result and nothing else.
    slots[-1] = Slot(slots[-1].span, slots[-1].value, False, [len(results) - 1], False)
    return Problem(question, answer, found, slots)


def larger(value: Fraction, rng: random.Random) -> Fraction:
    """A value two to five times as large, with as many decimals and trailing zeros as the old one."""
    step = Fraction(1)
    while (value / step).denominator != 1:
        step /= 10
    while value >= 100 * step and (value / (10 * step)).denominator == 1:
        step *= 10
    if step < 1 and (value * 20).denominator == 1:
        step = Fraction(1, 20)
    return step * rng.randint(int(2 * value / step), int(5 * value / step))


@perturbation("gsm8k", version=2)
def larger_numbers(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """Quantities of the question grow two to five times; the answer is replayed with them.

    Changes: numbers in digits that are amounts (not times, ages, percentages, measures of people, names or
    number words), every occurrence of a value alike, in question and answer. Must stay true: the computation
    is the same one on other numbers, every step stays positive and whole where it was whole, the order of the
    changed quantities is kept, and the result differs from the old one. Left out: documents whose annotations
    do not reproduce the answer, or in which one number could stand for two things with different new values.
    Source: "extended numerical ranges" of arXiv:2509.01363; digit expansion and numerical variation of
    GSM-Plus.
    """
    problem = link(document)
    if problem is None:
        return None
    values = sorted({mention.value for mention in problem.mentions if mention.scalable})
    if not values:
        return None
    for attempt in range(160):
        # Any larger numbers first, then multiples, which divide as the old ones did, then one factor for all.
        if attempt < 80:
            choice = [larger(value, rng) for value in values]
        elif attempt < 156:
            choice = [value * rng.randint(2, 5) for value in values]
        else:
            choice = [value * (attempt - 154) for value in values]
        new = dict(zip(values, choice, strict=True))
        follows = problem.follow(new) if sorted(set(choice)) == choice else None
        if follows is not None and follows[-1] != problem.slots[-1].value:
            return {**document, **problem.rewrite(new, follows)}
    return None


# More steps -------------------------------------------------------------------------------------------------

OPERATIONS = (
    ("multiply it by {}", "*", 2, 6),
    ("add {} to it", "+", 11, 60),
    ("subtract {} from it", "-", 2, 40),
)


@perturbation("gsm8k", version=1)
def more_steps(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """The question goes on: two further operations on its result, whose outcome is asked for.

    Changes: two sentences are added to the question and two annotated lines to the answer. Must stay true:
    the original problem word for word, its computation, and a positive outcome. Left out: documents whose
    annotations do not reproduce the answer in exact arithmetic, or whose question does not end in its
    question mark. Source: "more reasoning steps" of arXiv:2509.01363; adding operation of GSM-Plus; GSM-P1
    and P2 of GSM-Symbolic.
    """
    results = replay(document["answer"])
    question = document["question"].rstrip()
    if results is None or not question.endswith("?"):
        return None
    value, steps, lines = results[-1], [], []
    for phrase, sign, low, high in rng.sample(OPERATIONS, 2):
        most = min(high, math.ceil(value) - 1) if sign == "-" else high
        if most < low:
            return None
        number = rng.randint(low, most)
        new = {"*": value * number, "+": value + number, "-": value - number}[sign]
        old_text, new_text = like(value, ""), like(new, "")
        steps.append(phrase.format(number))
        lines.append(f"\n{old_text} {sign} {number} = <<{old_text}{sign}{number}={new_text}>>{new_text}")
        value = new
    added = (
        f" Take the number that answers this question and {', then '.join(steps)}. What number do you get?"
    )
    answer = FINAL.sub("", document["answer"]) + "".join(lines) + f"\n#### {like(value, '')}"
    return {**document, "question": question + added, "answer": answer}


# Words around the same computation --------------------------------------------------------------------------


@perturbation("gsm8k", version=1)
def irrelevant_sentences(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """Two sentences, each with a number, about things that the problem does not ask for.

    Changes: the sentences are put before sentences that do not refer back, never after the question. Must
    stay true: every word of the original, its order and its answer; the new numbers occur nowhere in question
    or answer, and the new sentences share no content word with the question. Source: GSM-IC; GSM-Plus,
    distractor insertion; GSM-NoOp of GSM-Symbolic.
    """
    used = {exact(number) for number in NUMBER.findall(document["question"] + " " + document["answer"])}
    numbers = [number for number in range(11, 99) if number not in used]
    facts = irrelevant_facts(rng, document["question"], 2, numbers)
    if len(facts) < 2:
        return None
    parts = sentences(document["question"].strip())
    if not parts:
        return None
    places = [i for i, part in enumerate(parts) if i == 0 or not REFERS_BACK.search(part)]
    for place, fact in zip(sorted(rng.choices(places, k=2), reverse=True), facts, strict=True):
        parts.insert(place, fact + " ")
    return {**document, "question": "".join(parts)}


@perturbation("gsm8k", version=2)
def typing_noise(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """Typing errors in about a sixth of the plain words of the question.

    Changes: two inner letters swapped or one doubled, in lower-case words of four letters or more. Must stay
    true: every number in digits or words, every name, every sign, and the answer. Source: character-level
    noise of PromptRobust (arXiv:2306.04528) and R2ATA (arXiv:2411.05345).
    """
    question = mistype_text(document["question"], rng)
    return None if question is None else {**document, "question": question}


# Words by which a sentence depends on the ones before it, or on when something happens.
DEPENDENT = re.compile(
    r"""\b(?: he|she|it|its|they|them|their|theirs|his|her|hers|him|this|that|these|those|both|each\ of|there|ones?
    |then|next|later|after\w*|before|finally|first|second|last|previous|following|meanwhile|today|yesterday|tomorrow
    |now|again|still|already|also|another|others?|same|such|rest|remain\w*|left|total|altogether|together|all|everyone
    |instead|however|likewise|so|too|only|other\ half|half\ of|more(?!\ than|\ \w+\ than)|additional|extra|wants?
    |gives?|gave|takes?|took|gets?|got|loses?|lost|buys?|bought|sells?|sold|finds?|found|eats?|ate|uses|used|adds?
    |added|spends?|spent )\b""",
    re.IGNORECASE | re.VERBOSE,
)
STATE = re.compile(
    r"""\b(?: has|have|had|is|are|costs?|weighs?|weighed|needs?|needed|earns?|earned|contains?|holds?|owns?|owned
    |charges?|charged|collected|scored|picked|caught|baked|read|ran|planted|made|makes|works?|worked|drinks?|drank
    |drives?|walks?|runs?|reads?|plays?|sleeps?|chews?|produces?|lays?|grows?|pays?|received? )\b""",
    re.VERBOSE,
)
NAME = re.compile(
    r"\b(?!(?:A|An|In|On|At|For|Each|Every|To|Of|Some|One|Two|Three|The|I|If|From|By|With)\b)[A-Z][a-z]+\b"
)
COMPARED = re.compile(r"\b(?:than|as (?:many|much|old|long|far|big|heavy|tall|fast)\b[\w ]*? as) [A-Z]\w+")


def stands_alone(sentence: str, earlier: str) -> bool:
    """Whether a premise reads the same anywhere: it tells a state and refers to no other sentence."""
    if DEPENDENT.search(sentence) or not STATE.search(sentence) or not re.match(r"[A-Z][a-z'’]* ", sentence):
        return False
    definite = words(" ".join(re.findall(r"\b(?:[Tt]he|[Ee]ach|[Ee]very) ((?:\w+ ?){1,5})", sentence)))
    return not definite & words(earlier) and not sentence.startswith("The ")


@perturbation("gsm8k", version=2)
def sentence_order(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """The premises stand in another order, the question last.

    Changes: sentences that read the same anywhere change places; the first one stays first if others refer to
    it. Must stay true: every sentence word for word, the question at the end, and the answer. Left out:
    problems with a sentence that refers back or tells an event between the movable ones, with one name told
    of in two sentences, or with a question about what is left or that refers back. That is nearly all of GSM8K,
    whose problems are stories; a wider rule (events of one kind, pronouns where there is one person) keeps
    little more, and part of that reads wrong. Source: premise order (arXiv:2402.08939).
    """
    parts = [part.strip() for part in sentences(document["question"].strip())]
    if not parts:
        return None
    premises, question = parts[:-1], parts[-1]
    if not question.endswith("?") or any(part.endswith("?") for part in premises):
        return None
    free = [stands_alone(part, " ".join(premises[:i])) for i, part in enumerate(premises)]
    # Everything up to the last dependent sentence stays where it is.
    start = max((i + 1 for i, alone in enumerate(free) if not alone), default=0)
    told = [NAME.findall(COMPARED.sub("", part)) for part in premises[start:]]
    names = [name for part in told for name in set(part)]
    refers = re.search(
        r"\b(?:left|now|remain\w*|still|then|end up|ends up|after|this|these|those)\b", question
    )
    person = re.search(r"\b(?:he|she|his|her|they|their)\b", question)
    if len(premises) - start < 2 or len(names) > len(set(names)) or refers or (person and len(names) > 1):
        return None
    order = rng.sample(range(start, len(premises)), len(premises) - start)
    if order == sorted(order):
        order = [*order[1:], order[0]]
    return {**document, "question": " ".join([*premises[:start], *(premises[i] for i in order), question])}


# The same numbers, names and units otherwise written --------------------------------------------------------

AMOUNT = re.compile(r"\$ ?(\d[\d,]*(?:\.\d+)?|\.\d+)(?: (hundred|thousand|million|billion))?(/(?=[a-z]))?")
ORDINALS = {1: "first", 2: "second", 3: "third", 5: "fifth", 8: "eighth", 9: "ninth", 12: "twelfth", 20: "twentieth"}  # fmt: skip
PARTS = ("", "", "half", "third", "quarter", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
DETERMINER = re.compile(
    r"\b(?:a|an|the|his|her|its|their|my|our|your|this|that|each|every|one|two|three|four|five|six|\d+) $",
    re.IGNORECASE,
)
# After "five dollars", not after the adjective "five-dollar".
AFTER_AMOUNT = re.compile(
    r"""\W*$ | [.,;:?!)] | \s+(?: per|each|every|apiece|for|a|an|and|or|plus|in|on|to|from|at|of|off|out|over|into|towards?
    |with|without|between|among|during|by|as|than|if|but|when|while|because|since|until|after|before|so|that|which|who
    |the|this|last|what|how|he|she|they|it|his|her|their|is|was|are|were|would|will|had|has|have|does|did|do|not|more
    |less|extra|left|back|now|already|total|altogether|worth|profit|cash|today|daily|weekly|monthly|yearly|annually )\b""",
    re.VERBOSE,
)


def amount_words(number: str, scale: str | None) -> str | None:
    """ "2.74" as "two dollars and seventy-four cents", or None for fractions of a cent."""
    value = exact(number)
    if scale:
        return f"{_decimal_words(number)} {scale} dollars"
    dollars, cents = int(value), (value - int(value)) * 100
    if cents.denominator != 1:
        return None
    said = [f"{number_words(dollars)} dollar{'s' * (dollars != 1)}"] if dollars or not cents else []
    said += [f"{number_words(int(cents))} cent{'s' * (cents != 1)}"] if cents else []
    return " and ".join(said)


def _decimal_words(number: str) -> str:
    whole, _, decimals = number.replace(",", "").partition(".")
    tail = " point " + " ".join(number_words(int(digit)) for digit in decimals) if decimals else ""
    return number_words(int(whole or "0")) + tail


@perturbation("gsm8k", version=1)
def digits_as_words(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """Every number of the question is written in words, with its dollar or percent sign.

    Changes: the question only; "$2.74" becomes "two dollars and seventy-four cents", "20%" "twenty percent",
    "1/4" "one quarter". Must stay true: every value, and the answer. Left out: questions without digits, and
    those with a number that is no plain quantity (a time, a year, a ratio, "25k") or has no good reading in
    words. Source: numerical variation of GSM-Plus.
    """
    text = document["question"]

    def amount(match: re.Match[str]) -> str:
        number, scale, per = match.groups()
        said = amount_words(number, scale)
        after = text[match.end() :]
        if said is None or re.match(r"[-–\w%]|\.\d", after) or (per is None and after.startswith("/")):
            return match.group()
        if not per and not AFTER_AMOUNT.match(after):
            if " and " in said or scale or "cent" in said:
                return match.group()
            if DETERMINER.search(text[: match.start()]):
                said = said.removesuffix("s").replace(" ", "-")
        return said + (" per " if per else "")

    text = AMOUNT.sub(amount, text)

    def fraction(match: re.Match[str]) -> str:
        top, bottom = int(match[2]), int(match[3])
        if not 0 < top < bottom < len(PARTS):
            return match.group()
        part = PARTS[bottom] if top == 1 else "halves" if bottom == 2 else PARTS[bottom] + "s"
        return (f"{number_words(int(match[1]))} and " if match[1] else "") + f"{number_words(top)} {part}"

    text = re.sub(r"(?<![\w.,:/$-])(?:(\d+) )?(\d+)/(\d+)(?![\w/]|\.\d)", fraction, text)

    def ordinal(match: re.Match[str]) -> str:
        value = int(match[1])
        if value > 20:
            return match.group()
        return ORDINALS.get(value) or number_words(value) + "th"

    text = re.sub(r"\b(\d+)(?:st|nd|rd|th)\b", ordinal, text)

    def plain(match: re.Match[str]) -> str:
        number = match.group(1)
        year_or_code = re.fullmatch(r"(?:1[5-9]|20)\d\d|0\d+", number)
        if year_or_code or exact(number) >= 10**9:
            return match.group()
        return _decimal_words(number) + (" percent" if match[2] else "")

    before, after = (
        r"(?<![\w.,:/$#£€'\"-])",
        r"(?:(%)(?!\w)|(?=-[A-Za-z])|(?![\w%:/'’\"°-]|[.,]\d|\s*[x*]\s))",
    )
    text = re.sub(rf"{before}({NUMBER.pattern}){after}", plain, text)
    if re.search(r"\d|\$", text):
        return None
    text = re.sub(r"(^|[.?!]\s+)([a-z])", lambda match: match[1] + match[2].upper(), text)
    return {**document, "question": text}


# Names are told apart only to keep pronouns right; those that are also words or given to both are not listed.
FEMALE = frozenset(
    re.findall(
        r"\w+",
        """
    Mary Sarah Sally Jane Martha Jenny Carla Susan Anna Hannah Maria Jill Emily Lisa Nancy Alice Karen Betty
    Julia Rachel Jenna Jessica Tina Annie Amy Amanda Julie Emma Lily Beth Sara Carrie Cindy Carly Madeline
    Megan Samantha Sandra Anne Lucy Monica Wendy Jennifer Leila Mandy Kate Angela Brenda Stacy Janice Linda
    Brittany Gina Donna Carmen Carol Diane Melissa Olivia Claire Laura Kendra Melanie Tracy Dorothy Kylie Erin
    Becky Tiffany Sophie Jasmine Bella Rebecca Michelle Katie Barbara Gretchen Ella Erica Carolyn Elizabeth
    Tara Maggie Sheila Mia Tanya Ellen Rita Molly Kayla Patricia Helen Elsa Stephanie Marissa Polly Christina
    Clara Greta Marta Ava Tonya Abigail Cheryl Marie Cynthia Judy Marcia Brooke Shelly Milly Alyssa Lola Lana
    Bethany Lauren Pauline Mabel Natalie Marla Lydia Layla Veronica Jessie Paula Danielle Phoebe Christine
    Lara Diana Zoe Nicole Gloria Sophia Beatrice Katy Rosie Josie Lori Naomi Brianna Ruby Chloe Heather Leah
    Tabitha Bonnie Wanda Teresa Alison Betsy Valerie Isabel Louise Alicia Stella Miriam Kelsey Tammy Luna Nora
    Maddie Amelia Peggy Isabella Eliza Hallie Suzanne Catherine Kimberly Nadine Katherine Audrey Vanessa Liza
    Irene Ellie Angie Katrina Sabrina Cathy Lucille Fiona Alexa Theresa Margaret Hazel Lizzy Maya Doris
    Juanita Miranda Matilda Mona Allie Lena Suzy Harriet Lillian Janet Joanna Eva
    """,
    )
)
MALE = frozenset(
    re.findall(
        r"\w+",
        """
    James Tom Bob Peter Tim Mike Jerry Jason Jim Joe Billy Ben Steve Tony Michael Matt Paul Josh Harry Jake
    Adam Carl Jackson Andy George Jeff Jimmy Jacob Ryan Henry David Greg Bobby Brian Johnny Andrew Randy Tommy
    Robert Rick Thomas Kyle Fred Jeremy Kevin Oliver Carlos Aaron Gary Roger Luke Gerald Joseph Toby Martin
    Brandon Dave Joey Daniel William Justin Danny Mason Pete Leo Richard Dan Juan Sean Nick Patrick Anthony
    Diego Simon Barry Samuel Eric Jose Bruce Trevor Manny Nathan Ian Lucas Bert Matthew Walter Mario Mitchell
    Jared Larry Steven Tyler Albert Caleb Phil Bryan Ted Blake Chad Noah Kenny Arthur Brad Calvin Nate Derek
    Javier Connor Charles Stephen Theo Ralph Timothy Gabriel Neil Jayden Ivan Vincent Seth Zack Travis Marco
    Tyson Grayson Jonathan Boris Arnold Tobias Brendan Todd Phillip Joel Jorge Zach Malcolm Raymond Cody Dylan
    Ethan Liam Pedro Ahmed Roy Harold Donald Xavier Dennis Archie Hugo Lance Rodney Troy Alexander Kenneth
    Gordon Joshua Philip Dante Freddy Lloyd Jamal Jasper Howard Gunther Milo Felix Craig Colin Bernie Keith
    Hans Ronald Roberto Jonah Christopher Antonio Julian Timmy Louie Evan Julio Pablo Sebastian Benjamin Alvin
    Barney Louis Maurice Miguel Omar Max Jack John
    """,
    )
)
NEW_FEMALE = ("Ingrid", "Selma", "Vera", "Thelma", "Nadia", "Olga", "Edith", "Camille")
NEW_MALE = ("Oscar", "Victor", "Edgar", "Conrad", "Bruno", "Otto", "Anton", "Ruben")
# What makes a first name part of another name.
BEFORE_NAME = (
    {"St.", "Saint", "Santa", "Lake", "Mount", "Fort", "Mr.", "Mrs.", "Ms.", "Miss", "Dr."} | FEMALE | MALE
)
AFTER_NAME = r"Street|Avenue|Road|Park|School|Elementary|High|Middle|University|College|City|County|Beach|Island|Lake|Hospital|Day"

# (unit, its new name, units of the same kind to which it might be converted)
UNIT_CHANGES = (
    ("mile", "kilometer", r"feet|foot|yards?|inch\w*|kilomet\w*|km|met(?:er|re)s?|mph|mpg|mileage|leagues?"),
    (
        "pound",
        "kilogram",
        r"ounces?|oz|tons?|kilo\w*|kg|grams?|stones?|lbs?|sterling|British|quid|dollars?|cents?",
    ),
    ("gallon", "liter", r"quarts?|pints?|cups?|(?:milli)?lit(?:er|re)s?|ounces?|oz|mpg|ml|inch\w*|feet"),
)
COINS = re.compile(
    r"\b(?:quarters?|dimes?|nickels?|penn\w+|coins?|bills?|euros?|pounds?|yen|pesos?|currenc\w+|exchange rate|usd|us"
    r"|american|u\.s|cents?|bucks?)\b|[€£¥¢]",
    re.IGNORECASE,
)


@perturbation("gsm8k", version=1)
def units_and_names(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """People get other names of the same gender; miles, pounds, gallons and dollars become other units.

    Changes: each known first name throughout question and answer, and each of these units throughout, unless
    the problem names another unit of its kind (so that nothing is ever converted). Must stay true: every
    number, who does what, and the answer. Left out: problems with none of either. Source: names in
    GSM-Symbolic; rephrasing in GSM-Plus.
    """
    question, answer = document["question"], document["answer"]
    both = question + "\n" + answer
    capitalised = set(re.findall(r"\b[A-Z]\w+", both))
    changes = []
    for known, pool in ((FEMALE, NEW_FEMALE), (MALE, NEW_MALE)):
        free = [name for name in pool if name not in capitalised]
        rng.shuffle(free)
        for old in sorted(known & capitalised):
            before = set(re.findall(rf"(\S+) {old}\b", both)) & BEFORE_NAME
            inside = rf"[a-z,] [A-Z]\w+ {old}\b|\b{old}['’s]* (?:{AFTER_NAME})\b|\b{old}(?:-|s\b)|\b{old.lower()}\b"
            if free and not before and not re.search(inside, both):
                new = free.pop()
                changes += [(rf"\b{old}(['’])(?!\w)", new + r"\1s"), (rf"\b{old}\b", new)]
    for unit, new, related in UNIT_CHANGES:
        if not re.search(rf"\b(?:{related})\b", both, re.IGNORECASE):
            changes.append((rf"\b{unit}(?=s?\b)", new))
    if not COINS.search(both):
        changes += [(r"\bdollar(?=s?\b)", "euro"), (r"\$", "€")]
    changed = {**document}
    for field in ("question", "answer"):
        for pattern, new in changes:
            changed[field] = re.sub(pattern, new, changed[field])
    return changed if changed["question"] != question else None
