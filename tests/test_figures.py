"""Figures from records: what is drawn is what the tables say, and drawing again gives the same bytes."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.analysis import results as grid
from pipeline.report import figures, tables
from tests import synthetic

MAIN = {name: c for name, c in synthetic.CONDITIONS.items() if c["role"] == "main"}


def test_every_figure_is_drawn_as_png_and_pdf_with_the_same_bytes_again(tmp_path: Path) -> None:
    results = tmp_path / "results"
    families = {"micro": {"label": "micro", "geometry": synthetic.write_geometry(results)}}
    run = synthetic.write_run(results, families=families, documents=30)
    first, second = (figures.render(run, results, tmp_path / folder) for folder in "ab")
    names = ("alpha_sweep", "forest", "geometry", "length", "robustness")
    assert [path.name for path in first] == [
        f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")
    ]
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF"}
    assert all(path.read_bytes().startswith(starts[path.suffix]) for path in first)
    digests = [[hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] for paths in (first, second)]
    assert digests[0] == digests[1]


def test_alpha_curve_and_band_are_the_table_s_numbers(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path, benchmarks={"gsm8k": {"label": "G"}})
    held = grid.load(run, tmp_path)
    figure = figures.alpha_sweep(held)
    assert figure is not None
    (axes,) = figure.axes
    curve = next(line for line in axes.lines if line.get_label() == "target + α·v")
    data = tables.alpha_sweep(held).data
    np.testing.assert_allclose(np.asarray(curve.get_xdata()), [row["alpha"] for row in data])
    np.testing.assert_allclose(np.asarray(curve.get_ydata()), [row["value"] for row in data])
    band = axes.collections[0].get_paths()[0].get_extents()
    assert band.ymin == pytest.approx(min(row["low"] for row in data))
    assert band.ymax == pytest.approx(max(row["high"] for row in data))


def test_every_family_and_benchmark_has_its_panel(tmp_path: Path) -> None:
    families = {name: {"label": name} for name in ("one", "two")}
    run = synthetic.write_run(tmp_path, families=families, documents=20)
    figure = figures.alpha_sweep(grid.load(run, tmp_path))
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"{f}\n{b}" for f in families for b in ("GSM8K form", "SciQ form", "BBH form")]


def test_series_differ_without_their_colours(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path, benchmarks={"gsm8k": {"label": "G"}})
    figure = figures.length(grid.load(run, tmp_path))
    assert figure is not None
    bars = [bar for bar in figure.axes[0].containers if bar.get_label() != "_nolegend_"]
    markers = [bar.lines[0].get_marker() for bar in bars]  # type: ignore[attr-defined]
    assert len(markers) > 8
    assert len(set(markers)) == len(markers)


def test_a_figure_without_data_is_not_drawn_and_an_older_one_goes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "alpha_sweep.png").write_bytes(b"old")
    run = synthetic.write_run(tmp_path, conditions=MAIN, benchmarks={"gsm8k": {"label": "G"}}, documents=10)
    drawn = {path.stem for path in figures.render(run, tmp_path, out)}
    assert drawn == {"forest", "length"}
    assert not (out / "alpha_sweep.png").exists()


def test_a_run_without_records_draws_nothing_and_does_not_stop(tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "somewhere", documents=5)
    assert figures.render(run, tmp_path, tmp_path / "out") == []
    assert len(tables.render(run, tmp_path, tmp_path / "out")) == 18
