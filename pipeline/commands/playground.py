"""The playground: a page on this machine's loopback address, on which a model answers under several conditions.

    python -m pipeline playground experiment=micro
    python -m pipeline playground experiment=paper tasks=[gsm8k] conditions=[baseline,vector,grpo] port=8123

A slider chooses α; the rows of the grid stand beside it, and the documents of the experiment's benchmarks can be asked and
scored. `family` is a target of the experiment (default: the first), `condition` the rows that are offered (default: those of
the experiment but its sweep), `port` where the page is (default: 7860). Ctrl-C ends it. From another machine:
`ssh -L 7860:127.0.0.1:7860 HOST`.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace

from pipeline.ask.choice import family_of
from pipeline.ask.desk import Desk
from pipeline.ask.server import listening
from pipeline.ask.session import Session
from pipeline.config.compose import changed
from pipeline.config.options import listed, parsed
from pipeline.config.schema import Config, Role
from pipeline.errors import UserError
from pipeline.plan.grid import make_rows

OPTIONS = ("family", "condition", "port")
PORT = 7860


def show(config: Config, options: Mapping[str, str]) -> str:
    """Serve the page until it is interrupted.

    Raises:
        UserError: for an option that cannot be, a port that is taken, or a model that cannot be steered.
    """
    port = parsed("port", options.get("port", str(PORT)), int)
    if not 0 <= port < 65536:
        raise UserError(f"port={port}: expected a number from 0 (any that is free) to 65535")
    family = family_of(config, options.get("family"))
    conditions = listed(options.get("condition", "")) or _offered(config, family)
    has_vector = {"sft", "grpo"} <= config.families[family].sources().keys()
    alpha = [0.0, 1.0] if has_vector else [0.0]  # so that the vector is there for the slider
    desk = Desk()
    with (
        Session(config, family=family, alpha=alpha, conditions=conditions, report=_tell) as model,
        listening(model, desk, port) as address,
    ):
        model.start()
        try:
            print(f"the playground is at {address} (Ctrl-C ends it)", flush=True)
            desk.work()
        except KeyboardInterrupt:  # its usual end
            return "\nthe playground has ended"
    raise AssertionError("the desk works until it is interrupted")


def _offered(config: Config, family: str) -> list[str]:
    """The rows that a family can have, without the sweep: the slider has its place."""
    grid = make_rows(changed(config, chosen=replace(config.chosen, families=[family])))
    return [row.condition.name for row in grid.rows if row.condition.role not in (Role.sweep, Role.again)]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
