"""How a record was made: versions, machine, command."""

import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from evals import sandbox
from pipeline.config.schema import Config
from pipeline.files import ROOT
from pipeline.plan.keys import versions
from pipeline.plan.plan import Cell

if TYPE_CHECKING:
    pass


def chat_template_sha(tokenizer: Any) -> str:
    """sha256 of the text of the chat template, which lm-eval's results name likewise."""
    return hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()


def provenance_of(
    config: Config, cell: Cell, started: datetime, chat_template_sha: str | None
) -> dict[str, Any]:
    return {
        "family": {
            part: {"id": source.id, "revision": getattr(cell.family, part).revision}
            for part in ("target", "sft", "grpo", "base")
            if (source := getattr(cell.family.config, part)) is not None
        },
        "engine": {k: getattr(v, "value", v) for k, v in asdict(config.engine).items()},
        "chat_template_sha": chat_template_sha,
        "sandbox": str(sandbox.probe()) if cell.task.config.runs_code else None,
        "versions": versions() | {"python": platform.python_version()},
        "host": platform.node(),
        "started": started.isoformat(timespec="seconds"),
        "command": without_secrets("python -m pipeline " + shlex.join(sys.argv[1:])),
        "git": _git_commit(),
    }


def without_secrets(text: str) -> str:
    """Text without the keys and tokens that the environment holds, hub tokens and passwords in addresses."""
    for name, value in os.environ.items():
        if re.search("KEY|TOKEN|SECRET|PASSWORD", name) and len(value) >= 8:
            text = text.replace(value, "***")
    return re.sub(r"\bhf_\w{16,}|(?<=[/=])[^/@=\s]+:[^/@\s]+(?=@)", "***", text)


def _git_commit() -> str | None:
    if "RV_GIT" not in os.environ:
        asked = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
        )
        os.environ["RV_GIT"] = asked.stdout.strip()
    return os.environ["RV_GIT"] or None
