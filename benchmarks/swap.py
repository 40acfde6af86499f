"""What a certified swap costs beside a plain read of the same bytes, at Qwen2.5-7B's shapes with two layers.

    python -m benchmarks.swap [--dir .bench/swap] [--layers 2] [--cores 1 2] [--repeats 3]

One side is `Engine.steer` on a live vLLM engine: target, target + α·v, and a random control, each of them read, summed,
loaded by vLLM and certified; both its seconds and the processor seconds of all its threads are counted. The other
reads the files of target and vector into one buffer. Each side is a process of its own, bound to that many cores, with
the files in the page cache. On a CPU vLLM packs matrices for its kernels, which a GPU does not do: that is switched off
here, so that what is measured is the host's part of a swap on a GPU. Weights are made up; disk: 6.5 GB for two layers.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.engine.worker import SteeringExtension
from pipeline.plan.keys import versions

ALPHA = 0.7
PLAIN = "PLAIN_WEIGHTS"  # the variable that switches the packing of matrices off in vLLM's processes
BUFFER = 1 << 23  # bytes


class PlainExtension(SteeringExtension):
    """Steers a model whose weights stay as they are loaded, as they do on a GPU."""


def keep_weights_plain() -> None:
    """Leave out vLLM's packing of matrices for CPU kernels; before a model is loaded."""
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils

    _custom_ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda *_: False


if os.environ.get(PLAIN):
    keep_weights_plain()


def make_models(folder: Path, layers: int) -> None:
    """Target, donors and the compact vector of the donors."""
    from benchmarks import apply, gpu
    from pipeline.weights.checkpoint import Checkpoint
    from pipeline.weights.vector import extract

    apply.generate(folder, gpu.SHAPES["7b"] | {"num_hidden_layers": layers, "tie_word_embeddings": True})
    grpo, sft = (Checkpoint.open(str(folder / part)) for part in ("grpo", "sft"))
    extract(grpo, sft, folder / "vector", compact=True)
    for part in ("grpo", "sft"):
        shutil.rmtree(folder / part)


def read(folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds to read target and vector into one buffer."""
    buffer = memoryview(bytearray(BUFFER))
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        for file in (folder / "target" / "model.safetensors", folder / "vector" / "vector.safetensors"):
            with open(file, "rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass
        found.append(time.perf_counter() - started)
    return {"plain read": found}


def swap(folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of swaps on one engine, and the processor seconds of each."""
    from pipeline.config.schema import EngineConfig
    from pipeline.engine.engine import Engine
    from pipeline.weights.steer import Term

    os.environ[PLAIN] = "1"
    Engine.extension = "benchmarks.swap.PlainExtension"
    config = EngineConfig(
        dtype="bfloat16",
        max_model_len=256,
        max_num_seqs=4,
        kv_cache_gb=1,
        enforce_eager=True,
        in_process=True,
        threads=len(os.sched_getaffinity(0)),
    )
    engine = Engine(config, folder / "target")
    vector = str(folder / "vector" / "vector.safetensors")
    sides: dict[str, Callable[[int], list[Term]]] = {
        "target": lambda number: [],
        "target + α·v": lambda number: [Term(vector, ALPHA + number)],
        "random control": lambda number: [Term(vector, ALPHA, number)],
    }
    found: dict[str, list[float]] = {}
    for number in range(repeats):
        for name, terms in sides.items():
            started, processor = time.perf_counter(), time.process_time()
            engine.steer(folder / "target", terms(number))
            found.setdefault(name, []).append(time.perf_counter() - started)
            found.setdefault(f"{name}, processor", []).append(time.process_time() - processor)
    engine.close()
    return found


def run_side(side: str, folder: Path, repeats: int, cores: int) -> dict[str, list[float]]:
    """A side in a process of its own, bound to that many cores."""
    command = [sys.executable, "-m", "benchmarks.swap", "--dir", str(folder), "--side", side]
    available = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(available)[-cores:])  # a child takes it over
    try:
        ran = subprocess.run(
            [*command, "--repeats", str(repeats)], stdout=subprocess.PIPE, text=True, check=True
        )
    finally:
        os.sched_setaffinity(0, available)
    found: dict[str, list[float]] = json.loads(ran.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=Path(".bench/swap"))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--side", choices=["read", "swap"], help="measure one side in this process, print JSON"
    )
    arguments = parser.parse_args()
    folder: Path = arguments.dir.resolve()
    if arguments.side:
        measure: Callable[[Path, int], Any] = read if arguments.side == "read" else swap
        print(json.dumps(measure(folder, arguments.repeats)))
        return
    if not (folder / "vector").exists():
        make_models(folder, arguments.layers)
    report(folder, arguments.cores, arguments.repeats)


def report(folder: Path, cores: list[int], repeats: int) -> None:
    """Print the medians and the spread of all sides as a table."""
    target = (folder / "target" / "model.safetensors").stat().st_size
    vector = (folder / "vector" / "vector.safetensors").stat().st_size
    parameters = target / 2
    print(
        f"{parameters / 1e9:.2f}·10⁹ parameters; target {target / 1e9:.2f} GB, vector {vector / 1e9:.2f} GB;"
        f" {platform.machine()}, {len(os.sched_getaffinity(0))} cores; "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
    )
    print(
        "\n| cores | side | seconds per 10⁹ parameters (median) | every run | load |\n|---|---|---|---|---|"
    )
    for number in cores:
        for side in ("read", "swap"):
            for name, seconds in run_side(side, folder, repeats, number).items():
                each = [s / parameters * 1e9 for s in seconds]
                every = " ".join(f"{s:.2f}" for s in each)
                load = f"{os.getloadavg()[0]:.1f}"
                print(f"| {number} | {name} | {statistics.median(each):.2f} | {every} | {load} |", flush=True)


if __name__ == "__main__":
    main()
