"""Cells and their keys: whatever can change an answer changes the key, and nothing else does."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from evals.perturbations import common
from pipeline.config.compose import compose
from pipeline.files import ROOT
from pipeline.manifest import read_manifest, write_manifest
from pipeline.plan import keys
from pipeline.plan.grid import make_grid
from pipeline.plan.keys import code_fingerprint
from pipeline.plan.plan import Plan
from pipeline.stages import prepare

FAMILY = ROOT / "models" / "micro"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A copy of the micro family that a test may change."""
    return Path(shutil.copytree(FAMILY, tmp_path / "models"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "gsm8k"
    folder.mkdir(parents=True)
    row = {"question": "Tom has 2 nuts and buys 3 more. How many has he?", "answer": "<<2+3=5>>5\n#### 5"}
    (folder / "test.jsonl").write_text(json.dumps(row) + "\n")
    return folder.parent


def plan(models: Path, data: Path, *overrides: str) -> Plan:
    parts = {"target": "target", "sft": "sft", "grpo": "grpo", "base": "base"}
    family = [f"families.micro.{part}.id={models / folder}" for part, folder in parts.items()]
    fixed = [
        "tasks=[gsm8k]",
        f"data.folder={data}",
        "data.generator=null",
        f"results={data.parent / 'results'}",
    ]
    return prepare(compose([*fixed, *family, *overrides]))


def key(plan: Plan, condition: str = "vector", task: str = "gsm8k") -> str:
    (found,) = {c.key for c in plan.cells if (c.condition.name, c.benchmark.name) == (condition, task)}
    return found


CHANGES = {
    "alpha in the seventh digit": ["conditions.vector.alpha=1.000001"],
    "the prompt": ["conditions.vector.prompt=think"],
    "the words of the prompt": ["prompts.plain.prefix=Hi"],
    "the system message": ["prompts.plain.system=Hi"],
    "max tokens": ["benchmarks.gsm8k.max_gen_toks=99"],
    "the number of examples": ["benchmarks.gsm8k.num_fewshot=1"],
    "a change to the task": ["+benchmarks.gsm8k.changes.target_delimiter='-'"],
    "the metric": ["benchmarks.gsm8k.metric='exact_match,strict-match'"],
    "the limit": ["limit=1"],
    "dtype": ["engine.dtype=bfloat16"],
    "the chat template being off": ["families.micro.chat=false"],
    "further metrics": ["benchmarks.gsm8k.also=[]"],
    "another task": ["benchmarks.gsm8k.task=gsm8k_cot_zeroshot"],
    "the split": [
        "benchmarks.gsm8k.dataset.split=train",
        "benchmarks.gsm8k.dataset.files.train=gsm8k/test.jsonl",
    ],
    "what documents are made from": ["benchmarks.gsm8k.dataset.source_field=question"],
    "the device": ["engine.device=gpu"],
    "other donors": ["families.micro.sft.id={models}/base"],
    "sampling": ["benchmarks.gsm8k.temperature=1"],
    "a sum that is left in float32": ["steer.dtype=float32"],
    "fewer tokens for an answer of a family": ["families.micro.max_gen_toks=50"],
    "fewer tokens for any answer": ["max_gen_toks=50"],
}
SAMPLED = {
    "the temperature": ["benchmarks.gsm8k.temperature=0.7"],
    "the nucleus": ["benchmarks.gsm8k.top_p=0.95"],
    "the number of answers": ["benchmarks.gsm8k.samples=2"],
    "the seed": ["engine.seed=1"],
}
SAME = {
    "another results folder": ["results={tmp}/elsewhere"],
    "another tables folder": ["tables={tmp}/tables"],
    "W&B settings": ["tracking.project=other"],
    "the batch size, in float32": ["engine.max_num_seqs=16"],
    "the room for prompts": ["engine.max_model_len=2048"],
    "the label": ["benchmarks.gsm8k.label=Sums", "conditions.vector.label=Plus"],
    "fewer conditions": ["alpha=[]"],
    "the batch size, with batch invariance in bfloat16": ["engine.max_num_seqs=16"],
    "threads, cache and process": [
        *("engine.threads=2", "engine.kv_cache_gb=2", "engine.in_process=false"),
        *("engine.gpu_memory_utilization=0.5", "engine.seed=3"),
    ],
    "where cells are computed": ["launcher=ray", "launcher.workers=3", "launcher.shard_documents=5"],
    "W&B being off": ["tracking=disabled"],
    "leave to run programs unsandboxed": ["allow_unsandboxed=true"],
    "what is perturbed besides": ["benchmarks.gsm8k.variants=[]", "variant_limit=1", "perturbation_seed=3"],
    "estimates for the plan": ["benchmarks.gsm8k.dataset.documents=9", "families.micro.tokens_per_second=5"],
    "the name": ["name=other"],
    "more tokens for an answer of a family than a benchmark asks": ["families.micro.max_gen_toks=5000"],
    "more tokens for any answer than a benchmark asks": ["max_gen_toks=5000"],
    "the room for prompts of a family": ["families.micro.max_model_len=512"],
    "the same chat template of another checkpoint": ["families.micro.template=sft"],
    "the level of chance and the published name": [
        "benchmarks.gsm8k.chance=0.1",
        "benchmarks.gsm8k.published=X",
    ],
    "the stages": ["stages=[evaluate]"],
    "what is said of donors, and what they may differ in": [
        "families.micro.pair='Ours.'",
        "families.micro.allow_other_initialisation=true",
        "families.micro.allow_config_differences=[unknown]",
    ],
    "what is said of a form": ["benchmarks.gsm8k.form_of=sciq", "benchmarks.gsm8k.cannot_think='Why.'"],
    "further estimates for the plan": [
        "benchmarks.gsm8k.answer_tokens=9",
        "+benchmarks.gsm8k.dataset.kept.renamed=9",
    ],
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_can_change_an_answer_changes_the_key(what: str, models: Path, data: Path) -> None:
    overrides = [o.format(models=models) for o in CHANGES[what]]
    assert key(plan(models, data)) != key(plan(models, data, *overrides))


@pytest.mark.parametrize("what", SAMPLED)
def test_what_can_change_a_sampled_answer_changes_the_key(what: str, models: Path, data: Path) -> None:
    sampled = "benchmarks.gsm8k.temperature=0.6"
    assert key(plan(models, data, sampled)) != key(plan(models, data, sampled, *SAMPLED[what]))


@pytest.mark.parametrize("what", SAME)
def test_what_cannot_change_an_answer_does_not(what: str, models: Path, data: Path, tmp_path: Path) -> None:
    overrides = [o.format(tmp=tmp_path) for o in SAME[what]]
    if what == "another results folder":
        parts = {"target": "target", "sft": "sft", "grpo": "grpo", "base": "base"}
        family = [f"families.micro.{part}.id={models / folder}" for part, folder in parts.items()]
        fixed = ["tasks=[gsm8k]", f"data.folder={data}", "data.generator=null"]
        assert key(plan(models, data)) == key(prepare(compose([*fixed, *family, *overrides])))
        return
    fixed = ["engine.dtype=bfloat16", "engine.batch_invariant=true"] if "bfloat16" in what else []
    assert key(plan(models, data, *fixed)) == key(plan(models, data, *fixed, *overrides))


def test_the_chat_template_of_another_checkpoint_changes_the_key_and_the_engine(
    models: Path, data: Path
) -> None:
    template = models / "sft" / "chat_template.jinja"
    template.write_text(template.read_text().replace("user", "User") + "\n")
    before, after = plan(models, data), plan(models, data, "families.micro.template=sft")
    assert key(before) != key(after)
    assert key(before) == key(plan(models, data))
    assert before.families["micro"].architecture != after.families["micro"].architecture


def test_a_sum_in_float32_is_another_cell_only_where_something_is_added(models: Path, data: Path) -> None:
    before, after = plan(models, data), plan(models, data, "steer.dtype=float32")
    assert key(before, "baseline") == key(after, "baseline") == key(after, "alpha=0.0")
    assert key(before, "random-s0") != key(after, "random-s0")
    family = before.families["micro"]
    assert before.geometry_file(family) != after.geometry_file(family)


def edited(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def flip(path: Path) -> None:
    """Change the lowest bit of the last byte, and leave size and time as they are."""
    raw, stat = bytearray(path.read_bytes()), path.stat()
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


ROW = {"question": "Ann has 4 nuts and buys 2. How many?", "answer": "<<4+2=6>>6\n#### 6"}
FILES = {
    "one bit of the target": lambda models, data: flip(models / "target" / "model.safetensors"),
    "one bit of a donor": lambda models, data: flip(models / "grpo" / "model.safetensors"),
    "a value of the configuration": lambda models, data: edited(
        models / "target" / "config.json", rms_norm_eps=1e-5
    ),
    "a stop token": lambda models, data: edited(
        models / "target" / "generation_config.json", eos_token_id=[0, 1]
    ),
    "the end token": lambda models, data: edited(
        models / "target" / "tokenizer_config.json", eos_token="<|im_start|>"
    ),
    "a further document": lambda models, data: (data / "gsm8k" / "test.jsonl").write_text(
        (data / "gsm8k" / "test.jsonl").read_text() + json.dumps(ROW)
    ),
}
OTHER_FILES = {
    "what the configuration says of its origin": lambda models, data: edited(
        models / "target" / "config.json", transformers_version="0", _name_or_path="x"
    ),
    "a README beside the model": lambda models, data: (models / "target" / "README.md").write_text("x"),
    "examples that are not asked": lambda models, data: (data / "gsm8k" / "train.jsonl").write_text("{}"),
    "documents of another benchmark": lambda models, data: (data / "other.jsonl").write_text("{}"),
    "the time of a file": lambda models, data: os.utime(data / "gsm8k" / "test.jsonl", (1, 1)),
    "the base": lambda models, data: flip(models / "base" / "model.safetensors"),
}


@pytest.mark.parametrize("what", [*FILES, *OTHER_FILES])
def test_a_changed_file_changes_the_key_where_it_can_change_an_answer(
    what: str, models: Path, data: Path
) -> None:
    from pipeline import documents as documents

    before = key(plan(models, data))
    (FILES | OTHER_FILES)[what](models, data)
    documents._sha256.cache_clear()  # a run reads a file once
    assert (key(plan(models, data)) != before) == (what in FILES)


@pytest.mark.parametrize("package", ["vllm", "lm_eval", "torch", "transformers"])
def test_another_version_of_what_makes_answers_changes_the_key(
    package: str, models: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(plan(models, data))
    other = keys.versions() | {package: "0.0.1"}
    monkeypatch.setattr(keys, "versions", lambda: other)
    assert key(plan(models, data)) != before


def test_a_perturbation_changes_the_key_by_its_version_its_code_and_its_seed(
    models: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(*overrides: str) -> tuple[str, str]:
        keys._perturbation.cache_clear()
        made = plan(models, data, *overrides)
        return key(made, task="gsm8k@larger_numbers"), key(made)

    before = found()
    seed = found("perturbation_seed=1")
    forms = common.REGISTRY["gsm8k"]
    monkeypatch.setitem(forms, "larger_numbers", dataclasses.replace(forms["larger_numbers"], version=99))
    version = found()
    monkeypatch.undo()
    monkeypatch.setattr(keys, "code_fingerprint", lambda path: f"changed {path.name}")
    code = found()
    keys._perturbation.cache_clear()
    assert len({before[0], seed[0], version[0], code[0]}) == 4
    assert len({before[1], seed[1], version[1], code[1]}) == 1  # plain documents are the same


@pytest.mark.parametrize(
    ("file", "change", "moves"),
    [
        ("evals/code.py", ("results[0] == ", "results[0] != "), True),
        ("evals/sandbox.py", ("cpu_seconds: int = 10", "cpu_seconds: int = 11"), True),
        ("evals/sandbox_child.py", ("import json", "import json, string"), True),
        ("evals/tasks/humaneval.yaml", ("task: ", "# A comment.\ntask: "), False),
        ("evals/code.py", ("INVALID = ", "# A comment.\nINVALID = "), False),
    ],
)
def test_a_scorer_changes_the_key_by_what_it_does(
    file: str, change: tuple[str, str], moves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "evals", tmp_path / "evals")
    monkeypatch.setattr(keys, "ROOT", tmp_path)
    monkeypatch.setattr(keys, "TASKS", tmp_path / "evals" / "tasks")
    task = compose(["experiment=micro"]).benchmarks["humaneval"].task
    define = keys._task_definition.__wrapped__
    before = define((task,), True)
    text = (tmp_path / file).read_text()
    assert change[0] in text
    (tmp_path / file).write_text(text.replace(*change, 1))
    assert before and (define((task,), True) != before) == moves


def test_with_batches_that_move_answers_the_batch_size_changes_the_key(models: Path, data: Path) -> None:
    bf16 = "engine.dtype=bfloat16"
    assert key(plan(models, data, bf16)) != key(plan(models, data, bf16, "engine.max_num_seqs=16"))
    invariant = [bf16, "engine.batch_invariant=true"]
    assert key(plan(models, data, *invariant)) == key(
        plan(models, data, *invariant, "engine.max_num_seqs=16")
    )


def test_a_row_asked_again_has_a_key_of_its_own_by_its_order_and_batches(models: Path, data: Path) -> None:
    bf16 = "engine.dtype=bfloat16"
    found = [
        key(plan(models, data, bf16, *changes), "baseline_again")
        for changes in (
            (),
            ("conditions.baseline_again.order=2",),
            ("conditions.baseline_again.at_once=64",),
            ("conditions.baseline_again.at_once=null",),
        )
    ]
    assert len({*found, key(plan(models, data, bf16), "baseline")}) == 5


@pytest.mark.parametrize(
    "exact", [["engine.dtype=float32"], ["engine.dtype=bfloat16", "engine.batch_invariant=true"]]
)
def test_nothing_is_asked_again_where_no_answer_can_move(exact: list[str]) -> None:
    for experiment in ("paper", "authors"):
        names = {c.name for c in make_grid(compose([f"experiment={experiment}"])).conditions}
        less = {c.name for c in make_grid(compose([f"experiment={experiment}", *exact])).conditions}
        assert names - less == {"baseline_again"} and less < names


@pytest.mark.parametrize(("part", "condition"), [("target", "baseline"), ("sft", "vector"), ("grpo", "grpo")])
def test_a_changed_weight_changes_the_key(part: str, condition: str, models: Path, data: Path) -> None:
    before = key(plan(models, data), condition)
    path = models / part / "model.safetensors"
    state = load_file(path)
    state["model.norm.weight"][0] += 1e-6
    save_file(state, path, metadata={"format": "pt"})
    assert key(plan(models, data), condition) != before


def test_a_changed_weight_is_seen_though_size_and_time_are_the_same(models: Path, data: Path) -> None:
    path = models / "target" / "model.safetensors"
    before, stat = key(plan(models, data)), path.stat()
    state = load_file(path)
    state["model.norm.weight"] *= 3
    save_file(state, path, metadata={"format": "pt"})
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert key(plan(models, data)) != before


def test_a_changed_tokenizer_changes_the_key_without_a_chat_template_too(models: Path, data: Path) -> None:
    before = key(plan(models, data, "families.micro.chat=false"))
    path = models / "target" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:100]
    path.write_text(json.dumps(tokenizer))
    assert key(plan(models, data, "families.micro.chat=false")) != before


def test_a_changed_document_changes_the_key(models: Path, data: Path) -> None:
    before = key(plan(models, data))
    path = data / "gsm8k" / "test.jsonl"
    path.write_text(path.read_text().replace("Tom", "Tim"))
    from pipeline import documents as documents

    documents._sha256.cache_clear()  # a run reads a file once
    assert key(plan(models, data)) != before


def test_a_changed_chat_template_changes_the_key(models: Path, data: Path) -> None:
    before = key(plan(models, data))
    template = models / "target" / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "careful"))
    assert key(plan(models, data)) != before


def test_a_debug_run_takes_one_seed_and_short_answers_of_every_row_and_benchmark() -> None:
    whole, part = make_grid(compose([])), make_grid(compose(["preset=debug"]))
    assert {c.origin for c in part.conditions} == {c.origin for c in whole.conditions}
    assert [b.name for b in part.benchmarks] == [b.name for b in whole.benchmarks]
    assert {c.name for c in part.conditions if "random" in c.origin} == {"random-s0", "minus_random-s0"}
    assert {(b.limit, b.config.max_gen_toks) for b in part.benchmarks} == {(2, 48), (2, None)}


def test_alpha_zero_is_the_baseline_and_alpha_one_is_the_vector(models: Path, data: Path) -> None:
    made = plan(models, data)
    assert key(made, "alpha=0.0") == key(made, "baseline")
    assert key(made, "alpha=1.0") == key(made, "vector")
    assert key(made, "alpha=-1.0") == key(made, "minus_vector")
    assert len({key(made, c) for c in ("baseline", "vector", "sft", "grpo", "random-s0", "random-s1")}) == 6


SUM = ["+conditions.sum.label=Sum", "+conditions.sum.terms=[{alpha: 1}, {alpha: 0.5, family: second}]"]
SECOND = [f"+families.second.{part}.id={FAMILY / part}" for part in ("target", "sft", "grpo")]


def test_the_second_family_of_a_sum_needs_no_cells_and_no_family_is_added_to_itself() -> None:
    overrides = [*SUM, *SECOND, "+families.second.label=Second", "conditions=[baseline,sum]"]
    asked = [(row.family, row.condition.name) for row in make_grid(compose(overrides)).rows]
    assert asked == [("micro", "baseline"), ("micro", "sum"), ("second", "baseline")]
    config = compose([*overrides, "families=[micro]"])
    assert {cell.family for cell in make_grid(config).cells} == {"micro"}
    assert list(config.opened_families()) == ["micro", "second"]


def test_comments_and_docstrings_are_not_code(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one.py", "two.py", "three.py"))
    one.write_text('"""Says."""\ndef f(x):\n    """Doc."""\n    return x + 1  # plus one\n')
    two.write_text("def f(x):\n    return x + 1\n")
    three.write_text("def f(x):\n    return x + 2\n")
    assert code_fingerprint(one) == code_fingerprint(two) != code_fingerprint(three)


def test_the_manifest_names_every_cell(models: Path, data: Path) -> None:
    made = plan(models, data)
    written = read_manifest(write_manifest(made.results, made.manifest()))
    assert written == made.manifest()
    assert {c.key for c in written.cells} == {c.key for c in made.cells}
    for cell in written.cells:
        assert cell.family in written.families
        assert cell.condition in written.conditions
        assert cell.benchmark in written.benchmarks
    perturbed = written.benchmarks["gsm8k@larger_numbers"]
    assert (perturbed.variant_of, perturbed.cluster) == ("gsm8k", "source_doc")
