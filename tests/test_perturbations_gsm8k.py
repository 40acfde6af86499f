"""GSM8K-like perturbations: every new answer is proven by another evaluator than the generator's.

The generator replays annotations with Python's parser and fractions. Here sympy evaluates them, and a second
route never looks at the new annotations: it makes one formula of the old ones, with the question's quantities
as symbols.
"""

import re
from fractions import Fraction

import pytest
import sympy

from evals.perturbations import perturb
from tests.test_perturbations_common import SOURCES, load, pairs

NUMBER = r"\d+(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+"
TEXTS = ("irrelevant_sentences", "sentence_order", "digits_as_words", "typing_noise")


def rational(text: str) -> sympy.Rational:
    return sympy.Rational(text.replace(",", ""))


def calculate(expression: str) -> sympy.Rational:
    return sympy.sympify(expression.replace(",", ""), rational=True)


def numbers(text: str) -> list[str]:
    return re.findall(NUMBER, text)


def annotations(answer: str) -> list[tuple[str, str, str]]:
    """(expression, result, the number written behind the annotation)"""
    return re.findall(rf"<<([^=]+)=([^>]+)>>(?:({NUMBER}))?", answer)


def final(answer: str) -> str:
    return answer.rsplit("#### ", 1)[1]


def formula(answer: str, symbols: dict[Fraction, sympy.Symbol]) -> sympy.Expr:
    """The last result as one formula over the symbols of the question's quantities."""
    results: dict[Fraction, sympy.Expr] = {}
    last = sympy.Integer(0)
    for expression, result, _ in annotations(answer):

        def term(match: re.Match[str]) -> str:
            value = Fraction(match.group().replace(",", ""))
            return f"({symbols.get(value, results.get(value, sympy.Rational(value.numerator, value.denominator)))})"

        last = sympy.sympify(re.sub(NUMBER, term, expression), rational=True)
        results[Fraction(result.replace(",", ""))] = last
    return last


# Larger numbers


@pytest.mark.parametrize("name", ["larger_numbers", "more_steps"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_annotation_is_true_and_the_last_one_is_the_answer(source: str, name: str):
    for _, changed in pairs(source, "gsm8k", name):
        steps = annotations(changed["answer"])
        for expression, result, written in steps:
            assert calculate(expression) == rational(result)
            assert not written or rational(written) == rational(result)
        assert rational(steps[-1][1]) == rational(final(changed["answer"]))


@pytest.mark.parametrize("source", SOURCES)
def test_the_new_answer_is_the_old_formula_at_the_questions_new_numbers(source: str):
    checked = 0
    for original, changed in pairs(source, "gsm8k", "larger_numbers"):
        old = [Fraction(n.replace(",", "")) for n in numbers(original["question"])]
        new = dict(zip(old, (rational(n) for n in numbers(changed["question"])), strict=True))
        moved = {
            value: sympy.Symbol(f"q{i}") for i, value in enumerate(dict.fromkeys(old)) if new[value] != value
        }
        results = {Fraction(result.replace(",", "")) for _, result, _ in annotations(original["answer"])}
        if results & moved.keys():
            continue  # a result equal to a quantity: which one a number means cannot be told by its value
        value = formula(original["answer"], moved).subs({symbol: new[old] for old, symbol in moved.items()})
        assert value == rational(final(changed["answer"]))
        checked += 1
    assert checked > 0.7 * len(pairs(source, "gsm8k", "larger_numbers"))


@pytest.mark.parametrize("source", SOURCES)
def test_only_numbers_change_and_every_occurrence_of_a_value_alike(source: str):
    for original, changed in pairs(source, "gsm8k", "larger_numbers"):
        for field in ("question", "answer"):
            masked = [
                re.sub(r"\b([Aa])n? (?=#)", r"\1 ", re.sub(NUMBER, "#", doc[field]))
                for doc in (original, changed)
            ]
            assert masked[0] == masked[1]
        old, new = numbers(original["question"]), numbers(changed["question"])
        assert len({(rational(a), rational(b)) for a, b in zip(old, new, strict=True)}) == len(
            {rational(a) for a in old}
        )


@pytest.mark.parametrize("source", SOURCES)
def test_changed_quantities_grow_two_to_five_times_and_keep_their_order(source: str):
    for original, changed in pairs(source, "gsm8k", "larger_numbers"):
        both = {
            (rational(a), rational(b))
            for a, b in zip(numbers(original["question"]), numbers(changed["question"]), strict=True)
        }
        moved = sorted((a, b) for a, b in both if a != b)
        assert moved and all(2 * a <= b <= 5 * a for a, b in moved)
        assert [b for _, b in moved] == sorted(b for _, b in moved)


@pytest.mark.parametrize("source", SOURCES)
def test_new_results_are_sensible(source: str):
    for original, changed in pairs(source, "gsm8k", "larger_numbers"):
        assert rational(final(changed["answer"])) != rational(final(original["answer"]))
        for (_, old, _), (_, new, _) in zip(
            annotations(original["answer"]), annotations(changed["answer"]), strict=True
        ):
            assert rational(new) > 0 or rational(new) == rational(old)
            assert rational(new).is_integer or not rational(old).is_integer


def test_most_micro_problems_and_a_third_of_gsm8k_can_be_scaled():
    assert len(pairs("micro", "gsm8k", "larger_numbers")) > 0.8 * len(load("micro", "gsm8k"))
    assert len(pairs("public", "gsm8k", "larger_numbers")) > 0.3 * len(load("public", "gsm8k"))


TOM = "Tom has 14 bags with 20 cards in each. "


@pytest.mark.parametrize(
    ("reason", "question", "answer"),
    [
        ("annotation is false", TOM + "How many cards?", "14*20=<<14*20=290>>290\n#### 290"),
        ("answer is not the last result", TOM + "How many cards?", "14*20=<<14*20=280>>280\n#### 281"),
        ("no annotation", TOM + "How many cards?", "14*20=280\n#### 280"),
        ("a step beside the annotations", TOM + "He adds 15. How many?", "<<14*20=280>>280, 280+15=295\n<<295+0=295>>295\n#### 295"),
        ("a number from nowhere", TOM + "How many cards?", "<<14*20=280>>280\n<<280+17=297>>297\n#### 297"),
        ("a quantity that is not used", TOM + "There were 280 before. How many?", "<<14*20=280>>280\n#### 280"),
        ("rounded", TOM + "He shares them among 90.", "<<14*20=280>>280\n<<280/90=3.11>>3.11\n#### 3.11"),
        ("a threshold", TOM + "A box holds at least 300. How many?", "<<300-14*20=20>>20\n#### 20"),
        ("only times of day and years", "From 1990 on Ann runs 3 hours at 10:30.", "<<3*2=6>>6\n#### 6"),
        ("bank notes", "Ann has two $20 bills.", "2*20=$<<2*20=40>>40\n#### 40"),
        ("an offer with something free", TOM + "With 3 bags he gets 5 cards free. How many?", "<<14*20+5=285>>285\n#### 285"),
        ("only percentages", "Ann saves 30% of her pay.", "<<100-30=70>>70\n#### 70"),
    ],
)  # fmt: skip
def test_a_problem_that_cannot_be_scaled_for_certain_is_left_out(reason: str, question: str, answer: str):
    assert perturb("gsm8k", "larger_numbers", [{"question": question, "answer": answer}]) == [], reason


def test_the_same_problem_without_a_flaw_is_kept():
    document = {"question": TOM + "How many cards?", "answer": "14*20=<<14*20=280>>280\n#### 280"}
    assert len(perturb("gsm8k", "larger_numbers", [document])) == 1


def test_a_result_equal_to_a_quantity_is_never_mistaken_for_it():
    """40 is both a price and a result: they must go on agreeing, or the problem is left out."""
    document = {
        "question": "Ann buys 4 caps at $10 each and a coat at $40. She pays half of the price of the coat later. How much?",
        "answer": "4*10=$<<4*10=40>>40\n40+40=$<<40+40=80>>80\n#### 80",
    }
    for seed in range(20):
        for changed in perturb("gsm8k", "larger_numbers", [document], seed):
            caps, price, coat = (int(n) for n in numbers(changed["question"]))
            assert int(final(changed["answer"])) == caps * price + coat


# More steps


@pytest.mark.parametrize("source", SOURCES)
def test_the_added_steps_are_what_the_added_words_say(source: str):
    for original, changed in pairs(source, "gsm8k", "more_steps"):
        added = changed["question"].removeprefix(original["question"].rstrip())
        assert added != changed["question"] and added.endswith(" What number do you get?")
        value = rational(final(original["answer"]))
        phrases = re.findall(r"(multiply|add|subtract) (?:it by )?(\d+)", added)
        assert len(phrases) == 2
        for verb, number in phrases:
            value = {
                "multiply": value * int(number),
                "add": value + int(number),
                "subtract": value - int(number),
            }[verb]
        assert value == rational(final(changed["answer"])) and value > 0
        assert changed["answer"].startswith(original["answer"].split("\n####")[0])


# Words around the same computation


@pytest.mark.parametrize("source", SOURCES)
def test_irrelevant_sentences_bring_new_numbers_and_take_nothing_away(source: str):
    for original, changed in pairs(source, "gsm8k", "irrelevant_sentences"):
        old, new = original["question"].split(), iter(changed["question"].split())
        assert all(word in new for word in old)
        extra = [n for n in numbers(changed["question"]) if n not in numbers(original["question"])]
        assert len(extra) == 2 and not set(extra) & set(numbers(original["answer"]))
        last = re.split(r"(?<=[.?!])\s+", original["question"].strip())[-1]
        assert changed["question"].endswith(last[-30:])


@pytest.mark.parametrize("source", SOURCES)
def test_sentences_change_places_and_the_question_stays_last(source: str):
    for original, changed in pairs(source, "gsm8k", "sentence_order"):
        old, new = (re.split(r"(?<=[.?!])\s+", doc["question"].strip()) for doc in (original, changed))
        assert sorted(old) == sorted(new) and old != new
        assert new[-1] == old[-1] and new[-1].endswith("?")


def test_a_story_whose_order_matters_is_not_reordered():
    stories = [
        "Jane has 11 bags. Jane buys 34 more bags. How many bags does Jane have now?",
        "Tom has 5 pens. He gives 2 to Ann. How many pens does Tom have?",
        "Tom has 5 pens. Ann takes 2 pens from Tom. How many pens does Tom have?",
    ]
    documents = [{"question": story, "answer": "#### 1"} for story in stories]
    assert perturb("gsm8k", "sentence_order", documents) == []


def read_number_words(text: str) -> list[int]:
    """The numbers in a text, in digits or in words, by a reader that shares nothing with the writer."""
    ones = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    ones += " seventeen eighteen nineteen"
    tens = "twenty thirty forty fifty sixty seventy eighty ninety"
    small = {word: i for i, word in enumerate(ones.split())} | {
        word: 20 + 10 * i for i, word in enumerate(tens.split())
    }
    scales = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
    found: list[int] = []
    total, group, open_number = 0, 0, False
    for token in [*re.findall(r"\d[\d,]*|[a-z]+|[^\sa-z\d]", text.lower()), "."]:
        joins = small.get(token, 100) < (
            10 if group % 100 >= 20 and group % 10 == 0 else 100 if group % 100 == 0 else 0
        )
        if token in small and open_number and joins:
            group += small[token]
        elif token in scales and open_number:
            group *= scales[token]
            if token != "hundred":
                total, group = total + group, 0
        elif not (token == "-" and open_number):
            if open_number:
                found.append(total + group)
            open_number, total, group = token in small, 0, small.get(token, 0)
            if token[0].isdigit():
                found.append(int(token.replace(",", "")))
    return found


def test_the_reader_of_number_words_reads():
    assert read_number_words("one thousand three hundred sixty-two cats, 5 dogs and twenty") == [1362, 5, 20]


@pytest.mark.parametrize("source", SOURCES)
def test_numbers_in_words_read_back_as_the_same_numbers(source: str):
    checked = 0
    for original, changed in pairs(source, "gsm8k", "digits_as_words"):
        assert not re.search(r"[\d$%]", changed["question"])
        if not re.search(
            r"\d\.\d|\.\d|\d/\d|\d(?:st|nd|rd|th)|\d \d|-\d|million|hundred|thousand", original["question"]
        ):
            assert read_number_words(changed["question"]) == read_number_words(original["question"])
            checked += 1
    assert checked > 0.8 * len(pairs(source, "gsm8k", "digits_as_words"))


@pytest.mark.parametrize(
    ("digits", "in_words"),
    [
        ("It costs $2.74.", "It costs two dollars and seventy-four cents."),
        ("It costs $.50 or $1.", "It costs fifty cents or one dollar."),
        ("He uses a $20 coupon for $3 off.", "He uses a twenty-dollar coupon for three dollars off."),
        ("It is $2 million.", "It is two million dollars."),
        ("They ate 3/4 of 2.5 pounds.", "They ate three quarters of two point five pounds."),
        ("A 20% raise on 1,360 units.", "A twenty percent raise on one thousand three hundred sixty units."),
        ("The 3rd 12-mile run. 7 came.", "The third twelve-mile run. Seven came."),
    ],
)
def test_money_parts_and_ordinals_read_as_people_write_them(digits: str, in_words: str):
    assert (
        perturb("gsm8k", "digits_as_words", [{"question": digits, "answer": "#### 1"}])[0]["question"]
        == in_words
    )


@pytest.mark.parametrize(
    "question", ["At 10:30 he left.", "Since 1990 he ran.", "He has 25k.", "A ratio of 7:11.", "No numbers."]
)
def test_a_number_without_a_good_reading_leaves_the_document_out(question: str):
    assert perturb("gsm8k", "digits_as_words", [{"question": question, "answer": "#### 1"}]) == []


@pytest.mark.parametrize("source", SOURCES)
def test_typing_errors_spare_numbers_names_and_the_ends_of_words(source: str):
    for original, changed in pairs(source, "gsm8k", "typing_noise"):
        old, new = re.findall(r"\S+|\s+", original["question"]), re.findall(r"\S+|\s+", changed["question"])
        assert len(old) == len(new)
        for a, b in zip(old, new, strict=True):
            if a != b:
                assert re.fullmatch(r"\(?[a-z]+\W*", a) and (a.strip("(")[0], a[-1]) == (
                    b.strip("(")[0],
                    b[-1],
                )
                assert set(a) == set(b) and len(b) - len(a) in (0, 1)
                assert read_number_words(a) == [] and a.strip("(.,?") not in (
                    "half",
                    "twice",
                    "double",
                    "dozen",
                    "third",
                )


@pytest.mark.parametrize("source", SOURCES)
def test_no_typing_error_makes_a_number(source: str):
    for original, changed in pairs(source, "gsm8k", "typing_noise"):
        assert read_number_words(changed["question"]) == read_number_words(original["question"])


@pytest.mark.parametrize("source", SOURCES)
def test_names_and_units_are_replaced_one_to_one_and_numbers_stay(source: str):
    for original, changed in pairs(source, "gsm8k", "units_and_names"):
        old = re.findall(r"\w+|[^\w\s]", original["question"] + original["answer"])
        new = re.findall(r"\w+|[^\w\s]", changed["question"] + changed["answer"].replace("'s", "'"))
        assert numbers(original["question"] + original["answer"]) == numbers(
            changed["question"] + changed["answer"]
        )
        if len(old) == len(new):
            assert len(set(zip(old, new, strict=True))) == len(set(old)) == len(set(new))


def test_a_unit_that_is_converted_is_not_replaced():
    document = {
        "question": "Ivo walks 2 miles. How many feet is that?",
        "answer": "<<2*5280=10560>>10560\n#### 10560",
    }
    assert perturb("gsm8k", "units_and_names", [document]) == []


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("source", SOURCES)
def test_the_answer_is_that_of_the_original(source: str, name: str):
    assert all(original["answer"] == changed["answer"] for original, changed in pairs(source, "gsm8k", name))
