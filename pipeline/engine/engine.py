"""One live vLLM engine behind lm-eval's interface, steered from cell to cell.

    engine = Engine(config.engine, model="models/micro/instruct")
    engine.steer("models/micro/instruct", [Term("results/vectors/…/vector.safetensors", 0.5)])
    engine.lm  # an lm_eval LM: pass it to lm_eval.evaluate

Starting an engine costs tens of seconds, a swap milliseconds to seconds; so one engine serves every condition
of one architecture: the target with any α, the random controls, and the donors themselves.
A swap is certified, or refused (`SteeringError`): every live parameter equals the files', and the prefix cache is empty.
"""

import contextlib
import gc
import multiprocessing
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipeline.config.schema import Device, EngineConfig, Swap
from pipeline.engine import death, gpus, output
from pipeline.engine.arrangement import Arrangement
from pipeline.engine.environment import check_device, prepare_environment
from pipeline.errors import UserError
from pipeline.records import GpuSource
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.steer import Term, apply
from pipeline.weights.threads import CORES

if TYPE_CHECKING:
    from pipeline.engine.lm import SteeredLM

DEATH_WITHIN = 15.0  # seconds in which an engine ends whose worker has died


class SteeringError(UserError):
    """The live weights are not what was asked for; nothing may be measured with them."""


class Engine:
    """A vLLM engine whose weights can be replaced: in place, or with `swap=restart` by an engine anew in its place.

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
        self.template_of: Path | None = None  # where it is not the model's own
        check_device(config.device)
        prepare_environment(config)
        self._start(model)

    def _start(self, weights: Path) -> None:
        """Start vLLM on the weights in a folder."""
        others = set(multiprocessing.active_children())
        with output.captured() as self.log, output.with_descriptor():
            try:
                self.lm = self._load(weights)
            except Exception as e:  # vLLM raises what it likes
                raise UserError(_start_failure(e, output.text(self.log), self.config)) from e
        self.processes = set(multiprocessing.active_children()) - others  # none, if it runs in this one
        death.watch(self.lm.model.llm_engine.engine_core, self.processes)
        self.started_on = weights
        if self.template_of is not None:
            self.lm.take_template(self.template_of)

    def _load(self, weights: Path) -> "SteeredLM":
        with _without_collections():
            from pipeline.engine.lm import SteeredLM

        config, model = self.config, str(self.model)
        options: dict[str, Any] = {}
        if config.kv_cache_gb is not None and config.device is Device.gpu:
            options["kv_cache_memory_bytes"] = int(config.kv_cache_gb * 2**30)
        return SteeredLM(
            pretrained=str(weights),
            tokenizer=model,
            hf_config_path=model,
            generation_config=model,
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

    def steer(
        self,
        target: Path,
        terms: Sequence[Term] = (),
        wide: bool = False,
        allowed: Collection[str] = (),
    ) -> None:
        """Replace the live weights by `target` + Σ α·v; a `wide` sum is left in float32, which the engine must compute in.

        Args:
            allowed: keys of config.json in which target and donors may differ, where a checkpoint is written.

        Raises:
            SteeringError: if a live parameter is not what was asked for, or old cache entries could survive.
        """
        if self.config.swap is Swap.restart:
            self._restart(target, terms, allowed)
        else:
            self._swap(target, terms, wide)
        self._forget_prompts()

    def arrange(self, arrangement: Arrangement) -> None:
        """Ask in this order and these batches from now on, and nothing from the cache of the last ones.

        Raises:
            SteeringError: if the prefix cache cannot be emptied.
        """
        if arrangement != self.lm.arrangement:
            self._forget_prompts()
            self.lm.arrangement = arrangement

    def _forget_prompts(self) -> None:
        if not self.lm.model.reset_prefix_cache():
            raise SteeringError("the prefix cache could not be emptied; no request may be running")

    def gpu(self) -> GpuSource | None:
        """The GPU that it computes on, as its workers and the driver name it; None on a CPU."""
        if self.config.device is Device.cpu:
            return None
        told = [tuple(found) for found in self.lm.model.collective_rpc("gpu") if found is not None]
        if not told:
            return None
        driver = None
        with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
            driver = gpus.query()[0].driver
        models = " and ".join(dict.fromkeys(model for model, _ in told))
        return GpuSource(model=models, driver=driver, cuda=told[0][1])

    def set_chat_template(self, checkpoint: Path) -> None:
        """Have prompts go through the chat template of another checkpoint than the model that it was started on."""
        self.template_of = checkpoint
        self.lm.take_template(checkpoint)

    def _swap(self, target: Path, terms: Sequence[Term], wide: bool) -> None:
        plain = [(t.vector, t.alpha, t.random_seed) for t in terms]
        # the GPUs of a group share the cores; a CPU worker has as many as it computes with
        threads = self.config.threads or max(1, min(16, len(CORES) // self.config.tensor_parallel_size))
        remedy = "set engine.swap=restart to start an engine for each weights instead"
        try:
            like = None if target == self.model else str(self.model)
            asked = (str(target), plain, threads, wide, like)
            differences = self.lm.model.collective_rpc("steer", args=asked)
        except Exception as e:
            if isinstance(e, UserError) or not self.alive():
                raise
            raise SteeringError(
                f"the weights of the live engine could not be changed to {target}"
                f" ({' '.join(str(e).split())[:200] or type(e).__name__}); {remedy}"
            ) from e
        for wrong in differences:
            if wrong:
                raise SteeringError(
                    f"after a swap to {target} {len(wrong)} live parameters are not those of the files:"
                    f" {', '.join(wrong[:5])}; nothing was measured with them; {remedy}"
                )

    def _restart(self, target: Path, terms: Sequence[Term], allowed: Collection[str]) -> None:
        """Write target + Σ α·v where that is no checkpoint on the disk, and start an engine on it: vLLM's own loading."""
        if terms or target != self.started_on:
            self._stop()
            self._start(written(target, terms, allowed) if terms else target)

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

    def ended(self) -> bool:
        """Whether one of its processes has ended by now; never so of an engine that runs in this one."""
        return not all(process.is_alive() for process in self.processes)

    def last_error(self) -> str | None:
        """The last error that its processes told of, in one line; None if they told of none, or it runs in this one."""
        return output.error_in(output.text(self.log))

    def close(self) -> None:
        """End the engine and its processes."""
        self._stop()
        if self.config.swap is Swap.restart:
            shutil.rmtree(_own_folder(), ignore_errors=True)

    def _stop(self) -> None:
        engine_core = self.lm.model.llm_engine.engine_core
        engine_core.shutdown()


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Have the garbage collector wait: vLLM's imports make objects that stay, and looking through them is a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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


def written(target: Path, terms: Sequence[Term], allowed: Collection[str] = ()) -> Path:
    """A folder with target + Σ α·v, in the place of the one that this process wrote before."""
    folder = _own_folder()
    for left in folder.parent.glob(f"engine-{platform.node()}-*"):
        pid = left.name.rpartition("-")[2]
        if left == folder or (pid.isdigit() and not psutil.pid_exists(int(pid))):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
    return apply(Checkpoint.open(str(target)), terms, folder, allowed=allowed)


def _own_folder() -> Path:
    """Where this process writes checkpoints for engines."""
    cache = Path(os.environ.get("RV_CACHE", "results/.cache"))
    return cache / f"engine-{platform.node()}-{os.getpid()}"
