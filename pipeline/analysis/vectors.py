"""The geometry report of a family's vector, found by what the manifest says."""

from pathlib import Path

from pipeline.analysis.results import Results
from pipeline.errors import UserError
from pipeline.weights.geometry_report import GeometryReport, read_report


def geometry_of(results: Results, family: str) -> GeometryReport:
    """The geometry report that the manifest names for a family.

    Raises:
        UserError: if none is named, or it is missing or damaged.
    """
    entry = results.families[family]
    if entry.geometry is None:
        raise UserError(
            f"{entry.label}: the manifest names no geometry report; run the extract stage to make one"
        )
    # vectors/<key>/geometry-<12 hex>.json, wherever the folder is now
    path = results.folder.joinpath(*Path(entry.geometry).parts[-3:])
    try:
        return read_report(path)
    except UserError as error:
        raise UserError(f"{entry.label}: geometry report {error}") from None
