"""python -m evals.micro out=FOLDER [seed=0]: write the micro benchmarks."""

import sys
from pathlib import Path

from evals.micro import write_benchmarks
from pipeline.errors import UserError


def main(arguments: list[str]) -> int:
    options = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
    out, seed = options.pop("out", ""), options.pop("seed", "0")
    try:
        if not out or options or not seed.isdecimal():
            raise UserError(f"expected out=FOLDER [seed=0], found {' '.join(arguments) or 'nothing'}")
        write_benchmarks(Path(out), int(seed))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
