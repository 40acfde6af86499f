"""How a record was made: checkpoints, engine, versions, machine and command, without secrets.

Nothing of it is in the key: two records of one key may differ here, and in nothing else but their times.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime
from typing import Any

from evals import sandbox
from pipeline.config.schema import CheckpointConfig, Config
from pipeline.files import ROOT, sha256
from pipeline.plan.grid import allowed_differences
from pipeline.plan.keys import versions
from pipeline.plan.plan import Cell
from pipeline.records import GpuSource, Provenance, Source


def chat_template_sha(tokenizer: Any) -> str:
    """sha256 of the text of the chat template, which lm-eval's results name likewise."""
    return sha256(tokenizer.chat_template.encode())


def provenance_of(
    config: Config, cell: Cell, started: datetime, chat_template_sha: str | None, gpu: GpuSource | None = None
) -> Provenance:
    """The provenance of a cell that is being computed.

    Args:
        started: when its first document was asked.
        chat_template_sha: of the template that was applied; None where there was none.
        gpu: that the engine computes on; None on a CPU.
    """
    allowed = allowed_differences(config, cell.family.name, cell.condition)
    made: Provenance = {
        "family": {
            part: _origin(source, getattr(cell.family, part).revision)
            for part, source in cell.family.config.sources().items()
        },
        "engine": {k: getattr(v, "value", v) for k, v in asdict(cell.family.engine(config.engine)).items()},
        "chat_template_sha": chat_template_sha,
        "sandbox": str(sandbox.probe()) if cell.benchmark.config.runs_code else None,
        "versions": versions() | {"python": platform.python_version()},
        "host": platform.node(),
        "started": started.isoformat(timespec="seconds"),
        "command": without_secrets("python -m pipeline " + shlex.join(sys.argv[1:])),
        "git": _git_commit(),
    }
    if gpu is not None:
        made["gpu"] = gpu
    if allowed:
        made["allow_config_differences"] = allowed
    return made


def _origin(source: CheckpointConfig, commit: str | None) -> Source:
    """Where a checkpoint comes from."""
    origin = Source(id=source.id, revision=commit)
    if source.subfolder is not None:
        origin["subfolder"] = source.subfolder
    if source.merge_into is not None:
        origin["merge_into"] = source.merge_into
    return origin


def without_secrets(text: str) -> str:
    """`text` with `***` in place of keys and tokens that the environment holds, hub tokens, and passwords in addresses."""
    for name, value in os.environ.items():
        if re.search("KEY|TOKEN|SECRET|PASSWORD", name) and len(value) >= 8:
            text = text.replace(value, "***")
    return re.sub(r"\bhf_\w{16,}|(?<=[/=])[^/@=\s]+:[^/@\s]+(?=@)", "***", text)


def _git_commit() -> str | None:
    """The commit of this tree, asked once for all processes of a run."""
    if "RV_GIT" not in os.environ:
        asked = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
        )
        os.environ["RV_GIT"] = asked.stdout.strip()
    return os.environ["RV_GIT"] or None
