"""The small files of a Hugging Face checkpoint: JSON objects and texts.

    config = read_object(folder / "config.json")

They come from others: what is not a regular file, not UTF-8, not JSON or too large is refused with one line.
"""

from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import parse_json, read_bytes

_LARGEST = 1 << 28  # bytes; the largest known vocabularies take a tenth of it


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object out of a checkpoint's file.

    Raises:
        UserError: if there is none in it.
    """
    try:
        found = parse_json(read_bytes(path, _LARGEST))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: expected a Hugging Face checkpoint there; check the folder"
        ) from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not valid JSON, or not an object; fetch it again")
    return found


def read_text(path: Path) -> str:
    """A text in UTF-8, with its line ends as Python reads them.

    Raises:
        UserError: if it is anything else.
    """
    try:
        text = read_bytes(path, _LARGEST).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; fetch it again") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
