"""Donor pairs side by side and ours beside the authors', from made-up records."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.analysis.authors import Authors, authors, beside, parse
from pipeline.analysis.design import design
from pipeline.analysis.heterogeneity import heterogeneity
from pipeline.analysis.pairs import pairs
from pipeline.analysis.results import Results, read_results
from pipeline.config.compose import compose
from pipeline.errors import UserError
from pipeline.report import formats
from pipeline.report.render import render
from pipeline.report.tables import authors as authors_table
from pipeline.report.tables import main
from pipeline.report.tables import pairs as pairs_table
from pipeline.report.tables.build import build
from tests import synthetic
from tests.synthetic import CONDITIONS, benchmark, family

ONE = {"math500": benchmark("MATH-500")}
ROWS = ("baseline", "sft", "grpo", "vector", "minus_vector", "random-s0", "random-s1")


def evaluated(folder: Path, **made: Any) -> Results:
    return read_results(synthetic.write_run(folder, **made), folder)


def of_families(folder: Path, skills: dict[str, float], documents: int = 400) -> Results:
    """A run whose families differ in what v does, on the same documents."""
    results = []
    conditions = {name: CONDITIONS[name] for name in ROWS}
    for name, skill in skills.items():
        made = synthetic.write_run(
            folder,
            families={name: family(f"pair {name}", published_size="1.5B")},
            conditions=conditions,
            benchmarks=ONE,
            documents=documents,
            skill=lambda condition, _, skill=skill: skill if condition == "vector" else 0.4,
        )
        results.append(made)
    families = {name: entry for one in results for name, entry in one.families.items()}
    cells = tuple(cell for one in results for cell in one.cells)
    from pipeline.manifest import Manifest

    return read_results(Manifest("pairs", families, ONE, conditions, cells), folder)


# ---- heterogeneity ----


def test_of_independent_effects_it_is_cochran_s() -> None:
    rng = np.random.default_rng(0)
    n = 3000
    x = np.zeros((3, 3 * n))  # each family changes documents of its own, so the effects hardly covary
    for i, gain in enumerate((0.05, 0.10, 0.16)):
        x[i, i * n : (i + 1) * n] = rng.random(n) < 3 * gain
    found = heterogeneity(x, design(3 * n))
    means, variances = x.mean(axis=1), x.var(axis=1) / (3 * n)
    weights = 1 / variances
    cochran = float((weights * (means - (weights @ means) / weights.sum()) ** 2).sum())
    assert found.q == pytest.approx(cochran, rel=0.25)  # the effects covary a little
    assert found.freedom == 2 and found.p < 1e-6
    assert found.i2 > 0.9 and found.i2_low < found.i2 < found.i2_high
    assert found.tau == pytest.approx(np.std([0.05, 0.10, 0.16], ddof=1), abs=0.01)


def test_equal_families_have_no_spread() -> None:
    rng = np.random.default_rng(1)
    one = rng.choice([-1.0, 0.0, 1.0], 200)
    found = heterogeneity(np.stack([one, one, one]), design(200))
    assert (found.q, found.i2, found.tau) == (pytest.approx(0, abs=1e-9), 0.0, 0.0)
    assert found.p == pytest.approx(1.0)


def test_shared_documents_make_differences_between_pairs_better_known() -> None:
    rng = np.random.default_rng(2)
    n = 600
    shared = rng.choice([-1.0, 0.0, 1.0], n, p=[0.2, 0.5, 0.3])
    better = shared.copy()
    better[np.flatnonzero(shared == 0)[:30]] = 1.0  # 5 points more, on the same changes
    found = heterogeneity(np.stack([shared, better]), design(n))
    means = np.array([shared.mean(), better.mean()])
    variance = (shared.var() + better.var()) / n
    as_if_independent = (means[1] - means[0]) ** 2 / variance
    assert found.q > 5 * as_if_independent
    assert found.p < 1e-4


def test_few_units_give_no_test_and_one_family_is_refused() -> None:
    rng = np.random.default_rng(3)
    x = rng.choice([-1.0, 0.0, 1.0], (4, 30))
    few = heterogeneity(x, design(30, clusters=np.repeat([0, 1, 2], 10)))
    assert math.isnan(few.p)
    with pytest.raises(ValueError, match="one family"):
        heterogeneity(x[:1], design(30))


def test_the_test_of_equal_effects_keeps_its_level() -> None:
    rng = np.random.default_rng(4)
    plan, stars = design(300), 0
    for _ in range(600):
        base = rng.random(300) < 0.5
        new = rng.random((4, 300)) < 0.55
        stars += heterogeneity(new * 1.0 - base, plan).p < 0.05
    assert 0.02 < stars / 600 < 0.08


# ---- pairs ----


def test_pairs_of_one_size_are_held_against_each_other(tmp_path: Path) -> None:
    results = of_families(tmp_path, {"a": 0.45, "b": 0.5, "c": 0.9})
    (found,) = pairs(results)
    assert [effect.family for effect in found.effects] == ["a", "b", "c"]
    gains = [effect.gain.value for effect in found.effects]
    assert found.mean.value == pytest.approx(np.mean(gains))
    assert (
        found.mean.low < min(gains) < max(gains) < found.mean.high
    )  # three pairs that differ say little of a fourth
    assert found.heterogeneity.p < 1e-6
    assert found.heterogeneity.tau == pytest.approx(np.std(gains, ddof=1), abs=0.02)
    effect = found.effects[0]
    assert effect.donors and effect.loss and effect.noise


def test_the_table_of_pairs_has_effects_mean_and_spread(tmp_path: Path) -> None:
    results = of_families(tmp_path, {"a": 0.5, "b": 0.55, "c": 0.5})
    table = pairs_table.table(results)
    labels = [line.label for line in table.lines()]
    assert labels == ["pair a", "pair b", "pair c", "mean of 3 pairs", "spread"]
    mean = table.data[-1]
    assert mean["family"] == "mean of 3" and mean["q_freedom"] == 2
    assert "Q = " in table.lines()[-1].texts[1].text
    assert formats.markdown(table) and formats.latex(table)


def test_a_run_of_one_family_has_no_table_of_pairs(tmp_path: Path) -> None:
    results = evaluated(tmp_path, benchmarks=ONE)
    assert not pairs_table.applies(results)
    assert "pairs" not in {table.name for table in build(results)}


def test_the_donors_and_what_is_known_against_them_are_said_under_the_table_and_at_the_page_s_head(
    tmp_path: Path,
) -> None:
    said = "OpenThinker3 & RLVE; its stages saw different data"
    results = evaluated(tmp_path, benchmarks=ONE, documents=20, families={"micro": family("M", pair=said)})
    assert f"Donors of M: {said}." in main.table(results).notes
    rendered = render(results, tmp_path / "tables")
    head = (tmp_path / "tables" / "report.html").read_text().partition('id="verdicts"')[0]
    assert rendered and "Donors of M: OpenThinker3 &amp; RLVE; its stages saw different data." in head
    alone = {"baseline": CONDITIONS["baseline"]}
    without = evaluated(
        tmp_path / "alone", benchmarks=ONE, conditions=alone, families={"micro": family("M", pair=said)}
    )
    assert not any("Donors of" in note for note in main.table(without).notes)


def test_every_public_pair_says_what_it_is_and_other_donors_leave_that_behind() -> None:
    for experiment in ("paper", "pairs", "authors"):
        assert all(f.pair for f in compose([f"experiment={experiment}"]).families.values())
    for change in ("sft.id=my/sft", "grpo.id=my/grpo"):
        families = compose(["experiment=paper", f"families.qwen1_5b.{change}"]).families
        assert families["qwen1_5b"].pair is None and families["qwen7b"].pair is not None
    own = ["families.qwen1_5b.sft.id=my/sft", "families.qwen1_5b.pair='mine; seen by nobody'"]
    assert compose(["experiment=paper", *own]).families["qwen1_5b"].pair == "mine; seen by nobody"
    with pytest.raises(UserError, match=r"^families.qwen1_5b.pair: expected text on one line"):
        compose(["experiment=paper", "families.qwen1_5b.pair=''"])


# ---- the authors ----

LOG = {
    "sources": {"L": "RESULTS_LOG.md @81af540"},
    "settings": {"qwen": "temperature 0"},
    "figures": [
        {
            "family": "micro",
            "setting": "qwen",
            "benchmark": "math500",
            "condition": condition,
            "score": score,
            "source": ["L"],
            **({"note": "a note"} if condition == "vector" else {}),
        }
        for condition, score in (("baseline", 40.0), ("vector", 60.0), ("random", 41.0), ("sft", 30.0))
    ],
}


def test_their_scores_stand_beside_ours_with_the_difference_of_both(tmp_path: Path) -> None:
    skills = {"baseline": 0.4, "vector": 0.7}
    results = evaluated(
        tmp_path, benchmarks=ONE, documents=400, skill=lambda condition, _: skills.get(condition, 0.4)
    )
    found = {one.row.name: one for one in beside(results, parse(LOG))}
    # Theirs are without our prompt; ours stand there under each prompt.
    assert {"baseline", "baseline_think", "vector", "vector_think", "sft"} <= set(found)
    baseline, vector = found["baseline"], found["vector"]
    assert baseline.gain is None and baseline.less.low < 0 < baseline.less.high
    assert vector.gain_theirs == pytest.approx(0.2)
    assert vector.gain is not None and vector.gain_less is not None
    gap = vector.gain.value - 0.2
    assert vector.gain_less.low < gap < vector.gain_less.high
    # Wider than ours alone: theirs are uncertain too.
    assert vector.gain_less.high - vector.gain_less.low > vector.gain.high - vector.gain.low
    think = found["vector_think"].gain
    against = results.difference(
        "micro", results.named("vector_think"), results.named("baseline_think"), "math500"
    )
    assert think is not None and against is not None and think.value == against.value


def test_the_table_of_the_authors_names_settings_and_sources(tmp_path: Path) -> None:
    table = authors_table.table(evaluated(tmp_path, benchmarks=ONE), parse(LOG))
    assert [block.title for block in table.blocks] == ["micro 0.8M, MATH-500 (theirs: qwen)"]
    notes = "\n".join(table.notes)
    assert (
        "qwen: temperature 0." in notes and "L = RESULTS_LOG.md @81af540" in notes and "1: a note." in notes
    )
    assert any("60.0 (L)" in text.text for line in table.lines() for text in line.texts)


def test_a_run_without_their_families_has_no_table(tmp_path: Path) -> None:
    results = evaluated(tmp_path, benchmarks=ONE)
    empty = Authors({}, {}, ())
    assert beside(results, empty) == []
    assert not authors_table.applies(results)


def test_a_figure_whose_setting_is_not_explained_is_refused() -> None:
    with pytest.raises(ValueError, match="not explained"):
        parse(LOG | {"settings": {}})
    assert all(0 <= figure.score <= 100 for figure in authors().figures)
