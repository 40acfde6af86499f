"""The claims of the abstract that data can test, as data: paper_tables/claims.yaml. `verdicts` judges a run by them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import yaml

from pipeline.analysis.published import PAPER_TABLES


@dataclass(frozen=True)
class ClaimedComparison:
    """condition - reference on a benchmark, or on all of its variants, in a direction."""

    benchmark: str
    condition: str
    reference: str
    direction: Literal["rise", "fall"]
    perturbed: bool = False

    @property
    def sign(self) -> int:
        return {"rise": 1, "fall": -1}[self.direction]


@dataclass(frozen=True)
class Claim:
    """A sentence of the abstract, what it leaves open, and the comparisons that test it."""

    id: str
    statement: str  # "{benchmark}" stands for the label of the first comparison's benchmark
    sentence: str
    leaves_open: str
    comparisons: tuple[ClaimedComparison, ...]


@dataclass(frozen=True)
class Claims:
    """All of paper_tables/claims.yaml."""

    rule: dict[str, dict[str, str]]  # what each outcome means, by the kind of comparison
    notes: dict[
        str, str
    ]  # how several comparisons make one outcome, which form is judged, when a figure is compatible
    claims: tuple[Claim, ...]


@lru_cache
def read_claims() -> Claims:
    data = yaml.safe_load((PAPER_TABLES / "claims.yaml").read_text(encoding="utf-8"))
    claims = [
        Claim(**entry | {"comparisons": tuple(ClaimedComparison(**c) for c in entry["comparisons"])})
        for entry in data["claims"]
    ]
    return Claims(data["rule"], data["notes"], tuple(claims))
