"""The order of imports, as ARCHITECTURE.md lists it; and every import of ours finds what it names.

Imports are read from the source, so those inside functions and for types alone count too.
"""

import ast
import graphlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.files import ROOT

PACKAGES = ("pipeline", "evals", "tests", "benchmarks")


class Import(NamedTuple):
    """One name that a module imports: `from module import name`, or `import module` with no name."""

    line: int
    module: str
    name: str | None


def imports(source: str, package: str) -> Iterator[Import]:
    """Every import of our packages in a source, wherever it stands; `package` is what a relative one starts from."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [Import(node.lineno, alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found = [Import(node.lineno, module, alias.name) for alias in node.names]
        else:
            continue
        yield from (one for one in found if one.module.split(".")[0] in PACKAGES)


def bound(statements: list[ast.stmt]) -> Iterator[str]:
    """Names that a module's statements bind, those in branches included."""
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For):
            parts = (getattr(node, part, []) for part in ("body", "orelse", "finalbody"))
            yield from (name for part in parts for name in bound(part))
            yield from (name for handler in getattr(node, "handlers", []) for name in bound(handler.body))
        else:
            stored = (n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
            yield from (name.id for name in stored)


@cache
def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name; a package is its `__init__`."""
    paths = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
    }


@cache
def imports_of(module: str) -> tuple[Import, ...]:
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return tuple(imports(path.read_text(), package))


@cache
def names_of(module: str) -> frozenset[str]:
    return frozenset(bound(ast.parse(modules()[module].read_text()).body))


def imported(one: Import) -> str:
    """The module that an import reads: what a package is asked for is often a module of it."""
    inner = f"{one.module}.{one.name}"
    return inner if inner in modules() else one.module


def room(module: str) -> str:
    """The line of the order that a module of `pipeline` belongs to: its folder, or itself."""
    return module.split(".")[1]


@cache
def order() -> tuple[str, ...]:
    (block,) = re.findall(r"^```order\n(.*?)^```$", (ROOT / "ARCHITECTURE.md").read_text(), re.M | re.S)
    return tuple(line.split()[0] for line in block.splitlines())


def of_pipeline() -> list[str]:
    return [module for module in modules() if module.startswith("pipeline.")]


def test_the_order_lists_every_folder_and_module_of_pipeline_once() -> None:
    assert sorted(order()) == sorted({room(module) for module in of_pipeline()})


def test_a_folder_imports_only_what_the_order_lists_above_it() -> None:
    place = {name: number for number, name in enumerate(order())}
    wrong = [
        f"{modules()[module].relative_to(ROOT)}:{one.line}: {room(module)} imports {imported(one)}"
        for module in of_pipeline()
        for one in imports_of(module)
        if imported(one).startswith("pipeline.") and place[room(imported(one))] > place[room(module)]
    ]
    assert wrong == []


def test_evals_imports_nothing_of_pipeline_but_errors() -> None:
    found = {
        (module, imported(one))
        for module in modules()
        if module.startswith("evals")
        for one in imports_of(module)
        if not imported(one).startswith("evals")
    }
    assert {name for _, name in found} == {"pipeline.errors"}, found


def test_what_is_shipped_imports_no_tests_and_no_benchmarks() -> None:
    shipped = [module for module in modules() if module.split(".")[0] in ("pipeline", "evals")]
    names = {imported(one).split(".")[0] for module in shipped for one in imports_of(module)}
    assert names == {"pipeline", "evals"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        module: {
            name for one in imports_of(module) if (name := imported(one)) in modules() and name != module
        }
        for module in modules()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("package", PACKAGES)
def test_every_import_finds_its_module_and_its_name(package: str) -> None:
    """mypy takes a module that is not there for a library without types, and reads neither tests nor benchmarks."""
    missing = []
    for module in (name for name in modules() if name.split(".")[0] == package):
        for one in imports_of(module):
            found = imported(one)
            if found not in modules() or (
                one.name and found == one.module and one.name not in names_of(found)
            ):
                missing.append(
                    f"{modules()[module].relative_to(ROOT)}:{one.line}: {one.module} {one.name or ''}"
                )
    assert missing == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pipeline.records as r, os", [("pipeline.records", None)]),
        ("from pipeline import records, stages", [("pipeline", "records"), ("pipeline", "stages")]),
        ("def f():\n    if x:\n        from evals.code import g", [("evals.code", "g")]),
        ("if TYPE_CHECKING:\n    from pipeline.plan.plan import Plan", [("pipeline.plan.plan", "Plan")]),
        ("from . import keys", [("pipeline.plan", "keys")]),
        ("from ..weights.vector import extract", [("pipeline.weights.vector", "extract")]),
        ("from pipelines import records", []),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, found: list[tuple[str, str | None]]) -> None:
    assert [(one.module, one.name) for one in imports(source, "pipeline.plan")] == found
