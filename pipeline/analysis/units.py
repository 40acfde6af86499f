"""Which documents are copies of each other, and how many independent units a benchmark has.

    near_duplicates(prompts, within=subtasks)      public sets
    templates(prompts)                             generated programs: what is left without the constants
    skeletons(answers)                             generated word problems: the operators of the solution
    merge(sources, templates)                      labels joined: either kind of copy makes one unit
    count(labels)                                  documents, units, the largest unit

Near-duplicates are found exactly, by the Jaccard similarity of word shingles (Broder 1997), with texts chained
through a third taken together: that is what a test set of some thousand prompts allows, without hashing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipeline.analysis.design import Codes, codes

SHINGLE = 3  # words or signs in a row
SIMILAR = 0.8  # Jaccard similarity from which two prompts are near-duplicates
COMMON = 0.5  # a shingle in more than this share of the prompts is the task's wording, not the document's
_BLOCK = 1000  # texts that are looked up at a time
_PAIRS = 100_000  # pairs that are compared at a time

_LITERALS = (
    (re.compile(r"'[^'\n]*'|\"[^\"\n]*\""), "s"),
    (re.compile(r"\b(?:True|False)\b"), "0"),
    (re.compile(r"[-+]?\d+(?:[.,]\d+)*"), "0"),
    (re.compile(r"\[[0s, ]*\]"), "[0]"),
)


@dataclass(frozen=True)
class Units:
    """How many documents there are, how many independent units they make, and the documents of the largest."""

    documents: int
    units: int
    largest: int


def count(labels: ArrayLike) -> Units:
    """Units of documents with these labels (n,)."""
    sizes = np.bincount(codes(labels))
    return Units(int(sizes.sum()), len(sizes), int(sizes.max()))


def near_duplicates(texts: Sequence[str], within: ArrayLike | None = None, similar: float = SIMILAR) -> Codes:
    """Codes (n,) that are equal for near-duplicates.

    Args:
        within: labels (n,) of parts whose texts are compared among themselves alone, such as subtasks.
    """
    parts = np.zeros(len(texts), dtype=np.intp) if within is None else codes(within)
    labels = np.empty(len(texts), dtype=np.intp)
    used = 0
    for part in range(int(parts.max(initial=-1)) + 1):
        members = np.flatnonzero(parts == part)
        found = _duplicates([texts[i] for i in members], similar)
        labels[members] = found + used
        used += int(found.max()) + 1
    return labels


def templates(texts: Sequence[str]) -> Codes:
    """Codes (n,) that are equal for texts that differ in constants alone: numbers, quoted words, lists of them."""
    return _coded(texts, _without_literals)


def skeletons(answers: Sequence[str]) -> Codes:
    """Codes (n,) that are equal for solutions with the same operators in the same order (GSM8K's `<<2*3=6>>`).

    A solution without annotations stands alone.
    """
    found = ["".join(re.findall(r"<<[^<>=]*?([-+*/])[^<>]*?=", answer)) for answer in answers]
    return _coded([operators or f"document {i}" for i, operators in enumerate(found)], str)


def merge(*labels: ArrayLike) -> Codes:
    """Codes (n,) of documents that are joined by a chain of equal labels of any kind."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    kinds = [codes(kind) for kind in labels]
    n, offset = len(kinds[0]), len(kinds[0])
    rows, columns = [], []
    for kind in kinds:
        rows.append(np.arange(n))
        columns.append(kind + offset)
        offset += int(kind.max()) + 1
    edges = (np.concatenate(rows), np.concatenate(columns))
    graph = coo_matrix((np.ones(len(edges[0])), edges), shape=(offset, offset))
    return codes(connected_components(graph, directed=False)[1][:n])


def _coded(texts: Sequence[str], key: Callable[[str], str]) -> Codes:
    return codes(np.array([key(text) for text in texts], dtype=object).astype(str))


def _without_literals(text: str) -> str:
    for literal, sign in _LITERALS:
        text = literal.sub(sign, text)
    return " ".join(text.split())


def _duplicates(texts: list[str], similar: float) -> Codes:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    words = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in texts]
    present = _shingles(words)
    if len(texts) > 2:
        spread = np.asarray(present.sum(axis=0)).ravel()
        present = present[:, spread <= max(1.0, COMMON * len(texts))]
    same = _coded([" ".join(word) for word in words], str)
    first = np.unique(same, return_index=True)[1]  # a text that stands there several times is compared once
    rows, columns = _close(present[first], similar)
    rows, columns = (
        np.concatenate([np.arange(len(texts)), first[rows]]),
        np.concatenate([first[same], first[columns]]),
    )
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(texts), len(texts)))
    return codes(connected_components(graph, directed=False)[1])


def _close(present: Any, similar: float) -> tuple[Codes, Codes]:
    """Pairs of rows (texts × shingles) of this Jaccard similarity or more.

    Two such rows share one of their rarest shingles: of n, those that are not among the last ceil(similar n) - 1 in a common
    order (prefix filtering; Chaudhuri, Ganti and Kaushik 2006). Only rows that do are compared, so that the wording that
    many texts share costs nothing.
    """
    sizes = np.diff(present.indptr)
    rare = _rarest(present, sizes - np.ceil(similar * sizes - 1e-9).astype(int) + 1)
    rows, columns = [np.empty(0, dtype=np.intp)], [np.empty(0, dtype=np.intp)]
    for start in range(0, present.shape[0], _BLOCK):
        shared = (rare[start : start + _BLOCK] @ rare.T).tocoo()
        row, column = shared.row + start, shared.col
        row, column = row[row < column], column[row < column]
        for first in range(0, len(row), _PAIRS):
            a, b = row[first : first + _PAIRS], column[first : first + _PAIRS]
            both = np.asarray(present[a].multiply(present[b]).sum(axis=1)).ravel()
            close = both >= similar * (sizes[a] + sizes[b] - both)
            rows.append(a[close])
            columns.append(b[close])
    return np.concatenate(rows), np.concatenate(columns)


def _rarest(present: Any, kept: Codes) -> Any:
    """Of each row as many of its shingles as `kept` says, the rarest first."""
    from scipy.sparse import csr_matrix

    spread = np.asarray(present.sum(axis=0)).ravel()
    rank = np.empty(present.shape[1], dtype=np.intp)
    rank[np.argsort(spread, kind="stable")] = np.arange(present.shape[1])
    row = np.repeat(np.arange(present.shape[0]), np.diff(present.indptr))
    order = np.lexsort((rank[present.indices], row))
    place = np.arange(len(order)) - present.indptr[:-1][row]  # of each shingle within its row, in that order
    used = order[place < kept[row]]
    return csr_matrix(
        (np.ones(len(used), dtype=np.int32), (row[used], present.indices[used])), shape=present.shape
    )


def _shingles(words: list[list[str]]) -> Any:
    """Texts × shingles, 1 where the text has the shingle (a sparse matrix)."""
    from scipy.sparse import csr_matrix

    known: dict[tuple[str, ...], int] = {}
    columns: list[int] = []
    ends = [0]
    for text in words:
        own = {tuple(text[i : i + SHINGLE]) for i in range(max(1, len(text) - SHINGLE + 1))}
        columns += [known.setdefault(shingle, len(known)) for shingle in sorted(own)]
        ends.append(len(columns))
    ones = np.ones(len(columns), dtype=np.int32)
    return csr_matrix((ones, columns, ends), shape=(len(words), len(known)))
