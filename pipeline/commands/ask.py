"""Ask a model a question under several conditions, and print the answers side by side.

    python -m pipeline ask experiment=micro 'prompt=Hugo has 29 balls. …' alpha=[-1,0,1]
    python -m pipeline ask experiment=micro 'prompt=…' condition=[baseline,vector_think] temperature=0.7 samples=3
    python -m pipeline ask experiment=micro 'prompt=…' 'terms=[{alpha: 0.5, part: {modules: [mlp]}}, {alpha: 1, seed: 3}]'
    python -m pipeline ask experiment=micro task=gsm8k document=3 alpha=[0,1]       a benchmark's document, with its score
    python -m pipeline ask experiment=micro alpha=[0,1] --chat                      a conversation

`alpha` are strengths of the family's vector, `condition` rows of the grid by name (likewise `conditions=[…]`), `terms` one
sum; together they are all asked. With none of them: α = 0 and α = 1. `family` is a target of the experiment (default: the
first). Answers are greedy, or sampled at `temperature`, `top_p` and `seed`, `samples` of them; `max_tokens` is the most of an
answer. `document` is the `doc_id` of samples.jsonl (default: 0), asked as an evaluation asks it.
"""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from pipeline.ask.chat import chat
from pipeline.ask.columns import plain, side_by_side
from pipeline.ask.session import Decoding, Session
from pipeline.config.compose import changed
from pipeline.config.explain import nearest
from pipeline.config.options import flag, listed, parsed
from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.plan.grid import columns

ROWS = ("family", "alpha", "condition", "terms")
DECODING = {"temperature": float, "top_p": float, "max_tokens": int, "seed": int, "samples": int}
OPTIONS = ("prompt", "task", "document", "chat", *ROWS, *DECODING)
WIDTH = 110  # where the output is no terminal


def show(config: Config, options: Mapping[str, str]) -> str:
    """Ask what `options` (see above) say; the answers as text to print.

    Raises:
        UserError: for an option that cannot be, before an engine starts.
    """
    wide, wants_chat = shutil.get_terminal_size((WIDTH, 0)).columns, flag(options, "chat")
    asked = [
        name for name in ("prompt", "task", "chat") if name in options and (name != "chat" or wants_chat)
    ]
    if len(asked) != 1:
        raise UserError(
            f"ask: expected one of prompt=…, task=… and --chat, found {', '.join(asked) or 'none'}"
        )
    if asked == ["prompt"] and not options["prompt"].strip():
        raise UserError("prompt: expected a text, found none; write 'prompt=…' in quotes")
    if "document" in options and asked != ["task"]:
        raise UserError("document: a document is one of a benchmark; add task=NAME")
    decoding, number = decoding_of(options), parsed("document", options.get("document", "0"), int)
    if wants_chat and decoding.samples > 1:
        raise UserError(f"samples={decoding.samples}: a conversation goes on from one answer; leave it out")
    chosen = _with_task(config, options["task"]) if asked == ["task"] else changed(config, tasks=())
    with Session(chosen, **rows_of(config, options), report=_tell) as model:
        if wants_chat:
            try:
                chat(model, decoding, wide)
            except KeyboardInterrupt:  # the usual end of a conversation
                print()
            return ""
        if asked == ["prompt"]:
            return side_by_side(model.ask(options["prompt"], decoding), wide)
        answers = model.ask_document(
            options["task"], number, decoding if DECODING.keys() & options.keys() else None
        )
        question, target = model.document(options["task"], number)
    head = f"{options['task']} · document {number}"
    return "\n".join(
        [head, "", plain(question), "", f"expected: {plain(target)}", "", side_by_side(answers, wide)]
    )


def rows_of(config: Config, options: Mapping[str, str]) -> dict[str, Any]:
    """Which rows the options ask, as a `Session` takes them.

    Raises:
        UserError: for an option that cannot be read.
    """
    alpha = [parsed("alpha", text, float) for text in listed(options.get("alpha", ""))]
    conditions = [*listed(options.get("condition", "")), *(config.chosen.conditions or ())]
    terms = _terms(options["terms"]) if "terms" in options else []
    return {"family": options.get("family"), "alpha": alpha, "conditions": conditions, "terms": terms}


def decoding_of(options: Mapping[str, str]) -> Decoding:
    """How answers are generated.

    Raises:
        UserError: for a number that cannot be.
    """
    given = {name: parsed(name, options[name], kind) for name, kind in DECODING.items() if name in options}
    decoding = Decoding(**given)
    decoding.check()
    return decoding


def _with_task(config: Config, task: str) -> Config:
    """The configuration with the one benchmark that a task, which may be a variant, belongs to."""
    every = {column.name: column.origin for column in columns(changed(config, tasks=None))}
    if task not in every:
        raise UserError(f"task={task}: no such task{nearest(task, list(every))}")
    origin = every[task]
    benchmark = replace(config.benchmarks[origin], limit=None)
    return changed(config, tasks=(origin,), benchmarks=config.benchmarks | {origin: benchmark})


def _terms(text: str) -> list[dict[str, Any]]:
    try:
        value = OverridesParser.create().parse_override(f"terms={text}").value()
    except HydraException:
        value = None
    if not isinstance(value, list) or not value or not all(isinstance(term, dict) for term in value):
        raise UserError(f"terms={text:.80}: expected a list such as [{{alpha: 0.5}}, {{alpha: 1, seed: 3}}]")
    return value


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
