"""W&B as a projection of the records: every condition is a run, and one more run holds the tables and figures.

Everything is read from the manifest and the store, so a dashboard can be filled after the fact, or filled again. The id
of a run is derived from the keys of its cells: logging twice makes no duplicate, and what has been logged once to a
project is left alone (markers under results/wandb/logged). Only the summary is logged anew, as the same run, when more
cells or other renderings are there. Runs are written to files first (`results/wandb/offline-run-*`); with an API key
they are then uploaded by `wandb sync` in a process of its own, which is ended when the server does not answer.
So a server costs seconds, and never the run or what it logged.

A condition's run has its metrics as `<benchmark>/<metric>`, and where its weights are made with a vector, that vector as
an artifact that refers to the file, with its geometry. Scores are fractions there; the summary's are in per cent.
"""

import hashlib
import html
import http.client
import json
import netrc
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.analysis import claims
from pipeline.analysis.results import REFERENCE, Grid
from pipeline.config.schema import Config, Tracking
from pipeline.errors import UserError
from pipeline.files import digest, write_file
from pipeline.records import read_record

SAMPLES = 25  # rows of each benchmark's sample table
SERVER = "https://api.wandb.ai"
ANSWER_WITHIN = 3.0  # seconds that a server has to answer at all
UPLOAD_WITHIN = 10.0  # seconds that the upload may make no progress
MODES = {m: m for m in ("online", "offline", "disabled")} | {"run": "online", "dryrun": "offline"}
METRICS = ("score", "stderr", "n", "share_truncated", "share_not_extracted", "mean_tokens")
COSTS = ("seconds", "generated_tokens", "prompt_tokens", "requests")
Run = dict[str, Any]  # id, content, name, family, condition (None: the summary), cells: {benchmark: key}


def track(config: Config, manifest: dict[str, Any], report: Callable[[str], None]) -> None:
    """Log every complete condition that has not been logged yet, then the tables and figures.

    Raises:
        UserError: if online logging is asked for and no API key is known.
    """
    where, results = mode(config), Path(config.results)
    if where == "disabled":
        return
    if config.tracking.mode is Tracking.auto and _environment() not in MODES:
        report(f"W&B: WANDB_MODE={_environment()}: expected one of {', '.join(MODES)}; taken as offline")
    grid = Grid(manifest, results)
    runs = _runs(config, grid)
    unlogged = [run for run in runs if run["content"] not in _noted(_marker(config, run))]
    if unlogged:
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        logger = _Logger(config, grid)
        with _without("WANDB_MODE", "WANDB_BASE_URL"):  # the files need neither, and fail if one is malformed
            try:
                for run in unlogged:
                    folder = logger.log(run)
                    write_file(_marker(config, run), f"{run['content']} {folder.name}".encode())
            except (wandb.Error, OSError, ValueError) as e:  # a setting that is malformed is a ValueError
                report(f"W&B: nothing more is logged ({_short(e)}); run the stage 'track' again")
                return
            finally:
                wandb.teardown()  # its process ends, and its files are whole
    folders = [results / "wandb" / _noted(_marker(config, run))[1] for run in runs]
    waiting = [folder for folder in folders if folder.is_dir() and not _is_synced(folder)]
    by_hand = f"`wandb sync {results / 'wandb'}/offline-run-*` uploads them"
    if where == "offline" and unlogged:
        report(f"W&B: {len(unlogged)} runs logged offline; {by_hand}")
    elif where == "online" and waiting:
        if problem := _upload(waiting):
            report(f"W&B: not uploaded ({problem}); the runs are kept: the stage 'track' or {by_hand}")
        else:
            report(f"W&B: {len(waiting)} runs logged online")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


def mode(config: Config) -> str:
    """online, offline or disabled: `auto` is what WANDB_MODE says, and offline where no API key is known.

    Raises:
        UserError: if online logging is asked for and no API key is known.
    """
    if config.tracking.mode is Tracking.auto:
        found = MODES.get(_environment(), "offline")
        return "offline" if found == "online" and not has_key() else found
    if config.tracking.mode is Tracking.online and not has_key():
        raise UserError(
            "tracking.mode=online: no W&B API key; run `wandb login`, or set tracking.mode=offline"
        )
    return str(config.tracking.mode.value)


def _environment() -> str:
    return os.environ.get("WANDB_MODE") or "online"


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Take these variables out of the environment for a while."""
    values = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(values)


def server() -> str:
    return os.environ.get("WANDB_BASE_URL") or SERVER


def has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(server().split("//")[-1].split("/")[0]) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _marker(config: Config, run: Run) -> Path:
    """The file that notes what was logged as this run to the entity and project, and in which folder."""
    place = digest([config.tracking.entity, config.tracking.project])[:8]
    return Path(config.results) / "wandb" / "logged" / f"{run['id']}.{place}"


def _noted(marker: Path) -> list[str]:
    return marker.read_text().split() if marker.is_file() else []


def _runs(config: Config, grid: Grid) -> list[Run]:
    """One description for each condition whose cells are all there, and one for the summary."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for (family, condition, benchmark), key in grid.planned.items():
        groups.setdefault((family, condition), {})[benchmark] = key
    runs: list[Run] = []
    for (family, condition), cells in groups.items():
        if all((family, condition, benchmark) in grid.cells for benchmark in cells):
            identity = _id(grid, f"{family}/{condition}", sorted(cells.values()))
            runs.append(
                {
                    "id": identity,
                    "content": identity,
                    "name": f"{family} {grid.conditions[condition]['label']}",
                    "family": family,
                    "condition": condition,
                    "cells": cells,
                }
            )
    if runs:
        rendered = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in _rendered(config)}
        runs.append(
            {
                "id": _id(grid, "summary", sorted(grid.planned.values())),
                "content": digest([sorted(cell.key for cell in grid.cells.values()), rendered]),
                "name": "summary",
                "family": "summary",
                "condition": None,
                "cells": {},
            }
        )
    return runs


def _id(grid: Grid, what: str, keys: list[str]) -> str:
    return digest([grid.manifest["experiment"], what, keys])[:16]


def silence() -> str:
    """Why the server does not answer within seconds; nothing if it does."""
    try:
        urllib.request.urlopen(server(), timeout=ANSWER_WITHIN).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError, http.client.HTTPException) as e:
        return f"{server()} does not answer: {_short(e)}"
    return ""


def _upload(folders: list[Path]) -> str:
    """Upload these folders with W&B's own command; returns what was in the way, or nothing."""
    if problem := silence():
        return problem
    command = [str(Path(sys.executable).parent / "wandb"), "sync", "--yes", *map(str, folders)]
    with _without("WANDB_MODE"):
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    left, since, running = len(folders), time.monotonic(), True
    try:
        while running and time.monotonic() - since < UPLOAD_WITHIN:
            running = child.poll() is None
            still = sum(not _is_synced(folder) for folder in folders)
            if still != left:
                left, since = still, time.monotonic()
            time.sleep(0.2)
    finally:
        child.kill()
        child.wait()
    return f"{left} of {len(folders)} runs are left; check `wandb login` and the connection" if left else ""


def _is_synced(folder: Path) -> bool:
    """Whether W&B's command has left its mark on an offline run."""
    return any(folder.glob("*.synced"))


class _Logger:
    """Writes runs to W&B's offline files."""

    def __init__(self, config: Config, grid: Grid) -> None:
        self.config, self.grid, self.results = config, grid, Path(config.results)
        self.geometries: dict[tuple[str, str], dict[str, Any]] = {}  # by a vector's key and the files' name
        self.entries: dict[str, Any] = {}  # references to vectors' files, whose checksums are known

    def log(self, run: Run) -> Path:
        """Write a run in the place of its last version, if there is one; returns its folder."""
        import wandb

        own = _marker(self.config, run)
        elsewhere = {word for m in own.parent.glob(f"{run['id']}.*") if m != own for word in _noted(m)}
        for left in (self.results / "wandb").glob(f"offline-run-*-{run['id']}*"):
            if left.name not in elsewhere:  # another project's
                shutil.rmtree(left)
        family = run["family"]
        logged = wandb.init(
            project=self.config.tracking.project,
            entity=self.config.tracking.entity,
            group=f"{self.config.name}/{family}",
            job_type=self.grid.conditions[run["condition"]]["role"] if run["condition"] else "summary",
            name=run["name"],
            id=run["id"],  # and not resumed: what is logged again replaces what was
            dir=str(self.results),
            mode="offline",
            config={"experiment": self.config.name, "family": family} | self._config(run),
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
            if run["condition"] is None:
                logged.define_metric("sweep/*", step_metric="alpha")
                for row in sweep(self.grid):
                    logged.log(row)
                logged.log(comparisons(self.grid) | self._rendered() | {"alpha_sweep": self._sweep_table()})
            else:
                logged.log(self._metrics(run) | self._geometry(run))
                self._refer_to_vectors(logged, run)
        finally:
            logged.finish()
        return Path(logged.dir).parent

    def _config(self, run: Run) -> dict[str, Any]:
        if run["condition"] is None:
            return {}
        condition = self.grid.conditions[run["condition"]]
        cell = next(self.grid.cells[run["family"], run["condition"], b] for b in run["cells"])
        return {
            "condition": run["condition"],
            "role": condition["role"],
            "weights": condition["weights"],
            "alpha": condition["alpha"],
            "seed": condition["seed"],
            "prompt": cell.inputs["prompt"],
            "engine": cell.inputs["engine"],
            "versions": cell.provenance["versions"],
            "checkpoints": cell.provenance["family"],
            "vectors": self._vectors(run),
            "keys": run["cells"],
        }

    def _metrics(self, run: Run) -> dict[str, Any]:
        """Scores, lengths, cost and throughput by benchmark, and a table of samples."""
        import wandb

        data: dict[str, Any] = {}
        for benchmark, key in run["cells"].items():
            name, record = benchmark.replace("@", "/"), read_record(self.results, key)
            assert record is not None
            numbers: Mapping[str, Any] = {**record.metrics, **record.cost}
            data |= {f"{name}/{k}": v for k in (*METRICS, *COSTS) if (v := numbers[k]) is not None}
            seconds = record.cost["seconds"]
            data[f"{name}/tokens_per_second"] = record.cost["generated_tokens"] / seconds if seconds else 0.0
            rows: list[Any] = [
                [s["doc_id"], s["prompt"], s["target"], s["output"], s["score"], s["tokens"]]
                for s in record.samples()[:SAMPLES]
            ]
            data[f"{name}/samples"] = wandb.Table(
                columns=["document", "prompt", "target", "output", "score", "tokens"], data=rows
            )
        return data

    def _vectors(self, run: Run) -> list[str]:
        """Keys of the vectors that a condition's weights are made with, as its records name them."""
        cell = self.grid.cells[run["family"], run["condition"], next(iter(run["cells"]))]
        weights = cell.inputs["weights"]
        return [*filter(None, [weights.get("vector")]), *(key for key, _ in weights.get("plus", []))]

    def _geometry_of(self, key: str, name: str) -> dict[str, Any]:
        """The first geometry file of that name (or pattern) beside a vector; nothing where none is beside the records."""
        if (key, name) not in self.geometries:
            self.geometries[key, name] = {}
            with suppress(OSError, ValueError):
                for path in sorted((self.results / "vectors" / key).glob(name))[:1]:
                    self.geometries[key, name] = json.loads(path.read_text())
        return self.geometries[key, name]

    def _geometry(self, run: Run) -> dict[str, Any]:
        """Norms and sparsity of the condition's vector beside its target: in all, and as tables by module and by layer."""
        import wandb

        vectors, named = self._vectors(run), self.grid.families[run["family"]]["geometry"]
        geometry = self._geometry_of(vectors[0], Path(named).name) if vectors and named else {}
        if not geometry:
            return {}
        facts = ("norm", "relative_norm", "sparsity")
        data: dict[str, Any] = {f"geometry/{fact}": geometry["total"][fact] for fact in facts}
        for level, place in (("modules", "module"), ("layers", "layer")):
            rows: list[Any] = [[row[k] for k in (place, "entries", *facts)] for row in geometry[level]]
            data[f"geometry/{level}"] = wandb.Table(columns=[place, "entries", *facts], data=rows)
        return data

    def _refer_to_vectors(self, logged: Any, run: Run) -> None:
        """Log each vector as an artifact that refers to its file, by checksum; nothing is uploaded."""
        import wandb

        for key in self._vectors(run):
            file = self.results / "vectors" / key / "vector.safetensors"
            if not file.is_file():
                continue
            geometry = self._geometry_of(key, "geometry-*.json")  # any target's: these facts are v's alone
            total = geometry.get("total", {})
            about = {"key": key, "fingerprint": geometry.get("vector")}
            about |= {fact: total.get(fact) for fact in ("entries", "norm", "sparsity")}
            artifact = wandb.Artifact(f"vector-{key[:16]}", type="vector", metadata=about)
            if key in self.entries:  # one pass over the file is enough for all conditions
                artifact.manifest.add_entry(self.entries[key])
            else:
                (self.entries[key],) = artifact.add_reference(file.resolve().as_uri())
            logged.log_artifact(artifact)

    def _rendered(self) -> dict[str, Any]:
        """The rendered tables and figures."""
        import wandb

        data: dict[str, Any] = {key: wandb.Image(str(path)) for key, path in figures(self.config).items()}
        for path in _rendered(self.config, "*.md"):
            data[f"tables/{path.stem}"] = wandb.Html(
                f"<pre>{html.escape(path.read_text())}</pre>", inject=False
            )
        return data

    def _sweep_table(self) -> Any:
        import wandb

        rows: list[Any] = []
        for alpha, condition in self.grid.sweep():
            for (family, name, benchmark), cell in self.grid.cells.items():
                if name == condition:
                    facts = [cell.metrics[k] for k in ("score", "stderr", "mean_tokens")]
                    rows.append([family, benchmark, alpha, *facts])
        columns: list[str | int] = ["family", "benchmark", "alpha", "score", "stderr", "mean_tokens"]
        return wandb.Table(columns=columns, data=rows)


def figures(config: Config) -> dict[str, Path]:
    """The rendered figures by the names under which the summary logs them."""
    return {f"figures/{path.stem}": path for path in _rendered(config, "*.png")}


def _rendered(config: Config, *patterns: str) -> list[Path]:
    """The rendered tables (`*.md`) and figures (`*.png`) that the summary logs."""
    out = Path(config.tables) / config.name
    return sorted(path for pattern in patterns or ("*.md", "*.png") for path in out.glob(pattern))


def sweep(grid: Grid) -> list[dict[str, float]]:
    """The α curves as steps of the summary, ascending: `alpha`, and `sweep/<family>/<benchmark>` in per cent."""
    steps = []
    for alpha, condition in grid.sweep():
        scores = {
            f"sweep/{family}/{benchmark}": 100 * float(cell.score.mean())
            for (family, name, benchmark), cell in grid.cells.items()
            if name == condition and benchmark in grid.plain()
        }
        if scores:
            steps.append({"alpha": alpha} | scores)
    return steps


def comparisons(grid: Grid) -> dict[str, float]:
    """What the summary compares, in per cent or percentage points, by names that say what it is:

    score/<family>/<benchmark>/<condition>                 mean score of the paper's rows and of the controls
    gain/<family>/<benchmark>/<condition>/ours|published   against Baseline, where the paper reports it
    robustness/<family>/<variant>/<condition>              perturbed minus plain documents
    """
    found: dict[str, float] = {}
    for family, info in grid.families.items():
        for row in grid.rows("main", "control"):
            for benchmark in grid.plain():
                if (value := grid.value(family, row.members, benchmark)) is not None:
                    found[f"score/{family}/{benchmark}/{row.name}"] = 100 * value.value
                published = claims.published_figures(
                    info["published_size"], grid.benchmarks[benchmark]["published"], row.name
                )
                ours = grid.difference(family, row.members, (REFERENCE,), benchmark)
                for figure in published:
                    if "difference" in figure and ours is not None:
                        place = f"gain/{family}/{benchmark}/{row.name}"
                        found |= {
                            f"{place}/ours": 100 * ours.value,
                            f"{place}/published": figure["difference"],
                        }
            for variant in grid.variants():
                if (robustness := grid.robustness(family, row.members, variant)) is not None:
                    found[f"robustness/{family}/{variant}/{row.name}"] = 100 * robustness.drop.value
    return found
