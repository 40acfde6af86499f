"""Do our cells equal the stock `lm_eval` command, document by document?

    python -m benchmarks.parity model=MODEL_FOLDER data=DATA_FOLDER [tasks=gsm8k,sciq] [limit=200]
                                [subtasks=navigate,snarks] [num_fewshot=0] [max_gen_toks=160] [work=FOLDER]
                                [dtype=float32] [threads=1]
    python -m benchmarks.parity model=MODEL_FOLDER tasks=mine hydra.searchpath=[CONF] +benchmark@benchmarks.mine=mine \
                                evals_path=[TASKS]

Runs `lm_eval --model vllm` on stock tasks, with nothing changed but where the documents come from, and our pipeline
on the same model, prompts and settings: benchmarks of conf/benchmark as lm-eval has them, that is with its number of
examples and its token limit (float32, so that batching cannot move a greedy answer). Then compares the prompt and the
score of every document and, where they differ, shows both answers. `limit` is the number of documents of each task,
shared out evenly among its subtasks and rounded up (BBH: 8 of each of the 27). DATA_FOLDER is laid out as
`data.folder`. Needs an engine that holds a prompt with its examples: 4096 tokens. `num_fewshot` and `max_gen_toks` change
both sides (`--num_fewshot`, `--gen_kwargs`). Cells that are in FOLDER/results already are compared as they are, α = 0 of a
steered run among them. HumanEval's programs are judged by our sandbox on both sides (benchmarks/code_eval). Mathematics is
compared with lm-eval's hendrycks_math500, whose prompt and limits our side then takes: `exact_match,none`, on the
benchmark's own documents. Ends with status 1 if any document differs.

A benchmark of one's own is added as to any experiment, by overrides of the configuration; its documents are those of its
`dataset.folder`, its task is one of lm-eval or of `evals_path`, and what it `changes` in the task the stock command is given too.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import yaml

from evals import math
from pipeline.config.compose import changed, compose
from pipeline.config.schema import EngineConfig, plain
from pipeline.documents import load
from pipeline.engine.environment import prepare_environment
from pipeline.errors import UserError
from pipeline.evaluate.runner import evaluate
from pipeline.evaluate.tasks import task_manager
from pipeline.files import ROOT
from pipeline.plan.grid import Benchmark
from pipeline.records import read_record
from pipeline.stages import prepare

TASKS = "gsm8k,gsm8k_cot_zeroshot,sciq,bbh,bbh_cot_fewshot"  # bbh is bbh_cot_zeroshot
OPTIONS = (
    "model",
    "data",
    "tasks",
    "limit",
    "subtasks",
    "num_fewshot",
    "max_gen_toks",
    "dtype",
    "threads",
    "work",
)
MATH = "hendrycks_math500"
STOCK = {  # what our own tasks are compared with
    "rv_humaneval": "humaneval_instruct",
    **{
        f"rv_{name}": MATH
        for name in ("aime24", "aime25", "amc23", "minerva_math", "olympiadbench", "math500")
    },
}
LENGTH = 4096
Rows = dict[str, list[dict[str, Any]]]  # lm-eval task → its documents in order


def main(arguments: list[str]) -> int:
    """Run both, print one line a task, and return 0 if every prompt and every score is equal, else 1."""
    overrides = [a for a in arguments if is_override(a)]
    options = {name: value for name, _, value in (a.partition("=") for a in arguments if a not in overrides)}
    known = "model" in options and options.keys() <= set(OPTIONS)
    numbers = [options.get(name, "1") for name in ("limit", "num_fewshot", "max_gen_toks", "threads")]
    expected = f"expected model=… data=… and of {', '.join(OPTIONS)}, found {' '.join(arguments)}"
    if not known or not all(map(str.isdecimal, numbers)):
        raise UserError(expected)
    model = Path(options["model"]).resolve()
    work = Path(options.get("work") or tempfile.mkdtemp(prefix="parity-")).resolve()
    limit = int(options.get("limit", 200))
    config = compose(
        [
            "experiment=model",
            "suite=extended",
            f"families.model.target.id={model}",
            f"data.folder={Path(options['data']).resolve() if 'data' in options else 'null'}",
            f"tasks=[{options.get('tasks', TASKS)}]",
            f"results={work / 'results'}",
            f"engine.max_model_len={LENGTH}",
            f"engine.dtype={options.get('dtype', 'float32')}",
            f"engine.threads={options.get('threads', 1)}",
            *overrides,
        ]
    )
    if config.data.folder is None and any(
        b.dataset.folder is None for b in config.chosen_benchmarks().values()
    ):
        raise UserError(f"{expected}; only tasks with a dataset.folder need no data")
    asked = {name: int(options[name]) for name in ("num_fewshot", "max_gen_toks") if name in options}
    index, benchmarks = task_manager(own=tuple(map(os.path.abspath, config.evals_path))).task_index, {}
    for name in config.tasks or []:
        b = config.benchmarks[name]
        subtasks = options["subtasks"].split(",") if b.subtasks and "subtasks" in options else b.subtasks
        stock = stock_name(b.task.format(subtask=next(iter(subtasks), None)))
        if stock not in index or (b.runs_code and b.task not in STOCK):
            raise UserError(f"tasks={name}: not a stock task, so there is nothing to compare it with")
        examples = (index[stock].cfg or {}).get("num_fewshot") or 0
        benchmarks[name] = replace(
            b,
            subtasks=subtasks,
            limit=ceil(limit / max(1, len(subtasks))),
            num_fewshot=asked.get("num_fewshot", examples),
            max_gen_toks=None if b.metric.startswith("acc") else asked.get("max_gen_toks"),
        )
        if stock == MATH:
            as_stock = {key: index[stock].cfg[key] for key in ("doc_to_text", "generation_kwargs")}
            measured = replace(benchmarks[name], metric="exact_match,none", also=[])
            benchmarks[name] = replace(measured, changes=as_stock)
    config = changed(config, benchmarks=config.benchmarks | benchmarks)
    prepare_environment(config.engine)
    plan = prepare(config)
    theirs = stock_rows(plan.benchmarks, index, model, work, config.engine, asked)
    evaluate(plan)
    differing = 0
    for cell in plan.cells:
        record = read_record(plan.results, cell.key)
        assert record is not None
        ours: Rows = {}
        for sample in record.samples():
            ours.setdefault(cell.benchmark.config.task.format(subtask=sample["subtask"]), []).append(sample)
        differing += sum(compare(task, rows, theirs[task]) for task, rows in ours.items())
    print("every prompt and score is equal" if differing == 0 else f"{differing} documents differ")
    return 1 if differing else 0


def compare(task: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> int:
    """Print how the documents of one task compare, and return how many differ in prompt or score."""
    pairs = list(zip(ours, theirs, strict=True))
    prompts = [a["prompt"] != b["prompt"] for a, b in pairs]
    scores = [a["scores"] != b["scores"] for a, b in pairs]
    texts = sum(a["output"] != b["output"] for a, b in pairs if b["output"] is not None)
    mean = sum(a["score"] for a, _ in pairs) / len(pairs)
    print(
        f"{task}: {len(pairs)} documents, score {mean:.4f}, {sum(prompts)} prompts differ,"
        f" {texts} generated texts differ, {sum(scores)} scores differ"
    )
    unequal = [pair for pair, *differs in zip(pairs, prompts, scores, strict=True) if any(differs)]
    for a, b in unequal[:3]:
        print(f"  document {a['source_doc']}: ours {a['scores']} {a['output']!r}")
        print(f"  {'':>10}stock {b['scores']} {b['output']!r}")
    return len(unequal)


def is_override(argument: str) -> bool:
    """Whether an argument changes the configuration, and is no option of this command."""
    key = argument.partition("=")[0]
    return key == "evals_path" or key.startswith(("+", "~")) or "." in key


def stock_name(task: str) -> str:
    """The stock task that one of ours is, or restates."""
    return STOCK.get(task, task)


def stock_rows(
    tasks: list[Benchmark],
    index: dict[str, Any],
    model: Path,
    work: Path,
    engine: EngineConfig,
    changed: dict[str, int],
) -> Rows:
    """Prompt, scores and answer of each document by the `lm_eval` command, by our name of the task; one run for each limit."""
    definitions = work / "tasks"
    definitions.mkdir(parents=True, exist_ok=True)
    names: dict[int, list[str]] = {}
    kept = {}
    for task in tasks:
        for subtask in task.subtasks:
            name = task.config.task.format(subtask=subtask)
            names.setdefault(task.limit or 0, []).append(name)
            kept[name] = [task.config.metric, *task.config.also]
            definition = local_task(task, subtask, name, index[stock_name(name)].yaml_path)
            if stock_name(name) == MATH:
                definition["dataset_kwargs"] = {"data_files": {"test": str(boxed(task, definitions))}}
            (definitions / f"{name}.yaml").write_text(yaml.safe_dump(definition))
    for limit, group in names.items():
        command = [
            *(str(Path(sys.executable).parent / "lm_eval"), "--model", "vllm"),
            *(
                "--model_args",
                f"pretrained={model},dtype={engine.dtype},max_model_len={engine.max_model_len},enforce_eager=True",
            ),
            *("--tasks", ",".join(group), "--include_path", str(definitions), "--limit", str(limit)),
            *("--batch_size", "auto", "--apply_chat_template", "--log_samples"),
            *("--output_path", str(work / "stock")),
        ]
        if "num_fewshot" in changed:
            command += ["--num_fewshot", str(changed["num_fewshot"])]
        if "max_gen_toks" in changed:
            command += ["--gen_kwargs", f"max_gen_toks={changed['max_gen_toks']}"]
        if "rv_humaneval" in group:
            command.append("--confirm_run_unsafe_code")
        print("$", " ".join(command), flush=True)
        path = f"{os.environ.get('PYTHONPATH', '')}:{ROOT}"
        env = os.environ | {"PYTHONPATH": path, "HF_ALLOW_CODE_EVAL": "1"}
        if status := subprocess.run(command, env=env, cwd=ROOT / "benchmarks").returncode:
            raise UserError(f"the stock command ended with status {status}; above is why")
    return {name: read_rows(work / "stock", name, metrics) for name, metrics in kept.items()}


def read_rows(folder: Path, name: str, metrics: list[str]) -> list[dict[str, Any]]:
    """The newest samples that lm-eval wrote for a task, one row a document: prompt, scores, output (None if scored)."""
    path = max(folder.rglob(f"samples_{name}_2*.jsonl"))
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        sample = json.loads(line)
        requests = sample["arguments"]
        entry = rows.setdefault(
            sample["doc_id"],
            {
                "prompt": requests["gen_args_0"]["arg_0"],
                "scores": {},
                "output": sample["resps"][0][0] if len(requests) == 1 else None,
            },
        )
        for metric in sample["metrics"]:
            if f"{metric},{sample['filter']}" in metrics:
                entry["scores"][f"{metric},{sample['filter']}"] = float(sample[metric])
    return [rows[i] for i in sorted(rows)]


def boxed(task: Benchmark, folder: Path) -> Path:
    """A benchmark's documents in the shape that hendrycks_math500 reads: with the gold answer boxed in a solution."""
    split = load(vars(task.config.dataset), task.folder)[task.config.dataset.split]
    rows = [{"problem": math.question(row), "solution": f"\\boxed{{{math.gold(row)}}}"} for row in split]
    path = folder / f"{task.name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def local_task(task: Benchmark, subtask: str | None, name: str, stock: Path) -> dict[str, Any]:
    """The stock task, taken by `include`, with its documents from our folder and what the benchmark changes in it."""
    dataset, data = task.config.dataset, Path(task.folder or "").resolve()
    files = {
        split: str(path)
        for split, file in dataset.files.items()
        if (path := data / file.format(subtask=subtask)).is_file()
    }
    definition: dict[str, Any] = plain(task.config.changes) | {
        "include": str(stock),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files} | ({"field": f} if (f := dataset.json_field) else {}),
    }
    if task.config.num_fewshot == 0:  # lm-eval opens the splits of the examples even where it takes none
        definition |= {"training_split": None, "fewshot_split": None, "validation_split": None}
    return definition


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as e:
        sys.exit(f"error: {e}")
