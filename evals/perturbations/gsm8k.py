"""Perturbations of GSM8K-like word problems {question, answer}.

The answer carries its computation as ``<<48/2=24>>`` annotations and ends in ``#### n``. `larger_numbers` and
`more_steps` replay that computation in exact arithmetic and leave out every document whose annotations do not
reproduce ``n``. The kinds follow GSM-Plus (arXiv:2402.19255: numerical variation, adding operation, digit expansion,
distractor insertion, problem understanding), GSM-IC (arXiv:2302.00093: irrelevant context), GSM-Symbolic
(arXiv:2410.05229: names and numbers) and R-GSM (arXiv:2402.08939: premise order).
"""

import ast
import random
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from evals.perturbations.common import (
    REFERS_BACK,
    Context,
    Document,
    exact,
    irrelevant_facts,
    mistype_text,
    number_words,
    perturbation,
    sentences,
)

NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+")
ANNOTATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
FINAL = re.compile(r"\n#### (-?[\d,.]+)\s*$")

# The replay ---------------------------------------------------------------------------------------------------------


def evaluate(expression: str) -> Fraction | None:
    """The exact value of an annotation's arithmetic (+ - * / and brackets), or None if it is anything else."""

    def value(node: ast.AST) -> Fraction:
        match node:
            case ast.Expression():
                return value(node.body)
            case ast.Constant(value=str(number)):
                return Fraction(number)
            case ast.UnaryOp(op=ast.USub()):
                return -value(node.operand)
            case ast.BinOp(op=ast.Add()):
                return value(node.left) + value(node.right)
            case ast.BinOp(op=ast.Sub()):
                return value(node.left) - value(node.right)
            case ast.BinOp(op=ast.Mult()):
                return value(node.left) * value(node.right)
            case ast.BinOp(op=ast.Div()):
                return value(node.left) / value(node.right)
        raise ValueError(expression)

    # Numbers travel as strings: as Python floats 0.1 would not be exact and 007 would not parse.
    quoted = NUMBER.sub(lambda number: repr(number.group().replace(",", "")), expression)
    try:
        return value(ast.parse(quoted.strip(), mode="eval"))
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def replay(answer: str) -> list[Fraction] | None:
    """The results of an answer's annotations in order, or None unless each is exact and the last one is ``#### n``."""
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


# Larger numbers -----------------------------------------------------------------------------------------------------

# What grows linearly without becoming absurd is changed. Times, ages, speeds, percentages, parts of a body and the
# like are not; neither is a number that names something.
ADJECTIVE = (
    r"(?:(?:more|extra|additional|full|whole|straight|consecutive|working|work|school|business|different|other|long"
    r"|fewer|less|late|early|credit|overtime|new|old|older|younger|sick|vacation|hot|cold|rainy|sunny|week|light)\s+)?"
)
FIXED_AFTER = re.compile(
    r"^(?:%|[-–/:'\"°]\d|\d|[A-Za-z]|\s*/\s*\d|['\"°#)]*\s*-?\s*"
    + ADJECTIVE
    + r"(?:percent|years?|yrs?|months?|weeks?"
    r"|weekends?|days?|nights?|mornings?|hours?|hrs?|minutes?|mins?|seconds?|a\.?m\b|p\.?m\b|AM\b|PM\b|o'clock|times?\b"
    r"|degrees?|mph|kph|miles per hour|miles an hour|km/h|feet tall|feet|foot|inch|inches|ft|in\b|cm|tall|th\b|of\b"
    r"|(?:-\s*)?(?:sided|legged|wheeled|star|point|grade|piece|pack)|legs?|wheels?|sides?|eyes?|ears?|hands?|arms?"
    r"|fingers?|toes?|wings?|tires?|tyres?|quarters?|halves|decades?|century|centuries|generations?|shifts?|seasons?"
    r"|sons?|daughters?|sisters?|brothers?|siblings?|children|kids?|parents?|cousins?|wives|husbands?|friends?|family"
    r"|families|best|grandchildren|grandkids|nieces?|nephews?|roommates?|moms?|babies|pregnan\w+|semesters?|courses?"
    r"|meals?|bedrooms?|bathrooms?|floors?|stor(?:y|ies)|people|persons?|men|women|boys|girls|adults?|digits?|million"
    r"|billion|thousand|hundred|dozens?|ways?|rounds?|steps?\b|grade|games?|classes|members|beds?|cars?|houses?))",
)
FIXED_BEFORE = re.compile(
    r"(?:[A-Za-z#]|\d[-–/:]|[-–/:]|\d\s|\d[.,]|[A-Z][a-z]*\s(?:No\.?\s)?|(?:in|of|since|year)\s(?=\d{4}))$"
)

# Problems in which larger numbers may change what has to be computed, or make no sense.
NOT_SCALABLE = re.compile(
    r"\b(?:age[ds]?|older|younger|years? old|born|birthday|round(?:s|ed|ing)?|nearest|at least|at most|minimum|maximum"
    r"|up to|exceed\w*|limit\w*|capacity|first \d|every \d+(?:st|nd|rd|th)|no more than|remainder|average speed|leap"
    r"|fahrenheit|celsius|temperature|score[ds]?|consecutive|ratio|probability|chance|likely|digit|even number"
    r"|odd number|a\.m|p\.m|am|pm|noon|midnight|o'clock|IQ|calendar|prime|(?:if|when|once|after) [^.]*(?:more than|over)"
    r"|threshold|over \$?\d|under \$?\d|above \$?\d|below \$?\d|between \d|enough|grades?|exams?|tests?|quiz\w*"
    r"|asleep|sleeps?|1 \w+ (?:is|has|equals|contains|=)|square|cube|cubic|area|perimeter|volume|triangle|rectang\w+|percentage|what percent)\b",
    re.IGNORECASE,
)
# An answer's line that computes beside the annotations, or with unknowns.
UNANNOTATED = re.compile(
    r"=(?!\s*[$€£]?\s*<<)|\d[a-z]\b|\b[b-zA-HJ-Z]\s*[-+*/=]|[-+*/=]\s*[b-zA-HJ-Z]\b|\bx\b(?!\s*[$\d])"
)

# Constants that a solution may use without the question giving them, and the words that call for them.
IMPLICIT = {
    "7": r"week|day", "52": r"week|year", "365": r"day|year|daily", "30": r"month|day|half|minute", "31": r"month|day|march|may|july",
    "12": r"month|year|dozen|inch|foot|feet|annual", "24": r"hour|day", "60": r"hour|minute|second", "4": r"month|week|quarter|season",
    "100": r"percent|%|cent|penn|meter|hundred", "0.01": r"percent|%|cent|penn", "3": r"yard|feet|foot|third|tripl", "16": r"ounce|pound",
    "1000": r"kilo|gram|liter|milli|thousand|ton|km|kg", "10": r"decade|dime|ten", "5": r"nickel|week|cent", "25": r"quarter",
    "0.25": r"quarter", "0.5": r"half", "0.1": r"dime|ten", "0.05": r"nickel", "8": r"ounce|gallon|pint|pizza|octop|spider", "20": r"score",
    "36": r"inch|yard", "48": r"hour|day|week", "28": r"february|week", "15": r"quarter", "3600": r"second", "6": r"insect|week",
    "1": "", "2": "", "0": "",
}  # fmt: skip
FRACTION_WORDS = {
    "half": "2 0.5", "halves": "2 0.5", "third": "3", "quarter": "4 0.25", "fourth": "4 0.25", "fifth": "5 0.2", "sixth": "6",
    "seventh": "7", "eighth": "8 0.125", "ninth": "9", "tenth": "10 0.1", "twentieth": "20 0.05", "twice": "2", "double": "2",
    "thrice": "3", "triple": "3", "tripled": "3", "quadruple": "4", "dozen": "12", "both": "2", "pair": "2", "couple": "2",
    "hundred": "100", "thousand": "1000", "million": "1000000", "score": "20",
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
        fixed = (
            value < 2
            or year
            or FIXED_AFTER.match(after)
            or FIXED_BEFORE.search(before)
            or after.startswith(":")
        )
        found.append(Mention(match.span(), value, not fixed))
    return found


def constants(question: str, fixed: set[Fraction]) -> set[Fraction]:
    """Values that a solution may use and that do not change: fixed numbers, number words, percentages, conversions."""
    lowered = question.lower()
    known = set(fixed)
    known |= {Fraction(value) for value, cue in IMPLICIT.items() if re.search(cue, lowered)}
    for word in re.findall(r"[a-z]+", lowered):
        known |= {Fraction(value) for value in FRACTION_WORDS.get(word.removesuffix("s"), "").split()}
    known |= {Fraction(value) for value in range(1, 100) if re.search(rf"\b{number_words(value)}\b", lowered)}
    for percent in re.findall(r"([\d.]+)\s*(?:%|percent)", lowered):
        share = Fraction(percent.strip(".") or "0") / 100
        known |= {share, 1 - share, 1 + share, 100 - 100 * share, 100 + 100 * share}
    for top, bottom in re.findall(r"(\d+)/(\d+)", question):
        if int(bottom):
            share = Fraction(int(top), int(bottom))
            known |= {
                share,
                1 - share,
                Fraction(int(top)),
                Fraction(int(bottom)),
                Fraction(int(bottom) - int(top)),
            }
    return known


def like(value: Fraction, written: str) -> str | None:
    """``value`` written the way ``written`` is (commas, decimals), or None if it needs more than two decimals."""
    decimals = len(written.partition(".")[2])
    while (value * 10**decimals).denominator != 1:
        decimals += 1
        if decimals > 2:
            return None
    comma = "," if "," in written or ("." not in written and value >= 10_000) else ""
    text = f"{Decimal(value.numerator) / Decimal(value.denominator):{comma}.{decimals}f}"
    return text.removeprefix("0") if written.startswith(".") else text


@dataclass
class Problem:
    """A problem whose answer is linked to its question: which numbers may change, and what follows from them."""

    question: str
    answer: str
    mentions: list[Mention]
    known: set[Fraction]
    values: list[Fraction]

    def rewrite(self, new: dict[Fraction, Fraction]) -> Document | None:
        """The document with every value in ``new`` replaced and its consequences replayed.

        None unless every number of the answer follows from the question in one way: a number that may stand for a
        quantity, for an earlier result or for a constant is accepted only if all of these have the same new value.
        """
        quantities = {mention.value: new.get(mention.value, mention.value) for mention in self.mentions}
        results: list[tuple[Fraction, Fraction]] = []

        def renewed(number: str) -> Fraction | None:
            value = exact(number)
            candidates = {quantities[value]} if value in quantities else set()
            candidates |= {changed for result, changed in results if result == value}
            if value in self.known:
                candidates.add(value)
            return candidates.pop() if len(candidates) == 1 else None

        def replace(text: str, in_annotation: bool) -> str | None:
            pieces, end = [], 0
            for number in NUMBER.finditer(text):
                value = renewed(number.group())
                written = (
                    None
                    if value is None
                    else like(value, number.group().replace(",", "") if in_annotation else number.group())
                )
                if written is None:
                    return None
                pieces += [text[end : number.start()], written.replace(",", "") if in_annotation else written]
                end = number.end()
            return "".join([*pieces, text[end:]])

        output = ""
        for line in FINAL.sub("", self.answer).split("\n"):
            end = 0
            pending: list[str] = []
            for annotation in ANNOTATION.finditer(line):
                expression = replace(annotation[1], in_annotation=True)
                if expression is None:
                    return None
                old, changed = evaluate(annotation[1]), evaluate(expression)
                if old is None or changed is None or not sensible(old, changed):
                    return None
                # The words before an annotation may say its result already ("He has 12 apples because 3*4=<<...>>12").
                before = replace(line[end : annotation.start()], in_annotation=False)
                results.append((old, changed))
                written = like(changed, annotation[2])
                if before is None or written is None:
                    return None
                pending.append(f"{before}<<{expression}={written.replace(',', '')}>>")
                end = annotation.end()
            tail = replace(line[end:], in_annotation=False)
            if tail is None:
                return None
            output += "".join(pending) + tail + "\n"
        return {"question": self._rewrite_question(new), "answer": f"{output}#### {results[-1][1]}"}

    def _rewrite_question(self, new: dict[Fraction, Fraction]) -> str:
        text = self.question
        for mention in reversed(self.mentions):
            start, end = mention.span
            if mention.value not in new:
                continue
            written = like(new[mention.value], text[start:end]) or ""
            article = re.search(r"\b([Aa])n? $", text[:start])
            if article:
                an = re.match(r"8|1[18](?:,\d{3})*(?!\d|,)", written) is not None
                text = text[: article.start()] + article[1] + ("n " if an else " ") + text[article.end() :]
                start = article.start() + len(article[1]) + (2 if an else 1)
                end = start + mention.span[1] - mention.span[0]
            text = text[:start] + written + text[end:]
        return text


def sensible(old: Fraction, new: Fraction) -> bool:
    """Whether a result kept its sign, stays whole if it was whole, and has not grown out of all proportion."""
    if old <= 0 or new <= 0 or new > 200 * old:
        return old == new
    return old.denominator != 1 or new.denominator == 1


def link(document: Document) -> Problem | None:
    """Link a problem's answer to its question, or None if that cannot be done for certain."""
    question, answer = document["question"], document["answer"]
    values = replay(answer)
    text = ANNOTATION.sub("<<", answer)
    if values is None or NOT_SCALABLE.search(question) or UNANNOTATED.search(FINAL.sub("", text)):
        return None
    found = mentions(question)
    known = constants(question, {mention.value for mention in found if not mention.scalable})
    literals = [exact(n) for annotation in ANNOTATION.finditer(answer) for n in NUMBER.findall(annotation[1])]
    # A small number used more often than it is mentioned may be counted from the story ("Ann, Bob and Carl").
    known |= {
        mention.value
        for mention in found
        if mention.value <= 12
        and literals.count(mention.value) > [m.value for m in found].count(mention.value)
    }
    for mention in found:
        mention.scalable = mention.scalable and mention.value not in known
        # A quantity that the computation does not use may be a restatement of one that it does.
        if mention.scalable and mention.value not in literals:
            return None
    return Problem(question, answer, found, known, values)


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


@perturbation("gsm8k", version=1)
def larger_numbers(document: Document, rng: random.Random, context: Context) -> Document | None:
    """Quantities of the question grow two to five times; the answer is replayed with them.

    Changes: numbers in digits that are amounts (not times, ages, percentages, measures of people, names or number
    words), every occurrence of a value alike, in question and answer. Must stay true: the computation is the same one
    on other numbers, every step stays positive and whole where it was whole, the order of the changed quantities
    is kept, and the result differs from the old one. Left out: documents whose annotations do not reproduce the
    answer, or in which one number could stand for two things with different new values.
    Source: "extended numerical ranges" of arXiv:2509.01363; digit expansion and numerical variation of GSM-Plus.
    """
    problem = link(document)
    if problem is None:
        return None
    values = sorted({mention.value for mention in problem.mentions if mention.scalable})
    if not values:
        return None
    for attempt in range(300):
        if attempt < 100:
            new = {value: larger(value, rng) for value in values}
        elif attempt < 200:
            new = {value: value * rng.randint(2, 5) for value in values}
        else:
            factor = rng.randint(2, 5)
            new = {value: value * factor for value in values}
        if sorted(new.values()) != [new[value] for value in values] or len(set(new.values())) < len(values):
            continue
        changed = problem.rewrite(new)
        if changed is not None and FINAL.search(changed["answer"])[1] != FINAL.search(document["answer"])[1]:  # type: ignore[index]
            return {**document, **changed}
    return None


# More steps ---------------------------------------------------------------------------------------------------------

OPERATIONS = (
    ("multiply it by {a}", "*", 2, 6),
    ("add {a} to it", "+", 11, 60),
    ("subtract {a} from it", "-", 2, 40),
)


@perturbation("gsm8k", version=1)
def more_steps(document: Document, rng: random.Random, context: Context) -> Document | None:
    """The question goes on: two further operations on its result, whose outcome is asked for.

    Changes: two sentences are added to the question and two annotated lines to the answer. Must stay true: the
    original problem word for word, its computation, and a positive outcome. Left out: documents whose annotations do
    not reproduce the answer in exact arithmetic, or whose question does not end in its question mark.
    Source: "more reasoning steps" of arXiv:2509.01363; adding operation of GSM-Plus; GSM-P1 and P2 of GSM-Symbolic.
    """
    results = replay(document["answer"])
    question = document["question"].rstrip()
    if results is None or not question.endswith("?"):
        return None
    value, steps, lines = results[-1], [], []
    for phrase, sign, low, high in rng.sample(OPERATIONS, 2):
        number = (
            rng.randint(low, min(high, int(value) - 1) if sign == "-" else high)
            if sign != "-" or value > low
            else 0
        )
        if number == 0:
            return None
        expression = f"{_plain(value)}{sign}{number}"
        value = {"*": value * number, "+": value + number, "-": value - number}[sign]
        steps.append(phrase.format(a=number))
        lines.append(
            f"{expression.replace(sign, f' {sign} ')} = <<{expression}={_plain(value)}>>{_plain(value)}"
        )
    asked = (
        " Take the number that answers this question and "
        + ", then ".join(steps)
        + ". What number do you get?"
    )
    answer = FINAL.sub("", document["answer"]) + "\n" + "\n".join(lines) + f"\n#### {_plain(value)}"
    return {**document, "question": question + asked, "answer": answer}


def _plain(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):.10g}"


# Words around the same computation ----------------------------------------------------------------------------------

PRONOUN = re.compile(
    r"\b(?:he|she|it|its|they|them|their|his|her|hers|him|there|this|that|these|those|both|each)\b",
    re.IGNORECASE,
)


@perturbation("gsm8k", version=1)
def irrelevant_sentences(document: Document, rng: random.Random, context: Context) -> Document | None:
    """Two sentences, each with a number, about things that the problem does not ask for.

    Changes: the sentences are put before sentences that do not refer back (no pronoun), never after the question.
    Must stay true: every word of the original, its order and its answer; the new numbers occur nowhere in question
    or answer, and the new sentences share no content word with the question. Source: GSM-IC; GSM-Plus, distractor
    insertion; GSM-NoOp of GSM-Symbolic.
    """
    used = {exact(number) for number in NUMBER.findall(document["question"] + " " + document["answer"])}
    numbers = [number for number in range(11, 99) if number not in used]
    facts = irrelevant_facts(rng, document["question"], 2, numbers)
    if len(facts) < 2:
        return None
    parts = sentences(document["question"].strip())
    places = [0] + [
        i for i in range(1, len(parts)) if not PRONOUN.search(parts[i]) and not REFERS_BACK.match(parts[i])
    ]
    for place, fact in zip(sorted(rng.choices(places, k=2), reverse=True), facts, strict=True):
        parts.insert(place, fact + " ")
    return {**document, "question": "".join(parts)}


@perturbation("gsm8k", version=1)
def typing_noise(document: Document, rng: random.Random, context: Context) -> Document | None:
    """Typing errors in about a sixth of the plain words of the question.

    Changes: two inner letters swapped or one doubled, in lower-case words of five letters or more. Must stay true:
    every number in digits or words, every name, every sign, and the answer. Source: character-level noise of
    PromptRobust (arXiv:2306.04528) and R2ATA (arXiv:2411.05345).
    """
    question = mistype_text(document["question"], rng)
    return None if question is None else {**document, "question": question}
