"""Whether and how W&B's server is reached: mode, key, upload. A server costs seconds, and never a run.

Runs are files first; `upload` hands them to `wandb sync` in a process of its own, which is ended when the server does
not answer.
"""

import http.client
import netrc
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.config.schema import Config, Tracking
from pipeline.errors import UserError

SERVER = "https://api.wandb.ai"
ANSWER_WITHIN = 3.0  # seconds that a server has to answer at all
UPLOAD_WITHIN = 10.0  # seconds that the upload may make no progress
MODES = {m: m for m in ("online", "offline", "disabled")} | {"run": "online", "dryrun": "offline"}


def mode(config: Config) -> str:
    """online, offline or disabled: `auto` is what WANDB_MODE says, and offline where no API key is known.

    Raises:
        UserError: if online logging is asked for and no API key is known.
    """
    if config.tracking.mode is Tracking.auto:
        found = MODES.get(mode_of_environment(), "offline")
        return "offline" if found == "online" and not has_key() else found
    if config.tracking.mode is Tracking.online and not has_key():
        raise UserError(
            "tracking.mode=online: no W&B API key; run `wandb login`, or set tracking.mode=offline"
        )
    return str(config.tracking.mode.value)


def mode_of_environment() -> str:
    """What WANDB_MODE says, which may be no mode at all."""
    return os.environ.get("WANDB_MODE") or "online"


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Take these variables out of the environment for a while."""
    values = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(values)


def address() -> str:
    return os.environ.get("WANDB_BASE_URL") or SERVER


def has_key() -> bool:
    """Whether an API key is known, from the environment or by `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(address().split("//")[-1].split("/")[0]) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def silence() -> str:
    """Why the server does not answer within seconds; nothing if it does."""
    try:
        urllib.request.urlopen(address(), timeout=ANSWER_WITHIN).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError, http.client.HTTPException) as e:
        return f"{address()} does not answer: {short(e)}"
    return ""


def short(error: BaseException) -> str:
    """An error on one line."""
    return " ".join(str(error).split())[:120]


def upload(folders: Sequence[Path]) -> str:
    """Upload these folders with W&B's own command; returns what was in the way, or nothing."""
    if problem := silence():
        return problem
    command = [str(Path(sys.executable).parent / "wandb"), "sync", "--yes", *map(str, folders)]
    with without("WANDB_MODE"):
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    left, since, running = len(folders), time.monotonic(), True
    try:
        while running and time.monotonic() - since < UPLOAD_WITHIN:
            running = child.poll() is None
            still = sum(not is_synced(folder) for folder in folders)
            if still != left:
                left, since = still, time.monotonic()
            time.sleep(0.2)
    finally:
        child.kill()
        child.wait()
    return f"{left} of {len(folders)} runs are left; check `wandb login` and the connection" if left else ""


def is_synced(folder: Path) -> bool:
    """Whether W&B's command has left its mark on an offline run."""
    return any(folder.glob("*.synced"))
