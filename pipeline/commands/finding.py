"""What one check of `doctor` found."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """What one check found; `text` ends with the remedy unless the level is `ok`."""

    level: Literal["ok", "warning", "fail"]
    what: str
    text: str
