"""What the runs of W&B are: every condition is one, and one more holds the tables and figures.

The id of a run is derived from the keys of its cells: logging twice makes no duplicate, and what has been logged once to
a project is left alone (markers under results/wandb/logged). Only the summary is logged anew, as the same run, when more
cells or other renderings are there.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pipeline.analysis.results import Results
from pipeline.config.schema import Config
from pipeline.files import digest
from pipeline.manifest import PlannedCell
from pipeline.tracking.summary import rendered

SUMMARY = "summary"


@dataclass(frozen=True)
class Run:
    """What is logged as one run: a condition of a family, or the summary."""

    id: str
    content: str  # changes when the run is to be logged again
    name: str
    family: str
    condition: str | None  # None: the summary
    cells: tuple[PlannedCell, ...] = ()  # of the condition


def marker(config: Config, run: Run) -> Path:
    """The file that notes what was logged as this run to the entity and project, and in which folder."""
    place = digest([config.tracking.entity, config.tracking.project])[:8]
    return Path(config.results) / "wandb" / "logged" / f"{run.id}.{place}"


def noted(path: Path) -> list[str]:
    """What a marker says: the content and the folder; nothing where there is no marker."""
    return path.read_text().split() if path.is_file() else []


def runs_of(config: Config, results: Results) -> list[Run]:
    """One run for each condition whose cells are all there, and one for the summary."""
    groups: dict[tuple[str, str], list[PlannedCell]] = {}
    for cell in results.manifest.cells:
        groups.setdefault((cell.family, cell.condition), []).append(cell)
    runs = []
    for (family, condition), cells in groups.items():
        if all(cell.place in results.cells for cell in cells):
            identity = _id(results, f"{family}/{condition}", sorted(cell.key for cell in cells))
            name = f"{family} {results.conditions[condition].label}"
            runs.append(Run(identity, identity, name, family, condition, tuple(cells)))
    if runs:
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in rendered(config)}
        identity = _id(results, SUMMARY, sorted(results.planned.values()))
        content = digest([sorted(cell.key for cell in results.cells.values()), files])
        runs.append(Run(identity, content, SUMMARY, SUMMARY, None))
    return runs


def _id(results: Results, what: str, keys: list[str]) -> str:
    return digest([results.manifest.experiment, what, keys])[:16]
