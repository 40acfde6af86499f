"""Ours beside the authors' own public scores: accuracy, the gain over Baseline, and the difference of both."""

from pipeline.analysis.authors import Authors, Beside, authors, beside
from pipeline.analysis.judging import Ends
from pipeline.analysis.results import Results
from pipeline.report.facts import estimate_facts
from pipeline.report.numbers import DASH, interval, plus_minus, signed
from pipeline.report.table import Block, Facts, Kind, Line, Table, Text

_HEADER = (
    "Condition", "Ours", "Theirs", "Ours less theirs", "Gain, ours", "Gain, theirs", "Ours less theirs",
)  # fmt: skip
_EXPLAINED = (
    "Accuracy in per cent, gains over Baseline under the same prompt in points. Theirs are logged without answers, so they"
    " get the sampling error of as many documents as ours. Both are treated as independent although they share documents, which"
    " makes the intervals of the differences wider than they need be. An interval that holds zero shows no disagreement; how wide it"
    " is says how much could be hidden. Nothing here is tested, so nothing carries a star."
)


def applies(results: Results) -> bool:
    """Whether the run has a family of the authors' log."""
    return bool(beside(results))


def table(results: Results, known: Authors | None = None) -> Table:
    """A block for each family, setting and benchmark, a line for each condition and prompt of ours."""
    made = Table("authors", "Ours beside the authors' public scores", [Text(head) for head in _HEADER])
    source = known or authors()
    blocks: dict[tuple[str, str, str], list[Line]] = {}
    numbered: dict[str, str] = {}
    for one in beside(results, source):
        theirs = one.theirs
        place = (theirs.family, theirs.setting, theirs.benchmark)
        marks = numbered.setdefault(theirs.note, str(len(numbered) + 1)) if theirs.note else ""
        blocks.setdefault(place, []).append(_line(one, marks))
        made.data.append(_facts(one))
    for (family, setting, benchmark), lines in blocks.items():
        label = results.families[family].label
        made.blocks.append(Block(f"{label}, {results.label(benchmark)} (theirs: {setting})", lines))
    made.notes += [f"{mark}: {note}." for note, mark in numbered.items()]
    made.notes.append(_EXPLAINED)
    used = dict.fromkeys(setting for _, setting, _ in blocks)
    made.notes += [f"{setting}: {source.settings[setting]}." for setting in used]
    letters = "; ".join(f"{letter} = {where}" for letter, where in source.sources.items())
    made.notes.append(f"Theirs: {letters}.")
    return made


def _line(one: Beside, marks: str) -> Line:
    theirs = f"{one.theirs.score:.1f} ({', '.join(one.theirs.source)})"
    entries = [
        Text(plus_minus(one.ours)),
        Text(theirs, marks),
        Text(_less(one.ours.value - one.theirs.score / 100, one.less)),
        Text(interval(one.gain) if one.gain else DASH),
        Text(signed(one.gain_theirs) if one.gain_theirs is not None else DASH),
    ]
    gap = DASH
    if one.gain is not None and one.gain_theirs is not None and one.gain_less is not None:
        gap = _less(one.gain.value - one.gain_theirs, one.gain_less)
    return Line(Kind.value, one.row.label, [*entries, Text(gap)])


def _less(value: float, ends: Ends) -> str:
    return f"{signed(value)} [{signed(ends.low)}, {signed(ends.high)}]"


def _facts(one: Beside) -> Facts:
    theirs = one.theirs
    facts: Facts = {"family": theirs.family, "setting": theirs.setting, "benchmark": theirs.benchmark}
    facts |= {"condition": one.row.name, "label": one.row.label, "prompt": one.row.entry.prompt}
    facts |= estimate_facts(one.ours) | {"theirs": theirs.score, "source": " ".join(theirs.source)}
    facts |= {"less_low": 100 * one.less.low, "less_high": 100 * one.less.high}
    facts |= estimate_facts(one.gain, "gain_")
    facts["gain_theirs"] = None if one.gain_theirs is None else 100 * one.gain_theirs
    ends = one.gain_less
    facts |= {"gain_less_low": 100 * ends.low if ends else None}
    return facts | {"gain_less_high": 100 * ends.high if ends else None}
