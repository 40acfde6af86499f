"""python -m evals.micro out=FOLDER [seed=0]: write the micro benchmarks."""

import sys
from pathlib import Path

from evals.micro import write_benchmarks

options = dict(argument.split("=", 1) for argument in sys.argv[1:])
write_benchmarks(Path(options["out"]), int(options.get("seed", 0)))
