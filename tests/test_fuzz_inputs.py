"""What a user types and what a run finds on disk, spoilt: one clear line or a sound result, and nothing foreign touched.

    make fuzz                # ten minutes for each
    FUZZ_SECONDS=60 python -m pytest tests/test_fuzz_inputs.py -s

Covers configurations (overrides of every key, and files of one's own), whole runs with an odd record or manifest that is
sealed as a sound one is, and paths to write to, with `..` and links.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.analysis.results import read_results
from pipeline.config.compose import compose
from pipeline.config.schema import Config, plain
from pipeline.errors import UserError
from pipeline.files import digest, sha256
from pipeline.manifest import manifest_path, read_manifest
from pipeline.report.figures import draw
from pipeline.report.render import render
from pipeline.report.terminal import summary, verdict_lines
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.steer import STEERING, apply
from tests import synthetic, tiny
from tests.test_fuzz import SECONDS, exchanged, fuzz, swaps, values

# Configurations


def paths_of(node: Any, before: str = "") -> Iterator[str]:
    """The dotted path of every value."""
    for key, value in node.items():
        yield before + key
        if isinstance(value, dict):
            yield from paths_of(value, f"{before}{key}.")


KEYS = sorted(
    {
        *paths_of(plain(compose([]))),
        *("conditions.new.label", "conditions.new.terms", "families.new.target.id"),
    }
)
GROUPS = [
    "experiment",
    "suite",
    "conditions",
    "engine",
    "preset",
    "family",
    "benchmark",
    "tracking",
    "recipe",
    "hydra",
]
TEXTS = [
    "",
    "null",
    "true",
    "inf",
    "-inf",
    "nan",
    "1e39",
    "-1",
    "0",
    "0.5",
    "99999999999999999999",
    "''",
    "a,b",
    "${limit}",
]
TEXTS += [
    "${name}",
    "${oc.env:HOME}",
    "[",
    "]",
    "{",
    "[]",
    "{}",
    "[[[]]]",
    "[1,x]",
    "{a: 1}",
    "{label: x}",
    "../x",
    "/",
    "~",
]
TEXTS += [
    "x" * 300,
    "é",
    "'\x1b[31m'",
    "'a\nb'",
    "\u202e",
    "\\",
    "'",
    '"',
    "#",
    "=",
    "a=b",
    "gsm8k",
    "[gsm8k]",
    "vector",
]
TEXTS += [
    "[{alpha: 1, part: {layers: [0, 99]}}]",
    "[{family: micro}]",
    "{modules: [mlp]}",
    "micro",
    "cpu",
    "interval(1,2)",
]
overrides = st.one_of(
    st.tuples(st.sampled_from(["", "", "+", "++", "~"]), st.sampled_from(KEYS), st.sampled_from(TEXTS)).map(
        lambda parts: f"{parts[0]}{parts[1]}={parts[2]}"
    ),
    st.tuples(st.sampled_from(["", "+", "~"]), st.sampled_from(GROUPS), st.sampled_from(TEXTS)).map(
        lambda parts: f"{parts[0]}{parts[1]}={parts[2]}"
    ),
    st.builds("{}@{}={}".format, st.sampled_from(GROUPS), st.sampled_from(KEYS), st.sampled_from(TEXTS)),
    st.tuples(st.sampled_from(KEYS), st.integers(-(2**70), 2**70) | st.floats()).map(
        lambda p: f"{p[0]}={p[1]}"
    ),
    st.text(max_size=12),
)


def is_composed_or_one_line(given_: list[str]) -> None:
    try:
        assert isinstance(compose(given_), Config)
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error), str(error)


def test_overrides_compose_or_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @given(st.lists(overrides, min_size=1, max_size=3))
    def overrides_compose_or_are_one_line(chosen: list[str]) -> None:
        is_composed_or_one_line(chosen)

    fuzz(overrides_compose_or_are_one_line, capsys, batch=25)


contents = st.dictionaries(
    st.sampled_from([*{key.split(".")[0] for key in KEYS}, "defaults", "hydra", ""]),
    values | st.dictionaries(st.sampled_from([key.split(".")[-1] for key in KEYS]), values, max_size=2),
    max_size=2,
)
heads = st.sampled_from(
    ["", "# @package _global_\n", "# @package ..\n", "# @package x y\n", "%YAML 9.9\n---\n", "\ufeff"]
)
tails = st.sampled_from(
    ["", "x: &a [*a]\n", "<<: *b\n", "? [1]\n: 2\n", "!!python/name:os.system\n", "\0", "limit: !!int x\n"]
)


def test_a_file_of_ones_own_composes_or_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment").mkdir()
    path = tmp_path / "experiment" / "mine.yaml"

    @given(contents, heads, tails)
    def a_file_of_ones_own_composes_or_is_one_line(content: Any, head: str, tail: str) -> None:
        text = yaml.safe_dump(content, allow_unicode=True) if content else ""
        path.write_text(head + text + tail, encoding="utf-8", errors="replace")
        is_composed_or_one_line(["experiment=mine", f"hydra.searchpath=[{tmp_path}]"])

    fuzz(a_file_of_ones_own_composes_or_is_one_line, capsys, batch=25)


# Whole runs, one part of which is not what a run of ours writes


def test_one_odd_record_or_manifest_never_stops_the_render(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {name: synthetic.CONDITIONS[name] for name in ("baseline", "vector", "random-s0", "alpha=0.5")}
    benchmarks = {name: synthetic.BENCHMARKS[name] for name in ("gsm8k", "gsm8k@larger_numbers", "bbh")}
    geometry = synthetic.write_geometry(tmp_path / "results")
    families = {"micro": synthetic.family("micro", geometry=str(tmp_path / geometry))}
    manifest = synthetic.write_run(
        tmp_path / "results", conditions=few, families=families, benchmarks=benchmarks, documents=6
    )
    path = manifest_path(tmp_path / "results", manifest.experiment)
    cell = tmp_path / "results" / "cells" / manifest.cells[1].key
    files = {"manifest": path, "geometry": tmp_path / geometry, "record": cell / "record.json"}
    files["samples"] = cell / "samples.jsonl"
    sound = {what: file.read_bytes() for what, file in files.items()}
    if not SECONDS:
        monkeypatch.setattr(draw, "render", lambda results, out: [])

    def seal(what: str, changes: Any) -> None:
        if what == "samples":
            rows = exchanged([json.loads(line) for line in sound[what].splitlines()], changes)
            lines = "".join(
                json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows])
            ).encode()
            files[what].write_bytes(lines)
            content = json.loads(sound["record"])
            content["samples"]["sha256"] = sha256(lines)
            what = "record"
        else:
            content = exchanged(json.loads(sound[what]), changes)
        if isinstance(content, dict) and what != "geometry":
            content.pop("sha256", None)
            content["sha256"] = digest(content)
        files[what].write_text(json.dumps(content))

    @given(st.sampled_from(list(files)), swaps)
    @example("manifest", [(0, None, False)])
    def one_odd_record_or_manifest_never_stops_the_render(what: str, changes: Any) -> None:
        for name, raw in sound.items():
            files[name].write_bytes(raw)
        try:
            seal(what, changes)
        except ValueError:  # NaN has no digest
            return
        try:
            planned = read_manifest(path)
            results = read_results(planned, tmp_path / "results")
        except UserError:
            assert what == "manifest"
            return
        render(results, tmp_path / "out")
        summary(results)
        verdict_lines(results)
        if len(results.cells) < len(
            planned.cells
        ):  # cells that a sealed manifest leaves out were not planned
            assert results.problems

    fuzz(one_odd_record_or_manifest_never_stops_the_render, capsys)


# Paths to write to

NAMES = [
    "out",
    "precious",
    "model",
    "link",
    "away",
    "up",
    "dangling",
    "loop",
    "file",
    "..",
    ".",
    "new",
    "x" * 300,
    "\udc80",
]


def snapshot(folder: Path) -> dict[str, object]:
    """What is in a folder: the bytes of files, the targets of links."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
    return found


def test_no_path_leads_to_what_is_not_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "rows": 8}
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    tiny.write(place / "model", tiny.weights(tiny.config(**small), 0), **small, tokens=8)
    (place / "precious").mkdir()
    for file in (place / "precious" / "thesis", place / "file", tmp_path / "notes"):
        file.write_text("ten years")
    links = {"link": "precious", "away": "/", "up": "../..", "dangling": "nowhere", "loop": "loop"}
    for name, target in links.items():
        (place / name).symlink_to(target)
    target = Checkpoint.open(str(place / "model"))

    @given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5))
    @example(["new", "..", "precious"])
    @example(["new", "..", "model"])
    @example(["up", "a", "b", "link"])
    def no_path_leads_to_what_is_not_ours(parts: list[str]) -> None:
        out = place.joinpath(*parts)
        if not os.path.realpath(out).startswith(f"{tmp_path}{os.sep}"):
            return  # out of the folder that is looked at
        before = snapshot(tmp_path)
        try:
            written = apply(target, [], out)
        except (UserError, OSError, RuntimeError) as error:
            assert isinstance(error, UserError), f"{type(error).__name__}: {error}"
            assert snapshot(tmp_path) == before
            return
        assert (written / STEERING).is_file() and tmp_path in written.parents
        after = snapshot(tmp_path)
        assert {name: what for name, what in after.items() if name in before} == before
        inside = written.relative_to(tmp_path)
        new = [Path(name) for name in after if name not in before]
        assert all(path.is_relative_to(inside) or inside.is_relative_to(path) for path in new)
        for path in sorted(written.rglob("*"), reverse=True):
            path.unlink()
        written.rmdir()
        for folder in inside.parents:
            if str(folder) != "." and str(folder) not in before:
                (tmp_path / folder).rmdir()

    fuzz(no_path_leads_to_what_is_not_ours, capsys)
