"""Extract and apply against mergekit and `cp`, on synthetic checkpoints with Qwen2.5-1.5B's exact shapes.

    python benchmarks/apply.py --dir /tmp/bench

needs 25 GB of disk under --dir, which are freed at the end, and 20 GB of memory for mergekit. Every side is a
process of its own, from its start to the synced result, with the inputs in the page cache as far as memory allows;
peak memory is what the kernel counted. What was written before is on the disk when a clock starts, a side that knows the
fingerprints is seen to make none, and each side has run once before it is timed. The sides alternate, and the ratios are
between medians. Without mergekit (`pip install mergekit`, or a folder given by --mergekit) its side is left out.
--layers makes the model smaller.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SHARE_CHANGED = 0.2
TOKENS = 151665
ALPHA = 0.7

EXTRACT = """
from pathlib import Path
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.vector import extract
extract(Checkpoint.open("grpo"), Checkpoint.open("sft"), Path("{out}"), compact={compact})
"""
APPLY = """
from pathlib import Path
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.steer import Term, apply
apply(Checkpoint.open("target"), [Term("{vector}", {alpha})], Path("{out}"))
"""
MERGEKIT_APPLY = """
merge_method: task_arithmetic
base_model: {folder}/target
dtype: bfloat16
parameters: {{normalize: false}}
models:
  - {{model: {folder}/grpo, parameters: {{weight: {alpha}}}}}
  - {{model: {folder}/sft, parameters: {{weight: -{alpha}}}}}
"""
MERGEKIT_EXTRACT = """
merge_method: linear
dtype: float32
parameters: {{normalize: false}}
models:
  - {{model: {folder}/grpo, parameters: {{weight: 1.0}}}}
  - {{model: {folder}/sft, parameters: {{weight: -1.0}}}}
"""


def settings(layers: int) -> dict[str, Any]:
    """Qwen2.5-1.5B's configuration, with that many layers."""
    from tests import tiny

    return tiny.config(
        rows=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_theta=1e6,
    )


def generate(folder: Path, config: dict[str, Any]) -> None:
    """Writes target, sft and grpo (bf16); grpo differs from sft by a few units in the last place in a share of entries."""
    import torch

    from pipeline.weights.safetensors import PIECE, encode_header, raw_bytes
    from pipeline.weights.tensors import to_bits
    from tests import tiny

    shapes = tiny.shapes(config)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    layout = {name: ("BF16", shape, 2 * torch.Size(shape).numel()) for name, shape in shapes.items()}
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def draw(numel: int) -> Iterator[tuple[torch.Tensor, ...]]:
        for first in range(0, numel, PIECE):
            count = min(PIECE, numel - first)
            sft = torch.empty(count).normal_(0, 0.02, generator=generator)
            target = (sft + torch.empty(count).normal_(0, 0.002, generator=generator)).bfloat16()
            noise = torch.empty(count).normal_(generator=generator)
            steps = (noise * 1.5).to(torch.int16) + noise.sign().to(torch.int16)
            steps *= torch.empty(count).uniform_(generator=generator) < SHARE_CHANGED
            sft = sft.bfloat16()
            steps *= (sft.view(torch.int16) & 0x7FFF) > 16  # below, the bits would wrap around zero
            yield target, sft, (sft.view(torch.int16) + steps).view(torch.bfloat16)

    roles = ("target", "sft", "grpo")
    for role in roles:
        (folder / role).mkdir(parents=True)
        (folder / role / "config.json").write_text(json.dumps(config))
        (folder / role / "generation_config.json").write_text("{}")
        tiny.write_tokenizer(folder / role, min(TOKENS, config["vocab_size"]))
    with ExitStack() as stack:
        streams = [stack.enter_context(open(folder / role / "model.safetensors", "wb")) for role in roles]
        for stream in streams:
            stream.write(encode_header({"format": "pt"}, layout))
        for shape in shapes.values():
            for parts in draw(torch.Size(shape).numel()):
                for stream, part in zip(streams, parts, strict=True):
                    stream.write(raw_bytes(to_bits(part)))


@dataclass
class Cost:
    """What one run of a command took: wall-clock and processor seconds, and peak resident gigabytes."""

    seconds: float
    processor: float
    memory: float


def run(command: list[str], folder: Path, path: list[str], cache: str) -> Cost:
    """Runs a command in `folder`; what it wrote is on disk when the clock stops."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *path]), "RV_CACHE": cache}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    os.sync()  # else the disk is still busy with what the last side left
    log = folder / "log.txt"
    start = time.perf_counter()
    with open(log, "wb") as output:
        process = os.posix_spawnp(
            "env",
            ["env", "-C", str(folder), *command],
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, output.fileno(), number) for number in (1, 2)],
        )
        _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True, help="a scratch folder that does not exist yet")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--mergekit", type=Path, default=None, help="a folder that holds mergekit and what it needs"
    )
    parser.add_argument("--only-generate", action="store_true", help="write the checkpoints and stop")
    arguments = parser.parse_args()
    folder: Path = arguments.dir.resolve()
    if arguments.only_generate:
        generate(folder, settings(arguments.layers))
        return
    if folder.exists():
        parser.error(f"--dir {folder} exists; remove it, or give another folder")
    folder.mkdir(parents=True)
    try:
        measure(folder, arguments.layers, arguments.repeats, arguments.mergekit)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, layers: int, repeats: int, mergekit: Path | None) -> None:
    # Apart from this process: what a child shares with its parent at the start counts as the child's memory.
    subprocess.run(
        [sys.executable, __file__, "--dir", str(folder), "--layers", str(layers), "--only-generate"],
        check=True,
    )
    size = (folder / "target" / "model.safetensors").stat().st_size
    path = [str(mergekit.resolve())] if mergekit else []
    (folder / "apply.yaml").write_text(MERGEKIT_APPLY.format(alpha=ALPHA, folder=folder))
    (folder / "extract.yaml").write_text(MERGEKIT_EXTRACT.format(folder=folder))

    def ours(code: str) -> list[str]:
        return [sys.executable, "-c", code]

    def theirs(recipe: str, out: str) -> list[str]:
        command = [
            sys.executable,
            "-m",
            "mergekit.scripts.run_yaml",
            recipe,
            out,
            "--quiet",
            "--no-copy-tokenizer",
        ]
        return [
            "sh",
            "-c",
            " ".join([*command, "--async-write", "--write-threads", "2"]) + f" && sync -f {out}",
        ]

    def copy(source: str) -> list[str]:
        return ["sh", "-c", f"cp {source} copied && sync -f copied"]

    # name → (command, what it writes, whether the fingerprints of its inputs are known beforehand)
    sides: dict[str, tuple[list[str], str, bool]] = {
        "extract, first time": (ours(EXTRACT.format(out="new", compact=False)), "new", False),
        "extract, fingerprints known": (ours(EXTRACT.format(out="new", compact=False)), "new", True),
        "extract, compact, fingerprints known": (ours(EXTRACT.format(out="new", compact=True)), "new", True),
        "cp of the vector": (copy("dense/vector.safetensors"), "copied", True),
        "apply, first time": (ours(APPLY.format(vector="dense", alpha=ALPHA, out="new")), "new", False),
        "apply, fingerprints known": (
            ours(APPLY.format(vector="dense", alpha=ALPHA, out="new")),
            "new",
            True,
        ),
        "apply from compact, fingerprints known": (
            ours(APPLY.format(vector="compact", alpha=ALPHA, out="new")),
            "new",
            True,
        ),
        "cp of the checkpoint": (copy("target/model.safetensors"), "copied", True),
    }
    if mergekit:
        sys.path += path
    if importlib.util.find_spec("mergekit"):
        sides["mergekit linear (extract)"] = (theirs("extract.yaml", "new"), "new", True)
        sides["mergekit task_arithmetic (apply)"] = (theirs("apply.yaml", "new"), "new", True)
    else:
        print("mergekit is not installed: its side is left out")

    known = folder / "cache"
    for compact, name in ((False, "dense"), (True, "compact")):
        run(ours(EXTRACT.format(out=name, compact=compact)), folder, path, str(known))
        run(ours(APPLY.format(vector=name, alpha=ALPHA, out="new")), folder, path, str(known))
        shutil.rmtree(folder / "new")
    form = {name: (folder / name / "vector.safetensors").stat().st_size for name in ("dense", "compact")}

    fingerprints = set(known.iterdir())
    found: dict[str, list[Cost]] = {name: [] for name in sides}
    for number in range(-1, repeats):  # the first is not counted: it brings everything into the page cache
        for name, (command, written, cached) in sides.items():
            cost = run(command, folder, path, str(known if cached else folder / f"cache {number} {name}"))
            if set(known.iterdir()) != fingerprints:
                raise SystemExit(f"{name}: fingerprints that were known have been made again")
            if number >= 0:
                found[name].append(cost)
            print(
                f"{name}{' (not counted)' if number < 0 else ''}: {cost.seconds:.1f} s, {cost.processor:.1f} s"
                f" processor, {cost.memory:.2f} GB; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
            remove(folder / written)

    def median(name: str, what: str) -> float:
        return statistics.median(getattr(cost, what) for cost in found[name])

    print(
        f"\n{layers} layers, {size / 1e9:.2f} GB a checkpoint; {os.cpu_count()} cores of {platform.machine()}, ",
        end="",
    )
    print(
        ", ".join(
            f"{name} {version(name)}" for name in ("torch", "mergekit") if importlib.util.find_spec(name)
        )
    )
    share = form["compact"] / form["dense"]
    print(
        f"vector: dense {form['dense'] / 1e9:.2f} GB, compact {form['compact'] / 1e9:.2f} GB ({share:.1%} of it)\n"
    )
    print("| side | seconds (median) | spread | every run | processor seconds | peak GB |")
    print("|---|---|---|---|---|---|")
    for name, costs in found.items():
        seconds = [cost.seconds for cost in costs]
        row = [
            name,
            f"{median(name, 'seconds'):.1f}",
            f"{min(seconds):.1f} to {max(seconds):.1f}",
            " ".join(f"{second:.1f}" for second in seconds),
            f"{median(name, 'processor'):.1f}",
            f"{max(cost.memory for cost in costs):.2f}",
        ]
        print(f"| {' | '.join(row)} |")
    print("\n| ratio | seconds | spread | processor seconds |\n|---|---|---|---|")
    for what, copied, merged in (
        ("extract", "cp of the vector", "mergekit linear (extract)"),
        ("apply", "cp of the checkpoint", "mergekit task_arithmetic (apply)"),
    ):
        for name in (name for name in sides if name.startswith(what)):
            print(f"| {name} / cp | {median(name, 'seconds') / median(copied, 'seconds'):.2f} | | |")
            if merged in found:
                ratios = [median(merged, kind) / median(name, kind) for kind in ("seconds", "processor")]
                each = [a.seconds / b.seconds for a, b in zip(found[merged], found[name], strict=True)]
                spread = f"{min(each):.1f} to {max(each):.1f}"
                print(f"| mergekit / {name} | {ratios[0]:.1f} | {spread} | {ratios[1]:.1f} |")


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


if __name__ == "__main__":
    main()
