"""The stages of a run, in order; each reads and writes files, so each can be run, killed and run again alone.

extract   v = θ_GRPO − θ_SFT, with its geometry                 → results/vectors/<key>/
evaluate  every cell of the plan that has no record yet         → results/cells/<key>/
render    tables, figures and the report, from records alone    → paper_tables/<name>/
track     W&B runs, from records alone                          → the W&B server, or results/wandb/
"""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.schema import Config, Launcher, Stage
from pipeline.errors import UserError
from pipeline.files import ROOT, digest, held, move_away, new_folder, write_json
from pipeline.manifest import Manifest, manifest_path, parse_manifest, read_manifest, write_manifest
from pipeline.plan import estimate, revisions
from pipeline.plan.family import Family
from pipeline.plan.grid import grid_of, left_out
from pipeline.plan.keys import code_fingerprint
from pipeline.plan.plan import Plan, make_plan
from pipeline.records import set_aside

if TYPE_CHECKING:
    from pipeline.weights.parts import Variant

Report = Callable[[str], None]


def prepare(config: Config, report: Report | None = None) -> Plan:
    """Find or generate the documents, and make the plan; `report` is told what it takes before anything is fetched."""
    os.environ.setdefault("RV_CACHE", str(Path(config.results) / ".cache"))
    tell = report or (lambda line: None)
    for line in [*revisions.use(config), *left_out(config)]:
        tell(line)
    if report is not None and (needed := estimate.describe(config)):
        report(needed)
    find_documents(config)
    plan = make_plan(config)
    for line in revisions.keep(plan):
        tell(line)
    return plan


def find_documents(config: Config) -> None:
    """Set `data.folder` to the generated documents if the experiment has a generator, and check that it is there."""
    if config.data.generator is not None and config.data.folder is not None:
        raise UserError("data: folder and generator are both set; add data.generator=null to use the folder")
    if config.data.generator is not None:
        config.data.folder = str(_generated(config))
        config.data.generator = None
    if config.data.folder is not None and not Path(config.data.folder).is_dir():
        raise UserError(
            f"data.folder={config.data.folder}: no such folder; make it, or unset it to use the hub"
        )


def _generated(config: Config) -> Path:
    """The folder of generated documents, made unless this version of the generator has made it already."""
    if config.data.generator != "micro":
        raise UserError(f"data.generator: expected 'micro' or null, found '{config.data.generator}'")
    from evals.micro import SIZES, write_benchmarks

    sizes = config.data.sizes
    for name, size in sizes.items():
        if name not in SIZES or size < 1:
            raise UserError(
                f"data.sizes.{name}={size}: expected a number of documents for one of {', '.join(SIZES)}"
            )
    code = [code_fingerprint(path) for path in sorted((ROOT / "evals" / "micro").glob("*.py"))]
    folder = Path(config.results) / "data" / f"micro-{digest([code, config.data.seed, SIZES | sizes])[:12]}"
    if not folder.is_dir():
        with new_folder(folder) as temporary:
            write_benchmarks(temporary, config.data.seed, sizes)
    return folder


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
        _check_machine(config)
    only_reads = stages == [Stage.render] and manifest_path(Path(config.results), config.name).exists()
    with nullcontext() if only_reads else held(Path(config.results), config.name, report):
        try:
            _run(config, stages, report)
        finally:
            if config.launcher.kind is Launcher.ray:
                from pipeline.evaluate.cluster import disconnect

                disconnect()
    report(f"done in {time.monotonic() - started:.0f} s")


def _check_machine(config: Config) -> None:
    """Find out at once whether there is a GPU or a cluster to evaluate on."""
    if config.launcher.address is None:  # on this machine
        from pipeline.engine.engine import check_device

        check_device(config.engine.device)
    if config.launcher.kind is Launcher.ray:
        from pipeline.evaluate.cluster import probe

        probe(config.launcher)


def _run(config: Config, stages: list[Stage], report: Report) -> None:
    path = manifest_path(Path(config.results), config.name)
    if Stage.extract in stages or Stage.evaluate in stages or not path.exists():
        if Stage.evaluate in stages and config.launcher.address is not None:
            from pipeline.evaluate.cluster import connect

            connect(config)  # before anything is downloaded
        plan = prepare(config, report)
        if Stage.evaluate in stages and config.launcher.kind is Launcher.ray and plan.missing():
            _check_and_connect(plan, stages)
        else:
            _check(plan, stages)
        manifest = parse_manifest(plan.manifest())
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
    if Stage.extract in stages and plan.needs_vector():
        for family in plan.families.values():
            if family.vector_key is not None:
                _check_vectors(plan, family)
    if Stage.evaluate in stages and plan.missing():
        from pipeline.evaluate.tasks import check_inputs

        check_inputs(plan, vectors=Stage.extract not in stages)


def _check_and_connect(plan: Plan, stages: list[Stage]) -> None:
    """Both at once: a cluster on this machine takes as long to start as the inputs to be checked."""
    from pipeline.evaluate.cluster import connect

    with ThreadPoolExecutor(1) as beside:
        checked = beside.submit(_check, plan, stages)
        connect(plan.config)
        checked.result()


def _check_vectors(plan: Plan, family: Family) -> list[str]:
    """Notes on a family's vector and on those that conditions add to it, each of which must fit its target."""
    from pipeline.weights.compatibility import check_compatible
    from pipeline.weights.parts import check_mask

    others = {name for condition in plan.conditions for name, _ in condition.plus} - {family.name}
    notes = []
    for of in (family, *(plan.families[name] for name in sorted(others))):
        assert of.sft is not None and of.grpo is not None
        notes += check_compatible(family.target, of.sft, of.grpo)
    assert family.grpo is not None
    for variant in _variants(plan):
        sizes = {name: info.numel for name, info in family.grpo.tensors.items()}
        check_mask(variant, sizes, family.grpo.source)
    return notes


def _variants(plan: Plan) -> list["Variant"]:
    """The parts of a vector that conditions add."""
    return list(dict.fromkeys(c.variant for c in plan.conditions if c.variant is not None))


def _as_planned(config: Config, manifest: Manifest, path: Path) -> str:
    """Says that the grid is that of the last plan, and in what the configuration describes another."""
    nothing = {"schema": 1, "experiment": config.name, "families": {}, "cells": []}
    asked = parse_manifest(nothing | grid_of(config))
    differs = []
    for group in ("benchmarks", "conditions"):
        mine, theirs = getattr(asked, group), getattr(manifest, group)
        if list(mine) != list(theirs) or mine != theirs:
            differs.append(group)
    if list(config.sizes or config.families) != list(manifest.families):
        differs.append("families")
    line = f"as planned in {path}"
    if differs:
        line += f", whose {' and '.join(differs)} are not those of this configuration; add the stage 'extract' to plan anew"
    return line


def summary(plan: Plan) -> str:
    cells, missing = len(plan.unique()), len(plan.missing())
    return (
        f"{plan.config.name}: {len(plan.families)} target(s) × {len(plan.conditions)} conditions ×"
        f" {len(plan.tasks)} benchmarks = {cells} cells, {cells - missing} done, {missing} to do"
    )


def extract(plan: Plan, report: Report) -> None:
    """The vector of every family, and the variants of it that conditions ask for."""
    from pipeline.weights.parts import derive
    from pipeline.weights.vector import Vector
    from pipeline.weights.vector import extract as extract_vector

    for family in plan.families.values():
        if family.vector_key is None or not plan.needs_vector():
            continue
        assert family.sft is not None and family.grpo is not None
        notes = _check_vectors(plan, family)
        for note in notes:
            report(f"{family.name}: {note}")
        whole = plan.vector_folder(family)
        _new_vector(
            plan, family, None, notes, report, partial(extract_vector, family.grpo, family.sft, compact=True)
        )
        for variant in _variants(plan):
            make = partial(derive, Vector.open(whole), variant)
            _new_vector(plan, family, variant, notes, report, make)


def _new_vector(
    plan: Plan,
    family: Family,
    variant: "Variant | None",
    notes: list[str],
    report: Report,
    make: Callable[[Path], Path],
) -> None:
    """Write a vector with its geometry and fingerprint, or check the one that is there."""
    from pipeline.weights.vector import Vector

    folder = plan.vector_folder(family, variant)
    if folder.is_dir():
        try:
            plan.vector(family, variant)
            _write_geometry(plan, family, variant, notes, folder)
            return
        except UserError:
            report(f"{family.name}: a damaged vector was moved to {move_away(plan.results, folder)}")
    with new_folder(folder) as temporary:
        write_json(temporary / "fingerprint.json", Vector.open(make(temporary)).fingerprint)
        _write_geometry(plan, family, variant, notes, temporary)
    report(f"{family.name}: {'vector' if variant is None else variant} written to {folder}")


def _write_geometry(
    plan: Plan, family: Family, variant: "Variant | None", notes: list[str], folder: Path
) -> None:
    """The family's geometry file beside a vector, unless it tells of every α already."""
    from pipeline.weights import geometry
    from pipeline.weights.vector import Vector

    path = folder / plan.geometry_file(family, variant).name
    alphas = {c.alpha for c in plan.conditions if c.alpha and c.variant == variant}
    with suppress(OSError, ValueError, LookupError, TypeError):  # none yet, or damaged
        measured = {row["alpha"] for row in json.loads(path.read_text())["total"]["alphas"]}
        if alphas <= measured:
            return
        alphas |= measured
    data = geometry.report(
        Vector.open(folder), family.target, sorted(alphas), sft=family.sft, base=family.base
    )
    write_json(path, data | {"notes": notes})


def evaluate(plan: Plan, report: Report) -> None:
    for cell in plan.missing():
        if (away := set_aside(plan.results, cell.key)) is not None:
            report(f"a damaged record of {cell.condition.label} · {cell.task.name} was moved to {away}")
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
    from pipeline.tracking.runs import track as log_to_wandb

    log_to_wandb(config, manifest, report)
