"""The paper's tables from the records alone, as Markdown, LaTeX (booktabs) and CSV.

    tables.render(manifest, results, out)     main, adversarial, controls, alpha_sweep, geometry, cost
    tables.terminal(manifest, results)        a compact table for the terminal
    tables.verdicts(manifest, results)        one line for each claim of the abstract

Accuracies and differences are in per cent and percentage points. Markdown and LaTeX round for the reader; the
CSV beside them holds every number behind the table. Rendering again gives the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.analysis import claims
from pipeline.analysis.results import MARKS, REFERENCE, Cell, Grid, Robustness, Row, load
from pipeline.analysis.statistics import Difference, Estimate, holm, mean_over_seeds
from pipeline.errors import UserError
from pipeline.files import write_file
from pipeline.report.formats import DASH, Table, Text, as_csv, columns, latex, markdown

ROBUSTNESS = ("plain", "perturbed", "drop", "gain_plain", "gain", "change")  # parts of a Robustness
OVER_FAMILIES = (
    "Means over families carry Student's t interval over the families that have the record: it measures"
    " how training varies, on these documents."
)


def render(manifest: dict[str, Any], results: Path, out: Path) -> list[Path]:
    """Write every table as .md, .tex and .csv under `out`; return the paths in order."""
    grid = load(manifest, results)
    written = []
    for table in build(grid):
        for suffix, write in (("md", markdown), ("tex", latex), ("csv", as_csv)):
            path = out / f"{table.name}.{suffix}"
            write_file(path, write(table).encode())
            written.append(path)
    return written


def build(grid: Grid) -> list[Table]:
    """The six tables of a run."""
    return [main(grid), adversarial(grid), controls(grid), alpha_sweep(grid), geometry(grid), cost(grid)]


def verdicts(manifest: dict[str, Any], results: Path) -> list[str]:
    """One line for each claim of the abstract (and family): the verdict, what it was judged on, and why."""
    grid = load(manifest, results)
    return [
        f"{v.outcome:<14}  {grid.families[v.family]['label']}: {v.statement}: {verdict_reason(v)}"
        for v in claims.verdicts(grid)
    ]


def verdict_reason(verdict: claims.Verdict) -> str:
    """What was found and promised in each comparison that a verdict rests on."""
    found = []
    for c in verdict.comparisons:
        if c.difference is not None:
            promise = "no gain to build on" if c.promised is None else f"promised {signed(c.promised)}"
            marks = f", marked {c.marks}" if c.marks else ""
            found.append(f"{c.benchmark} {interval(c.difference)} ({promise}{marks})")
    return "; ".join(([verdict.reason] if verdict.reason else []) + found)


def problems(manifest: dict[str, Any], results: Path) -> list[str]:
    """One line for each record that is missing or damaged."""
    return load(manifest, results).problems


def terminal(manifest: dict[str, Any], results: Path) -> str:
    """Conditions × plain benchmarks as text: value ± half interval, difference to Baseline with its mark."""
    grid = load(manifest, results)
    rows = grid.rows("main", "control")
    comparisons = compare_all(grid, rows, grid.plain())
    lines = []
    used = ""
    for family in grid.families:
        heads = _header(grid, grid.families[family]["label"], grid.plain())
        used += "".join(head.marks for head in heads)
        header = [head.text + (f" [{head.marks}]" if head.marks else "") for head in heads]
        body = []
        for row in rows:
            entries = []
            for benchmark in grid.plain():
                shown = _value(grid, family, row, benchmark)
                difference = comparisons.get((family, row.name, benchmark))
                change = f"{signed(difference[0].value):>6}{_star(difference[1])}" if difference else ""
                marks = f" [{shown.marks}]" if shown.marks else ""
                used += shown.marks
                entries.append(f"{shown.text:<11}{change}{marks}".rstrip())
            body.append([row.label, *entries])
        lines += columns([header, *body]) + [""]
    target = Row(REFERENCE, "", (REFERENCE,))
    for group, families in _groups(grid).items():
        means = [_header(grid, f"{group}, mean of {len(families)}", grid.plain())]
        for row in rows:
            means.append([Text(row.label)])
            for benchmark in grid.plain():
                value, _ = _mean(grid, families, row, None, benchmark)
                gain, _ = _mean(grid, families, row, target, benchmark)
                shift = f"{signed(gain.value):>6}" if gain else ""
                means[-1].append(Text(f"{plus_minus(value) if value else DASH:<11}{shift}".rstrip()))
        lines += columns([[entry.text for entry in line] for line in means]) + [""]
    lines.append(
        "± half of the 95 % interval; difference to Baseline in points; * p < 0.05 after Holm's correction"
    )
    lines += [f"[{mark}] {MARKS[mark]}" for mark in MARKS if mark in used]
    return "\n".join(lines)


# ---- numbers ----


def percent(x: float) -> str:
    return DASH if math.isnan(x) else f"{100 * x:.1f}"


def signed(x: float) -> str:
    """Percentage points with a typographic sign."""
    if math.isnan(x):
        return DASH
    text = f"{100 * x:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def interval(estimate: Estimate) -> str:
    """A difference with its 95 % interval."""
    if math.isnan(estimate.low):
        return f"{signed(estimate.value)} (no interval)"
    return f"{signed(estimate.value)} [{signed(estimate.low)}, {signed(estimate.high)}]"


def plus_minus(estimate: Estimate) -> str:
    """A mean with half of its 95 % interval's width."""
    half = (estimate.high - estimate.low) / 2
    return percent(estimate.value) if math.isnan(half) else f"{percent(estimate.value)} ± {percent(half)}"


def _star(p: float) -> str:
    return "*" if p < claims.SIGNIFICANT else ""


Compared = tuple[Difference, float]  # with its p value after Holm's correction


def compare_all(
    grid: Grid, rows: list[Row], benchmarks: list[str], reference: str = REFERENCE
) -> dict[tuple[str, str, str], Compared]:
    """Every row against the reference; Holm over all of them."""
    found: dict[tuple[str, str, str], Difference] = {}
    for family in grid.families:
        for row in rows:
            for benchmark in benchmarks:
                difference = grid.difference(family, row.members, (reference,), benchmark)
                if difference is not None:
                    found[family, row.name, benchmark] = difference
    return _adjust(found)


def _adjust(found: dict[tuple[str, str, str], Difference]) -> dict[tuple[str, str, str], Compared]:
    adjusted = holm([difference.p for difference in found.values()]).tolist()
    return {place: (difference, p) for (place, difference), p in zip(found.items(), adjusted, strict=True)}


def _value(grid: Grid, family: str, row: Row, benchmark: str) -> Text:
    """A row's accuracy, a marked word where the planned cell is not there, a dash where none is planned."""
    if not grid.is_planned(family, row.members, benchmark):
        return Text(DASH)
    marks = grid.marks(family, row.members, benchmark)
    value = grid.value(family, row.members, benchmark)
    if value is None:
        return Text("damaged" if "d" in marks else "missing", marks)
    return Text(plus_minus(value), marks)


def _facts(grid: Grid, family: str, row: Row, benchmark: str, compared: Compared | None) -> dict[str, Any]:
    """The CSV's line for one cell: numbers in per cent and points, unrounded."""
    info = grid.benchmarks[benchmark]
    cell = grid.cell(family, row.members, benchmark)
    value = grid.value(family, row.members, benchmark)
    condition = grid.conditions[row.name]
    return {
        "family": family,
        "group": grid.families[family]["group"],
        "benchmark": benchmark,
        "variant_of": info["variant_of"],
        "condition": row.name,
        "label": row.label,
        "alpha": condition["alpha"],
        "seeds": len(row.members) if condition["seed"] is not None else None,
        "limit": info["limit"],
        "marks": grid.marks(family, row.members, benchmark),
        **_estimate_facts(value),
        "mean_tokens": float(cell.tokens.mean()) if cell else None,
        "share_truncated": cell.metrics.get("share_truncated") if cell else None,
        "share_not_extracted": cell.metrics.get("share_not_extracted") if cell else None,
        **difference_facts(compared),
    }


def _estimate_facts(value: Estimate | None, prefix: str = "") -> dict[str, Any]:
    names = (f"{prefix}value", f"{prefix}se", f"{prefix}low", f"{prefix}high")
    numbers = [100 * x for x in (value.value, value.se, value.low, value.high)] if value else [None] * 4
    return {**dict(zip(names, numbers, strict=True)), f"{prefix}n": value.n if value else None}


def difference_facts(compared: Compared | None) -> dict[str, Any]:
    difference, p_holm = compared or (None, None)
    return {
        **_estimate_facts(difference, "difference_"),
        "gained": difference.gained if difference else None,
        "lost": difference.lost if difference else None,
        "test": difference.test if difference else None,
        "p": difference.p if difference else None,
        "p_holm": p_holm,
        "detectable": 100 * difference.detectable if difference else None,
    }


# ---- the tables ----


def main(grid: Grid) -> Table:
    """Main conditions × plain benchmarks for each family, with the published number under ours."""
    rows, benchmarks = grid.rows("main"), grid.plain()
    compared = compare_all(grid, rows, benchmarks)
    table = Table(
        "main", "Accuracy in per cent by condition and benchmark", _header(grid, "Condition", benchmarks)
    )
    figure_notes: dict[str, str] = {}
    for family, info in grid.families.items():
        lines = []
        for row in rows:
            lines += _value_lines(grid, family, row, benchmarks, compared)
            lines += _published_line(grid, family, row, benchmarks, figure_notes)
            table.data += [
                _facts(grid, family, row, b, compared.get((family, row.name, b)))
                | _published_facts(grid, family, row, b)
                for b in benchmarks
            ]
        lines += _detectable_line(grid, family, benchmarks, compared)
        table.blocks.append((info["label"], lines))
    _add_groups(grid, table, rows, benchmarks)
    table.notes += [f"{mark}: {note}" for note, mark in figure_notes.items()]
    if all(info["published_size"] is None for info in grid.families.values()):
        table.notes.append("The paper has no figures for these models, so none stand beside ours.")
    table.notes += _notes(grid, table, compared)
    return table


def controls(grid: Grid) -> Table:
    """The controls against Baseline, then v against each control."""
    benchmarks = grid.plain()
    rows = [row for row in grid.rows("main", "control") if row.name in _shown_with_controls(grid)]
    against = _contrasts(grid)
    found: dict[tuple[str, str, str], Difference] = {}
    for family in grid.families:
        pairs = [(row.name, row, Row(REFERENCE, "", (REFERENCE,))) for row in rows]
        pairs += [(label, new, old) for label, new, old in against]
        for name, new, old in pairs:
            for benchmark in benchmarks:
                difference = grid.difference(family, new.members, old.members, benchmark)
                if difference is not None:
                    found[family, name, benchmark] = difference
    compared = _adjust(found)
    header = _header(grid, "Condition", benchmarks)
    table = Table("controls", "Controls: prompt, donors and random vectors of equal norm", header)
    for family, info in grid.families.items():
        lines = []
        for row in rows:
            lines += _value_lines(grid, family, row, benchmarks, compared)
            lines += _spread_line(grid, family, row, benchmarks)
            table.data += [
                _facts(grid, family, row, b, compared.get((family, row.name, b))) for b in benchmarks
            ]
        table.blocks.append((info["label"], lines))
        lines = []
        for label, new, old in against:
            entries = [difference_text(compared.get((family, label, b))) for b in benchmarks]
            lines.append([Text(label), *entries])
            table.data += [
                _facts(grid, family, new, b, compared.get((family, label, b)))
                | {"label": label, "reference": old.name}
                for b in benchmarks
            ]
        if lines:
            table.blocks.append((f"{info['label']}: paired differences between rows", lines))
    _add_groups(grid, table, rows, benchmarks, against=against)
    if any(len(row.members) > 1 for row in rows):
        table.notes.append("Random controls are averaged over their seeds document by document.")
    table.notes += _notes(grid, table, compared)
    return table


def alpha_sweep(grid: Grid) -> Table:
    """Accuracy along α for every benchmark that has a sweep."""
    sweep = grid.sweep()
    swept = [name for _, name in sweep if name != REFERENCE and grid.conditions[name]["role"] == "sweep"]
    benchmarks = [
        b for b in grid.benchmarks if any(grid.is_planned(f, tuple(swept), b) for f in grid.families)
    ] or grid.plain()
    rows = [Row(name, f"α = {alpha:g}".replace("-", "−"), (name,)) for alpha, name in sweep]
    compared = compare_all(grid, rows, benchmarks, dict(sweep).get(0.0, REFERENCE))
    table = Table(
        "alpha_sweep", "Accuracy in per cent along the scaling coefficient α", _header(grid, "α", benchmarks)
    )
    for family, info in grid.families.items():
        lines = []
        for (alpha, _), row in zip(sweep, rows, strict=True):
            lines += _value_lines(grid, family, row, benchmarks, compared)
            facts = [_facts(grid, family, row, b, compared.get((family, row.name, b))) for b in benchmarks]
            table.data += [fact | {"alpha": alpha} for fact in facts]
        table.blocks.append((info["label"], lines))
    _add_groups(grid, table, rows, benchmarks, dict(sweep).get(0.0, REFERENCE))
    if not sweep:
        table.notes.append("The run has no sweep.")
    table.notes += _notes(grid, table, compared)
    return table


def adversarial(grid: Grid) -> Table:
    """Plain against perturbed documents, and whether the gain of each condition persists there."""
    names = ["Plain", "Perturbed", "Drop", "Gain, plain", "Gain, perturbed", "Change of gain", "Persists"]
    table = Table(
        "adversarial",
        "Adversarial variants, paired by source document",
        [Text("Condition"), *map(Text, names)],
    )
    rows = grid.rows("main")
    found = {
        (family, row.name, variant): result
        for family in grid.families
        for variant in grid.variants()
        for row in rows
        if (result := grid.robustness(family, row.members, variant)) is not None
    }
    compared = _adjust({place: r.gain for place, r in found.items() if r.gain is not None})
    for family, info in grid.families.items():
        for variant in grid.variants():
            plain = grid.benchmarks[variant]["variant_of"]
            lines, pairs = [], 0
            for row in rows:
                if not grid.is_planned(family, row.members, variant):
                    continue
                result = found.get((family, row.name, variant))
                pairs = max(pairs, result.drop.n if result else 0)
                both = grid.marks(family, row.members, plain) + grid.marks(family, row.members, variant)
                marks = "".join(mark for mark in MARKS if mark in both)
                gain = compared.get((family, row.name, variant))
                facts = {"family": family, "benchmark": variant, "variant_of": plain, "condition": row.name}
                facts |= {"label": row.label, "limit": grid.benchmarks[variant]["limit"], "marks": marks}
                for part in ROBUSTNESS:
                    facts |= _estimate_facts(getattr(result, part) if result else None, f"{part}_")
                facts |= {"gain_p": gain[0].p if gain else None, "gain_p_holm": gain[1] if gain else None}
                persists = _persists(result.gain_plain, result.gain) if result else None
                facts |= {"persists": persists}
                table.data.append(facts)
                if result is None:
                    lines.append([Text(row.label), Text("missing", marks or "m"), *[Text(DASH)] * 6])
                    continue
                lines.append(
                    [
                        Text(row.label),
                        Text(plus_minus(result.plain), marks),
                        Text(plus_minus(result.perturbed)),
                        Text(interval(result.drop)),
                        Text(interval(result.gain_plain) if result.gain_plain else DASH),
                        difference_text(gain),
                        Text(interval(result.change) if result.change else DASH),
                        Text(persists or DASH),
                    ]
                )
            if lines:
                labels = (grid.benchmarks[plain]["label"], grid.benchmarks[variant]["label"])
                title = f"{info['label']}: {labels[0]} → {labels[1]}"
                table.blocks.append((f"{title}, {pairs} pairs" if pairs else title, lines))
    _add_mean_robustness(grid, table, rows, found)
    if not table.blocks:
        table.notes.append("The run has no adversarial variant.")
    table.notes.append(
        "The variants are this repository's own, in groups by what is changed; the paper's sets are not published. "
        "Pairs: documents that could be changed soundly, each beside its original. "
        "Plain: over the source documents of the perturbed ones. Drop: perturbed − plain. Gain: condition − "
        "Baseline. Change of gain: the difference in differences. Intervals are clustered by source "
        "document, or by the plain benchmark's clusters where it has some. Persists: yes where the interval "
        "of the gain on the perturbed documents lies above zero, reversed where below, else not shown; a loss "
        "where the condition loses on the plain documents already."
    )
    table.notes += _notes(grid, table, compared)
    return table


def geometry(grid: Grid) -> Table:
    """The vector by kind of module: size, sparsity, rounding at α = 1, direction (pipeline/weights/geometry.py)."""
    names = ["Entries", "‖v‖", "‖v‖/‖θ‖", "Unchanged %", "Swallowed %", "Rounding %"]
    directions: list[str] = []
    reports: dict[str, dict[str, Any]] = {}
    table = Table("geometry", "Geometry of the vector, by kind of module", [])
    for family in grid.families:
        try:
            reports[family] = geometry_report(grid, family)
        except UserError as error:
            table.notes.append(str(error))
            continue
        directions += [d for d in reports[family]["total"]["directions"] if d not in directions]
    table.header = [Text("Module"), *map(Text, names)]
    table.header += [Text(f"{what} {d}") for d in directions for what in ("Cosine", "Equal signs %")]
    for family, report in reports.items():
        lines = []
        for level in ("modules", "layers", "cells", "total"):
            for entry in [report[level]] if level == "total" else report[level]:
                facts = _geometry_facts(entry, directions)
                place = {"module": entry.get("module"), "layer": entry.get("layer")}
                table.data.append({"family": family, "level": level} | place | facts)
                if level in ("modules", "total"):
                    shown = [_number(v) for v in list(facts.values())[1:]]
                    entries = f"{facts['entries']:,}".replace(",", "\u202f")
                    lines.append([Text(entry.get("module", "all")), Text(entries), *map(Text, shown)])
        table.blocks.append((grid.families[family]["label"], lines))
    table.notes.append(
        "‖v‖/‖θ‖: against the target's own weights. Unchanged: entries of v that are exactly 0. Swallowed: "
        "changed entries that rounding to the target's dtype undoes at α = 1. Rounding: its error against "
        "‖v‖ at α = 1."
    )
    table.notes += _context("geometry")
    return table


def _geometry_facts(entry: dict[str, Any], directions: list[str]) -> dict[str, Any]:
    at_one = next((a for a in entry["alphas"] if a["alpha"] == 1.0), {"swallowed": None, "rounding": None})
    facts = {
        "entries": entry["entries"],
        "norm": entry["norm"],
        "relative_norm": entry["relative_norm"],
        "unchanged": _hundredfold(entry["sparsity"]),
        "swallowed": _hundredfold(at_one["swallowed"]),
        "rounding": _hundredfold(at_one["rounding"]),
    }
    for direction in directions:
        found = entry["directions"].get(direction, {"cosine": None, "sign_agreement": None})
        facts[f"cosine {direction}"] = found["cosine"]
        facts[f"signs {direction}"] = _hundredfold(found["sign_agreement"])
    return facts


def _hundredfold(share: float | None) -> float | None:
    return None if share is None else 100 * share


def cost(grid: Grid) -> Table:
    """Tokens and time of the records, each counted once."""
    names = [
        "Cells",
        "Documents",
        "Prompt tokens",
        "Generated tokens",
        "Seconds",
        "Generated tokens/s",
        "GPU hours",
    ]
    table = Table("cost", "What the evaluation cost", [Text("Cells of"), *map(Text, names)])
    unique = list(grid.unique_cells().values())
    groups: list[tuple[str, Callable[[tuple[str, str, str]], str]]] = [
        ("by benchmark", lambda place: grid.benchmarks[place[2]]["label"]),
        ("by kind of condition", lambda place: grid.conditions[place[1]]["role"]),
    ]
    for family, info in grid.families.items():
        own = [(place, cell) for place, cell in unique if place[0] == family]
        for title, label_of in groups:
            by_label: dict[str, list[Cell]] = {}
            for place, cell in own:
                by_label.setdefault(label_of(place), []).append(cell)
            lines = [_cost_line(table, family, title, label, cells) for label, cells in by_label.items()]
            table.blocks.append((f"{info['label']}, {title}", lines))
    cells = [cell for _, cell in unique]
    table.blocks.append(("", [_cost_line(table, "", "all", "All", cells)]))
    table.notes.append("A record that several conditions share is counted once, under the first of them.")
    if grid.problems:
        table.notes.append(f"{len(grid.problems)} planned records are missing or damaged and not counted.")
    return table


def geometry_report(grid: Grid, family: str) -> dict[str, Any]:
    """The geometry file that the manifest names for a family.

    Raises:
        UserError: when it is not named, missing or unreadable.
    """
    label, name = grid.families[family]["label"], grid.families[family]["geometry"]
    if name is None:
        raise UserError(f"{label}: the manifest names no geometry report; run the extract stage to make one")
    # vectors/<key>/geometry-<12 hex>.json, wherever the folder is now
    path = grid.results.joinpath(*Path(name).parts[-3:])
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{label}: geometry report {path} cannot be read ({error}); run the extract stage again"
        ) from None
    return report


# ---- parts of tables ----


def _header(grid: Grid, first: str, benchmarks: list[str]) -> list[Text]:
    """Column heads; a limited benchmark says its limit in the head."""
    heads = []
    for benchmark in benchmarks:
        info = grid.benchmarks[benchmark]
        name = info["label"]
        if info["variant_of"] is not None:
            name = f"{grid.benchmarks[info['variant_of']]['label']}, {name}"
        name += f" (first {info['limit']})" if info["limit"] is not None else ""
        heads.append(Text(name, grid.header_marks(benchmark)))
    return [Text(first), *heads]


def _value_lines(
    grid: Grid, family: str, row: Row, benchmarks: list[str], compared: dict[tuple[str, str, str], Compared]
) -> list[list[Text]]:
    """A line of accuracies and, where there are some, a line of differences to the reference."""
    lines = [[Text(row.label), *(_value(grid, family, row, b) for b in benchmarks)]]
    differences = [compared.get((family, row.name, b)) for b in benchmarks]
    if any(differences):
        lines.append([Text("Δ"), *map(difference_text, differences)])
    return lines


def difference_text(compared: Compared | None) -> Text:
    return Text(interval(compared[0]) + _star(compared[1])) if compared else Text(DASH)


def _published_line(
    grid: Grid, family: str, row: Row, benchmarks: list[str], notes: dict[str, str]
) -> list[list[Text]]:
    """The paper's numbers for a row, in families of a size that it reports; dashes where it is silent."""
    size = grid.families[family]["published_size"]
    if size is None or row.name == REFERENCE or not grid.is_whole(row.members[0]):
        return []
    entries = []
    for benchmark in benchmarks:
        texts, marks = [], ""
        for figure in claims.published_figures(size, grid.benchmarks[benchmark]["published"], row.name):
            number = (
                signed(figure["difference"] / 100)
                if "difference" in figure
                else f"{figure['score']:.1f} after"
            )
            texts.append(f"{number} ({', '.join(figure['source'])})")
            if "note" in figure:
                marks += notes.setdefault(figure["note"], str(len(notes) + 1))
        entries.append(Text("; ".join(texts) or DASH, marks))
    return [[Text("paper"), *entries]]


def _published_facts(grid: Grid, family: str, row: Row, benchmark: str) -> dict[str, Any]:
    size, name = (grid.families[family]["published_size"], grid.benchmarks[benchmark]["published"])
    facts: dict[str, Any] = {"published_difference": None, "published_score": None, "published_source": None}
    figures = claims.published_figures(size, name, row.name) if grid.is_whole(row.members[0]) else []
    for figure in figures:
        facts |= {f"published_{k}": figure[k] for k in ("difference", "score") if k in figure}
    sources = dict.fromkeys(source for figure in figures for source in figure["source"])
    return facts | {"published_source": " ".join(sources) or None}


def _detectable_line(
    grid: Grid, family: str, benchmarks: list[str], compared: dict[tuple[str, str, str], Compared]
) -> list[list[Text]]:
    row = grid.row("vector", 1)
    found = [compared.get((family, row.name, b)) if row else None for b in benchmarks]
    if row is None or not any(found):
        return []
    return [
        [Text(f"detectable ({row.label})"), *(Text(percent(c[0].detectable) if c else DASH) for c in found)]
    ]


def _add_groups(
    grid: Grid,
    table: Table,
    rows: list[Row],
    benchmarks: list[str],
    reference: str = REFERENCE,
    against: Sequence[tuple[str, Row, Row]] = (),
) -> None:
    """A block for each group of independently trained families: means over them with their t intervals.

    Args:
        reference: the condition that rows are compared with.
        against: label, row and the row that it is compared with, for a block of differences.
    """
    target = Row(reference, "", (reference,))
    for group, families in _groups(grid).items():
        title = f"{group}: mean of {len(families)} independently trained families"
        facts = {"family": f"mean of {len(families)}", "group": group}
        lines = []
        for row in rows:
            values, differences = [Text(row.label)], [Text("Δ")]
            for benchmark in benchmarks:
                value, seeds = _mean(grid, families, row, None, benchmark)
                change, _ = _mean(grid, families, row, target, benchmark)
                values.append(Text(plus_minus(value) if value else DASH))
                differences.append(Text(interval(change) if change else DASH))
                named = {"benchmark": benchmark, "condition": row.name, "label": row.label, "seeds": seeds}
                table.data.append(
                    facts | named | _estimate_facts(value) | _estimate_facts(change, "difference_")
                )
            lines.append(values)
            if any(entry.text != DASH for entry in differences[1:]):
                lines.append(differences)
        table.blocks.append((title, lines))
        lines = []
        for label, new, old in against:
            line = [Text(label)]
            for benchmark in benchmarks:
                change, seeds = _mean(grid, families, new, old, benchmark)
                line.append(Text(interval(change) if change else DASH))
                named = {"benchmark": benchmark, "condition": new.name, "label": label, "seeds": seeds}
                table.data.append(
                    facts | named | {"reference": old.name} | _estimate_facts(change, "difference_")
                )
            lines.append(line)
        if lines:
            table.blocks.append((f"{title}, differences between rows", lines))
        table.notes.append(OVER_FAMILIES)


def _add_mean_robustness(
    grid: Grid, table: Table, rows: list[Row], found: dict[tuple[str, str, str], Robustness]
) -> None:
    """A block for each group of independently trained families and each variant: means over them with their t intervals."""
    for group, families in _groups(grid).items():
        for variant in grid.variants():
            plain, lines = grid.benchmarks[variant]["variant_of"], []
            for row in rows:
                of_families = [r for f in families if (r := found.get((f, row.name, variant))) is not None]
                if not of_families:
                    continue
                means: dict[str, Estimate | None] = {}
                for part in ROBUSTNESS:
                    values = [e.value for r in of_families if (e := getattr(r, part)) is not None]
                    means[part] = mean_over_seeds(values) if values else None
                persists = _persists(means["gain_plain"], means["gain"])
                facts: dict[str, Any] = {"family": f"mean of {len(families)}", "group": group}
                facts |= {"benchmark": variant, "variant_of": plain, "condition": row.name}
                facts |= {"label": row.label, "persists": persists}
                for part, mean in means.items():
                    facts |= _estimate_facts(mean, f"{part}_")
                table.data.append(facts | {"seeds": len(of_families)})
                shares = [plus_minus(mean) if (mean := means[part]) else DASH for part in ROBUSTNESS[:2]]
                changes = [interval(mean) if (mean := means[part]) else DASH for part in ROBUSTNESS[2:]]
                lines.append([Text(entry) for entry in (row.label, *shares, *changes, persists or DASH)])
            if lines:
                labels = f"{grid.benchmarks[plain]['label']} → {grid.benchmarks[variant]['label']}"
                table.blocks.append((f"{group}, {labels}: mean of {len(families)} trained families", lines))
        if grid.variants():
            table.notes.append(OVER_FAMILIES)


def _groups(grid: Grid) -> dict[str, list[str]]:
    """Families trained independently of each other, by the group's name, where there are two or more."""
    groups: dict[str, list[str]] = {}
    for family, info in grid.families.items():
        if info["group"] is not None:
            groups.setdefault(info["group"], []).append(family)
    return {group: families for group, families in groups.items() if len(families) > 1}


def _mean(
    grid: Grid, families: list[str], row: Row, old: Row | None, benchmark: str
) -> tuple[Estimate | None, int]:
    """Of a row's values, or of its differences to another row, over the families that have them; and how many have."""
    found = [
        grid.difference(f, row.members, old.members, benchmark)
        if old
        else grid.value(f, row.members, benchmark)
        for f in families
    ]
    values = [estimate.value for estimate in found if estimate is not None]
    return (mean_over_seeds(values) if values else None), len(values)


def _shown_with_controls(grid: Grid) -> set[str]:
    names = {row.name for row in grid.rows("control")}
    named = [
        grid.row("target"),
        grid.row("vector", 1),
        grid.row("vector", 1, "think"),
        grid.row("vector", -1),
    ]
    return names | {row.name for row in named if row}


def _contrasts(grid: Grid) -> list[tuple[str, Row, Row]]:
    """Pairs of rows that a reader of the paper wants compared directly, of those that the run has."""
    vector, minus = grid.row("vector", 1), grid.row("vector", -1)
    pairs = [
        (vector, grid.row("random", 1)),
        (minus, grid.row("random", -1)),
        (vector, grid.row("sft")),
        (vector, grid.row("grpo")),
        (grid.row("grpo"), grid.row("sft")),
        (grid.row("vector", 1, "think"), grid.row("target", 0, "think")),
    ]
    return [(f"{new.label} against {old.label}", new, old) for new, old in pairs if new and old]


def _spread_line(grid: Grid, family: str, row: Row, benchmarks: list[str]) -> list[list[Text]]:
    """The range of a random control over its seeds, because its interval is over documents only."""
    if len(row.members) < 2:
        return []
    entries = []
    for benchmark in benchmarks:
        values = [v.value for m in row.members if (v := grid.value(family, (m,), benchmark))]
        entries.append(Text(f"{percent(min(values))} to {percent(max(values))}" if values else DASH))
    return [[Text("range over seeds"), *entries]]


def _context(table: str) -> list[str]:
    return [entry["text"] for entry in claims.published()["context"] if entry["table"] == table]


def _notes(grid: Grid, table: Table, compared: dict[tuple[str, str, str], Compared]) -> list[str]:
    """The footnotes that every table of accuracies shares."""
    notes = [f"{mark}: {MARKS[mark]}." for mark in table.marks() if mark in MARKS]
    if compared:
        clusters = {
            grid.benchmarks[b]["label"]: grid.benchmarks[b]["cluster"]
            for _, _, b in compared
            if grid.benchmarks[b]["cluster"]
        }
        clustered = "; ".join(f"{label} by {cluster}" for label, cluster in clusters.items()) or "none here"
        notes.append(
            "±: half of the 95 % interval. Δ: difference to Baseline in percentage points, paired by "
            "document, with its 95 % interval, clustered where documents depend on each other "
            f"({clustered}). * p < 0.05 after Holm's correction over the {len(compared)} comparisons of this "
            "table (exact McNemar where documents are independent, otherwise a clustered t test)."
        )
    if any(row[0].text.startswith("detectable") for _, rows in table.blocks for row in rows):
        notes.append(
            "detectable: the smallest difference that a test at 5 % finds with 80 % power in such documents."
        )
    if any(row[0].text == "paper" for _, rows in table.blocks for row in rows):
        letters = "; ".join(
            f"{letter} = {source}" for letter, source in claims.published()["sources"].items()
        )
        notes.append(f"paper: as published, in points against Baseline. {letters}.")
    return notes + _context(table.name)


def _cost_line(table: Table, family: str, group: str, label: str, cells: list[Cell]) -> list[Text]:
    seconds = sum(cell.cost["seconds"] for cell in cells)
    gpus = [_gpus(cell) for cell in cells]
    hours = sum(n * cell.cost["seconds"] for n, cell in zip(gpus, cells, strict=True)) / 3600
    facts = {
        "cells": len(cells),
        "documents": sum(len(cell.docs) for cell in cells),
        "prompt_tokens": sum(cell.cost["prompt_tokens"] for cell in cells),
        "generated_tokens": sum(cell.cost["generated_tokens"] for cell in cells),
    }
    rate = facts["generated_tokens"] / seconds if seconds else math.nan
    table.data.append(
        {"family": family, "group": group, "label": label, **facts, "seconds": seconds, "gpu_hours": hours}
    )
    shown = [f"{count:,}".replace(",", "\u202f") for count in facts.values()]
    return [
        Text(label),
        *map(Text, shown),
        Text(f"{seconds:.1f}"),
        Text(DASH if math.isnan(rate) else f"{rate:.0f}"),
        Text(f"{hours:.2f}" if any(gpus) else DASH),
    ]


def _gpus(cell: Cell) -> int:
    engine = cell.provenance["engine"]
    return int(engine["tensor_parallel_size"]) if engine["device"] == "gpu" else 0


def _persists(plain: Estimate | None, perturbed: Estimate | None) -> str | None:
    """Whether a gain is there on the perturbed documents; None where there is no reference."""
    if plain is None or perturbed is None:
        return None
    if plain.high < 0:
        return "a loss"
    return "yes" if perturbed.low > 0 else "reversed" if perturbed.high < 0 else "not shown"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    return DASH if value is None else str(value)
