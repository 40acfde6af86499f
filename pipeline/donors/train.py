"""Train donors: from one initialisation, SFT and then GRPO on the same training problems, with TRL.

    python -m pipeline donors recipe=micro seed=1 out=/tmp/micro

`make_donors` writes one Hugging Face checkpoint for each stage under `out`: `sft` and `grpo`, and before them, where the
recipe gives no `init`, `base` and `target` (the micro family, trained from nothing on text that `evals.micro` generates).
Each stage's folder holds a `training.json` with its settings, start, versions, curve and time, and a finished stage is
never repeated. A killed stage goes on from its last checkpoint: on the CPU to the same weights, on the same machine and
thread count; not where vLLM makes the rollouts, whose state is in no checkpoint. One run at a time holds `out`.

`reuse=FOLDER` copies the stages of another family that this recipe would train the same, so that another target costs its
own training alone. Compared are the settings that the stage reads, its training texts and start, the kind of device and
the versions of packages; not the constants in this folder, and not vLLM's version.

What is optimised: SFT, cross-entropy on the completion alone; GRPO (arXiv 2402.03300) with DAPO's mean over the tokens of
all answers (arXiv 2503.14476; TRL's default), reward 1.0 for the exact answer plus 0.1 for the form `#### n`. GRPO starts
from the SFT donor or from the initialisation (`grpo.start`): the paper can be read both ways. Several GPUs of a machine
share the model and every batch (pipeline/donors/sharding.py); it does not cover several machines.

The micro base has read all the donors' problems with their answers: its text draws word problems from the same random
stream (`gsm8k/train/{seed}`), and more of them. SFT and GRPO then train on what the base has seen, not on new problems;
the test documents are apart from all three.

Training never meets evaluation documents that are there to compare with: those of all four generated benchmarks, those of
GSM8K, SciQ, HumanEval and BBH in the folder `data.id`, or the test split of a hub id and the four as the paper's
experiment takes them from the hub; code is compared by what is asked and by its solution. `overlap.json` says what they
share. It does not cover problems in other words.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from evals import micro
from pipeline import hub
from pipeline.donors.batches import card, check_batches, check_processes
from pipeline.donors.compose import check
from pipeline.donors.data import generated_text, training_problems
from pipeline.donors.memory import described
from pipeline.donors.overlap import record_overlap
from pipeline.donors.recipe import Recipe, flat, settings
from pipeline.donors.stages import RECORD, STAGES, Builder, Start, has_begun, is_done, reuse_stage, run_stage
from pipeline.donors.trainers import grpo_trainer, instruct_trainer, pretraining_trainer, sft_trainer
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.lock import held

if TYPE_CHECKING:  # it imports torch
    from pipeline.weights.checkpoint import Checkpoint


def make_donors(
    recipe: Recipe,
    out: Path,
    report: Callable[[str], None] = print,
    reuse: Path | None = None,
    processes: int | None = None,
) -> dict[str, Path]:
    """Train what `out` does not hold yet. Until all is known to be in order but the overlap, nothing is written.

    Args:
        reuse: another family's folder, whose finished stages are copied where this recipe would train the same.
        processes: that share every batch; None is one for each visible GPU.

    Returns:
        The checkpoint folder of each stage.

    Raises:
        UserError: if `out` belongs to another recipe or to something else, `reuse` holds no family, the initialisation or
            the data cannot be read, training and evaluation data share a problem, or the machine lacks what the recipe
            asks for.
    """
    check(recipe)
    _check_out(recipe, out)
    if reuse is not None and not any((reuse / stage / RECORD).is_file() for stage in STAGES):
        raise UserError(f"reuse={reuse}: expected a folder with finished stages of donors, found none")
    folders = {name: out / name for name in (STAGES if recipe.init.id is None else STAGES[2:])}
    if all(is_done(folder) for folder in folders.values()):
        return folders
    _check_machine(recipe)
    processes = check_processes(recipe, processes, list(folders))
    if recipe.init.id is not None and (processes > 1 or card() is not None):
        for line in estimate(recipe, processes):
            report(line)
    init = None if recipe.init.id is None else _open_init(recipe.init.id, recipe.init.revision)
    problems, held_out = training_problems(recipe)
    texts = {"donors": problems}
    if init is None:
        base = generated_text(recipe.base, recipe.seed, recipe.think)
        target = generated_text(recipe.target, recipe.seed + 1_000_000, recipe.think)
        texts = {"base": base, "target": target} | texts
    with held(out, f"donors {recipe.name}", report):
        claim(recipe, out)
        record_overlap(texts, held_out, out)

        def stage(
            name: str, build: Builder[Start], start: Start, examples: list[micro.Example]
        ) -> "Checkpoint":
            if reuse is not None and not is_done(out / name):
                reuse_stage(recipe, reuse / name, out / name, start, examples, report, processes)
            return run_stage(out / name, recipe, build, start, examples, processes)

        if init is None:
            init = stage("base", pretraining_trainer, None, texts["base"])
            stage("target", instruct_trainer, init, texts["target"])
        sft = stage("sft", sft_trainer, init, problems)
        stage("grpo", grpo_trainer, sft if recipe.grpo.start == "sft" else init, problems)
    return folders


def estimate(recipe: Recipe, processes: int | None) -> list[str]:
    """What the recipe takes of each card, a line for each stage, and whether it fits.

    Raises:
        UserError: if its batches cannot be shared by so many processes, or the model's config.json cannot be read.
    """
    from pipeline.weights.architecture import read_config
    from pipeline.weights.checkpoint import Folder

    if recipe.init.id is None:
        raise UserError("memory is estimated of a recipe with init.id; the micro family takes no card")
    smallest = card()
    # what cannot be on this machine can be asked about all the same
    count = processes or check_processes(recipe, None, ["sft", "grpo"])
    check_batches(recipe, count, ["sft", "grpo"])
    if Path(recipe.init.id).is_dir():
        folder = Folder.find(recipe.init.id, recipe.init.revision).path
    else:
        folder = hub.fetch(recipe.init.id, recipe.init.revision, patterns=["config.json"])
    try:
        return described(recipe, read_config(folder / "config.json"), count, smallest)
    except (KeyError, TypeError, ValueError):
        return [f"memory of {recipe.init.id}: its config.json has other names for its sizes; not estimated"]


def _check_out(recipe: Recipe, out: Path) -> None:
    """Raise UserError unless `out` is new, empty, this recipe's, or another's that has begun no stage."""
    path = out / "recipe.json"
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(file.name[0] != "." for file in out.iterdir())):
            raise UserError(f"out={out} holds something else than donors; give another out folder")
        return
    try:
        theirs = flat(json.loads(path.read_bytes()))
    except (ValueError, AttributeError, RecursionError):
        raise UserError(f"{path}: expected a recipe's settings as JSON; give another out folder") from None
    changed = [key for key, value in settings(recipe).items() if key not in theirs or theirs[key] != value]
    if changed and any(has_begun(out / stage) for stage in STAGES):
        done = any(out.glob(f"*/{RECORD}"))
        remedy = (
            f"give another out folder and reuse={out}" if done else "give another out folder, or remove it"
        )
        raise UserError(f"{out} was begun with other settings ({', '.join(changed)}): {remedy}")


def claim(recipe: Recipe, out: Path) -> None:
    """Write recipe.json; the folder is held, and may have become another run's while this one waited for it.

    Raises:
        UserError: if it has.
    """
    _check_out(recipe, out)
    write_json(out / "recipe.json", asdict(recipe))


def _check_machine(recipe: Recipe) -> None:
    """Raise UserError when a package or the GPU that training needs is not there."""
    for package in ("trl", "accelerate", "datasets"):
        if find_spec(package) is None:
            raise UserError(f"training needs {package}, which is not installed; install the extra 'train'")
    if recipe.grpo.vllm:
        import torch

        if not torch.cuda.is_available():
            raise UserError("grpo.vllm=true needs a GPU, found none; set grpo.vllm=false")
        if find_spec("vllm") is None:
            raise UserError("grpo.vllm=true needs vllm, which is not installed; install the extra 'gpu'")


def _open_init(source: str, revision: str | None) -> "Checkpoint":
    """The checkpoint that training starts from.

    Raises:
        UserError: if it is no causal language model, or has no chat template.
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from pipeline.weights.checkpoint import Checkpoint

    found = Checkpoint.open(source, revision)
    try:
        config = AutoConfig.from_pretrained(found.path, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(found.path, trust_remote_code=False)
    except Exception as error:  # transformers has no one type for what it cannot read
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"init.id={source}: its configuration or tokenizer cannot be read ({reason}); give another"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"init.id={source}: expected a causal language model, found {config.model_type!r}")
    if not tokenizer.chat_template:
        raise UserError(
            f"init.id={source}: its tokenizer has no chat template; add one, or give another model"
        )
    return found
