"""What a swap costs beside an engine start, and generation through our path beside a bare `LLM.generate`.

    python -m benchmarks.throughput [overrides of experiment=micro …]

Both sides in one process, on one engine, on the same prompts with the same stop strings and token limits. Our side is
the whole of a cell: prompts, requests, generation, filters, metrics, samples and the record on disk. Each side runs
twice in turn; the better time counts.
"""

import json
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.config.compose import compose
from pipeline.evaluate.runner import Runner
from pipeline.plan.keys import versions
from pipeline.plan.plan import Cell
from pipeline.records import read_record
from pipeline.stages import extract, prepare
from pipeline.weights.steer import Term

TASKS = "tasks=[gsm8k,bbh]"
SWAPS = 10


def main(overrides: list[str]) -> None:
    print(json.dumps(measure(overrides), indent=1))


def measure(overrides: list[str]) -> dict[str, Any]:
    """Seconds of each stage and of a swap, tokens per second of both sides, and memory; overrides of experiment=micro."""
    with tempfile.TemporaryDirectory() as work:
        fixed = ["experiment=micro", TASKS, f"results={work}/results", "alpha=[]", *overrides]
        started = time.perf_counter()
        plan = prepare(compose(fixed))
        planned = time.perf_counter() - started
        started = time.perf_counter()
        extract(plan, lambda line: None)
        extracted = time.perf_counter() - started
        cells = [c for c in plan.cells if c.condition.name == "baseline" and c.benchmark.perturbation is None]
        started = time.perf_counter()
        runner = Runner(plan)
        engine = runner._engine(cells[0].family)
        start = time.perf_counter() - started
        family = cells[0].family
        vector = str(plan.vector_folder(family) / "vector.safetensors")
        started = time.perf_counter()
        for i in range(SWAPS):
            engine.steer(family.target.path, [Term(vector, i / SWAPS)])
        swap = (time.perf_counter() - started) / SWAPS
        ours, bare, tokens = [], [], 0
        for _ in range(2):
            seconds, records = timed_cells(runner, cells)
            ours.append(seconds)
            tokens = sum(r["cost"]["generated_tokens"] for r in records)
            bare.append(timed_bare(engine.lm, plan.results, cells))
        found: dict[str, Any] = {
            "plan_s": round(planned, 2),  # fingerprints of every checkpoint, read for the first time
            "extract_s": round(extracted, 2),  # with the geometry
            "engine_start_s": round(start, 2),
            "swap_s": round(swap, 4),
            "swap_share_of_start": round(swap / start, 5),
            "generated_tokens": tokens,
            "ours_tokens_per_s": round(tokens / min(ours)),
            "bare_tokens_per_s": round(tokens / min(bare)),
            "ratio": round(min(bare) / min(ours), 3),
            "versions": versions(),
            "machine": f"{platform.machine()}, {platform.system()}",
            "memory_gb": memory(),
        }
        runner.close()
        return found


def memory() -> dict[str, float]:
    """Peak of the host's memory in this process and the largest of its children; what is taken of each GPU now (10⁹ bytes)."""
    import torch

    kinds = {"host": resource.RUSAGE_SELF, "host_child": resource.RUSAGE_CHILDREN}
    taken = {name: resource.getrusage(kind).ru_maxrss * 1024 / 1e9 for name, kind in kinds.items()}
    for gpu in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(gpu)
        taken[f"gpu{gpu}"] = (total - free) / 1e9
    return {name: round(size, 2) for name, size in taken.items()}


def timed_cells(runner: Runner, cells: list[Cell]) -> tuple[float, list[Any]]:
    """Seconds for the cells on our path, engine and weights being ready; their records."""
    records = []
    engine = runner._engine(cells[0].family)
    runner._steer(engine, cells[0].family, cells[0].condition)
    engine.lm.model.reset_prefix_cache()
    started = time.perf_counter()
    for cell in cells:
        runner.run(cell)
        folder = runner.plan.results / "cells" / cell.key
        records.append(json.loads((folder / "record.json").read_text()))
    seconds = time.perf_counter() - started
    return seconds, records


def timed_bare(lm: Any, results: Path, cells: list[Cell]) -> float:
    """Seconds of `LLM.generate` on the prompts of the cells' samples."""
    from vllm import SamplingParams, TokensPrompt

    batches = []
    for cell in cells:
        record = read_record(results, cell.key)
        assert record is not None
        prompts = [TokensPrompt(prompt_token_ids=lm.tok_encode(s["prompt"])) for s in record.samples()]
        stops = ["Question:", "</s>", "<|im_end|>", "Q:"]
        limit = cell.benchmark.config.max_gen_toks
        batches.append((prompts, SamplingParams(temperature=0, max_tokens=limit, stop=stops)))
    lm.model.reset_prefix_cache()
    started = time.perf_counter()
    for prompts, sampling in batches:
        lm.model.generate(prompts, sampling, use_tqdm=False)
    return time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1:])
