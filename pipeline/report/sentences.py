"""What was found, in words: two sentences about a run, and the reason of each verdict."""

from collections import Counter
from collections.abc import Sequence

from pipeline.analysis import persistence
from pipeline.analysis.behaviour import SAME, Decomposition
from pipeline.analysis.estimate import Difference
from pipeline.analysis.findings import Findings, Gain, find
from pipeline.analysis.judging import CANNOT_TELL, NO_EFFECT, NOTICEABLE, PERSISTS
from pipeline.analysis.pairs import pairs
from pipeline.analysis.persisting import Persisting
from pipeline.analysis.power import LEVEL
from pipeline.analysis.results import THINK, Results, Row
from pipeline.analysis.verdicts import Judged, Verdict
from pipeline.manifest import ConditionEntry
from pipeline.report.numbers import interval, listed, percent, signed

# A gain that is shown on all documents, on the perturbed ones: what its decision says of it. Where the originals of those
# documents alone are too few to show a gain, the decision is "no gain", which is no word on the gain itself.
_PERSISTS = PERSISTS | {
    persistence.OPEN: "may or may not persist",
    persistence.FLOOR: "could not persist",
    persistence.REVERSED: "turns into a loss",
    persistence.NO_GAIN: "is not shown on the originals alone",
    persistence.LOSS: "is not shown on the originals alone",
}
_TOLD_APART = 2  # gains of which each is taken apart in the sentence; more are counted together


def what_was_found(results: Results) -> tuple[str, str]:
    """Two sentences: what v does to scores, and what it does to answers."""
    findings, vector = find(results), results.row("vector", 1)
    if vector is None:
        return ("The run has no condition that adds v whole and alone.", "The tables have what there is.")
    gains = [g for g in findings.gains if g.row.name == vector.name and g.benchmark in results.plain()]
    if not gains:
        return (f"{vector.label} has no evaluated cell beside Baseline yet.", "Run the evaluate stage.")
    if len(results.families) == 1:
        return _of_scores(results, findings, vector, gains), _of_answers(results, findings, vector, gains)
    return _of_families(results, vector, gains), _of_answers(results, findings, vector, gains)


def pair_notes(results: Results) -> list[str]:
    """Which donors each family's vector is of, and what is known against them, where the configuration says so."""
    conditions = results.manifest.conditions
    asked = {cell.family for cell in results.manifest.cells if _has_donors(conditions[cell.condition])}
    return [
        f"Donors of {entry.label}: {entry.pair}."
        for family, entry in results.families.items()
        if entry.pair is not None and family in asked
    ]


def _has_donors(condition: ConditionEntry) -> bool:
    return bool(condition.terms) or condition.start in ("sft", "grpo")


def verdict_reason(results: Results, verdict: Verdict) -> str:
    """What was found in each comparison that a verdict rests on, and which of them the run does not have."""
    is_list = len(verdict.comparisons) > 1
    found = [_reason(results, judged, is_list) for judged in verdict.comparisons]
    found += form_notes(results, verdict)
    if verdict.missing:
        found.append(f"not in this run: {', '.join(verdict.missing)}")
    return "; ".join(found)


def form_notes(results: Results, verdict: Verdict) -> list[str]:
    """Which form of a benchmark a verdict uses where the run has several, why, and what the others show."""
    notes = []
    for judged in verdict.comparisons:
        if not judged.others:
            continue
        label, reason = results.label(judged.benchmark), results.benchmarks[judged.benchmark].cannot_think
        is_asked = (
            judged.condition in results.conditions and results.conditions[judged.condition].prompt == THINK
        )
        others = ", ".join(f"{results.label(o.benchmark)} {interval(o.difference)}" for o in judged.others)
        notes.append(
            f"judged on {label}, the form that others run and the claim names"
            + (f", where thinking cannot act ({reason})" if is_asked and reason else "")
            + f"; beside it, not tested: {others}"
        )
    return notes


def p_text(p: float) -> str:
    """A p value as it is read."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.1 else f"p = {min(p, 1.0):.1f}"


# ---- the two sentences ----


def _of_scores(results: Results, findings: Findings, vector: Row, gains: Sequence[Gain]) -> str:
    """What adding v does to each plain benchmark, beside noise and beside subtracting it."""
    shown = [g for g in gains if g.is_significant]
    texts = [
        f"{'raises' if g.difference.value > 0 else 'lowers'} {results.benchmarks[g.benchmark].label}"
        f" by {_points(g.difference)}"
        for g in shown
    ]
    none = [results.benchmarks[g.benchmark].label for g in gains if g.outcome == NO_EFFECT]
    if none:
        texts.append(f"shows no effect on {listed(none)}")
    unknown = [
        f"{results.benchmarks[g.benchmark].label} ({interval(g.difference)})"
        for g in gains
        if g.outcome == CANNOT_TELL
    ]
    if unknown:
        texts.append(f"is inconclusive on {listed(unknown)}")
    beside = [*_noise(results, findings, shown), *_subtracted(results, findings, shown)]
    return f"{vector.label} {listed(texts)}{'; ' if beside else ''}{listed(beside)}."


def _noise(results: Results, findings: Findings, shown: Sequence[Gain]) -> list[str]:
    """What random vectors of equal norm do where v has an effect."""
    random = results.row("random", 1)
    texts = []
    for gain in shown:
        noise = findings.gain(gain.family, random.name, gain.benchmark) if random else None
        if noise is not None:
            seeds = len(noise.row.members)
            of = f"mean of {seeds} seeds" if seeds > 1 else "one seed"
            texts.append(f"{results.benchmarks[gain.benchmark].label} by {interval(noise.difference)} ({of})")
    return [f"random vectors of equal norm change {listed(texts)}"] if texts else []


def _subtracted(results: Results, findings: Findings, shown: Sequence[Gain]) -> list[str]:
    """What subtracting v does where adding it has an effect."""
    minus = results.row("vector", -1)
    texts: dict[str, list[str]] = {}
    for gain in shown:
        less = findings.gain(gain.family, minus.name, gain.benchmark) if minus else None
        if less is not None and less.is_significant:
            verb = "raises" if less.difference.value > 0 else "lowers"
            left = f", to {percent(less.score.value)} % right" if less.is_ruined else ""
            label = results.benchmarks[gain.benchmark].label
            texts.setdefault(verb, []).append(f"{label} by {_points(less.difference)}{left}")
    return [f"subtracting v {verb} {listed(places)}" for verb, places in texts.items()]


def _of_families(results: Results, vector: Row, gains: Sequence[Gain]) -> str:
    """On how many families v raises and lowers each benchmark, and whether pairs differ."""
    texts = []
    for benchmark in results.plain():
        here = [g for g in gains if g.benchmark == benchmark]
        for verb, sign in (("raises", 1), ("lowers", -1)):
            moved = [g for g in here if g.is_significant and g.difference.value * sign > 0]
            if moved:
                sizes = sorted(abs(g.difference.value) for g in moved)
                ends = list(dict.fromkeys(percent(size) for size in (sizes[0], sizes[-1])))
                label = results.benchmarks[benchmark].label
                texts.append(
                    f"{verb} {label} on {len(moved)} of {len(here)} families (by {' to '.join(ends)} points)"
                )
    for outcome, said in ((NO_EFFECT, "shows no effect in"), (CANNOT_TELL, "is inconclusive in")):
        if number := sum(g.outcome == outcome for g in gains):
            texts.append(f"{said} {number} of {len(gains)} comparisons")
    spread = _spread(results)
    return f"{vector.label} {listed(texts)}{'; ' if spread else ''}{spread}."


def _spread(results: Results) -> str:
    """Whether the effect of v differs between pairs; empty where a run has no pairs to compare."""
    differ: list[str] = []
    alike: list[str] = []
    for one in pairs(results):
        label = results.benchmarks[one.benchmark].label + (f" ({one.size})" if one.size else "")
        if one.differ:
            differ.append(f"{label} (standard deviation {percent(one.heterogeneity.tau)} points)")
        else:
            alike.append(label)
    texts = [f"its effect differs between pairs on {listed(differ)}"] if differ else []
    if alike:
        texts.append(
            f"{'' if differ else 'its effect '}is not shown to differ{'' if differ else ' between pairs'} on {listed(alike)}"
        )
    return " and ".join(texts)


def _of_answers(results: Results, findings: Findings, vector: Row, gains: Sequence[Gain]) -> str:
    """How much of each gain is form, and whether it persists; without a gain, how the answers change."""
    raised = [g for g in gains if g.is_significant and g.difference.value > 0]
    if len(raised) > _TOLD_APART:
        return _summed(results, findings, raised)
    texts = []
    for gain in raised:
        found = findings.decomposition(gain.family, vector.name, gain.benchmark)
        name = _place(results, gain)
        if found is not None and found.total.gained:
            texts.append(_decomposed(name, found))
        persisting = [
            p
            for p in findings.persisting
            if (p.family, p.row.name, results.plain_of(p.variant))
            == (gain.family, vector.name, gain.benchmark)
        ]
        if persisting:
            texts.append(_persisted(results, name, persisting))
    if texts:
        return _sentence(texts)
    return _lengths(results, findings, vector, gains)


def _summed(results: Results, findings: Findings, raised: Sequence[Gain]) -> str:
    """What of many gains is form, and how many of them persist, counted together."""
    parts = [findings.decomposition(g.family, g.row.name, g.benchmark) for g in raised]
    found = [part for part in parts if part is not None and part.total.gained]
    texts = []
    if found:
        gained = sum(one.total.gained for one in found)
        before = sum(one.answers.gained for one in found)
        lost = sum(one.answers.lost for one in found)
        texts.append(
            f"of the {gained} answers that became right in {len(found)} raised comparisons,"
            f" {_in_another_form(gained - before)}; among answers written as before, {before} became right and {lost} wrong"
        )
    places = {(g.family, g.row.name, g.benchmark) for g in raised}
    words = Counter(
        _PERSISTS[p.decision.outcome]
        for p in findings.persisting
        if (p.family, p.row.name, results.plain_of(p.variant)) in places
    )
    if words:
        counts = [f"{word} in {number}" for word, number in words.most_common()]
        texts.append(f"on perturbed documents the gain {listed(counts)} of {words.total()} cases")
    if not texts:
        return "No answer is written out where a score rises, so nothing can be said of their form."
    return _sentence(texts)


def _decomposed(name: str, found: Decomposition) -> str:
    """A gain in parts: what of it is newly written steps, and what is left among answers written as before."""
    same = found.part(SAME)
    new_form = found.total.gained - (same.difference.gained if same else 0)
    how = _in_another_form(new_form)
    if found.newly_stepped == new_form > 0:
        how = f"{new_form} have steps that they did not have before"
    elif found.newly_stepped:
        how += f", {found.newly_stepped} of them with new steps"
    share = f"of the {found.total.gained} {name} answers that became right, {how}"
    if same is None:
        return share
    counts = f"{found.answers.gained} became right and {found.answers.lost} wrong"
    return f"{share}; among answers written as before, {counts} ({interval(found.answers)} points)"


def _in_another_form(number: int) -> str:
    return f"{number} are written in another form" if number else "none is written in another form"


def _persisted(results: Results, name: str, found: Sequence[Persisting]) -> str:
    """What is left of a gain on perturbed documents."""
    by_word: dict[str, list[str]] = {}
    for p in found:
        plain, gain = signed(p.persistence.gain_plain.value), interval(p.persistence.gain)
        label, baseline = results.benchmarks[p.variant].label, percent(p.persistence.reference.value)
        text = f"with {label} ({gain} of {plain} points, Baseline at {baseline} %)"
        by_word.setdefault(_PERSISTS[p.decision.outcome], []).append(text)
    return f"the gain on {name} {listed([f'{word} {listed(where)}' for word, where in by_word.items()])}"


def _sentence(clauses: Sequence[str]) -> str:
    text = "; ".join(clauses)
    return f"{text[:1].upper()}{text[1:]}."


def _lengths(results: Results, findings: Findings, vector: Row, gains: Sequence[Gain]) -> str:
    """How the answers change where no score rises."""
    texts = []
    for gain in gains:
        written = {
            w.row.name: w.behaviour
            for w in findings.behaviours
            if (w.family, w.benchmark) == (gain.family, gain.benchmark)
        }
        old, new = written.get(results.reference.name), written.get(vector.name)
        if old and new:
            steps = ""
            if old.steps and new.steps:
                steps = f" and {percent(old.steps.value)} to {percent(new.steps.value)} % with steps"
            texts.append(
                f"{_place(results, gain)} {old.length.value:.0f} to {new.length.value:.0f} tokens{steps}"
            )
    if not texts:
        return "No answer is written out in this run, so nothing can be said of their form."
    return f"No score rises, and answers go from Baseline to {vector.label} so: {'; '.join(texts)}."


def _place(results: Results, gain: Gain) -> str:
    label = results.benchmarks[gain.benchmark].label
    return label if len(results.families) == 1 else f"{label} ({results.families[gain.family].label})"


# ---- verdicts ----


def _reason(results: Results, judged: Judged, is_list: bool) -> str:
    assert judged.difference is not None, "what is judged was measured"
    texts = [f"{results.label(judged.benchmark)} {interval(judged.difference)}, {p_text(judged.p_holm)}"]
    if judged.persistence is not None:
        texts.append(f"plain gain {signed(judged.persistence.gain_plain.value)}")
        texts.append(f"Baseline {percent(judged.persistence.reference.value)} % right")
    if judged.figure is not None and judged.figure.difference is not None:
        texts.append(
            f"published {signed(judged.figure.difference / 100)} ({', '.join(judged.figure.source)})"
        )
        if judged.judgement and judged.judgement.published:
            low, high = judged.judgement.published
            texts.append(f"whose own sampling error is at least [{signed(low)}, {signed(high)}]")
    texts += remarks(judged)
    if judged.marks:
        texts.append(f"marked {judged.marks}")
    return ", ".join(texts) + (f": {judged.outcome}" if is_list else "")


def remarks(judged: Judged) -> list[str]:
    """What a reader should know of an outcome."""
    texts, difference = [], judged.difference
    assert difference is not None, "what is judged was measured"
    if judged.is_ruined and judged.score:
        texts.append(f"the model is ruined there ({percent(judged.score.value)} % right)")
    if judged.seeds is not None:
        texts.append(f"{judged.seeds.as_far or 'none'} of {judged.seeds.of} seeds as far from Baseline as v")
    if judged.judgement is None:
        return texts
    if judged.outcome == NO_EFFECT and difference.detectable == difference.detectable:
        texts.append(f"a true one of {percent(difference.detectable)} points would be found with 80 % power")
    if judged.outcome == CANNOT_TELL:
        figure = judged.figure.difference if judged.figure else None
        effect = abs(figure) / 100 if figure else NOTICEABLE
        if judged.judgement.needed:
            texts.append(
                f"{percent(effect)} points need about {_rounded(judged.judgement.needed)} such documents"
            )
        elif not difference.low <= 0 <= difference.high:
            reason = "it is not significant after Holm's correction"
            if difference.p >= LEVEL:
                reason = "no test can reject with fewer than six independent units"
            texts.append(f"its own interval leaves zero out, but {reason}")
    return texts


def _rounded(number: int) -> str:
    """Two significant digits, in groups of three."""
    digits = max(0, len(str(number)) - 2)
    return f"{round(number, -digits):,}".replace(",", "\u202f")


def _points(difference: Difference) -> str:
    """The size of a difference with its interval, without its sign."""
    ends = sorted(abs(end) for end in (difference.low, difference.high))
    if difference.low <= 0 <= difference.high:
        return f"{percent(abs(difference.value))} points {interval(difference).partition(' ')[2]}"
    return f"{percent(abs(difference.value))} points [{percent(ends[0])}, {percent(ends[1])}]"
