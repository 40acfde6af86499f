"""What a steered checkpoint says of itself: as data (steering.json) and as a model card (README.md).

    text = card(target, steering(target, terms))

It names everything that was added by source, revision and fingerprint, so that a reader can make it again.
"""

import json
from typing import TypedDict

from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.description import Donor, Donors, PartSettings


class SteeringTerm(TypedDict):
    """One term of the sum: α, the donors of its vector, and the parts that were taken of it."""

    alpha: float
    random_seed: int | None  # of the noise in the vector's place
    donors: Donors
    parts: list[PartSettings]
    notes: list[str]


class Steering(TypedDict):
    """What a steered checkpoint is made of."""

    target: Donor
    terms: list[SteeringTerm]
    notes: list[str]


def card(target: Checkpoint, steering: Steering) -> str:
    """The model card of a steered checkpoint, in Markdown."""
    lines = ["---", "library_name: transformers", "tags: [task-arithmetic, merge]"]
    if target.revision:
        lines.append(f"base_model: {target.source}")
    lines += [
        "---",
        f"# {steering['target']['source']} with task vectors added",
        "",
        "θ = θ_target + Σ α·v with v = θ_GRPO − θ_SFT, computed in fp32 and rounded once.",
        "Fingerprints are sha256 over names, dtypes, shapes and bytes of all tensors.",
        "",
        "| what | α | source | revision | fingerprint |",
        "|---|---|---|---|---|",
    ]

    def row(what: str, alpha: str, donor: Donor) -> str:
        return (
            f"| {what} | {alpha} | {donor['source']} | {donor['revision'] or '—'} | {donor['fingerprint']} |"
        )

    lines.append(row("target", "—", steering["target"]))
    for number, term in enumerate(steering["terms"], start=1):
        seed = term["random_seed"]
        kind = f"vector {number}" if seed is None else f"noise of vector {number}'s norm (seed {seed})"
        lines.append(f"| {kind} | {term['alpha']:g} | — | — | of its donors, below |")
        lines.append(row(f"vector {number}: grpo donor", "", term["donors"]["grpo"]))
        lines.append(row(f"vector {number}: sft donor", "", term["donors"]["sft"]))
    notes = list(steering["notes"])
    for number, term in enumerate(steering["terms"], start=1):
        notes += [f"vector {number}: {note}" for note in term["notes"]]
        notes += [f"vector {number}: part {json.dumps(part)}" for part in term["parts"]]
    if notes:
        lines += ["", "Notes:", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"
