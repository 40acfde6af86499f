"""The tokenizer of a checkpoint, read as data: which token has which id, and by which rules text is cut into tokens.

    tokenizer = Tokenizer(Path("models/micro/target"))
    tokenizer.token_ids["<|im_end|>"], tokenizer.fingerprint

Nothing is run and no library of tokenizers is loaded: two checkpoints are compared by what their files say. Files that
are not UTF-8, not JSON, or hold something else than is read here, are refused with one line.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import ascii_digest
from pipeline.weights.json_files import read_object, read_text

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """The tokenizer files in a checkpoint's folder, each read when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder

    @functools.cached_property
    def token_ids(self) -> dict[str, int]:
        """Token → id, with the added tokens.

        Raises:
            UserError: if there is no vocabulary, or two tokens have one id.
        """
        if (self.folder / "tokenizer.json").exists():
            file = self.folder / "tokenizer.json"
            try:
                vocabulary = self._rules["model"]["vocab"]
                if isinstance(vocabulary, list):  # a Unigram model lists (token, score) pairs
                    vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
                added = self._rules.get("added_tokens", [])
                ids = vocabulary | {token["content"]: token["id"] for token in added}
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{file} has no vocabulary; fetch it again") from None
        elif (self.folder / "vocab.json").exists():
            file = self.folder / "vocab.json"
            ids = read_object(file) | self._read("added_tokens.json")
        else:
            raise UserError(
                f"{self.folder} has no tokenizer.json; copy the tokenizer that the model was trained with into it"
            )
        _check_ids(file, ids)
        return ids

    @functools.cached_property
    def token_ids_hash(self) -> str:
        """sha256 of the token-to-id map."""
        return ascii_digest(self.token_ids)

    def hash_of_first(self, tokens: int) -> str:
        """sha256 of the token-to-id map of the ids below `tokens`, to compare with one that has no others."""
        return ascii_digest({token: index for token, index in self.token_ids.items() if index < tokens})

    @functools.cached_property
    def special_tokens(self) -> dict[str, str | None]:
        """Which token has which role (beginning, end, padding, unknown), by content."""
        settings = self._read("special_tokens_map.json") | self._read("tokenizer_config.json")
        found = {}
        for role in ROLES:
            token = settings.get(role)
            content = token.get("content", token) if isinstance(token, dict) else token
            if not isinstance(content, str | None):
                raise UserError(
                    f"{self.folder}: its {role} is {_short(token)}; expected text: fetch it again"
                )
            found[role] = content
        return found

    @functools.cached_property
    def chat_template_hash(self) -> str | None:
        """sha256 of the chat template; None when there is none."""
        template = self._read("tokenizer_config.json").get("chat_template")
        if (self.folder / "chat_template.jinja").exists():
            template = read_text(self.folder / "chat_template.jinja")
        if not isinstance(template, str | list | None):  # a list: several by name, in the older spelling
            raise UserError(
                f"{self.folder}: its chat template is {_short(template)}; expected text: fetch it again"
            )
        return None if template is None else ascii_digest(template)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of all that makes tokens of text: map, merges, rules, special tokens, chat template."""
        # Training scripts leave their own truncation and padding behind; users set them anew.
        rules = {key: value for key, value in self._rules.items() if key not in ("truncation", "padding")}
        return ascii_digest([rules, self.token_ids_hash, self.special_tokens, self.chat_template_hash])

    @functools.cached_property
    def rules(self) -> dict[str, str]:
        """What makes tokens of text beside the map: a digest for each kind of rule that the files tell.

        Spellings that mean the same (a default left out, merges as pairs or as text) have the same digest.

        Raises:
            UserError: if the merges are not pairs of tokens.
        """
        assert self.token_ids  # so that the model of tokenizer.json is one
        if "model" not in self._rules:
            return {"merges": ascii_digest(_pairs(self._rules.get("merges"), self.folder))}
        model, rules = self._rules["model"], self._rules
        vocabulary = model["vocab"]
        found = {
            "normalizer": rules.get("normalizer"),
            "pre-tokenizer": rules.get("pre_tokenizer"),
            "merges": _pairs(model.get("merges"), self.folder),
            "scores": [score for _, score in vocabulary] if isinstance(vocabulary, list) else None,
            "model": {key: value for key, value in model.items() if key not in ("vocab", "merges")},
        }
        return {kind: ascii_digest(_without_defaults(rule)) for kind, rule in found.items()}

    @functools.cached_property
    def _rules(self) -> dict[str, Any]:
        """tokenizer.json, or the merges of the older files."""
        if (self.folder / "tokenizer.json").exists():
            return read_object(self.folder / "tokenizer.json")
        if (self.folder / "merges.txt").exists():
            return {"merges": read_text(self.folder / "merges.txt")}
        return {}

    def _read(self, name: str) -> dict[str, Any]:
        """A JSON file; empty when there is none."""
        return read_object(self.folder / name) if (self.folder / name).exists() else {}


def _check_ids(file: Path, ids: Mapping[Any, Any]) -> None:
    """Refuse a map from tokens to ids that an engine could not take."""
    for token, index in ids.items():
        if type(token) is not str or type(index) is not int or index < 0:
            raise UserError(
                f"{file}: the token {_short(token)} has the id {_short(index)}; expected a number from 0: fetch it again"
            )
    if len(set(ids.values())) < len(ids):
        first: dict[int, str] = {}
        for token, index in ids.items():
            if (other := first.setdefault(index, token)) != token:
                raise UserError(
                    f"{file}: the tokens {_short(other)} and {_short(token)} both have the id {index}; fetch it again"
                )


def _pairs(merges: object, folder: Path) -> list[str]:
    """Merges as texts "a b", in their order; from merges.txt, or from either spelling of tokenizer.json."""
    if isinstance(merges, str):
        merges = [line for line in merges.split("\n") if line and not line.startswith("#version")]
    listed = merges or []
    try:
        return [merge if isinstance(merge, str) else " ".join(merge) for merge in listed]  # type: ignore[attr-defined]
    except TypeError:
        raise UserError(
            f"{folder}: the merges of its tokenizer are not pairs of tokens; fetch it again"
        ) from None


def _without_defaults(rule: Any) -> Any:
    """A rule without what another version of the library writes and this one leaves out, or the other way round."""
    if isinstance(rule, dict):
        full = ({"use_regex": True} if rule.get("type") == "ByteLevel" else {}) | rule
        kept = {key: _without_defaults(value) for key, value in full.items() if key != "trim_offsets"}
        return {
            key: value
            for key, value in kept.items()
            if value not in (None, "", [], {}) and value is not False
        }
    if isinstance(rule, list):
        return [_without_defaults(part) for part in rule]
    return rule


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
