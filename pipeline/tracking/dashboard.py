"""The W&B workspace of an experiment: panels over what `pipeline.tracking.runs` logs.

    python -m pipeline dashboard experiment=paper                  create it, or put it in the place of the last one
    python -m pipeline dashboard experiment=paper dry_run=true     print what would be sent; needs no network

Sections: accuracy against α by benchmark and target, ours beside published, robustness, controls, every metric, unreadable
and cut answers, figures. Every panel
reads the summary run (names: `tracking.sweep` and `tracking.comparisons`), so it needs records and their manifest, and
the stage 'track' before it shows anything. Needs the package wandb-workspaces (extra `dashboard`).
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.analysis.results import Results, read_results
from pipeline.config.options import flag
from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.files import digest, write_file
from pipeline.manifest import manifest_path, read_manifest
from pipeline.tracking import server
from pipeline.tracking.summary import (
    GAIN,
    METRIC,
    ROBUSTNESS,
    SCORE,
    SHARE,
    comparisons,
    curve_name,
    figures,
    sweep_steps,
)

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

OPTIONS = ("dry_run",)


def show(config: Config, options: Mapping[str, str]) -> str:
    """Create the workspace and return its address; with `dry_run=true`, return its specification as JSON.

    Raises:
        UserError: if there is no manifest, the package is missing, no account is known, or the server refuses.
    """
    folder = Path(config.results)
    results = read_results(read_manifest(manifest_path(folder, config.name)), folder)
    if flag(options, "dry_run"):
        return json.dumps(specification(workspace(config, results, config.tracking.entity or "")), indent=1)
    if problem := server.silence():
        raise UserError(f"{problem}; check the connection, or add dry_run=true")
    import wandb

    refusals = (wandb.Error, OSError, ValueError)
    try:
        entity = config.tracking.entity or str(wandb.Api(timeout=10).default_entity)
        place = digest([entity, config.tracking.project])[:8]
        saved = folder / "wandb" / f"workspace-{config.name}-{place}.txt"
        made: Any = workspace(config, results, entity)
        if there := _loaded(type(made), saved, refusals):  # the same view again, and no second one
            there.sections, there.runset_settings, made = made.sections, made.runset_settings, there
        made.save()
        write_file(saved, made.url.encode())
        return str(made.url)
    except refusals as e:
        raise UserError(
            f"the W&B workspace was not created ({' '.join(str(e).split())[:160]}); check `wandb login` and"
            " tracking.entity, or add dry_run=true"
        ) from None


def _loaded(kind: Any, saved: Path, refusals: tuple[type[Exception], ...]) -> Any:
    """The view that was made last; None if there is none, or it cannot be had from the server."""
    from wandb_workspaces.workspaces.errors import SpecVersionError, UnsupportedViewError

    with suppress(*refusals, SpecVersionError, UnsupportedViewError):
        return kind.from_url(saved.read_text())
    return None


def workspace(config: Config, results: Results, entity: str) -> "Workspace":
    """The workspace of an experiment, with a panel for all that its records can fill."""
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise UserError(
            "dashboard: wandb-workspaces is not installed; install the extra 'dashboard'"
        ) from None

    return ws.Workspace(
        entity=entity,
        project=config.tracking.project,
        name=f"{config.name}: reasoning vectors",
        sections=[section for section in sections(config, results) if section.panels],
        runset_settings=ws.RunsetSettings(
            filters=[ws.Config("experiment") == config.name], pinned_columns=["config:family", "config:alpha"]
        ),
    )


def specification(made: "Workspace") -> dict[str, Any]:
    """What is sent to the server, as data."""
    found: dict[str, Any] = json.loads(
        made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    )
    return found


def sections(config: Config, results: Results) -> "Iterator[Section]":
    """The sections of the workspace; those of which nothing has been measured are empty."""
    from wandb_workspaces.reports.v2.interface import BarPlot, LinePlot, MediaBrowser
    from wandb_workspaces.workspaces import Section

    logged = comparisons(results)
    swept = {name for step in sweep_steps(results) for name in step}

    def bars(kind: str, benchmarks: list[str], unit: str) -> list[Any]:
        """A panel for each target and benchmark, a bar for each condition."""
        found = []
        for family, entry in results.families.items():
            for benchmark in benchmarks:
                place = (kind, family, benchmark)
                metrics: Any = [c.name for c in logged if (c.kind, c.family, c.benchmark) == place]
                if metrics:
                    title = f"{entry.label}: {results.label(benchmark, ', ')}"
                    found.append(BarPlot(title=title, metrics=metrics, title_x=unit))
        return found

    curves = []
    for benchmark in results.plain():
        names = [curve_name(s, family, benchmark) for s in results.sweeps() for family in results.families]
        lines: Any = [name for name in names if name in swept]
        axes: dict[str, Any] = {
            "x": "alpha",
            "title_x": "α",
            "title_y": "accuracy (%)",
            "smoothing_factor": 0,
        }
        if lines:
            curves.append(LinePlot(title=results.benchmarks[benchmark].label, y=lines, **axes))
    pictures = list(figures(config))
    panels: dict[str, list[Any]] = {
        "Accuracy against α": curves,
        "Ours beside published (points against Baseline)": bars(GAIN, results.plain(), "points"),
        "Robustness (perturbed minus plain documents)": bars(ROBUSTNESS, results.variants(), "points"),
        "Controls": bars(SCORE, results.plain(), "accuracy (%)"),
        "Every metric": bars(METRIC, list(results.benchmarks), "score (%)"),
        "Unreadable and cut answers": bars(SHARE, list(results.benchmarks), "share of answers (%)"),
        "Figures": [MediaBrowser(title="Figures", media_keys=pictures)] if pictures else [],
    }
    for title, found in panels.items():
        yield Section(name=title, panels=found, is_open=True)
