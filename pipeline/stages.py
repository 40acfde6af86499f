"""The stages of a run, in order; each reads and writes files, so each can be run, killed and run again alone.

donors    train the SFT and GRPO donors of a recipe            → results/donors/
extract   v = θ_GRPO − θ_SFT, with its geometry                 → results/vectors/<key>/
evaluate  every cell of the plan that has no record yet         → results/cells/<key>/
render    tables, figures and the report, from records alone    → paper_tables/<name>/
track     W&B runs, from records alone                          → the W&B server, or results/wandb/
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from pipeline import estimate
from pipeline.config import ROOT, Config, Launcher, Stage
from pipeline.errors import UserError
from pipeline.plan import Plan, code_fingerprint, make_plan
from pipeline.records import digest, manifest_path, new_folder, write_json

Report = Callable[[str], None]


def prepare(config: Config) -> Plan:
    """Find or generate the documents, and make the plan."""
    os.environ.setdefault("RV_CACHE", str(Path(config.results) / ".cache"))
    find_documents(config)
    return make_plan(config)


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
    from evals.micro import write_benchmarks

    code = [code_fingerprint(path) for path in sorted((ROOT / "evals" / "micro").glob("*.py"))]
    folder = Path(config.results) / "data" / f"micro-{digest([code, config.data.seed])[:12]}"
    if not folder.is_dir():
        with new_folder(folder) as temporary:
            write_benchmarks(temporary, config.data.seed)
    return folder


def run(config: Config, report: Report = print) -> None:
    """Run the configured stages.

    Raises:
        UserError: for a mistake in the input or the machine; what was finished before it stays.
    """
    started = time.monotonic()
    stages = [stage for stage in Stage if stage in config.stages]
    if Stage.evaluate in stages and config.launcher.kind is Launcher.local:
        from pipeline.engine import check_device

        check_device(config.engine.device)
    if Stage.extract in stages or Stage.evaluate in stages:
        for line in filter(None, [estimate.describe(config)]):
            report(line)
    plan = prepare(config)
    write_json(manifest_path(plan.results, config.name), plan.manifest())
    report(summary(plan))
    for stage in stages:
        _STAGES[stage](plan, report)
    report(f"done in {time.monotonic() - started:.0f} s")


def summary(plan: Plan) -> str:
    cells, missing = len(plan.unique()), len(plan.missing())
    return (
        f"{plan.config.name}: {len(plan.families)} target(s) × {len(plan.conditions)} conditions ×"
        f" {len(plan.tasks)} benchmarks = {cells} cells, {cells - missing} done, {missing} to do"
    )


def extract(plan: Plan, report: Report) -> None:
    from pipeline import geometry
    from pipeline.vector import Vector, check_compatible
    from pipeline.vector import extract as extract_vector

    for family in plan.families.values():
        if family.vector_key is None or not plan.needs_vector():
            continue
        assert family.sft is not None and family.grpo is not None
        notes = check_compatible(family.target, family.sft, family.grpo)
        for note in notes:
            report(f"{family.name}: {note}")
        folder = plan.vector_folder(family)
        if folder.is_dir():
            plan.vector(family)
            continue
        with new_folder(folder) as temporary:
            path = extract_vector(family.grpo, family.sft, temporary)
            alphas = sorted({c.alpha for c in plan.conditions if c.alpha})
            vector = Vector.open(path)
            data = geometry.report(vector, family.target, alphas, sft=family.sft, base=family.base)
            write_json(temporary / "geometry.json", data | {"notes": notes})
            write_json(temporary / "fingerprint.json", vector.fingerprint)
        report(f"{family.name}: vector written to {folder}")


def evaluate(plan: Plan, report: Report) -> None:
    if plan.config.launcher.kind is Launcher.ray:
        from pipeline.cluster import evaluate as evaluate_cells
    else:
        from pipeline.evaluate import evaluate as evaluate_cells
    evaluate_cells(plan, report)


def render(plan: Plan, report: Report) -> None:
    from pipeline import figures, tables
    from pipeline.report import render as render_report

    manifest = plan.manifest()
    out = Path(plan.config.tables) / plan.config.name
    written = tables.render(manifest, plan.results, out)
    drawn = figures.render(manifest, plan.results, out)
    page = render_report(manifest, plan.results, out, drawn)
    for line in tables.problems(manifest, plan.results):
        report(line)
    for what, files in (("tables", written), ("figures", drawn), ("report", [page])):
        report(f"{what}: " + " ".join(str(f) for f in files))
    report("\n" + tables.terminal(manifest, plan.results) + "\n")
    for line in tables.verdicts(manifest, plan.results):
        report(line)


def track(plan: Plan, report: Report) -> None:
    from pipeline.tracking import track as log_to_wandb

    log_to_wandb(plan, report)


_STAGES: dict[Stage, Callable[[Plan, Report], None]] = {
    Stage.extract: extract,
    Stage.evaluate: evaluate,
    Stage.render: render,
    Stage.track: track,
}
