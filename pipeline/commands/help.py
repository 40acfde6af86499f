"""What `python -m pipeline --help` prints: the verbs, the groups with their options, the keys that matter.

Read from conf/ and the schema as they are, so that nothing here goes out of date. Also the words for the shell's
completion:

    source <(python -m pipeline completion)      # bash; then `python -m pipeline exp<TAB>`
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from pipeline.commands.flags import TAKEN
from pipeline.config.explain import CONF
from pipeline.config.schema import Config

KEYS = {
    "families=[1.5b]": "which families, by name or published size",
    "tasks=[gsm8k,sciq]": "which benchmarks",
    "conditions=[baseline,vector]": "which rows (conditions=parts is another set of them)",
    "alpha=[-1,0,1]": "the values of the sweep",
    "limit=100": "the first documents of every benchmark",
    "families.NAME.target.id=…": "another model: a hub id or a folder; likewise sft, grpo, base",
    "data.folder=…": "documents of your own, or without a network",
    "results=… tables=…": "where results and tables go",
    "hydra.searchpath=[FOLDER]": "configuration of your own, in a folder laid out like conf/",
}
COMPLETION = """_reasoning_vectors() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}"
  [[ $COMP_CWORD -gt 1 && "${{COMP_WORDS[COMP_CWORD-1]}}" == = ]] && word="${{COMP_WORDS[COMP_CWORD-2]}}=$word"
  COMPREPLY=($(compgen -W "{words}" -- "$word"))
  [[ "$word" == *=* ]] && COMPREPLY=("${{COMPREPLY[@]#*=}}")
}}
complete -o nospace -F _reasoning_vectors python python3 .venv/bin/python"""


def text(commands: str) -> str:
    """The help; `commands` says what each verb does."""
    lines = [commands.strip(), "", "Groups, of which one option each is chosen (group=option):", ""]
    lines += [f"  {group:<11} {', '.join(options)}" for group, options in groups()]
    lines += ["", "Keys that matter (all of them: python -m pipeline config):", ""]
    lines += [f"  {key:<29} {what}" for key, what in KEYS.items()]
    lines += ["", f"Of Hydra's flags: {TAKEN}"]
    return "\n".join(lines)


def groups(conf: Path = CONF) -> Iterator[tuple[str, list[str]]]:
    """The groups of the configuration with their options."""
    for folder in sorted(path for path in conf.iterdir() if path.is_dir()):
        yield folder.name, sorted(path.stem for path in folder.glob("*.yaml"))


def completion(verbs: tuple[str, ...]) -> str:
    """A script for bash that completes verbs, groups with their options, and top-level keys."""
    words = [*verbs, *(f"{group}={option}" for group, options in groups() for option in options)]
    words += [f"{field.name}=" for field in dataclasses.fields(Config)]
    return COMPLETION.format(words=" ".join(dict.fromkeys(words)))
