"""The command line of training: `python -m pipeline.donors recipe=FILE out=FOLDER [reuse=FOLDER] [key=value …]`."""

import re
import sys
from pathlib import Path

from safetensors import SafetensorError

from pipeline import interrupt
from pipeline.donors.recipe import load_recipe
from pipeline.donors.train import make_donors
from pipeline.errors import UserError


def main(arguments: list[str]) -> int:
    """`recipe=FILE out=FOLDER [reuse=FOLDER] [key=value …]`; returns the exit status of a command."""
    options = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
    recipe, out, reuse = options.pop("recipe", ""), options.pop("out", ""), options.pop("reuse", None)
    if not recipe or not out or reuse == "" or not all("=" in argument for argument in arguments):
        print(
            "error: expected recipe=FILE out=FOLDER [reuse=FOLDER] [key=value …], found"
            f" {' '.join(arguments) or 'nothing'}",
            file=sys.stderr,
        )
        return 2
    try:
        other = None if reuse is None else Path(reuse)
        make_donors(
            load_recipe(Path(recipe), **options), Path(out), lambda line: print(line, flush=True), other
        )
    except UserError as error:
        print(f"error: {'; '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except (  # of a full disk, by Python, safetensors and torch; of a full GPU, by torch and vLLM
        OSError,
        SafetensorError,
        RuntimeError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split())
        if re.search("out of memory|GPU memory|allocate memory", reason):
            print(
                f"error: {reason[:200]}; lower sft_microbatch, grpo_microbatch or grpo_vllm_memory, or set"
                " gradient_checkpointing=true",
                file=sys.stderr,
            )
            return 2
        if not isinstance(error, (OSError, SafetensorError)) and "inline_container" not in reason:
            raise
        print(
            f"error: {reason}; check the folder, its permissions and the disk's free space", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted: finished stages are kept; the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        return interrupt.status()
    return 0


if __name__ == "__main__":
    interrupt.install()
    sys.exit(main(sys.argv[1:]))
