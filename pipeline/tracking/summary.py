"""What the summary run holds: the α curves, comparisons of conditions, and what was rendered."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.analysis.behaviour import behaviour
from pipeline.analysis.metrics import measured
from pipeline.analysis.published import published_figures
from pipeline.analysis.results import Results, Row, Sweep
from pipeline.config.schema import Config

SCORE, GAIN, ROBUSTNESS = "score", "gain", "robustness"  # kinds of comparisons
METRIC, SHARE = "metric", "share"
OURS, PUBLISHED = "ours", "published"
UNREADABLE, CUT = "unreadable", "cut"


@dataclass(frozen=True)
class Comparison:
    """A number that the summary compares, in per cent or percentage points.

    score/<family>/<benchmark>/<condition>                 mean score of the paper's rows and of the controls
    gain/<family>/<benchmark>/<condition>/ours|published   against Baseline, where the paper reports it
    robustness/<family>/<variant>/<condition>              perturbed minus plain documents
    metric/<family>/<benchmark>/<condition>/<metric>       every metric, where a benchmark keeps several
    share/<family>/<benchmark>/<condition>/unreadable|cut  of written answers
    """

    kind: str
    family: str
    benchmark: str
    condition: str
    value: float
    source: str = ""

    @property
    def name(self) -> str:
        """Under which it is logged."""
        parts = (self.kind, self.family, self.benchmark, self.condition, self.source)
        return "/".join(filter(None, parts))


def comparisons(results: Results) -> list[Comparison]:
    """By family, row and benchmark."""
    return [
        comparison
        for family in results.families
        for row in results.rows("main", "control", "again")
        for comparison in _of_row(results, family, row)
    ]


def _of_row(results: Results, family: str, row: Row) -> Iterator[Comparison]:
    for benchmark in results.plain():
        if (value := results.value(family, row, benchmark)) is not None:
            yield Comparison(SCORE, family, benchmark, row.name, 100 * value.value)
            ours = results.difference(family, row, results.reference, benchmark)
            for figure in published_figures(results, family, row, benchmark):
                if figure.difference is not None and ours is not None:
                    place = (GAIN, family, benchmark, row.name)
                    yield Comparison(*place, 100 * ours.value, OURS)
                    yield Comparison(*place, figure.difference, PUBLISHED)
    for benchmark in results.benchmarks:
        found = measured(results, family, row, benchmark)
        for one in found if len(found) > 1 else []:
            yield Comparison(METRIC, family, benchmark, row.name, 100 * one.value.value, one.metric)
        if (written := behaviour(results, family, row, benchmark)) is not None:
            yield Comparison(SHARE, family, benchmark, row.name, 100 * written.unreadable.value, UNREADABLE)
            yield Comparison(SHARE, family, benchmark, row.name, 100 * written.cut.value, CUT)
    for variant in results.variants():
        if (robustness := results.robustness(family, row, variant)) is not None:
            yield Comparison(ROBUSTNESS, family, variant, row.name, 100 * robustness.drop.value)


def sweep_steps(results: Results) -> list[dict[str, float]]:
    """The α curves as steps of the summary, ascending: `alpha`, and accuracies in per cent by their `curve_name`."""
    steps: dict[float, dict[str, float]] = {}
    for sweep in results.sweeps():
        for alpha, row in sweep.points:
            for family in results.families:
                for benchmark in results.plain():
                    if (cell := results.cell(family, row, benchmark)) is not None:
                        name = curve_name(sweep, family, benchmark)
                        steps.setdefault(alpha, {"alpha": alpha})[name] = 100 * cell.mean
    return [steps[alpha] for alpha in sorted(steps)]


def curve_name(sweep: Sweep, family: str, benchmark: str) -> str:
    """`sweep/<family>/<benchmark>`, with the sweep's name after it where it has one."""
    return "/".join(filter(None, ("sweep", family, benchmark, sweep.name)))


def sweep_rows(results: Results) -> list[list[str | float | None]]:
    """The lines of the table over α: sweep, family, benchmark, α, score, standard error, mean answer length."""
    rows: list[list[str | float | None]] = []
    for sweep in results.sweeps():
        for alpha, row in sweep.points:
            for name in row.members:
                for place, cell in results.cells.items():
                    if place.condition == name and cell.record is not None:
                        m = cell.record.metrics
                        facts = [m["score"], m["stderr"], m["mean_tokens"]]
                        rows.append([sweep.name, place.family, place.benchmark, alpha, *facts])
    return rows


def figures(config: Config) -> dict[str, Path]:
    """The rendered figures by the names under which the summary logs them."""
    return {f"figures/{path.stem}": path for path in rendered(config, "*.png")}


def rendered(config: Config, *patterns: str) -> list[Path]:
    """The rendered tables (`*.md`) and figures (`*.png`) that the summary logs."""
    out = Path(config.tables) / config.name
    return sorted(path for pattern in patterns or ("*.md", "*.png") for path in out.glob(pattern))
