"""Tables, verdicts and comparisons of runs whose effects are known, from records in the real store."""

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.analysis import paired, scores
from pipeline.analysis.comparisons import gains
from pipeline.analysis.design import design, sample_of
from pipeline.analysis.repeats import mean_difference
from pipeline.analysis.results import Results, read_results
from pipeline.manifest import (
    BenchmarkEntry,
    Manifest,
    Place,
    PlannedCell,
    TermEntry,
    manifest_path,
    read_manifest,
)
from pipeline.records import cell_folder
from pipeline.report import formats, terminal
from pipeline.report.numbers import listed, signed
from pipeline.report.table import Kind, Table, Text
from pipeline.report.tables import adversarial, alpha_sweep, controls, cost, geometry, main
from pipeline.report.tables.build import build
from tests import synthetic
from tests.synthetic import MAIN, benchmark, family

ONE = {"gsm8k": benchmark("GSM8K form", published="GSM8K")}


def cell(
    folder: Path, right: Any, entry: BenchmarkEntry, *, name: str, order: Any = None, **metrics: Any
) -> str:
    """The key of a record with these right answers, its samples in `order`."""
    rows = synthetic.samples(np.asarray(right, dtype=bool), entry.cluster)
    return synthetic.write_cell(
        folder, {"name": name}, [rows[i] for i in order] if order is not None else rows, **metrics
    )


def manifest(
    keys: Mapping[tuple[str, str], str], benchmarks: Mapping[str, BenchmarkEntry], label: str = "F"
) -> Manifest:
    """A manifest of one family from (condition, benchmark) → key."""
    conditions = {name: synthetic.CONDITIONS[name] for name, _ in keys}
    cells = tuple(PlannedCell("f", condition, of, key) for (condition, of), key in keys.items())
    return Manifest("small", {"f": family(label)}, dict(benchmarks), conditions, cells)


def evaluated(folder: Path, **made: Any) -> Results:
    """The results of a synthetic run."""
    return read_results(synthetic.write_run(folder, **made), folder)


def written(results: Results, out: Path) -> list[Path]:
    return [path for table in build(results) for path in formats.write(table, out)]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fingerprints(paths: list[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_rendering_again_gives_the_same_bytes(tmp_path: Path) -> None:
    path = manifest_path(tmp_path, synthetic.write_run(tmp_path).experiment)
    first = fingerprints(written(read_results(read_manifest(path), tmp_path), tmp_path / "a"))
    scores._read.cache_clear()
    second = fingerprints(written(read_results(read_manifest(path), tmp_path), tmp_path / "b"))
    names = ("main", "metrics", "answers", "adversarial", "controls", "alpha_sweep", "geometry", "cost")
    assert set(first) == {f"{name}.{suffix}" for name in names for suffix in ("md", "tex", "csv")}
    assert first == second


def test_difference_is_paired_by_document_whatever_the_order(tmp_path: Path) -> None:
    old, new = np.arange(100) < 50, np.arange(100) < 70
    shuffled = np.random.default_rng(0).permutation(100)
    keys = {
        ("baseline", "gsm8k"): cell(tmp_path, old, ONE["gsm8k"], name="old"),
        ("vector", "gsm8k"): cell(tmp_path, new, ONE["gsm8k"], name="new", order=shuffled),
    }
    written(read_results(manifest(keys, ONE), tmp_path), tmp_path / "out")
    row = next(r for r in read_csv(tmp_path / "out" / "main.csv") if r["condition"] == "vector")
    assert (float(row["value"]), float(row["difference_value"])) == (70, 20)
    assert (row["gained"], row["lost"], row["test"]) == ("20", "0", "McNemar")
    assert float(row["p"]) == pytest.approx(2 * 0.5**20, rel=1e-4)
    assert "+20.0 [" in (tmp_path / "out" / "main.md").read_text()


def test_each_gain_is_corrected_in_one_set_and_every_table_shows_that(tmp_path: Path) -> None:
    results = evaluated(tmp_path)
    tested = gains(results)
    rows = results.rows("main", "control")
    assert len(tested) == (len(rows) - 1) * len(results.benchmarks)
    perturbed = {p for p in tested if p.benchmark in results.variants() and p.new in synthetic.MAIN}
    claimed = {p: one for p, one in tested.items() if one.is_claimed and p not in perturbed}
    others = {p: one for p, one in tested.items() if not one.is_claimed and p not in perturbed}
    assert len(claimed) == 7 and {one.tests for one in claimed.values()} == {9}  # and two against noise
    assert {one.tests for one in others.values()} == {len(others)}
    assert {(tested[p].is_claimed, tested[p].tests) for p in perturbed} == {(True, 3), (False, 9)}
    for of_set in (claimed, others):
        smallest = min(of_set.values(), key=lambda one: one.difference.p)
        assert smallest.p_holm == pytest.approx(smallest.difference.p * smallest.tests)
    shown = {(r["condition"], r["benchmark"]): r["p_holm"] for r in main.table(results).data if r["p_holm"]}
    assert shown == {
        (p.new, p.benchmark): one.p_holm for p, one in tested.items() if (p.new, p.benchmark) in shown
    }
    of_controls = [r for r in controls.table(results).data if r["p_holm"] and "reference" not in r]
    assert {(r["condition"], r["benchmark"]): r["p_holm"] for r in of_controls}.items() <= {
        (p.new, p.benchmark): one.p_holm for p, one in tested.items()
    }.items()


def test_missing_damaged_partial_and_flagged_cells_are_marked_and_the_rest_is_rendered(
    tmp_path: Path,
) -> None:
    n, info = 40, ONE["gsm8k"]
    right = np.arange(n) < 20
    keys = {
        ("baseline", "gsm8k"): cell(tmp_path, right, info, name="baseline"),
        ("grpo_think", "gsm8k"): "0" * 64,
        ("vector", "gsm8k"): cell(tmp_path, right[:10], info, name="partial", share_truncated=0.3),
        ("vector_think", "gsm8k"): cell(tmp_path, right, info, name="mute", share_not_extracted=0.2),
        ("minus_vector", "gsm8k"): cell(tmp_path, ~right, info, name="damaged"),
    }
    samples = cell_folder(tmp_path, keys["minus_vector", "gsm8k"]) / "samples.jsonl"
    samples.write_bytes(samples.read_bytes()[:-5])
    results = read_results(manifest(keys, ONE), tmp_path)
    found = {r["condition"]: r for r in main.table(results).data}
    assert {name: r["marks"] for name, r in found.items()} == {
        "baseline": "",
        "grpo_think": "m",
        "vector": "pt",
        "vector_think": "x",
        "minus_vector": "d",
    }
    assert found["vector_think"]["value"] == 50
    text = formats.markdown(main.table(results))
    assert "missing<sup>m</sup>" in text
    assert "damaged<sup>d</sup>" in text
    assert all(f"\n{mark}: " in text for mark in "mdptx")
    assert len(results.problems) == 2
    assert all("\n" not in line for line in results.problems)
    assert "[m]" in terminal.summary(results)


def test_limited_cells_are_marked_each_and_in_the_head(tmp_path: Path) -> None:
    limited = {**ONE, "sciq": benchmark("SciQ form", limit=20)}
    table = main.table(evaluated(tmp_path, conditions=MAIN, benchmarks=limited))
    assert [head.text for head in table.header[1:]] == ["GSM8K form", "SciQ form (first 20)"]
    values = [line.entries for line in table.lines() if line.kind is Kind.value]
    assert len(values) == len(MAIN)
    assert all(plain.marks == "" and limited.marks == "l" for plain, limited in values)


def test_a_recovered_record_is_seen_in_the_same_process(tmp_path: Path) -> None:
    planned = synthetic.write_run(tmp_path, conditions=MAIN, benchmarks=ONE)
    folder = cell_folder(tmp_path, next(c.key for c in planned.cells if c.condition == "vector"))
    assert not read_results(planned, tmp_path).problems
    folder.rename(tmp_path / "aside")
    assert len(read_results(planned, tmp_path).problems) == 1
    (tmp_path / "aside").rename(folder)
    assert not read_results(planned, tmp_path).problems


def test_published_numbers_stand_only_beside_the_size_and_benchmark_that_the_paper_names(
    tmp_path: Path,
) -> None:
    families = {"big": family("1.5B", published_size="1.5B"), "small": family("micro")}
    table = main.table(evaluated(tmp_path, families=families, conditions=MAIN))
    lines = dict(table.blocks)
    paper = [[e.text for e in line.entries] for line in lines["1.5B"] if line.kind is Kind.published]
    assert paper == [  # G+T, +Vector, +Vector+Think, −Vector × GSM8K, SciQ, BBH
        ["–", "–", "–"],
        ["+2.6 (M)", "–", "+12.3 (M); 19.0 after (K)"],
        ["+4.9 (A, M)", "+1.7 (A)", "+12.3 (A, M)"],
        ["−11.8 (A)", "–", "–"],
    ]
    assert not [line for line in lines["micro"] if line.kind is Kind.published]
    assert any("size of the −Vector figure is not stated" in note for note in table.notes)


def test_seeds_of_a_random_control_are_one_row_averaged_by_document(tmp_path: Path) -> None:
    results = evaluated(tmp_path, benchmarks=ONE)
    row = results.row("random", 1)
    assert row is not None
    assert len(row.members) == 3
    singles = [results.cell("micro", results.named(member), "gsm8k") for member in row.members]
    mean = results.cell("micro", row, "gsm8k")
    assert mean is not None
    np.testing.assert_allclose(mean.score, np.mean([c.score for c in singles if c], axis=0))
    text = formats.markdown(controls.table(results))
    assert "+Random (mean of 3)" in text
    assert "range over seeds" in text
    assert "seed 0" not in text


def test_controls_compare_v_with_each_control_directly(tmp_path: Path) -> None:
    results = evaluated(tmp_path, benchmarks=ONE)
    data = {row["label"]: row for row in controls.table(results).data if "reference" in row}
    expected = results.difference("micro", results.named("vector"), results.named("sft"), "gsm8k")
    assert expected is not None
    assert data["+Vector against SFT donor"]["difference_value"] == pytest.approx(100 * expected.value)
    assert {"+Vector against +Random (mean of 3)", "−Vector against −Random (mean of 3)"} <= set(data)
    assert "+Vector+Think against Baseline+Think" in data


def test_sweep_is_ordered_and_alpha_zero_is_its_own_reference(tmp_path: Path) -> None:
    results = evaluated(tmp_path, benchmarks=ONE)
    data = alpha_sweep.table(results).data
    alphas = [row["alpha"] for row in data]
    assert alphas == sorted(alphas) == [-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0]
    by_alpha = {row["alpha"]: row for row in data}
    assert by_alpha[0.0]["difference_value"] is None
    of_main = {row["condition"]: row for row in main.table(results).data}
    assert by_alpha[1.0]["value"] == of_main["vector"]["value"]
    assert by_alpha[-1.0]["difference_value"] == of_main["minus_vector"]["difference_value"]


def test_a_part_of_the_vector_is_a_row_and_never_stands_for_the_whole(tmp_path: Path) -> None:
    mlp = {"modules": ["mlp"]}
    conditions = {
        "mlp": synthetic.condition("+Vector (MLP)", "mlp", TermEntry(1.0, part=mlp)),
        "mlp3": synthetic.condition("3 MLP", "mlp3", TermEntry(3.0, part=mlp)),
        "noise-s0": synthetic.seeded("+Noise", "noise", 1.0, 0, part=mlp),
    }
    results = evaluated(tmp_path, benchmarks=ONE, conditions=conditions | synthetic.CONDITIONS)
    vector, random = results.row("vector", 1), results.row("random", 1)
    assert vector is not None and vector.name == "vector"
    assert random is not None and random.members == ("random-s0", "random-s1", "random-s2")
    (sweep,) = results.sweeps()
    assert all(row.name.startswith("alpha=") for _, row in sweep.points)
    assert {"mlp", "mlp3", "noise-s0"} <= {row.name for row in results.rows("main", "control")}


def test_each_sweep_is_a_block_with_the_rows_that_lie_on_its_line(tmp_path: Path) -> None:
    mlp = {"modules": ["mlp"]}
    conditions = synthetic.CONDITIONS | {
        "mlp": synthetic.condition("+Vector (MLP)", "mlp", TermEntry(1.0, part=mlp)),
        "attention": synthetic.condition("+Vector (attention)", "attention", TermEntry(1.0, part={})),
        **{f"of_mlp={a!r}": synthetic.swept(a, "of_mlp", part=mlp) for a in (2.0, 0.5)},
        **{f"think={a!r}": replace(synthetic.swept(a, "think"), prompt="think") for a in (0.5, 2.0)},
    }
    results = evaluated(tmp_path, benchmarks=ONE, conditions=conditions)
    lines = {s.name: {alpha: row.name for alpha, row in s.points} for s in results.sweeps()}
    assert list(lines) == ["alpha", "of_mlp", "think"]
    assert lines["of_mlp"] == {0.0: "baseline", 0.5: "of_mlp=0.5", 1.0: "mlp", 2.0: "of_mlp=2.0"}
    assert lines["think"] == {
        0.0: "baseline_think",
        0.5: "think=0.5",
        1.0: "vector_think",
        2.0: "think=2.0",
    }
    table = alpha_sweep.table(results)
    values = {title: [line.label for line in b if line.kind is Kind.value] for title, b in table.blocks}
    assert values["micro 0.8M, of_mlp, α"] == ["α = 0", "α = 0.5", "α = 1", "α = 2"]
    assert len(values["micro 0.8M, α"]) == 9
    shown = next(r for r in table.data if (r["sweep"], r["alpha"]) == ("think", 2.0))
    against_its_own = results.difference(
        "micro", results.named("think=2.0"), results.named("baseline_think"), "gsm8k"
    )
    assert against_its_own is not None
    assert shown["difference_value"] == 100 * against_its_own.value


def test_the_only_sweep_is_named_unless_it_is_of_the_whole_vector(tmp_path: Path) -> None:
    mlp = {f"mlp={a!r}": synthetic.swept(a, "mlp", part={"modules": ["mlp"]}) for a in (0.5, 1.0)}
    baseline = {"baseline": synthetic.CONDITIONS["baseline"]}
    results = evaluated(tmp_path, benchmarks=ONE, conditions=baseline | mlp)
    assert [block.title for block in alpha_sweep.table(results).blocks] == ["micro 0.8M, mlp, α"]


@pytest.mark.parametrize("label", ["paper", "Δ", "detectable (x)", "range over seeds", "v (seed 1)"])
def test_a_label_never_says_what_a_line_is(label: str, tmp_path: Path) -> None:
    conditions = MAIN | {"vector": replace(MAIN["vector"], label=label, row_label=label)}
    plain, odd = (
        main.table(evaluated(tmp_path / name, benchmarks=ONE, conditions=c))
        for name, c in (("plain", MAIN), ("odd", conditions))
    )
    assert [line.kind for line in odd.lines()] == [line.kind for line in plain.lines()]
    assert [line.label for line in odd.lines() if line.kind is Kind.value].count(label) == 1
    assert odd.notes == plain.notes
    shown = ' class="value">'
    assert formats.as_html(odd).count(shown) == formats.as_html(plain).count(shown) > 0


def test_a_label_is_text_in_markdown() -> None:
    label = "[x](javascript:y) `c` <b> &lt; a|b *s* _u_ \\\\ A & B"
    table = Table("t", "T", [Text(label), Text("89.0 [47.6, 100.0]")])
    shown = r"[x\](javascript:y) \`c\` &lt;b> \&lt; a\|b \*s\* \_u\_ \\\\ A & B"
    assert f"| {shown} | 89.0 [47.6, 100.0] |" in formats.markdown(table)


def test_a_manifest_of_the_first_layout_gives_the_same_bytes(tmp_path: Path) -> None:
    conditions = synthetic.CONDITIONS | {
        "mlp": synthetic.condition("+Vector (MLP)", "mlp", TermEntry(1.0, part={})),
        **{f"noise-s{seed}": synthetic.seeded("+Noise", "noise", 1.0, seed, part={}) for seed in (0, 7)},
    }
    families = {f"seed{i}": family(f"seed {i}", group="g", published_size="1.5B") for i in range(2)}
    made = synthetic.write_run(tmp_path, families=families, conditions=conditions, documents=20)
    now = fingerprints(written(read_results(made, tmp_path), tmp_path / "now"))
    old = read_manifest(synthetic.write_schema_1(tmp_path, made))
    assert fingerprints(written(read_results(old, tmp_path), tmp_path / "old")) == now
    assert old == made


def test_perturbed_documents_are_paired_with_their_sources(tmp_path: Path) -> None:
    plain, variant = benchmark("P"), benchmark("V", variant_of="p", cluster="source_doc")
    old, new = np.arange(60) % 2 == 0, np.ones(60, dtype=bool)
    # The variant has two documents of each of the sources 40 to 59; the baseline is wrong on all of them.
    rows = synthetic.samples(np.zeros(40, dtype=bool))
    right_rows = synthetic.samples(np.arange(40) < 30)
    for made in (rows, right_rows):
        for i, row in enumerate(made):
            row["source_doc"] = 40 + i % 20
    keys = {
        ("baseline", "p"): cell(tmp_path, old, plain, name="old"),
        ("vector", "p"): cell(tmp_path, new, plain, name="new"),
        ("baseline", "p@v"): synthetic.write_cell(tmp_path, {"name": "old v"}, rows),
        ("vector", "p@v"): synthetic.write_cell(tmp_path, {"name": "new v"}, right_rows),
    }
    results = read_results(manifest(keys, {"p": plain, "p@v": variant}), tmp_path)
    found = results.robustness("f", results.named("vector"), "p@v")
    assert found is not None
    assert (found.plain.value, found.perturbed.value, found.drop.value) == (1.0, 0.75, -0.25)
    assert found.gain_plain is not None and found.gain is not None and found.change is not None
    assert (found.gain_plain.value, found.gain.value, found.change.value) == (0.5, 0.75, 0.25)
    # Two documents of one source are one unit.
    assert (found.drop.test, found.drop.units, found.drop.n) == ("sign flip", 20, 40)
    table = adversarial.table(results)
    assert table.blocks[0].title.endswith(", 40 pairs")
    row = next(r for r in table.data if r["condition"] == "vector")
    assert row["persists"] == "yes"


def test_a_drop_of_a_benchmark_of_subtasks_is_over_documents_within_them(tmp_path: Path) -> None:
    plain = benchmark("P", cluster="subtask")
    variant = benchmark("V", variant_of="p", cluster="subtask")
    rng = np.random.default_rng(0)
    old, new = rng.random(60) < 0.8, rng.random(60) < np.repeat([0.1, 0.9, 0.2, 0.8, 0.1, 0.9], 10)
    keys = {
        ("baseline", "p"): cell(tmp_path, old, plain, name="plain"),
        ("baseline", "p@v"): cell(tmp_path, new, variant, name="perturbed"),
    }
    results = read_results(manifest(keys, {"p": plain, "p@v": variant}), tmp_path)
    found = results.robustness("f", results.reference, "p@v")
    assert found is not None
    expected = paired.difference(old, new, design(60, strata=np.repeat(np.arange(6), 10)), None)
    drop = found.drop
    assert (drop.low, drop.high, drop.p, drop.units) == (expected.low, expected.high, expected.p, 60)


def test_a_gain_that_vanishes_on_perturbed_documents_does_not_persist(tmp_path: Path) -> None:
    def skill(condition: str, benchmark: str) -> float:
        return 0.9 if condition == "vector" and "@" not in benchmark else 0.3

    results = evaluated(tmp_path, documents=300, conditions=MAIN, skill=skill)
    row = next(r for r in adversarial.table(results).data if r["condition"] == "vector")
    assert row["gain_plain_low"] > 0
    assert row["change_high"] < 0
    assert row["persists"] == "no"
    assert -40 < row["share_left_low"] < row["share_left_value"] < row["share_left_high"] < 40
    line = next(v for v in terminal.verdict_lines(results) if ": the gain persists" in v)
    assert line.startswith("does not persist")


def test_only_columns_that_are_tested_carry_stars_and_the_header_says_so(tmp_path: Path) -> None:
    table = adversarial.table(evaluated(tmp_path, documents=200, conditions=MAIN))
    tested = [i for i, head in enumerate(table.header) if "(tested)" in head.text]
    starred = {i for line in table.lines() for i, text in enumerate(line.texts) if "*" in text.text}
    assert starred and starred <= set(tested) and len(tested) == 3


def test_the_drop_of_a_group_is_the_mean_over_its_families_and_documents(tmp_path: Path) -> None:
    families = {f"seed{i}": family(f"seed {i}", group="g") for i in range(3)}
    results = evaluated(tmp_path, documents=60, conditions=MAIN, families=families)
    table = adversarial.table(results)
    row = next(r for r in table.data if r["family"] == "mean of 3" and r["condition"] == "vector")
    for part in ("drop", "gain"):
        found = [
            results.robustness(name, results.named("vector"), str(row["benchmark"])) for name in families
        ]
        values = [getattr(r, part).value for r in found if r]
        assert row[f"{part}_value"] == pytest.approx(100 * np.mean(values))
        # Wider than that of one family where families differ: the mean does not hide that they do.
        assert row[f"{part}_low"] < 100 * np.mean(values) < row[f"{part}_high"]
    assert any("mean of 3 trained families" in title for title, _ in table.blocks)


def test_mean_over_families_is_over_trainings_and_documents(tmp_path: Path) -> None:
    families = {f"seed{i}": family(f"seed {i}", group="g") for i in range(3)}
    results = evaluated(tmp_path, families=families, conditions=MAIN, benchmarks=ONE)
    data = main.table(results).data
    pairs = [results.pairs(f, results.named("vector"), results.reference, "gsm8k")[0] for f in families]
    changes = [new.score - old.score for new, old in pairs]
    expected = mean_difference(changes, pairs[0][0].design)
    row = next(r for r in data if r["family"] == "mean of 3" and r["condition"] == "vector")
    assert row["difference_low"] == pytest.approx(100 * expected.low)
    assert row["seeds"] == 3
    shown = terminal.summary(results).split("g, mean of 3")[1]
    assert signed(expected.value) in next(line for line in shown.splitlines() if "+Vector" in line)


def test_controls_and_sweep_have_means_over_families_too(tmp_path: Path) -> None:
    families = {f"seed{i}": family(f"seed {i}", group="g") for i in range(3)}
    results = evaluated(tmp_path, families=families, benchmarks=ONE)
    random = results.row("random", 1)
    assert random is not None
    pairs = [results.pairs(f, results.named("vector"), random, "gsm8k") for f in families]
    changes = [np.mean([new.score - old.score for new, old in of_family], axis=0) for of_family in pairs]
    expected = mean_difference(changes, pairs[0][0][0].design)
    table = controls.table(results)
    row = next(r for r in table.data if r["family"] == "mean of 3" and r.get("reference") == random.name)
    assert row["difference_low"] == pytest.approx(100 * expected.low)
    assert any("differences between rows" in title and "mean of 3" in title for title, _ in table.blocks)
    sweep = alpha_sweep.table(results).data
    of_seed, of_all = ([r["label"] for r in sweep if r["family"] == name] for name in ("seed0", "mean of 3"))
    assert of_seed == of_all != []


def test_cost_counts_a_shared_record_once(tmp_path: Path) -> None:
    results = evaluated(tmp_path, benchmarks=ONE)
    keys = set(results.planned.values())
    assert len(keys) < len(results.planned)
    everything = cost.table(results).data[-1]
    assert everything["cells"] == len(keys)
    assert everything["seconds"] == 2.0 * len(keys)
    assert everything["gpu_hours"] == 0


def test_gpu_hours_count_every_gpu_of_an_engine(tmp_path: Path) -> None:
    rows = synthetic.samples(np.ones(3, dtype=bool))
    key = synthetic.write_cell(tmp_path, {"name": "gpu"}, rows, device="gpu")
    results = read_results(manifest({("baseline", "gsm8k"): key}, ONE), tmp_path)
    assert cost.table(results).data[-1]["gpu_hours"] == pytest.approx(2 * 2.0 / 3600)


def test_geometry_table_shows_the_report_and_says_when_there_is_none(tmp_path: Path) -> None:
    families = {"a": family("A", geometry=synthetic.write_geometry(tmp_path)), "b": family("B")}
    few = {"families": families, "conditions": MAIN, "benchmarks": ONE, "documents": 5}
    table = geometry.table(evaluated(tmp_path, **few))
    assert [line.label for line in table.lines()] == ["q_proj", "down_proj", "all"]
    assert len([row for row in table.data if row["level"] == "cells"]) == 6
    assert any(note.startswith("B: ") and "extract" in note for note in table.notes)


def test_a_report_of_an_earlier_version_is_read_with_its_old_names(tmp_path: Path) -> None:
    written_as = synthetic.write_geometry(tmp_path)
    path = tmp_path / Path(written_as).relative_to("results")
    path.write_text(path.read_text().replace("lost_in_rounding", "swallowed"))
    few = {"conditions": MAIN, "benchmarks": ONE, "documents": 5}
    table = geometry.table(evaluated(tmp_path, families={"a": family("A", geometry=written_as)}, **few))
    assert "Lost in rounding %" in [head.text for head in table.header]
    assert [row["lost_in_rounding"] for row in table.data if row["level"] == "total"] == [2.0]


def test_programs_of_one_template_are_one_unit(tmp_path: Path) -> None:
    right = np.arange(60) < 40
    rows = synthetic.samples(right)
    for i, row in enumerate(rows):
        row["prompt"] = f"Return {['x plus', 'x times', 'the square of'][i % 3]} {i}."
    generated = {"code": benchmark("Code", generated=True)}
    key = synthetic.write_cell(tmp_path, {"name": "code"}, rows)
    units = [
        read_results(manifest({("baseline", "code"): key}, entry), tmp_path).units("code")
        for entry in (generated, {"code": benchmark("Code")})
    ]
    assert [(found.units, found.documents) for found in units if found] == [(3, 60), (60, 60)]


def test_perturbed_documents_are_in_the_units_of_their_sources(tmp_path: Path) -> None:
    plain = benchmark("P", generated=True)
    variant = benchmark("V", variant_of="p", cluster="source_doc", generated=True)
    rows = synthetic.samples(np.arange(40) < 20)
    for i, row in enumerate(rows):
        name = f"{chr(97 + i // 26)}{chr(97 + i % 26)}"
        row["prompt"] = " ".join(name + letter for letter in "abcd")
        row["target"] = f"It is 1{'+-'[i % 2]}2=<<1{'+-'[i % 2]}2=3>>3\n#### 3"
    perturbed = [
        row | {"prompt": f"{row['prompt']} and more", "target": str(i)} for i, row in enumerate(rows)
    ]
    keys = {
        ("baseline", "p"): synthetic.write_cell(tmp_path, {"name": "plain"}, rows),
        ("baseline", "p@v"): synthetic.write_cell(tmp_path, {"name": "perturbed"}, perturbed),
    }
    results = read_results(manifest(keys, {"p": plain, "p@v": variant}), tmp_path)
    assert [found.units for name in ("p", "p@v") if (found := results.units(name))] == [2, 2]
    assert results.header_marks("p") == results.header_marks("p@v") == "c"


def test_the_number_of_a_benchmark_of_subtasks_is_the_mean_over_them(tmp_path: Path) -> None:
    entry = benchmark("B", cluster="subtask")
    rows = synthetic.samples(np.zeros(60, dtype=bool), "subtask")
    for row in rows:
        row["score"] = float(row["subtask"] == "subtask_0")
    kept = [row for row in rows if row["subtask"] != "subtask_0" or row["source_doc"] < 5]
    key = synthetic.write_cell(tmp_path, {"name": "b"}, kept)
    results = read_results(manifest({("baseline", "bbh"): key}, {"bbh": entry}), tmp_path)
    value = results.value("f", results.reference, "bbh")
    assert value is not None and value.value == pytest.approx(1 / 6)
    assert 0 <= value.low < 1 / 6 < value.high < 0.3


def test_random_rows_are_samples_of_seeds(tmp_path: Path) -> None:
    results = evaluated(tmp_path, benchmarks=ONE, documents=300)
    vector, random = results.named("vector"), results.row("random", 1)
    assert random is not None
    pairs = results.pairs("micro", vector, random, "gsm8k")
    assert len(pairs) == 3
    found = results.difference("micro", vector, random, "gsm8k")
    assert found is not None and found.test == "t over repetitions and documents"
    both = results.pairs("micro", random, results.row("random", -1) or random, "gsm8k")
    assert len(both) == 3  # by seed, not each with each


# ---- formats ----


def test_signs_are_typographic_in_every_format(tmp_path: Path) -> None:
    table = main.table(evaluated(tmp_path, documents=200, conditions=MAIN, benchmarks=ONE))
    assert "−2" in formats.markdown(table)
    assert "$-$2" in formats.latex(table)
    assert "−" not in formats.latex(table)
    assert signed(-0.0004) == "0.0"
    assert signed(-0.118) == "−11.8"


def test_markdown_rows_have_one_width(tmp_path: Path) -> None:
    results = evaluated(tmp_path, conditions=MAIN, benchmarks={"p": benchmark("a|b*c_<d>")})
    rows = [r for r in formats.markdown(main.table(results)).splitlines() if r.startswith("|")]
    assert len(rows) > 5
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1


def test_terminal_shows_each_condition_once(tmp_path: Path) -> None:
    lines = terminal.summary(evaluated(tmp_path)).splitlines()
    for label in ("Baseline", "SFT donor", "+Vector", "−Vector", "+Random (mean of 3)"):
        assert sum(line.startswith(f"{label}  ") for line in lines) == 1
    assert not any("seed 1" in line or "α = " in line for line in lines)


# ---- two runs ----


def test_subtasks_as_a_sample_are_said_apart(tmp_path: Path) -> None:
    results = evaluated(tmp_path, documents=200)
    made = main.table(results)
    (note,) = (note for note in made.notes if "with its subtasks as a sample" in note)
    assert note.startswith("BBH form") and "Baseline" in note and "+Vector" in note
    rows = {(r["condition"], r["benchmark"]): r for r in made.data}
    of_bbh, of_gsm8k = rows["vector", "bbh"], rows["vector", "gsm8k"]
    assert of_gsm8k["subtasks_low"] is None and of_gsm8k["difference_subtasks_low"] is None
    for prefix in ("", "difference_"):
        low, value, high = (of_bbh[f"{prefix}{end}"] for end in ("subtasks_low", "value", "subtasks_high"))
        assert isinstance(low, float) and isinstance(value, float) and isinstance(high, float)
        assert low < value < high
    cell = results.cells[Place("micro", "vector", "bbh")]
    groups = sample_of([str(subtask) for subtask, _ in cell.sources])
    assert of_bbh["subtasks_low"] == pytest.approx(100 * paired.score(cell.score, groups).low)


def test_lists_read_as_a_sentence_has_them() -> None:
    assert [listed(texts) for texts in ([], ["A"], ["A", "B"], ["A", "B", "C"])] == [
        "",
        "A",
        "A and B",
        "A, B and C",
    ]
    assert listed(["A", "B and C"]) == "A, and B and C"
