"""Figures from records: what is drawn is what the tables say, and drawing again gives the same bytes."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.analysis.results import read_results
from pipeline.report import figures
from pipeline.report.render import render
from pipeline.report.tables import alpha_sweep
from tests import synthetic
from tests.synthetic import MAIN, benchmark, family
from tests.test_tables import evaluated


def test_every_figure_is_drawn_as_png_and_pdf_with_the_same_bytes_again(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    families = {"micro": family("micro", geometry=synthetic.write_geometry(folder))}
    results = evaluated(folder, families=families, documents=30)
    first, second = (figures.render(results, tmp_path / out) for out in "ab")
    names = ("alpha_sweep", "forest", "geometry", "length", "robustness")
    assert [path.name for path in first] == [
        f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")
    ]
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF"}
    assert all(path.read_bytes().startswith(starts[path.suffix]) for path in first)
    digests = [[hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] for paths in (first, second)]
    assert digests[0] == digests[1]


def test_alpha_curve_and_band_are_the_table_s_numbers(tmp_path: Path) -> None:
    results = evaluated(tmp_path, benchmarks={"gsm8k": benchmark("G")})
    figure = figures.alpha_sweep(results)
    assert figure is not None
    (axes,) = figure.axes
    curve = next(line for line in axes.lines if line.get_label() == "target + α·v")
    data = alpha_sweep.table(results).data
    np.testing.assert_allclose(np.asarray(curve.get_xdata()), [row["alpha"] for row in data])
    np.testing.assert_allclose(np.asarray(curve.get_ydata()), [row["value"] for row in data])
    band = axes.collections[0].get_paths()[0].get_extents()
    assert band.ymin == pytest.approx(min(row["low"] for row in data))
    assert band.ymax == pytest.approx(max(row["high"] for row in data))


def test_every_sweep_is_a_curve_of_its_own(tmp_path: Path) -> None:
    of_mlp = {f"mlp={a!r}": synthetic.swept(a, "mlp", part={"modules": ["mlp"]}) for a in (0.5, 2.0)}
    results = evaluated(
        tmp_path, conditions=synthetic.CONDITIONS | of_mlp, benchmarks={"gsm8k": benchmark("G")}
    )
    for draw, names in (
        (figures.alpha_sweep, ("α", "mlp, α")),
        (figures.length, ("sweep: α", "sweep: mlp, α")),
    ):
        figure = draw(results)
        assert figure is not None
        curves = {str(line.get_label()): line for line in figure.axes[0].lines}
        whole, part = (curves[name] for name in names)
        assert len(np.asarray(whole.get_xdata())) == 9
        assert len(np.asarray(part.get_xdata())) == 3, "the target is its α = 0"
        looks = [(line.get_marker(), line.get_linestyle()) for line in (whole, part)]
        assert looks[0] != looks[1], "they differ without their colours"


def test_every_family_and_benchmark_has_its_panel(tmp_path: Path) -> None:
    families = {name: family(name) for name in ("one", "two")}
    figure = figures.alpha_sweep(evaluated(tmp_path, families=families, documents=20))
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"{f}\n{b}" for f in families for b in ("GSM8K form", "SciQ form", "BBH form")]


def test_series_differ_without_their_colours(tmp_path: Path) -> None:
    figure = figures.length(evaluated(tmp_path, benchmarks={"gsm8k": benchmark("G")}))
    assert figure is not None
    bars = [bar for bar in figure.axes[0].containers if bar.get_label() != "_nolegend_"]
    markers = [bar.lines[0].get_marker() for bar in bars]  # type: ignore[attr-defined]
    assert len(markers) > 8
    assert len(set(markers)) == len(markers)


def test_a_figure_without_data_is_not_drawn_and_an_older_one_goes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "alpha_sweep.png").write_bytes(b"old")
    results = evaluated(tmp_path, conditions=MAIN, benchmarks={"gsm8k": benchmark("G")}, documents=10)
    drawn = {path.stem for path in figures.render(results, out)}
    assert drawn == {"forest", "length"}
    assert not (out / "alpha_sweep.png").exists()


def test_a_run_without_records_draws_nothing_and_does_not_stop(tmp_path: Path) -> None:
    made = synthetic.write_run(tmp_path / "somewhere", documents=5)
    files = render(read_results(made, tmp_path), tmp_path / "out")
    assert (files["figures"], len(files["tables"])) == ([], 18)
