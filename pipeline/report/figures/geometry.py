"""Heat map of ‖v‖ / ‖θ‖ in per cent by layer and kind of module, with three significant digits."""

from typing import TYPE_CHECKING

from pipeline.analysis.results import Results
from pipeline.analysis.vectors import geometry_of
from pipeline.errors import UserError
from pipeline.report.figures.fitting import short
from pipeline.report.figures.panels import ON_DARK, ON_LIGHT, Layout

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_CELLS = (
    (0.42, 7),
    (0.34, 6),
    (0.28, 5),
)  # inches across that a number takes at a size of type; the first that fits
_ROW = 0.2  # inches
_AROUND = {
    False: 2.4,
    True: 0.6,
}  # inches for the names of rows, and where there is room for the colours' scale


def draw(results: Results, layout: Layout) -> "Figure | None":
    """One panel for each family, below each other: layers across, on a phone down."""
    import numpy as np
    from matplotlib.figure import Figure

    found = {family: norms for family in results.families if (norms := _norms(results, family))}
    if not found:
        return None
    tables = {
        family: np.array(values).T if layout.is_narrow else np.array(values)
        for family, (values, *_) in found.items()
    }
    down, across = (max(table.shape[i] for table in tables.values()) for i in (0, 1))
    around = _AROUND[layout.is_narrow]
    fitting = [(cell, size) for cell, size in _CELLS if around + cell * across <= layout.width]
    cell, size = fitting[0] if fitting else _CELLS[-1]
    is_numbered = bool(fitting)
    width = min(layout.width, around + cell * across)
    figure = Figure(figsize=(width, len(found) * (1.1 + _ROW * down)), layout="constrained")
    axes = figure.subplots(len(found), 1, squeeze=False).ravel().tolist()
    for ax, (family, (_, modules, layers)) in zip(axes, found.items(), strict=True):
        table = tables[family]
        image = ax.imshow(table, aspect="auto", cmap="cividis", interpolation="nearest")
        ax.grid(visible=False)
        if is_numbered:
            middle = (np.nanmin(table) + np.nanmax(table)) / 2
            for (y, x), norm in np.ndenumerate(table):
                if not np.isnan(norm):
                    colour = ON_DARK if norm < middle else ON_LIGHT
                    ax.text(x, y, three_digits(norm), ha="center", va="center", fontsize=size, color=colour)
        names = [str(layer) for layer in layers]
        if layout.is_narrow:
            ax.set_xticks(range(len(modules)), modules, rotation=40, ha="right", rotation_mode="anchor")
            ax.set_yticks(range(len(names)), names)
            ax.set_ylabel("layer")
        else:
            ax.set_xticks(range(len(names)), names)
            ax.set_yticks(range(len(modules)), modules)
            ax.set_xlabel("layer")
        ax.tick_params(length=0, labelsize=8)
        ax.set_title(short(results.families[family].label, width - 0.4))
        if not (is_numbered and layout.is_narrow):
            figure.colorbar(image, ax=ax, label="‖v‖ / ‖θ‖, %")
    return figure


def three_digits(value: float) -> str:
    """A positive number with three significant digits, without an exponent."""
    import math

    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(float(f"{value:.2e}"))))
    return f"{value:.{decimals}f}"


def _norms(results: Results, family: str) -> "tuple[NDArray[np.float64], list[str], list[int]] | None":
    """‖v‖ / ‖θ‖ in per cent (modules, layers), NaN where there is none; the modules' and the layers' names."""
    import numpy as np

    try:
        cells = [cell for cell in geometry_of(results, family)["cells"] if "layer" in cell]
    except UserError:
        return None  # the geometry table says so
    if not cells:
        return None
    modules = list(dict.fromkeys(cell["module"] for cell in cells))
    layers = sorted({cell["layer"] for cell in cells})
    norms = np.full((len(modules), len(layers)), np.nan)
    for cell in cells:
        if cell["relative_norm"] is not None:
            norms[modules.index(cell["module"]), layers.index(cell["layer"])] = 100 * cell["relative_norm"]
    return norms, modules, layers
