"""Verdicts: like with like, the outcomes that a reader would give, and no jump at p = 0.05."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.analysis import judging, paired
from pipeline.analysis.claims import read_claims
from pipeline.analysis.design import design
from pipeline.analysis.estimate import Difference
from pipeline.analysis.judging import WORST_FIRST, judge
from pipeline.analysis.power import documents_needed, mcnemar_power
from pipeline.analysis.published import documents_of, published
from pipeline.analysis.results import Results, read_results
from pipeline.analysis.verdicts import Verdict, verdicts
from pipeline.report import terminal
from pipeline.report.sentences import verdict_reason
from tests import synthetic
from tests.synthetic import CONDITIONS, MAIN, benchmark, family

ONE = {"gsm8k": benchmark("GSM8K form", published="GSM8K")}
BIG = {"big": family("1.5B", published_size="1.5B")}


def evaluated(folder: Path, **made: Any) -> Results:
    return read_results(synthetic.write_run(folder, **made), folder)


def of(results: Results, claim: str, in_family: str | None = None) -> Verdict:
    found = (v for v in verdicts(results) if v.claim == claim and in_family in (None, v.family))
    return next(found)


def gsm8k(
    folder: Path, documents: int, skill: float, families: dict[str, Any] | None = BIG
) -> tuple[Verdict, str]:
    """The verdict on GSM8K with the prompt beside a Baseline of 50 %, and its reason."""
    skills = {"baseline": 0.5, "vector_think": skill}
    results = evaluated(
        folder,
        documents=documents,
        families=families,
        conditions={name: MAIN[name] for name in skills},
        benchmarks=ONE,
        skill=lambda condition, _: skills[condition],
    )
    verdict = of(results, "gsm8k")
    return verdict, verdict_reason(results, verdict)


def difference(gained: int, lost: int, n: int) -> Difference:
    changes = np.repeat([1.0, -1.0, 0.0], [gained, lost, n - gained - lost])
    return paired.change(changes, design(n))


# ---- the data ----


def test_every_figure_names_known_sources_and_every_claim_known_conditions() -> None:
    figures, sources = published().figures, published().sources
    assert len({figure.id for figure in figures}) == len(figures)
    assert all(set(figure.source) <= set(sources) for figure in figures)
    assert all(documents_of(figure.benchmark) for figure in figures if figure.difference is not None)
    conf = Path(__file__).parent.parent / "conf"
    conditions = set(yaml.safe_load((conf / "conditions" / "paper.yaml").read_text()))
    benchmarks = {path.stem for path in (conf / "benchmark").glob("*.yaml")}
    comparisons = [c for claim in read_claims().claims for c in claim.comparisons]
    assert comparisons
    for c in comparisons:
        assert {c.condition, c.reference} <= conditions & {*synthetic.SKILL, "random", "minus_random"}
        assert c.benchmark in benchmarks


def test_the_rule_explains_every_outcome_and_names_no_other() -> None:
    explained = {outcome for group in read_claims().rule.values() for outcome in group}
    assert explained == set(WORST_FIRST)


# ---- one comparison ----


@pytest.mark.parametrize(
    ("gained", "lost", "figure", "outcome"),
    [
        (90, 30, 0.049, judging.AGREES),
        (45, 15, 0.123, judging.SMALLER),
        (300, 20, 0.049, judging.LARGER),
        (30, 30, 0.123, judging.NO_EFFECT),
        (20, 90, 0.049, judging.OPPOSITE),
        (36, 30, 0.015, judging.CANNOT_TELL),
    ],
)
def test_the_six_outcomes(gained: int, lost: int, figure: float, outcome: str) -> None:
    ours = difference(gained, lost, 1319)
    assert judge(ours, ours.p, 1, figure, 1319).outcome == outcome
    # A claim that goes down is judged alike.
    mirrored = difference(lost, gained, 1319)
    assert judge(mirrored, mirrored.p, -1, -figure, 1319).outcome == outcome


@pytest.mark.parametrize("figure", [None, 0.02, 0.049, 0.123])
def test_no_outcome_jumps_from_good_to_bad_at_the_level(figure: float | None) -> None:
    good = {judging.AGREES, judging.LARGER, judging.FOUND}
    bad = {judging.NO_EFFECT, judging.OPPOSITE}
    crossed = 0
    for lost in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55):
        found = [difference(gained, lost, 600) for gained in range(lost, lost + 40)]
        outcomes = [judge(d, d.p, 1, figure, 600).outcome for d in found]
        for (before, d), after in zip(zip(outcomes, found, strict=True), outcomes[1:], strict=False):
            assert not (before in bad and after in good)
            crossed += d.p >= 0.05 and after in good
    assert crossed or figure == 0.123


@pytest.mark.parametrize("figure", [None, 0.0, 0.049, -0.118, 1.0])
@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(0, 0, 1), (1, 0, 1), (0, 2, 2), (0, 0, 100), (7, 0, 7), (0, 7, 9)]
)
def test_every_border_has_an_outcome(gained: int, lost: int, n: int, figure: float | None) -> None:
    ours = difference(gained, lost, n)
    for sign, size in ((1, None), (-1, None), (1, 1319)):
        for p_holm in (ours.p, 1.0):
            found = judge(ours, p_holm, sign, figure, size)
            assert (found.outcome in judging.SHOWN) == (p_holm < 0.05)
            assert found.outcome != judging.NO_EFFECT or n == 100
            assert found.needed is None or found.needed > n


def test_a_published_zero_is_no_figure_to_fall_below() -> None:
    assert judge(difference(0, 0, 100), 1.0, 1, 0.0, 1319).outcome == judging.NO_EFFECT
    assert judge(difference(0, 0, 10), 1.0, 1, 0.0, 1319).outcome == judging.CANNOT_TELL
    assert judge(difference(30, 0, 100), 1e-6, 1, 0.0, 1319).outcome == judging.LARGER


def test_the_figure_has_an_error_of_its_own() -> None:
    ours = difference(120, 40, 6511)  # +1.2 points, known well
    alone, with_few = (judge(ours, ours.p, 1, 0.043, size) for size in (6511, 164))
    assert alone.outcome == judging.SMALLER
    assert with_few.outcome == judging.AGREES  # 164 problems do not know 4.3 points from 1.2
    assert with_few.published is not None and with_few.published.low < 0.012


def test_the_documents_that_are_needed_find_the_effect() -> None:
    needed = documents_needed(0.026, 0.1, 0.05)
    assert needed is not None
    assert mcnemar_power(needed, 0.026, 0.1) >= 0.8 > mcnemar_power(int(0.98 * needed), 0.026, 0.1)
    few = difference(4, 3, 80)
    told = judge(few, few.p, 1, 0.026, 1319)
    assert told.outcome == judging.CANNOT_TELL
    assert told.needed is not None and told.needed > 80
    assert documents_needed(1e-5, 0.3) is None


# ---- a run ----


def test_a_clear_gain_agrees_or_is_larger_and_stands_beside_the_figure(tmp_path: Path) -> None:
    verdict, reason = gsm8k(tmp_path, 400, 0.7)
    assert verdict.outcome == judging.LARGER
    assert verdict.is_published and "published +4.9 (A, M)" in reason
    assert verdict.sentence and verdict.leaves_open


def test_a_family_without_a_published_size_gets_words_of_its_own(tmp_path: Path) -> None:
    verdict, reason = gsm8k(tmp_path, 400, 0.7, families=None)
    assert verdict.outcome == judging.FOUND
    assert verdict.statement == "v with the prompt improves GSM8K form"
    assert not verdict.is_published and "published" not in reason and "4.9" not in reason
    everything = "\n".join(outcome for group in read_claims().rule.values() for outcome in group)
    assert "reproduced" not in everything


def test_each_size_is_held_against_its_own_figure(tmp_path: Path) -> None:
    families = BIG | {"bigger": family("7B", published_size="7B")}
    conditions = {name: MAIN[name] for name in ("baseline", "vector_think", "vector")}
    results = evaluated(tmp_path, families=families, conditions=conditions, benchmarks=ONE)
    figures = {name: of(results, "gsm8k", name).comparisons[0].figure for name in families}
    assert {name: figure.difference for name, figure in figures.items() if figure} == {
        "big": 4.9,
        "bigger": 5.0,
    }
    alone = {name: of(results, "consistent", name).comparisons[0].figure for name in families}
    assert alone["big"] is not None and alone["bigger"] is None  # the paper has no +Vector for 7B


def test_no_effect_says_what_would_have_been_found_and_few_documents_how_many_are_needed(
    tmp_path: Path,
) -> None:
    verdict, reason = gsm8k(tmp_path / "many", 4000, 0.5)
    assert verdict.outcome == judging.NO_EFFECT and "points would be found with 80 % power" in reason
    verdict, reason = gsm8k(tmp_path / "few", 20, 0.5)
    assert verdict.outcome == judging.CANNOT_TELL and "4.9 points need about" in reason
    assert gsm8k(tmp_path / "loss", 400, 0.3)[0].outcome == judging.OPPOSITE


def test_a_model_that_answers_nothing_any_more_is_larger_and_ruined(tmp_path: Path) -> None:
    skills = {"baseline": 0.7, "minus_vector": 0.0}
    results = evaluated(
        tmp_path,
        documents=300,
        families=BIG,
        conditions={name: MAIN[name] for name in skills},
        benchmarks=ONE,
        skill=lambda condition, _: skills[condition],
    )
    verdict = of(results, "subtraction")
    assert verdict.outcome == judging.LARGER
    assert "the model is ruined" in verdict_reason(results, verdict)


def test_a_comparison_that_the_run_does_not_have_is_named(tmp_path: Path) -> None:
    two = {"gsm8k": synthetic.BENCHMARKS["gsm8k"], "sciq": synthetic.BENCHMARKS["sciq"]}
    results = evaluated(tmp_path, documents=200, conditions=MAIN, benchmarks=two)
    verdict = of(results, "consistent")
    assert len(verdict.comparisons) == 2
    assert "not in this run: +Vector on HumanEval, +Vector on BIG-Bench Hard" in verdict_reason(
        results, verdict
    )


def test_the_least_favourable_comparison_stands_for_the_claim(tmp_path: Path) -> None:
    def skill(condition: str, of_benchmark: str) -> float:
        return 0.8 if condition == "vector" and of_benchmark == "gsm8k" else 0.5

    results = evaluated(tmp_path, documents=600, conditions=MAIN, skill=skill)
    verdict = of(results, "consistent")
    assert [j.outcome for j in verdict.comparisons][:2] == [judging.FOUND, judging.NO_EFFECT]
    assert verdict.outcome == judging.NO_EFFECT


def test_v_against_noise_says_its_place_among_the_seeds(tmp_path: Path) -> None:
    results = evaluated(tmp_path, documents=300, benchmarks=ONE)
    verdict = of(results, "transfer")
    (judged,) = verdict.comparisons
    assert judged.seeds is not None and (judged.seeds.as_far, judged.seeds.of) == (0, 3)
    assert "none of 3 seeds as far from Baseline as v" in verdict_reason(results, verdict)


def test_one_correction_for_a_family_counts_each_comparison_once(tmp_path: Path) -> None:
    results = evaluated(tmp_path, documents=300, conditions=CONDITIONS, benchmarks=ONE)
    judged = {(j.condition, j.reference): j for v in verdicts(results) for j in v.comparisons}
    assert len(judged) == 5  # +Vector and +Vector+Think and −Vector, and two against noise
    smallest = min(judged.values(), key=lambda j: j.difference.p if j.difference else 1.0)
    assert smallest.difference is not None
    assert smallest.p_holm == pytest.approx(5 * smallest.difference.p)


def test_claims_without_cells_share_one_line(tmp_path: Path) -> None:
    results = evaluated(tmp_path, conditions=MAIN, benchmarks=ONE)
    judged = verdicts(results)
    in_run = [v for v in judged if v.is_in_run]
    assert len(judged) == len(read_claims().claims)
    lines = [line for line in terminal.verdict_lines(results) if ": " in line]
    assert (
        lines[-1].startswith("not in this run") and f"{len(judged) - len(in_run)} of the claims" in lines[-1]
    )
    for verdict in judged:
        assert any(verdict.statement in line for line in (lines[:-1] if verdict.is_in_run else lines[-1:]))


def test_a_sum_of_vectors_never_stands_for_v(tmp_path: Path) -> None:
    part = replace(MAIN["vector"], terms=(replace(MAIN["vector"].terms[0], part={"modules": ["mlp"]}),))
    results = evaluated(
        tmp_path, conditions={"baseline": MAIN["baseline"], "vector": part}, benchmarks=ONE, families=BIG
    )
    assert not any(v.is_in_run for v in verdicts(results))
