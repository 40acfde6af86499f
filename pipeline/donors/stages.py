"""One stage of training: run from its last checkpoint and recorded, or copied from another family."""

import gc
import json
import math
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, TypeVar

from evals import micro
from pipeline.donors.batches import is_crowded
from pipeline.donors.processes import Job, train_together
from pipeline.donors.recipe import Recipe, compared, flat
from pipeline.donors.sharding import save_gathered
from pipeline.donors.trainers import has_bf16
from pipeline.errors import UserError
from pipeline.files import digest, new_folder, write_json

if TYPE_CHECKING:  # torch and transformers take seconds to import: only training pays
    from transformers import Trainer

    from pipeline.weights.checkpoint import Checkpoint

Start = TypeVar("Start", bound="Checkpoint | None")
Builder = Callable[[Recipe, Path, Start, list[micro.Example], int], "Trainer"]
"""Makes the trainer of a stage from the checkpoint that it starts from, which the base has not, for so many processes."""

STAGES = ("base", "target", "sft", "grpo")  # the first two only where a recipe gives no initialisation
READS = {"base": ("base",), "target": ("target",), "sft": ("data", "sft"), "grpo": ("data", "grpo")}
"""The sections of a recipe that each stage reads, beside the settings that all share."""
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers")
RECORD = "training.json"  # written last: a stage that has it is finished


class Inputs(TypedDict):
    """What makes a stage's weights, beside the settings."""

    texts: str  # digest of the training examples
    start: list[str] | None  # fingerprints of the checkpoint that it starts from, and of its tokeniser
    device: str
    bf16: bool
    processes: int  # that shared every batch: they add up in another order, and GRPO samples in each
    versions: dict[str, str]


class StageRecord(TypedDict):
    """The content of training.json."""

    stage: str
    recipe: dict[str, Any]
    start: dict[str, str | None] | None  # the start's revision and fingerprint
    inputs: Inputs
    resumed_from_step: int
    seconds: float  # of the run that finished the stage
    curve: list[dict[str, float | None]]
    copied_from: NotRequired[str]


def is_done(folder: Path) -> bool:
    """Whether a stage is finished; a kill after that may have left checkpoints, which are removed."""
    done = (folder / RECORD).is_file()
    if done:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return done


def has_begun(folder: Path) -> bool:
    """Whether a stage has left anything worth keeping."""
    return (folder / RECORD).is_file() or any(folder.glob("checkpoints/checkpoint-*"))


def is_whole(checkpoint: Path, processes: int = 1) -> bool:
    """Whether a checkpoint's state, the file that the first process writes last, is there and whole, and so are the others'."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, ValueError):
        return False
    own = [checkpoint / f"rng_state_{rank}.pth" for rank in range(processes)] if processes > 1 else []
    return all(zipfile.is_zipfile(path) for path in own)


def run_stage(
    folder: Path,
    recipe: Recipe,
    build: "Builder[Start]",
    start: Start,
    examples: list[micro.Example],
    processes: int = 1,
) -> "Checkpoint":
    """Run one stage unless it is done, in this process or in several.

    Raises:
        UserError: if training took no step, or was begun by another number of processes.
        StageFailedError: if one of several processes failed.
    """
    from pipeline.weights.checkpoint import Checkpoint

    if not is_done(folder):
        _claim_checkpoints(folder, processes)
        if processes == 1 and not is_crowded():
            train_stage(folder, recipe, build, start, examples)
        else:
            given = None if start is None else (start.path, start.source, start.revision)
            train_together(Job(recipe, folder, given, examples, processes))
    return Checkpoint.open(str(folder))


def train_stage(
    folder: Path,
    recipe: Recipe,
    build: "Builder[Start]",
    start: Start,
    examples: list[micro.Example],
    processes: int = 1,
) -> None:
    """Build the trainer of a stage, train (from the last checkpoint), save and record; the first process writes.

    Raises:
        UserError: if training took no step.
    """
    started = time.time()
    trainer = build(recipe, folder, start, examples, processes)
    checkpoint = _last_checkpoint(folder, processes)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.state.global_step == 0:
        raise UserError(f"{folder}: training took no step; give more documents or smaller batches")
    if processes == 1:
        trainer.save_model(str(folder))
    else:
        save_gathered(trainer, folder)
    if processes == 1 or trainer.is_world_process_zero():
        _record(trainer, folder, recipe, start, examples, processes, checkpoint, started)
    if recipe.wandb:
        import wandb

        wandb.finish()  # else the next stage would log into this one's run
    del trainer
    gc.collect()  # a trainer holds itself in a cycle, and with it the model and its optimiser


def _record(
    trainer: "Trainer",
    folder: Path,
    recipe: Recipe,
    start: "Checkpoint | None",
    examples: list[micro.Example],
    processes: int,
    checkpoint: Path | None,
    started: float,
) -> None:
    """Finish a stage whose weights are saved: its tokeniser, and last of all its record."""
    trainer.processing_class.save_pretrained(str(folder))  # type: ignore[union-attr]
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle with this machine's paths
    record: StageRecord = {
        "stage": folder.name,
        "recipe": asdict(recipe),
        "start": None if start is None else {"revision": start.revision, "fingerprint": start.fingerprint},
        "inputs": inputs_of(start, examples, processes),
        "resumed_from_step": 0 if checkpoint is None else _step(checkpoint),
        "seconds": round(time.time() - started, 1),
        "curve": [_finite(entry) for entry in trainer.state.log_history],
    }
    write_json(folder / RECORD, record)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def reuse_stage(
    recipe: Recipe,
    source: Path,
    folder: Path,
    start: "Checkpoint | None",
    examples: list[micro.Example],
    report: Callable[[str], None],
    processes: int = 1,
) -> None:
    """Copy a finished stage of another family if this recipe would train the same one; say so, or why not."""
    from pipeline.weights.checkpoint import Checkpoint

    where = f"{folder.name}: {source}"
    try:
        record = json.loads((source / RECORD).read_bytes(), parse_constant=lambda _: None)  # NaN in a curve
        theirs, inputs = flat(record["recipe"]), {"processes": 1} | record["inputs"]
        Checkpoint.open(str(source))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError):
        return report(
            f"{where} is no finished stage with its weights and inputs (early versions recorded none); trained here"
        )
    ours = compared(recipe, *READS[folder.name])
    changed = [key for key, value in ours.items() if key not in theirs or theirs[key] != value]
    changed += [
        key for key, value in inputs_of(start, examples, processes).items() if inputs.get(key) != value
    ]
    if changed:
        return report(f"{where} has another {', '.join(changed)}; trained here")
    shutil.rmtree(folder, ignore_errors=True)  # begun, and not finished
    with new_folder(folder) as copy:
        write_json(copy / RECORD, record | {"copied_from": str(source)})
        shutil.copytree(
            source, copy, ignore=shutil.ignore_patterns("checkpoints", RECORD), dirs_exist_ok=True
        )
    report(f"{where} is the same; copied")


def inputs_of(start: "Checkpoint | None", examples: list[micro.Example], processes: int = 1) -> Inputs:
    """What makes a stage's weights on this machine, beside the settings."""
    import torch

    return {
        "texts": digest([asdict(example) for example in examples]),
        "start": None if start is None else [start.fingerprint, start.tokenizer_fingerprint],
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "bf16": has_bf16(),
        "processes": processes,
        "versions": {name: version(name) for name in PACKAGES},
    }


def _claim_checkpoints(folder: Path, processes: int) -> None:
    """Note how many processes write the checkpoints of a stage: another number cannot read them all.

    Raises:
        UserError: if they are those of another number.
    """
    note = folder / "checkpoints" / "processes.json"
    if has_begun(folder):
        theirs = json.loads(note.read_bytes()) if note.is_file() else 1
        if theirs != processes:
            raise UserError(
                f"{folder}: its checkpoints are those of processes={theirs}, found processes={processes}; go on with"
                f" processes={theirs}, or remove the folder"
            )
    if processes == 1:
        note.unlink(missing_ok=True)
        return
    note.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, processes)


def _last_checkpoint(folder: Path, processes: int) -> Path | None:
    """The checkpoint that training goes on from: a kill may have cut the last one short."""
    saved = sorted((folder / "checkpoints").glob("checkpoint-*"), key=_step)
    return next((path for path in reversed(saved) if is_whole(path, processes)), None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _finite(entry: dict[str, float]) -> dict[str, float | None]:
    """A line of the curve for JSON, which has no NaN and no infinity."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in entry.items()
    }
