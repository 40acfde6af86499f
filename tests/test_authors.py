"""The authors' public triples: what conf/ and published.yaml say of them, and the whole experiment on stand-ins of their ids."""

import functools
import json
import re
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.compose import compose
from pipeline.errors import UserError
from pipeline.files import ROOT
from pipeline.plan.grid import make_grid
from pipeline.records import read_record
from tests import warm
from tests.hub import DATA, Hub, environment, fill, write_repositories

OLMO = "olmo2_7b"
MERGES = {  # evaluation/mergekit/reasoning_delta_alpha1/*.yml in the authors' repository @8d68fe2: base, −1, +1
    "sii_enigma_7b": [
        ("Qwen/Qwen2.5-7B-Instruct", None),
        ("SII-Enigma/Qwen2.5-7B-Ins-SFT-32k", None),
        ("SII-Enigma/Qwen2.5-7B-Ins-SFT-GRPO", None),
    ],
    "roi_qwen25_7b": [
        ("Qwen/Qwen2.5-7B-Instruct", "a09a35458c702b33eeacc393d103063234e8bc28"),
        (
            "chrisluo5311/Qwen2.5-7B-Instruct-SFT-MetaMath-Merged-ROI",
            "e19091b030b4ab663c09812ae0d72b27ce79c725",
        ),
        ("chrisluo5311/Qwen2.5-7B-Instruct-SFT-GRPO-Merged-ROI", "5cb55d12bf3c948c488cbfff9fcac7f63cc21079"),
    ],
    "qwen_gsm8k_1p5b": [
        ("Qwen/Qwen2.5-Math-1.5B", None),
        ("michaelbzhu/Qwen2.5-Math-1.5B-GSM8K-SFT", None),
        ("michaelbzhu/Qwen2.5-Math-1.5B-GSM8K-GRPO", None),
    ],
    "specreasoner_1p5b": [
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "ad9f0ae0864d7fbcd1cd905e3c6c5b069cc8b562"),
        (
            "akhauriyash/DeepSeek-R1-Distill-Qwen-1.5B-SpecReasoner_SFT_14k",
            "bb20ce6b325be4ec0e5693c4359676c1e6761dd7",
        ),
        (
            "akhauriyash/DeepSeek-R1-Distill-Qwen-1.5B-SpecReasoner_SFT_GRPO_14k_v3",
            "a4fa79594eb8b68e3a012a8a4f76aae2f1c9269a",
        ),
    ],
    OLMO: [
        ("allenai/OLMo-2-1124-7B", "7df9a82518afdecae4e8c026b27adccc8c1f0032"),
        ("allenai/OLMo-2-1124-7B-SFT", "1de02c0175118a9de5854aec80a1f970e701e928"),
        ("sunblaze-ucb/OLMo-2-7B-SFT-GRPO-MATH-1EPOCH", "e53a31fea77a61b1a6e4112043a97baec882d282"),
    ],
    "primeintellect_7b": [
        ("Qwen/Qwen2.5-Math-7B", None),
        ("PrimeIntellect/INTELLECT-MATH-SFT", None),
        ("PrimeIntellect/INTELLECT-MATH", None),
    ],
    "deepseek_fast_math_r1_14b": [
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", None),
        ("zbeeb/deepseek-r1-distill-qwen-14b-fast-math-r1-sft-10ep", None),
        ("RabotniKuma/Fast-Math-R1-14B", None),
    ],
}
AVERAGES = {  # as the log has them, over the six or three benchmarks of a row
    ("qwen_gsm8k_1p5b", "qwen"): {"baseline": 9.4, "sft": 7.0, "grpo": 19.7, "vector": 19.4},
    ("sii_enigma_7b", "qwen"): {"baseline": 33.6, "sft": 34.2, "grpo": 37.3, "vector": 35.8},
    ("qwen_gsm8k_1p5b", "lighteval"): {
        **{"baseline": 20.6, "sft": 22.2, "grpo": 26.8, "vector": 28.0},
        **{"random": 21.5, "minus_vector": 9.4},
    },
    ("deepseek_fast_math_r1_14b", "lighteval"): {
        **{"baseline": 49.8, "sft": 47.8, "grpo": 56.0, "vector": 56.7},
        **{"random": 53.1, "minus_vector": 13.8},
    },
}


def figures() -> list[dict[str, Any]]:
    published: list[dict[str, Any]] = theirs()["figures"]
    return published


@functools.cache
def theirs() -> dict[str, Any]:
    data = yaml.safe_load((ROOT / "paper_tables" / "published.yaml").read_text())
    found: dict[str, Any] = data["authors"]
    return found


@pytest.mark.parametrize("name", MERGES)
def test_a_family_is_what_the_authors_merge(name: str) -> None:
    family = compose(["experiment=authors"]).families[name]
    for source, (id, revision) in zip((family.target, family.sft, family.grpo), MERGES[name], strict=True):
        assert source is not None and source.id == id
        assert revision is None or source.revision == revision


def test_every_family_is_one_of_theirs_and_the_largest_is_run_by_choice() -> None:
    config = compose(["experiment=authors"])
    assert config.families.keys() == MERGES.keys()
    left_out = set(config.families) - set(config.chosen_families())
    assert left_out == {"deepseek_fast_math_r1_14b"}
    assert list(
        compose(["experiment=authors", *(f"families=[{n}]" for n in left_out)]).chosen_families()
    ) == [*left_out]


def test_a_published_score_names_what_the_experiment_has() -> None:
    config = compose(["experiment=authors"])
    named = [(f["family"], f["setting"], f["benchmark"], f["condition"]) for f in figures()]
    assert len(set(named)) == len(named)
    for figure in figures():
        assert figure["family"] in config.families
        assert figure["benchmark"] in config.benchmarks
        assert figure["condition"] in config.conditions
        assert figure["setting"] in theirs()["settings"]
        assert set(figure["source"]) <= theirs()["sources"].keys()


@pytest.mark.parametrize("group", AVERAGES)
def test_scores_have_the_averages_of_the_log(group: tuple[str, str]) -> None:
    for condition, average in AVERAGES[group].items():
        scores = [
            f["score"]
            for f in figures()
            if (f["family"], f["setting"]) == group and f["condition"] == condition
        ]
        assert abs(statistics.fmean(scores) - average) <= 0.1, "scores and averages are rounded to a tenth"
    assert {f["condition"] for f in figures() if (f["family"], f["setting"]) == group} == AVERAGES[
        group
    ].keys()


def test_the_question_is_asked_in_both_ways_with_the_control_in_each() -> None:
    rows = {c.name: c for c in make_grid(compose(["experiment=authors"])).conditions}
    for row in ("baseline", "sft", "grpo", "vector", "minus_vector", "random-s0"):
        boxed = rows[row.replace("-s", "_boxed-s") if "-s" in row else f"{row}_boxed"]
        assert (rows[row].prompt, boxed.prompt) == ("plain", "boxed")
        assert (rows[row].start, rows[row].terms) == (boxed.start, boxed.terms)
    assert sum(c.origin == "random" for c in rows.values()) >= 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("authors")


@pytest.fixture(scope="module")
def hub(root: Path) -> Iterator[Hub]:
    config = compose(["experiment=authors"])
    with Hub(write_repositories(root / "hub", config)) as served:
        fill(root / "cache", served, config)
        yield served


def pipeline(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = [f"results={root / 'results'}", f"tables={root / 'tables'}"]
    env = environment(root / "cache", HF_HUB_OFFLINE="1")
    return warm.run("-m", "pipeline", *arguments, *places, env=env)


def test_all_of_it_is_planned(hub: Hub, root: Path) -> None:
    ran = pipeline(root, "plan", "experiment=authors")
    assert ran.returncode == 0, ran.stderr
    found = re.search(r"(\d+) cells \((\d+) more share", ran.stdout)
    assert found is not None
    rows, sweep = 21, 9  # of every family; the sweep is asked one benchmark of seven
    assert sum(map(int, found.groups())) == 6 * (7 * rows + sweep)
    assert f"= {found[1]} cells;" in ran.stdout, "the estimate counts what two families share once"
    assert "14B" not in ran.stdout


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the public files of mathematics")
def test_a_base_model_is_asked_through_its_donors_chat_template(hub: Hub, root: Path) -> None:
    asked = ("experiment=authors", f"families=[{OLMO}]", "task=amc23")
    ran = pipeline(root, "prompt", *asked)
    assert ran.returncode == 0, ran.stderr
    assert "<|im_start|>user\n" in ran.stdout and ran.stdout.count("<|im_start|>assistant") == 1
    assert "at most 3072 tokens" in ran.stdout and "'<|im_end|>'" in ran.stdout
    bare = pipeline(root, "prompt", *asked, f"families.{OLMO}.template=null", f"families.{OLMO}.chat=false")
    assert bare.returncode == 0 and "<|im_start|>" not in bare.stdout.partition("at most")[0], bare.stderr


def test_a_target_without_a_template_is_a_mistake_with_its_remedy(hub: Hub, root: Path) -> None:
    only = ["experiment=authors", f"families=[{OLMO}]", "engine=cpu"]
    ran = pipeline(root, "plan", *only, f"families.{OLMO}.template=null")
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1
    assert "expected a chat template, found none" in ran.stderr and f"families.{OLMO}.template" in ran.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["template=grop"], "template: expected one of sft, grpo, base, found 'grop'"),
        (["template=target"], "template: expected one of sft, grpo, base, found 'target'"),
        (["template=base"], "template=base: the family has no such checkpoint"),
        (["template=sft", "chat=false"], "template=sft: no template is applied with chat=false"),
        (["max_model_len=3"], "max_model_len: expected 16 or more"),
        (["max_gen_toks=0"], "max_gen_toks: expected a positive number"),
    ],
)
def test_a_mistake_in_a_family_is_one_line(overrides: list[str], message: str) -> None:
    where = f"families.{OLMO}."
    with pytest.raises(UserError) as refused:
        compose(["experiment=authors", *(where + o for o in overrides)])
    assert str(refused.value).startswith(where + message) and "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the public files of mathematics")
def test_all_of_it_runs_on_stand_ins(hub: Hub, root: Path) -> None:
    names = ("qwen_gsm8k_1p5b", "roi_qwen25_7b", OLMO)
    part = [f"families=[{','.join(names)}]", "tasks=[aime24,math500_3000]", "limit=1", "alpha=[0,0.5]"]
    part += [f"conditions.{c}.seeds=[0]" for c in ("random", "random_boxed")]
    part += [f"benchmarks.{b}.max_gen_toks=12" for b in ("aime24", "math500_3000")]
    overrides = ["experiment=authors", "engine=cpu", "engine.max_model_len=5000", "tracking=disabled", *part]
    ran = pipeline(root, *overrides)
    assert ran.returncode == 0, ran.stderr[-3000:]
    manifest = json.loads((root / "results" / "runs" / "authors.json").read_text())
    outputs: dict[tuple[str, str], str] = {}
    for cell in manifest["cells"]:
        record = read_record(root / "results", cell["key"])
        assert record is not None
        (sample,) = record.samples()
        assert "<|im_start|>user\n" in sample["prompt"] and sample["prompt"].endswith(
            "<|im_start|>assistant\n"
        )
        boxed = cell["condition"].partition("-s")[0].endswith("_boxed")
        assert ("put your final answer within \\boxed" in sample["prompt"]) == boxed
        assert record.provenance["engine"]["max_model_len"] == (
            4096 if cell["family"] in ("qwen_gsm8k_1p5b", OLMO) else 5000
        )
        if cell["benchmark"] == "math500_3000":
            outputs[cell["family"], cell["condition"]] = sample["output"]
    for family in names:
        assert outputs[family, "alpha=0.0"] == outputs[family, "baseline"]
        assert len({outputs[family, c] for c in ("baseline", "vector", "minus_vector", "sft", "grpo")}) > 2
    assert (root / "tables" / "authors" / "main.md").is_file()
