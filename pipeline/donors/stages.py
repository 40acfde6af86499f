"""One stage of training: run from its last checkpoint, recorded, or copied from another family."""

import gc
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import micro
from pipeline.donors.recipe import Recipe
from pipeline.donors.trainers import has_bf16
from pipeline.errors import UserError
from pipeline.files import digest, new_folder, write_json

if TYPE_CHECKING:  # it imports torch
    from pipeline.weights.checkpoint import Checkpoint

STAGES = ("base", "target", "sft", "grpo")  # the first two only where a recipe gives no initialisation
_APART = {  # the settings that change nothing in a stage's weights
    "base": "name$|save_steps|wandb|sft_max_tokens|data|train_documents|(target|sft|grpo)_",
    "target": "name$|save_steps|wandb|sft_max_tokens|data|train_documents|(sft|grpo)_",
    "sft": "name$|save_steps|wandb|sft_max_tokens|(target|grpo)_",
    "grpo": "name$|save_steps|wandb|sft_max_tokens|target_",
}
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers")


def is_done(folder: Path) -> bool:
    """Whether a stage is finished; a kill after that may have left checkpoints, which are removed."""
    done = (folder / "training.json").is_file()
    if done:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return done


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint's state, the file written last, is there and whole."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, ValueError):
        return False
    return True


def reuse_stage(
    recipe: Recipe,
    source: Path,
    folder: Path,
    start: "Checkpoint | None",
    examples: list[micro.Example],
    report: Callable[[str], None],
) -> None:
    """Copy a finished stage of another family if this recipe would train it alike; say so, or why not."""
    from pipeline.weights.checkpoint import Checkpoint

    where = f"{folder.name}: {source}"
    try:
        record = json.loads((source / "training.json").read_bytes())
        theirs, inputs = dict(record["recipe"]), dict(record["inputs"])
        Checkpoint.open(str(source))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError):
        return report(
            f"{where} is no finished stage with its weights and inputs (early versions recorded none); trained here"
        )
    settings = {key: value for key, value in asdict(recipe).items() if not re.match(_APART[folder.name], key)}
    changed = [key for key, value in settings.items() if theirs.get(key) != value]
    changed += [key for key, value in inputs_of(start, examples).items() if inputs.get(key) != value]
    if changed:
        return report(f"{where} has another {', '.join(changed)}; trained here")
    shutil.rmtree(folder, ignore_errors=True)  # begun, and not finished
    with new_folder(folder) as copy:
        write_json(copy / "training.json", record | {"copied_from": str(source)})
        shutil.copytree(
            source, copy, ignore=shutil.ignore_patterns("checkpoints", "training.json"), dirs_exist_ok=True
        )
    report(f"{where} is the same; copied")


def inputs_of(start: "Checkpoint | None", examples: list[micro.Example]) -> dict[str, Any]:
    """What beside the settings makes a stage's weights: texts, start, arithmetic and packages."""
    import torch

    return {
        "texts": digest([asdict(example) for example in examples]),
        "start": start and [start.fingerprint, start.tokenizer_fingerprint],
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "bf16": has_bf16(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def run_stage(
    folder: Path, recipe: Recipe, build: Any, start: "Checkpoint | None", examples: list[micro.Example]
) -> "Checkpoint":
    """Run one stage unless it is done: build its trainer, train (from the last checkpoint), save, record."""
    from pipeline.weights.checkpoint import Checkpoint

    if is_done(folder):
        return Checkpoint.open(str(folder))
    started = time.time()
    trainer = build(recipe, folder, start, examples)
    saved = sorted(
        (folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    whole = [str(path) for path in saved if is_whole(path)]
    trainer.train(resume_from_checkpoint=whole[-1] if whole else None)
    if trainer.state.global_step == 0:
        raise UserError(f"{folder}: training took no step; give more documents or smaller batches")
    trainer.save_model(str(folder))
    trainer.processing_class.save_pretrained(str(folder))
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle with this machine's paths
    record = {
        "stage": folder.name,
        "recipe": asdict(recipe),
        "start": start and {"revision": start.revision, "fingerprint": start.fingerprint},
        "inputs": inputs_of(start, examples),
        "resumed_from_step": int(whole[-1].rsplit("-", 1)[1]) if whole else 0,
        "seconds": round(time.time() - started, 1),  # of the run that finished the stage
        "curve": trainer.state.log_history,
    }
    temporary = folder / "training.json.part"
    temporary.write_text(json.dumps(record, indent=1))
    temporary.rename(folder / "training.json")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if recipe.wandb:
        import wandb

        wandb.finish()  # else the next stage would log into this one's run
    del trainer
    gc.collect()  # a trainer holds itself in a cycle, and with it the model and its optimiser
    return Checkpoint.open(str(folder))
