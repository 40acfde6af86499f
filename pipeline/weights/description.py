"""The description in a vector's file: what it was made from, and what it fits.

    description = read_description(path, metadata["task_vector"])
    metadata = {"task_vector": write_description(description)}

JSON under the metadata key `task_vector`. It names the donors by source and fingerprint and nothing of the machine, so
that the same donors give the same bytes. The parts are stored under "variants", as the first version named them.
"""

import json
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pipeline.errors import UserError
from pipeline.files import parse_json

SCHEMA = 1
_STORED = "variants"  # the name of the parts in the file


class Donor(TypedDict):
    """A checkpoint by its hub id or the name of its folder, the commit, and the fingerprint of its weights."""

    source: str
    revision: str | None
    fingerprint: str


class Donors(TypedDict):
    """The two checkpoints that v is the difference of."""

    grpo: Donor
    sft: Donor


class Identity(TypedDict):
    """What is compared with a target, beside the shapes."""

    config: dict[str, Any]  # config.json, as far as it changes the computation
    tokens: int  # one more than the largest id
    token_ids: str  # sha256 of the token-to-id map
    special_tokens: dict[str, str | None]  # role → token
    chat_template: str | None  # its sha256


class PartSettings(TypedDict, total=False):
    """The settings of a `Part`, without those that are not set."""

    modules: list[str]
    layers: list[int]
    trim: float
    dare: float
    seed: int


class Origin(TypedDict):
    """What a vector was made from: all of a description but form and shapes."""

    donors: Donors
    identity: Identity
    notes: list[str]  # on tolerated differences between the donors
    parts: list[PartSettings]  # that were applied, in order


class Description(Origin):
    """A vector's whole description."""

    schema: NotRequired[int]
    form: Literal["dense", "compact"]
    shapes: dict[str, list[int]]


_DESCRIPTION = TypeAdapter(Description)


def read_description(path: Path, text: str) -> Description:
    """The description out of a vector's metadata.

    Args:
        path: the vector's file, for messages.

    Raises:
        UserError: if it is not one.
    """
    try:
        found = parse_json(text.encode())
    except ValueError:
        found = None
    if isinstance(found, dict) and _STORED in found:
        found["parts"] = found.pop(_STORED)
    try:
        _DESCRIPTION.validate_python(found, strict=True)
    except ValidationError as error:
        lacking = dict.fromkeys(str(fault["loc"][0]) for fault in error.errors() if fault["loc"])
        what = f"lacks {', '.join(lacking)}" if lacking else "cannot be read"
        raise UserError(f"{path}: its description {what}; extract it again") from None
    description: Description = found
    return description


def write_description(description: Description) -> str:
    """The description as a vector's metadata hold it."""
    stored: dict[str, Any] = {**description, _STORED: description["parts"]}
    del stored["parts"]
    return json.dumps(stored, sort_keys=True)
