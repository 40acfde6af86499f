"""How several processes share a model: FSDP2, every parameter, gradient and state of the optimizer split between them.

    config = SFTConfig(**arguments, **sharding_arguments(processes))
    reduce_in_float32(config)

Transformers and accelerate do the work; the whole state is gathered on the first process when it is saved. accelerate 1.15
shards on GPUs alone: on CPUs, where tests run, `shard_on_cpus` has it take the same way.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.weights.architecture import HEAD

if TYPE_CHECKING:  # it takes seconds to import: only training pays
    from transformers import Trainer, TrainingArguments


def sharding_arguments(processes: int) -> dict[str, Any]:
    """What a trainer's arguments say of several processes; nothing for one."""
    if processes == 1:
        return {}
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "reshard_after_forward": True,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "state_dict_type": "FULL_STATE_DICT",
        },
    }


def reduce_in_float32(config: "TrainingArguments") -> None:
    """Add gradients in float32, as one process does; accelerate's own choice for bf16 is to add in bf16."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if config.fsdp_plugin_args is not None and config.bf16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        config.fsdp_plugin_args["mixed_precision_policy"] = policy


def save_gathered(trainer: "Trainer", folder: Path) -> None:
    """Gather the whole model from all processes and write it on the first, as one process writes it."""
    model: Any = trainer.model
    state = trainer.accelerator.get_state_dict(model)
    if trainer.is_world_process_zero():
        if model.config.tie_word_embeddings:
            state.pop(
                HEAD, None
            )  # gathered, it no longer shares the embedding's memory and would be written twice
        model.save_pretrained(folder, state_dict=state)
    trainer.accelerator.wait_for_everyone()


def shard_on_cpus() -> None:
    """Have accelerate shard between CPU processes too; it drops its own plugin there, and would copy the whole model."""
    from accelerate import state
    from accelerate.utils import DistributedType

    original = state.AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = DistributedType.FSDP
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    state.AcceleratorState.__init__ = init
