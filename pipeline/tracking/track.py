"""W&B as a projection of the records: the stage `track`.

Everything is read from the manifest and the store, so a dashboard can be filled after the fact, or filled again. Runs
(pipeline/tracking/runs.py) are written to files first (`results/wandb/offline-run-*`, by pipeline/tracking/logger.py);
with an API key they are then uploaded (pipeline/tracking/server.py).
"""

import os
from collections.abc import Callable
from pathlib import Path

from pipeline.analysis.results import Results, read_results
from pipeline.config.schema import Config, Tracking
from pipeline.files import write_file
from pipeline.manifest import Manifest
from pipeline.tracking import server
from pipeline.tracking.runs import Run, marker, noted, runs_of


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
    # The files need neither variable, and fail if one is malformed.
    with server.without("WANDB_MODE", "WANDB_BASE_URL"):
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
