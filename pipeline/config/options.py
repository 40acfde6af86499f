"""Options that a command takes beside the configuration."""

from collections.abc import Mapping

from pipeline.errors import UserError


def flag(options: Mapping[str, str], name: str) -> bool:
    """An option of a command that is true or false, and false where it is not given.

    Raises:
        UserError: for any other value.
    """
    text = options.get(name, "false").lower()
    if text not in ("true", "false"):
        raise UserError(f"{name}={text}: expected true or false")
    return text == "true"
