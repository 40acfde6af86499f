"""What the missing cells read, checked before an engine starts or anything is written.

Vectors, checkpoints, tokenizers, the engine's options against the model, tasks and documents: whatever vLLM or lm-eval
would only find minutes later is one line here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.config.schema import EngineConfig, PromptConfig, Swap
from pipeline.errors import UserError
from pipeline.evaluate.tasks import check_task, load_task, load_tokenizer, manager_of, most_new_tokens
from pipeline.plan.family import Family, of_family
from pipeline.plan.grid import Condition
from pipeline.plan.plan import Cell, Plan
from pipeline.weights.architecture import EMBEDDING, HEAD
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.compatibility import check_compatible

QUESTION = "What is asked?"  # a user's turn that a chat template must let through


def check_inputs(plan: Plan, vectors: bool) -> None:
    """Everything that the missing cells read: found wrong here, nothing has been written.

    Args:
        vectors: check these too; they are not there yet if the stage 'extract' is still to come.

    Raises:
        FamilyRefused: for a checkpoint or tokenizer that a cell could not be computed with.
        UserError: for such a task, document or vector.
    """
    missing = plan.missing()
    if vectors:
        for cell in {(c.family.name, c.condition): c for c in missing}.values():
            plan.terms(cell.family, cell.condition)
    check_weights([(cell.family, cell.condition) for cell in missing], plan.config.engine)
    manager = manager_of(plan.benchmarks)
    for cell in {
        (c.benchmark.name, c.benchmark.config.max_gen_toks, _room(c, plan)[1]): c for c in missing
    }.values():
        benchmark, (where, room) = cell.benchmark, _room(cell, plan)
        for subtask in benchmark.subtasks:
            loaded = load_task(manager, benchmark, subtask, PromptConfig())
            check_task(loaded, benchmark)
            if most_new_tokens(loaded) >= room:
                raise UserError(
                    f"{where}={room}: '{loaded.config.task}' lets an answer have {most_new_tokens(loaded)}"
                    f" tokens, and its prompt needs room too; raise it, or lower benchmarks.{benchmark.origin}.max_gen_toks"
                )


def _room(cell: Cell, plan: Plan) -> tuple[str, int]:
    """The tokens that prompt and answer may have together, behind the name of the setting."""
    shared, room = plan.config.engine, cell.family.engine(plan.config.engine).max_model_len
    return (
        "engine" if room == shared.max_model_len else f"families.{cell.family.name}"
    ) + ".max_model_len", room


def check_weights(rows: Iterable[tuple[Family, Condition]], engine: EngineConfig) -> None:
    """The checkpoints that rows start from fit their target, and the target fits the engine and its own tokenizer.

    Raises:
        FamilyRefused: for the first that does not.
    """
    starts = {(family.name, condition.start): family for family, condition in rows}
    for (_, start), family in starts.items():
        checkpoint = family.checkpoint(start)
        with of_family(family.name):
            check_compatible(family.target, checkpoint, checkpoint, family.config.allow_config_differences)
            if engine.swap is Swap.restart:
                _check_shapes(family.target, checkpoint)
    for family in {family.name: family for family in starts.values()}.values():
        with of_family(family.name):
            _check_model(family.target, family.engine(engine))
            _check_tokenizer(family)


def _check_shapes(target: Checkpoint, checkpoint: Checkpoint) -> None:
    """An engine that is started on a checkpoint takes it as it is: with the rows and the head of the target."""
    for name, info in target.tensors.items():
        found = checkpoint.tensors.get(name)
        shape = None if found is None else found.shape
        if shape != info.shape and not (name == HEAD and target.tied):
            raise UserError(
                f"{checkpoint.source}: {name} is of the shape {list(shape or ())}, {target.source} has {list(info.shape)}; leave"
                " engine.swap=restart out, and it is asked in the target's shapes"
            )


def _check_model(model: Checkpoint, engine: EngineConfig) -> None:
    """The engine's options against the sizes of the model."""
    config: Mapping[str, Any] = model.config.get("text_config") or model.config
    heads = config.get("num_attention_heads") or 1
    key_value_heads = config.get("num_key_value_heads") or heads
    workers = engine.tensor_parallel_size
    if heads % workers or (key_value_heads % workers and workers % key_value_heads):
        raise UserError(
            f"engine.tensor_parallel_size={workers}: {model.source} has {heads} attention heads and {key_value_heads}"
            " key-value heads, which cannot be shared out among so many; use a number that divides both"
        )
    positions = config.get("max_position_embeddings")
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
    if positions and not scaled and engine.max_model_len > positions:
        raise UserError(
            f"engine.max_model_len={engine.max_model_len}: {model.source} has {positions} positions; lower it"
        )


def _check_tokenizer(family: Family) -> None:
    """Every token has a row of the embedding and an id of its own, and the chat template lets the question through."""
    target = family.target
    tokenizer = load_tokenizer(str(target.path))
    rows = target.resolve(EMBEDDING).shape[0]
    tokens: dict[str, int] = tokenizer.get_vocab()
    if max(tokens.values(), default=-1) >= rows:
        raise UserError(
            f"{target.source}: its tokenizer has ids up to {max(tokens.values())}, its embedding only"
            f" {rows} rows; copy the tokenizer that the model was trained with into it"
        )
    shared = next((id for id, count in Counter(tokens.values()).items() if count > 1), None)
    if shared is not None:
        names = ", ".join(repr(token) for token, id in tokens.items() if id == shared)
        raise UserError(
            f"{target.source}: in its tokenizer the tokens {names:.80} share the id {shared}; copy the tokenizer that the"
            " model was trained with into it"
        )
    if not family.config.chat:
        return
    try:
        tokenizer.chat_template = load_tokenizer(str(family.template_source.path)).chat_template
        turn = [{"role": "user", "content": QUESTION}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    except Exception as e:  # a template raises what it likes
        reason = f"cannot be applied ({' '.join(str(e).split())[:160]})"
        raise UserError(
            f"{family.template_source.source}: its chat template {reason}; fix it or set chat=false"
        ) from e
    if QUESTION not in text:
        raise UserError(
            f"{family.template_source.source}: its chat template leaves the user's turn out; fix it"
        )
