"""A ten-value α sweep of the micro suite: our pipeline beside the `lm_eval` command, once for each α.

    python -m benchmarks.sweep [overrides of experiment=micro …]

Ours is the whole of `python -m pipeline experiment=micro conditions=baseline stages=[extract,evaluate] launcher=ray`, from
the start of the process to its end, with a worker of one thread for each core (`launcher=local` for a single one; vLLM gives
the `lm_eval` command all cores). Theirs is `apply` to a folder for each α and `lm_eval --model vllm` on it, with the same
tasks, documents, token limits and dtype, once as the command is and once with the options that make it quickest here (no
compilation, our number of sequences); the time to write the checkpoints is not counted. Ends with status 1 if a score differs.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.parity import local_task
from pipeline.config.compose import compose
from pipeline.config.schema import EngineConfig
from pipeline.engine.environment import prepare_environment
from pipeline.evaluate.tasks import task_manager
from pipeline.files import ROOT
from pipeline.plan.grid import Benchmark
from pipeline.plan.keys import versions
from pipeline.plan.plan import Plan
from pipeline.records import read_record
from pipeline.stages import prepare
from pipeline.weights.steer import Term, apply

ALPHAS = [-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0]
Scores = dict[tuple[float, str], float]


def main(overrides: list[str]) -> int:
    """Run both sides, print the ratio, and return 0 if every score is equal, else 1."""
    with tempfile.TemporaryDirectory() as work:
        fixed = [
            "experiment=micro",
            "conditions=baseline",
            f"alpha={ALPHAS}".replace(" ", ""),
            "benchmarks.gsm8k.variants=[]",
            "tracking=disabled",
            f"results={work}/results",
            "launcher=ray",
            f"launcher.workers={len(os.sched_getaffinity(0))}",
            *overrides,
        ]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pipeline", *fixed, "stages=[extract,evaluate]"], check=True)
        ours_seconds = time.perf_counter() - started
        plan = prepare(compose(fixed))
        ours = our_scores(plan)
        found: dict[str, Any] = {"alphas": len(ALPHAS), "scores": len(ours), "ours_s": round(ours_seconds, 1)}
        differing: list[str] = []
        for name, options in {"lm_eval": {}, "lm_eval_quickest": quickest(plan.config.engine)}.items():
            seconds, theirs = stock_scores(plan, Path(work) / name, options)
            differing += [
                f"{name}, α={a:g}, {task}: ours {ours[a, task]}, theirs {score}"
                for (a, task), score in theirs.items()
                if ours[a, task] != score
            ]
            found[name] = {
                "options": options,
                "s": round(sum(seconds), 1),
                "each_s": [round(s, 1) for s in seconds],
                "ratio": round(sum(seconds) / ours_seconds, 2),
            }
        found |= {"scores_that_differ": differing, "versions": versions()}
        print(json.dumps(found, indent=1))
        return 1 if differing else 0


def our_scores(plan: Plan) -> Scores:
    """α and lm-eval task → mean score of its documents."""
    scores: Scores = {}
    for cell in plan.cells:
        record = read_record(plan.results, cell.key)
        assert record is not None
        rows: dict[str, list[float]] = {}
        for sample in record.samples():
            rows.setdefault(cell.benchmark.config.task.format(subtask=sample["subtask"]), []).append(
                sample["score"]
            )
        for task, found in rows.items():
            scores[cell.condition.alpha or 0.0, task] = sum(found) / len(found)
    return scores


def quickest(engine: EngineConfig) -> dict[str, Any]:
    """Options of vLLM with which the command is quicker than with its defaults, for models this small."""
    return {"max_num_seqs": engine.max_num_seqs, "enforce_eager": engine.enforce_eager}


def stock_scores(plan: Plan, work: Path, options: dict[str, Any]) -> tuple[list[float], Scores]:
    """Seconds of each run of the `lm_eval` command, and what `our_scores` gives, from its results."""
    (family,) = plan.families.values()
    definitions, metrics = work / "tasks", {}
    definitions.mkdir(parents=True)
    index = task_manager().task_index
    for task in plan.benchmarks:
        for subtask in task.subtasks:
            name = task.config.task.format(subtask=subtask)
            metrics[name] = task.config.metric
            (definitions / f"{name}.yaml").write_text(
                yaml.safe_dump(definition(plan, task, subtask, index[name]))
            )
    seconds, scores = [], {}
    engine = plan.config.engine
    environment = os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{ROOT}"}
    environment.pop("TORCHDYNAMO_DISABLE", None)  # ours, set by `prepare_environment`
    for alpha in ALPHAS:
        model = apply(family.target, [Term(str(plan.vector(family)), alpha)], work / "steered")
        out = work / "stock" / f"{alpha:g}"
        command = [
            *(str(Path(sys.executable).parent / "lm_eval"), "--model", "vllm", "--model_args"),
            f"pretrained={model},dtype={engine.dtype},max_model_len={engine.max_model_len}"
            + "".join(f",{name}={value}" for name, value in options.items()),
            *("--tasks", ",".join(metrics), "--include_path", str(definitions), "--batch_size", "auto"),
            *("--apply_chat_template", "--log_samples", "--output_path", str(out)),
        ]
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
        seconds.append(time.perf_counter() - started)
        (path,) = out.rglob("results_*.json")
        results: dict[str, Any] = json.loads(path.read_text())["results"]
        scores |= {(alpha, task): results[task][metric] for task, metric in metrics.items()}
    return seconds, scores


def definition(plan: Plan, task: Benchmark, subtask: str | None, stock: Any) -> dict[str, Any]:
    """The task file for `lm_eval`: the stock task with the benchmark's changes, token limit and documents."""
    folder = Path(str(task.folder)).resolve()
    own = local_task(task, subtask, stock.name, stock.yaml_path, folder) | task.config.changes
    limit = {"max_gen_toks": task.config.max_gen_toks} if task.config.max_gen_toks else {}
    kwargs = stock.cfg.get("generation_kwargs")
    return own | {"num_fewshot": 0} | ({"generation_kwargs": kwargs | limit} if kwargs else {})


if __name__ == "__main__":
    prepare_environment(compose(["experiment=micro"]).engine)
    sys.exit(main(sys.argv[1:]))
