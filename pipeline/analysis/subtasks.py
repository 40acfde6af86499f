"""A benchmark of fixed subtasks, such as BBH, for a reader who asks about other subtasks of its kind.

Its main number is the mean over the subtasks that it has, with the interval of documents within them. Here each
subtask is one unit of a sample of subtasks, so that the interval holds the spread between them.
"""

from pipeline.analysis.design import Design, sample_of
from pipeline.analysis.estimate import Difference, Estimate
from pipeline.analysis.repeats import mean_difference, mean_score
from pipeline.analysis.results import Results, Row
from pipeline.analysis.scores import CellScores


def score_over_subtasks(results: Results, family: str, row: Row, benchmark: str) -> Estimate | None:
    """A row's score with the interval over subtasks; None of a benchmark without two of them, or without a cell."""
    cells = results.repetitions(family, row, benchmark)
    design = _sample(cells[0]) if cells else None
    return mean_score([cell.score for cell in cells], design) if design else None


def difference_over_subtasks(
    results: Results, family: str, new: Row, reference: Row, benchmark: str
) -> Difference | None:
    """A paired difference with the interval over subtasks; None likewise."""
    pairs = results.pairs(family, new, reference, benchmark)
    design = _sample(pairs[0][0]) if pairs else None
    return mean_difference([a.score - b.score for a, b in pairs], design, level=None) if design else None


def _sample(cell: CellScores) -> Design | None:
    subtasks = [str(subtask) for subtask, _ in cell.sources]
    return sample_of(subtasks) if cell.is_stratified and len(set(subtasks)) > 1 else None
