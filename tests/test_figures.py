"""Figures from records: what is drawn is what the tables say, legible at every width, with the same bytes again."""

import hashlib
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.analysis.authors import beside, parse
from pipeline.analysis.pairs import pairs as pairs_of
from pipeline.analysis.results import Results, read_results
from pipeline.report.figures import (
    alpha_sweep,
    authors,
    draw,
    forest,
    gains,
    geometry,
    pairs,
    panels,
    robustness,
)
from pipeline.report.figures.panels import NARROW, WIDE, Layout
from pipeline.report.gains import gains as gains_of
from pipeline.report.numbers import signed
from pipeline.report.render import render
from tests import synthetic
from tests.synthetic import MAIN, benchmark, family
from tests.test_pairs import LOG, of_families
from tests.test_tables import evaluated

NAMES = tuple(name for name in draw.FIGURES if name not in ("pairs", "authors"))  # of an ordinary run


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A run with data for every figure; −v ruins the model, so that differences reach far."""

    def skill(name: str, _: str) -> float:
        return 0.02 if name == "minus_vector" else synthetic.SKILL.get(name, 0.5)

    folder = tmp_path_factory.mktemp("figures") / "results"
    families = {"micro": family("micro", geometry=synthetic.write_geometry(folder))}
    return evaluated(folder, families=families, documents=40, skill=skill)


@pytest.fixture(scope="module")
def drawn(everything: Results, tmp_path_factory: pytest.TempPathFactory) -> list[draw.Drawn]:
    return draw.render(everything, tmp_path_factory.mktemp("drawn"))


def test_every_figure_is_made_for_page_print_and_slides_with_the_same_bytes_again(
    everything: Results, drawn: list[draw.Drawn], tmp_path: Path
) -> None:
    first, second = drawn, draw.render(everything, tmp_path)
    assert [figure.name for figure in first] == list(NAMES)
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<svg"}
    for figure in first:
        assert [path.suffix for path in figure.paths] == list(starts)
        assert all(path.read_bytes().startswith(starts[path.suffix]) for path in figure.paths)
    digests = [
        [hashlib.sha256(path.read_bytes()).hexdigest() for figure in figures for path in figure.paths]
        + [hashlib.sha256(figure.narrow).hexdigest() for figure in figures]
        for figures in (first, second)
    ]
    assert digests[0] == digests[1]


def test_a_drawing_for_the_page_is_plain_svg_that_follows_its_colours(drawn: list[draw.Drawn]) -> None:
    for figure in drawn:
        for svg in (figure.wide, figure.narrow):
            tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}
            assert tags <= {
                "svg",
                "style",
                "defs",
                "g",
                "path",
                "use",
                "clipPath",
                "rect",
                "pattern",
                "image",
            }
            text = svg.decode()
            assert "prefers-color-scheme:dark" in text
            assert "<!--" not in text, "labels are data, and comments would hold them"
            body = text.split("</style>", 1)[1]
            assert not any(colour.lower() in body for colour in (panels.INK, panels.PAPER, panels.QUIET))


@pytest.mark.parametrize("layout", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_overprints_and_nothing_is_cut(everything: Results, name: str, layout: Layout) -> None:
    check_texts(draw.FIGURES[name], everything, layout)


@pytest.mark.parametrize("layout", [WIDE, NARROW], ids=["wide", "narrow"])
def test_pairs_show_each_gain_and_their_mean(tmp_path: Path, layout: Layout) -> None:
    results = of_families(tmp_path, {"a": 0.45, "b": 0.5, "c": 0.9})
    figure = pairs.draw(results, layout)
    assert figure is not None
    (found,) = pairs_of(results)
    drawn = [bar.lines[0] for bar in figure.axes[0].containers]  # type: ignore[attr-defined]
    values = [float(np.asarray(line.get_xdata())[0]) for line in drawn]
    assert values == pytest.approx(
        [100 * one.value for one in (*(e.gain for e in found.effects), found.mean)]
    )
    filled = [line.get_markerfacecolor() != panels.PAPER for line in drawn[:-1]]
    assert filled == [effect.p_holm < 0.05 for effect in found.effects]
    check_texts(pairs.draw, results, layout)


@pytest.mark.parametrize("layout", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_authors_gains_stand_beside_ours(tmp_path: Path, layout: Layout) -> None:
    results = evaluated(tmp_path, benchmarks={"math500": benchmark("MATH-500")}, documents=100)
    found = beside(results, parse(LOG))
    figure = authors.picture(results, found, layout)
    assert figure is not None
    gains_of_both = [one for one in found if one.gain is not None]
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    theirs = [float(np.asarray(line.get_xdata())[0]) for line in crosses]
    assert theirs == pytest.approx([100 * one.gain_theirs for one in gains_of_both if one.gain_theirs])
    assert len(figure.axes[0].containers) == len(gains_of_both) >= 4
    check_texts(lambda results, layout: authors.picture(results, found, layout), results, layout)
    assert authors.draw(evaluated(tmp_path / "other", conditions=MAIN, documents=5), layout) is None


@pytest.fixture(scope="module")
def unwieldy(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Long labels of wide letters everywhere, and α over six orders of magnitude."""
    long = "W" * 80
    conditions = {name: synthetic.CONDITIONS[name] for name in ("baseline", "sft", "vector", "minus_vector")}
    conditions = {name: replace(entry, label=f"{entry.label} {long}") for name, entry in conditions.items()}
    conditions |= {f"alpha={a!r}": synthetic.swept(a) for a in (0.0, 1e-3, 1e-2, 0.1, 1.0, 1e3, -1e3)}
    benchmarks = {
        name: replace(synthetic.BENCHMARKS[name], label=f"{name} {long}")
        for name in ("gsm8k", "gsm8k@larger_numbers", "sciq")
    }
    families = {name: family(f"{name} {long}", published_size="1.5B") for name in ("one", "two")}
    folder = tmp_path_factory.mktemp("unwieldy")
    return evaluated(folder, conditions=conditions, benchmarks=benchmarks, families=families, documents=12)


@pytest.mark.parametrize("layout", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", ["gains", "forest", "alpha_sweep", "robustness", "form", "pairs"])
def test_labels_of_any_length_leave_room_for_what_is_drawn(
    unwieldy: Results, name: str, layout: Layout
) -> None:
    check_texts(draw.FIGURES[name], unwieldy, layout)
    figure = draw.FIGURES[name](unwieldy, layout)
    assert figure is not None
    figure.draw_without_rendering()
    assert min(ax.get_window_extent().width for ax in figure.axes) > 1.1 * figure.dpi


@pytest.mark.parametrize("layout", [WIDE, NARROW], ids=["wide", "narrow"])
def test_points_of_a_sweep_over_six_orders_of_magnitude_are_told_apart(
    unwieldy: Results, layout: Layout
) -> None:
    figure = alpha_sweep.draw(unwieldy, layout)
    assert figure is not None
    figure.draw_without_rendering()
    curve = next(line for line in figure.axes[0].lines if line.get_label() == "target + α·v")
    alphas = np.asarray(curve.get_xdata())
    assert list(alphas) == [-1000, -1, 0, 0.001, 0.01, 0.1, 1, 1000]
    drawn = figure.axes[0].transData.transform(np.column_stack([alphas, np.zeros_like(alphas)]))[:, 0]
    assert np.diff(drawn).min() > 4, "pixels"
    assert "α compressed beyond ±0.001" in figure.legends[0].get_title().get_text()


def check_texts(picture: draw.Draw, results: Results, layout: Layout) -> None:
    """No text of a figure lies on another or beyond its edge."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    defaults: Any = matplotlib.rcParamsDefault
    with matplotlib.rc_context(defaults | panels.STYLE):
        figure = picture(results, layout)
        assert figure is not None
        assert figure.get_figwidth() <= layout.width
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
        beyond = {  # names of ticks that lie outside of their axis are not drawn
            name
            for ax in figure.axes
            for axis in (ax.xaxis, ax.yaxis)
            for tick in axis.get_major_ticks()
            for name in (tick.label1, tick.label2)
            if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
        }
        # Of a slanted text the box is larger than the text.
        straight = [text for text in texts if text not in beyond and text.get_rotation() % 90 == 0]
        shown = [(text.get_text(), text.get_window_extent(renderer)) for text in straight]
        assert len(shown) > 4
        whole = figure.bbox
        for text, box in shown:
            assert box.x0 >= -1 and box.x1 <= whole.x1 + 1, f"{text!r} is cut"
            assert box.y0 >= -1 and box.y1 <= whole.y1 + 1, f"{text!r} is cut"
        for (one, a), (other, b) in combinations(shown, 2):
            across = min(a.x1, b.x1) - max(a.x0, b.x0)
            down = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert across < 1 or down < 1, f"{one!r} and {other!r} overprint"


def test_panels_stack_on_a_phone(everything: Results) -> None:
    for layout, across in ((WIDE, 3), (NARROW, 1)):
        figure = forest.draw(everything, layout)
        assert figure is not None
        columns = {ax.get_subplotspec().colspan.start for ax in figure.axes}  # type: ignore[union-attr]
        assert len(columns) == across
    assert NARROW.width * 96 <= 390


def test_alpha_curve_is_the_paired_difference_to_alpha_zero(everything: Results) -> None:
    figure = alpha_sweep.draw(everything, WIDE)
    assert figure is not None
    (sweep,) = everything.sweeps()
    zero = sweep.at(0.0)
    assert zero is not None
    for axes, name in zip(figure.axes, everything.plain(), strict=True):
        curve = next(line for line in axes.lines if line.get_label() == "target + α·v")
        drawn = dict(zip(np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata()), strict=True))
        assert list(drawn) == [alpha for alpha, _ in sweep.points]
        for alpha, row in sweep.points:
            difference = everything.difference("micro", row, zero, name)
            assert drawn[alpha] == pytest.approx(100 * difference.value if difference else 0.0)
    limits = {axes.get_ylim() for axes in figure.axes}
    assert len(limits) == 1, "one axis for all panels"


def test_random_vectors_are_a_band_from_the_lowest_to_the_highest_end(everything: Results) -> None:
    figure = alpha_sweep.draw(everything, WIDE)
    assert figure is not None
    for axes, name in zip(figure.axes, everything.plain(), strict=True):
        (band,) = [p for p in axes.patches if str(p.get_label()).startswith("random")]
        rows = [everything.row("random", sign) for sign in (1, -1)]
        found = [everything.difference("micro", row, everything.reference, name) for row in rows if row]
        box: Any = band.get_path().get_extents(band.get_patch_transform())
        assert box.ymin == pytest.approx(min(100 * d.low for d in found if d))
        assert box.ymax == pytest.approx(max(100 * d.high for d in found if d))


def test_every_sweep_is_a_curve_of_its_own(tmp_path: Path) -> None:
    of_mlp = {f"mlp={a!r}": synthetic.swept(a, "mlp", part={"modules": ["mlp"]}) for a in (0.5, 2.0)}
    results = evaluated(
        tmp_path, conditions=synthetic.CONDITIONS | of_mlp, benchmarks={"gsm8k": benchmark("G")}
    )
    figure = alpha_sweep.draw(results, WIDE)
    assert figure is not None
    curves = {str(line.get_label()): line for line in figure.axes[0].lines}
    whole, part = (curves[name] for name in ("α", "mlp, α"))
    assert len(np.asarray(whole.get_xdata())) == 9
    assert len(np.asarray(part.get_xdata())) == 3, "the target is its α = 0"
    looks = [(line.get_marker(), line.get_linestyle()) for line in (whole, part)]
    assert all(a != b for a, b in zip(*looks, strict=True)), "they differ without their colours"


def test_every_family_and_benchmark_has_its_panel(tmp_path: Path) -> None:
    families = {name: family(name) for name in ("one", "two")}
    figure = alpha_sweep.draw(evaluated(tmp_path, families=families, documents=20), WIDE)
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"{f}\n{b}" for f in families for b in ("GSM8K form", "SciQ form", "BBH form")]


def test_the_heat_map_says_every_gain_and_hatches_what_is_not_significant(everything: Results) -> None:
    figure = gains.draw(everything, WIDE)
    assert figure is not None
    found = gains_of(everything)
    texts = [text.get_text() for text in figure.axes[0].texts]
    compared = [found.at("micro", row, name) for row in found.rows for name in found.benchmarks]
    assert texts == [signed(one.difference.value) for one in compared if one]
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert len(hatched) == sum(not one.is_significant for one in compared if one)
    assert 0 < len(hatched) < len(texts)
    assert {title: [row.name for row in rows] for title, rows in found.groups.items()} == {
        "with v": ["vector", "vector_think", "minus_vector"],
        "donors": ["sft", "grpo", "grpo_think"],
        "controls": ["baseline_think", "random-s0", "minus_random-s0"],
    }


def test_robustness_sets_the_plain_gain_beside_the_perturbed_one(everything: Results) -> None:
    figure = robustness.draw(everything, WIDE)
    assert figure is not None
    drawn = [bar.lines[0] for bar in figure.axes[0].containers]  # type: ignore[attr-defined]
    values = [float(np.asarray(line.get_xdata())[0]) for line in drawn]
    expected = []
    for row in everything.rows("main")[1:]:
        found = everything.robustness("micro", row, "gsm8k@larger_numbers")
        assert found and found.gain_plain and found.gain
        expected += [100 * found.gain_plain.value, 100 * found.gain.value]
    assert values == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.03906, "0.0391"),
        (0.5, "0.500"),
        (1.114, "1.11"),
        (9.999, "10.0"),
        (12.34, "12.3"),
        (1234.4, "1234"),
        (0.0, "0"),
    ],
)
def test_geometry_is_written_with_three_significant_digits(value: float, text: str) -> None:
    assert geometry.three_digits(value) == text


def test_a_model_of_many_layers_has_its_numbers_too(tmp_path: Path) -> None:
    measured = synthetic.write_geometry(tmp_path, layers=28)
    results = evaluated(
        tmp_path, families={"f": family("f", geometry=measured)}, conditions=MAIN, documents=5
    )
    figure = geometry.draw(results, WIDE)
    assert figure is not None
    assert len(figure.axes[0].texts) == 2 * 28
    assert figure.get_figwidth() <= WIDE.width


# Machado, Oliveira and Fernandes 2009, in linear RGB, for complete loss
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


@pytest.mark.parametrize("kind", BLIND)
def test_gains_and_losses_differ_to_the_colour_blind(kind: str) -> None:
    def seen(colour: str) -> Any:
        linear = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]) ** 2.2
        return np.clip(np.array(BLIND[kind]) @ linear, 0, 1) ** (1 / 2.2)

    for points in (2.0, 5.0, 20.0):
        gain, loss = (gains.shade(sign * points)[0] for sign in (1, -1))
        assert np.linalg.norm(seen(gain) - seen(loss)) > 0.15
    for one, other in combinations((panels.BLUE, panels.VERMILION, panels.PURPLE, panels.GREEN), 2):
        assert np.linalg.norm(seen(one) - seen(other)) > 0.1


def test_a_figure_without_data_is_not_drawn_and_an_older_one_goes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("alpha_sweep.png", "length.pdf"):
        (out / name).write_bytes(b"old")
    results = evaluated(tmp_path, conditions=MAIN, benchmarks={"gsm8k": benchmark("G")}, documents=10)
    assert {figure.name for figure in draw.render(results, out)} == {"gains", "forest", "form"}
    assert {path.stem for path in out.iterdir()} == {"gains", "forest", "form"}


def test_a_run_without_records_draws_nothing_and_does_not_stop(tmp_path: Path) -> None:
    made = synthetic.write_run(tmp_path / "somewhere", documents=5)
    files = render(read_results(made, tmp_path), tmp_path / "out")
    assert (files["figures"], len(files["tables"])) == ([], 24)
