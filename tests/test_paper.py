"""The paper's experiment as conf/ has it, on stand-ins under the real ids and revisions: online, offline, and planned."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.analysis.results import read_results
from pipeline.config.compose import compose
from pipeline.config.explain import CONF
from pipeline.files import ROOT
from pipeline.plan.estimate import describe
from pipeline.plan.grid import make_grid
from pipeline.records import read_record
from pipeline.report import terminal
from pipeline.report.render import render
from pipeline.stages import prepare
from tests import synthetic, warm
from tests.hub import Hub, environment, fill, write_repositories

QWEN = "Qwen/Qwen2.5-1.5B-Instruct"
SFT = "open-thoughts/OpenThinker3-1.5B"
SAMPLED = "benchmarks.gsm8k.temperature=0.6"
TO_TRAIN = "family@families.qwen7b=qwen2.5-7b-trained"  # donors of the larger size that are yet to be trained


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paper")


@pytest.fixture(scope="module")
def hub(root: Path) -> Iterator[Hub]:
    config = compose(["experiment=paper", "suite=extended"])
    with Hub(write_repositories(root / "hub", config)) as served:
        fill(root / "cache", served, config)
        yield served


def pipeline(root: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    results = [f"results={root / 'results'}", f"tables={root / 'tables'}"]
    command = ["-m", "pipeline", *arguments, *results]
    if env == offline(root):  # that of most tests here
        return warm.run(*command, env=env)
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=env)


def offline(root: Path) -> dict[str, str]:
    return environment(root / "cache", HF_HUB_OFFLINE="1")


def test_sizes_are_printed_before_anything_is_downloaded(hub: Hub, root: Path, tmp_path: Path) -> None:
    hub.requests.clear()
    ran = pipeline(root, hub.environment(tmp_path), "plan", "experiment=paper", "families=[1.5b]")
    assert ran.returncode == 0, ran.stderr
    for name in (QWEN, SFT):
        (line,) = (line for line in ran.stdout.splitlines() if line.strip().startswith(f"{name} "))
        assert "to download (asked of the hub)" in line
    assert "to download and" in ran.stdout and "an estimate" in ran.stdout
    lists = [i for i, r in enumerate(hub.requests) if r.startswith("GET /api/models/") and "/tree/" in r]
    files = [i for i, r in enumerate(hub.requests) if r.startswith("GET ") and "/resolve/" in r]
    assert len([i for i in lists if i < files[0]]) >= 4, "a file was fetched before all sizes were known"


def test_a_checkpoint_that_the_hub_has_not_stops_the_plan_before_anything_is_downloaded(
    hub: Hub, root: Path, tmp_path: Path
) -> None:
    hub.requests.clear()
    typo = "families.qwen1_5b.grpo.id=nobody/typo"
    ran = pipeline(root, hub.environment(tmp_path), "plan", "experiment=paper", "families=[1.5b]", typo)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1, ran.stderr
    assert "nobody/typo at main: the hub has no such repository" in ran.stderr
    assert not [r for r in hub.requests if r.startswith("GET ") and "/resolve/" in r]


def test_the_cache_takes_the_place_of_the_hub(hub: Hub, root: Path) -> None:
    ran = pipeline(root, offline(root), "plan", "experiment=paper")
    assert ran.returncode == 0, ran.stderr
    assert "in the cache" in ran.stdout and "to download (" not in ran.stdout
    assert "qwen1_5b (Qwen2.5-1.5B)" in ran.stdout and "qwen7b (Qwen2.5-7B)" in ran.stdout
    found = re.search(r"(\d+) cells \((\d+) more share", ran.stdout)
    assert found is not None
    assert sum(map(int, found.groups())) == 2 * (
        8 * 14 + 8 + 10 * 8 + 9 * 8
    )  # rows × tasks, Baseline again, noise and the sweep, for two targets
    assert not (root / "results" / "runs").exists()  # a plan writes nothing of a run


def test_what_needs_no_donors_is_run_until_they_are_trained(hub: Hub, root: Path, tmp_path: Path) -> None:
    results = [f"results={tmp_path}", f"tables={tmp_path}"]
    ran = warm.run("-m", "pipeline", "plan", "experiment=paper", TO_TRAIN, *results, env=offline(root))
    assert ran.returncode == 0, ran.stderr
    (line,) = (line for line in ran.stdout.splitlines() if "left out" in line)
    assert line.startswith("qwen7b: 24 of 28 conditions are left out") and "families.qwen7b.sft.id" in line
    assert f'make donors EXPERIMENT=qwen2.5-7b ARGS="out={tmp_path}/donors/qwen2.5-7b"' in line
    found = re.search(r"(\d+) cells \((\d+) more share", ran.stdout)
    assert found is not None
    assert sum(map(int, found.groups())) == (8 * 14 + 8 + 10 * 8 + 9 * 8) + (
        2 * 14 + 8 + 8
    )  # Baseline, with Think, again, and α = 0
    assert "Qwen/Qwen2.5-7B " not in ran.stdout, "a base model that nothing needs is not downloaded"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["families=[7b]", TO_TRAIN], "nothing to run; qwen7b: 1 of 1 conditions are left out"),
        (["families.qwen7b.sft.id=no/such/folder"], "families.qwen7b.sft: no folder no/such/folder"),
    ],
)
def test_donors_that_are_asked_for_and_not_there_are_a_mistake(
    overrides: list[str], message: str, hub: Hub, root: Path, tmp_path: Path
) -> None:
    fixed = ["experiment=paper", "engine=cpu", "conditions=[alpha]", "alpha=[1]"]
    results = [f"results={tmp_path / 'results'}", f"tables={tmp_path / 'tables'}"]
    ran = warm.run("-m", "pipeline", "plan", *fixed, *overrides, *results, env=offline(root))
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1, ran.stderr
    assert message in ran.stderr


@pytest.mark.parametrize(
    ("override", "cells"),
    [
        ("families=[1.5b]", 8 * 14 + 8 + 10 * 8 + 9 * 8),
        ("alpha=[-1,0,1]", 2 * (8 * 14 + 8 + 10 * 8 + 3 * 8)),
        ("conditions=[baseline,alpha]", 2 * (1 * 14 + 9 * 8)),
        ("conditions=sweep", 2 * (1 * 8 + 9 * 8)),
        ("conditions=baseline", 2 * 14),
        ("tasks=[gsm8k,sciq]", 2 * (8 * 6 + 2 + 10 * 2 + 9 * 2)),
        ("benchmarks.gsm8k.variants=[]", 2 * (8 * 11 + 8 + 10 * 8 + 9 * 8)),
        ("engine=gpu_exact", 2 * (8 * 14 + 10 * 8 + 9 * 8)),
    ],
)
def test_a_part_of_the_paper_is_one_override_away(override: str, cells: int, hub: Hub, root: Path) -> None:
    ran = pipeline(root, offline(root), "plan", "experiment=paper", override)
    found = re.search(r"(\d+) cells \((\d+) more share", ran.stdout)
    assert found is not None, ran.stderr
    assert sum(map(int, found.groups())) == cells


@pytest.mark.parametrize(
    ("suite", "columns"),
    [
        ("stock", ["gsm8k_cot_zeroshot", "sciq", "bbh", "humaneval"]),
        ("extended", [path.stem for path in (CONF / "benchmark").glob("*.yaml")]),
        (
            "micro",
            ["gsm8k", "gsm8k@larger_numbers", "gsm8k@irrelevant_sentences", "humaneval", "sciq", "bbh"],
        ),
    ],
)
def test_another_suite_takes_the_place_of_the_papers(
    suite: str, columns: list[str], hub: Hub, root: Path
) -> None:
    ran = pipeline(root, offline(root), "plan", "experiment=paper", f"suite={suite}")
    assert ran.returncode == 0, ran.stderr
    planned = re.findall(r"^  [a-z]  (\S+)$", ran.stdout, re.MULTILINE)
    assert sorted(planned) == sorted(2 * columns), "once for each target"
    found = re.search(r"(\d+) cells \((\d+) more share", ran.stdout)
    plain = [name for name in columns if "@" not in name]
    assert found is not None and sum(map(int, found.groups())) == 2 * (
        8 * len(columns) + (1 + 10 + 9) * len(plain)
    )


def test_main_is_taken_once_and_pinned(hub: Hub, root: Path, tmp_path: Path) -> None:
    def plan() -> str:
        ran = pipeline(tmp_path, hub.environment(tmp_path / "cache"), "plan", "experiment=paper", *small)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    small = ["families=[1.5b]", "conditions=baseline", "alpha=[]", "tasks=[gsm8k]"]
    served = hub.repositories["models", SFT]
    lock = tmp_path / "results" / "hub.lock.json"
    assert f"{SFT}@{served.revision[:12]}" in plan()
    assert json.loads(lock.read_text())[SFT] == served.revision
    assert QWEN not in json.loads(lock.read_text()), "conf/family pins this one"
    moved = "f" * 40
    try:
        hub.move(SFT, moved)
        again = plan()
        assert "pinned by" in again and f"{SFT}@{served.revision[:12]}" in again and moved[:12] not in again
        lock.write_text(json.dumps({k: v for k, v in json.loads(lock.read_text()).items() if k != SFT}))
        assert f"{SFT}@{moved[:12]}" in plan()
        assert json.loads(lock.read_text())[SFT] == moved
    finally:
        hub.repositories["models", SFT] = served


def test_a_data_set_without_a_revision_is_pinned_too(hub: Hub, root: Path, tmp_path: Path) -> None:
    small = ["families=[1.5b]", "conditions=baseline", "alpha=[]", "tasks=[gsm8k]"]
    name, overrides = "datasets/openai/gsm8k", [*small, "benchmarks.gsm8k.dataset.revision=null"]
    lock = tmp_path / "results" / "hub.lock.json"
    commit = hub.repositories["datasets", "openai/gsm8k"].revision

    def plan() -> str:
        ran = pipeline(tmp_path, hub.environment(tmp_path / "cache"), "plan", "experiment=paper", *overrides)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert "is pinned from now on" in plan() and json.loads(lock.read_text())[name] == commit
    assert f"{name}@{commit[:12]}" in plan().partition("pinned by")[2]


def test_results_are_rendered_where_there_are_no_models(tmp_path: Path) -> None:
    overrides = ["experiment=micro", "tasks=[gsm8k]", "conditions=sweep", "alpha=[0.5]", "limit=3"]
    family = shutil.copytree(ROOT / "models" / "micro", tmp_path / "models")
    overrides += [f"families.micro.{part}.id={family / part}" for part in ("target", "sft", "grpo", "base")]
    env = environment(tmp_path / "cache", HF_HUB_OFFLINE="1")
    planned = pipeline(tmp_path, env, *overrides, "stages=[extract]")
    assert planned.returncode == 0, planned.stderr
    config = compose([*overrides, f"results={tmp_path / 'results'}"])
    for cell in prepare(config).unique():
        synthetic.write_cell(tmp_path / "results", cell.inputs, synthetic.samples([True, False]))
    shutil.rmtree(family)
    (tmp_path / "results").rename(tmp_path / "laptop")
    copied = [f"results={tmp_path / 'laptop'}", f"tables={tmp_path / 'tables'}", "tracking=disabled"]
    command = ["-m", "pipeline", *overrides, "stages=[render,track]", *copied]
    ran = warm.run(*command, env=env)
    assert ran.returncode == 0, ran.stderr
    assert "as planned in" in ran.stdout and "are not those" not in ran.stdout
    assert "50.0" in (tmp_path / "tables" / "micro" / "main.md").read_text()
    other = warm.run(*command, "alpha=[0.25]", env=env)
    assert "conditions are not those of this configuration" in other.stdout, other.stderr


def test_a_target_whose_donors_are_to_come_is_rendered_with_dashes(tmp_path: Path) -> None:
    """Its cells are the Baseline's, with Think, and the sweep's α = 0."""
    families = {"small": synthetic.family("1.5B", published_size="1.5B"), "large": synthetic.family("7B")}
    made = synthetic.write_run(tmp_path, families=families, documents=12)
    kept = ("baseline", "baseline_think", "alpha=0.0")
    cells = tuple(c for c in made.cells if c.family == "small" or c.condition in kept)
    results = read_results(replace(made, cells=cells), tmp_path)
    files = render(results, tmp_path / "tables")
    assert files["figures"] and files["tables"]
    assert not results.problems
    _, large = terminal.summary(results).split("7B", 1)
    rows = {line[:14].strip(): line[21:].split() for line in large.splitlines()[1:11]}
    assert "±" in rows["Baseline"] and set(rows["+Vector"]) == {"–"}


LOAD = """
import sys
from pipeline.documents import load
from pipeline.errors import UserError
for revision in sys.argv[1:]:
    try:
        dataset = dict(id="openai/gsm8k", config="main", revision=revision, split="test", source_field=None)
        print(len(load(dataset)["test"]))
    except UserError as e:
        print("refused:", e)
"""


@pytest.mark.parametrize("network", ["online", "offline"])
def test_documents_of_another_revision_are_refused(network: str, hub: Hub, root: Path) -> None:
    """`datasets` itself would take whatever revision its cache has, with a warning."""
    pinned = compose(["experiment=paper"]).benchmarks["gsm8k"].dataset.revision
    assert pinned is not None
    env = offline(root) if network == "offline" else hub.environment(root / "cache")
    command = [sys.executable, "-c", LOAD, pinned, pinned[::-1]]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    first, second = ran.stdout.splitlines()
    assert first == "40" and second.startswith("refused: openai/gsm8k at"), ran.stderr


TRAIN = """
import sys
from pathlib import Path
from pipeline.config.compose import compose
from pipeline.donors import data
from pipeline.donors.compose import compose_recipe
from pipeline.donors.overlap import record_overlap
forms = ("bbh", "bbh_plain", "bbh_zeroshot")
some = [f"benchmarks.{form}.subtasks=[boolean_expressions,navigate]" for form in forms]
data.compose = lambda overrides: compose([*overrides, *some])
recipe = compose_recipe(["recipe=micro", "data.id=openai/gsm8k", f"data.revision={sys.argv[1]}"])
examples, held_out = data.training_problems(recipe)
record_overlap({"donors": examples}, held_out, Path(sys.argv[2]))
"""


def test_training_data_of_the_hub_is_compared_with_all_four_benchmarks_of_the_hub(
    hub: Hub, root: Path, tmp_path: Path
) -> None:
    pinned = compose(["experiment=paper"]).benchmarks["gsm8k"].dataset.revision
    ran = warm.run("-c", TRAIN, str(pinned), str(tmp_path), env=offline(root))
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "overlap.json").read_text())
    names = (
        "openai/gsm8k, test",
        "gsm8k",
        "humaneval",
        "humaneval, solutions",
        "sciq",
        "boolean_expressions",
        "navigate",
    )
    assert found.keys() == {f"donors / {name}" for name in names}
    assert all(row["documents"] > 0 and row["same"] == 0 for row in found.values())


def estimated(overrides: list[str]) -> str:
    config = compose(overrides)
    return describe(config, make_grid(config), {})


@pytest.mark.parametrize("conditions", ["paper", "parts", "sweep"])
def test_the_estimate_counts_the_cells_of_the_plan(conditions: str, tmp_path: Path) -> None:
    overrides = ["experiment=micro", "engine.device=gpu", f"results={tmp_path}", "limit=3"]
    overrides.append(f"conditions={conditions}")
    text = estimated(overrides)
    cells = len(prepare(compose(overrides)).unique())
    assert f" = {cells} cells;" in text
    assert estimated(["experiment=micro"]) == ""


def test_the_estimate_is_documents_by_tokens_by_speed() -> None:
    overrides = ["experiment=micro", "engine.device=gpu", "tasks=[gsm8k,sciq]", "alpha=[]", "limit=100"]
    overrides += ["conditions=baseline", "benchmarks.gsm8k.variants=[]", "benchmarks.gsm8k.max_gen_toks=160"]
    for form in ("gsm8k", "sciq"):
        overrides.append(f"benchmarks.{form}.dataset.documents=90")
    text = estimated([*overrides, "families.micro.tokens_per_second=10"])
    assert "= 2 cells; 180 documents" in text
    assert f"{90 * 160 + 90 * 40:,} tokens" in text and "micro 0.5 h" in text
    assert "gsm8k 90 × 160, sciq 90 × 40 scored" in text
    text = estimated([*overrides, "benchmarks.gsm8k.answer_tokens=20", "benchmarks.gsm8k.samples=8", SAMPLED])
    assert f"{90 * 8 * 20 + 90 * 40:,} tokens" in text
    assert "180 documents to answer, 810 answers" in text and "gsm8k 90 × 8 answers × 20" in text


def test_the_estimate_counts_what_a_variant_keeps_and_what_a_limit_leaves() -> None:
    overrides = ["experiment=paper", "families=[1.5b]", "conditions=baseline", "tasks=[gsm8k,bbh]"]

    def counted(*more: str) -> str:
        (line,) = (line for line in estimated([*overrides, *more]).splitlines() if "a cell," in line)
        return line

    text = counted()
    assert "gsm8k 1,319 × 250," in text and "gsm8k@larger_numbers 418 × 250," in text
    assert "gsm8k@irrelevant_sentences 1,319 × 250," in text and "bbh 6,511 × 300," in text
    text = counted("limit=500", "variant_limit=20")
    assert "gsm8k 500 ×" in text and "gsm8k@larger_numbers 20 ×" in text
    assert "bbh 6,511 ×" in text and "bbh@irrelevant_preamble 540 ×" in text, "a limit is of each subtask"
    assert "gsm8k@larger_numbers 418 ×" in counted("limit=500")


@pytest.mark.parametrize("experiment", ["paper", "authors", "pairs"])
def test_a_limit_is_of_every_cell_of_every_experiment(experiment: str) -> None:
    grid = make_grid(compose([f"experiment={experiment}", "limit=3"]))
    assert {cell.benchmark.limit for cell in grid.cells} == {3}
    text = estimated([f"experiment={experiment}", "limit=3"])
    (line,) = (line for line in text.splitlines() if "a cell," in line)
    counts = {int(part.split()[1]) for part in line.partition(": ")[2].split(", ")}
    assert counts <= {3, 3 * 27}, line


@pytest.mark.slow
@pytest.mark.engine
def test_the_paper_runs_offline_from_the_cache_alone(hub: Hub, root: Path) -> None:
    overrides = ["experiment=paper", "engine=cpu", "limit=2"]
    ran = pipeline(root, offline(root), *overrides)
    assert ran.returncode == 0, ran.stderr[-3000:]

    plan_of = [*overrides, f"results={root / 'results'}"]
    manifest = json.loads((root / "results" / "runs" / "paper.json").read_text())
    outputs: dict[tuple[str, str], list[str]] = {}
    config = compose(plan_of)
    commits = {id: r.revision for (kind, id), r in hub.repositories.items() if kind == "models"}
    for cell in manifest["cells"]:
        record = read_record(root / "results", cell["key"])
        assert record is not None
        family: Any = config.families[cell["family"]]
        assert record.provenance["family"] == {
            part: {"id": source.id, "revision": commits.get(source.id)}
            for part in ("target", "sft", "grpo", "base")
            if (source := getattr(family, part)) is not None
        }
        hubs = [d["hub"] for d in record.inputs["documents"]]
        assert set(hubs) == {config.benchmarks[cell["benchmark"].split("@")[0]].dataset.id}
        if cell["benchmark"] == "gsm8k":
            outputs[(cell["family"], cell["condition"])] = [s["output"] for s in record.samples()]
    assert record.provenance["family"]["target"]["revision"] == config.families["qwen7b"].target.revision
    for family in config.families:
        assert outputs[(family, "alpha=0.0")] == outputs[(family, "baseline")]
        for other in ("vector", "minus_vector", "random-s0", "sft", "grpo", "alpha=-0.5"):
            assert outputs[(family, other)] != outputs[(family, "baseline")], (family, other)

    tables = root / "tables" / "paper"
    for name in ("main", "adversarial", "controls", "alpha_sweep"):
        text = (tables / f"{name}.md").read_text()
        assert "Qwen2.5-1.5B" in text and "Qwen2.5-7B" in text

    cells = root / "results" / "cells"
    before = {path: path.stat().st_mtime_ns for path in cells.rglob("*")}
    again = pipeline(root, offline(root), *overrides)
    assert again.returncode == 0 and "0 to do" in again.stdout, again.stderr
    assert {path: path.stat().st_mtime_ns for path in cells.rglob("*")} == before
