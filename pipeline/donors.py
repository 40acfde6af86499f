"""Trains donors: from one initialisation, SFT and then GRPO on the same training problems, with TRL.

    python -m pipeline.donors recipe=conf/recipe/micro.yaml out=/tmp/micro seed=1

``make_donors`` writes one Hugging Face checkpoint a stage under ``out``: ``sft`` and ``grpo``, and before
them, where the recipe gives no initialisation, ``base`` and ``target`` (the micro family, trained from
nothing on text that ``evals.micro`` generates). Each stage's folder holds a ``training.json`` with its
settings, versions, curves and time, ``overlap.json`` tells what training and evaluation documents share,
and a finished stage is never repeated. A killed stage goes on from its last checkpoint, to the same weights
on the same machine and thread count.

What is optimised: SFT, cross-entropy on the completion alone; GRPO (arXiv 2402.03300), reward 1.0 for the
exact answer plus 0.1 for the form ``#### n``. GRPO starts from the SFT donor or from the initialisation
(``grpo_start``): the paper can be read both ways. One process, one device; it does not cover several GPUs.
"""

import gc
import json
import random
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import micro
from pipeline.errors import UserError

if TYPE_CHECKING:  # torch, transformers and trl take seconds to import: only training pays
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, Trainer

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WINDOW = 13  # words in a row that count as shared text, as in the GPT-3 report (arXiv 2005.14165, appendix C)


@dataclass(frozen=True)
class Recipe:
    """Every setting of a donor family. A microbatch is what one backward pass takes."""

    name: str = "micro"
    seed: int = 0
    init: str | None = None  # checkpoint to start from, a folder or a hub id; None: pretrain the micro base
    init_revision: str | None = None
    data: str | None = None  # folder with gsm8k/{train,test}.jsonl, or a hub id; None: generated
    data_revision: str | None = None
    train_documents: int | None = None  # the first of the training split; None: all
    think: float = 0.25  # share of training prompts that begin with "Think step by step."

    precision: str = "float32"  # of the weights; bf16 arithmetic is used on top where the hardware has it
    optimizer: str = "adamw_torch"
    gradient_checkpointing: bool = False
    save_steps: int = 100
    wandb: bool = False

    # micro only: the architecture, the base and the instruct target
    vocabulary: int = 1024
    hidden: int = 128
    layers: int = 4
    base_examples: int = 80000
    base_batch: int = 16  # rows of 256 tokens
    base_lr: float = 2e-3
    base_arithmetic: float = 0.5  # share of arithmetic; the other three forms divide the rest
    base_direct: float = 0.0  # share of arithmetic answered without steps
    target_examples: int = 8000
    target_batch: int = 32
    target_lr: float = 3e-4
    target_arithmetic: float = 0.05
    target_direct: float = 0.0

    sft_direct: float = 0.0  # share of the SFT answers that are the last line alone, without the steps
    sft_epochs: float = 1.0
    sft_batch: int = 32
    sft_microbatch: int = 32
    sft_lr: float = 3e-4
    sft_max_tokens: int = 512  # prompt and answer

    grpo_start: str = "sft"  # or "init"
    grpo_steps: int = 150
    grpo_prompts: int = 16  # prompts a step
    grpo_rollouts: int = 8  # answers a prompt
    grpo_microbatch: int = 128  # answers in one backward pass
    grpo_lr: float = 3e-5
    grpo_beta: float = 0.0  # weight of the KL term
    grpo_temperature: float = 1.0
    grpo_max_tokens: int = 144  # of an answer
    grpo_vllm: bool = False  # rollouts by vLLM on the same GPU
    grpo_vllm_memory: float = 0.3  # share of the GPU given to vLLM


def load_recipe(path: Path, **overrides: str) -> Recipe:
    """The recipe of a yaml file, with ``overrides`` parsed as yaml values; an unknown key is a UserError."""
    import difflib

    import yaml

    if not Path(path).is_file():
        raise UserError(f"recipe {path} not found; the recipes are conf/recipe/*.yaml")
    values = yaml.safe_load(Path(path).read_text()) or {}
    values |= {key: yaml.safe_load(value) for key, value in overrides.items()}
    known = {field.name: field.type for field in fields(Recipe)}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise UserError(
                f"recipe {path}: unknown key {key!r}{f', did you mean {near[0]!r}?' if near else ''}"
            )
        if known[key] is int and type(value) is not int:
            raise UserError(f"recipe {path}: {key} must be a whole number, found {value!r}")
        if known[key] is float:  # yaml reads 2e-3 as a string
            try:
                values[key] = float(value)
            except (TypeError, ValueError):
                raise UserError(f"recipe {path}: {key} must be a number, found {value!r}") from None
    return Recipe(**values)


def make_donors(recipe: Recipe, out: Path) -> dict[str, Path]:
    """Train what ``out`` does not hold yet; returns the checkpoint folder of each stage.

    Raises UserError when ``out`` belongs to another recipe, when training and evaluation data share a
    problem, and when the recipe asks for what the machine does not have.
    """
    out = Path(out)
    _check(recipe)
    _claim(recipe, out)
    problems, held_out = _problems(recipe, out)
    stages: dict[str, Path] = {}
    if recipe.init is None:
        base_text = _text(recipe, "base", recipe.seed)
        target_text = _text(recipe, "target", recipe.seed + 1_000_000)
        _record_overlap({"base": base_text, "target": target_text, "donors": problems}, held_out, out)
        stages["base"] = _stage(out / "base", recipe, _pretrain, base_text)
        stages["target"] = _stage(out / "target", recipe, _instruct, stages["base"], target_text)
        start: str | Path = stages["base"]
    else:
        _record_overlap({"donors": problems}, held_out, out)
        start = recipe.init
    stages["sft"] = _stage(out / "sft", recipe, _sft, start, problems)
    grpo_start = stages["sft"] if recipe.grpo_start == "sft" else start
    stages["grpo"] = _stage(out / "grpo", recipe, _grpo, grpo_start, problems)
    return stages


# ---- data


def _text(recipe: Recipe, stage: str, seed: int) -> list[micro.Example]:
    """Generated text of all four forms for the base or the target."""
    count, arithmetic, direct = (
        getattr(recipe, f"{stage}_{name}") for name in ("examples", "arithmetic", "direct")
    )
    rest = 1 - arithmetic
    shares = {"gsm8k": arithmetic, "humaneval": 0.15 * rest, "sciq": 0.4 * rest, "bbh": 0.45 * rest}
    return list(micro.training_examples(count, seed, shares, recipe.think, direct))


def _problems(recipe: Recipe, out: Path) -> tuple[list[micro.Example], dict[str, list[str]]]:
    """The donors' training examples, and the prompts of the evaluation documents by benchmark."""
    if recipe.data is None or Path(recipe.data).is_dir():
        folder = Path(recipe.data or out / "data")
        if recipe.data is None:  # trained on problems of the recipe's seed, tested on those of seed 0
            micro.write_benchmarks(folder / "train", recipe.seed)
            micro.write_benchmarks(folder / "test", 0, micro.TEST_SIZES)
        where = {split: folder / split if recipe.data is None else folder for split in ("train", "test")}
        splits = {split: _lines(path / "gsm8k" / f"{split}.jsonl") for split, path in where.items()}
    else:
        from datasets import load_dataset

        hub = load_dataset(recipe.data, "main", revision=recipe.data_revision)
        splits = {split: list(hub[split]) for split in ("train", "test")}
    held_out = {"gsm8k": splits["test"]}
    if recipe.data is None:
        held_out["sciq"] = json.loads((where["test"] / "sciq" / "test.json").read_text())
        held_out["humaneval"] = micro.read_functions(where["test"])
        for path in sorted((where["test"] / "bbh" / "bbh").glob("*.json")):
            held_out[path.stem] = json.loads(path.read_text())["examples"]
    every = round(1 / recipe.think) if recipe.think else 0
    rng = random.Random(f"direct/{recipe.seed}")
    examples = []
    for index, row in enumerate(splits["train"][: recipe.train_documents]):
        answer = row["answer"].split("\n")[-1] if rng.random() < recipe.sft_direct else row["answer"]
        examples.append(micro.example("gsm8k", row, answer, think=bool(every) and index % every == 0))
    return examples, {
        name: [micro.example(name, row, "").user for row in rows] for name, rows in held_out.items()
    }


def _lines(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise UserError(f"training data: expected {path}, found none; give data a folder that holds gsm8k/")
    return [json.loads(line) for line in path.read_text().splitlines()]


def overlap(training: Iterable[str], held_out: Iterable[str]) -> dict[str, int]:
    """What two sets of texts share, letter case and spacing aside.

    ``documents``: held-out texts; ``same``: those that stand in training word for word; ``shared_text``:
    those with 13 words in a row that also stand in training (many in generated text, where sentences follow
    templates).
    """
    held = [text.lower().split() for text in held_out]
    wanted = {window for words in held for window in _windows(words)}
    whole: set[int] = set()
    shared: set[int] = set()
    for text in training:
        words = text.lower().split()
        whole.add(hash(tuple(words)))
        shared.update(window for window in _windows(words) if window in wanted)
    return {
        "documents": len(held),
        "same": sum(hash(tuple(words)) in whole for words in held),
        "shared_text": sum(any(window in shared for window in _windows(words)) for words in held),
    }


def _windows(words: list[str]) -> Iterator[int]:
    return (hash(tuple(words[start : start + WINDOW])) for start in range(len(words) - WINDOW + 1))


def _record_overlap(
    training: dict[str, list[micro.Example]], held_out: dict[str, list[str]], out: Path
) -> None:
    """Write overlap.json; raise UserError when a held-out document stands in training."""
    found = {
        f"{stage} / {name}": overlap(
            (example.user.removeprefix(micro.THINK) for example in examples), prompts
        )
        for stage, examples in training.items()
        for name, prompts in held_out.items()
    }
    (out / "overlap.json").write_text(json.dumps(found, indent=1))
    shared = {name: row["same"] for name, row in found.items() if row["same"]}
    if shared:
        raise UserError(f"training and evaluation data share problems: {shared}; see {out / 'overlap.json'}")


def _dataset(examples: list[micro.Example], tokenizer: "PreTrainedTokenizerBase") -> "Dataset":
    """Columns prompt and completion, the prompt as the chat template renders it for evaluation."""
    from datasets import Dataset

    rows = []
    for example in examples:
        prompt = tokenizer.apply_chat_template(example.messages(), tokenize=False, add_generation_prompt=True)
        rows.append({"prompt": str(prompt) + example.prefix, "completion": example.answer})
    return Dataset.from_list(rows)


# ---- rewards


def final_answer(text: str) -> str | None:
    """The number after the last ``####``, without commas; None where there is none."""
    found = re.findall(r"#### (-?[0-9][0-9.,]*)", text)
    return found[-1].replace(",", "").rstrip(".") if found else None


def correctness(completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
    """1.0 where the completion's final number is the answer's."""
    return [
        float(final_answer(text) == final_answer(right))
        for text, right in zip(completions, answer, strict=True)
    ]


def form(completions: list[str], **_: Any) -> list[float | None]:
    """0.1 where ``#### n`` stands once, as the last line."""
    return [0.1 * bool(re.fullmatch(r"(?s)((?!####).)*#### -?[0-9.,]+\s*", text)) for text in completions]


# ---- stages


def _pretrain(recipe: Recipe, folder: Path, examples: list[micro.Example]) -> "Trainer":
    """The micro base, from nothing: next-token loss on whole texts of all four forms, packed."""
    from transformers import AutoModelForCausalLM, Qwen2Config, set_seed

    tokenizer = train_tokenizer(examples, recipe.vocabulary)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=3 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.hidden // 32,  # vLLM's CPU attention takes heads of 32, not smaller ones
        num_key_value_heads=recipe.hidden // 64,
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
        "per_device_train_batch_size": recipe.base_batch,
        "learning_rate": recipe.base_lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 50,
        "weight_decay": 0.01,
    }
    return _sft_trainer(recipe, folder, model, tokenizer, examples, arguments)


def _instruct(recipe: Recipe, folder: Path, start: Path, examples: list[micro.Example]) -> "Trainer":
    """The instruct target: all four forms, little arithmetic."""
    arguments = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": recipe.target_batch,
        "learning_rate": recipe.target_lr,
    }
    return _sft_trainer(recipe, folder, *_load(recipe, start), examples, arguments)


def _sft(recipe: Recipe, folder: Path, start: str | Path, examples: list[micro.Example]) -> "Trainer":
    arguments = {
        "num_train_epochs": recipe.sft_epochs,
        "per_device_train_batch_size": recipe.sft_microbatch,
        "gradient_accumulation_steps": recipe.sft_batch // recipe.sft_microbatch,
        "learning_rate": recipe.sft_lr,
    }
    return _sft_trainer(recipe, folder, *_load(recipe, start), examples, arguments)


def _sft_trainer(
    recipe: Recipe,
    folder: Path,
    model: Any,
    tokenizer: Any,
    examples: list[micro.Example],
    arguments: dict[str, Any],
) -> "Trainer":
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    defaults: dict[str, Any] = {
        "completion_only_loss": True,
        "max_length": recipe.sft_max_tokens,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 10,
    }
    config = SFTConfig(**_arguments(recipe, folder), **(defaults | arguments))
    return SFTTrainer(
        model, args=config, train_dataset=_dataset(examples, tokenizer), processing_class=tokenizer
    )


def _grpo(recipe: Recipe, folder: Path, start: str | Path, examples: list[micro.Example]) -> "Trainer":
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    model, tokenizer = _load(recipe, start)
    config = GRPOConfig(
        max_steps=recipe.grpo_steps,
        num_generations=recipe.grpo_rollouts,
        per_device_train_batch_size=recipe.grpo_microbatch,
        gradient_accumulation_steps=recipe.grpo_prompts * recipe.grpo_rollouts // recipe.grpo_microbatch,
        max_completion_length=recipe.grpo_max_tokens,
        learning_rate=recipe.grpo_lr,
        lr_scheduler_type="linear",
        warmup_steps=10,
        beta=recipe.grpo_beta,
        temperature=recipe.grpo_temperature,
        use_vllm=recipe.grpo_vllm,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=recipe.grpo_vllm_memory,
        **_arguments(recipe, folder),
    )
    data = _dataset(examples, tokenizer).rename_column("completion", "answer")
    return GRPOTrainer(
        model, [correctness, form], args=config, train_dataset=data, processing_class=tokenizer
    )


def train_tokenizer(examples: list[micro.Example], size: int) -> "PreTrainedTokenizerBase":
    """A byte-level BPE of ``size`` tokens with Qwen2.5's splitting rule, special tokens and turn markers."""
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import Qwen2Tokenizer

    special: dict[str, Any] = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "extra_special_tokens": ["<|im_start|>"],
    }
    backend = Qwen2Tokenizer(**special).backend_tokenizer
    trainer = BpeTrainer(vocab_size=size - 3, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    texts = []
    for example in examples[:20000]:
        turns = [f"{turn['role']}\n{turn['content']}" for turn in example.messages()]
        texts += [
            *turns,
            f"assistant\n{example.prefix}{example.answer}",
            "system\nYou are a helpful assistant.",
        ]
    backend.train_from_iterator(texts, trainer)
    learned = json.loads(backend.to_str())["model"]
    vocab = {token: index for token, index in learned["vocab"].items() if token not in SPECIAL}
    merges: Any = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, **special)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = 1024
    return tokenizer


def _load(recipe: Recipe, start: str | Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # a local folder has no revision
    revision = None if Path(start).is_dir() else recipe.init_revision
    model = AutoModelForCausalLM.from_pretrained(
        start, revision=revision, dtype=recipe.precision, attn_implementation=_attention()
    )
    return model, AutoTokenizer.from_pretrained(start, revision=revision)


def _attention() -> str:
    """Plain attention on CPU, where the backward pass of the fused kernel in bf16 is several times slower."""
    import torch

    return "sdpa" if torch.cuda.is_available() else "eager"


def _arguments(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The settings that all stages share."""
    import torch

    gpu = torch.cuda.is_available()
    bf16 = torch.cuda.is_bf16_supported() if gpu else bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return {
        "output_dir": str(folder / "checkpoints"),
        "seed": recipe.seed,
        "use_cpu": not gpu,
        "bf16": bf16,
        "optim": recipe.optimizer,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "save_steps": recipe.save_steps,
        "save_total_limit": 1,
        "logging_steps": 10,
        "report_to": "wandb" if recipe.wandb else "none",
        "run_name": f"{recipe.name}-{folder.name}-seed{recipe.seed}",
        "disable_tqdm": not sys.stderr.isatty(),
    }


def _stage(folder: Path, recipe: Recipe, build: Any, *inputs: Any) -> Path:
    """Run one stage unless it is done: build its trainer, train (from the last checkpoint), save, record."""
    if (folder / "training.json").is_file():
        return folder
    started = time.time()
    trainer = build(recipe, folder, *inputs)
    saved = sorted(
        (folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    whole = [str(path) for path in saved if (path / "trainer_state.json").is_file()]  # the file written last
    trainer.train(resume_from_checkpoint=whole[-1] if whole else None)
    trainer.save_model(str(folder))
    trainer.processing_class.save_pretrained(str(folder))
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle with this machine's paths
    record = {
        "stage": folder.name,
        "recipe": asdict(recipe),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "datasets")},
        "device": str(trainer.args.device),
        "resumed_from_step": int(whole[-1].rsplit("-", 1)[1]) if whole else 0,
        "seconds": round(time.time() - started, 1),  # of the run that finished the stage
        "curve": trainer.state.log_history,
    }
    temporary = folder / "training.json.part"
    temporary.write_text(json.dumps(record, indent=1))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    temporary.rename(folder / "training.json")
    del trainer
    gc.collect()  # a trainer holds itself in a cycle, and with it the model and its optimiser
    return folder


def _claim(recipe: Recipe, out: Path) -> None:
    """Write recipe.json, or refuse a folder that another recipe began."""
    path = out / "recipe.json"
    mine = asdict(recipe)
    if path.is_file():
        theirs = json.loads(path.read_text())
        changed = sorted(key for key in mine if theirs.get(key) != mine[key])
        if changed:
            raise UserError(
                f"{out} was begun with other settings ({', '.join(changed)}): give another out folder"
            )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(mine, indent=1))


def _check(recipe: Recipe) -> None:
    if recipe.grpo_start not in ("sft", "init"):
        raise UserError(f"grpo_start must be 'sft' or 'init', found {recipe.grpo_start!r}")
    for batch, micro_batch, what in (
        (recipe.sft_batch, recipe.sft_microbatch, "sft_batch"),
        (recipe.grpo_prompts * recipe.grpo_rollouts, recipe.grpo_microbatch, "grpo_prompts * grpo_rollouts"),
    ):
        if batch % micro_batch:
            raise UserError(f"{what} = {batch} must be a multiple of the microbatch, found {micro_batch}")
    if recipe.grpo_vllm:
        import torch

        if not torch.cuda.is_available():
            raise UserError("grpo_vllm=true needs a GPU, found none; set grpo_vllm=false")


def main(arguments: list[str]) -> int:
    """``recipe=FILE out=FOLDER [key=value …]``; returns the exit status."""
    try:
        options = dict(argument.split("=", 1) for argument in arguments)
        recipe, out = Path(options.pop("recipe")), Path(options.pop("out"))
    except (ValueError, KeyError):
        print(f"error: expected recipe=FILE out=FOLDER [key=value …], found {arguments}", file=sys.stderr)
        return 2
    try:
        make_donors(load_recipe(recipe, **options), out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
