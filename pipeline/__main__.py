"""The command line: `python -m pipeline [verb] key=value …`, in Hydra's override syntax.

    python -m pipeline experiment=micro                          run everything
    python -m pipeline experiment=micro stages=[extract,render]  run a part
    python -m pipeline plan experiment=paper                     print the cells, run nothing
    python -m pipeline doctor experiment=paper                   check this machine before a long run
    python -m pipeline config experiment=micro                   print the composed configuration
    python -m pipeline prompt experiment=micro task=gsm8k condition=vector_think document=3
                                                                 print what the model is asked; starts nothing
    python -m pipeline ask experiment=micro 'prompt=Hugo has 29 balls. …' alpha=[-1,0,1]
                                                                 ask a question, a document, or --chat: pipeline/commands/ask.py
    python -m pipeline playground experiment=micro               the same on a local page: pipeline/commands/playground.py
    python -m pipeline apply experiment=micro alpha=0.5 out=steered
                                                                 write a steered checkpoint, push it: pipeline/commands/apply.py
    python -m pipeline export experiment=micro format=mergekit alpha=0.5
                                                                 a vector, a recipe of mergekit, samples as lm-eval's: pipeline/commands/export.py
    python -m pipeline donors recipe=micro seed=1                train donors: pipeline/donors/command.py
    python -m pipeline dashboard experiment=micro dry_run=true   make the W&B workspace: pipeline/tracking/dashboard.py
    python -m pipeline bundle experiment=paper out=bundle        gather what a machine without a network needs
    source <(python -m pipeline completion)                      complete words in bash
    python -m pipeline compare results/runs/a.json results/runs/b.json [out=FOLDER]
                                                                 set two runs side by side

Kept light: vLLM's processes import it again.
"""

import importlib
import os
import select
import signal
import sys

from pipeline import bundle, interrupt
from pipeline.commands import flags
from pipeline.errors import UserError

SHOWN = {
    "prompt": "pipeline.commands.prompt",
    "ask": "pipeline.commands.ask",
    "playground": "pipeline.commands.playground",
    "apply": "pipeline.commands.apply",
    "export": "pipeline.commands.export",
    "dashboard": "pipeline.tracking.dashboard",
    "bundle": "pipeline.commands.bundle",
}  # have options of their own
VERBS = ("run", "plan", "config", "doctor", "donors", "compare", "completion", *SHOWN)


def main(arguments: list[str]) -> int:
    """Run one command and return the exit status: 0, 1 for a machine that fails `doctor`, 2 for a user's mistake, 130, 141 or 143 when interrupted."""
    verb = "run"
    try:
        if any(a in ("-h", "--help", "help") for a in arguments):
            from pipeline.commands import help as helps

            print(helps.text(str(__doc__).partition("Kept light")[0]))
            return 0
        arguments = flags.plain(arguments)
        if arguments and "=" not in arguments[0]:
            verb = arguments.pop(0)
        if verb not in (*VERBS, "info"):  # --info
            raise UserError(f"unknown command '{verb}'; expected one of {', '.join(VERBS)}, or key=value")
        status = _run(verb, arguments)
        sys.stdout.flush()
        return status
    except UserError as e:
        print(f"error: {'; '.join(str(e).splitlines())}", file=sys.stderr)
        return 2
    except OSError as e:
        if isinstance(e, BrokenPipeError) and _nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 128 + signal.SIGPIPE
        print(f"error: {e}; check the folder, its permissions and the disk's free space", file=sys.stderr)
        return 2
    except ModuleNotFoundError as e:
        if (e.name or "").split(".")[0] in ("pipeline", "evals"):
            raise
        print(
            f"error: {sys.executable} has no package '{e.name}'; run `make setup`, then .venv/bin/python -m pipeline …",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        kept = "cells are kept; the same command goes on from there"
        if verb == "donors":
            kept = "stages are kept; the same command goes on from the last checkpoint"
        text = "" if verb in ("ask", "playground") else f": finished {kept}"
        print(f"interrupted{text}", file=sys.stderr)
        return interrupt.status()


def _nobody_reads() -> bool:
    """Whether the pipe that takes our output has been closed, as by `head`: its reader has seen enough."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(verb: str, overrides: list[str]) -> int:
    def report(line: str) -> None:
        print(line, flush=True)

    if verb == "completion":
        from pipeline.commands import help as helps

        print(helps.completion(VERBS))
        return 0
    if verb == "info":
        from pipeline.commands import info

        info.show(overrides)
        return 0
    if verb == "donors":
        from pipeline.donors import command

        command.run(overrides, report)
        return 0
    if verb == "compare":  # of what has been run: nothing is composed
        from pipeline.commands import compare

        print(compare.show(overrides))
        return 0
    from pipeline.config.compose import compose

    if verb in SHOWN:
        shown = importlib.import_module(SHOWN[verb])
        chosen = [a for a in overrides if "=" in a and a.split("=")[0] in shown.OPTIONS]
        config = compose([a for a in overrides if a not in chosen])
        print(shown.show(config, dict(a.split("=", 1) for a in chosen)))
        return 0
    config = compose(overrides)
    if verb == "config":
        from pipeline.config.compose import as_yaml

        print(as_yaml(config))
        return 0
    if verb == "doctor":
        from pipeline.commands import doctor

        return doctor.check(config, print)
    from pipeline import stages

    if verb == "plan":
        report(stages.describe(config, report))
    else:
        stages.run(config, report)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if sys.argv[1:2] != ["donors"]:  # its progress is told by step
        os.environ.setdefault("TQDM_DISABLE", "1")  # progress is told by cell; downloads keep their bars
    bundle.use()
    interrupt.install()
    sys.exit(main(sys.argv[1:]))
