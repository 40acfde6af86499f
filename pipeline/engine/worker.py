"""The side of steering that runs inside vLLM's worker: take new weights in place.

`pipeline.engine.engine` starts vLLM with `worker_extension_cls="pipeline.engine.worker.SteeringExtension"` and calls `steer`
through `collective_rpc` with plain arguments. Every worker of a tensor-parallel group streams the same
tensors from the same files; vLLM's own loaders fuse and shard them. Where the model is on a GPU, so are the sums.

vLLM only warns about a tensor that does not come, and its CPU build leaves a tied head, which it packs apart from the
embedding, as it was. So the head is packed again, and `pipeline.engine.certificate` compares every live parameter with
what was streamed. The prefix cache is not touched here: the engine empties it.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

import torch

from pipeline.engine.certificate import Certificate
from pipeline.weights.memory import Memory
from pipeline.weights.threads import one_thread, thread_pool

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


def _end_with_the_run() -> None:
    """End this worker, and the engine's core above it, when the process that started the engine is killed.

    vLLM's own processes would wait for it for ever, and keep their memory.
    """
    run, core = int(os.environ.get("RV_ENGINE_OF", "0")), os.getppid()
    if run in (0, os.getpid()):
        return

    def watch() -> None:
        with contextlib.suppress(ProcessLookupError):
            select.select([os.pidfd_open(run)], [], [])
        if core not in (1, run) and os.getppid() == core:
            os.kill(core, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_end_with_the_run()  # vLLM imports this module first thing in its worker

MEMORY = Memory()  # kept from swap to swap: as much as the largest tensor, and what is made ahead of it


@contextlib.contextmanager
def _default_stream(device: torch.device) -> Iterator[None]:
    """Let this thread use the stream that the pool's threads use: nothing orders one stream of a GPU after another.

    vLLM has a stream of its own in its main thread. What runs on it ends first, and finds what was written here.
    """
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    with torch.cuda.stream(torch.cuda.default_stream(device)):
        yield
    torch.cuda.synchronize(device)


class SteeringExtension:
    """Mixed into vLLM's worker class (vLLM 0.24 to 0.33)."""

    model_runner: "GPUModelRunner"

    def steer(
        self,
        target: str,
        terms: list[tuple[str, float, int | None]],
        threads: int | None = None,
        wide: bool = False,
        like: str | None = None,
    ) -> list[str]:
        """Make the live weights `target` + Σ α·v, as `pipeline.weights.steer.steered_tensors` computes them.

        Args:
            target: folder of the checkpoint that is added to.
            terms: (vector file, α, seed of the random control or None) for each vector.
            threads: that read, add and take checksums; None is one for each core.
            wide: leave the sums in float32.
            like: folder of the checkpoint in whose shapes the live model was made, where `target` may have others.

        Returns:
            Names of live parameters that are not what was asked for: none, if all is well.
        """
        from pipeline.weights.steer import Term, steered_tensors

        device = self.summing_device()
        with thread_pool(threads) as pool, _default_stream(self.model_runner.device):
            made = steered_tensors(target, [Term(*term) for term in terms], pool, MEMORY, wide, like, device)
            return self.load(made, pool)

    def summing_device(self) -> torch.device | None:
        """The device that makes the sums: the model's own, or None where that is the host."""
        device = self.model_runner.device
        return None if device.type == "cpu" else device

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]], pool: Executor) -> list[str]:
        """Write `tensors` (Hugging Face names) over the live weights; returns what `steer` returns.

        Where kernels use parameters as they are loaded, they are written in place, as trainers do. vLLM's reload, which
        makes each layer anew and copies it over, is for those that are processed after loading.
        """
        model: Any = self.model_runner.get_model()
        certificate = Certificate(model, pool)
        if certificate.is_plain:
            with one_thread():  # the pool's threads have the other cores
                model.load_weights(certificate.watch(tensors))
        else:
            self.model_runner.reload_weights(weights_iterator=certificate.watch(tensors))
        self._pack_tied_head(model)
        return certificate.differences()

    def gpu(self) -> tuple[str, str | None] | None:
        """The model of the GPU that this worker computes on, and the CUDA of its torch; None on a CPU."""
        device = self.model_runner.device
        return (torch.cuda.get_device_name(device), torch.version.cuda) if device.type == "cuda" else None

    @staticmethod
    def _pack_tied_head(model: Any) -> None:
        """vLLM's CPU build packs the head's matrix apart; reloading refreshes a tied embedding but not that copy."""
        head: Any = getattr(model, "lm_head", None)
        if getattr(head, "weight", None) is not None and head.weight.device.type == "cpu":
            head.quant_method.process_weights_after_loading(head)
