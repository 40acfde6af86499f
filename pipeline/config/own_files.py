"""Files of configuration that a user brings by hydra.searchpath: found, readable, and of a bounded size.

A few lines of YAML can stand for more than a memory holds (an alias of aliases), or for themselves. They are measured as
they are written, before anything expands them.
"""

import re
from pathlib import Path

import yaml

from pipeline.config.explain import CONF
from pipeline.errors import UserError

MOST_VALUES = 100_000  # of one file, with every alias written out
DEEPEST = 100  # levels


def check_own_files(overrides: list[str]) -> None:
    """Refuse a folder that is not there, and files that stand for too much.

    Raises:
        UserError: for the first of them. What is not YAML at all is named by `unreadable`, if it is chosen.
    """
    if added := next((o for o in overrides if re.match(r"[+~]+hydra\.searchpath", o)), None):
        raise UserError(
            f"{added}: write hydra.searchpath=[FOLDER], without '{added[0]}'; it adds to the folders that are read"
        )
    for folder in folders(overrides)[1:]:
        if not folder.is_dir():
            raise UserError(f"hydra.searchpath: no folder {folder}; make it, or leave it out")
        for path in sorted(folder.rglob("*.yaml")):
            if path.is_dir():
                continue
            if path.exists() and not path.is_file():
                raise UserError(f"{path}: expected a file, found a pipe or device; remove it")
            try:
                root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
            except (yaml.YAMLError, UnicodeDecodeError, OSError):
                continue
            except RecursionError:
                raise UserError(f"{path}: nested too deep; flatten it") from None
            if root is not None:
                _check(path, root)


def _check(path: Path, root: yaml.Node) -> None:
    """Count the values of a file with its aliases written out; each node is looked at once."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, above: tuple[int, ...]) -> int:
        if id(node) in above:
            raise UserError(f"{path}: an alias stands for what it is in; write it out")
        if len(above) >= DEEPEST:
            raise UserError(f"{path}: nested more than {DEEPEST} levels deep; flatten it")
        if id(node) not in sizes:
            inside: list[yaml.Node] = []
            if isinstance(node, yaml.SequenceNode):
                inside = node.value
            elif isinstance(node, yaml.MappingNode):
                inside = [part for pair in node.value for part in pair]
            sizes[id(node)] = 1 + sum(size(part, (*above, id(node))) for part in inside)
        return sizes[id(node)]

    if (found := size(root, ())) > MOST_VALUES:
        raise UserError(f"{path}: its aliases stand for {found:,} values; expected at most {MOST_VALUES:,}")


def unreadable(error: Exception, overrides: list[str]) -> str:
    """The file of configuration that `error` is about, or the first that is not YAML where it names none."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        named = str(error.problem_mark.name)
        if Path(named).is_file():
            return named
    for path in sorted(
        path for folder in folders(overrides) for path in folder.rglob("*.yaml") if path.is_file()
    ):
        try:
            yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError):
            return str(path)
    return "an override"


def folders(overrides: list[str]) -> list[Path]:
    """The folders that configuration is read from: conf/, then those of hydra.searchpath."""
    added = ",".join(re.findall(r"hydra\.searchpath=\[([^\]]*)\]", " ".join(overrides))).split(",")
    named = [folder.strip().strip("'\"") for folder in added]
    return [CONF, *(Path(f.removeprefix("file://")) for f in named if f and not f.startswith("pkg://"))]
