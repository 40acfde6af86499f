"""Whether tensors of two checkpoints mean the same thing, so that they can be subtracted and added.

Covers decoder models that name their embedding and head as Llama and Qwen2 do. Two models are compatible
when architecture, every configuration value that changes the computation, tensor names, shapes and the
token-to-id map are the same (the conditions of arXiv 2509.01363). Tolerated, and recorded as notes: another
chat template, other roles of special tokens (Qwen2.5's base and Instruct models differ there), another context
length, a tied against an untied head where that is exact, and rows of padding in the vocabulary.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError
from pipeline.weights.checkpoint import EMBEDDING, HEAD, Checkpoint

Shapes = Mapping[str, tuple[int, ...]]

_NOT_COMPUTATION = {
    *(
        "transformers_version",
        "_name_or_path",
        "name_or_path",
        "auto_map",
        "torch_dtype",
        "dtype",
        "use_cache",
    ),
    *(
        "output_hidden_states",
        "output_attentions",
        "return_dict",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
    ),
    *(
        "initializer_range",
        "chunk_size_feed_forward",
        "pretraining_tp",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ),
    *("vocab_size", "tie_word_embeddings", "use_mrope"),  # vocabulary and head are compared by the tensors
}
_SLIDING = {"sliding_window", "max_window_layers", "layer_types"}  # mean nothing unless use_sliding_window


def identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """What is compared, beside the shapes, as JSON data: it is stored in a vector's metadata."""
    return {
        "config": {key: value for key, value in checkpoint.config.items() if key not in _NOT_COMPUTATION},
        "tokens": max(checkpoint.token_ids.values(), default=-1) + 1,
        "token_ids": checkpoint.token_ids_hash,
        "special_tokens": checkpoint.special_tokens,
        "chat_template": checkpoint.chat_template_hash,
    }


def shapes(checkpoint: Checkpoint, donors_head: bool = False) -> dict[str, tuple[int, ...]]:
    """Name → shape of the parameters, without a tied head; of a donor, without a head that is its embedding."""
    has_head = checkpoint.has_own_head if donors_head else not checkpoint.tied
    return {name: info.shape for name, info in checkpoint.tensors.items() if name != HEAD or has_head}


def check_compatible(target: Checkpoint, sft: Checkpoint, grpo: Checkpoint) -> list[str]:
    """Notes on tolerated differences between target and donors.

    Raises UserError with one line for each problem when v = θ_GRPO − θ_SFT cannot be taken, or not added.
    """
    problems, notes = compare_checkpoints(sft, grpo)
    problems += content_problems(target)
    donor_shapes = shapes(grpo, donors_head=True) | shapes(sft, donors_head=True)
    compare(
        f"target {target.source}",
        identity(target),
        shapes(target),
        f"GRPO donor {grpo.source}",
        identity(grpo),
        donor_shapes,
        problems,
        notes,
    )
    refuse(problems)
    return notes


def compare_checkpoints(sft: Checkpoint, grpo: Checkpoint) -> tuple[list[str], list[str]]:
    """Problems and notes of a pair of donors."""
    problems, notes = content_problems(sft) + content_problems(grpo), []
    names = f"SFT donor {sft.source}", f"GRPO donor {grpo.source}"
    ours, theirs = shapes(sft, donors_head=True), shapes(grpo, donors_head=True)
    if (HEAD in ours) != (HEAD in theirs):
        notes.append(
            f"only one of {names[0]} and {names[1]} has a head of its own: the other's head is its embedding"
        )
        ours.setdefault(HEAD, ours[EMBEDDING])
        theirs.setdefault(HEAD, theirs[EMBEDDING])
    compare(names[0], identity(sft), ours, names[1], identity(grpo), theirs, problems, notes)
    return problems, notes


def refuse(problems: list[str]) -> None:
    """Raises one UserError with a line for each problem, if there are any."""
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def content_problems(checkpoint: Checkpoint) -> list[str]:
    """What is wrong with a checkpoint by itself: NaN or infinity, a head that a tied model would ignore."""
    problems = []
    if bad := checkpoint.scan.non_finite:
        problems.append(
            f"{checkpoint.path}: NaN or infinity in {_list(bad)}; use a checkpoint with finite weights"
        )
    digests = checkpoint.scan.digests
    if checkpoint.tied and digests.get(HEAD, digests.get(EMBEDDING)) != digests.get(EMBEDDING):
        problems.append(
            f"{checkpoint.path}: config.json ties the head, but {HEAD} differs from the embedding; "
            "set tie_word_embeddings to what the model was trained with, or remove the tensor"
        )
    return problems


def compare(
    left: str,
    mine: dict[str, Any],
    my_shapes: Shapes,
    right: str,
    other: dict[str, Any],
    other_shapes: Shapes,
    problems: list[str],
    notes: list[str],
) -> None:
    """Adds what hinders adding `right` to `left`, and what is tolerated, to `problems` and `notes`."""
    _compare_configs(left, mine["config"], right, other["config"], problems, notes)

    if HEAD in other_shapes and HEAD not in my_shapes:
        problems.append(f"{right} has a head of its own, {left} has a tied one; use donors with a tied head")
    elif HEAD in my_shapes and HEAD not in other_shapes:
        notes.append(
            f"{left} has a head of its own, {right} has not: the head takes the embedding's difference"
        )
    if lacking := sorted(set(other_shapes) - set(my_shapes) - {HEAD}):
        problems.append(f"{left} lacks {_list(lacking)}, which {right} has; use models of one architecture")
    if lacking := sorted(set(my_shapes) - set(other_shapes) - {HEAD}):
        problems.append(f"{right} lacks {_list(lacking)}, which {left} has; use models of one architecture")

    if same_ids := mine["token_ids"] == other["token_ids"]:
        for role, token in mine["special_tokens"].items():
            if other["special_tokens"][role] != token:
                notes.append(
                    f"{role} is {token!r} in {left} and {other['special_tokens'][role]!r} in {right}"
                )
    else:
        problems.append(
            f"the token-to-id maps of {left} ({mine['tokens']} tokens) and {right} ({other['tokens']} tokens) "
            "differ; use models with one vocabulary"
        )
    if mine["chat_template"] != other["chat_template"]:
        notes.append(f"the chat templates of {left} and {right} differ")

    for name in sorted(set(my_shapes) & set(other_shapes)):
        ours, theirs = my_shapes[name], other_shapes[name]
        if ours == theirs:
            continue
        if (
            name in (EMBEDDING, HEAD)
            and ours[1:] == theirs[1:]
            and same_ids
            and min(ours[0], theirs[0]) >= mine["tokens"]
        ):
            notes.append(
                f"{name} has {ours[0]} rows in {left} and {theirs[0]} in {right} for {mine['tokens']} tokens: the "
                f"vocabulary is equal up to padding, and the first {min(ours[0], theirs[0])} rows are used"
            )
        else:
            problems.append(
                f"{name} has shape {list(ours)} in {left} and {list(theirs)} in {right}; use one shape"
            )


def _compare_configs(
    left: str, mine: dict[str, Any], right: str, other: dict[str, Any], problems: list[str], notes: list[str]
) -> None:
    ours, theirs = _normalised(mine), _normalised(other)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) == theirs.get(key):
            continue
        difference = f"{key} is {ours.get(key)!r} in {left} and {theirs.get(key)!r} in {right}"
        if key == "max_position_embeddings" and not _rope_depends_on_length(ours):
            notes.append(difference)
        else:
            problems.append(f"{difference}; use models that compute the same function of their weights")


def _normalised(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what is not computation, with the defaults that Llama and Qwen2 leave out.

    transformers could fill them in, but importing a model's configuration takes longer than the arithmetic.
    """
    full = {key: value for key, value in config.items() if value is not None}
    rope = dict(
        full.pop("rope_parameters", None) or full.pop("rope_scaling", None) or {}
    )  # newer and older spelling
    full["rope"] = {
        "rope_theta": full.pop("rope_theta", 10000.0),
        "rope_type": rope.pop("type", "default"),
        **rope,
    }
    heads = full.get("num_attention_heads")
    full = {"num_key_value_heads": heads, "hidden_act": "silu", "use_sliding_window": False} | full
    if heads and "hidden_size" in full:
        full.setdefault("head_dim", full["hidden_size"] // heads)
    for switch in ("attention_bias", "mlp_bias"):
        full.setdefault(switch, False)
    ignored = _NOT_COMPUTATION | {key for key in full if key.endswith(("_dropout", "_pdrop"))}
    if not full["use_sliding_window"]:
        ignored |= _SLIDING
    return {key: value for key, value in full.items() if key not in ignored}


def _rope_depends_on_length(config: dict[str, Any]) -> bool:
    return config["rope"]["rope_type"] not in ("default", "linear")


def _list(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
