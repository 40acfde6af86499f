"""The GPUs of this machine as its driver tells of them, without importing torch.

if present(): cards = query()
count()            # how many of them this process may use
newest_cuda()      # that the driver runs
torchs_cuda()      # that the installed torch brings
"""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

DEVICES = Path("/dev")
WSL_TOOLS = "/usr/lib/wsl/lib"  # where Windows puts nvidia-smi
FIELDS = ("name", "compute_cap", "memory.total", "memory.free", "driver_version")

Version = tuple[int, int]


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA card; memory in GB (10⁹ bytes). `capability` is None where an old nvidia-smi does not know it."""

    name: str
    capability: Version | None
    total: float
    free: float
    driver: str

    def __str__(self) -> str:
        capability = f"{self.capability[0]}.{self.capability[1]}" if self.capability else "unknown"
        return (
            f"{self.name}, compute capability {capability}, {self.free:.1f} of {self.total:.1f} GB free,"
            f" driver {self.driver}"
        )


def present() -> bool:
    """Whether there is a GPU: NVIDIA's devices, AMD's, or the one that Windows hands to WSL2."""
    return any(DEVICES.glob("nvidia[0-9]*")) or any((DEVICES / name).exists() for name in ("kfd", "dxg"))


def query() -> list[Gpu]:
    """Every card that nvidia-smi lists.

    Raises:
        OSError: if there is no nvidia-smi, or it cannot be started.
        subprocess.SubprocessError: if it fails or does not answer within a minute.
        ValueError: if it answers with something else.
    """
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=WSL_TOOLS) or "nvidia-smi"
    command = [program, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [_read(line) for line in asked.stdout.strip().splitlines()]


def count() -> int:
    """How many NVIDIA GPUs this process may use: all that are there, or those of them that CUDA_VISIBLE_DEVICES names."""
    try:
        there = len(query())
    except (OSError, subprocess.SubprocessError, ValueError):
        there = len(list(DEVICES.glob("nvidia[0-9]*")))
    named = _named(there)
    return there if named is None else len(named)


def visible(cards: list[Gpu]) -> list[Gpu]:
    """Those of all `cards` that CUDA_VISIBLE_DEVICES names; all of them where it does so by UUID."""
    named = _named(len(cards))
    if named is None or not all(name.isdigit() for name in named):
        return cards
    return [cards[int(name)] for name in named]


def _named(there: int) -> list[str] | None:
    """The names in CUDA_VISIBLE_DEVICES up to the first that is none of `there` cards, as CUDA reads it; None without it."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return None

    def is_there(name: str) -> bool:
        return int(name) < there if name.isdigit() else name.startswith(("GPU-", "MIG-"))

    return list(takewhile(is_there, map(str.strip, names.split(","))))


def _read(line: str) -> Gpu:
    name, capability, total, free, driver = (field.strip() for field in line.rsplit(",", len(FIELDS) - 1))
    mebibyte = 2**20 / 1e9
    return Gpu(name, _version(capability), float(total) * mebibyte, float(free) * mebibyte, driver)


def _version(text: str) -> Version | None:
    found = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)*", text)
    return (int(found[1]), int(found[2])) if found else None


def newest_cuda() -> Version | None:
    """The newest CUDA that the driver runs (cuDriverGetVersion); None without NVIDIA's driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10


def torchs_cuda() -> Version | None:
    """The CUDA that the installed torch was built with; None for a build without it, or no torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b.*?=\s*'([\d.]+)'", text, re.MULTILINE)
    return _version(found[1]) if found else None
