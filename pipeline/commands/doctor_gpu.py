"""`doctor`'s look at the GPU: the driver, the cards, their memory against the plan, and what the engine compiles with.

An engine on a GPU needs what CUDA needs of a machine (pipeline/commands/doctor_cuda.py), and a card that can compute in
`engine.dtype` and has `engine.gpu_memory_utilization` of its memory free.
"""

import os
import subprocess
from collections.abc import Iterator

from pipeline.commands.doctor_cuda import compiler, dotted, driver, too_old
from pipeline.commands.finding import Finding
from pipeline.config.schema import Config, Device, Launcher, Stage
from pipeline.engine import gpus
from pipeline.errors import UserError
from pipeline.evaluate import launcher

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
    yield from driver(gpus.torchs_cuda())
    yield from cards(config, weights_gb)
    yield from workers(config)
    yield from compiler()


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
    if old := too_old(card):
        return old
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
