"""What CUDA needs of a machine: a driver, a card that is not too old, and what the engine compiles with.

    python3 -m pipeline.commands.doctor_cuda      for the lock, before its 10 GB are downloaded; status 2 if something fails

An engine on a GPU needs a driver for torch's CUDA, a card that torch has code for, and Python's headers with a C compiler:
Triton and torch.compile build code when it starts. `make reproduce` asks this first where nothing is installed, so it
needs the standard library alone; `doctor` asks it again with what is installed.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from pipeline.commands.finding import Finding
from pipeline.engine import gpus
from pipeline.files import ROOT

OLDEST_CARD = (7, 5)  # CUDA 13 has code for no older one (requirements/README.md)


def driver(needed: gpus.Version | None) -> Iterator[Finding]:
    """The newest CUDA that the driver runs against the one that is needed: of one major version every minor one runs.

    Args:
        needed: the CUDA of torch; None for a build without, which is the matter of `packages`.
    """
    newest = gpus.newest_cuda()
    if needed is None:
        return
    if newest is None:
        text = f"no libcuda.so.1, expected one for CUDA {dotted(needed)}; install NVIDIA's driver"
        yield Finding("warning", "driver", text)
    elif newest[0] < needed[0]:
        text = f"runs CUDA up to {dotted(newest)}, torch needs {dotted(needed)}; install a newer driver (requirements/README.md)"
        yield Finding("fail", "driver", text)
    else:
        yield Finding("ok", "driver", f"runs CUDA up to {dotted(newest)}, torch needs {dotted(needed)}")


def compiler() -> Iterator[Finding]:
    """Python's headers and a C compiler, which Triton and torch.compile call."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        text = f"{header} is not there, and the engine compiles with it; install Python's headers (Debian: python3-dev)"
        yield Finding("fail", "headers", text)
    named = os.environ.get("CC")
    found = shutil.which(named) if named else shutil.which("gcc") or shutil.which("clang")
    if found is None:
        text = f"{named or 'gcc'} is not there, and the engine compiles with it; install gcc"
        yield Finding("fail", "compiler", text + (", or set CC to another" if named else ""))
    elif header.exists():
        yield Finding("ok", "compiler", f"{found}, with Python's headers")


def too_old(card: gpus.Gpu) -> str | None:
    """What is wrong with a card that CUDA has no code for, with the remedy; None if it has."""
    if card.capability is None or card.capability >= OLDEST_CARD:
        return None
    return f"compute capability {dotted(OLDEST_CARD)} or higher is needed; use another card"


def locked_cuda() -> gpus.Version | None:
    """The CUDA that requirements/gpu.txt brings."""
    lock = (ROOT / "requirements" / "gpu.txt").read_text(encoding="utf-8")
    found = re.search(r"^cuda-toolkit==(\d+)\.(\d+)", lock, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


def before_setup() -> Iterator[Finding]:
    """What can be known of this machine before the CUDA build is installed."""
    yield from driver(locked_cuda())
    try:
        cards = gpus.visible(gpus.query())
    except (OSError, subprocess.SubprocessError, ValueError):
        cards = []  # `doctor` warns of an nvidia-smi that fails
    for card in cards:
        if old := too_old(card):
            yield Finding("fail", "GPU", f"{card}; {old}")
    yield from compiler()


def dotted(version: gpus.Version) -> str:
    return f"{version[0]}.{version[1]}"


if __name__ == "__main__":
    lacking = [f"error: {f.what}: {f.text}" for f in before_setup() if f.level == "fail"]
    print("\n".join(lacking), file=sys.stderr, end="\n" if lacking else "")
    sys.exit(2 if lacking else 0)
