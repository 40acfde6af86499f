"""Do our cells equal the stock `lm_eval` command, document by document?

    python -m benchmarks.parity model=MODEL_FOLDER data=DATA_FOLDER [limit=50] [work=FOLDER]

Runs `lm_eval --model vllm` on the stock tasks, with nothing changed but where the documents come from, and our
pipeline on the same model, prompts and settings (float32, so that batching cannot move a greedy answer); then compares
the score of every document and, where it differs, shows both answers. DATA_FOLDER is laid out as `data.folder`.
Ends with status 1 if any document differs.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import ROOT, compose
from pipeline.engine import prepare_environment
from pipeline.evaluate import evaluate
from pipeline.plan import Task
from pipeline.records import read_record
from pipeline.stages import prepare

SUBTASKS = ["boolean_expressions", "navigate", "object_counting"]
LENGTH = 2048


def main(arguments: list[str]) -> int:
    options = dict(a.split("=", 1) for a in arguments)
    model, data = Path(options["model"]).resolve(), Path(options["data"]).resolve()
    limit = int(options.get("limit", 50))
    work = Path(options.get("work") or tempfile.mkdtemp(prefix="parity-")).resolve()
    config = compose(
        [
            "experiment=model",
            f"families.model.target.id={model}",
            f"data.folder={data}",
            "tasks=[gsm8k_cot_zeroshot,sciq,bbh]",
            f"benchmarks.bbh.subtasks=[{','.join(SUBTASKS)}]",
            f"limit={limit}",
            f"results={work / 'results'}",
            f"engine.max_model_len={LENGTH}",
        ]
    )
    prepare_environment(config.engine)
    plan = prepare(config)
    stock = stock_scores(plan.tasks, model, data, limit, work)
    evaluate(plan)
    differing = 0
    for cell in plan.cells:
        record = read_record(plan.results, cell.key)
        assert record is not None
        ours: dict[str, list[Any]] = {}
        for sample in record.samples():
            ours.setdefault(cell.task.config.task.format(subtask=sample["subtask"]), []).append(sample)
        for task, samples in ours.items():
            unequal = [s for s, theirs in zip(samples, stock[task], strict=True) if s["scores"] != theirs["scores"]]
            texts = sum(s["output"] != t["output"] for s, t in zip(samples, stock[task], strict=True) if t["output"])
            mean = sum(s["score"] for s in samples) / len(samples)
            print(
                f"{task}: {len(samples)} documents, score {mean:.4f}, {len(unequal)} scores differ,"
                f" {texts} generated texts differ"
            )
            differing += len(unequal)
            for sample in unequal[:3]:
                theirs = stock[task][samples.index(sample)]
                print(f"  document {sample['source_doc']}: ours {sample['scores']} {sample['output']!r}")
                print(f"  {'':>10}stock {theirs['scores']} {theirs['output']!r}")
    print("every score is equal" if differing == 0 else f"{differing} scores differ")
    return 1 if differing else 0


def stock_scores(tasks: list[Task], model: Path, data: Path, limit: int, work: Path) -> dict[str, list[Any]]:
    """{lm-eval task: [{"scores": {"metric,filter": value}, "output": text}] in document order}, by the command."""
    definitions, out = work / "tasks", work / "stock"
    definitions.mkdir(parents=True, exist_ok=True)
    names, kept = [], {}
    for task in tasks:
        for subtask in task.subtasks:
            name = task.config.task.format(subtask=subtask)
            names.append(name)
            kept[name] = [task.config.metric, *task.config.also]
            (definitions / f"{name}.yaml").write_text(yaml.safe_dump(local_task(task, subtask, name, data)))
    command = [
        *(str(Path(sys.executable).parent / "lm_eval"), "--model", "vllm"),
        *("--model_args", f"pretrained={model},dtype=float32,max_model_len={LENGTH},enforce_eager=True"),
        *("--tasks", ",".join(names), "--include_path", str(definitions), "--limit", str(limit)),
        *("--batch_size", "auto", "--apply_chat_template", "--log_samples", "--output_path", str(out)),
    ]
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}:{ROOT}"})
    found: dict[str, list[Any]] = {}
    for name in names:
        (path,) = sorted(out.rglob(f"samples_{name}_*.jsonl"))[-1:]
        rows: dict[int, dict[str, Any]] = {}
        for line in path.read_text().splitlines():
            row = json.loads(line)
            entry = rows.setdefault(row["doc_id"], {"scores": {}, "output": ""})
            for metric in row["metrics"]:
                if f"{metric},{row['filter']}" in kept[name]:
                    entry["scores"][f"{metric},{row['filter']}"] = float(row[metric])
            if len(row["resps"]) == 1:
                entry["output"] = row["resps"][0][0]
        found[name] = [rows[i] for i in sorted(rows)]
    return found


def local_task(task: Task, subtask: str | None, name: str, data: Path) -> dict[str, Any]:
    """The stock task, taken by `include`, with its documents from `data`."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    entry = TaskManager(include_path=None).task_index[name]
    assert entry.yaml_path is not None and Path(lm_eval.__file__).parent in entry.yaml_path.parents
    files = {
        split: str(data / file.format(subtask=subtask)) for split, file in task.config.dataset.files.items()
    }
    files = {split: file for split, file in files.items() if Path(file).is_file()}
    return {
        "include": str(entry.yaml_path),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files} | ({"field": f} if (f := task.config.dataset.json_field) else {}),
        "training_split": "train" if "train" in files else None,
        "fewshot_split": "train" if "train" in files else None,
        "validation_split": None,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
