"""What a run will need, told before anything is downloaded: cells, downloads, disk and GPU hours.

    print(describe(config, make_grid(config), pinned(config)))

Sizes of checkpoints are asked of the hub, or come from `size_gb` in conf/family where it does not answer. GPU hours are
answers × tokens ÷ tokens per second for each cell; the tokens are assumed in conf/benchmark (or here), the speed in
conf/family, and the lines say so. Documents, those that a variant keeps, and the answers of a cell are counted from
conf/benchmark; shared cells count once.
"""

import contextlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import hub
from pipeline.config.schema import BenchmarkConfig, CheckpointConfig, Config, Device
from pipeline.errors import UserError
from pipeline.plan.family import FamilyRefused, locate, of_family
from pipeline.plan.grid import Benchmark, Grid, GridCell, asked_of, make_grid
from pipeline.plan.revisions import pinned
from pipeline.weights.checkpoint import downloaded

ANSWER_TOKENS = 300  # assumed mean length of a written answer, where conf/benchmark has none
SCORED_TOKENS = 40  # a scored document: four options of about 100 tokens, read ten times as fast as written
UNANSWERED = "the hub does not answer"
FP32_OVER_BF16 = 2  # a vector has at most four bytes an entry, a checkpoint two


@dataclass(frozen=True)
class Source:
    """Where a checkpoint comes from; sizes in GB (10⁹ bytes), None where nobody knows."""

    name: str
    where: str  # the hub, the cache, or a folder
    size: float | None
    download: float | None
    known_from: str


def describe(config: Config, grid: Grid, pins: Mapping[str, str]) -> str:
    """The estimate as a few lines of text; empty if every checkpoint is a folder here and no GPU is used.

    Args:
        pins: the commits that the lock file has (pipeline/plan/revisions.py).

    Raises:
        UserError: if a checkpoint is a folder that is not there, or one that the hub refuses to give; nothing has been
            downloaded then.
    """
    _check_folders(config)
    sources = _sources(config, pins, ask=True)
    if config.engine.device is Device.cpu and not any(s.known_from for s in sources):
        return ""
    cells = _cells(grid)
    lines = [f"{config.name}: {work(grid)}", _each_cell(cells)]
    width = max(len(s.name) for s in sources)
    lines += [f"  {s.name:<{width}}  {_gb(s.size):>9}  {s.where}{s.known_from}" for s in sources]
    lines.append(_disk(config, grid, sources))
    if config.engine.device is Device.gpu:
        lines.append(_gpu_hours(config, cells))
        if config.engine.dtype == "float32":
            lines.append(_float32(config, sources))
    return "\n".join(lines)


def work(grid: Grid) -> str:
    """How many cells, documents and answers a grid has; what conf/benchmark does not count is named."""
    every = [benchmark for of_family in _cells(grid).values() for benchmark in of_family]
    text = (
        f"{len(grid.families)} target(s) × {len(grid.conditions)} conditions × {len(grid.benchmarks)} benchmarks ="
        f" {len(every)} cells; {sum(map(documents_of, every)):,} documents to answer"
    )
    if any(benchmark.config.samples > 1 for benchmark in every):
        text += f", {sum(map(_answers, every)):,} answers"
    uncounted = sorted({benchmark.origin for benchmark in grid.benchmarks if not documents_of(benchmark)})
    if uncounted:
        text += f" (those of {', '.join(uncounted)} are not counted: conf/benchmark does not say how many)"
    return text


def _each_cell(cells: Mapping[str, list[Benchmark]]) -> str:
    """Documents, samples and assumed tokens of one cell by benchmark; families with less room count by themselves."""
    said: dict[str, None] = {}
    for benchmark in (benchmark for listed in cells.values() for benchmark in listed):
        documents = f"{documents_of(benchmark):,}" if documents_of(benchmark) else "?"
        samples = f" × {benchmark.config.samples} answers" if benchmark.config.samples > 1 else ""
        scored = " scored" if _is_scored(benchmark.config) else ""
        said[f"{benchmark.name} {documents}{samples} × {_tokens(benchmark.config):,}{scored}"] = None
    return f"  a cell, documents × tokens (assumed): {', '.join(said)}"


def disk_needed(config: Config) -> tuple[float, float]:
    """GB to download into the hub's cache, and GB of vectors at most, without asking the hub."""
    return _needed(config, make_grid(config), _sources(config, pinned(config), ask=False))


def _sources(config: Config, pins: Mapping[str, str], ask: bool) -> list[Source]:
    """Every checkpoint that the run opens, once."""
    found: list[Source] = []
    opened = [
        (name, s) for name, family in config.opened_families().items() for s in family.sources().values()
    ]
    for name, source in {(s.id, s.revision, s.subfolder): (name, s) for name, s in reversed(opened)}.values():
        # each question is asked five times over
        silent = hub.is_silent() or any(UNANSWERED in s.known_from for s in found)
        pinned_source = replace(source, revision=source.revision or pins.get(source.id))
        with of_family(name):
            found.append(_source(pinned_source, ask=ask and not silent))
    return found[::-1]


def _needed(config: Config, grid: Grid, sources: list[Source]) -> tuple[float, float]:
    sizes = {s.name: s.size or 0.0 for s in sources}  # by the name of `_name`
    parts = {term.part for c in grid.conditions for term in c.added()} | {
        None
    }  # the whole vector, and parts of it
    opened = [family.sources() for family in config.opened_families().values()]
    donors = [found["grpo"] for found in opened if {"sft", "grpo"} <= found.keys()]
    vectors = len(parts) * sum(FP32_OVER_BF16 * sizes[_name(grpo)] for grpo in donors)
    return sum(s.download or 0.0 for s in sources), vectors


def _check_folders(config: Config) -> None:
    """Refuse a folder that is not there before the first checkpoint is downloaded."""
    opened = [
        (name, part, source)
        for name, family in config.opened_families().items()
        for part, source in family.sources().items()
    ]
    for family, part, source in opened:
        if Path(locate(source)).is_dir() or re.fullmatch(r"[^/.][^/]*/[^/]+", source.id):
            continue
        raise FamilyRefused(
            family,
            f"families.{family}.{part}: no folder {source.id}; set families.{family}.{part}.id to a checkpoint, or"
            f" choose other families of {', '.join(config.families)}",
        )


def _source(source: CheckpointConfig, ask: bool) -> Source:
    """Size and place of a checkpoint, asked of the hub or known without it."""
    folder, name = Path(locate(source)), _name(source)
    if folder.is_dir():
        inside = folder / (source.subfolder or ".")
        size = sum(file.stat().st_size for file in inside.glob("*") if file.is_file()) / 1e9
        return Source(name, "a folder", size, 0.0, "")
    patterns, ignored = downloaded(source.subfolder)
    options: dict[str, Any] = {
        "revision": source.revision,
        "allow_patterns": patterns,
        "ignore_patterns": ignored,
    }
    download = hub.client().snapshot_download
    refused = None
    if ask:
        try:
            files = download(source.id, **options, dry_run=True)
            if not any(Path(file.filename).name in ("config.json", "adapter_config.json") for file in files):
                listed = hub.client().list_repo_files(source.id, revision=source.revision)
                _refuse_place(name, listed)
            size = sum(file.file_size for file in files) / 1e9
            left = sum(file.file_size for file in files if file.will_download) / 1e9
            where = "to download" if left else "in the cache"
            return Source(name, where, size, left, " (asked of the hub)")
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - the client's network library has exceptions of its own
            refused = hub.refusal(error)
    with contextlib.suppress(Exception):
        snapshot = Path(download(source.id, **options, local_files_only=True))
        size = sum(file.stat().st_size for file in snapshot.rglob("*") if file.is_file()) / 1e9
        return Source(name, "in the cache", size, 0.0, f" ({UNANSWERED})")
    if refused is not None:
        raise UserError(f"{source.id} at {source.revision or 'main'}: {refused}")
    known = f" (by conf/family; {UNANSWERED})" if source.size_gb else f" ({UNANSWERED})"
    return Source(name, "to download", source.size_gb, source.size_gb, known)


def _refuse_place(name: str, files: list[str]) -> None:
    """Say which folders of a repository are checkpoints, where it has none at its root.

    Raises:
        UserError: always.
    """
    folders = sorted({str(Path(file).parent) for file in files if Path(file).name == "config.json"})
    remedy = (
        f"name one of its folders in subfolder: {', '.join(folders)}" if folders else "check the spelling"
    )
    if "." in folders:
        remedy = "there is a checkpoint at the root of its repository: leave subfolder out"
    raise UserError(f"{name} has no config.json; {remedy}")


def _name(source: CheckpointConfig) -> str:
    """A checkpoint as the lines call it."""
    return source.id if source.subfolder is None else f"{source.id}/{source.subfolder}"


def _cells(grid: Grid) -> dict[str, list[Benchmark]]:
    """The task of each cell by family; what comes to the same thing counts once, in the first family that has it."""
    found: dict[str, list[Benchmark]] = {name: [] for name in grid.families}
    counted = set[tuple[Any, ...]]()
    for cell in grid.cells:
        c, benchmark = cell.condition, asked_of(grid.families[cell.family], cell.benchmark)
        asked = (c.prompt, c.order, c.at_once, benchmark.name, benchmark.config.max_gen_toks)
        if (key := (*_weights(grid, cell), *asked)) not in counted:
            counted.add(key)
            found[cell.family].append(benchmark)
    return found


def _weights(grid: Grid, cell: GridCell) -> tuple[Any, ...]:
    """What is asked and through which template, as far as the configuration tells: families can share a target."""
    family, c = grid.families[cell.family], cell.condition
    sources = family.sources()
    start = sources.get(c.start.value)
    if c.added() or start is None or start.merge_into is not None:
        return cell.family, c.start, c.added()
    template = None if family.template is None else sources[family.template].id
    return start.id, start.revision, start.subfolder, family.chat, template


def documents_of(benchmark: Benchmark) -> int:
    """How many documents a cell asks; 0 where conf/benchmark does not say how many there are.

    A variant has those that it can change soundly, where conf/benchmark says how many, and else as many as are plain.
    """
    dataset = benchmark.config.dataset
    limit = benchmark.limit * len(benchmark.subtasks) if benchmark.limit else None
    kept = None
    if benchmark.perturbation is not None and dataset.documents is not None:
        kept = dataset.kept.get(benchmark.perturbation)
    return min((n for n in (dataset.documents, kept, limit) if n is not None), default=0)


def tokens_of(benchmark: Benchmark) -> int:
    """How many tokens the answers of a cell are assumed to have, all together; 0 where nobody counted its documents."""
    return _answers(benchmark) * _tokens(benchmark.config)


def _answers(benchmark: Benchmark) -> int:
    return documents_of(benchmark) * benchmark.config.samples


def _is_scored(benchmark: BenchmarkConfig) -> bool:
    return benchmark.metric.startswith("acc")


def _tokens(benchmark: BenchmarkConfig) -> int:
    if _is_scored(benchmark):
        return SCORED_TOKENS
    tokens = benchmark.answer_tokens or ANSWER_TOKENS
    return min(tokens, benchmark.max_gen_toks or tokens)


def _disk(config: Config, grid: Grid, sources: list[Source]) -> str:
    download, vectors = _needed(config, grid, sources)
    there = Path(config.results).absolute()
    while not there.exists():
        there = there.parent
    return (
        f"  disk: {_gb(download)} to download and at most {_gb(vectors)} of vectors, records aside;"
        f" {_gb(shutil.disk_usage(there).free / 1e9)} free for results"
    )


def _gpu_hours(config: Config, cells: dict[str, list[Benchmark]]) -> str:
    tokens = {f: sum(map(tokens_of, c)) for f, c in cells.items()}
    speeds = {name: config.families[name].tokens_per_second for name in cells}
    hours = [f"{name} {tokens[name] / speed / 3600:.1f} h" for name, speed in speeds.items() if speed]
    unknown = [name for name, speed in speeds.items() if not speed]
    each = ", ".join(f"{speed:,.0f} for {name}" for name, speed in speeds.items() if speed)
    return (
        f"  GPU: {', '.join(hours) or 'unknown'} on one card: an estimate, {sum(tokens.values()):,} tokens ÷ tokens/s ({each or 'unknown'}; assumed in conf/family)"
        + (f"; set tokens_per_second of {', '.join(unknown)}" if unknown else "")
    )


def _float32(config: Config, sources: list[Source]) -> str:
    """What weights in float32 take of a card's memory."""
    sizes = {s.name: s.size for s in sources}
    targets = {_name(f.target): sizes.get(_name(f.target)) for f in config.chosen_families().values()}
    each = [
        f"{name} {_gb(None if size is None else FP32_OVER_BF16 * size)}" for name, size in targets.items()
    ]
    return f"  memory: weights in float32 take twice those of bf16: {', '.join(each)}, the cache of keys and values aside"


def _gb(size: float | None) -> str:
    return "? GB" if size is None else f"{size:.1f} GB"
