"""Records as the files of `lm_eval --output_path … --log_samples`, for tools that read those.

    for line in write(read_manifest(path), Path("results"), Path("for_lm_eval")):
        print(line)

    FOLDER/<family>__<condition>/results_<date>.json
    FOLDER/<family>__<condition>/samples_<task>_<date>.jsonl

A condition takes the place of a model, a benchmark or its subtask that of a task, a benchmark with subtasks that of a
group. The date is that of the newest record, so that the same records give the same bytes. What a record does not keep
is left out: of a document its fields, of scored options all texts but the chosen one's, and whether they are greedy.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import json_bytes, replacing, sha256, write_synced
from pipeline.manifest import Manifest
from pipeline.records import Answer, Record, Sample, read_record

MARK = "exported_from"  # a key of results_*.json that lm-eval does not have

Row = dict[str, Any]


def write(
    manifest: Manifest, results: Path, out: Path, family: str | None = None, condition: str | None = None
) -> list[str]:
    """Write the records of a run, or those of one family or condition, and return a line for each model and each hole.

    Raises:
        UserError: if there is nothing to write, or `out` holds something else.
    """
    found: dict[str, dict[str, Record]] = defaultdict(dict)
    said = []
    for cell in manifest.cells:
        if family in (None, cell.family) and condition in (None, cell.condition):
            try:
                record = read_record(results, cell.key)
                if record is None:
                    raise UserError("no record yet; run the evaluate stage to make it")
                record.check_samples()
                found[f"{cell.family}__{cell.condition}"][cell.benchmark] = record
            except UserError as hole:
                said.append(f"left out: {' / '.join(cell.place)}: {hole}")
    if not found:
        raise UserError(f"{manifest.experiment}: no records to export; run the experiment first")
    out = out.resolve()
    with replacing(out, _check_exported) as new:
        new.mkdir()
        for model, records in found.items():
            (new / model).mkdir()
            tasks = _write_model(new / model, manifest, model, records)
            said.append(f"{out / model}: {len(records)} benchmarks, {tasks} tasks")
    return said


def _check_exported(out: Path) -> None:
    """Raise UserError unless `out` is not there, empty, or holds nothing but what was written here."""
    if not out.exists():
        return
    inside = list(out.iterdir()) if out.is_dir() else [out]
    if not all(any(MARK in path.read_text() for path in folder.glob("results_*.json")) for folder in inside):
        raise UserError(f"{out} exists and was not written by export; choose another folder or remove it")


def _write_model(folder: Path, manifest: Manifest, model: str, records: Mapping[str, Record]) -> int:
    """The files of one condition; returns how many tasks it has."""
    date = max(record.provenance["started"] for record in records.values())
    stamp = date.replace(":", "-").replace("_", "-")  # lm-eval takes what follows the last '_'
    aggregated = _Aggregated()
    for benchmark, record in records.items():
        label = manifest.benchmarks[benchmark].label
        main = record.metrics["metric"].rpartition(",")[2]
        by_subtask: dict[str | None, list[Sample]] = defaultdict(list)
        for sample in record.samples():
            by_subtask[sample["subtask"]].append(sample)
        subtasks = {f"{benchmark}_{name}": of for name, of in by_subtask.items() if name is not None}
        if subtasks:
            aggregated.add(benchmark, label, record, record.samples(), main, list(subtasks))
        for task, samples in (subtasks or {benchmark: by_subtask[None]}).items():
            rows = [row for sample in samples for row in _rows(sample, main)]
            aggregated.add(task, task if subtasks else label, record, samples, main)
            aggregated.results["task_hashes"][task] = _hash(
                "".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows)
            )
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_synced(folder / f"samples_{task}_{stamp}.jsonl", lines.encode())
    described = _described(manifest, model, records, date)
    write_synced(folder / f"results_{stamp}.json", json_bytes(aggregated.results | described))
    return len(aggregated.results["task_hashes"])


class _Aggregated:
    """The part of results_*.json that is by task."""

    def __init__(self) -> None:
        keys = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better")
        self.results: Row = {key: {} for key in (*keys, "n-samples", "task_hashes")}

    def add(
        self,
        task: str,
        label: str,
        record: Record,
        samples: Sequence[Sample],
        main: str,
        subtasks: Sequence[str] = (),
    ) -> None:
        """A task, or a group with its subtasks."""
        scores: dict[str, list[float]] = defaultdict(list)
        for sample in samples:
            for name, score in sample["scores"].items():
                metric, _, filtered = name.partition(",")
                scores[f"{metric},{filtered or main}"].append(score)
        entry: Row = {"name": task, "alias": label, "sample_len": len(samples)}
        for name, of in scores.items():
            metric, _, filtered = name.partition(",")
            entry[name] = math.fsum(of) / len(of)
            entry[f"{metric}_stderr,{filtered}"] = _stderr(of)
        all_of = self.results
        all_of["results"][task] = entry
        all_of["group_subtasks"][task] = list(subtasks)
        if subtasks:
            all_of["groups"][task] = entry
            return
        asked = record.inputs.get("task", {})
        all_of["configs"][task] = {"task": task, **asked}
        all_of["n-shot"][task] = asked.get("num_fewshot", 0)
        all_of["higher_is_better"][task] = {name.partition(",")[0]: True for name in scores}
        all_of["n-samples"][task] = {"original": len(samples), "effective": len(samples)}


def _stderr(scores: Sequence[float]) -> float | str:
    """As lm-eval's `mean_stderr`: the sample standard deviation over √n."""
    n = len(scores)
    if n < 2:
        return "N/A"
    mean = math.fsum(scores) / n
    return math.sqrt(math.fsum((x - mean) ** 2 for x in scores) / (n - 1) / n)


def _described(manifest: Manifest, model: str, records: Mapping[str, Record], date: str) -> Row:
    """The part of results_*.json that is about the model and the run."""
    first = next(iter(records.values()))
    provenance = first.provenance
    weights = provenance["family"].get("target", {"id": model, "revision": None})
    versions = provenance["versions"]
    return {
        "config": {"model": "vllm", "model_args": {"pretrained": weights["id"]}, "gen_kwargs": None},
        "git_hash": provenance["git"],
        "date": datetime.fromisoformat(date).timestamp(),
        "lm_eval_version": versions.get("lm_eval"),
        "transformers_version": versions.get("transformers"),
        "model_source": "vllm",
        "model_name": model,
        "model_name_sanitized": model,
        "total_evaluation_time_seconds": str(math.fsum(r.cost["seconds"] for r in records.values())),
        MARK: {
            "experiment": manifest.experiment,
            "inputs": {benchmark: dict(record.inputs) for benchmark, record in records.items()},
            "records": {benchmark: record.folder.name for benchmark, record in records.items()},
        },
    }


def _rows(sample: Sample, main: str) -> Iterator[Row]:
    """A sample as lm-eval logs it: one row for each filter that is scored."""
    by_filter: dict[str, Row] = {}
    for name, score in sample["scores"].items():
        metric, _, filtered = name.partition(",")
        by_filter.setdefault(filtered or main, {})[metric] = score
    doc = {"subtask": sample["subtask"], "source_doc": sample["source_doc"]}
    answers: Sequence[Answer] = sample.get("answers", [sample])
    options = sample.get("loglikelihoods")
    argument = sample["output"] if options is not None else {}
    for name, metrics in by_filter.items():
        if options is not None:
            taken: list[Any] = [[str(option), "None"] for option in options]
            resps: list[Any] = [[option] for option in taken]
        else:
            taken = [sample["extracted"].get(name, sample["output"])]
            resps = [[answer["output"] for answer in answers]]
        yield {
            "doc_id": sample["doc_id"],
            "doc": doc,
            "target": sample["target"],
            "arguments": {"gen_args_0": {"arg_0": sample["prompt"], "arg_1": argument}},
            "resps": resps,
            "filtered_resps": taken,
            "filter": name,
            "metrics": list(metrics),
            "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
            "prompt_hash": _hash(sample["prompt"]),
            "target_hash": _hash(sample["target"]),
            **metrics,
        }


def _hash(text: str) -> str:
    return sha256(text.encode())
