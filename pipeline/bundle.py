"""A bundle: the wheels, checkpoints and data sets of a run, for a machine without a network.

    python -m pipeline.bundle FOLDER      open it here: `make setup BUNDLE=FOLDER` does, before anything is installed
    use()                                 a run reads the hub's cache of the bundle that is open here

    wheels/            every package of a lock
    hub/               a cache of the hub's own client
    hub.lock.json      the commits that `main` stood for (pipeline/plan/revisions.py)
    SHA256SUMS         of all of these, as `sha256sum -c` reads it

In parts (`bundle.tar.000`, …) the folder holds one tar of this, cut in pieces, and SHA256SUMS is of the pieces. `.bundle`
in the project is a link to the folder, or what the parts held. `rm -r .bundle` ends its use. Needs the standard
library alone.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import ROOT, parse_json, read_bytes, sha256_of_file, write_file

OPENED = ROOT / ".bundle"
SUMS, LOCK, WHEELS, HUB = "SHA256SUMS", "hub.lock.json", "wheels", "hub"
PART = "bundle.tar."  # followed by a number of three digits


def seal(folder: Path) -> int:
    """Write SHA256SUMS of every file under `folder`, and return how many there are."""
    sums = sums_of(folder)
    text = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    write_file(folder / SUMS, text.encode())
    return len(sums)


def sums_of(folder: Path) -> dict[str, str]:
    """sha256 of every file under `folder` by its path there; a file that links name too is read once."""
    known: dict[Path, str] = {}
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / SUMS:
            real = path.resolve()
            known[real] = known.get(real) or sha256_of_file(real)
            found[path.relative_to(folder).as_posix()] = known[real]
    return found


def cut(folder: Path, part_bytes: int) -> int:
    """Put what `folder` holds into parts of at most `part_bytes` in its place, and return how many there are."""
    names = sorted(path.name for path in folder.iterdir())
    split = ["split", f"--bytes={part_bytes}", "--numeric-suffixes", "--suffix-length=3", "-", PART]
    if not _piped(["tar", "--create", *names], split, folder):
        raise UserError(f"{folder}: the parts could not be written; free space, and run again")
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return seal(folder)


def check(folder: Path) -> None:
    """Compare every file with SHA256SUMS.

    Raises:
        UserError: naming the files that are missing or differ.
    """
    if not (folder / SUMS).is_file():
        raise UserError(f"BUNDLE={folder}: no {SUMS} in it; name a folder that `make bundle` wrote")
    listed = dict(_listed(read_bytes(folder / SUMS).decode("utf-8", "replace"), folder))
    missing = [name for name in listed if not (folder / name).is_file()]
    if missing:
        raise UserError(f"BUNDLE={folder}: missing {_some(missing)}, of {len(listed)} files; copy them too")
    found = sums_of(folder)
    differ = [name for name, digest in listed.items() if found.get(name) != digest]
    if differ:
        raise UserError(f"BUNDLE={folder}: not as they were written: {_some(differ)}; copy them again")


def _listed(text: str, folder: Path) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        digest, gap, name = line.partition("  ")
        if not gap or len(digest) != 64 or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{folder / SUMS}: '{line[:80]}' is no line of it; copy it again")
        yield name, digest


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def open_here(folder: Path) -> None:
    """Check a bundle and make it the one that this project installs from and reads.

    Raises:
        UserError: if it is not whole; what was open here stays.
    """
    folder = folder.resolve()
    check(folder)
    if any(folder.glob(f"{PART}*")):
        unpacked = OPENED.with_name(".bundle.tmp")
        shutil.rmtree(unpacked, ignore_errors=True)
        try:
            _unpack(folder, unpacked)
            check(unpacked)
            _remove(OPENED)
            unpacked.rename(OPENED)
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
    elif OPENED.resolve() != folder:
        _remove(OPENED)
        OPENED.symlink_to(folder)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def _unpack(folder: Path, out: Path) -> None:
    out.mkdir()
    parts = [str(path) for path in sorted(folder.glob(f"{PART}*"))]
    if not _piped(["cat", *parts], ["tar", "--extract"], out):
        raise UserError(
            f"BUNDLE={folder}: its parts could not be unpacked into {out}; free space, and run again"
        )


def use() -> None:
    """Have this process, and those that it starts, read the hub's cache of the bundle that is open here, if one is.

    A cache that the environment names goes before it.
    """
    if not (OPENED / HUB).is_dir() or os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME"):
        return
    os.environ["HF_HUB_CACHE"] = str((OPENED / HUB).resolve())
    os.environ["HF_HUB_OFFLINE"] = "1"


def pins() -> dict[str, str]:
    """The commits that the bundle open here holds of what is asked without a revision; empty without a bundle in use."""
    if os.environ.get("HF_HUB_CACHE") != str((OPENED / HUB).resolve()) or not (OPENED / LOCK).is_file():
        return {}
    found: dict[str, str] = parse_json(read_bytes(OPENED / LOCK))
    return found


def _piped(first: list[str], second: list[str], folder: Path) -> bool:
    """Run `first | second` in `folder`; whether both succeeded."""
    with subprocess.Popen(first, cwd=folder, stdout=subprocess.PIPE) as one:
        two = subprocess.run(second, cwd=folder, stdin=one.stdout)
    return one.returncode == 0 and two.returncode == 0


if __name__ == "__main__":
    try:
        open_here(Path(sys.argv[1]))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
