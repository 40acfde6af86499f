"""The geometry report of a family's vector, found by what the manifest says."""

import json
from pathlib import Path
from typing import Any

from pipeline.analysis.results import Results
from pipeline.errors import UserError


def geometry_of(results: Results, family: str) -> dict[str, Any]:
    """The geometry report that the manifest names for a family.

    Raises:
        UserError: when it is not named, missing or unreadable.
    """
    entry = results.families[family]
    if entry.geometry is None:
        raise UserError(
            f"{entry.label}: the manifest names no geometry report; run the extract stage to make one"
        )
    # vectors/<key>/geometry-<12 hex>.json, wherever the folder is now
    path = results.folder.joinpath(*Path(entry.geometry).parts[-3:])
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{entry.label}: geometry report {path} cannot be read ({error}); run the extract stage again"
        ) from None
    return report
