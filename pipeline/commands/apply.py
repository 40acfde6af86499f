"""Write a steered checkpoint, and push it with its vector to the hub.

    python -m pipeline apply experiment=paper family=qwen1_5b alpha=0.5 out=steered
    python -m pipeline apply experiment=paper push=me/qwen-steered dry_run=true     show cards and files, write nothing
    python -m pipeline apply experiment=paper push=me/qwen-steered
    python -m pipeline apply experiment=micro conditions=parts condition=mlp

`family` is a target of the experiment (default: the first), `alpha` the strength of its vector (default: 1); or
`condition` is a row of the grid, with whatever it starts from and adds. `out` is a folder (default: under
results/steered). The checkpoint goes to the repository that `push` names and the family's vector to `<push>-vector`: in
one repository an engine could take v for weights. The model card holds the measured table of these
weights with its intervals, from the records that there are, and the commands that made them. A vector that is not there
yet is extracted first, but not by a dry run.
"""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pipeline import stages
from pipeline.analysis.results import read_results
from pipeline.commands import rows
from pipeline.commands.rows import APPLIED, for_one_family, row_of, stem
from pipeline.config.options import flag
from pipeline.config.schema import Config, Device
from pipeline.errors import UserError
from pipeline.evaluate.provenance import without_secrets
from pipeline.lock import held
from pipeline.manifest import Place
from pipeline.plan.family import Family
from pipeline.plan.grid import Condition, allowed_differences
from pipeline.plan.plan import Plan
from pipeline.report.formats import markdown
from pipeline.report.numbers import DASH, interval, plus_minus
from pipeline.report.table import Block, Kind, Line, Table, Text
from pipeline.weights import geometry
from pipeline.weights.card import Steering, card
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.geometry_report import read_report
from pipeline.weights.steer import STEERING, apply, steering
from pipeline.weights.vector import Vector

OPTIONS = (*rows.OPTIONS, "out", "push", "dry_run")
CARD = "README.md"


def show(config: Config, options: Mapping[str, str]) -> str:
    """Do what `options` (see above) say, and return a text that tells what was done.

    Raises:
        UserError: for an unknown family, an α that is not a number, a target that the vector does not fit, or a hub that
            refuses; what was written stays.
    """
    dry_run = flag(options, "dry_run")
    push = options.get("push")
    if push is not None and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", push):
        raise UserError(f"push={push}: expected a repository of the hub, as in push=me/name")
    config, name = for_one_family(config, options)
    with nullcontext() if dry_run else held(Path(config.results), f"apply {config.name}", print):
        plan = stages.prepare(config, print)
        family = plan.families[name]
        row = row_of(plan, family, options)
        if not dry_run:
            stages.extract(plan, print)
        start, terms = family.checkpoint(row.start), plan.terms(family, row)
        out = Path(options.get("out") or plan.results / "steered" / f"{config.name}-{name}-{stem(row)}")
        about = measured(plan, family, row)
        allowed = allowed_differences(config, name, row)
        if dry_run:
            return _preview(plan, family, start, steering(start, terms, allowed), out, push, about)
        apply(start, terms, out, about, allowed)
    added = f"{row.terms[0].alpha:g}·v" if row.name == APPLIED else row.label
    lines = [f"{name} + {added} written to {out}", f"to serve it: {serving(config, out)}"]
    if push:
        lines += _push(plan, family, out, push)
    return "\n".join(lines)


def serving(config: Config, out: Path) -> str:
    """The command line that serves a checkpoint over HTTP on this machine.

    On the CPU vLLM would take nine tenths of the memory for its cache, and refuses where so much is not free.
    """
    beside = Path(sys.executable).parent / "vllm"
    command = "vllm" if shutil.which("vllm") or not beside.exists() else str(beside)
    cache = "VLLM_CPU_KVCACHE_SPACE=1 " if config.engine.device is Device.cpu else ""
    return f"{cache}{shlex.quote(command)} serve {shlex.quote(str(out))}"


def measured(plan: Plan, family: Family, applied: Condition) -> str:
    """Markdown: each benchmark on these weights beside the target, with 95 % intervals, and the commands behind it."""
    results = read_results(plan.manifest(), plan.results)
    weights = (applied.start, applied.added())
    same = [c.name for c in plan.grid.conditions if (c.start, c.added()) == weights and c.name != APPLIED]
    table = Table(
        "measured",
        "Measured",
        [Text(t) for t in ("Benchmark", "Prompt", "n", "Target", "This", "Difference")],
    )
    lines: dict[tuple[str, str], Line] = {}
    commands: dict[str, None] = {}
    for name in same:
        row = results.named(name)
        for benchmark in results.benchmarks:
            cell = results.cells.get(Place(family.name, name, benchmark))
            if cell is None or cell.record is None:
                continue
            values = [results.value(family.name, one, benchmark) for one in (results.reference, row)]
            change = results.difference(family.name, row, results.reference, benchmark)
            entries = [plus_minus(v) if v else DASH for v in values] + [interval(change) if change else DASH]
            label = results.label(benchmark, ", ")
            texts = [row.entry.prompt, str(len(cell.docs)), *entries]
            lines[label, row.entry.prompt] = Line(Kind.value, label, [Text(t) for t in texts])
            commands[cell.record.provenance["command"]] = None
    apply_command = without_secrets("python -m pipeline " + shlex.join(sys.argv[1:]))
    if not lines:
        what = f"α = {applied.terms[0].alpha:g}" if applied.name == APPLIED else applied.label
        return f"\n# Measured\n\nNothing yet at {what}.\n\nMade by `{apply_command}`.\n"
    table.blocks.append(Block("", list(lines.values())))
    table.notes.append(
        "Accuracy in per cent ± half of its 95 % interval; difference to the target alone under the plain prompt, paired by"
        " document, in points with its 95 % interval."
    )
    made = "\n".join(["", "Evaluated and made by", "", "```bash", *commands, apply_command, "```", ""])
    return "\n" + markdown(table) + made


def vector_card(plan: Plan, family: Family) -> str:
    """The card of the vector's own repository: its donors and its geometry."""
    folder = plan.vector_folder(family)
    description = Vector.open(folder).description
    donors = description["donors"]
    named = [
        " @ ".join(filter(None, [donors[part]["source"], donors[part]["revision"]]))
        for part in ("grpo", "sft")
    ]
    lines = ["---", "tags: [task-arithmetic, task-vector]", "---", "# A reasoning vector", ""]
    lines += [f"v = θ({named[0]}) − θ({named[1]}), in fp32 (arXiv 2509.01363).", ""]
    if description["form"] == "compact":
        lines += [
            "Its bits are packed: `Vector` in pipeline/weights/vector.py of the code that made it reads them.",
            "",
        ]
    path = plan.geometry_file(family)
    try:
        lines.append(geometry.table(read_report(path)))
    except UserError:
        raise UserError(f"{path}: no whole geometry of this target there; run the stage 'extract'") from None
    return "\n".join(lines)


def _preview(
    plan: Plan,
    family: Family,
    start: Checkpoint,
    described: Steering,
    out: Path,
    push: str | None,
    about: str,
) -> str:
    text = card(start, described) + about
    files = {path.name: path.stat().st_size for path in _files(start)}
    files |= {STEERING: len(json.dumps(described, indent=1)) + 1, CARD: len(text.encode())}
    lines = [f"─── {push or out}", *_sizes(files), f"─── {CARD}", text]
    if push:
        folder, about_v = plan.vector_folder(family), vector_card(plan, family)
        files = {path.name: path.stat().st_size for path in folder.iterdir()} | {CARD: len(about_v.encode())}
        lines += [f"─── {push}-vector", *_sizes(files), f"─── {CARD}", about_v]
    return "\n".join([*lines, "dry run: nothing was written or uploaded"])


def _files(target: Checkpoint) -> list[Path]:
    """What a steered checkpoint has of its target: shards of the same size, and companions."""
    return [*sorted({info.file for info in target.tensors.values()}), *target.companions()]


def _sizes(files: Mapping[str, int]) -> list[str]:
    return [f"{size:>15,} bytes  {name}" for name, size in sorted(files.items())]


def _push(plan: Plan, family: Family, out: Path, push: str) -> list[str]:
    """Upload both folders; returns the addresses of the commits."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    vector = plan.vector_folder(family)
    card_of_v: Any = vector_card(plan, family).encode()
    uploads = {
        push: [(path.name, path) for path in sorted(out.iterdir())],
        f"{push}-vector": [*((path.name, path) for path in sorted(vector.iterdir())), (CARD, card_of_v)],
    }
    lines = []
    try:
        for repository, files in uploads.items():
            api.create_repo(repository, exist_ok=True)
            operations = [CommitOperationAdd(name, content) for name, content in files]
            done = api.create_commit(repository, operations, commit_message=f"Steered by {plan.config.name}")
            lines.append(f"pushed {repository}: {done.commit_url}")
    except Exception as e:  # noqa: BLE001 - the client's network library has exceptions of its own
        reason = " ".join(str(e).split())[:200]
        raise UserError(
            f"{repository} was not pushed ({reason}); check `hf auth login` and the name. The checkpoint is in {out}"
        ) from None
    return lines
