"""Conditions that add a part of a vector, or several vectors, as configuration says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.analysis.results import read_results
from pipeline.commands.apply import vector_card
from pipeline.config.compose import changed, compose
from pipeline.config.schema import Stage
from pipeline.errors import UserError
from pipeline.plan.plan import Plan
from pipeline.report.tables import geometry
from pipeline.stages import extract, prepare, run
from pipeline.weights.geometry import table as markdown
from pipeline.weights.vector import Vector

VECTOR = {"alpha": 1.0}


def sum_with(alpha: float, **term: Any) -> dict[str, Any]:
    """A condition that adds v and α times something of the other family."""
    return {"terms": [{"alpha": 1.0}, {"alpha": alpha, "family": "other"} | term]}


def planned(tmp_path: Path, conditions: dict[str, Any], *overrides: str) -> Plan:
    """The plan of an experiment of two families with these conditions, its vectors extracted."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    experiment = {
        "defaults": [
            "/experiment/micro",
            {"/family@families.other": "micro"},
            {"override /conditions": "baseline"},
            "_self_",
        ],
        "name": "variants",
        "alpha": [],
        "conditions": {name: {"label": name} | condition for name, condition in conditions.items()},
        "families": {"other": {"label": "other", "grpo": {"id": "models/micro/target"}}},
    }
    (tmp_path / "conf" / "experiment" / "variants.yaml").write_text(
        "# @package _global_\n" + yaml.safe_dump(experiment)
    )
    config = compose(
        [
            "experiment=variants",
            f"hydra.searchpath=[{tmp_path}/conf]",
            f"results={tmp_path}/results",
            "tasks=[gsm8k]",
            *overrides,
        ]
    )
    run(changed(config, stages=[Stage.extract]), lambda line: None)
    return prepare(config)


def test_a_condition_adds_the_part_of_the_vector_that_its_variant_keeps(tmp_path: Path) -> None:
    plan = planned(
        tmp_path, {"vector": VECTOR, "mlp": VECTOR | {"part": {"modules": ["mlp"], "layers": [0, 1]}}}
    )
    family = plan.families["micro"]
    conditions = {c.name: c for c in plan.grid.conditions}
    (whole,) = plan.terms(family, conditions["vector"])
    (part,) = plan.terms(family, conditions["mlp"])
    whole_vector, part_vector = Vector.open(whole.vector), Vector.open(part.vector)
    for name in whole_vector.shapes:
        expected = whole_vector.read(name)
        if ".mlp." not in name or ".layers.0." not in name and ".layers.1." not in name:
            expected = torch.zeros_like(expected)
        assert torch.equal(part_vector.read(name), expected), name
    assert plan.geometry_file(family, conditions["mlp"].terms[0].part).parent == part_vector.path.parent
    assert plan.geometry_file(family, conditions["mlp"].terms[0].part).is_file()


def test_the_geometry_is_measured_again_for_further_alphas(tmp_path: Path) -> None:
    def measured(*overrides: str) -> tuple[list[float], float]:
        config = compose(["experiment=micro", "tasks=[gsm8k]", f"results={tmp_path}/results", *overrides])
        plan = prepare(config)
        extract(plan, lambda line: None)
        path = plan.geometry_file(plan.families["micro"])
        found = json.loads(path.read_text())
        assert found["vector"] == Vector.open(path.parent).fingerprint
        return [row["alpha"] for row in found["total"]["alphas"]], found["total"]["relative_norm"]

    alphas, norm = measured("alpha=[]")
    assert measured("alpha=[]") == (alphas, norm)
    assert measured("alpha=[0.5]") == (sorted([*alphas, 0.5]), norm)


def test_two_targets_of_the_same_donors_each_have_their_own_geometry(tmp_path: Path) -> None:
    same_donors = ["families.other.target.id=models/micro/base", "families.other.grpo.id=models/micro/grpo"]
    plan = planned(tmp_path, {"vector": VECTOR}, *same_donors)
    micro, other = plan.families.values()
    assert plan.vector(micro) == plan.vector(other)
    shown = {row["family"]: row for row in geometry.table(read_results(plan.manifest(), plan.results)).data}
    for family in (micro, other):
        report = json.loads(plan.geometry_file(family).read_text())
        assert report["target"] == family.target.fingerprint
        assert shown[family.name]["relative_norm"] == report["total"]["relative_norm"]
        assert vector_card(plan, family).endswith(markdown(report))
    assert shown["micro"]["relative_norm"] != shown["other"]["relative_norm"]


def test_the_same_target_with_and_without_a_base_has_two_geometries(tmp_path: Path) -> None:
    no_base = ["families.other.grpo.id=models/micro/grpo", "families.other.base=null"]
    plan = planned(tmp_path, {"vector": VECTOR}, *no_base)
    directions = {
        family.name: json.loads(plan.geometry_file(family).read_text())["total"]["directions"]
        for family in plan.families.values()
    }
    assert ("target-base" in directions["micro"], "target-base" in directions["other"]) == (True, False)


def test_a_condition_adds_several_vectors_each_with_its_sign(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"analogy": sum_with(-0.5)})
    own, other = plan.terms(plan.families["micro"], {c.name: c for c in plan.grid.conditions}["analogy"])
    assert (own.alpha, other.alpha) == (1.0, -0.5)
    assert own.vector == str(plan.vector(plan.families["micro"]))
    assert other.vector == str(plan.vector(plan.families["other"])) != own.vector


def test_every_part_and_every_further_vector_changes_the_key(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        {
            "whole": VECTOR,
            "attention": VECTOR | {"part": {"modules": ["self_attn"]}},
            "half": VECTOR | {"part": {"dare": 0.5}},
            "other_half": VECTOR | {"part": {"dare": 0.5, "seed": 1}},
            "trimmed": VECTOR | {"part": {"trim": 0.2}},
            "sum": sum_with(1.0),
            "difference": sum_with(-1.0),
            "of_a_part": sum_with(1.0, part={"modules": ["mlp"]}),
            "with_noise": sum_with(1.0, seed=0),
            "layers": {"terms": [{"alpha": a, "part": {"layers": [i, i]}} for i, a in enumerate((0.5, 2.0))]},
            "noise_of_a_part": VECTOR | {"part": {"modules": ["mlp"]}, "seeds": [0]},
            "donor": VECTOR | {"start": "sft"},
        },
    )
    keys = [c.key for c in plan.cells if c.family.name == "micro" and c.benchmark.perturbation is None]
    assert len(keys) == 13 == len(set(keys))
    sums = {name for name, c in plan.manifest().conditions.items() if c.kind == "sum"}
    assert sums == set(plan.manifest().conditions) - {"baseline", "whole"}


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (
            {"alpha": None, "terms": [{"alpha": 1.0, "family": "another"}]},
            "'another' is no family of this run",
        ),
        ({"part": {"layers": [1]}}, "expected the first and the last layer"),
        ({"part": {"modules": ["moe"]}}, "'moe' keeps no tensor of .* mlp"),
        ({"part": {"modules": ["self_attn", "mpl"]}}, "'mpl' keeps no tensor"),
        ({"part": {"layers": [2, 1]}}, "expected the first and the last layer"),
        ({"part": {"layers": [0, 90]}}, "expected layers of 0 to .*, found 90"),
        ({"part": {"trim": 1.5}}, "expected the share of entries to keep"),
        ({"alpha": None, "terms": [{"alpha": float("nan"), "family": "other"}]}, "expected a finite number"),
    ],
)
def test_a_part_or_vector_that_does_not_exist_is_refused(
    tmp_path: Path, condition: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as refused:
        planned(tmp_path, {"wrong": VECTOR | condition})
    assert "\n" not in str(refused.value)
    written = {path.parent.name for path in (tmp_path / "results").glob("*/*")}
    assert written <= {".cache", "data"}, "a mistake is told before anything is written"
