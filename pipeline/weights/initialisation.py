"""Whether checkpoints come from one initialisation: measured, not believed.

    found = measure(base, {"sft": sft, "grpo": grpo, "target": target}, v=norm)
    check(found, base, {"sft": sft, …})

θ_GRPO − θ_SFT means something only where both were trained from one start (arXiv 2509.01363). Measured: the shipped
family's fine-tunes lie at 0.04 to 0.06 of their base's norm from it, models of two random starts at 1.4. A model that was
trained on for trillions of tokens, as the Coder models were, should lie between; none has been measured, so `FAR` is a
choice between the two, and not a boundary that was found.
"""

import math
from collections.abc import Mapping

import torch
from typing_extensions import TypedDict

from pipeline.errors import UserError
from pipeline.weights.architecture import HEAD
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.geometry_report import Distance, Initialisation
from pipeline.weights.tensors import pieces
from pipeline.weights.threads import in_parallel, one_thread

FAR = 0.3  # of the norm of what the others are measured from; a choice


class _Sums(TypedDict):
    """Sums over the entries of one tensor."""

    entries: int
    equal: int
    squares: float  # of differences
    reference: float  # squares of the reference


def measure(
    reference_part: str, reference: Checkpoint, others: Mapping[str, Checkpoint], v: float
) -> Initialisation:
    """How far the others lie from the reference, over the entries that all have.

    Args:
        reference_part: what the reference is in its family: base, or target where no base is known.
        v: the norm of the vector.
    """
    distances: dict[str, Distance] = {}
    for part, other in others.items():
        names = sorted(name for name in reference.tensors if name in other.tensors and name != HEAD)
        with one_thread():
            found = in_parallel(lambda name, other=other: _measure(name, reference, other), names)  # type: ignore[misc]
        norm = math.sqrt(math.fsum(sums["squares"] for sums in found))
        whole = math.sqrt(math.fsum(sums["reference"] for sums in found))
        entries = sum(sums["entries"] for sums in found)
        distances[part] = {
            "norm": norm,
            "relative": norm / whole if whole else None,
            "of_vector": norm / v if v else None,
            "equal": sum(sums["equal"] for sums in found) / entries if entries else None,
        }
    return {"reference": reference_part, "distances": distances}


def _measure(name: str, reference: Checkpoint, other: Checkpoint) -> _Sums:
    ours, theirs = reference.tensors[name], other.tensors[name]
    entries = min(ours.numel, theirs.numel)  # rows of padding that only one has are left out
    sums: _Sums = {"entries": entries, "equal": 0, "squares": 0.0, "reference": 0.0}
    for a, b in zip(pieces(ours, entries), pieces(theirs, entries), strict=True):
        wide, difference = a.float(), b.float()
        difference.sub_(wide)
        sums["equal"] += int((difference == 0).sum())
        sums["squares"] += _squares(difference)
        sums["reference"] += _squares(wide)
    return sums


def _squares(entries: torch.Tensor) -> float:
    found = float((entries * entries).sum(dtype=torch.float64))
    return found if math.isfinite(found) else float(entries.double().square_().sum())  # beyond fp32


def check(
    found: Initialisation, reference: Checkpoint, others: Mapping[str, Checkpoint], family: str
) -> None:
    """Do nothing if everything lies near the reference.

    Raises:
        UserError: with the figures of what lies far from it.
    """
    far = [
        f"{part} {others[part].source}: {distance['relative']:.2f} of its norm away, {distance['equal'] or 0:.1%} of the"
        " entries equal"
        for part, distance in found["distances"].items()
        if (distance["relative"] or 0.0) > FAR
    ]
    if far:
        raise UserError(
            f"{found['reference']} {reference.source} is not where these were trained from ({'; '.join(far)}; expected at"
            f" most {FAR}, a choice: docs/pairs.md); use checkpoints of one pretraining, or set families.{family}.allow_other_initialisation=true"
        )


def describe(found: Initialisation) -> str:
    """The distances in one line."""
    shares = [
        f"{part} {distance['relative'] or 0:.3f} ({distance['of_vector'] or 0:.2f}‖v‖, {distance['equal'] or 0:.0%} equal)"
        for part, distance in found["distances"].items()
    ]
    return f"distance from the {found['reference']}, of its norm: {', '.join(shares)}"
