"""Write docs/example.ipynb: the example of docs/python.md, a cell for each of its paragraphs, with what they print.

    python -m benchmarks.notebook

The cells are run here in one interpreter, in a folder that is removed afterwards, so that their outputs are those of a real
run; no Jupyter is needed. tests/test_python.py compares the notebook with the guide.
"""

import contextlib
import io
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from pipeline.files import ROOT

GUIDE, NOTEBOOK = ROOT / "docs/python.md", ROOT / "docs/example.ipynb"
TITLE = """# Reasoning vectors from Python

A run on the embedded family, its records as data frames, the steered model asked live, and vectors as files.
From the repository's folder, with the environment of `make setup`; the text around it is in [python.md](python.md)."""


def main() -> None:
    """Run the cells and write the notebook."""
    (example,) = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.M | re.S)
    sources = example.rstrip("\n").split("\n\n")
    cells = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": _lines(TITLE)}]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to(ROOT / "models")
        os.chdir(folder)
        names: dict[str, Any] = {}
        for number, source in enumerate(sources, 1):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(source, f"cell {number}", "exec"), names)
            cells.append(_cell(number, source, printed.getvalue().replace(f"{ROOT}/", "")))
        os.chdir(ROOT)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    NOTEBOOK.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n")
    print(f"{NOTEBOOK}: {len(cells)} cells")


def _cell(number: int, source: str, printed: str) -> dict[str, Any]:
    outputs = [{"name": "stdout", "output_type": "stream", "text": _lines(printed)}] if printed else []
    return {
        "cell_type": "code",
        "execution_count": number,
        "id": f"cell-{number}",
        "metadata": {},
        "outputs": outputs,
        "source": _lines(source),
    }


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    main()
