"""What the paper and others have published, as data with its sources: paper_tables/published.yaml."""

from dataclasses import dataclass
from functools import lru_cache

import yaml

from pipeline.analysis.results import Results, Row
from pipeline.files import ROOT

PAPER_TABLES = ROOT / "paper_tables"


@dataclass(frozen=True)
class PublishedFigure:
    """A number of the paper: a difference to Baseline in percentage points, or an accuracy in per cent."""

    id: str
    size: str | None  # of the model; None where the source does not state it
    benchmark: str
    condition: str
    source: tuple[str, ...]  # letters of `Published.sources`
    difference: float | None = None
    score: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Context:
    """What is reported elsewhere, shown as a note under the table that it concerns."""

    table: str
    text: str


@dataclass(frozen=True)
class Published:
    """All of paper_tables/published.yaml."""

    sources: dict[str, str]
    figures: tuple[PublishedFigure, ...]
    documents: dict[str, int]  # of each benchmark by its published name
    context: tuple[Context, ...]


@lru_cache
def published() -> Published:
    data = yaml.safe_load((PAPER_TABLES / "published.yaml").read_text(encoding="utf-8"))
    return Published(
        data["sources"],
        tuple(PublishedFigure(**entry | {"source": tuple(entry["source"])}) for entry in data["figures"]),
        data["documents"],
        tuple(Context(**entry) for entry in data["context"]),
    )


def published_figures(results: Results, family: str, row: Row, benchmark: str) -> list[PublishedFigure]:
    """Figures for the size, the benchmark and the condition; those of unstated size fit every size.

    The paper adds the whole vector: there are none for a part of it, or for a sum of several.
    """
    size, name = results.families[family].published_size, results.benchmarks[benchmark].published
    if size is None or name is None or row.entry.kind == "sum":
        return []
    return [
        figure
        for figure in published().figures
        if figure.size in (size, None) and (figure.benchmark, figure.condition) == (name, row.name)
    ]


def documents_of(benchmark: str) -> int | None:
    """How many documents a published figure is over, by the benchmark's published name; None where not known."""
    return published().documents.get(benchmark)


def context(table: str) -> list[str]:
    """The notes under a table on what is reported elsewhere."""
    return [entry.text for entry in published().context if entry.table == table]
