"""The W&B workspace of an experiment: the panels that a reader wants, over what `pipeline.tracking.runs` logs.

    python -m pipeline dashboard experiment=paper                  create it, or put it in the place of the last one
    python -m pipeline dashboard experiment=paper dry_run=true     print what would be sent; needs no network

Sections: accuracy against α by benchmark and target, ours beside published, robustness, controls, figures. Every panel
reads the summary run (names: `tracking.sweep` and `tracking.comparisons`), so it needs records and their manifest, and
the stage 'track' before it shows anything. Needs the package wandb-workspaces (extra `dashboard`).
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.analysis.results import Grid
from pipeline.config.options import flag
from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.files import digest, write_file
from pipeline.records import manifest_path, read_manifest
from pipeline.tracking import runs as tracking

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

OPTIONS = ("dry_run",)


def show(config: Config, options: Mapping[str, str]) -> str:
    """Create the workspace and return its address; with `dry_run=true`, return its specification as JSON.

    Raises:
        UserError: if there is no manifest, the package is missing, no account is known, or the server refuses.
    """
    results = Path(config.results)
    grid = Grid(read_manifest(manifest_path(results, config.name)), results)
    if flag(options, "dry_run"):
        return json.dumps(specification(workspace(config, grid, config.tracking.entity or "")), indent=1)
    if problem := tracking.silence():
        raise UserError(f"{problem}; check the connection, or add dry_run=true")
    import wandb

    refusals = (wandb.Error, OSError, ValueError)
    try:
        entity = config.tracking.entity or str(wandb.Api(timeout=10).default_entity)
        place = digest([entity, config.tracking.project])[:8]
        saved = results / "wandb" / f"workspace-{config.name}-{place}.txt"
        made: Any = workspace(config, grid, entity)
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


def workspace(config: Config, grid: Grid, entity: str) -> "Workspace":
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
        sections=[section for section in sections(config, grid) if section.panels],
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


def sections(config: Config, grid: Grid) -> "Iterator[Section]":
    """The sections of the workspace; those of which nothing has been measured are empty."""
    from wandb_workspaces.reports.v2.interface import BarPlot, LinePlot, MediaBrowser
    from wandb_workspaces.workspaces import Section

    logged = list(tracking.comparisons(grid))
    swept = list(dict.fromkeys(name for step in tracking.sweep(grid) for name in step if name != "alpha"))

    def named(kind: str, family: str, benchmark: str) -> list[Any]:
        return [name for name in logged if name.startswith(f"{kind}/{family}/{benchmark}/")]

    def bars(kind: str, benchmarks: list[str], unit: str) -> list[Any]:
        """A panel for each target and benchmark, a bar for each condition."""
        return [
            BarPlot(title=f"{info['label']}: {_label(grid, b)}", metrics=metrics, title_x=unit)
            for family, info in grid.families.items()
            for b in benchmarks
            if (metrics := named(kind, family, b))
        ]

    curves = []
    for b in grid.plain():
        lines: list[Any] = [name for name in swept if name.endswith(f"/{b}")]
        axes: dict[str, Any] = {
            "x": "alpha",
            "title_x": "α",
            "title_y": "accuracy (%)",
            "smoothing_factor": 0,
        }
        if lines:
            curves.append(LinePlot(title=grid.benchmarks[b]["label"], y=lines, **axes))
    pictures = list(tracking.figures(config))
    panels: dict[str, list[Any]] = {
        "Accuracy against α": curves,
        "Ours beside published (points against Baseline)": bars("gain", grid.plain(), "points"),
        "Robustness (perturbed minus plain documents)": bars("robustness", grid.variants(), "points"),
        "Controls": bars("score", grid.plain(), "accuracy (%)"),
        "Figures": [MediaBrowser(title="Figures", media_keys=pictures)] if pictures else [],
    }
    for title, found in panels.items():
        yield Section(name=title, panels=found, is_open=True)


def _label(grid: Grid, benchmark: str) -> str:
    info = grid.benchmarks[benchmark]
    plain = info["variant_of"]
    return str(info["label"]) if plain is None else f"{grid.benchmarks[plain]['label']}, {info['label']}"
