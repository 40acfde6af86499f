"""A benchmark of one's own: documents in a folder, a task file of lm-eval's kind with its scorer, no hub anywhere."""

import json
from pathlib import Path

import pytest
import yaml

from pipeline.commands import prompt
from pipeline.config.compose import compose
from pipeline.config.schema import Config, PromptConfig
from pipeline.errors import UserError
from pipeline.evaluate.tasks import load_task, manager_of
from pipeline.plan import keys
from pipeline.plan.plan import Plan
from pipeline.stages import prepare
from tests import tiny

TASK = {
    "task": "capitals",
    "dataset_path": "json",
    "output_type": "generate_until",
    "test_split": "test",
    "fewshot_split": "train",
    "doc_to_text": "{{country}}:",
    "doc_to_target": " {{capital}}",
    "process_results": "!function scorer.score",
    "metric_list": [{"metric": "right", "aggregation": "mean", "higher_is_better": True}],
}
SCORER = 'def score(doc, results):\n    return {"right": float(doc["capital"] in results[0])}\n'
BENCHMARK = {
    "label": "Capitals",
    "form": "none",
    "task": "capitals",
    "dataset": {"files": {"test": "test.jsonl", "train": "train.jsonl"}},
    "metric": "right,none",
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """What a researcher has: a folder of documents, one of tasks, one of configuration, a model."""
    for split, row in (("test", ("France", "Paris")), ("train", ("Spain", "Madrid"))):
        (tmp_path / "data").mkdir(exist_ok=True)
        rows = [dict(zip(("country", "capital"), row, strict=True))] * 3
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "tasks").mkdir()
    text = yaml.safe_dump(TASK, sort_keys=False).replace("'!function scorer.score'", "!function scorer.score")
    (tmp_path / "tasks" / "capitals.yaml").write_text(text)
    (tmp_path / "tasks" / "scorer.py").write_text(SCORER)
    (tmp_path / "conf" / "benchmark").mkdir(parents=True)
    benchmark = BENCHMARK | {"dataset": BENCHMARK["dataset"] | {"folder": str(tmp_path / "data")}}  # type: ignore[operator]
    (tmp_path / "conf" / "benchmark" / "capitals.yaml").write_text(yaml.safe_dump(benchmark))
    tiny.write(tmp_path / "model")
    return tmp_path


def configured(own: Path, *overrides: str) -> Config:
    return compose(
        [
            "experiment=model",
            f"hydra.searchpath=[{own}/conf]",
            "+benchmark@benchmarks.capitals=capitals",
            "tasks=capitals",
            f"families.model.target.id={own}/model",
            f"evals_path=[{own}/tasks]",
            f"results={own}/results",
            *overrides,
        ]
    )


def planned(own: Path, *overrides: str) -> Plan:
    keys._task_definition.cache_clear()
    return prepare(configured(own, *overrides))


def test_its_documents_are_asked_and_scored(own: Path) -> None:
    (cell,) = planned(own).cells
    task = load_task(manager_of([cell.benchmark]), cell.benchmark, None, PromptConfig())
    document = task.eval_docs[0]
    assert task.doc_to_text(document) == "France:"
    assert task.process_results(document, [" It is Paris."]) == {"right": 1.0}
    shown = prompt.show(configured(own, "benchmarks.capitals.num_fewshot=1"), {})
    assert "Spain:" in shown and "Madrid" in shown and "France:" in shown


def test_its_task_file_scorer_and_documents_are_in_the_key(own: Path) -> None:
    found = [planned(own).cells[0].key]
    (own / "tasks" / "scorer.py").write_text(SCORER.replace("float", "1.0 - float"))
    found.append(planned(own).cells[0].key)
    path = own / "tasks" / "capitals.yaml"
    path.write_text(path.read_text().replace("{{country}}:", "{{country}}?"))
    found.append(planned(own).cells[0].key)
    assert len(set(found)) == 3
    path.write_text("# A comment.\n" + path.read_text())
    assert planned(own).cells[0].key == found[-1]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evals_path=[no/such/folder]", "evals_path: no folder no/such/folder"),
        ("benchmarks.capitals.dataset.folder=no/such", "folder=no/such: no such folder; make it"),
        ("benchmarks.capitals.dataset.folder=null", "its documents are in no folder and not on the hub"),
        ("benchmarks.capitals.dataset.files=null", "files"),
        ("benchmarks.capitals.dataset.files.test=other.jsonl", "other.jsonl: no such file"),
    ],
)
def test_a_mistake_is_one_line(own: Path, override: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        planned(own, override)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_task_file_that_is_no_yaml_is_named(own: Path) -> None:
    (own / "tasks" / "broken.yaml").write_text("task: [")
    with pytest.raises(UserError, match=r"broken\.yaml: cannot be read as YAML"):
        planned(own)
