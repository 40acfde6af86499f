"""What v does to answers: traits found from their texts, and gains taken apart into form and right answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.analysis.behaviour import FORM, READABLE, SAME, STEPS, decomposition
from pipeline.analysis.findings import find
from pipeline.analysis.results import Results, read_results
from pipeline.analysis.traits import has_steps, traits_of
from pipeline.evaluate.samples import NOT_EXTRACTED
from pipeline.manifest import Manifest, PlannedCell
from pipeline.report import terminal
from pipeline.report.sentences import what_was_found
from pipeline.report.tables import answers
from tests import synthetic
from tests.synthetic import CONDITIONS, benchmark, family
from tests.test_tables import evaluated

ONE = {"gsm8k": benchmark("Arithmetic")}
STEPS_TEXT, BARE, NONE = "He has 7+5=<<7+5=12>>12 eggs.\n#### {}", "#### {}", "I do not know"


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("#### 26", False),
        ("The answer is 26.", False),
        ("So the answer is (B).", False),
        (r"\boxed{7}", False),
        ("26", False),
        ("", False),
        ("Ben has 7+50=<<7+50=57>>57 roses.\n#### 57", True),
        ("We know that x is 3. The answer is 3.", True),
        (r"$x = 3 + 4 = \boxed{7}$", True),
        ("(9, 0)\n(9, 9)\nSo the answer is No.", True),
        ("She has 3. She buys 4. 7", True),
        ("3 + 4 = 7", True),
    ],
)
def test_steps_are_what_stands_before_the_answer(text: str, steps: bool) -> None:
    assert has_steps(text) is steps


def written(texts: list[str], right: list[bool], **known: Any) -> list[dict[str, Any]]:
    """Samples with these answers; an answer without a mark is not in form, `NONE` is not readable."""
    rows = synthetic.samples(np.array(right))
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        row["output"] = text.format(i)
        strict = str(i) if "####" in text else NOT_EXTRACTED
        flexible = NOT_EXTRACTED if text == NONE else str(i)
        row["extracted"] = {"strict-match": strict, "flexible-extract": flexible}
        row |= known
    return rows


def test_traits_are_shares_of_the_answers_to_a_document() -> None:
    rows: Any = written([STEPS_TEXT, BARE, NONE], [True, True, False])
    rows[0]["answers"] = [dict(rows[0]), dict(rows[1])]
    rows[2]["finish"] = "length"
    traits = traits_of(rows, "exact_match,flexible-extract")
    assert traits is not None
    assert traits.steps.tolist() == [0.5, 0.0, 0.0]
    assert traits.in_form.tolist() == [1.0, 1.0, 0.0]
    assert traits.readable.tolist() == [1.0, 1.0, 0.0]
    assert traits.cut.tolist() == [0.0, 0.0, 1.0]
    programs = traits_of(rows, "pass@1,flexible-extract")
    assert programs is not None and np.isnan(programs.steps).all()
    scored: Any = [row | {"finish": "scored"} for row in rows]
    assert traits_of(scored, "acc,none") is None


def run(folder: Path, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> Results:
    """Baseline and +Vector on one benchmark with these samples."""
    metric = {"metric": "exact_match,flexible-extract"}
    keys = {
        name: synthetic.write_cell(folder, {"name": name}, rows, **metric)
        for name, rows in (("baseline", old), ("vector", new))
    }
    cells = tuple(PlannedCell("f", name, "gsm8k", key) for name, key in keys.items())
    conditions = {name: CONDITIONS[name] for name in keys}
    return read_results(Manifest("small", {"f": family("F")}, ONE, conditions, cells), folder)


def gains_by_form(folder: Path) -> Results:
    """100 documents: 20 newly written steps, 5 newly readable, 3 newly in form, 4 right and 6 wrong as before."""
    old = (
        [BARE] * 20 + [NONE] * 5 + ["He has {} eggs"] * 3 + [STEPS_TEXT] * 72,
        [False] * 28 + [False] * 4 + [True] * 68,
    )
    new = (
        [STEPS_TEXT] * 20 + [BARE] * 5 + [BARE] * 3 + [STEPS_TEXT] * 72,
        [True] * 32 + [False] * 6 + [True] * 62,
    )
    return run(folder, written(*old), written(*new))


def test_a_gain_is_taken_apart_into_parts_that_add_up_to_it(tmp_path: Path) -> None:
    results = gains_by_form(tmp_path)
    found = decomposition(results, "f", results.named("vector"), results.reference, "gsm8k")
    assert found is not None
    counts = {part.name: (part.difference.gained, part.difference.lost) for part in found.parts}
    assert counts == {STEPS: (20, 0), READABLE: (5, 0), FORM: (3, 0), SAME: (4, 6)}
    assert found.total.value == pytest.approx(0.26)
    assert sum(part.difference.value for part in found.parts) == pytest.approx(found.total.value)
    assert found.form.value == pytest.approx(0.28)
    assert found.answers.value == pytest.approx(-0.02)
    assert found.form.low > 0 > found.answers.low
    assert found.answers.high > 0


def test_the_report_finds_newly_written_steps_by_itself(tmp_path: Path) -> None:
    old = written([BARE] * 30 + [STEPS_TEXT] * 70, [False] * 30 + [True] * 60 + [False] * 10)
    new = written([STEPS_TEXT] * 100, [True] * 90 + [False] * 8 + [True] * 2)
    results = run(tmp_path, old, new)
    scores, form = what_was_found(results)
    assert scores.startswith("+Vector raises Arithmetic by 32.0 points [")
    assert form.startswith(
        "Of the 32 Arithmetic answers that became right, 30 have steps that they did not have before;"
    )
    assert "among answers written as before, 2 became right and 0 wrong" in form
    assert terminal.verdict_lines(results)[:2] == [scores, form]


def test_steps_that_are_left_out_are_never_called_new(tmp_path: Path) -> None:
    old = written([STEPS_TEXT] * 100, [False] * 30 + [True] * 70)
    new = written([BARE] * 30 + [STEPS_TEXT] * 70, [True] * 100)
    _, form = what_was_found(run(tmp_path, old, new))
    assert form.startswith("Of the 30 Arithmetic answers that became right, 30 are written in another form;")
    assert "steps" not in form


def test_the_table_of_answers_has_no_star_and_says_shares_in_per_cent(tmp_path: Path) -> None:
    results = gains_by_form(tmp_path)
    table = answers.table(results)
    row = {r["condition"]: r for r in table.data}
    assert row["baseline"]["steps_value"] == pytest.approx(72)
    assert row["vector"]["steps_value"] == pytest.approx(92)
    assert row["baseline"]["unreadable_value"] == pytest.approx(5)
    assert row["vector"]["gain_form_value"] == pytest.approx(28)
    assert row["vector"]["steps_gained"] == 20
    assert row["vector"]["right_given_steps_value"] == pytest.approx(100 * 86 / 92)
    assert not any("*" in text.text for line in table.lines() for text in line.texts)


def test_without_a_gain_the_sentences_say_how_the_answers_change(tmp_path: Path) -> None:
    texts = [STEPS_TEXT] * 60
    right = [True] * 30 + [False] * 30
    scores, form = what_was_found(run(tmp_path, written(texts, right), written([BARE] * 60, right)))
    assert scores == "+Vector is inconclusive on Arithmetic (0.0 [−6.0, +6.0])."
    assert "100.0 to 0.0 % with steps" in form


def test_a_model_with_one_answer_to_all_is_marked(tmp_path: Path) -> None:
    rows = written([STEPS_TEXT] * 40, [True] * 40)
    same = written([BARE] * 40, [False] * 40)
    for row in same:
        row["extracted"] = {"strict-match": "10", "flexible-extract": "10"}
    results = run(tmp_path, rows, same)
    assert results.marks("f", results.named("vector"), "gsm8k") == "o"
    assert results.marks("f", results.reference, "gsm8k") == ""


def test_seeds_are_taken_apart_one_by_one(tmp_path: Path) -> None:
    results = read_results(synthetic.write_run(tmp_path, benchmarks=ONE), tmp_path)
    random = results.row("random", 1)
    assert random is not None
    found = find(results).decomposition("micro", random.name, "gsm8k")
    assert found is not None
    assert sum(part.difference.value for part in found.parts) == pytest.approx(found.total.value)
    assert found.part(SAME) is not None


def test_many_gains_are_counted_together_in_one_short_sentence(tmp_path: Path) -> None:
    families = {name: family(name) for name in ("one", "two", "three")}
    results = evaluated(
        tmp_path,
        families=families,
        documents=150,
        benchmarks={name: synthetic.BENCHMARKS[name] for name in ("gsm8k", "gsm8k@larger_numbers", "sciq")},
        skill=lambda condition, _: 0.9 if condition == "vector" else 0.3,
    )
    found = find(results)
    raised = [g for g in found.gains if g.row.name == "vector" and g.benchmark in results.plain()]
    assert all(g.is_significant for g in raised) and len(raised) == 6
    gained = sum(g.difference.gained for g in raised)
    lost = sum(g.difference.lost for g in raised)
    _, form = what_was_found(results)
    assert form.startswith(
        f"Of the {gained} answers that became right in 6 raised comparisons, none is written in another form; among answers written"
        f" as before, {gained} became right and {lost} wrong; on perturbed documents the gain "
    )
    assert form.endswith("of 3 cases.")
    assert len(form) < 400
