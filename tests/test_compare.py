"""Two runs set side by side: cells and documents are paired, what differs is named, the page shows both answers."""

import base64
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.__main__ import main as command_line
from pipeline.analysis.results import Results, read_results
from pipeline.errors import UserError
from pipeline.manifest import manifest_path
from pipeline.report import compare, formats
from pipeline.report.compare import sentences
from pipeline.report.numbers import signed
from pipeline.report.page import comparison
from tests import synthetic
from tests.browser import BINARY, Browser
from tests.synthetic import MAIN, benchmark
from tests.test_tables import ONE, evaluated, manifest


def test_a_run_compared_with_itself_is_the_same_record_everywhere(tmp_path: Path) -> None:
    results = evaluated(tmp_path, conditions=MAIN, benchmarks=ONE)
    table = compare.table(compare.match(results, results))
    assert len(table.data) == len(MAIN)
    assert all(row["same_record"] for row in table.data)
    assert "differs: nothing in inputs or provenance" in table.notes


def two_versions(tmp_path: Path) -> tuple[Results, Results]:
    """Results of two versions of vLLM, of which the second answers better."""
    made: dict[str, Any] = {"conditions": MAIN, "benchmarks": ONE, "documents": 200}
    a = evaluated(tmp_path / "a", vllm="0.31", **made)
    return a, evaluated(tmp_path / "b", vllm="0.32", skill=lambda condition, benchmark: 0.9, **made)


def test_two_versions_are_compared_by_document_and_the_difference_in_provenance_is_named(
    tmp_path: Path,
) -> None:
    runs = compare.match(*two_versions(tmp_path))
    table = compare.table(runs)
    baseline = next(row for row in table.data if row["condition"] == "baseline")
    assert baseline["difference_value"] == pytest.approx(baseline["b"] - baseline["a"])
    assert baseline["difference_low"] > 0
    assert [n for n in table.notes if n.startswith("differs")] == [
        "differs: inputs.vllm: 0.31 → 0.32 in all cells"
    ]
    assert "B − A" in compare.terminal(runs)


def test_the_command_prints_the_table_and_writes_it_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = compare.match(*two_versions(tmp_path))
    manifests = [str(manifest_path(tmp_path / name, "synthetic")) for name in "ab"]
    assert command_line(["compare", *manifests, f"out={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out == compare.terminal(runs) + "\n"
    pictures = {
        f"compare_{name}.{suffix}" for name in ("gains", "forest") for suffix in ("png", "pdf", "svg")
    }
    tables = {f"compare.{suffix}" for suffix in ("md", "tex", "csv", "html")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == tables | pictures
    assert (tmp_path / "out" / "compare.csv").read_text() == formats.as_csv(compare.table(runs))


def test_what_changed_in_how_the_runs_were_made_comes_first_in_two_sentences(tmp_path: Path) -> None:
    runs = compare.match(*two_versions(tmp_path))
    made, changed = sentences(runs)
    assert (
        made == "Of what can move an answer, B has another value than A for vllm (0.31 → 0.32, in all cells)."
    )
    assert changed.startswith(f"Of {len(MAIN)} pairs of records, none are the same; in ")
    better = sum(one.is_significant and one.difference.value > 0 for one in runs.found.values())
    assert better > 0
    assert f"{better} are better in B and 0 worse." in changed
    assert compare.terminal(runs).splitlines()[:2] == [made, changed]
    same = compare.match(runs.a, runs.a)
    assert sentences(same) == (
        "A and B were made from the same inputs: nothing that can move an answer differs.",
        f"All {len(MAIN)} records that both runs have are the same.",
    )


def test_a_pair_of_records_in_two_places_is_one_test(tmp_path: Path) -> None:
    """The sweep's α = −1 is −Vector: both rows show the difference, and the correction counts it once."""
    conditions = MAIN | {"alpha=-1.0": synthetic.CONDITIONS["alpha=-1.0"]}
    made: dict[str, Any] = {"conditions": conditions, "benchmarks": ONE, "documents": 50}
    a = evaluated(tmp_path / "a", vllm="0.31", **made)
    runs = compare.match(a, evaluated(tmp_path / "b", vllm="0.32", **made))
    twice = [one for place, one in runs.found.items() if place.condition in ("minus_vector", "alpha=-1.0")]
    assert len(twice) == 2 and twice[0] == twice[1]
    assert (runs.tests, len(runs.found)) == (len(MAIN), len(MAIN) + 1)


def test_the_sentence_names_parts_by_their_words_and_says_where(tmp_path: Path) -> None:
    rows = synthetic.samples(np.ones(4))

    def run(name: str, *inputs: dict[str, Any]) -> Results:
        keys = {
            (condition, "gsm8k"): synthetic.write_cell(
                tmp_path / name, {"condition": condition, **given}, rows
            )
            for condition, given in zip(("baseline", "vector"), inputs, strict=True)
        }
        return read_results(manifest(keys, ONE), tmp_path / name)

    a = run("a", {"tokenizer": "x"}, {"tokenizer": "x", "weights": {"donor": 1, "alpha": 1.0}})
    b = run("b", {"tokenizer": "y"}, {"tokenizer": "y", "weights": {"donor": 2, "alpha": 0.5}})
    made, _ = sentences(compare.match(a, b))
    assert made == (
        "Of what can move an answer, B has another value than A for the tokenizer (x → y, in all cells) and the weights"
        " (2 fields, in 1 of 2 cells)."
    )


@pytest.mark.skipif(BINARY is None, reason="no Chromium on this machine")
def test_the_page_sets_both_answers_to_each_document_side_by_side(tmp_path: Path) -> None:
    runs = compare.match(*two_versions(tmp_path))
    *_, page = comparison.render(runs, tmp_path / "out")
    browser = Browser(1280, 900)
    try:
        browser.open(page)
        browser.wait_for("document.getElementById('count').textContent !== ''")
        assert browser.console == []
        shown = browser.evaluate("document.getElementById('found').innerText")
        assert all(sentence in shown for sentence in sentences(runs))
        place, compared = next((p, c) for p, c in runs.found.items() if p.condition == "minus_vector")
        browser.evaluate(
            f"[...document.querySelectorAll('.gains a')].find(a => a.textContent === {signed(compared.difference.value)!r}).click()"
        )
        browser.wait_for("document.getElementById('new').value === 'b:minus_vector'")
        browser.wait_for("document.getElementById('count').textContent.includes(' listed')")
        counted = browser.evaluate("document.getElementById('count').textContent")
        assert f"{compared.difference.gained} gained, {compared.difference.lost} lost" in counted
        sides = browser.evaluate("[...document.querySelectorAll('.sides h4')].map(h => h.textContent)")
        assert sides == ["A: −Vector: score 0", "B: −Vector: score 1"]
    finally:
        browser.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected two manifests"),
        (["results/runs/a.json"], "expected two manifests"),
        (["a.json", "b.json", "out="], "expected two manifests"),
        (["a.json", "b.json"], "a.json: no such manifest"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused_in_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_line(["compare", *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_documents_with_another_target_are_left_out_of_a_comparison(tmp_path: Path) -> None:
    rows = synthetic.samples(np.ones(20, dtype=bool))
    a = manifest({("baseline", "gsm8k"): synthetic.write_cell(tmp_path, {"run": "a"}, rows)}, ONE)
    for row in rows[:5]:
        row |= {"target": "another", "score": 0.0}
    b = manifest({("baseline", "gsm8k"): synthetic.write_cell(tmp_path, {"run": "b"}, rows)}, ONE)
    table = compare.table(compare.match(read_results(a, tmp_path), read_results(b, tmp_path)))
    assert table.data[0]["difference_n"] == 15
    assert table.data[0]["difference_value"] == 0
    assert any("5 documents" in note for note in table.notes)


def test_what_shares_no_document_is_never_called_equal(tmp_path: Path) -> None:
    rows = synthetic.samples(np.ones(8))
    a, b = (
        manifest({("baseline", "gsm8k"): synthetic.write_cell(tmp_path, {"run": run}, of)}, ONE)
        for run, of in (("a", rows), ("b", [row | {"target": "another"} for row in rows]))
    )
    runs = compare.match(read_results(a, tmp_path), read_results(b, tmp_path))
    said = "Nothing can be compared: 1 pair of records shares no document with the same target."
    assert sentences(runs)[1] == said
    *_, page = comparison.render(runs, tmp_path / "out")
    text = page.read_text()
    assert said in text
    assert "same record" not in text.partition('id="tables"')[0]


def test_what_only_one_run_has_is_named_and_each_run_has_its_own_labels(tmp_path: Path) -> None:
    made: dict[str, Any] = {"benchmarks": ONE, "documents": 12}
    renamed = MAIN | {"vector": replace(MAIN["vector"], label="+Vector, half")}
    both, one = ({name: synthetic.family(name) for name in names} for names in ("fg", "f"))
    a = evaluated(tmp_path / "a", conditions=MAIN, families=both, x=1, **made)
    b = evaluated(tmp_path / "b", conditions=renamed, families=one, x=2, **made)
    runs = compare.match(a, b)
    assert "Only in A: families g." in compare.table(runs).notes
    assert "Only in B: families g." in compare.table(compare.match(b, a)).notes
    index = json.loads(gzip.decompress(base64.b64decode(comparison._packs(runs).index)))
    shown = [index["conditions"][f"{run}:vector"] for run in "ab"]
    assert shown == ["A: +Vector", "B: +Vector, half"]


def test_runs_without_a_common_cell_are_refused_in_one_line(tmp_path: Path) -> None:
    a = evaluated(tmp_path, conditions=MAIN, benchmarks=ONE, experiment="a")
    b = evaluated(tmp_path, conditions=MAIN, benchmarks={"sciq": benchmark("S")}, experiment="b")
    with pytest.raises(UserError, match="no evaluated cell in common") as caught:
        compare.match(a, b)
    assert "\n" not in str(caught.value)
