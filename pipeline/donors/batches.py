"""How a recipe's batches are shared between processes: the batch of a step is the recipe's, whatever their number."""

from collections.abc import Collection, Iterator

from pipeline.donors.recipe import Recipe
from pipeline.errors import UserError

UNSHARED = ("adafactor",)  # transformers' own adds plain tensors to split ones, which torch refuses


def check_processes(recipe: Recipe, processes: int | None, stages: Collection[str]) -> int:
    """How many processes train: so many as asked for, else one for each visible GPU, and one without a GPU.

    Raises:
        UserError: if there are fewer GPUs, or the batch of a stage cannot be shared equally.
    """
    import torch

    cards = torch.cuda.device_count()
    count = processes or max(1, cards)
    if cards and count > cards:
        raise UserError(f"processes={count}: expected at most one for each visible GPU, found {cards}")
    check_batches(recipe, count, stages)
    return count


def check_batches(recipe: Recipe, processes: int, stages: Collection[str]) -> None:
    """Do nothing if every process can take as much of each batch, and of the optimizer.

    Raises:
        UserError: if the batch of a stage cannot be shared so, or the optimizer has no states that can be split.
    """
    if processes > 1 and recipe.optimizer in UNSHARED:
        raise UserError(
            f"processes={processes}: optimizer={recipe.optimizer} cannot be split between processes; set"
            " optimizer=adamw_torch, or processes=1"
        )
    for stage, key, batch, share in _batches(recipe):
        if stage in stages and batch % (share * processes):
            setting = key if share == 1 else f"{stage}.microbatch"
            raise UserError(
                f"processes={processes}: {key} = {batch} cannot be shared by {processes} processes that take {share} at a"
                f" time; choose another {setting}, or another number of processes"
            )


def is_crowded() -> bool:
    """Whether more than one GPU is visible: a trainer that is not told which is its own would copy the model to all."""
    import torch

    return torch.cuda.device_count() > 1


def card() -> float | None:
    """The bytes of the smallest visible card; None without one."""
    import torch

    cards = range(torch.cuda.device_count())
    return min((float(torch.cuda.get_device_properties(c).total_memory) for c in cards), default=None)


def _batches(recipe: Recipe) -> Iterator[tuple[str, str, int, int]]:
    """Of each stage its name, what its batch is called, its rows, and how many of them a process takes at a time."""
    yield "base", "base.batch", recipe.base.batch, 1
    yield "target", "target.batch", recipe.target.batch, 1
    yield "sft", "sft.batch", recipe.sft.batch, recipe.sft.microbatch
    answers = recipe.grpo.prompts * recipe.grpo.rollouts
    yield "grpo", "grpo.prompts · grpo.rollouts", answers, recipe.grpo.microbatch
