"""How two runs were made, as far as it differs: in the inputs that their keys hold, and in the circumstances.

how_made(pairs)         a sentence
differing(pairs)        one line for each field
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.analysis.scores import CellScores
from pipeline.report.numbers import DASH

Pair = tuple[CellScores, CellScores]  # of A and of B
_LONGEST = 60  # characters of a value that differs
_NAMED = 4  # fields that a sentence names
_WORDS = {  # parts of a record's inputs (pipeline/plan/keys.py), as a sentence names them
    "weights": "the weights",
    "model": "the model's configuration",
    "tokenizer": "the tokenizer",
    "prompt": "the prompt",
    "task": "the task",
    "documents": "the documents",
    "rows": "the order of the documents",
    "perturbation": "the perturbation",
    "decoding": "the decoding",
    "engine": "the engine's numerics",
}


@dataclass(frozen=True)
class Change:
    """A field that differs between paired cells, with its most frequent pair of values."""

    path: str  # dotted, from inputs or provenance
    left: str
    right: str
    cells: int  # that differ in it
    of: int
    others: int  # further pairs of values

    @property
    def scope(self) -> str:
        return "in all cells" if self.cells == self.of else f"in {self.cells} of {self.of} cells"


def changes(pairs: Sequence[Pair]) -> list[Change]:
    """Every field of inputs and provenance that differs, but for the time."""
    values: dict[str, Counter[tuple[str, str]]] = {}
    for old, new in pairs:
        x, y = _origin(old), _origin(new)
        for path in dict.fromkeys([*x, *y]):
            left, right = x.get(path, DASH), y.get(path, DASH)
            if left != right and path != "provenance.started":
                values.setdefault(path, Counter())[_short(left), _short(right)] += 1
    found = []
    for path, counts in sorted(values.items()):
        (left, right), _ = counts.most_common(1)[0]
        found.append(Change(path, left, right, sum(counts.values()), len(pairs), len(counts) - 1))
    return found


def differing(pairs: Sequence[Pair]) -> list[str]:
    """What differs, one line for each field."""
    lines = []
    for change in changes(pairs):
        several = f", and {change.others} other pairs of values" if change.others else ""
        lines.append(f"{change.path}: {change.left} → {change.right} {change.scope}{several}")
    return lines or ["nothing in inputs or provenance"]


def how_made(pairs: Sequence[Pair]) -> str:
    """Whether anything that can move an answer differs, and what else does."""
    found = changes(pairs)
    inputs = _named([change for change in found if change.path.startswith("inputs.")])
    around = _named([change for change in found if change.path.startswith("provenance.")])
    if inputs:
        beside = f"; of what cannot, {around}" if around else ""
        return f"Of what can move an answer, B has another value than A for {inputs}{beside}."
    beside = f"; of what cannot, {around} differ" if around else ""
    return f"A and B were made from the same inputs: nothing that can move an answer differs{beside}."


def _named(found: Sequence[Change]) -> str:
    """Fields by part, with both values where a part has one, and in how many cells."""
    parts: dict[tuple[str, str], list[Change]] = {}
    for change in found:
        _, part, *_ = change.path.split(".")
        parts.setdefault((_WORDS.get(part, part), change.scope), []).append(change)
    texts = []
    for (part, scope), fields in parts.items():
        (first, *more) = fields
        name = first.path.rsplit(".", 1)[-1]
        detail = f"{len(fields)} fields" if more or first.others else f"{first.left} → {first.right}"
        texts.append((part if more or part.endswith(name) else f"{part} {name}") + f" ({detail}, {scope})")
    left_out = [f"{len(texts) - _NAMED} more"] if len(texts) > _NAMED else []
    return _listed([*texts[:_NAMED], *left_out])


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}" if texts else ""


def _origin(cell: CellScores) -> dict[str, object]:
    """What a record was made from and by, by dotted path."""
    assert cell.record is not None, "an average has no record"
    return dict(_leaves({"inputs": cell.record.inputs, "provenance": cell.record.provenance}))


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Leaves of nested dictionaries by dotted path; lists stay whole."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}…"
