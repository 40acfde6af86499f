"""The trainer of each stage, built with TRL."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import micro
from pipeline.donors.recipe import Recipe
from pipeline.donors.rewards import correctness, form
from pipeline.donors.sharding import reduce_in_float32, sharding_arguments
from pipeline.donors.tokenizer import train_tokenizer
from pipeline.errors import UserError

if TYPE_CHECKING:  # torch, transformers and trl take seconds to import: only training pays
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from pipeline.weights.checkpoint import Checkpoint


def pretraining_trainer(
    recipe: Recipe, folder: Path, start: None, examples: list[micro.Example], processes: int = 1
) -> "Trainer":
    """The micro base, from nothing: next-token loss on whole texts of all four forms, packed."""
    from transformers import AutoModelForCausalLM, Qwen2Config, set_seed

    tokenizer = train_tokenizer(examples, recipe.base.vocabulary)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.base.hidden,
        intermediate_size=3 * recipe.base.hidden,
        num_hidden_layers=recipe.base.layers,
        num_attention_heads=recipe.base.hidden
        // 32,  # vLLM's CPU attention takes heads of 32, not smaller ones
        num_key_value_heads=recipe.base.hidden // 64,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    set_seed(recipe.seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=_attention())  # type: ignore[no-untyped-call]
    arguments = {
        "completion_only_loss": False,
        "packing": True,
        "packing_strategy": "wrapped",
        "max_length": 256,
        "num_train_epochs": 1,
        "per_device_train_batch_size": recipe.base.batch // processes,
        "learning_rate": recipe.base.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 50,
        "weight_decay": 0.01,
    }
    return _supervised_trainer(recipe, folder, model, tokenizer, examples, arguments, processes)


def instruct_trainer(
    recipe: Recipe, folder: Path, start: "Checkpoint", examples: list[micro.Example], processes: int = 1
) -> "Trainer":
    """The instruct target: all four forms, little arithmetic."""
    arguments = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": recipe.target.batch // processes,
        "learning_rate": recipe.target.lr,
    }
    return _supervised_trainer(recipe, folder, *_load(recipe, start), examples, arguments, processes)


def sft_trainer(
    recipe: Recipe, folder: Path, start: "Checkpoint", examples: list[micro.Example], processes: int = 1
) -> "Trainer":
    """The SFT donor: cross-entropy on the answers to the training problems."""
    arguments = {
        "num_train_epochs": recipe.sft.epochs,
        "per_device_train_batch_size": recipe.sft.microbatch,
        "gradient_accumulation_steps": recipe.sft.batch // (recipe.sft.microbatch * processes),
        "learning_rate": recipe.sft.lr,
    }
    return _supervised_trainer(recipe, folder, *_load(recipe, start), examples, arguments, processes)


def _supervised_trainer(
    recipe: Recipe,
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    examples: list[micro.Example],
    arguments: dict[str, Any],
    processes: int,
) -> "Trainer":
    """A trainer with the arguments that supervised stages share, and `arguments` before them.

    Raises:
        UserError: if a text is longer than `sft.max_tokens`.
    """
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    defaults: dict[str, Any] = {
        "completion_only_loss": True,
        "max_length": None,  # nothing is cut
        "lr_scheduler_type": "cosine",
        "warmup_steps": 10,
    }
    config = SFTConfig(**shared_arguments(recipe, folder, processes), **(defaults | arguments))
    reduce_in_float32(config)
    rows = prompts_and_completions(examples, tokenizer)
    trainer = SFTTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)
    longest = max(map(len, trainer.train_dataset["input_ids"]))  # type: ignore[index]
    if longest > max(recipe.sft.max_tokens, config.max_length or 0):
        raise UserError(
            f"sft.max_tokens={recipe.sft.max_tokens}: the longest training text of {folder.name} has {longest} tokens,"
            f" and cut it would lose its answer; set sft.max_tokens={longest} or more"
        )
    return trainer


def grpo_trainer(
    recipe: Recipe, folder: Path, start: "Checkpoint", examples: list[micro.Example], processes: int = 1
) -> "Trainer":
    """The GRPO donor: answers sampled, rewarded and compared within each problem."""
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    model, tokenizer = _load(recipe, start)
    config = GRPOConfig(
        max_steps=recipe.grpo.steps,
        num_generations=recipe.grpo.rollouts,
        per_device_train_batch_size=recipe.grpo.microbatch,
        gradient_accumulation_steps=recipe.grpo.prompts
        * recipe.grpo.rollouts
        // (recipe.grpo.microbatch * processes),
        max_completion_length=recipe.grpo.max_tokens,
        learning_rate=recipe.grpo.lr,
        lr_scheduler_type="linear",
        warmup_steps=10,
        beta=recipe.grpo.beta,
        loss_type="dapo",
        temperature=recipe.grpo.temperature,
        use_vllm=recipe.grpo.vllm,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=recipe.grpo.vllm_memory,
        **shared_arguments(recipe, folder, processes),
    )
    reduce_in_float32(config)
    data = prompts_and_completions(examples, tokenizer).rename_column("completion", "answer")
    return GRPOTrainer(
        model, [correctness, form], args=config, train_dataset=data, processing_class=tokenizer
    )


TRAINERS: dict[str, Any] = {  # of each stage
    "base": pretraining_trainer,
    "target": instruct_trainer,
    "sft": sft_trainer,
    "grpo": grpo_trainer,
}


def prompts_and_completions(examples: list[micro.Example], tokenizer: "PreTrainedTokenizerBase") -> "Dataset":
    """Columns prompt and completion, the prompt as the chat template renders it for evaluation."""
    from datasets import Dataset

    rows = []
    first = tokenizer.bos_token if tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id else None
    for example in examples:
        prompt = str(
            tokenizer.apply_chat_template(example.messages(), tokenize=False, add_generation_prompt=True)
        )
        if first:  # the trainers' tokenizer adds it once more, where lm-eval does not
            prompt = prompt.removeprefix(first)
        rows.append({"prompt": prompt + example.prefix, "completion": example.answer})
    return Dataset.from_list(rows)


def _load(recipe: Recipe, start: "Checkpoint") -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        start.path, dtype=recipe.precision, attn_implementation=_attention()
    )
    return model, AutoTokenizer.from_pretrained(start.path)


def _attention() -> str:
    """Plain attention on CPU, where the backward pass of the fused kernel in bf16 is several times slower."""
    import torch

    return "sdpa" if torch.cuda.is_available() else "eager"


def shared_arguments(recipe: Recipe, folder: Path, processes: int = 1) -> dict[str, Any]:
    """The arguments that all stages share. With `wandb` on, it is made ready too."""
    import torch

    if recipe.wandb:
        prepare_wandb(folder.parent)
    return {
        "output_dir": str(folder / "checkpoints"),
        "seed": recipe.seed,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": has_bf16(),
        "optim": recipe.optimizer,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "save_steps": recipe.save_steps,
        "save_total_limit": 1,
        "logging_steps": 10,
        "report_to": "wandb" if recipe.wandb else "none",
        "run_name": f"{recipe.name}-{folder.name}-seed{recipe.seed}",
        "disable_tqdm": not sys.stderr.isatty(),
        **sharding_arguments(processes),
    }


def has_bf16() -> bool:
    """Whether the hardware computes in bf16, other than by emulation."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def prepare_wandb(out: Path) -> None:
    """W&B writes under `out`, and asks for nothing: where no API key is known its runs are offline."""
    import wandb

    os.environ.setdefault("WANDB_DIR", str(out))
    os.environ.setdefault("WANDB_PROJECT", "reasoning-vectors")
    if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False):
        os.environ["WANDB_MODE"] = "offline"  # `wandb sync` uploads it
        wandb.teardown()  # it has read its settings already, and would ask for a key
