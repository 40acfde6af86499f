"""Gather what a run needs for a machine without a network: every checkpoint and data set at its commit, and checksums.

    make bundle ARGS="experiment=paper"                             wheels too, into bundle/
    python -m pipeline bundle experiment=paper out=bundle part_gb=4

Everything is fetched in the way of the run itself, which is prepared up to its first cell; nothing is evaluated. Fetched
anew, so that the bundle is whole, whatever this machine's cache has. In parts the disk holds it twice for a while.
"""

from collections.abc import Mapping
from pathlib import Path

from pipeline import bundle, hub
from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.files import make_folder, write_json
from pipeline.stages import prepare

OPTIONS = ("out", "part_gb")
GB = 10**9


def show(config: Config, options: Mapping[str, str]) -> str:
    """Write the bundle, and return a text that tells what it holds and how it is used.

    Raises:
        UserError: if something cannot be fetched, or the folder holds something else.
    """
    out = Path(options.get("out", "bundle"))
    part_bytes = _part_bytes(options.get("part_gb"))
    strange = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    strange = [name for name in strange if name not in (bundle.WHEELS, bundle.HUB, bundle.LOCK, bundle.SUMS)]
    if strange or (out.exists() and not out.is_dir()):
        found = strange[0] if strange else "a file"
        raise UserError(f"out={out}: expected a new folder or an earlier bundle, found {found}; name another")
    make_folder(out)
    with hub.cache_in(out / bundle.HUB):
        plan = prepare(config, print)
    write_json(out / bundle.LOCK, dict(plan.opened()))
    wheels = len(list((out / bundle.WHEELS).glob("*.whl")))
    files = bundle.seal(out)
    size = (
        sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and not path.is_symlink()) / GB
    )
    lines = [f"{out}: {files} files, {size:.1f} GB, {wheels} wheels"]
    if part_bytes is not None:
        lines.append(f"in {bundle.cut(out, part_bytes)} parts of at most {options['part_gb']} GB")
    if not wheels:
        lines.append("no wheels: `make bundle` gathers them too")
    lines.append("copy it and this project to the machine; there: make setup BUNDLE=FOLDER, then run as here")
    return "\n".join(lines)


def _part_bytes(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        size = int(float(text) * GB)
    except (ValueError, OverflowError):
        size = 0
    if size < 2**20:
        raise UserError(f"part_gb={text}: expected a size in GB of 0.01 or more, such as 4")
    return size
