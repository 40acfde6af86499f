"""Write what other tools read: a vector, a condition as a recipe of mergekit, samples and results as lm-eval's.

    python -m pipeline export experiment=micro format=vector out=vector
    python -m pipeline export experiment=micro conditions=parts format=vector condition=mlp
    python -m pipeline export experiment=micro format=mergekit alpha=0.5 out=vector.yml
    python -m pipeline export experiment=micro format=lm_eval out=for_lm_eval

vector     FOLDER/vector.safetensors: θ_GRPO − θ_SFT in fp32 under the names of the parameters, for safetensors'
           `load_file`; of a `condition` the masked, trimmed or dropped vector that it multiplies by α.
mergekit   a file for `mergekit-yaml` that gives the weights of `condition`, or of `alpha` times the vector
           (pipeline/weights/mergekit.py).
lm_eval    a folder as `lm_eval --log_samples` writes it, from the records of all rows or of one `condition`
           (pipeline/report/lm_eval_files.py).

`family` is a target of the experiment (default: the first; for lm_eval: all), `out` a file or folder (default: under
results/exported).
"""

from collections.abc import Mapping
from pathlib import Path

from pipeline import stages
from pipeline.commands import rows
from pipeline.commands.rows import for_one_family, row_of, stem
from pipeline.config.explain import nearest
from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.files import replacing, resolved, write_synced
from pipeline.lock import held
from pipeline.manifest import manifest_path, read_manifest
from pipeline.plan.family import Family
from pipeline.plan.grid import Condition
from pipeline.plan.plan import Plan
from pipeline.report import lm_eval_files
from pipeline.weights import mergekit
from pipeline.weights.description import Origin
from pipeline.weights.mergekit import Difference
from pipeline.weights.vector import Vector, write_vector

OPTIONS = (*rows.OPTIONS, "format", "out")
FORMATS = ("vector", "mergekit", "lm_eval")


def show(config: Config, options: Mapping[str, str]) -> str:
    """Do what `options` (see above) say, and return a text that tells what was written.

    Raises:
        UserError: for an unknown format, family or condition, and for what a format cannot express; then nothing is
            written.
    """
    form = options.get("format")
    if form not in FORMATS:
        found = "none" if form is None else f"'{form}'"
        raise UserError(f"format: expected one of {', '.join(FORMATS)}, found {found}")
    if form != "mergekit" and "alpha" in options:
        raise UserError(
            f"alpha={options['alpha']}: format={form} takes none; name a condition, or leave alpha out"
        )
    if form == "lm_eval":
        return _records(config, options)
    config, name = for_one_family(config, options)
    with held(Path(config.results), f"export {config.name}", print):
        plan = stages.prepare(config, print)
        family = plan.families[name]
        row = row_of(plan, family, options)
        suffix = ".yml" if form == "mergekit" else ""
        default = plan.results / "exported" / f"{config.name}-{name}-{stem(row)}{suffix}"
        out = Path(options.get("out") or default)
        return (_vector if form == "vector" else _recipe)(plan, family, row, out)


def _vector(plan: Plan, family: Family, row: Condition, out: Path) -> str:
    """The one vector that a row multiplies, dense."""
    terms = row.added()
    if len(terms) != 1 or terms[0].seed is not None:
        what = "noise" if len(terms) == 1 else f"a sum of {len(terms)}" if terms else "none"
        raise UserError(
            f"condition={row.name}: expected a row that adds one vector, found {what}; use format=mergekit, or apply"
        )
    stages.extract(plan, print)
    vector = Vector.open(plan.vector(plan.of(terms[0].family, family), terms[0].part))
    about = vector.description
    origin: Origin = {
        "donors": about["donors"],
        "identity": about["identity"],
        "notes": about["notes"],
        "parts": about["parts"],
    }
    path = write_vector(out, origin, vector.shapes, vector.stored, compact=False)
    return f"v of {family.name}, {len(vector.shapes)} tensors in fp32, written to {path}\nto read it: safetensors.torch.load_file('{path}')"


def _recipe(plan: Plan, family: Family, row: Condition, out: Path) -> str:
    """The weights of a row as a recipe of mergekit."""
    terms = []
    for term in row.added():
        of = plan.of(term.family, family)
        if term.seed is not None:
            raise UserError(
                f"condition={row.name}: mergekit has no noise of a vector's norm; write a checkpoint with apply"
            )
        assert of.grpo is not None and of.sft is not None
        terms.append(Difference(term.alpha, of.grpo, of.sft, term.part))
    text = mergekit.recipe(family.checkpoint(row.start), terms, f"{family.name} · {row.label}")
    out = resolved(out)
    with replacing(out, _check_recipe) as new:
        write_synced(new, text.encode())
    return f"{family.name} · {row.label} written to {out}\nto merge it: mergekit-yaml {out} FOLDER"


def _check_recipe(out: Path) -> None:
    if out.exists() and not (out.is_file() and out.read_bytes().startswith(mergekit.FIRST.encode())):
        raise UserError(f"{out} exists and was not written by export; choose another file or remove it")


def _records(config: Config, options: Mapping[str, str]) -> str:
    """The records of the last run of this name."""
    results = Path(config.results)
    manifest = read_manifest(manifest_path(results, config.name))
    for what, known in (("family", manifest.families), ("condition", manifest.conditions)):
        given = options.get(what)
        if given is not None and given not in known:
            raise UserError(f"{what}={given}: not in the run of {config.name}{nearest(given, list(known))}")
    out = Path(options.get("out") or results / "exported" / f"{config.name}-lm_eval")
    return "\n".join(
        lm_eval_files.write(manifest, results, out, options.get("family"), options.get("condition"))
    )
