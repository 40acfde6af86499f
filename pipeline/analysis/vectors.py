"""The geometry report of a family's vector, found by what the manifest says."""

from contextlib import suppress
from pathlib import Path

from pipeline.analysis.results import Results
from pipeline.errors import UserError
from pipeline.weights.geometry_report import MUCH, GeometryReport, read_report


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


def rounding_notes(results: Results) -> list[str]:
    """A footnote for each family of whose vector more than a third is lost where it is added as a whole."""
    notes = []
    for family, entry in results.families.items():
        with suppress(UserError):  # the geometry table says that there is no report
            lost = {
                at["alpha"]: at["lost_in_rounding"] or 0.0
                for at in geometry_of(results, family)["total"]["alphas"]
            }
            much = {alpha: share for alpha, share in sorted(lost.items()) if share > MUCH}
            if much:
                shares = ", ".join(f"{share:.0%} at α = {alpha:g}" for alpha, share in much.items())
                notes.append(
                    f"{entry.label}: of the entries that v changes, rounding to the target's dtype loses"
                    f" {shares.replace('-', '−')}: these rows are of what is left of it (steer.dtype=float32 keeps all)."
                )
    return notes
