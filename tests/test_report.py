"""The HTML report in a real headless browser: offline, texts shown as text, samples found and filtered."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.analysis.results import Results, read_results
from pipeline.report import page as report
from pipeline.report.render import render
from pipeline.report.tables.build import build
from tests import synthetic
from tests.browser import BINARY, Browser
from tests.synthetic import MAIN
from tests.test_tables import evaluated, manifest

HOSTILE = (
    "</script></pre><script>window.planted = 1</script><img src=x onerror='window.planted = 2'> & \u2028 ü 漢"
)

needs_browser = pytest.mark.skipif(BINARY is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    made = Browser(1280, 900)
    yield made
    made.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with every kind of condition."""
    folder = tmp_path_factory.mktemp("report")
    (made,) = render(evaluated(folder / "results", documents=120), folder / "out")["report"]
    return made


def without_figures(results: Results, out: Path) -> Path:
    return report.render(results, build(results), [], out)


def articles(browser: Browser) -> list[str]:
    found: list[str] = browser.evaluate("[...document.querySelectorAll('article')].map(a => a.innerText)")
    return found


def choose(browser: Browser, name: str, value: str) -> None:
    """Choose in a select as a user does, and wait until the page has followed."""
    browser.evaluate(
        f"(() => {{ const s = document.getElementById('{name}'); s.value = {value!r};"
        " document.getElementById('count').textContent = ''; s.dispatchEvent(new Event('change')); })()"
    )
    browser.wait_for("document.getElementById('count').textContent !== ''")


def search(browser: Browser, text: str) -> None:
    browser.evaluate(
        f"(() => {{ const s = document.getElementById('search'); s.value = {text!r};"
        " s.dispatchEvent(new Event('input')); })()"
    )


def opened(browser: Browser, path: Path) -> None:
    browser.open(path)
    browser.wait_for("document.getElementById('count').textContent !== ''")


def test_the_page_names_no_outside_resource(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", text)
    assert "@import" not in text
    assert "url(" not in text


def test_rendering_again_gives_the_same_page(tmp_path: Path) -> None:
    results = evaluated(tmp_path / "results", documents=10)
    first = without_figures(results, tmp_path / "a").read_bytes()
    assert without_figures(results, tmp_path / "b").read_bytes() == first


@needs_browser
def test_it_opens_offline_without_an_error_or_a_request(browser: Browser, page: Path) -> None:
    browser.console.clear()
    browser.requested.clear()
    opened(browser, page)
    assert browser.console == []
    assert {url.split(":")[0] for url in browser.requested} <= {"file", "data"}
    shown = browser.evaluate("document.body.innerText")
    for text in (
        "The claims of the abstract",
        "What was run",
        "Accuracy in per cent",
        "vllm",
        "found here too",
    ):
        assert text in shown
    loaded = browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.evaluate("document.images.length") == 4
    assert loaded


@needs_browser
def test_the_browser_shows_exactly_the_documents_whose_verdict_changed(browser: Browser, page: Path) -> None:
    opened(browser, page)
    choose(browser, "benchmark", "SciQ form")
    choose(browser, "condition", "−Vector")
    results = evaluated(page.parent.parent / "results", documents=120)
    difference = results.difference("micro", results.named("minus_vector"), results.reference, "sciq")
    assert difference is not None
    expected = f"{difference.gained + difference.lost} of 120 documents changed: {difference.gained} gained"
    assert browser.evaluate("document.getElementById('count').textContent").startswith(expected)
    while not browser.evaluate("document.getElementById('more').hidden"):
        browser.evaluate("document.getElementById('more').click()")
    assert len(articles(browser)) == difference.gained + difference.lost
    choose(browser, "change", "lost")
    lost = articles(browser)
    assert lost
    assert all(": lost" in text.splitlines()[0] for text in lost)
    assert all("Baseline: score 1" in text and "−Vector: score 0" in text for text in lost)
    choose(browser, "change", "all")


@needs_browser
def test_it_opens_with_the_paper_s_vector_and_search_narrows_it(browser: Browser, page: Path) -> None:
    opened(browser, page)
    assert browser.evaluate("document.getElementById('condition').value") == "+Vector"
    first = re.search(r"Document (\d+)", articles(browser)[0])
    assert first is not None
    search(browser, f"What IS {first[1]} + 0?")
    assert [a.splitlines()[0].split(":")[0] for a in articles(browser)] == [f"Document {first[1]}"]
    search(browser, "nowhere in any answer")
    assert articles(browser) == []
    assert browser.evaluate("document.getElementById('count').textContent").endswith("0 match.")


@needs_browser
def test_what_models_and_labels_say_is_text(browser: Browser, tmp_path: Path) -> None:
    right = np.arange(6) < 3
    rows = [synthetic.samples(scores) for scores in (right, ~right)]
    for row in rows[0] + rows[1]:
        row |= {"output": HOSTILE, "prompt": HOSTILE, "target": HOSTILE, "extracted": {HOSTILE: HOSTILE}}
    keys = {
        (name, "b"): synthetic.write_cell(tmp_path, {"name": name}, made)
        for name, made in zip(("baseline", "vector"), rows, strict=True)
    }
    made = manifest(keys, {"b": synthetic.benchmark(HOSTILE)}, label=HOSTILE)
    vector = replace(made.conditions["vector"], label=HOSTILE)
    made = replace(made, conditions={**made.conditions, "vector": vector})
    browser.console.clear()
    opened(browser, without_figures(read_results(made, tmp_path), tmp_path / "out"))
    assert browser.evaluate("window.planted") is None
    assert browser.evaluate("document.querySelectorAll('article').length") == 6
    assert browser.evaluate("document.querySelector('.sides pre').textContent") == HOSTILE
    assert browser.console == []


@needs_browser
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_never_scrolls_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.resize(width, 800)
    opened(browser, page)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    sides = browser.evaluate(
        "getComputedStyle(document.querySelector('.sides')).gridTemplateColumns.split(' ').length"
    )
    assert sides == (1 if width < 700 else 2)
    browser.resize(1280, 900)


@needs_browser
def test_documents_beyond_the_limit_are_left_out_and_counted(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "EMBEDDED", 10)
    results = evaluated(tmp_path / "results", conditions=MAIN, documents=200)
    opened(browser, without_figures(results, tmp_path / "out"))
    assert re.search(
        r"the page holds \d+ of them", browser.evaluate("document.getElementById('count').textContent")
    )


def test_the_limit_is_shared_so_that_small_comparisons_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "EMBEDDED", 100)
    sizes = [5, 500, 60, 0]
    shown = [min(size, report._cap(sizes)) for size in sizes]
    assert shown == [5, 47, 47, 0]


def test_missing_records_are_listed_and_the_report_is_made(tmp_path: Path) -> None:
    made = synthetic.write_run(tmp_path / "somewhere", conditions=MAIN, documents=5)
    (page,) = render(read_results(made, tmp_path), tmp_path / "out")["report"]
    text = page.read_text()
    assert "records are missing or damaged" in text
    assert "The run has no data for a figure." in text
