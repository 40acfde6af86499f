"""Train donors: `python -m pipeline donors recipe=NAME [out=FOLDER] [reuse=FOLDER] [processes=N] [dry_run=true] [key=value …]`.

    python -m pipeline donors recipe=micro seed=1 out=results/donors/micro-1

`out` is results/donors/NAME where it is not given; `reuse` is another family's folder, whose finished stages are copied
where this recipe would train the same; `processes` says how many GPUs share the work, all visible ones by default. With
`dry_run=true` nothing is trained: it prints what each card would hold. All else are settings of the recipe
(pipeline/donors/recipe.py). A recipe of your own: FOLDER/recipe/mine.yaml, then recipe=mine 'hydra.searchpath=[FOLDER]'.
"""

import re
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from pipeline.config.explain import CONF
from pipeline.donors.compose import compose_recipe
from pipeline.donors.processes import StageFailedError
from pipeline.donors.train import estimate, make_donors
from pipeline.errors import UserError

OPTIONS = ("out", "reuse", "processes", "dry_run")
FOLDER = Path("results/donors")  # where conf/family/ looks for the donors of a recipe


def run(arguments: list[str], report: Callable[[str], None]) -> None:
    """Train the donors that the arguments ask for.

    Raises:
        UserError: for a mistake in the arguments, in what they name, or a machine that is too small.
        OSError: if the disk refuses.
    """
    options = {key: value for key, _, value in (a.partition("=") for a in arguments if _is_option(a))}
    for key, value in options.items():
        if not value.strip():
            what = {"processes": "number", "dry_run": "true"}.get(key, "folder")
            raise UserError(f"{key}=: expected a {what}, found none; give one, or leave {key} out")
    recipe = compose_recipe([a for a in arguments if not _is_option(a)])
    processes = _processes(options.get("processes"))
    if _is_true("dry_run", options.get("dry_run", "false")):
        for told in estimate(recipe, processes):
            report(told)
        return
    out = Path(options["out"]) if "out" in options else FOLDER / recipe.name
    reuse = Path(options["reuse"]) if "reuse" in options else None
    try:
        made = make_donors(recipe, out, report, reuse, processes)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        reason = _explained(error) or (str(error) if isinstance(error, StageFailedError) else None)
        if reason is None:
            raise
        raise UserError(reason) from error
    report(f"donors of {recipe.name} are in {out}: {', '.join(made)}")
    report(_next_step(recipe.name, out))


def _is_true(key: str, given: str) -> bool:
    if given not in ("true", "false"):
        raise UserError(f"{key}={given}: expected true or false")
    return given == "true"


def _processes(given: str | None) -> int | None:
    if given is None:
        return None
    if not given.isdecimal() or not 0 < int(given) <= 1024:
        raise UserError(f"processes={given}: expected a number from 1, one for each GPU")
    return int(given)


def _next_step(name: str, out: Path) -> str:
    """What to type to use the donors: the experiment of the recipe's name where it looks there, else where they are."""
    if (CONF / "experiment" / f"{name}.yaml").is_file() and out == FOLDER / name and name != "micro":
        return f"next: python -m pipeline experiment={name}"
    family = "micro" if name == "micro" else "NAME"
    parts = " ".join(f"families.{family}.{part}.id={out / part}" for part in ("sft", "grpo"))
    return f"next: python -m pipeline experiment={name if name == 'micro' else '…'} {parts}"


def _is_option(argument: str) -> bool:
    return "=" in argument and argument.split("=")[0] in OPTIONS


def _explained(error: Exception) -> str | None:
    """The line for a full GPU or disk, as safetensors, torch and vLLM report them; None for any other error."""
    reason = " ".join(str(error).split())
    if re.search("out of memory|GPU memory|allocate memory", reason):
        return (
            f"{reason[:200]}; lower sft.microbatch, grpo.microbatch or grpo.vllm_memory, or set"
            " gradient_checkpointing=true"
        )
    if isinstance(error, SafetensorError) or "inline_container" in reason:
        return f"{reason}; check the folder, its permissions and the disk's free space"
    return None
