"""Verdicts, tables, the heat map, the sweep and the sentences never contradict each other, whatever the answers."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.analysis import persistence
from pipeline.analysis.comparisons import Pairing, contrasts
from pipeline.analysis.comparisons import gains as all_gains
from pipeline.analysis.estimate import Difference
from pipeline.analysis.findings import find
from pipeline.analysis.judging import CANNOT_TELL, NO_EFFECT, PERSISTS, SHOWN
from pipeline.analysis.pairs import pairs
from pipeline.analysis.persisting import persisting
from pipeline.analysis.results import Results, read_results
from pipeline.analysis.verdicts import verdicts
from pipeline.report.gains import gains
from pipeline.report.page.opening import changed_from_reference, heat_maps
from pipeline.report.sentences import remarks, what_was_found
from pipeline.report.table import Facts, Kind, Table
from pipeline.report.tables import adversarial, alpha_sweep, controls, main
from pipeline.report.tables import pairs as pairs_table
from pipeline.report.tables.build import build
from tests import synthetic
from tests.synthetic import CONDITIONS, family

RUNS = range(14)
IN_CLUSTERS = 8  # from this run on, documents come from few sources of very different sizes
P_VALUES = {  # columns of the CSVs, and what they stand beside
    "p_holm": "difference",
    "gain_p_holm": "gain",
    "gain_plain_p_holm": "gain_plain",
    "change_p_holm": "change",
}
_WITH_ENDS = re.compile(r"(\S+) \[(\S+), (\S+)\](\*?)")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    return [made_up(tmp_path_factory.mktemp(f"run{seed}"), seed) for seed in RUNS]


@pytest.fixture(params=RUNS)
def results(runs: list[Results], request: pytest.FixtureRequest) -> Results:
    return runs[request.param]


def made_up(folder: Path, seed: int) -> Results:
    """A run with effects from none to large, so that p values lie on both sides of every threshold."""
    rng = np.random.default_rng(seed)
    skills: dict[tuple[str, str], float] = {}

    def skill(condition: str, benchmark: str) -> float:
        same = {"alpha=1.0": "vector", "alpha=-1.0": "minus_vector"}  # rows of the sweep that share a record
        condition = same.get(condition, condition)
        entry = CONDITIONS[condition]
        if entry.role != "main" or entry.start != "target" or condition == "baseline":
            return 0.5
        if condition == "vector" and seed % 2 == 0 and benchmark.startswith("gsm8k"):
            return 0.5 + 0.25 * (
                "@" not in benchmark or seed % 4 == 0
            )  # a clear gain, lost on the variant or kept
        gain = rng.choice([-0.2, 0.0, 0.0, 0.06, 0.1, 0.15, 0.25])
        return skills.setdefault((condition, benchmark), 0.5 + gain)

    documents, sources, benchmarks = [80, 200, 400][seed % 3], None, synthetic.BENCHMARKS
    if seed >= IN_CLUSTERS:
        units = [4, 9, 14, 30, 60, 100][seed - IN_CLUSTERS]
        sources = np.sort((units * rng.random(documents) ** 3).astype(int)).tolist()
        benchmarks = {
            name: replace(entry, cluster=None if name == "bbh" else "source_doc")
            for name, entry in benchmarks.items()
        }
    made = synthetic.write_run(
        folder,
        families={name: family(name) for name in (["one", "two"] if seed % 4 == 3 else ["one"])},
        benchmarks=benchmarks,
        documents=documents,
        skill=skill,
        seed=seed,
        sources=sources,
    )
    return read_results(made, folder)


@pytest.fixture(scope="module")
def built(runs: list[Results]) -> dict[int, list[Table]]:
    return {id(results): build(results) for results in runs}


def by_place(table: Table) -> dict[tuple[object, ...], Facts]:
    """Lines of a table's CSV; of the controls the reference is named where it is not Baseline."""
    return {
        (r["family"], r["condition"], r.get("reference", "baseline"), r["benchmark"]): r for r in table.data
    }


def test_a_verdict_has_the_difference_and_the_p_value_of_the_tables(results: Results) -> None:
    shown = by_place(main.table(results)) | by_place(controls.table(results))
    seen = 0
    for verdict in verdicts(results):
        for one in verdict.comparisons:
            if one.persistence is not None:
                continue
            reference = {"random": "random-s0", "minus_random": "minus_random-s0"}.get(
                one.reference, one.reference
            )
            row = shown[verdict.family, one.condition, reference, one.benchmark]
            assert one.difference is not None
            assert row["p_holm"] == one.p_holm
            assert row["difference_value"] == pytest.approx(100 * one.difference.value)
            assert row["detectable"] == pytest.approx(100 * one.difference.detectable, nan_ok=True)
            assert (one.p_holm < 0.05) == (one.outcome in SHOWN)
            seen += 1
    assert seen >= 7 * len(results.families)


def test_what_persists_is_the_same_in_the_verdict_the_table_and_the_heat_map(results: Results) -> None:
    rows, compared = by_place(adversarial.table(results)), all_gains(results)
    decided = 0
    for verdict in verdicts(results):
        for one in verdict.comparisons:
            if one.decision is not None:
                row = rows[verdict.family, one.condition, one.reference, one.benchmark]
                assert PERSISTS[str(row["persists"])] == one.outcome
                assert row["gain_p_holm"] == one.p_holm
                decided += 1
    assert decided == len(results.families)
    for (name, condition, reference, benchmark), row in rows.items():
        if row["gain_p_holm"] is not None:
            found = compared[Pairing(str(name), str(condition), str(reference), str(benchmark))]
            assert found.p_holm == row["gain_p_holm"]
            assert 100 * found.difference.value == pytest.approx(row["gain_value"])


def test_a_star_stands_only_beside_an_interval_without_zero(
    results: Results, built: dict[int, list[Table]]
) -> None:
    stars = 0
    for table in built[id(results)]:
        for line in table.lines():
            for entry in line.entries:
                for value, low, high, star in _WITH_ENDS.findall(entry.text.replace("−", "-")):
                    assert not star or float(low) * float(high) >= 0, f"{table.name}: {entry.text}"
                    stars += bool(star) and float(value) != 0
        for facts in table.data:
            for p, prefix in P_VALUES.items():
                if (found := facts.get(p)) is not None and float(str(found)) < 0.05:
                    ends = [float(str(facts[f"{prefix}_{end}"])) for end in ("low", "high")]
                    assert ends[0] > 0 or ends[1] < 0, f"{table.name}: {facts}"
    assert stars


def test_what_is_called_shown_leaves_zero_out(results: Results) -> None:
    findings = find(results)
    for gain in findings.gains:
        if gain.is_significant or gain.outcome in SHOWN:
            assert not holds_zero(gain.difference)
    for verdict in findings.verdicts:
        for one in verdict.comparisons:
            if one.outcome in SHOWN:
                assert one.difference is not None
                assert not holds_zero(one.difference)
    for case in findings.persisting:
        plain, gain, change = (getattr(case.persistence, name) for name in ("gain_plain", "gain", "change"))
        outcome = case.decision.outcome
        if outcome not in (persistence.NO_GAIN, persistence.LOSS):
            assert plain.low > 0
        if outcome in (persistence.YES, persistence.AT_LEAST_IN_PART, persistence.IN_PART):
            assert gain.low > 0
        if outcome in (persistence.IN_PART, persistence.NO):
            assert change.high < 0
        assert outcome != persistence.LOSS or plain.high < 0
        assert outcome != persistence.REVERSED or gain.high < 0
    for low, high in re.findall(
        r"(?:raises|lowers) [^;]*? by \S+ points \[(\S+), (\S+)\]", what_was_found(results)[0]
    ):
        assert "−" not in low + high
    for one in pairs(results):
        assert not one.differ or one.heterogeneity.i2_low > 0


def test_an_interval_without_zero_and_without_a_star_has_its_reason_in_the_notes(
    results: Results, built: dict[int, list[Table]]
) -> None:
    tables = {table.name: " ".join(table.notes) for table in built[id(results)]}
    of = {"main": all_gains(results), "controls": contrasts(results)}
    for name, compared in of.items():
        for one in compared.values():
            if one.is_significant or holds_zero(one.difference):
                continue
            assert "without a star is not significant after the correction" in tables[name]
            if one.difference.p >= 0.05:  # the correction is not what takes the star away
                assert one.difference.units < 6
                assert "fewer than six independent units" in tables[name]
    for case in persisting(results):
        for difference in (case.persistence.gain_plain, case.persistence.gain, case.persistence.change):
            if not holds_zero(difference) and difference.p >= 0.05:
                assert difference.units < 6
                assert "fewer than six independent units" in tables["adversarial"]
    for verdict in verdicts(results):
        for one in verdict.comparisons:
            if one.outcome == CANNOT_TELL and one.difference and not holds_zero(one.difference):
                said = " ".join(remarks(one))
                assert one.persistence or "documents" in said or "leaves zero out, but" in said


def holds_zero(difference: Difference) -> bool:
    return difference.low <= 0 <= difference.high


def test_the_heat_map_is_hatched_where_the_tables_have_no_star(results: Results) -> None:
    table, plain = main.table(results), results.plain()
    maps = heat_maps(results, gains(results), changed_from_reference(results))
    hatched = {
        (of.family, label, column): cell.is_hatched
        for of in maps
        for _, rows in of.groups
        for label, cells in rows
        for (column, _), cell in zip(of.columns, cells, strict=True)
    }
    compared = 0
    for block in table.blocks:
        label = ""
        for line in block.lines:
            if line.kind is Kind.value:
                label = line.label
            if line.kind is Kind.difference:
                for benchmark, entry in zip(plain, line.entries, strict=True):
                    assert hatched[block.title, label, results.label(benchmark)] != ("*" in entry.text)
                    compared += 1
    assert compared == 4 * len(plain) * len(results.families)


def test_the_sweep_and_the_pairs_repeat_what_is_tested_already(results: Results) -> None:
    compared = all_gains(results)
    sweep = [r for r in alpha_sweep.table(results).data if r["alpha"] in (-1.0, 1.0)]
    assert len(sweep) == 2 * len(results.plain()) * len(results.families)
    for row in sweep:
        name = "vector" if row["alpha"] == 1.0 else "minus_vector"
        known = compared[Pairing(str(row["family"]), name, "baseline", str(row["benchmark"]))]
        assert row["p_holm"] == known.p_holm
    for one in pairs(results):
        for effect in one.effects:
            known = compared[Pairing(effect.family, "vector", "baseline", one.benchmark)]
            assert effect.p_holm == known.p_holm
    if len(results.families) > 1:
        stars = [
            "*" in line.entries[0].text
            for line in pairs_table.table(results).lines()
            if line.kind is Kind.value
        ]
        assert stars == [effect.p_holm < 0.05 for one in pairs(results) for effect in one.effects]


def test_the_sentences_say_what_the_verdicts_say(results: Results) -> None:
    scores, answers = what_was_found(results)
    judged = {
        (verdict.family, one.benchmark): one
        for verdict in verdicts(results)
        if verdict.claim in ("consistent", "persists")
        for one in verdict.comparisons
    }
    plain = {place: one for place, one in judged.items() if place[1] in results.plain()}
    outcomes = [one.outcome for one in plain.values()]
    if len(results.families) > 1:
        for outcome, said in ((NO_EFFECT, "shows no effect in"), (CANNOT_TELL, "is inconclusive in")):
            number = outcomes.count(outcome)
            assert (f"{said} {number} of {len(outcomes)}" in scores) == (number > 0)
        assert ("between pairs" in scores) == bool(pairs(results))
        return
    v = scores.partition(";")[0]
    for (_, benchmark), one in plain.items():
        label = results.benchmarks[benchmark].label
        assert one.difference is not None
        verb = "raises" if one.difference.value > 0 else "lowers"
        assert (f"{verb} {label} by" in v) == (one.outcome in SHOWN)
        for outcome, clause in ((NO_EFFECT, "shows no effect on"), (CANNOT_TELL, "is inconclusive on")):
            said = re.search(rf"{clause} (.*?)(,? and is|$)", v)
            assert (said is not None and label in said[1]) == (one.outcome == outcome)
    raised = plain["one", "gsm8k"]
    assert raised.difference is not None
    variant = judged["one", "gsm8k@larger_numbers"]
    if (
        raised.outcome in SHOWN
        and raised.difference.value > 0
        and variant.outcome.startswith(("persists", "does not"))
    ):
        gained = [
            d for one in plain.values() if one.outcome in SHOWN and (d := one.difference) and d.value > 0
        ]
        told_apart = len(gained) <= 2
        assert (f"{variant.outcome} with" if told_apart else f"{variant.outcome} in 1 of 1") in answers


def test_the_walk_meets_every_kind_of_outcome(runs: list[Results]) -> None:
    found = {one.outcome for results in runs for verdict in verdicts(results) for one in verdict.comparisons}
    assert found >= {"found here too", "opposite", NO_EFFECT, CANNOT_TELL, "does not persist"}
    assert found & {"persists", "persists at least in part", "persists in part"}
    stars = [one.is_significant for results in runs for one in all_gains(results).values()]
    assert 0.1 < np.mean(stars) < 0.9
