"""The content of a geometry file, and how it is read; `pipeline.weights.geometry` measures it.

    report = read_report(Path("results/vectors/<key>/geometry-<digest>.json"))
    report["total"]["relative_norm"]

Without torch, so that what only reads reports starts at once.
"""

from pathlib import Path
from typing import NotRequired

from pydantic import FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pipeline.files import DamagedFile, read_json

SCHEMA = 1
MUCH = 1 / 3  # of the entries that v changes: more than that lost in rounding is warned of

Share = FiniteFloat | None  # None is a share of nothing


class Rounding(TypedDict):
    """What the target's dtype makes of θ + αv."""

    alpha: FiniteFloat
    cosine: NotRequired[Share]  # of what arrives, round(θ + αv) − θ, with αv
    arrives: NotRequired[Share]  # its norm, of ‖αv‖
    lost_in_rounding: (
        Share  # of the entries of v that are not 0: those that rounding leaves at the target's value
    )
    rounding: Share  # ‖round(θ + αv) − (θ + αv)‖ / ‖αv‖


class Direction(TypedDict):
    """v beside another difference of models."""

    cosine: Share
    sign_agreement: Share  # equal signs among the entries that are 0 in neither


class Facts(TypedDict):
    """What is measured of a group of tensors."""

    entries: int
    norm: FiniteFloat  # ‖v‖
    relative_norm: Share  # ‖v‖ / ‖θ_target‖
    sparsity: Share  # entries of v that are exactly 0
    alphas: list[Rounding]  # for each α but 0
    directions: dict[str, Direction]  # target-base when a base is given, sft-base when both are


class ModuleFacts(Facts):
    """Facts of a kind of module: q_proj, down_proj, embed_tokens, …"""

    module: str


class LayerFacts(Facts):
    """Facts of a layer."""

    layer: int


class CellFacts(Facts):
    """Facts of a kind of module in a layer, or outside of layers."""

    module: str
    layer: NotRequired[int]


class Distance(TypedDict):
    """How far a checkpoint lies from another."""

    norm: FiniteFloat
    relative: Share  # to the norm of that other
    of_vector: Share  # to ‖v‖
    equal: Share  # of the entries


class Initialisation(TypedDict):
    """Distances from the base, or from the target where no base is known (pipeline/weights/initialisation.py)."""

    reference: str  # base or target
    distances: dict[str, Distance]  # by part: sft, grpo, target


class GeometryReport(TypedDict):
    """The content of a geometry file."""

    schema: int
    vector: str  # fingerprints
    target: str
    total: Facts
    modules: list[ModuleFacts]
    layers: list[LayerFacts]
    cells: list[CellFacts]
    initialisation: NotRequired[Initialisation]
    notes: NotRequired[list[str]]  # on tolerated differences of the checkpoints


_OLD_NAMES = {"swallowed": "lost_in_rounding"}  # as earlier versions wrote them

_REPORT = TypeAdapter(GeometryReport)


def read_report(path: Path) -> GeometryReport:
    """A geometry file as `report` made it.

    Raises:
        DamagedFile: if it is not there, or is anything else.
    """
    remedy = "run the stage 'extract' again"
    found = read_json(path, remedy)
    _rename_old_keys(found)
    try:
        _REPORT.validate_python(found, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "its content"
        raise DamagedFile(f"{path}: {where}: {first['msg'].lower()}; {remedy}") from None
    if found["schema"] != SCHEMA:
        raise DamagedFile(
            f"{path}: written in format {found['schema']}, this version reads {SCHEMA}; {remedy}"
        )
    data: GeometryReport = found
    return data


def _rename_old_keys(found: object) -> None:
    """Give keys of earlier versions their present names, at any depth."""
    if isinstance(found, list):
        for inner in found:
            _rename_old_keys(inner)
    elif isinstance(found, dict):
        for old, new in _OLD_NAMES.items():
            if old in found and new not in found:
                found[new] = found.pop(old)
        for inner in found.values():
            _rename_old_keys(inner)
