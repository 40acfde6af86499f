"""Perturbations of HumanEval-like documents {task_id, prompt, entry_point, canonical_solution, test}.

``prompt + canonical_solution + test + check(entry_point)`` is the program that must still pass. The kinds follow
ReCode (arXiv:2212.10264: function names, docstrings, syntax). Nothing is executed here; the tests do that.
"""

import ast
import io
import random
import re
import tokenize
from dataclasses import dataclass

from evals.perturbations.common import Context, Document, mistype_text, perturbation

NAMES = ("run_task", "compute_result", "process_input", "task_function", "get_answer", "work_out")


@dataclass
class Program:
    """The prompt and canonical solution as one program, with the entry function and its docstring located in it."""

    text: str
    function: ast.FunctionDef
    tokens: list[tokenize.TokenInfo]
    line_starts: list[int]
    docstring: tuple[int, int]

    def offset(self, position: tuple[int, int]) -> int:
        """The index in ``text`` of a token's (line, column)."""
        return self.line_starts[position[0] - 1] + position[1]

    def arguments(self) -> list[str]:
        return [argument.arg for argument in self.function.args.args]


def parse(document: Document) -> Program | None:
    """Locate the entry function and its docstring (its first lone string), or None if there is no such thing."""
    text = document["prompt"] + document["canonical_solution"]
    try:
        tree = ast.parse(text)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, tokenize.TokenError):
        return None
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == document["entry_point"]]
    if not functions:
        return None
    strings = [n for n in functions[-1].body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    program = Program(text, functions[-1], tokens, starts, (0, 0))
    for token in tokens:
        if strings and token.type == tokenize.STRING and token.start[0] == strings[0].lineno:
            program.docstring = (program.offset(token.start), program.offset(token.end))
            return program if program.docstring[1] <= len(document["prompt"]) else None
    return None


def apply(text: str, edits: list[tuple[int, int, str]], start: int = 0) -> str:
    """The text with each (start, end, new) replaced; positions count from ``start``."""
    for begin, end, new in sorted(edits, reverse=True):
        text = text[: begin - start] + new + text[end - start :]
    return text


# Renamed ------------------------------------------------------------------------------------------------------------


def new_arguments(program: Program, taken: set[str]) -> dict[str, str]:
    """A new name for each argument: another letter for a letter, ``input_x`` for an English word, else ``argN``.

    Not renamed: arguments that the body also uses as a keyword of a call or inside an f-string.
    """
    keywords = {node.arg for node in ast.walk(program.function) if isinstance(node, ast.keyword)}
    strings = [token.string for token in program.tokens if token.type == tokenize.STRING]
    formatted = " ".join(string for string in strings if re.match(r"\w*[fF]", string))
    letters = iter("uvwpqrzkmjgd")
    new = {}
    for number, name in enumerate(program.arguments(), start=1):
        if name in keywords or re.search(rf"\b{name}\b", formatted):
            continue
        if len(name) == 1:
            change = next(
                (x.upper() if name.isupper() else x for x in letters if x not in taken and x != name), None
            )
        elif re.fullmatch(r"[a-z]{4,}", name) or "_" in name:
            change = f"input_{name}"
        else:
            change = f"arg{number}"
        if change is not None and change not in taken:
            new[name] = change
            taken.add(change)
    return new


def rename_prose(text: str, name: str, new: str) -> str:
    """Rename an argument in a docstring, sparing the English words that look like it.

    The article "a" and English words of four letters or more ("string", "numbers") are renamed only where they can be
    nothing but the argument: in quotes, before or after an operator, bracket or comma-free "=", after "@".
    """
    if name in ("a", "i"):
        return re.sub(rf"\b{name}\b(?!'s)(?!\s+(?!and\b|or\b|is\b|to\b|by\b)[A-Za-z]{{2,}})", new, text)
    if re.fullmatch(r"[a-z]{4,}", name):
        before, after = r"(?:(?<=['`@])|(?<=[<>=] )|(?<=len\())", r"(?=['`]|\s*(?:=|<|>|\[|\.\w|: ?\[))"
        return re.sub(rf"{before}\b{name}\b(?!\w)|\b{name}\b{after}", new, text)
    return re.sub(rf"(?<![\w.])\b{name}\b", new, text)


@perturbation("humaneval", version=1)
def renamed(document: Document, rng: random.Random, context: Context) -> Document | None:
    """The function gets a neutral name and its arguments get other names, in prompt, solution and tests.

    Changes: the entry function's name wherever it is called or defined; its arguments in its signature, body and
    docstring. English words in the docstring's prose stay. Must stay true: the canonical solution passes the tests;
    helper functions, examples' values and the behaviour are untouched. Source: ReCode, function-name perturbations.
    """
    program = parse(document)
    if program is None:
        return None
    everything = document["prompt"] + document["canonical_solution"] + document["test"]
    taken = set(re.findall(r"\w+", everything))
    old = document["entry_point"]
    usable = [name for name in NAMES if name not in taken]
    if not usable:
        return None
    name = rng.choice(usable)
    arguments = new_arguments(program, taken)
    first, last = program.function.lineno, program.function.end_lineno or 0

    edits = []
    previous = ""
    for token in program.tokens:
        if token.type == tokenize.NAME and previous != ".":
            inside = first <= token.start[0] <= last
            new = name if token.string == old else arguments.get(token.string) if inside else None
            if new is not None:
                edits.append((program.offset(token.start), program.offset(token.end), new))
        if token.string.strip():
            previous = token.string
    start, end = program.docstring
    docstring = program.text[start:end]
    for argument, new in arguments.items():
        docstring = rename_prose(docstring, argument, new)
    # A name such as "add" or "unique" is an English word too: then only calls are renamed.
    call = "" if "_" in old or re.search(r"[a-z][A-Z]|\d", old) else r"(?=\()"
    docstring = re.sub(rf"\b{old}\b{call}|(?<=function ){old}\b", name, docstring)
    edits.append((start, end, docstring))

    split = len(document["prompt"])
    test = "".join(
        name if piece == old else piece
        for piece in re.split(rf"(?<![\w.'\"])({re.escape(old)})(?=\s*\()", document["test"])
    )
    return {
        **document,
        "prompt": apply(document["prompt"], [edit for edit in edits if edit[1] <= split]),
        "canonical_solution": apply(
            document["canonical_solution"], [e for e in edits if e[0] >= split], split
        ),
        "entry_point": name,
        "test": test,
    }
