"""Tables, verdicts and comparisons of runs whose effects are known, from records in the real store."""

import csv
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.analysis import claims
from pipeline.analysis import results as grid
from pipeline.errors import UserError
from pipeline.records import cell_folder
from pipeline.report import compare, formats, tables
from tests import synthetic

MAIN = {name: c for name, c in synthetic.CONDITIONS.items() if c["role"] == "main"}
ONE = {"gsm8k": {"label": "GSM8K form", "published": "GSM8K"}}


def cell(
    results: Path, right: Any, benchmark: dict[str, Any], *, name: str, order: Any = None, **metrics: Any
) -> str:
    """The key of a record with these right answers, its samples in `order`."""
    rows = synthetic.samples(np.asarray(right, dtype=bool), benchmark)
    return synthetic.write_cell(
        results, {"name": name}, [rows[i] for i in order] if order is not None else rows, **metrics
    )


def manifest(keys: dict[tuple[str, str], str], benchmarks: dict[str, Any], **family: Any) -> dict[str, Any]:
    """A manifest of one family from (condition, benchmark) → key."""
    plain = {
        "variant_of": None,
        "perturbation": None,
        "cluster": None,
        "published": None,
        "chance": 0.0,
        "limit": None,
    }
    conditions = {name: {"seed": None, **synthetic.CONDITIONS[name]} for name, _ in keys}
    return {
        "schema": 1,
        "experiment": "small",
        "families": {"f": {"label": "F", "group": None, "published_size": None, "geometry": None, **family}},
        "benchmarks": {name: {**plain, **b} for name, b in benchmarks.items()},
        "conditions": conditions,
        "cells": [
            {"family": "f", "condition": c, "benchmark": b, "key": key} for (c, b), key in keys.items()
        ],
    }


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fingerprints(paths: list[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_rendering_again_gives_the_same_bytes(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "results")
    first = fingerprints(tables.render(run, tmp_path / "results", tmp_path / "a"))
    grid._cell.cache_clear()
    second = fingerprints(tables.render(json.loads(json.dumps(run)), tmp_path / "results", tmp_path / "b"))
    names = ("main", "adversarial", "controls", "alpha_sweep", "geometry", "cost")
    assert set(first) == {f"{name}.{suffix}" for name in names for suffix in ("md", "tex", "csv")}
    assert first == second


def test_difference_is_paired_by_document_whatever_the_order(tmp_path: Path) -> None:
    old, new = np.arange(100) < 50, np.arange(100) < 70
    shuffled = np.random.default_rng(0).permutation(100)
    keys = {
        ("baseline", "gsm8k"): cell(tmp_path, old, ONE["gsm8k"], name="old"),
        ("vector", "gsm8k"): cell(tmp_path, new, ONE["gsm8k"], name="new", order=shuffled),
    }
    tables.render(manifest(keys, ONE), tmp_path, tmp_path / "out")
    row = next(r for r in read_csv(tmp_path / "out" / "main.csv") if r["condition"] == "vector")
    assert (float(row["value"]), float(row["difference_value"])) == (70, 20)
    assert (row["gained"], row["lost"], row["test"]) == ("20", "0", "McNemar")
    assert float(row["p"]) == pytest.approx(2 * 0.5**20, rel=1e-4)
    assert "+20.0 [" in (tmp_path / "out" / "main.md").read_text()


def test_holm_counts_every_comparison_of_the_table(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path, conditions=MAIN)
    table = tables.main(grid.load(run, tmp_path))
    compared = [row for row in table.data if row["p"] is not None]
    assert len(compared) == (len(MAIN) - 1) * 3
    smallest = min(compared, key=lambda row: row["p"])
    assert smallest["p_holm"] == pytest.approx(smallest["p"] * len(compared))


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
    run = manifest(keys, ONE)
    found = {r["condition"]: r for r in tables.main(grid.load(run, tmp_path)).data}
    assert {name: r["marks"] for name, r in found.items()} == {
        "baseline": "",
        "grpo_think": "m",
        "vector": "pt",
        "vector_think": "x",
        "minus_vector": "d",
    }
    assert found["vector_think"]["value"] == 50
    text = formats.markdown(tables.main(grid.load(run, tmp_path)))
    assert "missing<sup>m</sup>" in text
    assert "damaged<sup>d</sup>" in text
    assert all(f"\n{mark}: " in text for mark in "mdptx")
    problems = tables.problems(run, tmp_path)
    assert len(problems) == 2
    assert all("\n" not in line for line in problems)
    assert "[m]" in tables.terminal(run, tmp_path)


def test_limited_cells_are_marked_each_and_in_the_head(tmp_path: Path) -> None:
    limited: dict[str, Any] = {**ONE, "sciq": {"label": "SciQ form", "limit": 20}}
    run = synthetic.write_run(tmp_path, conditions=MAIN, benchmarks=limited)
    table = tables.main(grid.load(run, tmp_path))
    assert [head.text for head in table.header[1:]] == ["GSM8K form", "SciQ form (first 20)"]
    values = [row for _, rows in table.blocks for row in rows if "±" in row[1].text]
    assert len(values) == len(MAIN)
    assert all(row[1].marks == "" and row[2].marks == "l" for row in values)


def test_a_recovered_record_is_seen_in_the_same_process(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path, conditions=MAIN, benchmarks=ONE)
    key = next(c["key"] for c in run["cells"] if c["condition"] == "vector")
    folder = cell_folder(tmp_path, key)
    assert tables.problems(run, tmp_path) == []
    folder.rename(tmp_path / "aside")
    assert len(tables.problems(run, tmp_path)) == 1
    (tmp_path / "aside").rename(folder)
    assert tables.problems(run, tmp_path) == []


def test_published_numbers_stand_only_beside_the_size_and_benchmark_that_the_paper_names(
    tmp_path: Path,
) -> None:
    families = {"big": {"label": "1.5B", "published_size": "1.5B"}, "small": {"label": "micro"}}
    run = synthetic.write_run(tmp_path, families=families, conditions=MAIN)
    table = tables.main(grid.load(run, tmp_path))
    lines = dict(table.blocks)
    paper = [[e.text for e in row[1:]] for row in lines["1.5B"] if row[0].text == "paper"]
    assert paper == [  # G+T, +Vector, +Vector+Think, −Vector × GSM8K, SciQ, BBH
        ["–", "–", "–"],
        ["+2.6 (M)", "–", "+12.3 (M); 19.0 after (K)"],
        ["+4.9 (A, M)", "+1.7 (A)", "+12.3 (A, M)"],
        ["−11.8 (A)", "–", "–"],
    ]
    assert not [row for row in lines["micro"] if row[0].text == "paper"]
    assert any("size of the −Vector figure is not stated" in note for note in table.notes)


def test_every_published_figure_names_known_sources_and_every_claim_a_figure_and_conditions() -> None:
    published = claims.published()
    ids = {figure["id"] for figure in published["figures"]}
    assert len(ids) == len(published["figures"])
    assert all(set(figure["source"]) <= set(published["sources"]) for figure in published["figures"])
    names = {*synthetic.SKILL, "random", "minus_random"}
    comparisons = [c for claim in claims.claims()["claims"] for c in claim["comparisons"]]
    assert comparisons
    for comparison in comparisons:
        assert comparison["promised"] in ids | {"measured"}
        assert {comparison["condition"], comparison["reference"]} <= names


def test_claims_test_the_conditions_and_benchmarks_of_the_configuration() -> None:
    conf = Path(__file__).parent.parent / "conf"
    conditions = set(yaml.safe_load((conf / "conditions" / "paper.yaml").read_text()))
    benchmarks = {path.stem for path in (conf / "benchmark").glob("*.yaml")}
    for claim in claims.claims()["claims"]:
        for comparison in claim["comparisons"]:
            assert {comparison["condition"], comparison["reference"]} <= conditions
            assert comparison["benchmark"] in benchmarks


def test_seeds_of_a_random_control_are_one_row_averaged_by_document(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path, benchmarks=ONE)
    held = grid.load(run, tmp_path)
    row = held.row("random", 1)
    assert row is not None
    assert len(row.members) == 3
    singles = [held.cell("micro", (member,), "gsm8k") for member in row.members]
    mean = held.cell("micro", row.members, "gsm8k")
    assert mean is not None
    np.testing.assert_allclose(mean.score, np.mean([c.score for c in singles if c], axis=0))
    text = formats.markdown(tables.controls(held))
    assert "+Random (mean of 3)" in text
    assert "range over seeds" in text
    assert "seed 0" not in text


def test_controls_compare_v_with_each_control_directly(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path, benchmarks=ONE)
    held = grid.load(run, tmp_path)
    data = {row["label"]: row for row in tables.controls(held).data if "reference" in row}
    expected = held.difference("micro", ("vector",), ("sft",), "gsm8k")
    assert expected is not None
    assert data["+Vector against SFT donor"]["difference_value"] == pytest.approx(100 * expected.value)
    assert {"+Vector against +Random (mean of 3)", "−Vector against −Random (mean of 3)"} <= set(data)
    assert "+Vector+Think against Baseline+Think" in data


def test_sweep_is_ordered_and_alpha_zero_is_its_own_reference(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path, benchmarks=ONE)
    data = tables.alpha_sweep(grid.load(run, tmp_path)).data
    alphas = [row["alpha"] for row in data]
    assert alphas == sorted(alphas) == [-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0]
    by_alpha = {row["alpha"]: row for row in data}
    assert by_alpha[0.0]["difference_value"] is None
    main = {row["condition"]: row for row in tables.main(grid.load(run, tmp_path)).data}
    assert by_alpha[1.0]["value"] == main["vector"]["value"]
    assert by_alpha[-1.0]["difference_value"] == main["minus_vector"]["difference_value"]


def test_a_part_of_the_vector_is_a_row_and_never_stands_for_the_whole(tmp_path: Path) -> None:
    part = {"weights": "vector", "prompt": "plain", "role": "main", "whole": False}
    noise = {"label": "+Noise (seed 0)", "weights": "random", "alpha": 1.0, "seed": 0, "role": "control"}
    conditions = {
        "mlp": part | {"label": "+Vector (MLP)", "alpha": 1.0},
        "mlp3": part | {"label": "3 MLP", "alpha": 3.0},
        "noise-s0": noise | {"prompt": "plain", "whole": False},
    }
    run = synthetic.write_run(tmp_path, benchmarks=ONE, conditions=conditions | synthetic.CONDITIONS)
    held = grid.load(run, tmp_path)
    vector, random = held.row("vector", 1), held.row("random", 1)
    assert vector is not None and vector.name == "vector"
    assert random is not None and random.members == ("random-s0", "random-s1", "random-s2")
    assert all(name.startswith("alpha=") for _, name in held.sweep())
    assert {"mlp", "mlp3", "noise-s0"} <= {row.name for row in held.rows("main", "control")}


def test_perturbed_documents_are_paired_with_their_sources(tmp_path: Path) -> None:
    plain, variant = {"label": "P"}, {"label": "V", "variant_of": "p", "cluster": "source_doc"}
    old, new = np.arange(60) % 2 == 0, np.ones(60, dtype=bool)
    # The variant has two documents of each of the sources 40 to 59; the baseline is wrong on all of them.
    rows = synthetic.samples(np.zeros(40, dtype=bool), plain)
    right_rows = synthetic.samples(np.arange(40) < 30, plain)
    for made in (rows, right_rows):
        for i, row in enumerate(made):
            row["source_doc"] = 40 + i % 20
    keys = {
        ("baseline", "p"): cell(tmp_path, old, plain, name="old"),
        ("vector", "p"): cell(tmp_path, new, plain, name="new"),
        ("baseline", "p@v"): synthetic.write_cell(tmp_path, {"name": "old v"}, rows),
        ("vector", "p@v"): synthetic.write_cell(tmp_path, {"name": "new v"}, right_rows),
    }
    held = grid.load(manifest(keys, {"p": plain, "p@v": variant}), tmp_path)
    found = held.robustness("f", ("vector",), "p@v")
    assert found is not None
    assert (found.plain.value, found.perturbed.value, found.drop.value) == (1.0, 0.75, -0.25)
    assert found.gain_plain is not None and found.gain is not None and found.change is not None
    assert (found.gain_plain.value, found.gain.value, found.change.value) == (0.5, 0.75, 0.25)
    assert found.drop.test == "t"  # two documents of one source are not independent
    table = tables.adversarial(held)
    assert table.blocks[0][0].endswith(", 40 pairs")
    row = next(r for r in table.data if r["condition"] == "vector")
    assert row["persists"] == "yes"


def test_a_drop_is_clustered_as_the_plain_benchmark_is(tmp_path: Path) -> None:
    from pipeline.analysis.statistics import paired_difference

    plain = {"label": "P", "cluster": "subtask"}
    variant = {"label": "V", "variant_of": "p", "cluster": "subtask"}
    rng = np.random.default_rng(0)
    old, new = rng.random(60) < 0.8, rng.random(60) < np.repeat([0.1, 0.9, 0.2, 0.8, 0.1, 0.9], 10)
    keys = {
        ("baseline", "p"): cell(tmp_path, old, plain, name="plain"),
        ("baseline", "p@v"): cell(tmp_path, new, variant, name="perturbed"),
    }
    found = grid.load(manifest(keys, {"p": plain, "p@v": variant}), tmp_path).robustness(
        "f", ("baseline",), "p@v"
    )
    expected = paired_difference(old, new, np.repeat(np.arange(6), 10))
    assert found is not None
    assert found.drop == expected
    assert found.drop.se != pytest.approx(paired_difference(old, new).se, rel=0.05)


def test_a_gain_that_vanishes_on_perturbed_documents_does_not_persist(tmp_path: Path) -> None:
    def skill(condition: str, benchmark: str) -> float:
        return 0.9 if condition == "vector" and "@" not in benchmark else 0.3

    run = synthetic.write_run(tmp_path, documents=300, conditions=MAIN, skill=skill)
    row = next(r for r in tables.adversarial(grid.load(run, tmp_path)).data if r["condition"] == "vector")
    assert row["gain_plain_low"] > 0
    assert row["change_high"] < 0
    assert row["persists"] == "not shown"
    line = next(v for v in tables.verdicts(run, tmp_path) if "persists" in v)
    assert line.startswith("not reproduced")


def test_the_drop_of_a_group_is_the_mean_over_its_families_with_student_s_interval(tmp_path: Path) -> None:
    from pipeline.analysis.statistics import mean_over_seeds

    families = {f"seed{i}": {"label": f"seed {i}", "group": "g"} for i in range(3)}
    run = synthetic.write_run(tmp_path, documents=60, conditions=MAIN, families=families)
    held = grid.load(run, tmp_path)
    table = tables.adversarial(held)
    row = next(r for r in table.data if r["family"] == "mean of 3" and r["condition"] == "vector")
    for part in ("drop", "gain"):
        found = [held.robustness(family, ("vector",), row["benchmark"]) for family in families]
        expected = mean_over_seeds([getattr(r, part).value for r in found])
        assert row[f"{part}_low"] == pytest.approx(100 * expected.low)
        assert row[f"{part}_high"] == pytest.approx(100 * expected.high)
    assert any("mean of 3 trained families" in title for title, _ in table.blocks)


def test_mean_over_families_of_a_group_has_student_s_interval(tmp_path: Path) -> None:
    from pipeline.analysis.statistics import mean_over_seeds

    families = {f"seed{i}": {"label": f"seed {i}", "group": "g"} for i in range(3)}
    run = synthetic.write_run(tmp_path, families=families, conditions=MAIN, benchmarks=ONE)
    held = grid.load(run, tmp_path)
    data = tables.main(held).data
    changes = [held.difference(f, ("vector",), ("baseline",), "gsm8k") for f in families]
    expected = mean_over_seeds([change.value for change in changes if change])
    row = next(r for r in data if r["family"] == "mean of 3" and r["condition"] == "vector")
    assert row["difference_low"] == pytest.approx(100 * expected.low)
    assert row["seeds"] == 3
    shown = tables.terminal(run, tmp_path).split("g, mean of 3")[1]
    assert tables.signed(expected.value) in next(line for line in shown.splitlines() if "+Vector" in line)


def test_controls_and_sweep_have_means_over_families_too(tmp_path: Path) -> None:
    from pipeline.analysis.statistics import mean_over_seeds

    families = {f"seed{i}": {"label": f"seed {i}", "group": "g"} for i in range(3)}
    run = synthetic.write_run(tmp_path, families=families, benchmarks=ONE)
    held = grid.load(run, tmp_path)
    random = held.row("random", 1)
    assert random is not None
    against = [held.difference(f, ("vector",), random.members, "gsm8k") for f in families]
    expected = mean_over_seeds([change.value for change in against if change])
    table = tables.controls(held)
    row = next(r for r in table.data if r["family"] == "mean of 3" and r.get("reference") == random.name)
    assert row["difference_low"] == pytest.approx(100 * expected.low)
    assert any("differences between rows" in title and "mean of 3" in title for title, _ in table.blocks)
    sweep = tables.alpha_sweep(held).data
    of_seed, of_all = ([r["label"] for r in sweep if r["family"] == name] for name in ("seed0", "mean of 3"))
    assert of_seed == of_all != []


def test_cost_counts_a_shared_record_once(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path, benchmarks=ONE)
    keys = {c["key"] for c in run["cells"]}
    assert len(keys) < len(run["cells"])
    everything = tables.cost(grid.load(run, tmp_path)).data[-1]
    assert everything["cells"] == len(keys)
    assert everything["seconds"] == 2.0 * len(keys)
    assert everything["gpu_hours"] == 0


def test_gpu_hours_count_every_gpu_of_an_engine(tmp_path: Path) -> None:
    rows = synthetic.samples(np.ones(3, dtype=bool), ONE["gsm8k"])
    key = synthetic.write_cell(tmp_path, {"name": "gpu"}, rows, device="gpu")
    held = grid.load(manifest({("baseline", "gsm8k"): key}, ONE), tmp_path)
    assert tables.cost(held).data[-1]["gpu_hours"] == pytest.approx(2 * 2.0 / 3600)


def test_geometry_table_shows_the_report_and_says_when_there_is_none(tmp_path: Path) -> None:
    results = tmp_path / "results"
    families = {"a": {"label": "A", "geometry": synthetic.write_geometry(results)}, "b": {"label": "B"}}
    run = synthetic.write_run(results, families=families, conditions=MAIN, benchmarks=ONE, documents=5)
    table = tables.geometry(grid.load(run, results))
    modules = [row[0].text for _, rows in table.blocks for row in rows]
    assert modules == ["q_proj", "down_proj", "all"]
    assert len([row for row in table.data if row["level"] == "cells"]) == 6
    assert any(note.startswith("B: ") and "extract" in note for note in table.notes)


# ---- verdicts ----


def verdict(tmp_path: Path, documents: int, vector_think: float, **run: Any) -> tuple[str, str]:
    """The verdict on GSM8K with the prompt, and its line."""
    skill = {"baseline": 0.5, "vector_think": vector_think}
    wanted = {name: MAIN[name] for name in ("baseline", "vector_think")}
    made = synthetic.write_run(
        tmp_path, documents=documents, conditions=wanted, benchmarks=ONE, skill=lambda c, _: skill[c], **run
    )
    line = next(v for v in tables.verdicts(made, tmp_path) if "improves GSM8K" in v)
    return next(
        v for v in claims.verdicts(grid.load(made, tmp_path)) if "improves GSM8K" in v.statement
    ).outcome, line


def test_a_clear_gain_reproduces_the_claim(tmp_path: Path) -> None:
    outcome, line = verdict(tmp_path, 400, 0.7)
    assert outcome == claims.REPRODUCED
    assert line.startswith("reproduced ")
    assert "promised +4.9" in line


def test_a_gain_short_of_the_promise_does_not_reproduce_it(tmp_path: Path) -> None:
    assert verdict(tmp_path, 4000, 0.5)[0] == claims.NOT_REPRODUCED


def test_a_loss_does_not_reproduce_a_gain(tmp_path: Path) -> None:
    assert verdict(tmp_path, 400, 0.3)[0] == claims.NOT_REPRODUCED


def test_few_documents_cannot_test_the_claim(tmp_path: Path) -> None:
    assert verdict(tmp_path, 20, 0.5)[0] == claims.NOT_TESTABLE


def test_a_claim_without_cells_is_not_testable_and_has_its_line(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path, conditions=MAIN, benchmarks=ONE)
    lines = tables.verdicts(run, tmp_path)
    assert len(lines) == len(claims.claims()["claims"])
    assert next(line for line in lines if "HumanEval" in line).startswith("not testable")


# ---- formats ----


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_in_a_minimal_document_whatever_the_labels(tmp_path: Path) -> None:
    results = tmp_path / "results"
    hostile = {"label": r"a_b & 50% #1 {x} \y ~^ <α→θ> “q” 漢 [z]"}
    families = {
        "f": {"label": "1.5B_&", "published_size": "1.5B", "geometry": synthetic.write_geometry(results)}
    }
    benchmarks = {**synthetic.BENCHMARKS, "odd": hostile, "short": {"label": "L", "limit": 10}}
    conditions = {
        **synthetic.CONDITIONS,
        "vector": {**MAIN["vector"], "label": "[3] starts like an argument"},
    }
    made: dict[str, Any] = {"families": families, "benchmarks": benchmarks, "conditions": conditions}
    run = synthetic.write_run(results, documents=30, **made)
    names = [p.stem for p in tables.render(run, results, tmp_path) if p.suffix == ".tex"]
    inputs = "\n".join(rf"\input{{{name}.tex}}\clearpage" for name in names)
    preamble = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    (tmp_path / "all.tex").write_text(f"{preamble}{inputs}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "all.pdf").stat().st_size > 10_000


def test_signs_are_typographic_in_every_format(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path, documents=200, conditions=MAIN, benchmarks=ONE)
    table = tables.main(grid.load(run, tmp_path))
    assert "−2" in formats.markdown(table)
    assert "$-$2" in formats.latex(table)
    assert "−" not in formats.latex(table)
    assert tables.signed(-0.0004) == "0.0"
    assert tables.signed(-0.118) == "−11.8"


def test_markdown_rows_have_one_width(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path, conditions=MAIN, benchmarks={"p": {"label": "a|b*c_<d>"}})
    rows = [
        r for r in formats.markdown(tables.main(grid.load(run, tmp_path))).splitlines() if r.startswith("|")
    ]
    assert len(rows) > 5
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1


def test_terminal_shows_each_condition_once(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path)
    lines = tables.terminal(run, tmp_path).splitlines()
    for label in ("Baseline", "SFT donor", "+Vector", "−Vector", "+Random (mean of 3)"):
        assert sum(line.startswith(f"{label}  ") for line in lines) == 1
    assert not any("seed 1" in line or "α = " in line for line in lines)


# ---- two runs ----


def test_a_run_compared_with_itself_is_the_same_record_everywhere(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path, conditions=MAIN, benchmarks=ONE)
    table = compare.compare(run, run, tmp_path, tmp_path)
    assert len(table.data) == len(MAIN)
    assert all(row["same_record"] for row in table.data)
    assert "differs: nothing in inputs or provenance" in table.notes


def test_two_versions_are_compared_by_document_and_the_difference_in_provenance_is_named(
    tmp_path: Path,
) -> None:
    def better(condition: str, _: str) -> float:
        return 0.9

    a = synthetic.write_run(tmp_path / "a", conditions=MAIN, benchmarks=ONE, documents=200, vllm="0.31")
    b = synthetic.write_run(
        tmp_path / "b", conditions=MAIN, benchmarks=ONE, documents=200, vllm="0.32", skill=better
    )
    table = compare.compare(a, b, tmp_path / "a", tmp_path / "b")
    baseline = next(row for row in table.data if row["condition"] == "baseline")
    assert baseline["difference_value"] == pytest.approx(baseline["b"] - baseline["a"])
    assert baseline["difference_low"] > 0
    assert [n for n in table.notes if n.startswith("differs")] == [
        "differs: inputs.vllm: 0.31 → 0.32 in all cells"
    ]
    assert "B − A" in compare.terminal(table)


def test_documents_with_another_target_are_left_out_of_a_comparison(tmp_path: Path) -> None:
    rows = synthetic.samples(np.ones(20, dtype=bool), ONE["gsm8k"])
    a = manifest({("baseline", "gsm8k"): synthetic.write_cell(tmp_path, {"run": "a"}, rows)}, ONE)
    for row in rows[:5]:
        row |= {"target": "another", "score": 0.0}
    b = manifest({("baseline", "gsm8k"): synthetic.write_cell(tmp_path, {"run": "b"}, rows)}, ONE)
    table = compare.compare(a, b, tmp_path, tmp_path)
    assert table.data[0]["difference_n"] == 15
    assert table.data[0]["difference_value"] == 0
    assert any("5 documents" in note for note in table.notes)


def test_runs_without_a_common_cell_are_refused_in_one_line(tmp_path: Path) -> None:
    a = synthetic.write_run(tmp_path, conditions=MAIN, benchmarks=ONE, experiment="a")
    b = synthetic.write_run(tmp_path, conditions=MAIN, benchmarks={"sciq": {"label": "S"}}, experiment="b")
    with pytest.raises(UserError, match="no evaluated cell in common") as caught:
        compare.compare(a, b, tmp_path, tmp_path)
    assert "\n" not in str(caught.value)
