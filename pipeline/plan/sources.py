"""What a configuration leaves open, found out: where the documents are, and which commits `main` stands for.

    sources = find_sources(config)            # generates the micro documents if they are not there
    sources.folder, sources.revision(family.target)

A value of its own: the configuration does not change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config.schema import CheckpointConfig, Config, DataConfig
from pipeline.errors import UserError
from pipeline.files import ROOT, code_fingerprint, digest, new_folder
from pipeline.plan import revisions
from pipeline.plan.grid import Benchmark


@dataclass(frozen=True)
class Sources:
    """Where documents are, and the commits that the lock file has (pipeline/plan/revisions.py)."""

    folder: str | None  # None is the hub
    pinned: Mapping[str, str]

    def revision(self, source: CheckpointConfig) -> str | None:
        """The revision of a checkpoint: as configured, else as pinned; None is what main is now."""
        return source.revision or self.pinned.get(source.id)

    def benchmark(self, benchmark: Benchmark) -> Benchmark:
        """A column of the grid with its documents found."""
        dataset = benchmark.config.dataset
        folder = dataset.folder or self.folder
        if folder is None and not dataset.id:
            raise UserError(
                f"benchmarks.{benchmark.origin}: its documents are in no folder and not on the hub; set"
                f" benchmarks.{benchmark.origin}.dataset.folder, or data.folder"
            )
        if folder is None and dataset.revision is None:
            dataset = replace(dataset, revision=self.pinned.get(revisions.name_of(dataset)))
        return replace(benchmark, folder=folder, config=replace(benchmark.config, dataset=dataset))


def find_sources(config: Config) -> Sources:
    """Read the lock file, and find or generate the documents.

    Raises:
        UserError: if the lock file cannot be read, or there are no documents.
    """
    return Sources(_documents(config), revisions.pinned(config))


def _documents(config: Config) -> str | None:
    data = config.data
    if data.generator is not None and data.folder is not None:
        raise UserError("data: folder and generator are both set; add data.generator=null to use the folder")
    if data.generator is not None:
        return str(_generated(data, Path(config.results)))
    if data.folder is not None and not Path(data.folder).is_dir():
        raise UserError(f"data.folder={data.folder}: no such folder; make it, or unset it to use the hub")
    return data.folder


def _generated(data: DataConfig, results: Path) -> Path:
    """The folder of generated documents, made unless this version of the generator has made it already."""
    if data.generator != "micro":
        raise UserError(f"data.generator: expected 'micro' or null, found '{data.generator}'")
    from evals.micro import SIZES, write_benchmarks

    sizes = dict(data.sizes)
    for name, size in sizes.items():
        if name not in SIZES or size < 1:
            raise UserError(
                f"data.sizes.{name}={size}: expected a number of documents for one of {', '.join(SIZES)}"
            )
    code = [code_fingerprint(path) for path in sorted((ROOT / "evals" / "micro").glob("*.py"))]
    folder = results / "data" / f"micro-{digest([code, data.seed, SIZES | sizes])[:12]}"
    if not folder.is_dir():
        with new_folder(folder) as temporary:
            write_benchmarks(temporary, data.seed, sizes)
    return folder
