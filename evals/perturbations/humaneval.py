"""Perturbations of HumanEval-like documents {task_id, prompt, entry_point, canonical_solution, test}.

`prompt + canonical_solution + test + check(entry_point)` is the program that must still pass. The kinds
follow ReCode (arXiv:2212.10264: function names, docstrings, syntax). Nothing is executed here; the tests do
that.
"""

import ast
import io
import random
import re
import tokenize
from dataclasses import dataclass

from evals.perturbations.common import Document, mistype_text, perturbation

NAMES = ("run_task", "compute_result", "process_input", "task_function", "get_answer", "work_out")


@dataclass
class Program:
    """The prompt and canonical solution as one program, with its entry function and docstring located."""

    text: str
    function: ast.FunctionDef
    tokens: list[tokenize.TokenInfo]
    line_starts: list[int]
    docstring: tuple[int, int]

    def offset(self, position: tuple[int, int]) -> int:
        """The index in `text` of a token's (line, column)."""
        return self.line_starts[position[0] - 1] + position[1]

    def arguments(self) -> list[str]:
        return [argument.arg for argument in self.function.args.args]


def parse(document: Document) -> Program | None:
    """Locate the entry function and its docstring (its first lone string); None if there is none."""
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
    """The text with each (start, end, new) replaced; positions count from `start`."""
    for begin, end, new in sorted(edits, reverse=True):
        text = text[: begin - start] + new + text[end - start :]
    return text


# Renamed ----------------------------------------------------------------------------------------------------


def new_arguments(program: Program, taken: set[str]) -> dict[str, str]:
    """New names: another letter for a letter, `input_x` for an English word x, else `argN`.

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
        elif is_word(name) or "_" in name:
            change = f"input_{name}"
        else:
            change = f"arg{number}"
        if change is not None and change not in taken:
            new[name] = change
            taken.add(change)
    return new


NO_WORD = re.compile(r"nums|dict|vals|elems|strs|chars|args")


def is_word(name: str) -> bool:
    """Whether an argument's name is also an English word, which a docstring may use as one ("string")."""
    return re.fullmatch(r"[a-z]{4,}", name) is not None and not NO_WORD.fullmatch(name)


def rename_prose(text: str, name: str, new: str) -> str:
    """Rename an argument in a docstring, sparing the English words that look like it.

    The article "a" and English words are renamed only where they can be nothing but the argument: in quotes,
    beside an operator or bracket, after "@" or after the noun for its type ("a string text"), before "is" at
    the beginning.
    """
    if name in ("a", "i"):
        return re.sub(rf"\b{name}\b(?!'s)(?!\s+(?!and\b|or\b|is\b|to\b|by\b)[A-Za-z]{{2,}})", new, text)
    if not is_word(name):
        return re.sub(rf"(?<![\w.])\b{name}\b", new, text)
    before, after = r"(?:(?<=['`@])|(?<=[<>=] )|(?<=len\())", r"(?=['`]| *(?:=|<|>|\[|\.\w|: ?\[))"
    text = re.sub(rf"{before}\b{name}\b|\b{name}\b{after}|(?<=^\"\"\" ){name}(?= is\b)", new, text)
    if name.rstrip("s") in ("string", "number", "word", "value"):
        return text
    return re.sub(rf"\b((?:strings?|integers?|array|list) )\b{name}\b", rf"\g<1>{new}", text)


@perturbation("humaneval", version=1)
def renamed(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """The function gets a neutral name and its arguments get other names, in prompt, solution and tests.

    Changes: the entry function's name wherever it is called or defined; its arguments in its signature, body
    and docstring. English words in the docstring's prose stay. Must stay true: the canonical solution passes
    the tests; helper functions, examples' values and the behaviour are untouched. Source: ReCode,
    function-name perturbations.
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

    # A local variable may have the function's name.
    local = {
        node.id
        for node in ast.walk(program.function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }

    edits = []
    previous = ""
    for token in program.tokens:
        if token.type == tokenize.NAME and previous != ".":
            inside = first <= token.start[0] <= last
            if token.string == old:
                new = name if old not in local or previous == "def" else None
            else:
                new = arguments.get(token.string) if inside else None
            if new is not None:
                edits.append((program.offset(token.start), program.offset(token.end), new))
        if token.string.strip():
            previous = token.string
    start, end = program.docstring
    docstring = program.text[start:end]
    for argument, new in arguments.items():
        docstring = rename_prose(docstring, argument, new)
    # A name such as "add" or "unique" is an English word too: then only calls are renamed.
    call = "" if "_" in old else r"(?=\()"
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


# Docstrings -------------------------------------------------------------------------------------------------

HEADING = re.compile(
    r"\s*(?:\[input/output\] samples|for exam\w*|examples?(?: \d+)?)\s*:?\s*$", re.IGNORECASE
)
RESULT = re.compile(r"==|=>|->|➞|=|\breturns?\b|#")
CODE = re.compile(r"[\[(=>➞]|^\s*(?:Input|Output|Explanation|#)")


def example_lines(lines: list[str], entry_point: str) -> set[int]:
    """Which lines of a docstring are examples.

    That is: `>>>` lines with what follows up to a blank line; what stands under a heading such as
    "Examples:" as long as it is indented more or has code in it; elsewhere, lines that begin with a call of
    the function and state a result, unless they define it (`f(n) = f(n-1) + ...`). Examples inside a
    sentence are not found.
    """
    found: set[int] = set()
    call = re.compile(rf"\s*(?:\* |for |assert )?{re.escape(entry_point)}\((?!n\b|\))")
    doctest = [line.lstrip().startswith(">>>") for line in lines]
    calls_count = not any(doctest) and not any(HEADING.match(line) for line in lines)
    mode, indent = "", 0
    for i, line in enumerate(lines):
        blank, depth = not line.strip(), len(line) - len(line.lstrip())
        if HEADING.match(line):
            mode, indent = "headed", depth
        elif mode == "headed":
            if not (blank or doctest[i] or doctest[i - 1] or depth > indent or CODE.search(line)):
                mode = ""
        elif doctest[i]:
            mode = "doctest"
        elif blank or mode != "doctest":
            mode = (
                "call" if calls_count and call.match(line) and RESULT.search(line.partition(")")[2]) else ""
            )
        if mode:
            found.add(i)
    # The line that announces them.
    return found | {i - 1 for i in found if re.fullmatch(r"\s*(?:\w+ ){1,6}\w+:\s*", lines[i - 1])}


def replace_docstring(document: Document, program: Program, lines: list[str]) -> Document:
    start, end = program.docstring
    return {**document, "prompt": apply(document["prompt"], [(start, end, "\n".join(lines))])}


@perturbation("humaneval", version=1)
def no_examples(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """The examples are removed from the docstring.

    Changes: doctests, and what stands under "Examples:" or calls the function and states its result. Examples
    within a sentence stay. Must stay true: the description, notes and constraints, and everything but the
    docstring. Left out: functions without such examples, and those whose docstring is nothing else. Source:
    docstring changes in ReCode.
    """
    program = parse(document)
    if program is None:
        return None
    lines = program.text[slice(*program.docstring)].split("\n")
    found = example_lines(lines, document["entry_point"]) - {0, len(lines) - 1}
    kept: list[str] = []
    for i, line in enumerate(lines):
        blank_before = bool(kept) and not kept[-1].strip()
        # No two blank lines, and none before the closing quotes, where examples were.
        if i not in found and not (found and blank_before and not line.strip()):
            kept += [line]
    while len(kept) > 2 and not kept[-2].strip():
        del kept[-2]
    if not found or len(re.sub(r"\W", "", "".join(kept))) < 10:
        return None
    return replace_docstring(document, program, kept)


@perturbation("humaneval", version=2)
def docstring_noise(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """Typing errors in about a sixth of the plain words of the docstring's description.

    Changes: two inner letters swapped or one doubled, in lower-case words of four letters or more outside
    examples. Must stay true: examples, numbers, quoted text, every identifier of the program and every word
    that its strings or its tests mention, and everything but the docstring. Source: ReCode, docstring
    perturbations (ButterFingers, SwapCharacters).
    """
    program = parse(document)
    if program is None:
        return None
    lines = program.text[slice(*program.docstring)].split("\n")
    found = example_lines(lines, document["entry_point"])
    prose = [i for i in range(len(lines)) if i not in found]
    outside = program.text[: program.docstring[0]] + program.text[program.docstring[1] :] + document["test"]
    keep = set(re.findall(r"[a-z]{5,}", outside.lower())) | set(
        re.findall(r"[A-Za-z]+", " ".join(lines[i] for i in found))
    )
    noisy = mistype_text("\n".join(lines[i] for i in prose), rng, keep)
    if noisy is None:
        return None
    for i, line in zip(prose, noisy.split("\n"), strict=True):
        lines[i] = line
    return replace_docstring(document, program, lines)


# Signature --------------------------------------------------------------------------------------------------


class BuiltinGenerics(ast.NodeTransformer):
    """`List[int]` as `list[int]` and `Optional[str]` as `str | None`."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id == "Optional":
            return ast.BinOp(node.slice, ast.BitOr(), ast.Constant(None))
        return node

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(
            {"List": "list", "Tuple": "tuple", "Dict": "dict", "Set": "set"}.get(node.id, node.id)
        )


@perturbation("humaneval", version=1)
def reworded_signature(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """The same signature otherwise written: one parameter a line, generics of `typing` as built-in ones.

    Changes: the lines from `def` to its colon. Must stay true: the function's name, its parameters, their
    order, defaults and types, and everything else. Left out: functions with anything but plain parameters.
    Source: ReCode, syntax and format perturbations (NaturalGen).
    """
    program = parse(document)
    if program is None:
        return None
    function = program.function
    arguments = function.args
    if (
        arguments.vararg
        or arguments.kwarg
        or arguments.kwonlyargs
        or arguments.posonlyargs
        or not arguments.args
    ):
        return None
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + list(arguments.defaults)
    lines = []
    for argument, default in zip(arguments.args, defaults, strict=True):
        typed = (
            f": {ast.unparse(BuiltinGenerics().visit(argument.annotation))}" if argument.annotation else ""
        )
        equals = (" = " if typed else "=") + ast.unparse(default) if default else ""
        lines.append(f"    {argument.arg}{typed}{equals},\n")
    returns = f" -> {ast.unparse(BuiltinGenerics().visit(function.returns))}" if function.returns else ""
    header = f"def {function.name}(\n{''.join(lines)}){returns}:"
    start = program.offset((function.lineno, function.col_offset))
    depth = 0
    for token in program.tokens:
        depth += (token.string in "([{") - (token.string in ")]}") if token.type == tokenize.OP else 0
        if token.start >= (function.lineno, function.col_offset) and token.string == ":" and depth == 0:
            end = program.offset(token.end)
            return {**document, "prompt": apply(document["prompt"], [(start, end, header)])}
    return None
