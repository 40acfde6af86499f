"""The figures of a run from the records alone, for the page (SVG), for print (PDF) and as PNG.

    drawn = render(results, out)

gains (a heat map of differences), forest (the same with their intervals), alpha_sweep (differences along α), robustness
(gains on plain against perturbed documents), form (answers in steps), geometry (norm of v by layer and module) pairs (the gains of several donor pairs) and
authors (ours beside the authors' own).
Each is drawn once as a module's `draw` says, wide for print and for the page, and again narrow for a phone. Every
series has its own marker or line beside its colour. The same records give the same bytes. A figure without data is not
drawn, and an older one is removed.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.analysis.results import Results
from pipeline.files import write_file
from pipeline.report.figures import alpha_sweep, authors, forest, form, gains, geometry, pairs, robustness
from pipeline.report.figures.panels import BLUE, GRID, INK, NARROW, PAPER, QUIET, STYLE, WIDE, Layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[Results, Layout], "Figure | None"]
FIGURES: Mapping[str, Draw] = {
    "gains": gains.draw,
    "forest": forest.draw,
    "alpha_sweep": alpha_sweep.draw,
    "robustness": robustness.draw,
    "form": form.draw,
    "geometry": geometry.draw,
    "pairs": pairs.draw,
    "authors": authors.draw,
}
_FORMER = ("length",)  # figures of earlier versions, removed where they are found
_SUFFIXES = ("png", "pdf", "svg")
# Colours that follow the page, each with its own for a dark one.
_FOLLOWING = {
    INK: ("ink", "#e4e6ea"),
    PAPER: ("paper", "#14171b"),
    GRID: ("grid", "#343a42"),
    QUIET: ("quiet", "#a2aab5"),
    BLUE: ("blue", "#3f9fd8"),
}


@dataclass(frozen=True)
class Drawn:
    """A figure: its files, and the drawings that the page shows."""

    name: str
    paths: tuple[Path, ...]  # PNG, PDF, SVG
    wide: bytes  # SVG
    narrow: bytes


def render(results: Results, out: Path) -> list[Drawn]:
    """Write every figure that the run has data for."""
    _remove([out / f"{name}.{suffix}" for name in _FORMER for suffix in _SUFFIXES])
    return write({name: partial(draw, results) for name, draw in FIGURES.items()}, out)


def write(pictures: Mapping[str, Callable[[Layout], "Figure | None"]], out: Path) -> list[Drawn]:
    """Write those of these figures that have data, and remove older files of the others."""
    import matplotlib
    from matplotlib.backends import backend_agg, backend_pdf, backend_svg  # noqa: F401  (a part of the import that takes long)

    drawn = []
    defaults: Any = matplotlib.rcParamsDefault  # not the reader's own style
    with matplotlib.rc_context(defaults | STYLE):
        for name, picture in pictures.items():
            paths = tuple(out / f"{name}.{suffix}" for suffix in _SUFFIXES)
            figure = picture(WIDE)
            if figure is None:
                _remove(paths)
                continue
            files = _saved(figure)
            for path, data in zip(paths, files, strict=True):
                write_file(path, data)
            narrow = picture(NARROW)
            assert narrow is not None, f"{name} is drawn wide and not narrow"
            _lay_out(narrow)
            drawn.append(Drawn(name, paths, files[-1], _svg(narrow)))
    return drawn


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _saved(figure: "Figure") -> tuple[bytes, bytes, bytes]:
    """The figure as PNG, PDF and SVG, without anything that differs from one time to the next."""
    _lay_out(figure)
    png, pdf = BytesIO(), BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    undated: Any = {"CreationDate": None, "Producer": None, "Creator": None}
    figure.savefig(pdf, format="pdf", metadata=undated)
    return png.getvalue(), pdf.getvalue(), _svg(figure)


def _lay_out(figure: "Figure") -> None:
    """Give everything its place, once for all files: a figure that still has a layout engine is drawn twice for each."""
    from matplotlib import rcParams

    engine = figure.get_layout_engine()
    assert engine is not None, "figures are made with a layout"
    figure.set_dpi(rcParams["savefig.dpi"])
    engine.execute(figure)
    figure.set_layout_engine(None)


def _svg(figure: "Figure") -> bytes:
    """The figure as SVG whose lines and texts follow a page's light or dark colours."""
    made = BytesIO()
    figure.savefig(made, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = re.sub(
        r"<!--.*?-->|<\?xml[^>]*>|<!DOCTYPE[^>]*>|<metadata>.*?</metadata>",
        "",
        made.getvalue().decode(),
        flags=re.DOTALL,
    )
    for colour, (name, _) in _FOLLOWING.items():
        text = text.replace(colour.lower(), f"var(--{name})")
    light = "".join(f"--{name}:{colour};" for colour, (name, _) in _FOLLOWING.items())
    dark = "".join(f"--{name}:{colour};" for name, colour in _FOLLOWING.values())
    style = f"<style>svg{{{light}fill:var(--ink)}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    return re.sub(r"(<svg[^>]*>)", lambda found: found[1] + style, text.strip(), count=1).encode()
