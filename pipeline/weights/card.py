"""The model card of a steered checkpoint."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.compatibility import check_compatible as check_compatible


def card(target: Checkpoint, recipe: Mapping[str, Any]) -> str:
    """The model card of a steered checkpoint, from what `recipe` gives."""
    lines = ["---", "library_name: transformers", "tags: [task-arithmetic, merge]"]
    if target.revision:
        lines.append(f"base_model: {target.source}")
    lines += [
        "---",
        f"# {recipe['target']['source']} with task vectors added",
        "",
        "θ = θ_target + Σ α·v with v = θ_GRPO − θ_SFT, computed in fp32 and rounded once.",
        "Fingerprints are sha256 over names, dtypes, shapes and bytes of all tensors.",
        "",
        "| what | α | source | revision | fingerprint |",
        "|---|---|---|---|---|",
    ]

    def row(what: str, alpha: str, donor: Mapping[str, str | None]) -> str:
        return (
            f"| {what} | {alpha} | {donor['source']} | {donor['revision'] or '—'} | {donor['fingerprint']} |"
        )

    lines.append(row("target", "—", recipe["target"]))
    for number, term in enumerate(recipe["terms"], start=1):
        seed = term["random_seed"]
        kind = f"vector {number}" if seed is None else f"noise of vector {number}'s norm (seed {seed})"
        lines.append(f"| {kind} | {term['alpha']:g} | — | — | of its donors, below |")
        lines += [row(f"vector {number}: {role} donor", "", term["donors"][role]) for role in ("grpo", "sft")]
    notes = list(recipe["notes"])
    for number, term in enumerate(recipe["terms"], start=1):
        notes += [f"vector {number}: {note}" for note in term["notes"]]
        notes += [f"vector {number}: variant {json.dumps(variant)}" for variant in term["variants"]]
    if notes:
        lines += ["", "Notes:", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"
