"""Options that a command takes beside the configuration."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from pipeline.errors import UserError

T = TypeVar("T", int, float)


def flag(options: Mapping[str, str], name: str) -> bool:
    """An option of a command that is true or false, and false where it is not given.

    Raises:
        UserError: for any other value.
    """
    text = options.get(name, "false").lower()
    if text not in ("true", "false"):
        raise UserError(f"{name}={text}: expected true or false")
    return text == "true"


def listed(text: str) -> list[str]:
    """The entries of an option that is one, or a list: `a` or `[a,b]`."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return [entry.strip() for entry in inner.split(",") if entry.strip()]


def parsed(name: str, text: str, kind: Callable[[str], T]) -> T:
    """An option of a command that is a number.

    Raises:
        UserError: if it is none.
    """
    try:
        return kind(text)
    except ValueError:
        expected = "a number" if kind is float else "a whole number"
        raise UserError(f"{name}={text:.80}: expected {expected}") from None
