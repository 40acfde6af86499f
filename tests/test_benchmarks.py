"""Benchmarks: every one that is configured loads, asks what the stock task asks, and is refused where it cannot be right."""

import json
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import yaml
from lm_eval.config.task import TaskConfig
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from benchmarks import parity
from evals import math
from pipeline import documents as documents
from pipeline.__main__ import main
from pipeline.commands import prompt as prompts
from pipeline.config.compose import compose
from pipeline.config.explain import CONF
from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.evaluate.tasks import load_task, task_manager
from pipeline.files import ROOT
from pipeline.plan import keys
from pipeline.plan.grid import Benchmark, columns, rows
from pipeline.plan.sources import find_sources
from pipeline.stages import prepare
from tests import tiny
from tests.documents import PROGRAM, SCIQ, sums

SHARED = Path("../shared/data")
BENCHMARKS = sorted(path.stem for path in (CONF / "benchmark").glob("*.yaml"))


def of_gsm_plus() -> list[dict[str, Any]]:
    made = [(seed, n) for seed in ("one", "two", "three") for n in range(3)]
    return [{"question": f"{s} {n}?", "solution": f"#### {n}", "seed_question": s} for s, n in made]


MBPP = {"text": "Write one.", "code": "def one():\n    return 1", "test_list": ["assert one() == 1"] * 3}
ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k/test.jsonl": sums(0, 4),
    "gsm8k/train.jsonl": sums(100, 40),
    "gsm8k_platinum/test.jsonl": sums(0, 9),
    "gsm_plus/gsmplus_test.jsonl": of_gsm_plus(),
    "gsm_plus/gsmplus_testmini.jsonl": of_gsm_plus(),
    "math/aime24.jsonl": [{"problem": "What is left?", "question": "What is left?", "answer": "025"}],
    "math/aime25.jsonl": [{"problem": "Which angle?", "answer": "336^\\circ"}],
    "math/amc23.jsonl": [{"problem": "How far?", "question": "How far?", "answer": 27.0}],
    "math/minerva_math.jsonl": [{"problem": "How bright?", "solution": "It is \\boxed{4.5e33} erg/s."}],
    "math/olympiadbench.jsonl": [{"question": "Which $n$?", "final_answer": ["$69$,$84$"], "unit": None}],
    "math/math500.jsonl": [
        {"problem": "Half of 1?", "solution": "It is $\\boxed{\\frac{1}{2}}$.", "answer": "\\frac{1}{2}"}
    ],
    "mbpp/test.jsonl": [MBPP | {"task_id": 11}],
    "mbpp/prompt.jsonl": [MBPP | {"task_id": n} for n in range(1, 11)],
    "humanevalplus/HumanEvalPlus-OriginFmt.jsonl.gz": [PROGRAM],
    "humaneval/HumanEval.jsonl.gz": [PROGRAM],
    "sciq/test.json": [SCIQ],
    "sciq/train.json": [SCIQ | {"question": f"Which {n}?"} for n in range(5)],
}
BBH = ("bbh", "bbh_plain", "bbh_zeroshot", "bbh_cot_fewshot")
SUBTASKS = ("navigate", "snarks")
FOLDERS = [path for path in Path(lm_eval.tasks.__file__).parent.iterdir() if path.is_dir()]


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return task_manager()


def test_a_task_in_no_folder_of_its_name_is_found_too(manager: TaskManager) -> None:
    for name in ("gsm8k", "rv_humaneval", "bbh_cot_zeroshot_navigate", "hendrycks_math500"):
        assert len(task_manager(frozenset({name})).all_subtasks) < 1000  # a few folders alone
    assert not any("boolq".startswith(path.name) for path in FOLDERS)
    elsewhere = task_manager(frozenset({"boolq", "gsm8k"}))
    assert {"boolq", "gsm8k"} <= set(elsewhere.all_subtasks) and len(elsewhere.all_subtasks) < 1000
    assert elsewhere.task_index["boolq"].cfg == manager.task_index["boolq"].cfg
    assert "no_such_task" not in task_manager(frozenset({"no_such_task"})).all_subtasks


def test_every_task_of_lm_eval_has_its_name_in_a_file_of_its_folder(manager: TaskManager) -> None:
    def is_said(name: str, file: Path) -> bool:
        if name.encode() in file.read_bytes():
            return True
        folder = FOLDERS[0].parent / file.relative_to(FOLDERS[0].parent).parts[0]
        return any(name.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())

    files = {name: manager.task_index[name].yaml_path for name in manager.all_subtasks}
    stock = {name: file for name, file in files.items() if file and FOLDERS[0].parent in file.parents}
    assert len(stock) > 5000
    assert [name for name, file in stock.items() if not is_said(name, file)] == []


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few documents of every benchmark."""
    import gzip

    folder = tmp_path_factory.mktemp("documents")
    for name, content in ROWS.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    for subtask in SUBTASKS:
        path = folder / "bbh" / "bbh" / f"{subtask}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        examples = [{"input": f"{subtask} {n}?\nOptions:\n- Yes\n- No", "target": "No"} for n in range(3)]
        path.write_text(json.dumps({"examples": examples}))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("models") / "model")


@cache
def configured(model: Path, folder: Path, *overrides: str) -> Config:
    return compose(
        [
            "experiment=model",
            "suite=extended",
            f"families.model.target.id={model}",
            f"data.folder={folder}",
            *(f"benchmarks.{name}.subtasks=[{','.join(SUBTASKS)}]" for name in BBH),
            *overrides,
        ]
    )


def task(config: Config, name: str) -> Benchmark:
    found = next(t for t in columns(config) if t.name == name)
    return find_sources(config).benchmark(found)


def built(config: Config, name: str, document: int = 0, condition: str = "baseline") -> prompts.Prompt:
    row = next(c for c in rows(config) if c.name == condition)
    return prompts.build(config, find_sources(config), task(config, name), row, document)


def test_the_extended_suite_has_every_benchmark(model: Path, own: Path) -> None:
    assert sorted(configured(model, own).benchmarks) == BENCHMARKS


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_revision_is_pinned_or_a_comment_says_why_not(name: str, model: Path, own: Path) -> None:
    revision = configured(model, own).benchmarks[name].dataset.revision
    if revision is not None:
        assert re.fullmatch("[0-9a-f]{40}", revision)
        return
    texts = [path.read_text() for path in (CONF / "benchmark").glob("*.yaml") if name.startswith(path.stem)]
    assert any(re.search(r"revision: null +# ", text) for text in texts)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_is_changed_are_keys_of_a_task_that_lm_eval_knows(
    name: str, model: Path, own: Path, manager: TaskManager
) -> None:
    b = configured(model, own).benchmarks[name]
    assert b.changes.keys() <= TaskConfig.__dataclass_fields__.keys()
    for subtask in yaml.safe_load((CONF / "benchmark" / "bbh.yaml").read_text())["subtasks"]:
        assert b.task.format(subtask=subtask) in manager.all_subtasks


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_loads_with_its_metrics_and_asks_its_document(
    name: str, model: Path, own: Path
) -> None:
    prompt = built(configured(model, own), name)
    assert prompt.text.startswith("<|im_start|>") and prompt.chat_template_sha
    files = configured(model, own).benchmarks[name].dataset
    rows = ROWS.get(files.files[files.split], [{"input": "navigate 0?"}])
    question = next(
        rows[0][key] for key in ("question", "problem", "prompt", "text", "input") if key in rows[0]
    )
    assert question in prompt.text
    assert (prompt.generation is None) == (name == "sciq")


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmarks' own files are not here")
def test_every_benchmark_whose_files_are_here_loads(name: str, model: Path) -> None:
    config = configured(model, SHARED)
    dataset = config.benchmarks[name].dataset
    if not (SHARED / dataset.files[dataset.split].format(subtask="navigate")).is_file():
        pytest.skip("its files are not here")
    prompt = built(config, name, 1)
    assert len(prompt.text) > 80 and prompt.target


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmarks' own files are not here")
def test_one_in_eight_of_gsm_plus_has_an_answer_that_no_number_can_be(model: Path) -> None:
    b = configured(model, SHARED).benchmarks["gsm_plus_mini"]
    rows = documents.load(vars(b.dataset), str(SHARED))["testmini"]
    assert (len(rows), sum(a == "None" for a in rows["answer"])) == (2400, 300)
    assert len(set(rows["source_doc"])) == 300


def stock_contexts(
    manager: TaskManager, name: str, files: dict[str, Path], model: Path, field: str | None = None
) -> list[str]:
    """What lm-eval asks by itself: the stock task, with nothing changed but where its documents are."""
    source: dict[str, Any] = {"data_files": {split: str(path) for split, path in files.items()}}
    spec = {"task": name, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": source}
    if field:
        source["field"] = field
    loaded: Any = manager.load([{"group": "stock", "task": [spec]}])["tasks"][name]
    loaded.set_fewshot_seed(seed=1234)
    tokenizer = AutoTokenizer.from_pretrained(model)

    def template(messages: list[dict[str, str]], add_generation_prompt: bool) -> Any:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    loaded.build_all_requests(
        apply_chat_template=True, fewshot_as_multiturn=True, chat_template=template, rank=0, world_size=1
    )
    return [request.args[0] for request in loaded.instances]


def test_few_shot_prompts_are_those_of_the_stock_task(manager: TaskManager, model: Path, own: Path) -> None:
    files = {split: own / "gsm8k" / f"{split}.jsonl" for split in ("test", "train")}
    theirs = stock_contexts(manager, "gsm8k", files, model)
    config = configured(model, own, "benchmarks.gsm8k.num_fewshot=5")
    assert [built(config, "gsm8k", n).text for n in range(4)] == theirs
    assert theirs[0].count("####") == 5 and len({t[:200] for t in theirs}) > 1  # each has examples of its own


def test_the_examples_in_a_task_file_are_asked_as_stock(manager: TaskManager, model: Path, own: Path) -> None:
    config = configured(model, own)
    name = "bbh_cot_fewshot_snarks"
    theirs = stock_contexts(manager, name, {"test": own / "bbh/bbh/snarks.json"}, model, "examples")
    assert [built(config, "bbh_cot_fewshot", 3 + n).text for n in range(3)] == theirs
    assert theirs[0].count("the answer is") == 3


def test_the_prompt_condition_stands_before_the_question_and_not_before_the_examples(
    model: Path, own: Path
) -> None:
    text = built(configured(model, own, "conditions=paper"), "gsm8k_fewshot", condition="vector_think").text
    assert text.count("Think step by step.") == 1
    assert "Think step by step.\nQuestion: Tom has 0 nuts" in text


MISTAKES: dict[str, tuple[list[str], str, str]] = {
    "an unknown task": (["benchmarks.gsm8k.task=gsm9k"], "gsm8k", "lm-eval has no task 'gsm9k'"),
    "an unknown key": (["+benchmarks.gsm8k.changes.doc_to_txt=x"], "gsm8k", "'doc_to_txt' is no key"),
    "an unknown metric": (["benchmarks.sciq.metric='acc,no'"], "sciq", "no metric 'acc,no'; it has acc,none"),
    "another split": (["benchmarks.sciq.dataset.split=validation"], "sciq", "dataset.split=test"),
    "too many examples": (["benchmarks.gsm8k.num_fewshot=41"], "gsm8k", "has 40 examples; lower it"),
    "all documents as examples": (
        ["benchmarks.gsm8k_platinum.num_fewshot=9"],
        "gsm8k_platinum",
        "has 8 examples",
    ),
    "more than the task file has": (["benchmarks.bbh_cot_fewshot.num_fewshot=4"], "bbh_cot_fewshot", "has 3"),
    "examples where there are none": (["benchmarks.bbh.num_fewshot=3"], "bbh", "names no split of examples"),
    "examples of what is asked": (["benchmarks.humaneval.num_fewshot=1"], "humaneval", "names no split"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_a_benchmark_is_one_line(what: str, model: Path, own: Path) -> None:
    overrides, name, message = MISTAKES[what]
    with pytest.raises(UserError) as caught:
        built(configured(model, own, *overrides), name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_documents_without_a_column_that_the_task_asks_for_are_one_line(model: Path, own: Path) -> None:
    other = "benchmarks.math500.dataset.files.test=mbpp/test.jsonl"
    message = (
        "'rv_math500' cannot ask its documents .*expected one of .*problem.*found the columns text, code"
    )
    with pytest.raises(UserError, match=message) as caught:
        built(configured(model, own, other), "math500")
    assert "\n" not in str(caught.value)


def test_a_missing_split_of_examples_names_the_file_to_add(model: Path, own: Path, tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_bytes((own / "gsm8k" / "test.jsonl").read_bytes())
    assert built(configured(model, tmp_path), "gsm8k").text
    with pytest.raises(UserError, match=r"num_fewshot=5.*'train', found only test; add .*gsm8k/train\.jsonl"):
        built(configured(model, tmp_path), "gsm8k_fewshot")


def test_a_file_of_examples_counts_only_where_examples_are_asked(
    own: Path, model: Path, tmp_path: Path
) -> None:
    dataset = vars(configured(model, own).benchmarks["gsm8k"].dataset)
    with_train = documents.fingerprint(dataset, str(own), None, examples=False)
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_bytes((own / "gsm8k" / "test.jsonl").read_bytes())
    assert documents.fingerprint(dataset, str(tmp_path), None, examples=False) == with_train
    assert documents.fingerprint(dataset, str(own), None, examples=True).keys() == {"test", "train"}


def test_documents_made_from_one_problem_share_a_source_and_are_clustered(model: Path, own: Path) -> None:
    config = configured(model, own, "tasks=[gsm_plus_mini,gsm8k]")
    rows = documents.load(vars(config.benchmarks["gsm_plus_mini"].dataset), str(own))["testmini"]
    assert rows["source_doc"] == [0, 0, 0, 3, 3, 3, 6, 6, 6]
    benchmarks = prepare(config).manifest().benchmarks
    assert [benchmarks[name].cluster for name in ("gsm_plus_mini", "gsm8k")] == ["source_doc", None]


BOXED = [
    ("First $1$, then $2$: \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}", 1.0),
    ("\\boxed{3}, no: $\\boxed{\\dfrac{1}{2}}$", "\\dfrac{1}{2}", 1.0),
    ("\\boxed{\\text{a {half {of}} one}}", "\\text{a {half {of}} one}", 0.0),
    ("The answer is $\\frac{1}{2}$.", "[invalid]", 0.0),
    ("\\boxed{" * 2000, "[invalid]", 0.0),
]


@pytest.mark.parametrize(("answer", "extracted", "score"), BOXED)
def test_the_last_box_is_the_answer_to_a_question_of_math500(
    answer: str, extracted: str, score: float, model: Path, own: Path, manager: TaskManager
) -> None:
    config = configured(model, own)
    loaded = load_task(manager, task(config, "math500"), None, config.prompts["plain"])
    loaded.build_all_requests(rank=0, world_size=1)
    (request,) = loaded.instances
    request.resps = [answer]
    math.judge([(math.gold(request.doc), one) for one, *_ in BOXED])  # once, in one process, for all of them
    loaded.apply_filters()
    assert request.filtered_resps["boxed"] == extracted
    assert loaded.process_results(request.doc, [extracted]) == {"exact_match": score}


def test_the_prompt_is_that_of_the_pinned_commit(
    model: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked = configured(Path("me/model"), own, f"results={tmp_path}"), []
    (tmp_path / "hub.lock.json").write_text('{"me/model": "0123abc"}')
    tokenizer = prompts.load_tokenizer(str(model))
    monkeypatch.setattr(prompts, "load_tokenizer", lambda *what: asked.append(what) or tokenizer)
    assert "snarks 1?" in prompts.show(config, {"task": "bbh", "document": "4"})
    assert asked == [("me/model", "0123abc", None)]


def test_the_prompt_is_shown_with_its_target_and_limits(model: Path, own: Path) -> None:
    text = prompts.show(configured(model, own), {"task": "bbh", "document": "4"})
    assert "snarks 1?" in text  # documents are counted over the subtasks, as in samples.jsonl
    assert "─── target\nNo\n" in text and "at most 1024 tokens" in text and "'Q:'" in text
    assert re.search("chat template [0-9a-f]{64}", text)
    plain = prompts.show(configured(model, own, "families.model.chat=false"), {"task": "sciq"})
    assert "no chat template" in plain and "<|im_start|>" not in plain
    assert "─── target\nthis\n" in plain and "' this'" in plain


def test_a_prompt_of_a_variant_is_followed_by_its_original(model: Path, own: Path) -> None:
    config = configured(model, own, "benchmarks.bbh.variants=[option_order]")
    perturbed, original = prompts.show(config, {"task": "bbh@option_order", "document": "4"}).split(
        "─── original prompt"
    )
    assert "snarks 1?\nOptions:\n- No\n- Yes" in perturbed
    assert "snarks 1?\nOptions:\n- Yes\n- No" in original and "─── original target\nNo" in original
    assert "original" not in prompts.show(config, {"task": "bbh"})


def test_a_variant_leaves_out_the_subtasks_that_it_cannot_change(model: Path, own: Path) -> None:
    three = "benchmarks.bbh.subtasks=[navigate,word_sorting,snarks]"
    config = configured(model, own, three, "benchmarks.bbh.variants=[option_order,irrelevant_preamble]")
    assert task(config, "bbh@option_order").subtasks == ["navigate", "snarks"]
    assert task(config, "bbh@irrelevant_preamble").subtasks == ["navigate", "word_sorting", "snarks"]
    config = configured(
        model, own, "benchmarks.bbh.subtasks=[word_sorting]", "benchmarks.bbh.variants=[option_order]"
    )
    with pytest.raises(UserError, match="'option_order' fits none of the subtasks word_sorting"):
        prompts.show(config, {"task": "bbh@option_order"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "gsm8"}, "task=gsm8: no such task; did you mean 'gsm8k'?"),
        ({"condition": "baselin"}, "did you mean 'baseline'?"),
        ({"document": "4"}, "gsm8k has 4 documents"),
        ({"document": "-1"}, "expected a number from 0"),
    ],
)
def test_a_prompt_that_does_not_exist_is_one_line(
    options: dict[str, str], message: str, model: Path, own: Path
) -> None:
    with pytest.raises(UserError) as caught:
        prompts.show(configured(model, own), {"task": "gsm8k"} | options)
    assert message in str(caught.value)


def test_the_command_shows_a_prompt_without_vllm_and_leaves_no_manifest(
    model: Path,
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in ("vllm", "lm_eval.models.vllm_causallms", "pipeline.engine.lm"):
        monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
    command = [
        *(
            "prompt",
            "experiment=model",
            "suite=extended",
            "tasks=[gsm8k]",
            f"families.model.target.id={model}",
        ),
        *(f"data.folder={own}", f"results={tmp_path / 'results'}", "conditions=paper"),
        *("condition=vector_think", "document=3"),
    ]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "Think step by step.\nQuestion: Tom has 3 nuts" in shown and "#### 6" in shown
    assert not (tmp_path / "results").exists()


def test_the_benchmark_of_the_guide_runs_through_the_plan(model: Path, tmp_path: Path) -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text().split("### A benchmark")[1].split("\n## ")[0]
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "arc.yaml").write_text(re.findall("```yaml\n(.*?)```", section, re.S)[0])
    choices = {"text": ["air", "stone"], "label": ["A", "B"]}
    (tmp_path / "arc").mkdir()
    row = {"id": "1", "question": "What is hard?", "choices": choices, "answerKey": "B"}
    (tmp_path / "arc" / "test.jsonl").write_text(json.dumps(row) + "\n")
    added = [f"hydra.searchpath=[{tmp_path}]", "+benchmark@benchmarks.arc=arc", "tasks=[arc]"]
    config = configured(model, tmp_path, *added)
    (cell,) = prepare(config).cells
    assert cell.benchmark.config.label == "ARC-Challenge"
    prompt = built(config, "arc")
    assert "What is hard?" in prompt.text and prompt.target == "stone" and len(prompt.options) == 2


def test_a_benchmark_given_by_overrides_alone_runs_through_the_plan(model: Path, own: Path) -> None:
    added = ["+benchmark@benchmarks.sums=gsm8k", "benchmarks.sums.label=Sums"]
    added += ["benchmarks.sums.dataset.files.test=gsm8k/train.jsonl", "tasks=[sums]"]
    config = configured(model, own, *added)
    (cell,) = prepare(config).cells
    assert cell.inputs["task"]["names"] == ["gsm8k"]
    assert "Tom has 100 nuts" in built(config, "sums").text


def test_a_base_model_is_asked_without_the_chat_template(model: Path, own: Path, tmp_path: Path) -> None:
    (tmp_path / "conditions").mkdir()
    rows = {
        "bare": {"label": "Base", "start": "base"},
        "baseline": {"label": "Baseline"},
    }
    (tmp_path / "conditions" / "bare.yaml").write_text("# @package conditions\n" + yaml.safe_dump(rows))
    chosen = [f"hydra.searchpath=[{tmp_path}]", "conditions=bare", f"families.model.base.id={model}"]
    config = configured(model, own, *chosen, "tasks=[gsm8k]")
    chat = {cell.condition.name: cell.inputs["prompt"]["chat"] for cell in prepare(config).cells}
    assert chat == {"bare": False, "baseline": True}
    assert (
        built(config, "gsm8k", condition="bare").text
        == "Question: Tom has 0 nuts and buys 3. How many?\nAnswer:"
    )


def test_a_target_without_a_chat_template_is_refused_unless_it_is_told(own: Path, tmp_path: Path) -> None:
    bare = tiny.write(tmp_path / "bare")
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"found none; set families\.model\.chat=false"):
        prepare(configured(bare, own, "tasks=[gsm8k]"))
    assert prepare(configured(bare, own, "tasks=[gsm8k]", "families.model.chat=false")).cells


@pytest.mark.parametrize(
    ("file", "change", "moves"),
    [
        ("humaneval.yaml", lambda text: text.replace("Write a solution", "Write the solution"), True),
        ("humaneval.yaml", lambda text: text + "# a comment\n", False),
        ("mbpp.yaml", lambda text: text.replace("max_gen_toks: 256", "max_gen_toks: 512"), False),
    ],
)
def test_the_key_of_a_task_moves_with_the_file_that_it_includes(
    file: str,
    change: Callable[[str], str],
    moves: bool,
    model: Path,
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def key() -> str:
        keys._task_definition.cache_clear()
        (cell,) = prepare(configured(model, own, "tasks=[humaneval_plus]")).cells
        return cell.key

    before = key()
    for path in keys.TASKS.glob("*.yaml"):
        text = path.read_text()
        changed = change(text) if path.name == file else text
        assert path.name != file or changed != text
        (tmp_path / path.name).write_text(changed)
    monkeypatch.setattr(keys, "TASKS", tmp_path)
    assert (key() != before) == moves
    keys._task_definition.cache_clear()


def test_parity_counts_each_document_that_differs_in_prompt_or_score(
    capsys: pytest.CaptureFixture[str],
) -> None:
    theirs = [{"prompt": f"{n}?", "scores": {"acc,none": 1.0}, "output": "yes"} for n in range(4)]
    ours = [row | {"score": 1.0, "source_doc": n} for n, row in enumerate(theirs)]
    assert parity.compare("same", ours, theirs) == 0
    ours[1] = ours[1] | {"prompt": "other"}
    ours[2] = ours[2] | {"scores": {"acc,none": 0.0}, "output": "no"}
    assert parity.compare("different", ours, theirs) == 2
    printed = capsys.readouterr().out
    assert "1 prompts differ, 1 generated texts differ, 1 scores differ" in printed
    assert "document 2: ours {'acc,none': 0.0} 'no'" in printed
    with pytest.raises(ValueError):
        parity.compare("one side has fewer", ours[:3], theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=a"], "expected model="),
        (["model=a", "data=b", "limt=3"], "limt=3"),
        (["model=a", "data=b", "limit"], "expected model="),
        (["model=a", "data=b", "limit=x"], "limit=x"),
        (["model=a", "data=b", "num_fewshot=x"], "num_fewshot=x"),
        (["model=a", "data=b", "threads=-1"], "threads=-1"),
        (["model={model}", "data={own}", "benchmarks.mine.label=x"], "benchmarks.mine"),
        (["model={model}", "data={own}", "tasks=mbpp"], "tasks=mbpp: not a stock task"),
    ],
)
def test_a_mistake_in_asking_for_parity_is_one_line(
    arguments: list[str],
    message: str,
    model: Path,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
    manager: TaskManager,
) -> None:
    monkeypatch.setattr(parity, "task_manager", lambda **_: manager)
    with pytest.raises(UserError, match=message) as caught:
        parity.main([a.format(model=model, own=own) for a in arguments])
    assert "\n" not in str(caught.value)
