"""A sum of checkpoints as a recipe of mergekit (https://github.com/arcee-ai/mergekit), for who merges with that.

    text = recipe(target, [Difference(0.5, grpo, sft)])       # θ_target + 0.5 · (θ_grpo − θ_sft)
    Path("vector.yml").write_text(text)                       # mergekit-yaml vector.yml merged

The method is `linear` without normalization, in fp32, rounded once to the dtype of the checkpoint that it starts from.
It adds in another order than we do, so the two can differ in the last bit of fp32. Masks become weights by tensor.
What mergekit does not have, or would do in silence otherwise, is refused: trimming, DARE and noise; models of different
vocabularies, whose embeddings it cuts to what they share; a head that only some of the models have.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.errors import UserError
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.parts import Part

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FIRST = "# mergekit recipe of"  # every file of ours begins with it

Weights = dict[str, float]  # of a model's tensors, by name


@dataclass(frozen=True)
class Difference:
    """α · (θ_grpo − θ_sft), in the tensors that the part keeps; None is all."""

    alpha: float
    grpo: Checkpoint
    sft: Checkpoint
    part: Part | None = None


def recipe(start: Checkpoint, terms: Sequence[Difference], title: str = "a sum of checkpoints") -> str:
    """The recipe of `start` + Σ terms, as YAML.

    Raises:
        UserError: if mergekit has no equal, naming what it lacks.
    """
    for term in terms:
        _check(start, term)
    names = sorted(start.tensors)
    models: dict[str, tuple[Checkpoint, Weights]] = {}
    for checkpoint, alpha, part in [(start, 1.0, None), *_signed(terms)]:
        _, weights = models.setdefault(checkpoint.fingerprint, (checkpoint, dict.fromkeys(names, 0.0)))
        for name in names:
            weights[name] += alpha * (part is None or part.keeps(name))
    document = {
        "merge_method": "linear",
        "dtype": "float32",
        "out_dtype": DTYPES[_dtype(start)],
        "parameters": {"normalize": False},
        "models": [
            {"model": {"model": _place(checkpoint)}, "parameters": {"weight": _by_tensor(weights)}}
            for checkpoint, weights in models.values()
        ],
    }
    head = f"{FIRST} {title}: mergekit-yaml THIS_FILE FOLDER"
    return f"{head}\n{yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)}"


def _signed(terms: Iterable[Difference]) -> list[tuple[Checkpoint, float, Part | None]]:
    return [
        (checkpoint, alpha, term.part)
        for term in terms
        for checkpoint, alpha in ((term.grpo, term.alpha), (term.sft, -term.alpha))
    ]


def _check(start: Checkpoint, term: Difference) -> None:
    part = term.part
    if part is not None and (part.trim is not None or part.dare is not None):
        raise UserError(
            f"{part}: mergekit does not trim or drop a difference of two models; write a checkpoint with apply"
        )
    for donor in (term.grpo, term.sft):
        shapes = {name: info.shape for name, info in donor.tensors.items()}
        for name, info in start.tensors.items():
            if shapes.get(name) != info.shape:
                raise UserError(
                    f"{donor.source}: expected {name} of shape {list(info.shape)}, as in {start.source}, found"
                    f" {list(shapes[name]) if name in shapes else 'none'}; mergekit would cut it; write a checkpoint with apply"
                )


def _dtype(checkpoint: Checkpoint) -> str:
    found = {info.dtype for info in checkpoint.tensors.values()}
    if len(found) > 1:
        raise UserError(
            f"{checkpoint.source}: tensors of {' and '.join(sorted(found))}; mergekit writes one dtype; write a checkpoint"
            " with apply"
        )
    return found.pop()


def _place(checkpoint: Checkpoint) -> dict[str, Any]:
    """Where mergekit finds it; not as one text, in which '@' and '+' have a meaning."""
    if checkpoint.revision is not None:
        return {"path": checkpoint.source, "revision": checkpoint.revision}
    return {"path": str(checkpoint.path.resolve())}


def _by_tensor(weights: Mapping[str, float]) -> float | list[dict[str, Any]]:
    """One weight, or one for each tensor and the most frequent for the rest.

    A filter of mergekit is a part of a name, and the first that fits decides; so the longest come first, and names that
    hold a filter have one of their own.
    """
    ((usual, _),) = Counter(weights.values()).most_common(1)
    others = [name for name, weight in weights.items() if weight != usual]
    if not others:
        return usual
    filtered = {name for name in weights if any(other in name for other in others)}
    listed = [
        {"filter": name, "value": weights[name]} for name in sorted(filtered, key=lambda n: (-len(n), n))
    ]
    return [*listed, {"value": usual}]
