"""`doctor`'s look at the GPU: the driver, the cards, their memory against the plan, and what the engine compiles with.

An engine on a GPU needs a driver for torch's CUDA, a card that torch has code for and that can compute in `engine.dtype`,
`engine.gpu_memory_utilization` of its memory free, and Python's headers with a C compiler: Triton and torch.compile
build code when it starts.
"""

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from pipeline.commands.finding import Finding
from pipeline.config.schema import Config, Device, Launcher, Stage
from pipeline.engine import gpus
from pipeline.errors import UserError
from pipeline.evaluate import launcher

OLDEST_CARD = (7, 5)  # CUDA 13 has code for no older one (requirements/README.md)
OLDEST_BFLOAT16 = (8, 0)
OVERHEAD_GB = 3.0  # assumed: CUDA's context, graphs and activations of an engine


def gpu(config: Config, weights_gb: float) -> Iterator[Finding]:
    """Findings on the GPU.

    Args:
        weights_gb: size of the largest checkpoint in the dtype of the engine, 0 where nobody knows.
    """
    from pipeline.engine.environment import check_device

    if config.engine.device is Device.cpu:
        yield Finding("ok", "GPU", "this run needs none (engine.device=cpu)")
        return
    if Stage.evaluate not in config.stages:
        yield Finding("ok", "GPU", "this run needs none: it evaluates nothing")
        return
    if config.launcher.address is not None:
        yield Finding("ok", "GPU", f"those of the cluster at {config.launcher.address}, which is not asked")
        return
    try:
        check_device(Device.gpu)
    except UserError as e:
        yield Finding("fail", "GPU", str(e))
        return
    yield from driver()
    yield from cards(config, weights_gb)
    yield from workers(config)
    yield from compiler()


def driver() -> Iterator[Finding]:
    """The newest CUDA that the driver runs against that of torch: of one major version every minor one runs."""
    needed, newest = gpus.torchs_cuda(), gpus.newest_cuda()
    if needed is None:  # a build without CUDA is the matter of `packages`
        return
    if newest is None:
        text = f"no libcuda.so.1, expected one for CUDA {dotted(needed)}; install NVIDIA's driver"
        yield Finding("warning", "driver", text)
    elif newest[0] < needed[0]:
        text = f"runs CUDA up to {dotted(newest)}, torch needs {dotted(needed)}; install a newer driver (requirements/README.md)"
        yield Finding("fail", "driver", text)
    else:
        yield Finding("ok", "driver", f"runs CUDA up to {dotted(newest)}, torch needs {dotted(needed)}")


def cards(config: Config, weights_gb: float) -> Iterator[Finding]:
    try:
        found = gpus.visible(gpus.query())
    except (OSError, subprocess.SubprocessError, ValueError) as e:
        text = f"a device is there, nvidia-smi fails ({type(e).__name__}); check the driver"
        yield Finding("warning", "GPU", text)
        return
    size = config.engine.tensor_parallel_size
    for card in found:
        if lacking := lack(card, config, weights_gb / size):
            yield Finding("fail", "GPU", f"{card}; {lacking}")
        else:
            yield Finding("ok", "GPU", str(card))
    if len(found) < size:
        text = f"{len(found)} found, engine.tensor_parallel_size={size}; lower it"
        hidden = ", or name more in CUDA_VISIBLE_DEVICES" if "CUDA_VISIBLE_DEVICES" in os.environ else ""
        yield Finding("fail", "GPU", text + hidden)


def workers(config: Config) -> Iterator[Finding]:
    """What several GPUs are used for, where the configuration leaves that open."""
    if config.launcher.kind is Launcher.auto:
        kind, why = launcher.choose(config)
        if why:
            yield Finding("ok" if kind is Launcher.ray else "warning", "launcher", why)


def lack(card: gpus.Gpu, config: Config, weights_gb: float) -> str | None:
    """What keeps a card from holding an engine with `weights_gb` of weights, and the remedy; None if nothing does."""
    if card.capability is not None and card.capability < OLDEST_CARD:
        return f"compute capability {dotted(OLDEST_CARD)} or higher is needed; use another card"
    if (
        config.engine.dtype == "bfloat16"
        and card.capability is not None
        and card.capability < OLDEST_BFLOAT16
    ):
        return f"bfloat16 needs compute capability {dotted(OLDEST_BFLOAT16)}; add engine.dtype=float16, or use another card"
    share = config.engine.gpu_memory_utilization
    if card.free < share * card.total:
        return (
            f"engine.gpu_memory_utilization={share} takes {share * card.total:.1f} GB; end other programs on it,"
            f" or lower that below {card.free / card.total:.2f}"
        )
    cache = config.engine.kv_cache_gb or 0.0
    if share * card.total < weights_gb + cache + OVERHEAD_GB:
        return (
            f"about {weights_gb + cache + OVERHEAD_GB:.1f} GB are needed, engine.gpu_memory_utilization={share} takes"
            f" {share * card.total:.1f}; raise engine.tensor_parallel_size, or choose smaller families"
        )
    return None


def compiler() -> Iterator[Finding]:
    """Python's headers and a C compiler, which Triton and torch.compile call."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        text = f"{header} is not there, and the engine compiles with it; install Python's headers (Debian: python3-dev)"
        yield Finding("fail", "headers", text)
    named = os.environ.get("CC")
    found = shutil.which(named) if named else shutil.which("gcc") or shutil.which("clang")
    if found is None:
        text = f"{named or 'gcc'} is not there, and the engine compiles with it; install gcc"
        yield Finding("fail", "compiler", text + (", or set CC to another" if named else ""))
    elif header.exists():
        yield Finding("ok", "compiler", f"{found}, with Python's headers")


def dotted(version: gpus.Version) -> str:
    return f"{version[0]}.{version[1]}"
