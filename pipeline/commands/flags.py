"""Hydra's own flags, as its users type them, in the words of this command line; and --chat of `ask`.

plain(["--cfg", "job", "experiment=micro"])   # ["config", "experiment=micro"]
plain(["--config-dir", "mine", "suite=own"])  # ["hydra.searchpath=[mine]", "suite=own"]
"""

from pipeline.errors import UserError

TAKEN = "--help, --cfg job, --info [defaults-tree], --config-dir FOLDER"
MULTIRUN = (
    "-m: one run evaluates a whole grid on one engine; write lists instead, such as 'alpha=[0.5,1]', 'tasks=[gsm8k,sciq]'"
    " or 'conditions=[baseline,vector]'"
)
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # what Hydra tells of


def plain(arguments: list[str]) -> list[str]:
    """The arguments with every flag in the form of a verb or an override.

    Raises:
        UserError: for -m, and for a flag that is not taken.
    """
    verbs: list[str] = []
    rest: list[str] = []
    pending = list(arguments)
    while pending:
        flag, equals, value = pending.pop(0).partition("=")
        if not flag.startswith("-"):
            rest.append(flag + equals + value)
        elif flag in ("-m", "--multirun"):
            raise UserError(MULTIRUN)
        elif flag in ("-c", "--cfg"):
            value = value or _next(pending)
            if value != "job":
                given = f"{flag} {value}".strip()
                raise UserError(f"{given}: expected 'job', which prints the composed configuration")
            verbs = ["config"]
        elif flag in ("-i", "--info"):
            what = value or (pending.pop(0) if pending and pending[0] in INFO else "")
            verbs = ["info", what] if what else ["doctor"]
        elif flag in ("-cd", "--config-dir"):
            rest.append(f"hydra.searchpath=[{value or _next(pending)}]")
        elif flag == "--chat":  # of ask
            rest.append("chat=true")
        else:
            raise UserError(
                f"{flag}: no such flag; of Hydra's there are {TAKEN}; everything else is key=value"
            )
    if verbs and rest and "=" not in rest[0]:  # plan --cfg job: the flag says what is done
        rest = rest[1:]
    return verbs + rest


def _next(pending: list[str]) -> str:
    return pending.pop(0) if pending else ""
