"""Ours beside the authors' own public scores: the part `authors` of paper_tables/published.yaml.

    for one in beside(results):
        one.theirs.score, one.ours, one.less          accuracy, and ours less theirs
        one.gain_theirs, one.gain, one.gain_less      against Baseline of the same setting

A score of theirs is known without its answers, so it gets the sampling error of as many documents as ours. Both are
taken for independent, although they share documents: the intervals are wider than they need be.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import yaml

from pipeline.analysis import intervals
from pipeline.analysis.estimate import Difference, Estimate
from pipeline.analysis.judging import Ends, less, published_interval
from pipeline.analysis.published import PAPER_TABLES
from pipeline.analysis.results import REFERENCE, Results, Row


@dataclass(frozen=True)
class AuthorsFigure:
    """A score of the authors' log, in per cent; names are those of conf/ for experiment=authors."""

    family: str
    setting: str  # a key of `Authors.settings`
    benchmark: str
    condition: str
    score: float
    source: tuple[str, ...]  # letters of `Authors.sources`
    note: str | None = None


@dataclass(frozen=True)
class Authors:
    """What the authors published of their own experiments; empty where the file has no such part."""

    sources: dict[str, str]
    settings: dict[str, str]
    figures: tuple[AuthorsFigure, ...]


@dataclass(frozen=True)
class Beside:
    """One score of theirs beside ours under one prompt; fractions. `gain` is against Baseline, None for itself."""

    theirs: AuthorsFigure
    row: Row  # ours
    ours: Estimate
    less: Ends  # of ours less theirs
    gain: Difference | None
    gain_theirs: float | None
    gain_less: Ends | None


@lru_cache
def authors() -> Authors:
    data = yaml.safe_load((PAPER_TABLES / "published.yaml").read_text(encoding="utf-8")).get("authors")
    return parse(data or {"sources": {}, "settings": {}, "figures": []})


def parse(data: dict[str, object]) -> Authors:
    """The figures as they are written in published.yaml.

    Raises:
        TypeError: for a field that is missing or not known.
        ValueError: for a source or a setting that is not explained.
    """
    sources, settings, listed = (data[name] for name in ("sources", "settings", "figures"))
    assert isinstance(sources, dict) and isinstance(settings, dict) and isinstance(listed, list)
    figures = tuple(AuthorsFigure(**entry | {"source": tuple(entry["source"])}) for entry in listed)
    for figure in figures:
        if figure.setting not in settings or not set(figure.source) <= set(sources):
            raise ValueError(
                f"{figure.family}/{figure.benchmark}/{figure.condition}: its setting or source is not explained"
            )
    return Authors(sources, settings, figures)


def beside(results: Results, known: Authors | None = None) -> list[Beside]:
    """Every score of theirs that the run has a cell for, beside ours under each prompt, in their order."""
    figures = (known or authors()).figures
    scores = {(f.family, f.setting, f.benchmark, f.condition): f.score for f in figures}
    found = []
    for figure in figures:
        if figure.family not in results.families or figure.benchmark not in results.benchmarks:
            continue
        theirs = scores.get((figure.family, figure.setting, figure.benchmark, REFERENCE))
        for row in _rows(results, figure.condition):
            if (one := _beside(results, figure, row, theirs)) is not None:
                found.append(one)
    return found


def _rows(results: Results, condition: str) -> list[Row]:
    """Our rows of a condition of theirs: of its kind of weights and sign of α, under every prompt."""
    signs = {"vector": ("vector", 1), "minus_vector": ("vector", -1), "random": ("random", 1)}
    kind, sign = signs.get(condition, ("target" if condition == REFERENCE else condition, 0))
    return [
        row
        for row in results.rows("main", "control")
        if row.entry.kind == kind
        and (sign == 0 or math.copysign(1, row.entry.alpha or 0.0) == sign)
        and (row.entry.alpha is None or abs(row.entry.alpha) == 1.0)
    ]


def _beside(results: Results, figure: AuthorsFigure, row: Row, baseline: float | None) -> Beside | None:
    ours = results.value(figure.family, row, figure.benchmark)
    if ours is None or math.isnan(ours.low):
        return None
    score = figure.score / 100
    low, high = (float(end) for end in intervals.share(score, ours.n))
    gap = ours.value - score
    ends = Ends(
        gap - math.hypot(ours.value - ours.low, high - score),
        gap + math.hypot(ours.high - ours.value, score - low),
    )
    gain = gain_theirs = gain_less = None
    reference = _baseline(results, row)
    if baseline is not None and figure.condition != REFERENCE and reference is not None:
        gain = results.difference(figure.family, row, reference, figure.benchmark)
        gain_theirs = (figure.score - baseline) / 100
        if gain is not None:
            gain_less = less(gain, gain_theirs, published_interval(gain_theirs, gain.n, gain))
    return Beside(figure, row, ours, ends, gain, gain_theirs, gain_less)


def _baseline(results: Results, row: Row) -> Row | None:
    """The target under the same prompt."""
    return results.row("target", 0, row.entry.prompt)
