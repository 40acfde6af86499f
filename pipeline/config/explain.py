"""One line for a mistake in the configuration, naming the nearest key or option that exists."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.files import ROOT

CONF = ROOT / "conf"
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
RENAMED = {  # keys of earlier versions, and what is written now
    "sizes": "families=[…]",
    "sweep": "conditions.alpha.prompt=… or conditions.alpha.benchmarks=[…]",
    "weights": "start (target, base, sft or grpo), alpha, and seeds for random vectors",
    "variant": "part",
    "plus": "terms: [{alpha: 1.0}, {alpha: 1.0, family: other}]",
}


def nearest(name: str, known: list[str]) -> str:
    """The end of an error message: the known name that `name` was meant to be, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(sorted(set(known)))}" if known else ""


def unknown_key(path: str, known: list[str], schema: type = Config) -> str:
    """The message for a key that is not declared; `known` are those beside it, others lie one level down."""
    first, last = path.split(".")[0], path.split(".")[-1]
    if first in ("sizes", "sweep") or (first == "conditions" and last in RENAMED):
        renamed = RENAMED[first if first in RENAMED else last]
        return f"'{path}' is of an earlier version; write {renamed}"
    parts = {
        part: cls for part, cls in typing.get_type_hints(schema).items() if dataclasses.is_dataclass(cls)
    }
    nested = [f"'{part}.{path}'" for part, cls in parts.items() if path in typing.get_type_hints(cls)]
    hint = f"; did you mean {' or '.join(nested)}?" if nested else nearest(last, known)
    return f"unknown configuration key '{path}'{hint}"


@dataclasses.dataclass(frozen=True)
class Mistake:
    """What was composed when Hydra or OmegaConf raised."""

    text: str  # all of their messages
    schema: type
    groups: Sequence[str]  # the folders of conf/ that options are chosen from here
    folders: Sequence[Path]  # that configuration is read from: conf/, and the user's own
    overrides: Sequence[str]

    @property
    def key(self) -> str:
        """The key that the messages name, from the top; empty where they name none."""
        full = re.search(r"full_key: ?(\S+)", self.text)
        override = re.search(r"Could not override '([^']+)'", self.text)
        return full[1] if full else override[1] if override else ""

    def options(self, group: str) -> list[str]:
        """The options of a group, those in the user's own folders among them."""
        return sorted({path.stem for folder in self.folders for path in (folder / group).glob("*.yaml")})

    def override(self, pattern: str) -> str:
        """The first override that matches; empty where none does."""
        return next((override for override in self.overrides if re.search(pattern, override)), "")


def explain(error: Exception, mistake: Mistake) -> str:
    """One line: what the first rule below that fits makes of `error`, or else its own first two lines."""
    for pattern, say in RULES:
        found = re.search(pattern, mistake.text, re.DOTALL)
        if found is not None:
            return " ".join(say(found, mistake).split())  # what it quotes may have line ends
    if "OverrideParse" in type(error).__name__:
        return _not_understood(error)
    lines = [line.strip() for line in mistake.text.splitlines() if line.strip()]
    return " ".join(lines[:2])


def all_messages(error: BaseException) -> str:
    """Its message and those of its causes, which often say more."""
    chain: BaseException | None = error
    seen: list[BaseException] = []
    while chain is not None and not any(chain is earlier for earlier in seen):
        seen.append(chain)
        chain = chain.__cause__ or chain.__context__  # OmegaConf's can be its own cause, under a debugger
    return "\n".join(map(str, seen))


def _not_understood(error: Exception) -> str:
    own = " ".join(str(error).split()).partition(" See https://")[0]
    override = str(getattr(error, "override", ""))
    shown = override if override.isprintable() else ascii(override)[1:-1]
    which = "" if override in own else f"'{shown:.100}': "  # Hydra does not always name it
    return f"override not understood (expected key=value): {which}{own}"


# ---- what is said instead of what Hydra and OmegaConf say ----


def _option_required(group: str, m: Mistake) -> str:
    return f"{group}: an option is required; set it to one of {', '.join(m.options(group))}"


def _no_option(found: re.Match[str], m: Mistake) -> str:
    group, option = found.groups()
    if not option:
        return _option_required(group, m)
    rows = f"; rows are chosen in brackets: conditions=[{option}]" if group == "conditions" else ""
    return f"{group}={option}: no such option{nearest(option, m.options(group))}{rows}"


def _null_option(_: re.Match[str], m: Mistake) -> str:
    of_a_group = rf"^\+?({'|'.join(m.groups)})(@[^=]*)?=(null|None)$"
    return _option_required(m.override(of_a_group).lstrip("+").partition("=")[0].partition("@")[0], m)


def _unknown(found: re.Match[str], m: Mistake) -> str:
    path = m.key or found[1]
    first, _, rest = path.partition(".")
    known = _known_keys(path, m.schema)
    inside = [cls for cls in _schemas(m.schema) if cls.__name__ == found[2]]
    if not rest and inside and inside[0] is not m.schema:  # in a list, where no path is told
        return unknown_key(path, [f.name for f in dataclasses.fields(inside[0])], m.schema)
    if not known and (entry := m.override(rf"^{re.escape(path)}\b")) and first in ADDABLE:
        return f"unknown configuration key '{path}'; to add an entry, write +{entry}"
    if first in m.groups and first not in _known_keys("", m.schema):
        return f"'{first}' is a group; choose one of its options: {first}={'|'.join(m.options(first))}"
    return unknown_key(path, known + ([] if rest else list(m.groups)), m.schema)


def _no_default(found: re.Match[str], m: Mistake) -> str:
    group = found[1]
    if group in m.groups:
        return f"'{group}' has no option to replace here; write +{group}@PLACE=OPTION to add one"
    hint = "; recipes are for `python -m pipeline donors`" if group == "recipe" else ""
    return f"'{group}' cannot be chosen here{hint}; known: {', '.join(m.groups)}"


def _several_places(found: re.Match[str], m: Mistake) -> str:
    group, places = found.groups()
    option = m.override(rf"^{group}=").partition("=")[2] or "OPTION"
    name = {"benchmark": "tasks", "family": "families"}.get(group)
    hint = f"; to run some of those that there are, write {name}=[…]" if name else ""
    return f"{group}: each entry has one of its own; name it: {places.split(',')[0]}={option}{hint}"


def _chosen_already(found: re.Match[str], m: Mistake) -> str:
    added = m.override(r"^\+[\w/]+=").lstrip("+")
    return f"{found[1]} is in the composition already" + (f"; write {added} without '+'" if added else "")


def _no_group(found: re.Match[str], m: Mistake) -> str:
    return f"{found[1]}: '{found[2]}' is a key, no group; write {found[2]}=… without '@'"


def _expected_list(found: re.Match[str], m: Mistake) -> str:
    key = m.key or m.override(re.escape(found[1])).partition("=")[0]
    value = m.override(rf"^\+*{re.escape(key)}=").partition("=")[2]
    example = f": {key}=[{value}]" if value and value[0] not in "{[" else ""
    return f"{key}: expected a list, found {value or found[1]}; write it in brackets{example}"


def _expected_section(found: re.Match[str], m: Mistake) -> str:
    name, value = found.groups()
    schema = next((cls for cls in _schemas(m.schema) if cls.__name__ == name), None)
    if schema is None:
        return f"{m.key or 'configuration'}: expected {KINDS.get(name, name)}, found {value.strip()}"
    keys = ", ".join(f.name for f in dataclasses.fields(schema))
    written = m.override(re.escape(value.strip()))
    file = re.search(r"In '([^']+)': ", m.text)
    where = m.key or written.partition("=")[0].lstrip("+") or (file[1] if file else "configuration")
    hint = "{key: value}"
    group = {"FamilyConfig": "family", "BenchmarkConfig": "benchmark"}.get(name)
    if group is not None and value in m.options(group):  # of conf/, which goes to a place by '@'
        hint = f"+{group}@{where}={value}"
    return f"{where}: expected keys of its own ({keys}), found {value}; write {hint}"


def _required(found: re.Match[str], m: Mistake) -> str:
    return f"{m.key or found[1]}: a value is required; set it"


def _value(found: re.Match[str], m: Mistake) -> str:
    return f"{m.key or 'configuration'}: {found[1].strip()}"


KINDS = {"float": "a number", "int": "a whole number", "str": "text", "bool": "true or false"}
ADDABLE = ("families", "benchmarks", "conditions", "prompts")
"""Dictionaries of entries, which a user adds to."""

RULES: list[tuple[str, Callable[[re.Match[str], Mistake], str]]] = [
    (r"Could not find '([^'/]+)/([^']*)'", _no_option),
    (r"Config group override must be a string or a list\. Got NoneType", _null_option),
    (r"Could not override '([^']+)'\.\s+Did you mean to override (?:one of )?([^?]+)\?", _several_places),
    (r"(\S+) appears more than once in the final defaults list", _chosen_already),
    (r"Override (\S+) looks like a config group override, but config group '([^']+)' does not", _no_group),
    (r"Key '([^']+)' (?:is )?not in '?(\w*)", _unknown),
    (r"Could not override '([^']+)'.*No match in the defaults list", _no_default),
    (r"You must specify '([^']+)'", lambda found, m: _option_required(found[1], m)),
    (
        r"Ambiguous value for argument '([^\n]*)'",
        lambda found, _: (
            f"{found[1]}: expected one value; write a list in brackets, and text with a comma in quotes"
        ),
    ),
    (
        r"hydra\.searchpath must be a list of strings\. Got: ([^\n]*)",
        lambda found, _: f"hydra.searchpath: expected a list; write hydra.searchpath=[{found[1]}]",
    ),
    (r"missing mandatory value: (\S+)", _required),
    (
        r"field '([^']+)' is not Optional",
        lambda found, _: f"{found[1]}: expected a value, found null; set one, or leave it out",
    ),
    (r"(\w+) is not a ListConfig, list or tuple", _expected_list),
    (r"Error merging override [^=\n]+=([^\n]*)\s+Cannot merge DictConfig with ListConfig", _expected_list),
    (r"is not a subclass of (\w+)\. value: ([^\n]*)", _expected_section),
    (
        r"(Value '[^\n]*?' [^\n]*|In(?:valid|compatible) (?:value|type|key) [^\n]*|Cannot convert [^\n]*|Interpolation [^\n]*)",
        _value,
    ),
]


def _known_keys(path: str, schema: type) -> list[str]:
    """Keys that the schema declares at the parent of a dotted `path`."""
    cls: Any = schema
    for part in path.split(".")[:-1]:
        hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        cls = hints.get(part, next((a for a in typing.get_args(cls) if a is not str), None))
        args = [a for a in typing.get_args(cls) if a is not type(None)]
        if typing.get_origin(cls) is not dict and args:
            cls = args[0]
    return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def _schemas(schema: Any) -> Iterator[type]:
    """The dataclasses that a schema is made of."""
    if dataclasses.is_dataclass(schema):
        yield typing.cast(type, schema)
        for hint in typing.get_type_hints(schema).values():
            yield from _schemas(hint)
    for inner in typing.get_args(schema):
        yield from _schemas(inner)
