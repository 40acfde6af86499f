"""The stages of a run, in order; each reads and writes files, so each can be run, killed and run again alone.

extract   v = θ_GRPO − θ_SFT, with its geometry                 → results/vectors/<key>/
evaluate  every cell of the plan that has no record yet         → results/cells/<key>/
render    tables, figures and the report, from records alone    → paper_tables/<name>/
track     W&B runs, from records alone                          → the W&B server, or results/wandb/
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import hub
from pipeline.config.compose import without
from pipeline.config.schema import Config, Launcher, Stage
from pipeline.errors import UserError
from pipeline.evaluate import launcher
from pipeline.files import move_away, new_folder, write_json
from pipeline.lock import held
from pipeline.manifest import Manifest, manifest_path, read_manifest, write_manifest
from pipeline.plan import estimate, revisions
from pipeline.plan.family import Family, FamilyRefused, of_family
from pipeline.plan.grid import make_grid
from pipeline.plan.plan import Plan, make_plan
from pipeline.plan.sources import find_sources
from pipeline.records import set_aside

if TYPE_CHECKING:
    from pipeline.weights.checkpoint import Checkpoint
    from pipeline.weights.parts import Part

Report = Callable[[str], None]
Done = TypeVar("Done")


def prepare(config: Config, report: Report | None = None) -> Plan:
    """Find or generate the documents, and make the plan; `report` is told what it takes before anything is fetched."""
    os.environ.setdefault("RV_CACHE", str(Path(config.results) / ".cache"))
    tell = report or (lambda line: None)
    pins, grid = revisions.pinned(config), make_grid(config)
    for line in [*revisions.describe(config, pins), *grid.left_out]:
        tell(line)
    if report is not None and (needed := estimate.describe(config, grid, pins)):
        report(needed)
    plan = make_plan(config, grid, find_sources(config))
    for line in revisions.keep(plan.results, plan.opened()):
        tell(line)
    return plan


def describe(config: Config, report: Report) -> str:
    """The plan as text; without a network the grid, whose keys are then unknown."""

    def described(config: Config, tell: Report) -> str:
        try:
            return prepare(config, tell).describe()
        except hub.Unreachable as silent:
            grid = make_grid(config)
            return (
                f"{grid.describe()}\n{len(grid.cells)} cells; which of them are done (?) is unknown: {silent}"
            )

    config = launcher.decided(config, report)
    with hub.asked_once():
        text, refused = _with_those_that_open(config, report, described)
    if refused:
        report(text)
        raise UserError(_left_out(refused))
    return text


def _with_those_that_open(
    config: Config, report: Report, do: Callable[[Config, Report], Done]
) -> tuple[Done, dict[str, str]]:
    """Do something with the families that can be opened and used, and say why others cannot.

    What is begun with a family that is refused is begun again without it; lines are not told a second time.

    Raises:
        UserError: if no family is left: what the first was refused for.
    """
    refused: dict[str, str] = {}
    before, now = set[str](), set[str]()

    def tell(line: str) -> None:
        if line not in before:
            report(line)
        now.add(line)

    while True:
        try:
            return do(config, tell), refused
        except FamilyRefused as e:
            refused[e.family] = "; ".join(str(e).splitlines())
            if len(config.chosen_families()) == 1:
                raise UserError(next(iter(refused.values()))) from e
            config = without(config, e.family)
            before |= now
            tell(f"{e.family} is left out: {refused[e.family]}")


def _left_out(refused: Mapping[str, str]) -> str:
    """What a run that left families out says in the end."""
    return "; ".join(f"{name} was left out: {reason}" for name, reason in refused.items())


def run(config: Config, report: Report = print) -> None:
    """Run the configured stages.

    Raises:
        UserError: for a mistake in the input or the machine; what was finished before it stays.
    """
    started = time.monotonic()
    stages = [stage for stage in Stage if stage in config.stages]
    if Stage.track in stages:
        from pipeline.tracking.server import mode

        mode(config)  # refuses a mode that cannot be, before anything is done
    if Stage.evaluate in stages:
        config = launcher.decided(config, report)
        _check_machine(config)
    path = manifest_path(Path(config.results), config.name)
    if not {Stage.extract, Stage.evaluate} & set(stages) and not path.exists():
        raise UserError(
            f"{path}: nothing has been run under this name; run `python -m pipeline experiment=…` first, or set name"
        )
    only_reads = stages == [Stage.render]
    with nullcontext() if only_reads else held(Path(config.results), config.name, report):
        try:
            _, refused = _with_those_that_open(config, report, partial(_run, stages))
        finally:
            if config.launcher.kind is Launcher.ray:
                from pipeline.evaluate.cluster import disconnect

                disconnect()
    report(f"done in {time.monotonic() - started:.0f} s")
    if refused:
        raise UserError(_left_out(refused))


def _check_machine(config: Config) -> None:
    """Find out at once whether there is a GPU or a cluster to evaluate on."""
    if config.launcher.address is None:  # on this machine
        from pipeline.engine.environment import check_device

        check_device(config.engine.device)
    if config.launcher.kind is Launcher.ray:
        from pipeline.evaluate.cluster import probe

        probe(config.launcher)


def _run(stages: list[Stage], config: Config, report: Report) -> None:
    path = manifest_path(Path(config.results), config.name)
    if Stage.extract in stages or Stage.evaluate in stages:
        if Stage.evaluate in stages and config.launcher.address is not None:
            from pipeline.evaluate.cluster import connect

            connect(config)  # before anything is downloaded
        plan = prepare(config, report)
        if Stage.evaluate in stages and config.launcher.kind is Launcher.ray and plan.missing():
            _check_and_connect(plan, stages)
        else:
            _check(plan, stages)
        manifest = plan.manifest()
        write_manifest(plan.results, manifest)
        report(summary(plan))
    else:  # models and documents may be elsewhere
        manifest = read_manifest(path)
        report(_as_planned(config, manifest, path))
    for stage in stages:
        if stage in (Stage.extract, Stage.evaluate):
            (extract if stage is Stage.extract else evaluate)(plan, report)
        else:
            (render if stage is Stage.render else track)(config, manifest, report)


def _check(plan: Plan, stages: list[Stage]) -> None:
    """Find what is wrong with checkpoints, tasks and documents before anything is written."""
    if Stage.extract in stages:
        for family in plan.families.values():
            if plan.parts(family):
                with _blamed(plan, family):
                    check_vectors(plan, family)
    if Stage.evaluate in stages and plan.missing():
        from pipeline.evaluate.checks import check_inputs

        check_inputs(plan, vectors=Stage.extract not in stages)


@contextmanager
def _blamed(plan: Plan, family: Family) -> Iterator[None]:
    """What is found of a vector is its family's, unless a condition adds it to others too."""
    others = {
        steered.name
        for steered, condition in plan.rows()
        for term in condition.added()
        if plan.of(term.family, steered) is family
    } - {family.name}
    with nullcontext() if others else of_family(family.name):
        yield


def _check_and_connect(plan: Plan, stages: list[Stage]) -> None:
    """Both at once: a cluster on this machine takes as long to start as the inputs to be checked."""
    from pipeline.evaluate.cluster import connect

    with ThreadPoolExecutor(1) as beside:
        checked = beside.submit(_check, plan, stages)
        connect(plan.config)
        checked.result()


def check_vectors(plan: Plan, family: Family) -> list[str]:
    """Notes on a family's vector, which must fit every target that it is added to; its parts must keep something."""
    from pipeline.weights.compatibility import check_compatible
    from pipeline.weights.parts import check_mask

    assert family.sft is not None and family.grpo is not None
    targets = {
        steered.name: steered.target
        for steered, condition in plan.rows()
        if any(plan.of(term.family, steered) is family for term in condition.added())
    }
    notes = [
        note
        for target in targets.values()
        for note in check_compatible(target, family.sft, family.grpo, family.config.allow_config_differences)
    ]
    sizes = {name: info.numel for name, info in family.grpo.tensors.items()}
    for part in filter(None, plan.parts(family)):
        check_mask(part, sizes, family.grpo.source)
    return list(dict.fromkeys(notes))


def _as_planned(config: Config, manifest: Manifest, path: Path) -> str:
    """Says that the grid is that of the last plan, and in what the configuration describes another."""
    grid = make_grid(config)
    asked: dict[str, Mapping[str, Any]] = {
        "families": dict.fromkeys(grid.families),
        "benchmarks": {task.name: task.entry() for task in grid.benchmarks},
        "conditions": {c.name: c.entry() for c in grid.conditions},
    }
    differs = [
        what
        for what, named in asked.items()
        if list(named) != list(getattr(manifest, what))
        or (what != "families" and named != getattr(manifest, what))
    ]
    line = f"as planned in {path}"
    if differs:
        line += f", whose {' and '.join(differs)} are not those of this configuration; add the stage 'extract' to plan anew"
    return line


def summary(plan: Plan) -> str:
    """One line: the size of the grid, and what is done."""
    cells, missing = len(plan.unique()), len(plan.missing())
    return (
        f"{plan.config.name}: {len(plan.grid.families)} target(s) × {len(plan.grid.conditions)} conditions ×"
        f" {len(plan.benchmarks)} benchmarks = {cells} cells, {cells - missing} done, {missing} to do"
    )


def extract(plan: Plan, report: Report) -> None:
    """The vector of every family, and the parts of it that conditions ask for."""
    from pipeline.weights.parts import derive
    from pipeline.weights.vector import Vector
    from pipeline.weights.vector import extract as extract_vector

    for family in plan.families.values():
        parts = plan.parts(family)
        if not parts:
            continue
        assert family.sft is not None and family.grpo is not None
        with _blamed(plan, family):
            notes = check_vectors(plan, family)
            for note in notes:
                report(f"{family.name}: {note}")
            allowed = family.config.allow_config_differences
            make = partial(extract_vector, family.grpo, family.sft, compact=True, allowed=allowed)
            _new_vector(plan, family, None, parts.pop(None, []), notes, report, make)
            for part, alphas in parts.items():
                assert part is not None
                make = partial(derive, Vector.open(plan.vector_folder(family)), part)
                _new_vector(plan, family, part, alphas, notes, report, make)


def _new_vector(
    plan: Plan,
    family: Family,
    part: "Part | None",
    alphas: list[float],
    notes: list[str],
    report: Report,
    make: Callable[[Path], Path],
) -> None:
    """Write a vector with its geometry and fingerprint, or check the one that is there."""
    from pipeline.weights.vector import Vector

    folder = plan.vector_folder(family, part)
    name = plan.geometry_file(family, part).name
    if folder.is_dir():
        try:
            plan.vector(family, part)
            _write_geometry(folder / name, family, alphas, notes, plan.config.steer.wide, report)
            return
        except UserError:
            report(f"{family.name}: a damaged vector was moved to {move_away(plan.results, folder)}")
    with new_folder(folder) as temporary:
        write_json(temporary / "fingerprint.json", Vector.open(make(temporary)).fingerprint)
        _write_geometry(temporary / name, family, alphas, notes, plan.config.steer.wide, report)
    report(f"{family.name}: {'vector' if part is None else part} written to {folder}")


def _write_geometry(
    path: Path, family: Family, alphas: list[float], notes: list[str], wide: bool, report: Report
) -> None:
    """The family's geometry file beside a vector, unless it tells of every α already; and what it warns of.

    Raises:
        UserError: if donors or target do not come from the base's pretraining, or a sum is not finite.
    """
    from pipeline.weights import geometry, initialisation
    from pipeline.weights.geometry_report import GeometryReport, read_report
    from pipeline.weights.vector import Vector

    asked, known = set(alphas), None
    with suppress(UserError):  # none yet, or damaged
        known = read_report(path)
        measured = {at["alpha"] for at in known["total"]["alphas"]}
        asked |= measured
    data: GeometryReport
    if known is not None and asked <= measured and "initialisation" in known:
        data = known
    else:
        data = geometry.report(
            Vector.open(path.parent), family.target, sorted(asked), family.sft, family.base, wide
        )
        data["notes"] = notes
        data["initialisation"] = initialisation.measure(*_compared(family), v=data["total"]["norm"])
    if not family.config.allow_other_initialisation:
        _, reference, others = _compared(family)
        initialisation.check(data["initialisation"], reference, others, family.name)
    if data is not known:
        report(f"{family.name}: {initialisation.describe(data['initialisation'])}")
        write_json(path, data)
    for line in geometry.warnings(data, set(alphas)):
        report(f"{family.name}: warning: {line}")


def _compared(family: Family) -> "tuple[str, Checkpoint, dict[str, Checkpoint]]":
    """What the checkpoints of a family are measured from: its base, or its target where no base is known."""
    assert family.sft is not None and family.grpo is not None
    donors = {"sft": family.sft, "grpo": family.grpo}
    if family.base is None:
        return "target", family.target, donors
    return "base", family.base, donors | {"target": family.target}


def evaluate(plan: Plan, report: Report) -> None:
    for cell in plan.missing():
        if (away := set_aside(plan.results, cell.key)) is not None:
            report(f"a damaged record of {cell.condition.label} · {cell.benchmark.name} was moved to {away}")
    if plan.config.launcher.kind is Launcher.ray:
        from pipeline.evaluate.cluster import evaluate as evaluate_cells
    else:
        from pipeline.evaluate.runner import evaluate as evaluate_cells
    evaluate_cells(plan, report)


def render(config: Config, manifest: Manifest, report: Report) -> None:

    from pipeline.analysis.results import read_results
    from pipeline.report import terminal
    from pipeline.report.render import render as render_all

    out = Path(config.tables) / config.name
    with held(out, config.name, report):
        results = read_results(manifest, Path(config.results))
        files = render_all(results, out)
    for line in results.problems:
        report(line)
    for what, paths in files.items():
        report(f"{what}: " + " ".join(str(path) for path in paths))
    report("\n" + terminal.summary(results) + "\n")
    for line in terminal.verdict_lines(results):
        report(line)


def track(config: Config, manifest: Manifest, report: Report) -> None:
    from pipeline.tracking.track import track as log_to_wandb

    log_to_wandb(config, manifest, report)
