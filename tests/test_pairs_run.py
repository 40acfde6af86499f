"""The whole of experiment=pairs on stand-ins under the ids of its configuration, from the hub's cache to tables and figures.

Among its pairs: donors in folders of one repository, a LoRA adapter, a base model asked through its donor's chat template,
one that is refused, and one that waits for its training.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.compose import compose
from pipeline.files import ROOT
from pipeline.records import read_record
from tests.hub import Hub, environment, fill, write_repositories

RUN = ("openthinker_1p5b", "verl_1p5b", "gsm8k_1p5b", "deepseek_math_7b")  # two engines
WAITING, REFUSED = "trained_1p5b", "roi_7b"
CHANGES = [
    "families.verl_1p5b.sft.subfolder=runs-sft",
    "families.verl_1p5b.grpo.subfolder=runs-grpo",
    "families.gsm8k_1p5b.grpo.merge_into=sft",
    "families.deepseek_math_7b.template=sft",
    f"families=[{','.join((*RUN, WAITING, REFUSED))}]",
]


@pytest.mark.slow
@pytest.mark.engine
def test_all_of_it_runs_on_stand_ins(tmp_path: Path) -> None:
    places = [f"results={tmp_path / 'results'}", f"tables={tmp_path / 'tables'}"]
    config = compose(["experiment=pairs", *CHANGES, *places])
    repositories = write_repositories(tmp_path / "hub", config)
    (refused,) = (r.folder for r in repositories if r.id.endswith("Instruct-SFT-GRPO-Merged-ROI"))
    settings = json.loads((refused / "config.json").read_text())
    (refused / "config.json").write_text(json.dumps(settings | {"rope_theta": 5.0}))
    with Hub(repositories) as hub:
        fill(tmp_path / "cache", hub, config)
    part = ["tasks=[gsm8k,sciq]", "limit=8", "variant_limit=2", "conditions.random.seeds=[0]"]
    part += [
        "benchmarks.gsm8k.max_gen_toks=8",
        "engine=cpu",
        "engine.max_model_len=2048",
        "tracking=disabled",
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "pipeline", "experiment=pairs", *CHANGES, *part, *places],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(tmp_path / "cache", HF_HUB_OFFLINE="1"),
    )
    assert ran.returncode == 2, ran.stderr[-3000:]
    last = ran.stderr.splitlines()[-1]
    assert last.startswith(f"error: {REFUSED} was left out: rope") and last.count("was left out") == 1, last
    assert f"{WAITING}: 5 of 6 conditions are left out, for want of donors" in ran.stdout

    manifest = json.loads((tmp_path / "results" / "runs" / "pairs.json").read_text())
    assert set(manifest["families"]) == {*RUN, WAITING}
    outputs: dict[tuple[str, str], list[str]] = {}
    for cell in manifest["cells"]:
        record = read_record(tmp_path / "results", cell["key"])
        assert record is not None
        for sample in record.samples():
            assert sample["prompt"].startswith(
                "<|im_start|>system\nYou are Qwen.<|im_end|>\n<|im_start|>user\n"
            )
            outputs.setdefault((cell["family"], cell["condition"]), []).append(sample["output"])
    for name in RUN:
        rows = ("baseline", "sft", "grpo", "vector", "minus_vector", "random-s0")
        assert len({tuple(outputs[name, row]) for row in rows}) > 3, name
    assert outputs["verl_1p5b", "baseline"] == outputs["openthinker_1p5b", "baseline"]

    tables = tmp_path / "tables" / "pairs"
    with (tables / "pairs.csv").open() as file:
        listed = [row for row in csv.DictReader(file) if row["benchmark"] == "gsm8k"]
    of_size = [row["family"] for row in listed if row["size"] == "1.5B"]
    assert of_size == ["openthinker_1p5b", "verl_1p5b", "gsm8k_1p5b", "mean of 3"]
    (mean,) = (row for row in listed if row["family"] == "mean of 3")
    assert mean["q_freedom"] == "2" and 0 <= float(mean["i2"]) <= 100 and float(mean["tau"]) >= 0
    assert "mean of 3 pairs" in (tables / "pairs.md").read_text()
    assert list(tables.rglob("pairs.png")) and list(tables.rglob("pairs.pdf")), "the forest by pair"
