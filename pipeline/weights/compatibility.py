"""Whether tensors of two checkpoints mean the same thing, so that they can be subtracted and added.

    notes = check_compatible(target, sft, grpo)

Covers decoder models that name their embedding and head as Llama and Qwen2 do. Two models are compatible
when architecture, every configuration value that changes the computation, tensor names, shapes, the
token-to-id map and the rules that cut text into tokens are the same (the conditions of arXiv 2509.01363).
Keys of config.json that are bookkeeping of a tool are not compared; others may be allowed to differ, by name.
Tolerated, and recorded as notes: what is allowed to differ, another chat template, other roles of special tokens (Qwen2.5's base and
Instruct models differ there), another context length, a tied against an untied head where that is exact, rows of
padding in the vocabulary, and a few tokens that one of the two has behind those that both have.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import UserError
from pipeline.weights.architecture import EMBEDDING, HEAD, contradictions
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.description import Identity
from pipeline.weights.tokenizer import Tokenizer

Shapes = Mapping[str, tuple[int, ...]]

_NOT_COMPUTATION = {
    *("transformers_version", "_name_or_path", "name_or_path", "auto_map", "torch_dtype", "dtype"),
    *("use_cache", "output_hidden_states", "output_attentions", "return_dict", "id2label", "label2id"),
    *("num_labels", "problem_type", "initializer_range", "chunk_size_feed_forward", "pretraining_tp"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    *("vocab_size", "tie_word_embeddings", "use_mrope"),  # vocabulary and head are compared by the tensors
    *("unsloth_version", "unsloth_fixed", "unsloth_tensor_parallel_size", "model_name", "_commit_hash"),
    *("_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "_flash_attn_2_enabled"),
    *("tokenizer_class", "task_specific_params", "finetuning_task", "gradient_checkpointing", "torchscript"),
}
FEW_TOKENS = 64  # that one model may have behind those of the other: padding, marks of a format
_SLIDING = {"sliding_window", "max_window_layers", "layer_types"}  # mean nothing unless use_sliding_window


@dataclass(frozen=True)
class Model:
    """What is compared of a checkpoint, or of the donors that a vector was made from.

    Attributes:
        name: how messages call it.
        rules: what cuts text into tokens, as `Tokenizer.rules`; empty for a vector, which does not record it.
        tokenizer: None for a vector.
    """

    name: str
    identity: Identity
    shapes: Shapes
    rules: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None

    @property
    def tokens(self) -> int:
        """One more than the largest id."""
        return self.identity["tokens"]

    @classmethod
    def of(cls, name: str, checkpoint: Checkpoint, shapes: Shapes) -> "Model":
        """A checkpoint's own, with these of its shapes."""
        tokenizer = checkpoint.tokenizer
        return cls(f"{name} {checkpoint.source}", identity(checkpoint), shapes, tokenizer.rules, tokenizer)


@dataclass(frozen=True)
class Differences:
    """What hinders subtracting or adding, and what is tolerated; a line for each.

    Attributes:
        allowed: keys of config.json in which models may differ.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    allowed: Collection[str] = ()

    def refuse(self) -> None:
        """Do nothing if there are no problems.

        Raises:
            UserError: with a line for each problem.
        """
        if self.problems:
            raise UserError("\n".join(dict.fromkeys(self.problems)))


def identity(checkpoint: Checkpoint, vocabulary: Checkpoint | None = None) -> Identity:
    """What is compared, beside the shapes, as JSON data: it is stored in a vector's metadata.

    Args:
        vocabulary: whose tokens they are, where another donor has fewer.
    """
    tokens = vocabulary or checkpoint
    return {
        "config": {key: value for key, value in checkpoint.config.items() if key not in _NOT_COMPUTATION},
        "tokens": tokens_of(tokens),
        "token_ids": tokens.tokenizer.token_ids_hash,
        "special_tokens": checkpoint.tokenizer.special_tokens,
        "chat_template": checkpoint.chat_template_hash,
    }


def tokens_of(checkpoint: Checkpoint) -> int:
    """One more than the largest id of its vocabulary."""
    return max(checkpoint.token_ids.values(), default=-1) + 1


def shapes(checkpoint: Checkpoint, donors_head: bool = False) -> dict[str, tuple[int, ...]]:
    """Name → shape of the parameters, without a tied head; of a donor, without a head that is its embedding."""
    has_head = checkpoint.has_own_head if donors_head else not checkpoint.tied
    return {name: info.shape for name, info in checkpoint.tensors.items() if name != HEAD or has_head}


def check_compatible(
    target: Checkpoint, sft: Checkpoint, grpo: Checkpoint, allowed: Collection[str] = ()
) -> list[str]:
    """Notes on tolerated differences between target and donors.

    With one checkpoint as both donors, only whether its tensors mean what the target's mean.

    Args:
        allowed: keys of config.json in which they may differ.

    Raises:
        UserError: if v = θ_GRPO − θ_SFT cannot be taken, or not added, with a line for each problem.
    """
    found = compare_checkpoints(sft, grpo, allowed) if sft is grpo else compare_donors(sft, grpo, allowed)
    found.problems.extend(content_problems(target))
    donor_shapes = shapes(grpo, donors_head=True) | shapes(sft, donors_head=True)
    left, right = Model.of("target", target, shapes(target)), Model.of("GRPO donor", grpo, donor_shapes)
    compare(left, right, found)
    if sft is grpo and right.tokens < left.tokens:
        found.problems.append(
            f"{grpo.source} has {right.tokens} tokens and {left.name} {left.tokens}: it would be asked in tokens that it does"
            " not know; use a model with the target's vocabulary"
        )
    found.refuse()
    return found.notes


def compare_donors(sft: Checkpoint, grpo: Checkpoint, allowed: Collection[str] = ()) -> Differences:
    """Problems and notes of a pair of donors, of which v is the difference."""
    found = compare_checkpoints(sft, grpo, allowed)
    if (sft.stage, grpo.stage) == ("grpo", "sft"):
        found.problems.append(
            f"SFT donor {sft.source} was trained by GRPO and GRPO donor {grpo.source} by SFT, as their training.json say;"
            " exchange them"
        )
    if _weights(sft) == _weights(grpo):
        found.problems.append(f"{same_weights(sft, grpo)}; name two checkpoints")
    return found


def same_weights(sft: Checkpoint, grpo: Checkpoint) -> str:
    """What to say of donors that are the same."""
    return f"SFT donor {sft.source} and GRPO donor {grpo.source} have the same weights, so that v is 0"


def compare_checkpoints(sft: Checkpoint, grpo: Checkpoint, allowed: Collection[str] = ()) -> Differences:
    """Problems and notes of two checkpoints whose tensors are to mean the same."""
    found = Differences(content_problems(sft) + content_problems(grpo), allowed=allowed)
    ours, theirs = shapes(sft, donors_head=True), shapes(grpo, donors_head=True)
    one_head = (HEAD in ours) != (HEAD in theirs)
    if one_head:
        for found_shapes in (ours, theirs):
            found_shapes.setdefault(HEAD, found_shapes.get(EMBEDDING, ()))
    left, right = Model.of("SFT donor", sft, ours), Model.of("GRPO donor", grpo, theirs)
    kinds = [sorted({info.dtype for info in donor.tensors.values()}) for donor in (sft, grpo)]
    if kinds[0] != kinds[1]:
        found.notes.append(
            f"{left.name} is stored in {' and '.join(kinds[0])}, {right.name} in {' and '.join(kinds[1])}: both are"
            " widened to float32 before they are subtracted"
        )
    if one_head:
        found.notes.append(
            f"only one of {left.name} and {right.name} has a head of its own: the other's head is its embedding"
        )
    compare(left, right, found)
    return found


def _weights(checkpoint: Checkpoint) -> dict[str, tuple[str, str]]:
    """Dtype and digest of every parameter, with the head that is used."""
    stored = {name: checkpoint.stored(name) for name in {*checkpoint.tensors, HEAD}}
    tensors, digests = checkpoint.tensors, checkpoint.scan.digests
    return {name: (tensors[at].dtype, digests[at]) for name, at in stored.items() if at in tensors}


def content_problems(checkpoint: Checkpoint) -> list[str]:
    """What is wrong with a checkpoint by itself.

    NaN or infinity, names of tensors that are not Llama's, a head that a tied model would ignore, and a config.json
    that does not fit the weights.
    """
    problems = []
    if EMBEDDING not in checkpoint.tensors:
        problems.append(
            f"{checkpoint.path} has no {EMBEDDING}; use a model that names its tensors as Llama and Qwen2 do"
        )
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
    every = {name: info.shape for name, info in checkpoint.tensors.items()}
    problems += [
        f"{checkpoint.path / 'config.json'}: {problem}; fetch it again"
        for problem in contradictions(checkpoint.config, every)
    ]
    return problems


def compare(left: Model, right: Model, found: Differences) -> None:
    """Adds to `found` what hinders adding `right` to `left`, and what is tolerated."""
    _compare_configs(left, right, found)
    _compare_names(left, right, found)
    _compare_tokenizers(left, right, found)
    _compare_shapes(left, right, found)


def _compare_names(left: Model, right: Model, found: Differences) -> None:
    if HEAD in right.shapes and HEAD not in left.shapes:
        found.problems.append(
            f"{right.name} has a head of its own, {left.name} has a tied one; use donors with a tied head"
        )
    elif HEAD in left.shapes and HEAD not in right.shapes:
        found.notes.append(
            f"{left.name} has a head of its own, {right.name} has not: the head takes the embedding's difference"
        )
    for one, other in ((left, right), (right, left)):
        if lacking := sorted(set(other.shapes) - set(one.shapes) - {HEAD}):
            found.problems.append(
                f"{one.name} lacks {_list(lacking)}, which {other.name} has; use models of one architecture"
            )


def _compare_tokenizers(left: Model, right: Model, found: Differences) -> None:
    mine, other = left.identity, right.identity
    if mine["token_ids"] == other["token_ids"]:
        for role, token in mine["special_tokens"].items():
            if (others := other["special_tokens"].get(role)) != token:
                found.notes.append(f"{role} is {token!r} in {left.name} and {others!r} in {right.name}")
    elif _share_tokens(left, right):
        fewer, more = sorted((left, right), key=lambda model: model.tokens)
        found.notes.append(
            f"{more.name} has {more.tokens - fewer.tokens} tokens behind the {fewer.tokens} of {fewer.name}: what is the same in"
            " both is used"
        )
    else:
        found.problems.append(
            f"the token-to-id maps of {left.name} ({mine['tokens']} tokens) and {right.name} ({other['tokens']} tokens) "
            "differ; use models with one vocabulary"
        )
    for kind in sorted(left.rules.keys() & right.rules.keys()):
        if left.rules[kind] != right.rules[kind]:
            found.problems.append(
                f"the tokenizers of {left.name} and {right.name} differ in their {kind}, so that one text is other tokens"
                " to each; use models with one tokenizer"
            )
    if mine["chat_template"] != other["chat_template"]:
        found.notes.append(f"the chat templates of {left.name} and {right.name} differ")


def _share_tokens(left: Model, right: Model) -> bool:
    """Whether the maps are the same but for a few tokens that one has behind those of the other."""
    fewer, more = sorted((left, right), key=lambda model: model.tokens)
    if fewer.identity["token_ids"] == more.identity["token_ids"]:
        return True
    if more.tokenizer is None or not 0 < more.tokens - fewer.tokens <= FEW_TOKENS:
        return False
    return more.tokenizer.hash_of_first(fewer.tokens) == fewer.identity["token_ids"]


def _compare_shapes(left: Model, right: Model, found: Differences) -> None:
    tokens, same_ids = min(left.tokens, right.tokens), _share_tokens(left, right)
    for name in sorted(set(left.shapes) & set(right.shapes)):
        ours, theirs = left.shapes[name], right.shapes[name]
        if ours == theirs:
            continue
        only_rows = len(ours) == len(theirs) and ours[1:] == theirs[1:]
        if name in (EMBEDDING, HEAD) and only_rows and same_ids and min(ours[0], theirs[0]) >= tokens:
            found.notes.append(
                f"{name} has {ours[0]} rows in {left.name} and {theirs[0]} in {right.name} for {tokens} tokens: the "
                f"vocabulary is equal up to padding, and the first {min(ours[0], theirs[0])} rows are used"
            )
        else:
            found.problems.append(
                f"{name} has shape {list(ours)} in {left.name} and {list(theirs)} in {right.name}; use one shape"
            )


def _compare_configs(left: Model, right: Model, found: Differences) -> None:
    ours, theirs = _normalised(left.identity["config"]), _normalised(right.identity["config"])
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) == theirs.get(key):
            continue
        difference = f"{key} is {ours.get(key)!r} in {left.name} and {theirs.get(key)!r} in {right.name}"
        if key == "max_position_embeddings" and not _rope_depends_on_length(ours):
            found.notes.append(difference)
        elif key in found.allowed:
            found.notes.append(f"{difference}, which allow_config_differences allows")
        else:
            found.problems.append(
                f"{difference}; use models that compute the same function of their weights, or name the key in"
                " allow_config_differences of the family"
            )


def _normalised(config: Mapping[str, Any]) -> dict[str, Any]:
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


def _rope_depends_on_length(config: Mapping[str, Any]) -> bool:
    return config["rope"]["rope_type"] not in ("default", "linear")


def _list(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
