"""A live engine that was steered answers as a fresh engine on the applied checkpoint does."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.swap import PLAIN
from pipeline.weights.architecture import EMBEDDING, HEAD
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.steer import Term, apply
from pipeline.weights.vector import extract
from tests import faults, tiny, warm

pytestmark = pytest.mark.engine
ALPHAS = (0.7, -1.0, 0.0, 1.0)
REFUSALS = {
    "a tensor left out": faults.LEFT_OUT.replace("gate_proj", "gate_up_proj"),
    "two tensors exchanged": "model.layers.0.self_attn.qkv_proj.weight",
    "one bit flipped": faults.LEFT_OUT.replace("gate_proj", "gate_up_proj"),
    "a stale head": "lm_head.weight",
    "a stale matrix": f"{faults.STALE}.weight",
    "a parameter moved": f"{faults.MOVED}.weight (moved)",
    "a buffer changed": f"{faults.BUFFER}.cos_sin_cache",
    "prefix cache kept": "prefix cache",
}


def probe(folder: Path, engines: list[dict[str, Any]], **options: Any) -> list[Any]:
    """Answers of each step of each engine; the engines follow each other in one process, which is not this one."""
    folder.mkdir(exist_ok=True)
    config = folder / "probe.json"
    config.write_text(
        json.dumps({"engines": engines, "options": options, "out": str(folder / "answers.json")})
    )
    ran = warm.run("-m", "tests.probe", str(config), engine=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text())


@dataclass(frozen=True)
class Case:
    """Checkpoints with tied embeddings or without, and the steps that an engine is taken through on them."""

    tied: bool
    target: Path
    steps: dict[str, dict[str, Any]]
    fresh: dict[str, Path]  # weights → a folder that holds them

    @classmethod
    def write(cls, root: Path, tied: bool) -> "Case":
        settings = {"tied": tied, "rows": 128, "torch_dtype": "float32"}
        state = tiny.weights(tiny.config(**settings), seed=1, head=not tied, dtype=torch.float32)
        state = {k: v if k.endswith("norm.weight") else v * 4 for k, v in state.items()}  # decided answers
        folders = {"target": tiny.write(root / "target", state, **settings)}
        for name, seed in (("sft", 2), ("grpo", 3)):
            folders[name] = tiny.write(root / name, tiny.moved(state, seed, share=0.5, scale=0.1), **settings)
        target, sft, grpo = (Checkpoint.open(str(folders[n])) for n in ("target", "sft", "grpo"))
        vector = str(extract(grpo, sft, root / "vector"))
        plain = {"target": str(folders["target"]), "terms": []}
        steps = {f"alpha={a}": plain | {"terms": [[vector, a, None]]} for a in ALPHAS}
        steps["random"] = plain | {"terms": [[vector, 1.0, 5]]}
        steps |= {
            f"{name}, on the device": steps[name] | {"device": "cpu"} for name in ("alpha=0.7", "random")
        }
        steps["grpo"] = {"target": str(folders["grpo"]), "terms": []}
        steps["back"] = plain
        for name, folder in _of_other_shapes(root, folders, settings).items():
            steps[name] = {"target": str(folder), "terms": []}
        for fault in REFUSALS:
            steps[fault] = {"target": str(folders["grpo"]), "fault": fault}
            steps[f"after {fault}"] = plain
        fresh = {"grpo": folders["grpo"], "back": folders["target"]}
        for name in ("alpha=0.7", "alpha=-1.0", "alpha=1.0", "random"):
            terms = [Term(*term) for term in steps[name]["terms"]]
            fresh[name] = apply(target, terms, root / name)
        return cls(tied, folders["target"], steps, fresh)


def _of_other_shapes(root: Path, folders: dict[str, Path], settings: dict[str, Any]) -> dict[str, Path]:
    """The GRPO donor with other rows of padding, or another head, and in the target's shapes what it should come to."""
    target, grpo = (load_file(folders[name] / "model.safetensors") for name in ("target", "grpo"))
    large = [name for name in (EMBEDDING, HEAD) if name in grpo]
    fewer = grpo | {name: grpo[name][:96].clone() for name in large}
    more = grpo | {name: torch.cat([grpo[name], torch.ones(32, 64)]) for name in large}
    filled = grpo | {name: torch.cat([grpo[name][:96], target[name][96:]]) for name in large}
    tied, copied = settings["tied"], grpo | {HEAD: grpo[EMBEDDING].clone()}
    other = copied if tied else {name: tensor for name, tensor in grpo.items() if name != HEAD}
    made = {
        "fewer rows": (fewer, {"rows": 96}),
        "fewer rows, filled": (filled, {}),
        "more rows": (more, {"rows": 160}),
        "the other head": (other, {"tied": not tied}),
        "the other head, filled": (grpo if tied else copied, {}),
    }
    return {
        name: tiny.write(root / name, state, **settings | changes) for name, (state, changes) in made.items()
    }


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Case]:
    root = tmp_path_factory.mktemp("steering")
    return {tied: Case.write(root / str(tied), tied) for tied in (True, False)}


@pytest.fixture(scope="module")
def all_answers(
    cases: dict[bool, Case], tmp_path_factory: pytest.TempPathFactory
) -> dict[bool, dict[str, Any]]:
    """Answers of one engine steered through all weights, and of a fresh engine for each of them.

    The fresh ones come first, so that no fault that is planted in a steered one can reach them.
    """
    anew = [
        {"model": str(folder), "steps": [{}]} for case in cases.values() for folder in case.fresh.values()
    ]
    live = [{"model": str(case.target), "steps": list(case.steps.values())} for case in cases.values()]
    found = iter(probe(tmp_path_factory.mktemp("answers"), anew + live))
    fresh = {tied: {name: next(found) for name in case.fresh} for tied, case in cases.items()}
    steered = {tied: {name: next(found) for name in case.steps} for tied, case in cases.items()}
    assert next(found, None) is None
    for answers in fresh.values():
        answers["alpha=0.0"] = answers["back"]  # the same checkpoint
    return {tied: {"live": steered[tied], "fresh": fresh[tied]} for tied in cases}


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def case(request: pytest.FixtureRequest, cases: dict[bool, Case]) -> Case:
    return cases[request.param]


@pytest.fixture
def answers(case: Case, all_answers: dict[bool, dict[str, Any]]) -> dict[str, Any]:
    return all_answers[case.tied]


@pytest.mark.parametrize(
    "weights", ["alpha=0.7", "alpha=-1.0", "alpha=0.0", "alpha=1.0", "random", "grpo", "back"]
)
def test_a_swapped_engine_equals_a_fresh_one(answers: dict[str, Any], weights: str) -> None:
    live, fresh = answers["live"][weights], answers["fresh"][weights]
    assert [a["tokens"] for a in live] == [a["tokens"] for a in fresh]
    for a, b in zip(live, fresh, strict=True):
        assert a["logprobs"] == pytest.approx(b["logprobs"], abs=1e-5)


@pytest.mark.parametrize(
    ("donor", "same"),
    [
        ("fewer rows", "fewer rows, filled"),
        ("more rows", "grpo"),
        ("the other head", "the other head, filled"),
    ],
)
def test_a_donor_of_other_shapes_is_asked_in_the_target_s(
    answers: dict[str, Any], donor: str, same: str
) -> None:
    assert answers["live"][donor] == answers["live"][same]


@pytest.mark.parametrize("weights", ["alpha=0.7", "random"])
def test_sums_that_torch_makes_are_certified_and_answer_as_the_host_s(
    answers: dict[str, Any], weights: str
) -> None:
    assert answers["live"][f"{weights}, on the device"] == answers["live"][weights]


def test_the_swaps_change_the_answers(answers: dict[str, Any]) -> None:
    """Without this the test above could pass on an engine that never swaps."""
    live = answers["live"]
    tokens = {
        name: str([a["tokens"] for a in live[name]]) for name in live if not isinstance(live[name], str)
    }
    different = {tokens[name] for name in ("alpha=0.7", "alpha=-1.0", "random", "grpo", "back")}
    assert len(different) == 5
    assert tokens["alpha=0.0"] == tokens["back"]


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_swap_that_goes_wrong_is_refused_and_says_where(
    case: Case, answers: dict[str, Any], fault: str
) -> None:
    refused = answers["live"][fault]
    if fault == "a stale head" and not case.tied:
        assert refused == ""  # an untied head is loaded like any other matrix
    else:
        assert REFUSALS[fault] in refused and "\n" not in refused


@pytest.mark.parametrize("fault", REFUSALS)
def test_the_next_good_swap_mends_it(answers: dict[str, Any], fault: str) -> None:
    after = answers["live"][f"after {fault}"]
    assert [a["tokens"] for a in after] == [a["tokens"] for a in answers["fresh"]["back"]]


@pytest.mark.slow
def test_two_tensor_parallel_workers_answer_as_one_and_refuse_what_goes_wrong(
    case: Case, answers: dict[str, Any], tmp_path: Path
) -> None:
    names = ["alpha=0.7", "random", "a tensor left out", "two tensors exchanged", "grpo", "back"]
    engine = {"model": str(case.target), "steps": [case.steps[name] for name in names]}
    found = probe(tmp_path, [engine], tensor_parallel_size=2, in_process=False)
    for name, parallel in zip(names, found, strict=True):
        if name in REFUSALS:
            assert REFUSALS[name] in parallel
            continue
        for a, b in zip(parallel, answers["fresh"][name], strict=True):
            assert a["tokens"] == b["tokens"]
            assert a["logprobs"] == pytest.approx(b["logprobs"], abs=1e-4)


@pytest.mark.slow
def test_an_engine_that_is_started_for_each_weights_answers_as_one_that_is_steered(
    case: Case, answers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RV_CACHE", str(tmp_path / "cache"))
    names = ["alpha=0.7", "grpo", "back"]
    engine = {"model": str(case.target), "steps": [case.steps[name] for name in names]}
    found = probe(tmp_path, [engine], swap="restart")
    for name, restarted in zip(names, found, strict=True):
        assert [a["tokens"] for a in restarted] == [a["tokens"] for a in answers["fresh"][name]]
    assert not list((tmp_path / "cache").glob("engine-*")), "the checkpoint is removed at the end"


@pytest.mark.slow
def test_weights_that_kernels_use_as_they_are_loaded_are_written_in_place(
    case: Case, answers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the same answers, the same refusals, and every parameter where it was."""
    monkeypatch.setenv(PLAIN, "1")
    refusals = REFUSALS | {"a loader that fails": "(sizes differ 96 and 64); set engine.swap=restart"}
    faults_here = [name for name in refusals if name not in ("a stale head", "a stale matrix")]
    steps = case.steps | {
        "a loader that fails": {"target": case.steps["grpo"]["target"], "fault": "a loader that fails"},
        "after a loader that fails": case.steps["back"],
    }
    names = ["alpha=0.7", "random", "grpo", "back"]
    names += [name for fault in faults_here for name in (fault, f"after {fault}")]
    engine = {"model": str(case.target), "steps": [steps[name] for name in names]}
    found = dict(zip(names, probe(tmp_path, [engine]), strict=True))
    for name in ("alpha=0.7", "random", "grpo", "back"):
        assert [a["tokens"] for a in found[name]] == [a["tokens"] for a in answers["fresh"][name]]
    for fault in faults_here:
        assert refusals[fault] in found[fault] and "\n" not in found[fault]
        after = found[f"after {fault}"]
        assert [a["tokens"] for a in after] == [a["tokens"] for a in answers["fresh"]["back"]]
