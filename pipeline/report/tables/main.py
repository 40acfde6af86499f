"""The paper's table: main conditions × plain benchmarks for each family, with the published number under ours."""

from pipeline.analysis.comparisons import Compared, gains
from pipeline.analysis.published import published_figures
from pipeline.analysis.results import REFERENCE, Results, Row
from pipeline.analysis.subtasks import difference_over_subtasks, score_over_subtasks
from pipeline.report.facts import published_facts
from pipeline.report.numbers import DASH, interval, percent, plus_minus, signed
from pipeline.report.sentences import pair_notes
from pipeline.report.table import Block, Facts, Kind, Line, Table, Text
from pipeline.report.tables.accuracy import (
    Accuracies,
    again_facts,
    again_lines,
    footnotes,
    header,
)


def table(results: Results) -> Table:
    """Accuracy by main condition and plain benchmark."""
    rows, benchmarks, reference = results.rows("main"), results.plain(), results.reference
    vector = results.row("vector", 1)
    compared = gains(results)
    made = Table(
        "main", "Accuracy in per cent by condition and benchmark", header(results, "Condition", benchmarks)
    )
    accuracies = Accuracies(results, made, benchmarks, compared)
    numbered: dict[str, str] = {}
    for family, entry in results.families.items():
        lines = []
        for row in rows:
            lines += accuracies.lines(family, row, reference)
            lines += again_lines(results, family, row, benchmarks)
            lines += _published(results, family, row, benchmarks, numbered)
            for facts, benchmark in zip(accuracies.facts(family, row, reference), benchmarks, strict=True):
                published = published_facts(results, family, row, benchmark)
                made.data.append(facts | published | _subtasks_facts(results, family, row, benchmark))
            made.data += again_facts(results, family, row, benchmarks)
        if vector:
            lines += _detectable(vector, accuracies.differences(family, vector, reference))
        made.blocks.append(Block(entry.label, lines))
    accuracies.add_means(rows, reference)
    made.notes += pair_notes(results)
    made.notes += [f"{mark}: {note}" for note, mark in numbered.items()]
    if all(entry.published_size is None for entry in results.families.values()):
        made.notes.append("The paper has no figures for these models, so none stand beside ours.")
    made.notes += footnotes(results, made, compared)
    made.notes += _over_subtasks(results, benchmarks, vector)
    return made


def _over_subtasks(results: Results, benchmarks: list[str], vector: Row | None) -> list[str]:
    """What a benchmark of fixed subtasks says of other subtasks of its kind: Baseline and the gain of v."""
    notes = []
    for benchmark in benchmarks:
        texts = []
        for family, entry in results.families.items():
            of = f"{entry.label}, " if len(results.families) > 1 else ""
            score = score_over_subtasks(results, family, results.reference, benchmark)
            if score:
                texts.append(f"{of}{results.reference.label} {plus_minus(score)}")
            gain = vector and difference_over_subtasks(results, family, vector, results.reference, benchmark)
            if vector and gain:
                texts.append(f"{of}{vector.label} {interval(gain)} points")
        if texts:
            notes.append(
                f"{results.label(benchmark)} with its subtasks as a sample, which is what a claim about other subtasks of"
                f" this kind rests on: {'; '.join(texts)}. Nothing is tested here; the other rows are in the CSV."
            )
    return notes


def _subtasks_facts(results: Results, family: str, row: Row, benchmark: str) -> Facts:
    """The intervals over subtasks as a sample, of a row's score and of its gain."""
    score = score_over_subtasks(results, family, row, benchmark)
    gain = difference_over_subtasks(results, family, row, results.reference, benchmark)
    facts: Facts = {}
    for prefix, estimate in (("", score), ("difference_", gain)):
        for end in ("low", "high"):
            facts[f"{prefix}subtasks_{end}"] = 100 * getattr(estimate, end) if estimate else None
    return facts


def _published(
    results: Results, family: str, row: Row, benchmarks: list[str], numbered: dict[str, str]
) -> list[Line]:
    """The paper's numbers for a row, in families of a size that it reports; dashes where it is silent.

    Args:
        numbered: the notes on figures by their text, with the number that marks them; further ones are added.
    """
    is_reported = results.families[family].published_size is not None and row.entry.kind != "sum"
    if not is_reported or row.name == REFERENCE:
        return []
    entries = []
    for benchmark in benchmarks:
        texts, marks = [], ""
        for figure in published_figures(results, family, row, benchmark):
            shown = (
                f"{figure.score:.1f} after" if figure.difference is None else signed(figure.difference / 100)
            )
            texts.append(f"{shown} ({', '.join(figure.source)})")
            if figure.note is not None:
                marks += numbered.setdefault(figure.note, str(len(numbered) + 1))
        entries.append(Text("; ".join(texts) or DASH, marks))
    return [Line(Kind.published, "paper", entries)]


def _detectable(vector: Row, differences: list[Compared | None]) -> list[Line]:
    """The smallest difference that each benchmark's documents can show, for +Vector."""
    if not any(differences):
        return []
    entries = [Text(percent(found.difference.detectable) if found else DASH) for found in differences]
    return [Line(Kind.detectable, f"detectable ({vector.label})", entries)]
