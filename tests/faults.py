"""Worker extensions in which something goes wrong on purpose: a swap, or the engine's process."""

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch

from benchmarks.swap import PLAIN, keep_weights_plain
from pipeline.engine.worker import MEMORY, SteeringExtension

if os.environ.get(PLAIN):
    keep_weights_plain()
LEFT_OUT = "model.layers.1.mlp.gate_proj.weight"
EXCHANGED = ("model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight")
STALE, MOVED, BUFFER = "model.layers.1.mlp.down_proj", "model.norm", "model.layers.0.self_attn.rotary_emb"
FAULTS = ("a tensor left out", "two tensors exchanged", "one bit flipped", "a stale head")
FAULTS += ("a stale matrix", "a parameter moved", "a buffer changed", "a loader that fails")


class FaultyExtension(SteeringExtension):
    """Steers as its base does until a fault of FAULTS is planted."""

    fault = ""
    changed: torch.Tensor | None = None
    sums_on: torch.device | None = None

    def plant(self, fault: str) -> None:
        self.fault = fault
        if self.changed is not None:
            self.changed -= 1
            self.changed = None

    def sum_on(self, device: str | None) -> None:
        """Have torch make the sums on this device, or as always."""
        self.sums_on = None if device is None else torch.device(device)

    def summing_device(self) -> torch.device | None:
        return self.sums_on or super().summing_device()

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]], pool: Executor) -> list[str]:
        model: Any = self.model_runner.get_model()
        self.kernel = getattr(model.get_submodule(STALE), "cpu_linear", None)
        stock = model.load_weights
        model.load_weights = lambda weights: stock(self._spoilt(weights))
        try:
            return super().load(tensors, pool)
        finally:
            del model.load_weights

    def _spoilt(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            assert self.sums_on is None or not any(block.used for block in MEMORY.blocks), (
                "the host's loops made it"
            )
            if self.fault == FAULTS[0] and name == LEFT_OUT:
                continue
            if self.fault == FAULTS[7] and name == LEFT_OUT:
                raise AssertionError("sizes differ\n96 and 64")
            if self.fault == FAULTS[1] and name in EXCHANGED:
                name = EXCHANGED[1 - EXCHANGED.index(name)]
            if self.fault == FAULTS[2] and name == LEFT_OUT:
                tensor = tensor.clone()
                tensor.view(torch.int32)[3, 5] ^= 1
            yield name, tensor

    def _pack_tied_head(self, model: Any) -> None:
        if self.fault != FAULTS[3]:
            super()._pack_tied_head(model)
        if self.fault == FAULTS[4]:
            model.get_submodule(STALE).cpu_linear = self.kernel
        if self.fault == FAULTS[5]:
            weight = model.get_submodule(MOVED).weight
            weight.data = weight.data.clone()
        if self.fault == FAULTS[6]:
            (self.changed,) = model.get_submodule(BUFFER).buffers()
            self.changed += 1


class DyingExtension(SteeringExtension):
    """Its process ends at α = −1 always, and at α = 0.5 once, in the middle of the answers.

    The file named by the variable DIED_ONCE remembers that.
    """

    def steer(self, target: str, terms: list[tuple[str, float, int | None]], *rest: Any) -> list[str]:
        wrong, died = super().steer(target, terms, *rest), Path(os.environ["DIED_ONCE"])
        alphas = [alpha for _, alpha, _ in terms]
        if -1.0 in alphas:
            os._exit(1)
        if 0.5 in alphas and not died.exists():
            died.touch()
            threading.Timer(0.05, os._exit, (1,)).start()
        return wrong
