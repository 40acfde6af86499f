"""W&B as a projection of the records: every condition is a run, and one more run holds the tables and figures.

Everything is read from the store, so a dashboard can be filled after the fact, or filled again. The id of a run is
derived from the keys of its cells: logging twice makes no duplicate, and what has been logged once is left alone
(markers under results/wandb/logged). Without an API key runs are written offline, for `wandb sync`; a server that
cannot be reached costs one attempt, and never the run.
"""

import html
import netrc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import Tracking
from pipeline.errors import UserError
from pipeline.plan import Cell, Plan
from pipeline.records import Record, digest, read_record

SAMPLES = 25  # rows of each benchmark's sample table
SERVER = "api.wandb.ai"
TEXTS = ("prompt", "target", "output")


def track(plan: Plan, report: Callable[[str], None]) -> None:
    """Log every complete condition that has not been logged yet, then the tables and figures.

    Raises:
        UserError: if online logging is asked for and no API key is known.
    """
    mode = _mode(plan.config.tracking.mode)
    if mode == "disabled":
        return
    runs = [run for run in _runs(plan) if not _marker(plan, run["id"], mode).exists()]
    if not runs:
        return
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        for i, run in enumerate(runs):  # noqa: B007
            _log(plan, run, mode)
            marker = _marker(plan, run["id"], mode)
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
    except (wandb.Error, OSError) as e:
        where = "set tracking.mode=offline, or mend the connection and run the stage 'track' again"
        report(f"W&B: {len(runs) - i} runs not logged ({' '.join(str(e).split())[:120]}); {where}")
        return
    finally:
        wandb.teardown()  # its process ends, and its files are whole
    sync = f"; `wandb sync {plan.results / 'wandb'}/offline-run-*` uploads them" if mode == "offline" else ""
    report(f"W&B: {len(runs)} runs logged {mode}{sync}")


def _mode(wanted: Tracking) -> str:
    if wanted is Tracking.auto:
        return "online" if _has_key() else "offline"
    if wanted is Tracking.online and not _has_key():
        raise UserError(
            "tracking.mode=online: no W&B API key; run `wandb login`, or set tracking.mode=offline"
        )
    return str(wanted.value)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(SERVER) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _marker(plan: Plan, run_id: str, mode: str) -> Path:
    return plan.results / "wandb" / "logged" / f"{run_id}.{mode}"


def _runs(plan: Plan) -> list[dict[str, Any]]:
    """One description for each condition whose cells are all there, and one for the summary."""
    runs: list[dict[str, Any]] = []
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in plan.cells:
        groups.setdefault((cell.family.name, cell.condition.name), []).append(cell)
    for (family, condition), cells in groups.items():
        records = [(cell, read_record(plan.results, cell.key)) for cell in cells]
        complete = [(cell, record) for cell, record in records if record is not None]
        if len(complete) == len(cells):
            keys = sorted(cell.key for cell in cells)
            name = f"{family} {cells[0].condition.label}"
            runs.append(
                {
                    "id": _id(plan, f"{family}/{condition}", keys),
                    "name": name,
                    "family": family,
                    "cells": complete,
                }
            )
    if runs:
        keys = sorted(str(run["id"]) for run in runs)
        runs.append({"id": _id(plan, "summary", keys), "name": "summary", "family": "summary", "cells": []})
    return runs


def _id(plan: Plan, what: str, keys: list[str]) -> str:
    return digest([plan.config.name, what, keys])[:16]


def _log(plan: Plan, run: dict[str, Any], mode: str) -> None:
    import wandb

    logged = wandb.init(
        project=plan.config.tracking.project,
        entity=plan.config.tracking.entity,
        group=plan.config.name,
        job_type=run["family"],
        name=run["name"],
        id=run["id"],
        resume="allow",
        dir=str(plan.results),
        mode="online" if mode == "online" else "offline",
        config=_config(run["cells"]),
        settings=wandb.Settings(
            console="off",
            silent=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_save_requirements=False,
            init_timeout=10,
        ),
    )
    try:
        if run["cells"]:
            logged.log(_metrics(run["cells"]))
        else:
            logged.log(_summary(plan))
    finally:
        logged.finish()


def _config(cells: list[tuple[Cell, Record]]) -> dict[str, Any]:
    if not cells:
        return {}
    cell, record = cells[0]
    condition = cell.condition
    return {
        "family": cell.family.name,
        "condition": condition.name,
        "weights": condition.weights.value,
        "alpha": condition.alpha,
        "seed": condition.seed,
        "prompt": record.inputs["prompt"],
        "engine": record.inputs["engine"],
        "versions": record.provenance["versions"],
        "checkpoints": record.provenance["family"],
        "keys": {c.task.name: c.key for c, _ in cells},
    }


def _metrics(cells: list[tuple[Cell, Record]]) -> dict[str, Any]:
    """Scores, lengths and throughput by benchmark, and a table of samples."""
    import wandb

    data: dict[str, Any] = {}
    for cell, record in cells:
        m, c = record.metrics, record.cost
        name = cell.task.name.replace("@", "/")
        data |= {f"{name}/{k}": m[k] for k in ("score", "stderr", "share_truncated", "share_not_extracted")}
        data |= {f"{name}/mean_tokens": m["mean_tokens"], f"{name}/seconds": c["seconds"]}
        data[f"{name}/tokens_per_second"] = c["generated_tokens"] / c["seconds"] if c["seconds"] else 0.0
        rows: list[Any] = [
            [s["doc_id"], *(s[t] for t in TEXTS), s["score"], s["tokens"]] for s in record.samples()[:SAMPLES]
        ]
        data[f"{name}/samples"] = wandb.Table(columns=["document", *TEXTS, "score", "tokens"], data=rows)
    return data


def _summary(plan: Plan) -> dict[str, Any]:
    """The rendered tables and figures, the sweep as a table, and each vector's geometry."""
    import wandb

    out = Path(plan.config.tables) / plan.config.name
    data: dict[str, Any] = {}
    for path in sorted(out.glob("*.png")):
        data[f"figures/{path.stem}"] = wandb.Image(str(path))
    for path in sorted(out.glob("*.md")):
        data[f"tables/{path.stem}"] = wandb.Html(f"<pre>{html.escape(path.read_text())}</pre>", inject=False)
    rows: list[Any] = []
    for cell in plan.cells:
        record = read_record(plan.results, cell.key) if cell.condition.role == "sweep" else None
        if record is not None:
            m = record.metrics
            rows.append(
                [
                    cell.family.name,
                    cell.task.name,
                    cell.condition.alpha,
                    m["score"],
                    m["stderr"],
                    m["mean_tokens"],
                ]
            )
    columns: list[str | int] = ["family", "benchmark", "alpha", "score", "stderr", "mean_tokens"]
    data["alpha_sweep"] = wandb.Table(columns=columns, data=rows)
    return data
