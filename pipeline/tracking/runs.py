"""W&B as a projection of the records: every condition is a run, and one more run holds the tables and figures.

Everything is read from the manifest and the store, so a dashboard can be filled after the fact, or filled again. The id
of a run is derived from the keys of its cells: logging twice makes no duplicate, and what has been logged once to a
project is left alone (markers under results/wandb/logged). Only the summary is logged anew, as the same run, when more
cells or other renderings are there. Runs are written to files first (`results/wandb/offline-run-*`, by
pipeline/tracking/logger.py); with an API key they are then uploaded (pipeline/tracking/server.py).
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.analysis.results import Results, read_results
from pipeline.config.schema import Config, Tracking
from pipeline.files import digest, write_file
from pipeline.manifest import Manifest, PlannedCell
from pipeline.tracking import server
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


def track(config: Config, manifest: Manifest, report: Callable[[str], None]) -> None:
    """Log every complete condition that has not been logged yet, then the tables and figures.

    Raises:
        UserError: if online logging is asked for and no API key is known.
    """
    mode = server.mode(config)
    if mode == "disabled":
        return
    if config.tracking.mode is Tracking.auto and server.mode_of_environment() not in server.MODES:
        report(
            f"W&B: WANDB_MODE={server.mode_of_environment()}: expected one of {', '.join(server.MODES)}; taken as"
            " offline"
        )
    results = read_results(manifest, Path(config.results))
    runs = runs_of(config, results)
    unlogged = [run for run in runs if run.content not in noted(marker(config, run))]
    if unlogged and (problem := _log(config, results, unlogged)):
        report(f"W&B: nothing more is logged ({problem}); run the stage 'track' again")
        return
    folder = results.folder / "wandb"
    folders = [folder / noted(marker(config, run))[1] for run in runs]
    waiting = [path for path in folders if path.is_dir() and not server.is_synced(path)]
    by_hand = f"`wandb sync {folder}/offline-run-*` uploads them"
    if mode == "offline" and unlogged:
        report(f"W&B: {len(unlogged)} runs logged offline; {by_hand}")
    elif mode == "online" and waiting:
        if problem := server.upload(waiting):
            report(f"W&B: not uploaded ({problem}); the runs are kept: the stage 'track' or {by_hand}")
        else:
            report(f"W&B: {len(waiting)} runs logged online")


def _log(config: Config, results: Results, runs: list[Run]) -> str:
    """Write runs to files, and note each; returns what was in the way, or nothing."""
    import wandb

    from pipeline.tracking.logger import Logger

    os.environ.setdefault("WANDB_SILENT", "true")
    logger = Logger(config, results)
    with server.without(
        "WANDB_MODE", "WANDB_BASE_URL"
    ):  # the files need neither, and fail if one is malformed
        try:
            for run in runs:
                own = marker(config, run)
                others = [path for path in own.parent.glob(f"{run.id}.*") if path != own]
                folder = logger.log(run, keep={word for path in others for word in noted(path)})
                write_file(own, f"{run.content} {folder.name}".encode())
        except (wandb.Error, OSError, ValueError) as e:  # a setting that is malformed is a ValueError
            return server.short(e)
        finally:
            wandb.teardown()  # its process ends, and its files are whole
    return ""


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
