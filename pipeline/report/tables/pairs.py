"""Donor pairs side by side: the donors' own difference, v, −v and v against noise, and whether the pairs differ."""

from pipeline.analysis.comparisons import SIGNIFICANT
from pipeline.analysis.estimate import Difference
from pipeline.analysis.pairs import PairEffect, Pairs, pairs
from pipeline.analysis.results import Results
from pipeline.report.facts import estimate_facts
from pipeline.report.numbers import DASH, interval, percent
from pipeline.report.sentences import p_text
from pipeline.report.table import Block, Facts, Kind, Line, Table, Text
from pipeline.report.tables.accuracy import star_note

_HEADER = ("Pair", "+v (tested)", "−v", "v against noise", "Donors: RL against SFT", "Documents")
_EFFECTS = ("loss", "noise", "donors")  # columns after the first
_EXPLAINED = (
    "In points, paired by document, with 95 % intervals. Mean: pairs and documents are both samples, so its interval is for"
    " the mean over such pairs on such documents. Spread: Q is the Wald statistic of the differences between pairs with their"
    " full covariance, because all pairs answer the same documents (Cochran's Q if they were independent); I² is the share of"
    " the spread that documents do not explain; τ is the standard deviation between pairs in points."
)


def applies(results: Results) -> bool:
    """Whether two families have v on one benchmark."""
    return bool(pairs(results))


def table(results: Results) -> Table:
    """A block for each size and benchmark, a line for each pair, then their mean and their spread."""
    made = Table("pairs", "Donor pairs side by side", [Text(head) for head in _HEADER])
    found = pairs(results)
    for one in found:
        lines = [_line(results, made, one, effect) for effect in one.effects]
        lines.append(_mean(made, one))
        lines.append(Line(Kind.spread, "spread", [Text(_spread(one)), *[Text("")] * 4]))
        size = f", {one.size}" if one.size else ""
        made.blocks.append(Block(f"{results.label(one.benchmark)}{size}", lines))
    gains = [effect.gain for one in found for effect in one.effects]
    made.notes += [_EXPLAINED, f"{_tests(len(found))} {star_note(gains)}"]
    return made


def _tests(spreads: int) -> str:
    return (
        "* p < 0.05 after Holm's correction: v against Baseline has the p value that it has in every other table. The p of a spread"
        f" is corrected over the {spreads} of this table. Other columns are not tested here."
    )


def _line(results: Results, made: Table, one: Pairs, effect: PairEffect) -> Line:
    label = results.families[effect.family].label
    facts: Facts = {"family": effect.family, "label": label, "size": one.size, "benchmark": one.benchmark}
    facts |= estimate_facts(effect.gain, "gain_")
    facts |= {"gain_p": effect.gain.p, "gain_p_holm": effect.p_holm, "units": effect.gain.units}
    for name in _EFFECTS:
        facts |= estimate_facts(getattr(effect, name), f"{name}_")
    made.data.append(facts)
    star = "*" if effect.p_holm < SIGNIFICANT else ""
    entries = [Text(interval(effect.gain) + star)]
    entries += [_text(getattr(effect, name)) for name in _EFFECTS]
    return Line(Kind.value, label, [*entries, Text(str(effect.gain.n))])


def _mean(made: Table, one: Pairs) -> Line:
    k = len(one.effects)
    found = one.heterogeneity
    facts: Facts = {"family": f"mean of {k}", "size": one.size, "benchmark": one.benchmark}
    facts |= estimate_facts(one.mean, "gain_")
    facts |= {
        "q": found.q,
        "q_freedom": found.freedom,
        "q_p": found.p,
        "q_p_holm": one.p_spread,
        "i2": 100 * found.i2,
    }
    facts |= {"i2_low": 100 * found.i2_low, "i2_high": 100 * found.i2_high, "tau": 100 * found.tau}
    made.data.append(facts)
    entries = [Text(interval(one.mean)), *[Text(DASH)] * 3, Text(str(one.mean.n))]
    return Line(Kind.difference, f"mean of {k} pairs", entries)


def _spread(one: Pairs) -> str:
    found = one.heterogeneity
    i2 = f"I² {100 * found.i2:.0f} % [{100 * found.i2_low:.0f}, {100 * found.i2_high:.0f}]"
    p = p_text(one.p_spread) if one.p_spread == one.p_spread else "too few units for a test"
    return f"Q = {found.q:.1f} on {found.freedom}, {p}; {i2}; τ {percent(found.tau)}"


def _text(difference: Difference | None) -> Text:
    return Text(interval(difference) if difference else DASH)
