"""LaTeX of tables: quotes, columns of numbers, and documents that compile whatever the labels are."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.report.latex import PACKAGES, latex, tex
from pipeline.report.render import render
from pipeline.report.table import Block, Kind, Line, Table, Text
from tests import synthetic
from tests.synthetic import MAIN, benchmark, family
from tests.test_tables import evaluated

COMPILER = shutil.which("pdflatex") or shutil.which("tectonic")
HOSTILE = r"""a_b & 50% #1 {x} \y ~^ <α→θ> “q” "r" 漢 [z] \input{/etc/passwd} \end{table}"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"not every result"', "``not every result''"),
        ('says "so" ("thus").', "says ``so'' (``thus'')."),
        ("“curly” ‘single’", "``curly'' `single'"),
        ('5" and "six"', "5'' and ``six''"),
        ("50 % of $x_1^2$", r"50 \% of \$x\_1\textasciicircum{}2\$"),
        ("漢\u2028\x07", "U+6F22U+2028U+0007"),
    ],
)
def test_text_is_set_as_it_reads(text: str, expected: str) -> None:
    assert tex(text) == expected


def made(*rows: list[str]) -> str:
    lines = [Line(Kind.value, f"row {i}", [Text(entry) for entry in row]) for i, row in enumerate(rows)]
    heads = [Text("Condition"), *(Text(f"head {i}") for i in range(len(rows[0])))]
    return latex(Table("t", "T", heads, [Block("", lines)]))


def test_numbers_stand_in_columns_of_siunitx_with_what_follows_beside_them() -> None:
    text = made(
        ["64.2 ± 3.8", "1\u202f319", "GSM8K"], ["−7.1 [−8.0, −6.2]*", "20", "2026-01-01"], ["–", "–", "–"]
    )
    (spec,) = re.findall(r"\\begin\{tabular\}\{(.*)\}", text)
    assert spec == (
        r"lS[table-format=+2.1,retain-explicit-plus,group-digits=integer]@{\,}l"
        r"S[table-format=4.0,retain-explicit-plus,group-digits=integer]"
        r"r"
    )
    rows = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.startswith("row")]
    assert rows == [
        ["row 0", "64.2", r"$\pm$ 3.8", "1319", "GSM8K"],
        ["row 1", "-7.1", "{[}$-$8.0, $-$6.2{]}*", "20", "2026-01-01"],
        ["row 2", r"\multicolumn{2}{c}{--}", r"\multicolumn{1}{c}{--}", "--"],
    ]


def test_marks_stand_behind_their_number() -> None:
    table = Table(
        "t", "T", [Text("C"), Text("H", "c")], [Block("b", [Line(Kind.value, "r", [Text("1.0", "m")])])]
    )
    text = latex(table)
    assert r"r & 1.0 & \textsuperscript{m} \\" in text
    assert r"\multicolumn{2}{c}{H\textsuperscript{c}}" in text
    assert r"\multicolumn{3}{l}{\textbf{b}}" in text


def test_a_table_of_several_pages_is_several_floats_under_one_number() -> None:
    def lines(n: int, name: str) -> list[Line]:
        return [Line(Kind.value, f"{name} {i}", [Text(f"{i}.0")]) for i in range(n)]

    blocks = [Block("first", lines(30, "a")), Block("second", lines(70, "b")), Block("third", lines(3, "c"))]
    text = latex(Table("t", "T", [Text("C"), Text("H")], blocks, notes=["N" * 300] * 3))
    parts = text.split(r"\begin{table}")[1:]
    rows = [re.findall(r"^([abc]) (\d+) & \2.0 \\\\$", part, re.MULTILINE) for part in parts]
    assert [row for part in rows for row in part] == [
        (name, str(i)) for name, n in (("a", 30), ("b", 70), ("c", 3)) for i in range(n)
    ], "each row once, in order"
    assert max(map(len, rows)) <= 50
    assert len(parts) == 3
    assert [part.count(r"\addtocounter{table}{-1}") for part in parts] == [0, 1, 1]
    assert text.count(r"\label") == 1
    assert all(part.count(r"\toprule") == 1 for part in parts)
    assert r"\textbf{second (continued)}" in text


def test_a_star_that_begins_a_row_and_a_label_without_end_are_set() -> None:
    rows = [Line(Kind.value, label, [Text("1.0")]) for label in ("*", "x" * 5000)]
    text = latex(Table("t", "T", [Text("C"), Text("H")], [Block("b", rows)]))
    assert "\n{}* & 1.0" in text
    assert max(map(len, text.splitlines())) < 400


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="neither pdflatex nor tectonic is installed")
def test_every_table_and_figure_of_a_run_compiles_in_one_document_whatever_the_labels(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    results = evaluated(
        folder,
        documents=30,
        families={"f": family(HOSTILE, published_size="1.5B", geometry=synthetic.write_geometry(folder))},
        benchmarks={**synthetic.BENCHMARKS, "odd": benchmark(HOSTILE), "short": benchmark("L", limit=10)},
        conditions=synthetic.CONDITIONS
        | {
            "vector": replace(MAIN["vector"], label="[3] starts like an argument"),
            "grpo": replace(MAIN["grpo_think"], label=HOSTILE * 40),
        },
    )
    files = render(results, tmp_path)
    inputs = [rf"\input{{{path.name}}}\clearpage" for path in files["tables"] if path.suffix == ".tex"]
    inputs += [
        rf"\includegraphics[width=\linewidth]{{{path.name}}}\clearpage"
        for path in files["figures"]
        if path.suffix == ".pdf"
    ]
    packages = "".join(rf"\usepackage{{{name}}}" for name in PACKAGES)
    body = "\n".join(inputs)
    (tmp_path / "all.tex").write_text(
        f"\\documentclass{{article}}\n{packages}\n\\begin{{document}}\n{body}\n\\end{{document}}\n"
    )
    options = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in str(COMPILER) else []
    done = subprocess.run(
        [str(COMPILER), *options, "all.tex"], cwd=tmp_path, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
    assert "root:" not in done.stdout
    assert (tmp_path / "metrics.tex").read_text().count(r"\begin{table}") > 1
    assert "Float too large" not in done.stdout, "no table runs off its page"
