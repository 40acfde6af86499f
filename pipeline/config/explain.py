"""One line for a mistake in the configuration, naming the nearest key or option that exists."""

import dataclasses
import difflib
import re
import typing
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
    return f"; known: {', '.join(sorted(known))}" if known else ""


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
    hint = f"; did you mean {' or '.join(nested)}?" if nested else nearest(path.split(".")[-1], known)
    return f"unknown configuration key '{path}'{hint}"


def explain(error: Exception, schema: type, groups: list[str]) -> str:
    """One line out of Hydra's or OmegaConf's message.

    Args:
        schema: what was composed.
        groups: the folders of conf/ that options are chosen from for it.
    """
    text = str(error)
    chain: BaseException | None = error
    while chain is not None:  # the cause often says more than its wrapper
        text += "\n" + str(chain.__cause__ or chain.__context__ or "")
        chain = chain.__cause__ or chain.__context__
    missing = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if missing:
        group, option = missing.groups()
        known = [p.stem for p in (CONF / group).glob("*.yaml")]
        return f"{group}={option}: no such option{nearest(option, known)}"
    override = re.search(r"Could not override '([^']+)'", text)
    unknown = re.search(r"Key '([^']+)' (?:is )?not in", text)
    if unknown:
        full = re.search(r"full_key: (\S+)", text)
        path = full.group(1) if full else override.group(1) if override else unknown.group(1)
        known = _known_keys(path, schema) + (groups if "." not in path else [])
        return unknown_key(path, known, schema)
    group = re.search(r"Could not override '([^']+)'.*No match in the defaults list", text, re.S)
    if group and group.group(1) not in groups:
        hint = "; recipes are for `python -m pipeline donors`" if group.group(1) == "recipe" else ""
        return f"'{group.group(1)}' cannot be chosen here{hint}; known: {', '.join(groups)}"
    if group:
        return f"'{group.group(1)}' is not in the defaults list; write '{group.group(1)}' as group=option"
    option = re.search(r"You must specify '([^']+)'", text)
    if option:
        known = sorted(path.stem for path in (CONF / option.group(1)).glob("*.yaml"))
        return f"{option.group(1)}: an option is required; set it to one of {', '.join(known)}"
    several = re.search(r"Ambiguous value for argument '(.*)'", text)
    if several:
        return f"{several.group(1)}: expected one value; write a list in brackets, and text with a comma in quotes"
    required = re.search(r"missing mandatory value: (\S+)", text)
    if required:
        where = re.search(r"full_key: (\S+)", text)
        return f"{where.group(1) if where else required.group(1)}: a value is required; set it"
    if (
        "LexerNoViableAltException" in text
        or "mismatched input" in text
        or "OverrideParse" in type(error).__name__
    ):
        return f"override not understood (expected key=value): {' '.join(str(error).split())}"
    value = re.search(
        r"(Value '.*?' .*|In(?:valid|compatible) (?:value|type|key) .*|Cannot convert .*|Interpolation .*)",
        text,
    )
    full = re.search(r"full_key: (\S+)", text)
    if value:
        return f"{full.group(1) if full else 'configuration'}: {value.group(1).strip()}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2])
