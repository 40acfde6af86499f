"""Where the cells of a run are evaluated when nobody has said so: with Ray where this machine has several GPUs.

    config = decided(config, report)      # launcher.kind is local or ray after this

One worker holds one engine on one GPU, or on a tensor-parallel group of them. Data parallel is the fastest use of several
GPUs for models that fit into one: cells do not depend on each other.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

from pipeline.config.compose import changed
from pipeline.config.schema import Config, Device, Launcher, Stage
from pipeline.engine import gpus


def decided(config: Config, report: Callable[[str], None]) -> Config:
    """The configuration with a launcher in the place of `auto`; of several GPUs one line says what they are used for."""
    if config.launcher.kind is not Launcher.auto:
        return config
    kind, why = choose(config)
    if why:
        report(f"launcher: {why}")
    return changed(config, launcher=replace(config.launcher, kind=kind))


def choose(config: Config) -> tuple[Launcher, str]:
    """The launcher that `auto` stands for, and why in one line; empty where there is nothing to choose."""
    if config.engine.device is Device.cpu or Stage.evaluate not in config.stages:
        return Launcher.local, ""
    found, each = gpus.count(), config.engine.tensor_parallel_size
    workers = found // each
    if workers < 2:
        return Launcher.local, ""
    if find_spec("ray") is None:
        return (
            Launcher.local,
            f"one engine on {each} of {found} GPUs, because Ray is not installed; `make setup ACCELERATOR=gpu`"
            " installs it",
        )
    share = "each" if each == 1 else f"each group of {each}"
    return (
        Launcher.ray,
        f"Ray on this machine, because it has {found} GPUs: {workers} workers, one for {share};"
        " launcher=local runs one engine alone",
    )
