"""Trains donors: from one initialisation, SFT and then GRPO on the same training problems, with TRL.

    python -m pipeline.donors recipe=conf/recipe/micro.yaml out=/tmp/micro seed=1

``make_donors`` writes one Hugging Face checkpoint a stage under ``out``: ``sft`` and ``grpo``, and before
them, where the recipe gives no initialisation, ``base`` and ``target`` (the micro family, trained from
nothing on text that ``evals.micro`` generates). Each stage's folder holds a ``training.json`` with its
settings, start, versions, curves and time, and a finished stage is never repeated. A killed stage goes on from
its last checkpoint: on the CPU to the same weights, on the same machine and thread count; not where vLLM makes
the rollouts, whose state is in no checkpoint. One run at a time holds ``out``. ``reuse=FOLDER`` copies the
stages of another family that this recipe would train alike, so that a target nearer or farther from the base
costs its own training alone. Alike: settings, training texts, start, kind of device and package versions; not
compared are this file's own constants and vLLM's version.

What is optimised: SFT, cross-entropy on the completion alone; GRPO (arXiv 2402.03300) with DAPO's mean over the
tokens of all answers (arXiv 2503.14476; TRL's default), reward 1.0 for the exact answer plus 0.1 for the form
``#### n``. GRPO starts from the SFT donor or from the initialisation (``grpo_start``): the paper can be read
both ways. One process, one device; it does not cover several GPUs.

The micro base has read all the donors' problems with their answers: its text draws word problems from the same
random stream (``gsm8k/train/{seed}``), and more of them. SFT and GRPO then train on what the base has seen, not on
new problems; the test documents are apart from all three.

Training never meets evaluation documents that are there to compare with: those of all four generated
benchmarks, those of GSM8K, SciQ, HumanEval and BBH in the folder ``data``, or the test split of a hub id and the
four as the paper's experiment takes them from the hub; code is compared by what is asked and by its
solution. ``overlap.json`` tells what they share. It does not cover problems in other words.
"""

import gc
import json
import math
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import micro
from pipeline import documents as documents
from pipeline import hub
from pipeline.errors import UserError
from pipeline.files import digest, new_folder, write_json
from pipeline.lock import held

if TYPE_CHECKING:  # torch, transformers and trl take seconds to import: only training pays
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, Trainer

    from pipeline.weights.checkpoint import Checkpoint

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
STAGES = ("base", "target", "sft", "grpo")  # the first two only where a recipe gives no initialisation
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor")  # those that need no further package
SOLUTIONS = "humaneval, solutions"  # what a code document is known by: its prompt holds an example drawn anew
_BEGUN = ("training.json", "checkpoints/checkpoint-*")  # what a stage leaves that is worth keeping
_APART = {  # the settings that change nothing in a stage's weights
    "base": "name$|save_steps|wandb|sft_max_tokens|data|train_documents|(target|sft|grpo)_",
    "target": "name$|save_steps|wandb|sft_max_tokens|data|train_documents|(sft|grpo)_",
    "sft": "name$|save_steps|wandb|sft_max_tokens|(target|grpo)_",
    "grpo": "name$|save_steps|wandb|sft_max_tokens|target_",
}
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers")
WINDOW = 13  # words in a row that count as shared text, as in the GPT-3 report (arXiv 2005.14165, appendix C)


@dataclass(frozen=True)
class Recipe:
    """Every setting of a donor family. A microbatch is what one backward pass takes."""

    name: str = "micro"
    seed: int = 0
    init: str | None = None  # checkpoint to start from, a folder or a hub id; None: pretrain the micro base
    init_revision: str | None = None
    data: str | None = None  # folder with gsm8k/{train,test}.jsonl, or a hub id of GSM8K; None: generated
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
    base_batch: int = 8  # rows of 256 tokens
    base_lr: float = 2e-3
    base_arithmetic: float = 0.5  # share of arithmetic; the other three forms divide the rest
    base_direct: float = (
        0.0  # share of arithmetic answered without steps; half of it after "Think step by step."
    )
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
    sft_max_tokens: int = 512  # prompt and answer; a longer text is refused, not cut

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


def load_recipe(path: Path, /, **overrides: str) -> Recipe:
    """The recipe of a yaml file, with ``overrides`` parsed as yaml values.

    The commit that a recipe pins is that of its own ``init`` or ``data``, and goes when another one is given.

    Raises UserError for what is not yaml, an unknown key, a value of another type or out of range, an override
    without a value, and a setting that would do nothing.
    """
    import difflib

    path = Path(path)
    if not path.is_file():
        raise UserError(f"recipe {path} not found; the recipes are conf/recipe/*.yaml")
    values = _yaml(f"recipe {path}", path.read_bytes())
    if values is None:  # an empty file: all defaults
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"recipe {path}: expected lines of key: value, found {str(values)[:60]!r}")
    for key, text in overrides.items():
        if not text.strip():  # yaml would read null
            raise UserError(f"{key}=: expected a value, found none; give one, or leave {key} out")
    given = {key: _yaml(f"{key}={text}", text) for key, text in overrides.items()}
    for key in ("init", "data"):
        if key in given and given[key] != values.get(key):
            values.pop(f"{key}_revision", None)
    values |= given
    known: dict[Any, Any] = {field.name: field.type for field in fields(Recipe)}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise UserError(
                f"recipe {path}: unknown key {key!r}{f', did you mean {near[0]!r}?' if near else ''}"
            )
        if known[key] is float and type(value) in (int, str):  # yaml reads 2e-3 as a string
            with suppress(ValueError, OverflowError):
                values[key] = value = float(value)
        if not isinstance(value, known[key]) or (type(value) is bool and known[key] is not bool):
            raise UserError(f"recipe {path}: {key} must be {_TYPES[known[key]]}, found {value!r}")
    recipe = Recipe(**values)
    _check(recipe)
    return recipe


_TYPES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    int | None: "a whole number or null",
    float: "a number",
    str: "text (quoted, if it is a number)",
    str | None: "text (quoted, if it is a number) or null",
}


def _yaml(what: str, text: str | bytes) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{what}: not valid yaml ({' '.join(str(error).split())[:160]}); mend it") from None


def _check(recipe: Recipe) -> None:
    """Raise UserError for the first setting that is out of range."""
    rules: list[tuple[str, str, Callable[[Any], bool]]] = [
        (
            "think base_arithmetic base_direct target_arithmetic target_direct sft_direct",
            "a share from 0 to 1",
            lambda value: 0 <= value <= 1,
        ),
        (
            "save_steps layers base_examples base_batch target_examples target_batch sft_batch sft_microbatch"
            " sft_max_tokens grpo_steps grpo_prompts grpo_microbatch grpo_max_tokens",
            "above 0",
            lambda value: value > 0,
        ),
        ("train_documents", "above 0, or null for all", lambda value: value is None or value > 0),
        (
            "base_lr target_lr sft_lr sft_epochs grpo_lr grpo_temperature",
            "finite and above 0",
            lambda value: 0 < value < math.inf,
        ),
        ("grpo_beta", "finite and at least 0", lambda value: 0 <= value < math.inf),
        ("grpo_vllm_memory", "a share above 0 and at most 1", lambda value: 0 < value <= 1),
        ("grpo_rollouts", "at least 2, to be compared with each other", lambda value: value >= 2),
        ("grpo_start", "'sft' or 'init'", lambda value: value in ("sft", "init")),
        ("seed", "from 0 to 4294967295", lambda value: 0 <= value < 2**32),
        ("vocabulary", "at least 259, the bytes and 3 turn markers", lambda value: value >= 259),
        ("hidden", "a multiple of 64 above 0", lambda value: value > 0 and value % 64 == 0),
        ("precision", "float32 or bfloat16", lambda value: value in ("float32", "bfloat16")),
        ("optimizer", f"one of {', '.join(OPTIMIZERS)}", lambda value: value in OPTIMIZERS),
    ]
    for names, expected, fits in rules:
        for name in names.split():
            if not fits(value := getattr(recipe, name)):
                raise UserError(f"recipe {recipe.name}: {name} must be {expected}, found {value!r}")
    for batch, micro_batch, what in (
        (recipe.sft_batch, recipe.sft_microbatch, "sft_batch"),
        (recipe.grpo_prompts * recipe.grpo_rollouts, recipe.grpo_microbatch, "grpo_prompts * grpo_rollouts"),
    ):
        if batch % micro_batch:
            raise UserError(f"{what} = {batch} must be a multiple of the microbatch, found {micro_batch}")
    for name, needs, given in (
        ("init_revision", "an init on the hub", recipe.init and not Path(recipe.init).is_dir()),
        ("data_revision", "a data set on the hub", recipe.data and not Path(recipe.data).is_dir()),
    ):
        value, default = getattr(recipe, name), getattr(Recipe, name)
        if value != default and not given:
            raise UserError(f"{name}={value!r} does nothing without {needs}; leave it out, or give that")
    for field in fields(Recipe) if recipe.init is not None else ():
        value = getattr(recipe, field.name)
        if re.match("vocabulary|hidden|layers|base_|target_", field.name) and value != field.default:
            raise UserError(
                f"recipe {recipe.name}: {field.name}={value!r} does nothing where init is given; leave it out, or"
                f" set {field.name}={field.default}"
            )


def make_donors(
    recipe: Recipe, out: Path, report: Callable[[str], None] = print, reuse: Path | None = None
) -> dict[str, Path]:
    """Train what ``out`` does not hold yet; returns the checkpoint folder of each stage.

    ``reuse`` is another family's folder: its finished stages that have the same settings, texts, start, kind of
    device and package versions are copied, not trained again.

    Raises UserError when ``out`` belongs to another recipe or to something else, when ``reuse`` holds no
    family, when the initialisation or the data cannot be read, when training and evaluation data share a
    problem, and when the recipe asks for what the machine does not have. Until all of these but the shared
    problems are known, nothing is written.
    """
    out = Path(out)
    _check(recipe)
    _check_out(recipe, out)
    if reuse is not None and not any((Path(reuse) / stage / "training.json").is_file() for stage in STAGES):
        raise UserError(f"reuse={reuse}: expected a folder with finished stages of donors, found none")
    stages = {name: out / name for name in (STAGES if recipe.init is None else STAGES[2:])}
    if all(_is_done(folder) for folder in stages.values()):
        return stages
    _check_machine(recipe)
    init = None if recipe.init is None else _open_init(recipe.init, recipe.init_revision)
    problems, held_out = _problems(recipe)
    text = {"donors": problems}
    if init is None:
        text = {
            "base": _text(recipe, "base", recipe.seed),
            "target": _text(recipe, "target", recipe.seed + 1_000_000),
        } | text
    with held(out, f"donors {recipe.name}", report):
        _claim(recipe, out)
        _record_overlap(text, held_out, out)

        def stage(name: str, build: Any, start: "Checkpoint | None", examples: Any) -> "Checkpoint":
            if reuse is not None and not _is_done(out / name):
                _reuse(recipe, Path(reuse) / name, out / name, start, examples, report)
            return _stage(out / name, recipe, build, start, examples)

        if init is None:
            init = stage("base", _pretrain, None, text["base"])
            stage("target", _instruct, init, text["target"])
        sft = stage("sft", _sft, init, problems)
        stage("grpo", _grpo, sft if recipe.grpo_start == "sft" else init, problems)
    return stages


# ---- what must be there


def _check_out(recipe: Recipe, out: Path) -> None:
    """Raise UserError unless ``out`` is new, empty, this recipe's, or another's that has begun no stage."""
    path = out / "recipe.json"
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(file.name[0] != "." for file in out.iterdir())):
            raise UserError(f"out={out} holds something else than donors; give another out folder")
        return
    try:
        theirs = json.loads(path.read_text())
        changed = sorted(key for key, value in asdict(recipe).items() if theirs.get(key) != value)
    except (ValueError, AttributeError, RecursionError):
        raise UserError(f"{path}: expected a recipe's settings as JSON; give another out folder") from None
    begun = (next(out.glob(f"{stage}/{file}"), None) for stage in STAGES for file in _BEGUN)
    if changed and any(begun):
        done = any(out.glob("*/training.json"))
        remedy = (
            f"give another out folder and reuse={out}" if done else "give another out folder, or remove it"
        )
        raise UserError(f"{out} was begun with other settings ({', '.join(changed)}): {remedy}")


def _claim(recipe: Recipe, out: Path) -> None:
    """Write recipe.json; the folder is held, and may have become another run's while this one waited for it."""
    _check_out(recipe, out)
    write_json(out / "recipe.json", asdict(recipe))


def _check_machine(recipe: Recipe) -> None:
    """Raise UserError when a package or the GPU that training needs is not there."""
    for package in ("trl", "accelerate", "datasets"):
        if find_spec(package) is None:
            raise UserError(f"training needs {package}, which is not installed; install the extra 'train'")
    if recipe.grpo_vllm:
        import torch

        if not torch.cuda.is_available():
            raise UserError("grpo_vllm=true needs a GPU, found none; set grpo_vllm=false")
        if find_spec("vllm") is None:
            raise UserError("grpo_vllm=true needs vllm, which is not installed; install the extra 'gpu'")


def _open_init(source: str, revision: str | None) -> "Checkpoint":
    """The checkpoint that training starts from; UserError unless it is a language model with a chat template."""
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from pipeline.weights.checkpoint import Checkpoint

    found = Checkpoint.open(source, revision)
    try:
        config = AutoConfig.from_pretrained(found.path, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(found.path, trust_remote_code=False)
    except Exception as error:  # transformers has no one type for what it cannot read
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"init={source}: its configuration or tokenizer cannot be read ({reason}); give another"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"init={source}: expected a causal language model, found {config.model_type!r}")
    if not tokenizer.chat_template:
        raise UserError(f"init={source}: its tokenizer has no chat template; add one, or give another model")
    return found


# ---- data


def _text(recipe: Recipe, stage: str, seed: int) -> list[micro.Example]:
    """Generated text of all four forms for the base or the target."""
    count, arithmetic, direct = (
        getattr(recipe, f"{stage}_{name}") for name in ("examples", "arithmetic", "direct")
    )
    rest = 1 - arithmetic
    shares = {"gsm8k": arithmetic, "humaneval": 0.15 * rest, "sciq": 0.4 * rest, "bbh": 0.45 * rest}
    return list(micro.training_examples(count, seed, shares, recipe.think, direct))


def _problems(recipe: Recipe) -> tuple[list[micro.Example], dict[str, list[str]]]:
    """The donors' training examples, and the evaluation documents by benchmark: prompts, and solutions of code.

    Raises UserError when they cannot be read, or are too few for a step of GRPO.
    """
    if recipe.data is None:  # trained on problems of the recipe's seed, tested on those of seed 0
        train: Iterable[dict[str, str]] = micro.documents(
            "gsm8k", "train", recipe.seed, micro.SIZES["gsm8k_train"]
        )
        sizes = micro.TEST_SIZES | dict.fromkeys(sorted(micro.SUBTASKS), micro.TEST_SIZES["bbh"])
        held_out = {
            name: [micro.example(name, row, "").user for row in micro.documents(name, "test", 0, sizes[name])]
            for name in ("gsm8k", "sciq", "humaneval", *sorted(micro.SUBTASKS))
        }
        functions = micro.documents("humaneval", "test", 0, sizes["humaneval"])
        held_out[SOLUTIONS] = [row["canonical_solution"] for row in functions]
    elif (folder := Path(recipe.data)).is_dir():
        train = _lines(folder / "gsm8k" / "train.jsonl", "question", "answer")
        test = _lines(folder / "gsm8k" / "test.jsonl", "question")
        held_out = {"gsm8k": [_as_problem(row["question"]) for row in test], **_evaluated(folder)}
    else:
        train, test = _from_hub(recipe.data, recipe.data_revision)
        try:
            benchmarks = _evaluated(None)
        except UserError as error:
            raise UserError(str(error).replace("set data.folder to", "give data=FOLDER to")) from error
        held_out = {f"{recipe.data}, test": [_as_problem(row["question"]) for row in test], **benchmarks}
    rng = random.Random(f"direct/{recipe.seed}")
    examples = []
    for index, row in enumerate(list(train)[: recipe.train_documents]):
        answer = row["answer"].split("\n")[-1] if rng.random() < recipe.sft_direct else row["answer"]
        think = math.ceil((index + 1) * recipe.think) > math.ceil(index * recipe.think)  # spread evenly
        examples.append(micro.example("gsm8k", row, answer, think))
    if len(examples) < recipe.grpo_prompts:
        raise UserError(
            f"training data: expected at least grpo_prompts={recipe.grpo_prompts} documents, found"
            f" {len(examples)}; give more, or a smaller grpo_prompts"
        )
    return examples, held_out


def _as_problem(question: str) -> str:
    """The prompt of a training problem that asks this."""
    return micro.example("gsm8k", {"question": question}, "").user


def _lines(path: Path, *needed: str) -> list[dict[str, str]]:
    """The rows of a file of GSM8K; UserError for the first that lacks a field."""
    if not path.is_file():
        raise UserError(f"training data: expected {path}, found none; give data a folder that holds gsm8k/")
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            raise UserError(f"{path}, line {number}: expected a JSON object; mend it") from None
        if line.strip():
            rows.append(_row(row, f"{path}, line {number}", needed))
    if not rows:
        raise UserError(f"{path}: expected problems, a JSON object a line, found none")
    return rows


def _row(row: Any, where: str, needed: Iterable[str]) -> dict[str, str]:
    """The row with its texts; UserError where one lacks, or an answer does not end in its number."""
    for field in needed:
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise UserError(f"{where}: expected an object with a text in {field!r}; mend it")
        if field == "answer" and final_answer(row["answer"].rstrip().split("\n")[-1]) is None:
            raise UserError(
                f"{where}: expected an answer whose last line is '#### n', found {row['answer'][-40:]!r}"
            )
    return {field: row[field].rstrip() if field == "answer" else row[field] for field in needed}


def _from_hub(name: str, revision: str | None) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The training and test rows of GSM8K, or of a repository that is laid out like it."""
    from datasets import load_dataset

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"data={name} is neither a folder nor a hub id such as openai/gsm8k; check the spelling"
        )
    folder = hub.fetch(name, revision, kind="dataset")
    try:
        splits = load_dataset(str(folder), "main")
        train, test = list(splits["train"]), list(splits["test"])
    except Exception as error:  # the library has no one type for what it cannot read
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"data={name}: expected GSM8K's splits train and test ({reason})") from error
    return (
        [_row(row, f"{name}, row {n} of train", ("question", "answer")) for n, row in enumerate(train)],
        [_row(row, f"{name}, row {n} of test", ("question",)) for n, row in enumerate(test)],
    )


def _evaluated(folder: Path | None) -> dict[str, list[str]]:
    """What the evaluated documents ask, as training problems would: SciQ's, HumanEval's and BBH's, as far as a folder
    holds them (its GSM8K is read with the training split); of the hub those of all four.
    """
    from pipeline.config.compose import compose

    asks = {"sciq": "question", "humaneval": "prompt", "bbh": "input"}
    if folder is None:
        asks["gsm8k"] = "question"
    found = {}
    for name, benchmark in compose(["experiment=paper"]).benchmarks.items():
        subtasks: list[str | None] = [*benchmark.subtasks] or [None]
        for subtask in subtasks if benchmark.form in asks else ():
            dataset = asdict(benchmark.dataset)
            file = dataset["files"]["test"].format(subtask=subtask)
            if folder is None or (folder / file).is_file():
                where = None if folder is None else str(folder)
                rows = documents.load(dataset, where, subtask, form=benchmark.form)["test"]
                found[subtask or name] = [_as_problem(text) for text in rows[asks[benchmark.form]]]
                if "canonical_solution" in rows.column_names:
                    found[SOLUTIONS] = [str(text) for text in rows["canonical_solution"]]
    return found


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
            (
                example.answer.removesuffix("```")
                if name == SOLUTIONS
                else example.user.removeprefix(micro.THINK)
                for example in examples
            ),
            texts,
        )
        for stage, examples in training.items()
        for name, texts in held_out.items()
    }
    (out / "overlap.json").write_text(json.dumps(found, indent=1))
    shared = {name: row["same"] for name, row in found.items() if row["same"]}
    if shared:
        raise UserError(f"training and evaluation data share problems: {shared}; see {out / 'overlap.json'}")


def _dataset(examples: list[micro.Example], tokenizer: "PreTrainedTokenizerBase") -> "Dataset":
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


# ---- rewards


def final_answer(text: str) -> str | None:
    """The number after the last ``####``, without commas; None where there is none."""
    found = re.findall(r"#### (-?[0-9][0-9.,]*)", text)
    return found[-1].replace(",", "").rstrip(".") if found else None


def correctness(completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
    """1.0 where the completion's final number is the answer's, which must have one."""
    pairs = [
        (final_answer(text), final_answer(right)) for text, right in zip(completions, answer, strict=True)
    ]
    return [float(found is not None and found == right) for found, right in pairs]


def form(completions: list[str], **_: Any) -> list[float | None]:
    """0.1 where the text has ``####`` once and ends with it and a number.

    What stands before it on its line is not looked at, and points and commas alone pass for a number.
    """
    return [0.1 * bool(re.fullmatch(r"(?s)((?!####).)*#### -?[0-9.,]+\s*", text)) for text in completions]


# ---- stages


def _pretrain(recipe: Recipe, folder: Path, start: None, examples: list[micro.Example]) -> "Trainer":
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


def _instruct(recipe: Recipe, folder: Path, start: "Checkpoint", examples: list[micro.Example]) -> "Trainer":
    """The instruct target: all four forms, little arithmetic."""
    arguments = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": recipe.target_batch,
        "learning_rate": recipe.target_lr,
    }
    return _sft_trainer(recipe, folder, *_load(recipe, start), examples, arguments)


def _sft(recipe: Recipe, folder: Path, start: "Checkpoint", examples: list[micro.Example]) -> "Trainer":
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
        "max_length": None,  # nothing is cut
        "lr_scheduler_type": "cosine",
        "warmup_steps": 10,
    }
    config = SFTConfig(**_arguments(recipe, folder), **(defaults | arguments))
    rows = _dataset(examples, tokenizer)
    trainer = SFTTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)
    longest = max(map(len, trainer.train_dataset["input_ids"]))  # type: ignore[index]
    if longest > max(recipe.sft_max_tokens, config.max_length or 0):
        raise UserError(
            f"sft_max_tokens={recipe.sft_max_tokens}: the longest training text of {folder.name} has {longest} tokens,"
            f" and cut it would lose its answer; set sft_max_tokens={longest} or more"
        )
    return trainer


def _grpo(recipe: Recipe, folder: Path, start: "Checkpoint", examples: list[micro.Example]) -> "Trainer":
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
        loss_type="dapo",
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


def _load(recipe: Recipe, start: "Checkpoint") -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        start.path, dtype=recipe.precision, attn_implementation=_attention()
    )
    return model, AutoTokenizer.from_pretrained(start.path)


def _attention() -> str:
    """Plain attention on CPU, where the backward pass of the fused kernel in bf16 is several times slower."""
    import torch

    return "sdpa" if torch.cuda.is_available() else "eager"


def _arguments(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The settings that all stages share."""
    import torch

    if recipe.wandb:
        _prepare_wandb(folder.parent)
    return {
        "output_dir": str(folder / "checkpoints"),
        "seed": recipe.seed,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": _bf16(),
        "optim": recipe.optimizer,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "save_steps": recipe.save_steps,
        "save_total_limit": 1,
        "logging_steps": 10,
        "report_to": "wandb" if recipe.wandb else "none",
        "run_name": f"{recipe.name}-{folder.name}-seed{recipe.seed}",
        "disable_tqdm": not sys.stderr.isatty(),
    }


def _bf16() -> bool:
    """Whether the hardware computes in bf16, other than by emulation."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def _prepare_wandb(out: Path) -> None:
    """W&B writes under ``out``, and asks for nothing: where no API key is known its runs are offline."""
    import wandb

    os.environ.setdefault("WANDB_DIR", str(out))
    os.environ.setdefault("WANDB_PROJECT", "reasoning-vectors")
    if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False):
        os.environ["WANDB_MODE"] = "offline"  # `wandb sync` uploads it
        wandb.teardown()  # it has read its settings already, and would ask for a key


def _is_done(folder: Path) -> bool:
    """Whether a stage is finished; a kill after that may have left checkpoints, which are removed."""
    done = (folder / "training.json").is_file()
    if done:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return done


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint's state, the file written last, is there and whole."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _reuse(
    recipe: Recipe,
    source: Path,
    folder: Path,
    start: "Checkpoint | None",
    examples: list[micro.Example],
    report: Callable[[str], None],
) -> None:
    """Copy a finished stage of another family if this recipe would train it alike; say so, or why not."""
    from pipeline.weights.checkpoint import Checkpoint

    where = f"{folder.name}: {source}"
    try:
        record = json.loads((source / "training.json").read_bytes())
        theirs, inputs = dict(record["recipe"]), dict(record["inputs"])
        Checkpoint.open(str(source))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError):
        return report(
            f"{where} is no finished stage with its weights and inputs (early versions recorded none); trained here"
        )
    settings = {key: value for key, value in asdict(recipe).items() if not re.match(_APART[folder.name], key)}
    changed = [key for key, value in settings.items() if theirs.get(key) != value]
    changed += [key for key, value in _inputs(start, examples).items() if inputs.get(key) != value]
    if changed:
        return report(f"{where} has another {', '.join(changed)}; trained here")
    shutil.rmtree(folder, ignore_errors=True)  # begun, and not finished
    with new_folder(folder) as copy:
        write_json(copy / "training.json", record | {"copied_from": str(source)})
        shutil.copytree(
            source, copy, ignore=shutil.ignore_patterns("checkpoints", "training.json"), dirs_exist_ok=True
        )
    report(f"{where} is the same; copied")


def _inputs(start: "Checkpoint | None", examples: list[micro.Example]) -> dict[str, Any]:
    """What beside the settings makes a stage's weights: texts, start, arithmetic and packages."""
    import torch

    return {
        "texts": digest([asdict(example) for example in examples]),
        "start": start and [start.fingerprint, start.tokenizer_fingerprint],
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "bf16": _bf16(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _stage(
    folder: Path, recipe: Recipe, build: Any, start: "Checkpoint | None", examples: list[micro.Example]
) -> "Checkpoint":
    """Run one stage unless it is done: build its trainer, train (from the last checkpoint), save, record."""
    from pipeline.weights.checkpoint import Checkpoint

    if _is_done(folder):
        return Checkpoint.open(str(folder))
    started = time.time()
    trainer = build(recipe, folder, start, examples)
    saved = sorted(
        (folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    whole = [str(path) for path in saved if _is_whole(path)]
    trainer.train(resume_from_checkpoint=whole[-1] if whole else None)
    if trainer.state.global_step == 0:
        raise UserError(f"{folder}: training took no step; give more documents or smaller batches")
    trainer.save_model(str(folder))
    trainer.processing_class.save_pretrained(str(folder))
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle with this machine's paths
    record = {
        "stage": folder.name,
        "recipe": asdict(recipe),
        "start": start and {"revision": start.revision, "fingerprint": start.fingerprint},
        "inputs": _inputs(start, examples),
        "resumed_from_step": int(whole[-1].rsplit("-", 1)[1]) if whole else 0,
        "seconds": round(time.time() - started, 1),  # of the run that finished the stage
        "curve": trainer.state.log_history,
    }
    temporary = folder / "training.json.part"
    temporary.write_text(json.dumps(record, indent=1))
    temporary.rename(folder / "training.json")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if recipe.wandb:
        import wandb

        wandb.finish()  # else the next stage would log into this one's run
    del trainer
    gc.collect()  # a trainer holds itself in a cycle, and with it the model and its optimiser
    return Checkpoint.open(str(folder))
