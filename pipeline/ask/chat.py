"""A conversation with several rows at once: each goes on from its own answers.

    chat(model, Decoding(), width=110)

One line is one turn; /new forgets the conversation, /quit or the end of the input ends it.
"""

import contextlib
import sys

from pipeline.ask.columns import side_by_side
from pipeline.ask.session import Answer, Decoding, Session
from pipeline.errors import UserError

HELP = "a line is a turn; /new begins again, /quit ends"


def chat(model: Session, decoding: Decoding, width: int) -> None:
    """Read turns from the input and print the answers, until it ends."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives `input` a history and its keys
    is_typed = sys.stdin.isatty()
    if is_typed:
        print(HELP)
    histories: dict[str, list[dict[str, str]]] = {name: [] for name in model.rows}
    while True:
        try:
            line = input("\n> " if is_typed else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line == "/new":
            histories = {name: [] for name in model.rows}
        elif line:
            try:
                print(side_by_side(_turn(model, histories, line, decoding), width), flush=True)
            except UserError as e:  # such as a conversation that no longer fits: it can go on or begin again
                print(f"error: {e}", file=sys.stderr, flush=True)


def _turn(
    model: Session, histories: dict[str, list[dict[str, str]]], line: str, decoding: Decoding
) -> list[Answer]:
    """The answers of all rows; no history changes unless every row has answered."""
    turn = {"role": "user", "content": line}
    found = {
        name: model.ask_row(row, [*histories[name], turn], decoding)[0] for name, row in model.rows.items()
    }
    for name, answer in found.items():
        histories[name] += [turn, {"role": "assistant", "content": answer.text}]
    return list(found.values())
