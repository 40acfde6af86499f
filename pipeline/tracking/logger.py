"""Writes runs to W&B's offline files.

A condition's run has its numbers as `<benchmark>/<name>`, every metric as `<benchmark>/metrics/<metric>`, and where its weights are made with a vector, that vector as
an artifact that refers to the file, with its geometry. Scores are fractions there; the summary's are in per cent.
"""

import html
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import wandb

from pipeline.analysis.results import Results
from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.records import Record
from pipeline.tracking.runs import Run
from pipeline.tracking.summary import comparisons, figures, rendered, sweep_rows, sweep_steps
from pipeline.weights.geometry_report import Facts, GeometryReport, read_report

SAMPLES = 25  # rows of each benchmark's sample table
TEXTS = ("prompt", "target", "output")
METRICS = ("score", "stderr", "n", "share_truncated", "share_not_extracted", "mean_tokens")
FACTS = ("norm", "relative_norm", "sparsity")  # of a vector
COSTS = ("seconds", "generated_tokens", "prompt_tokens", "requests")


class Logger:
    """Logs the runs of one experiment to files."""

    def __init__(self, config: Config, results: Results) -> None:
        self.config, self.results = config, results
        self.geometries: dict[tuple[str, str], GeometryReport | None] = {}  # by a vector's key and a pattern
        self.entries: dict[str, Any] = {}  # references to vectors' files, whose checksums are known

    def log(self, run: Run, keep: Collection[str]) -> Path:
        """Write a run in the place of its last version, if there is one; returns its folder.

        Args:
            keep: names of folders that are the same run in another project.
        """
        for left in (self.results.folder / "wandb").glob(f"offline-run-*-{run.id}*"):
            if left.name not in keep:
                shutil.rmtree(left)
        condition = self.results.conditions[run.condition] if run.condition else None
        logged = wandb.init(
            project=self.config.tracking.project,
            entity=self.config.tracking.entity,
            group=f"{self.config.name}/{run.family}",
            job_type=condition.role if condition else "summary",
            name=run.name,
            id=run.id,  # and not resumed: what is logged again replaces what was
            dir=str(self.results.folder),
            mode="offline",
            config={"experiment": self.config.name, "family": run.family} | self._config(run),
            settings=wandb.Settings(
                console="off",
                silent=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_save_requirements=False,
            ),
        )
        try:
            if run.condition is None:
                self._log_summary(logged)
            else:
                logged.log(self._metrics(run) | self._geometry(run))
                self._refer_to_vectors(logged, run)
        finally:
            logged.finish()
        return Path(logged.dir).parent

    # ---- the summary ----

    def _log_summary(self, logged: wandb.Run) -> None:
        logged.define_metric("sweep/*", step_metric="alpha")
        for step in sweep_steps(self.results):
            logged.log(step)
        compared = {comparison.name: comparison.value for comparison in comparisons(self.results)}
        columns: list[str | int] = ["sweep", "family", "benchmark", "alpha", "score", "stderr", "mean_tokens"]
        rows: list[Any] = sweep_rows(self.results)
        logged.log(compared | self._rendered() | {"alpha_sweep": wandb.Table(columns=columns, data=rows)})

    def _rendered(self) -> dict[str, Any]:
        """The rendered tables and figures."""
        data: dict[str, Any] = {name: wandb.Image(str(path)) for name, path in figures(self.config).items()}
        for path in rendered(self.config, "*.md"):
            data[f"tables/{path.stem}"] = wandb.Html(
                f"<pre>{html.escape(path.read_text())}</pre>", inject=False
            )
        return data

    # ---- a condition ----

    def _config(self, run: Run) -> dict[str, Any]:
        """What the run was made from."""
        if run.condition is None:
            return {}
        condition, record = self.results.conditions[run.condition], self._records(run)[0]
        return {
            "condition": run.condition,
            "role": condition.role,
            "weights": condition.kind,
            "start": condition.start,
            "terms": [asdict(term) for term in condition.terms],
            "alpha": condition.alpha,
            "seed": condition.seed,
            "prompt": record.inputs["prompt"],
            "engine": record.inputs["engine"],
            "versions": record.provenance["versions"],
            "checkpoints": record.provenance["family"],
            "vectors": self._vectors(run),
            "keys": {cell.benchmark: cell.key for cell in run.cells},
        }

    def _records(self, run: Run) -> list[Record]:
        """The records of a condition's run, in the order of its benchmarks."""
        found = (self.results.cells[cell.place].record for cell in run.cells)
        return [record for record in found if record is not None]

    def _metrics(self, run: Run) -> dict[str, Any]:
        """Scores, lengths, cost and throughput by benchmark, and a table of samples."""
        data: dict[str, Any] = {}
        for cell, record in zip(run.cells, self._records(run), strict=True):
            name = cell.benchmark.replace("@", "/")
            facts = {k: v for k, v in record.metrics.items() if k in METRICS and v is not None}
            facts |= {k: v for k, v in record.cost.items() if k in COSTS}
            data |= {f"{name}/{k}": v for k, v in facts.items()}
            data |= {f"{name}/metrics/{metric}": value for metric, value in record.metrics["values"].items()}
            seconds = record.cost["seconds"]
            data[f"{name}/tokens_per_second"] = record.cost["generated_tokens"] / seconds if seconds else 0.0
            rows: list[Any] = [
                [s["doc_id"], s["prompt"], s["target"], s["output"], s["score"], s["tokens"]]
                for s in record.samples()[:SAMPLES]
            ]
            data[f"{name}/samples"] = wandb.Table(columns=["document", *TEXTS, "score", "tokens"], data=rows)
        return data

    def _vectors(self, run: Run) -> list[str]:
        """Keys of the vectors that a condition's weights are made with, as its records name them."""
        weights = self._records(run)[0].inputs["weights"]
        alone, several = weights.get("vector"), weights.get("terms", [])
        return [alone] if alone else [term["vector"] for term in several]

    def _geometry(self, run: Run) -> dict[str, Any]:
        """Norms and sparsity of the condition's vector beside its target: in all, and as tables by module and by layer."""
        vectors, named = self._vectors(run), self.results.families[run.family].geometry
        geometry = self._geometry_of(vectors[0], Path(named).name) if vectors and named else None
        if geometry is None:
            return {}
        total = geometry["total"]
        data: dict[str, Any] = {
            f"geometry/{fact}": number for fact, number in zip(FACTS, _facts(total), strict=True)
        }
        modules = [[row["module"], row["entries"], *_facts(row)] for row in geometry["modules"]]
        layers = [[row["layer"], row["entries"], *_facts(row)] for row in geometry["layers"]]
        data["geometry/modules"] = wandb.Table(columns=["module", "entries", *FACTS], data=modules)
        data["geometry/layers"] = wandb.Table(columns=["layer", "entries", *FACTS], data=layers)
        return data

    def _geometry_of(self, key: str, pattern: str) -> GeometryReport | None:
        """The first geometry file of that name beside a vector; None where none is beside the records."""
        if (key, pattern) not in self.geometries:
            self.geometries[key, pattern] = None
            with suppress(UserError):
                for path in sorted((self.results.folder / "vectors" / key).glob(pattern))[:1]:
                    self.geometries[key, pattern] = read_report(path)
        return self.geometries[key, pattern]

    def _refer_to_vectors(self, logged: wandb.Run, run: Run) -> None:
        """Log each vector as an artifact that refers to its file, by checksum; nothing is uploaded."""
        for key in self._vectors(run):
            file = self.results.folder / "vectors" / key / "vector.safetensors"
            if not file.is_file():
                continue
            geometry = self._geometry_of(key, "geometry-*.json")  # any target's: these facts are v's alone
            about: dict[str, Any] = {"key": key}
            if geometry is not None:
                total = geometry["total"]
                about |= {"fingerprint": geometry["vector"], "entries": total["entries"]}
                about |= {"norm": total["norm"], "sparsity": total["sparsity"]}
            artifact = wandb.Artifact(f"vector-{key[:16]}", type="vector", metadata=about)
            if key in self.entries:  # one pass over the file is enough for all conditions
                artifact.manifest.add_entry(self.entries[key])
            else:
                (self.entries[key],) = artifact.add_reference(file.resolve().as_uri())
            logged.log_artifact(artifact)


def _facts(facts: Facts) -> list[float | None]:
    """FACTS of a group of tensors."""
    return [facts["norm"], facts["relative_norm"], facts["sparsity"]]
