"""The HTML report in a real headless browser: offline, texts shown as text, samples found and filtered."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.analysis.findings import find
from pipeline.analysis.results import Results, read_results
from pipeline.report.gains import gains
from pipeline.report.numbers import signed
from pipeline.report.page import document as report
from pipeline.report.page import samples
from pipeline.report.page.samples import link
from pipeline.report.render import render
from pipeline.report.sentences import what_was_found
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


# Texts whose contrast with what they stand on is below 4.5, as "tag.class colour on colour".
CONTRAST = """(() => {
  const parse = (c) => { const n = c.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = ([r, g, b]) => { const f = (v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > 0) return c; }
    return [255, 255, 255]; };
  const found = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !e.checkVisibility() || e.closest('option')) continue;
    const a = getComputedStyle(e).color, b = behind(e), [x, y] = [light(parse(a)), light(b)].sort((p, q) => q - p);
    if ((x + .05) / (y + .05) < 4.5) found.add(`${e.tagName}.${e.className} ${a} on ${b}`);
  }
  return [...found];
})()"""


def without_figures(results: Results, out: Path) -> Path:
    return report.render(results, build(results), [], out)


def two_cells(folder: Path, old: list[Any], new: list[Any], label: str = "+Vector") -> Path:
    """The page of a run with two conditions, baseline and vector, on one benchmark."""
    keys = {
        (name, "b"): synthetic.write_cell(folder, {"name": name}, rows)
        for name, rows in (("baseline", old), ("vector", new))
    }
    made = manifest(keys, {"b": synthetic.benchmark(label)}, label=label)
    vector = replace(made.conditions["vector"], label=label)
    made = replace(made, conditions={**made.conditions, "vector": vector})
    return without_figures(read_results(made, folder), folder / "out")


def count(browser: Browser) -> str:
    return str(browser.evaluate("document.getElementById('count').textContent"))


def detail(browser: Browser) -> str:
    return str(browser.evaluate("document.getElementById('detail').innerText"))


def choose(browser: Browser, name: str, value: str) -> None:
    """Choose in a select as a user does, and wait until the page has followed."""
    browser.evaluate(
        f"(() => {{ const s = document.getElementById('{name}'); s.value = {value!r};"
        " document.getElementById('count').textContent = ''; s.dispatchEvent(new Event('change')); })()"
    )
    assert browser.evaluate(f"document.getElementById('{name}').value") == value
    browser.wait_for("document.getElementById('count').textContent !== ''")


def search(browser: Browser, text: str) -> None:
    browser.evaluate(
        f"(() => {{ const s = document.getElementById('search'); s.value = {text!r};"
        " s.dispatchEvent(new Event('input')); })()"
    )


def press(browser: Browser, key: str) -> None:
    """Press a key where the focus is."""
    browser.evaluate(
        f"document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {{key: {key!r}, bubbles: true}}))"
    )


def press_on_list(browser: Browser, key: str) -> None:
    browser.evaluate("document.getElementById('list').focus()")
    press(browser, key)


def opened(browser: Browser, path: Path, fragment: str = "") -> None:
    browser.open(path, fragment)
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
    for text in ("The claims of the abstract", "What was run", "Accuracy in per cent", "found here too"):
        assert text in shown
    loaded = browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.evaluate("document.images.length") == 4  # forest, alpha_sweep, robustness, form
    assert loaded


@needs_browser
def test_it_opens_with_what_was_found_and_the_heat_map_in_the_first_screen(
    browser: Browser, page: Path
) -> None:
    opened(browser, page)
    results = evaluated(page.parent.parent / "results", documents=120)
    sentences = browser.evaluate("[...document.querySelectorAll('#found p')].map(p => p.textContent)")
    assert sentences == list(what_was_found(results))
    assert browser.evaluate("document.querySelector('.gains table').getBoundingClientRect().bottom") < 900
    assert browser.evaluate("scrollY") == 0
    found = gains(results)
    for row in found.rows:
        for benchmark in found.benchmarks:
            compared = found.at("micro", row, benchmark)
            address = link("micro", benchmark, "baseline", row.name, show="changed")
            cell = browser.evaluate(
                f"(a => a && [a.textContent, a.parentElement.className])(document.querySelector('.gains a[href=\"{address}\"]'))"
            )
            if compared is None:
                assert cell is None
            else:
                text = signed(compared.difference.value)
                assert cell == [text, "" if compared.is_significant else "hatched"]


@needs_browser
def test_every_link_leads_somewhere(browser: Browser, page: Path) -> None:
    opened(browser, page)
    links = browser.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href'))"
    )
    rows = [one for one in links if one.startswith("#row-")]
    assert len(rows) >= 5, "verdicts lead to rows of tables"
    for one in links:
        if not one.startswith("#sample="):
            assert browser.evaluate(f"document.getElementById({one[1:]!r}) !== null"), one
    # A verdict's samples are those that its gain counts.
    (verdict, *_) = browser.evaluate(
        "[...document.querySelectorAll('.verdicts tbody tr:not(.claim)')].map(r => [r.cells[0].innerText, r.querySelector('a[href^=\"#sample\"]').getAttribute('href')])"
    )
    assert verdict[0].startswith("+Vector+Think against Baseline on GSM8K form")
    opened(browser, page, verdict[1])
    difference = evaluated(page.parent.parent / "results", documents=120)
    gain = find(difference).gain("micro", "vector_think", "gsm8k")
    assert gain is not None
    expected = f"{gain.difference.gained + gain.difference.lost} of 120 documents changed"
    assert count(browser).startswith(expected)


@needs_browser
def test_the_browser_lists_changed_documents_and_unchanged_ones_on_request(
    browser: Browser, page: Path
) -> None:
    opened(browser, page)
    choose(browser, "benchmark", "sciq")
    choose(browser, "new", "random-s1")
    results = evaluated(page.parent.parent / "results", documents=120)
    difference = results.difference("micro", results.named("random-s1"), results.reference, "sciq")
    assert difference is not None
    changed = difference.gained + difference.lost
    assert difference.gained > 0 and difference.lost > 0 and changed < 120
    expected = f"{changed} of 120 documents changed: {difference.gained} gained, {difference.lost} lost."
    for show, listed in (
        ("changed", changed),
        ("gained", difference.gained),
        ("lost", difference.lost),
        ("same", 120 - changed),
        ("all", 120),
    ):
        choose(browser, "show", show)
        assert count(browser) == f"{expected} {listed} listed."
        assert browser.evaluate("list.items.length") == listed
    choose(browser, "show", "lost")
    assert detail(browser).startswith("Lost: document")
    assert "Baseline: score 1" in detail(browser)
    assert "+Random (seed 1): score 0" in detail(browser)


@needs_browser
def test_it_opens_with_the_paper_s_vector_and_search_narrows_it(browser: Browser, page: Path) -> None:
    opened(browser, page)
    assert browser.evaluate("document.getElementById('old').value") == "baseline"
    assert browser.evaluate("document.getElementById('new').value") == "vector"
    first = re.search(r"document (\d+)", detail(browser))
    assert first is not None
    search(browser, f"What IS {first[1]} + 0?")
    assert count(browser).endswith(" 1 listed.")
    assert f"What is {first[1]} + 0?" in detail(browser), "the question is open"
    search(browser, "nowhere in any answer")
    assert count(browser).endswith(" 0 listed.")
    assert detail(browser) == "No document matches."


@needs_browser
def test_any_two_conditions_are_compared(browser: Browser, page: Path) -> None:
    """+Vector against a random vector, and the same the other way round."""
    opened(browser, page)
    choose(browser, "old", "random-s0")
    results = evaluated(page.parent.parent / "results", documents=120)
    vector, random = results.named("vector"), results.named("random-s0")
    difference = results.difference("micro", vector, random, "gsm8k")
    assert difference is not None
    assert f"{difference.gained} gained, {difference.lost} lost" in count(browser)
    browser.evaluate("document.getElementById('count').textContent = ''")
    browser.evaluate("document.getElementById('swap').click()")
    browser.wait_for("document.getElementById('count').textContent !== ''")
    assert f"{difference.lost} gained, {difference.gained} lost" in count(browser)


@needs_browser
def test_a_link_opens_one_document_of_one_comparison(browser: Browser, page: Path) -> None:
    opened(browser, page)
    wanted = link("micro", "bbh", "baseline", "minus_vector", "subtask_2 7")
    opened(browser, page, wanted)
    assert "document subtask_2 7" in detail(browser)
    assert "−Vector: score" in detail(browser)
    # Moving on by keys changes the address to one that opens the next document.
    browser.evaluate("document.getElementById('list').focus()")
    press(browser, "j")
    moved = browser.evaluate("location.hash")
    title = detail(browser).splitlines()[0]
    assert moved != wanted
    opened(browser, page, moved)
    assert detail(browser).splitlines()[0] == title
    # A document that the asked filter leaves out is listed all the same.
    unchanged = browser.evaluate("pairs.find(p => p.old.score === p.now.score).name")
    opened(browser, page, link("micro", "bbh", "baseline", "minus_vector", unchanged, show="changed"))
    assert f"document {unchanged}\n" in detail(browser)
    assert browser.evaluate("document.getElementById('show').value") == "all"
    opened(browser, page, link("micro", "bbh", "baseline", "minus_vector", "nowhere 7"))
    assert count(browser).endswith("There is no document nowhere 7.")
    browser.console.clear()
    for wrong in (
        "#sample=",
        "#sample=micro",
        "#sample=%E0%A4%A",
        "#sample=a/b/c/d/e&show=f",
        "#sample=a/b/c/d&show=toString",
        "#sample=__proto__/constructor/a/b/c&show=__proto__",
    ):
        opened(browser, page, wrong)
        assert browser.console == [], wrong
        assert "listed" in count(browser), wrong
        assert browser.evaluate("[byId('old').value, byId('new').value]") == ["baseline", "vector"], wrong
        is_said = count(browser).startswith("The page does not have what the link asks for.")
        assert is_said == ("%" not in wrong), wrong  # what cannot be read is no link


@needs_browser
def test_keys_move_through_a_list_whose_rows_are_few(browser: Browser, page: Path) -> None:
    opened(browser, page)
    choose(browser, "show", "all")
    browser.evaluate("document.getElementById('list').focus()")
    for key, at in (
        ("Home", 0),
        ("ArrowDown", 1),
        ("j", 2),
        ("k", 1),
        ("ArrowUp", 0),
        ("ArrowUp", 0),
        ("End", 119),
    ):
        press(browser, key)
        assert browser.evaluate("list.at") == at, key
    chosen = "document.getElementById(document.getElementById('list').getAttribute('aria-activedescendant'))"
    assert browser.evaluate(f"{chosen}.getAttribute('aria-selected')") == "true"
    assert browser.evaluate(
        f"(() => {{ const r = {chosen}.getBoundingClientRect(), l = document.getElementById('list').getBoundingClientRect();"
        " return r.top >= l.top && r.bottom <= l.bottom + 1; })()"
    ), "the chosen row is in view"
    assert browser.evaluate("document.querySelectorAll('.row').length") < 40
    press(browser, "/")
    assert browser.evaluate("document.activeElement.id") == "search"
    press(browser, "Enter")
    assert browser.evaluate("document.activeElement.id") == "list"


@needs_browser
def test_filters_and_order_read_the_answers_form(browser: Browser, tmp_path: Path) -> None:
    old = synthetic.samples(np.zeros(5))
    new = synthetic.samples(np.array([1.0, 1, 0, 0, 0]))
    for row in old:
        row |= {"output": "7"}
    new[1] |= {"output": "8"}
    new[2] |= {"finish": "length", "tokens": 99}
    new[3] |= {"extracted": {"none": "[invalid]"}}
    new[4] |= {"tokens": 1}
    opened(browser, two_cells(tmp_path, old, new))
    choose(browser, "show", "all")
    listed = "list.items.map(pair => pair.name).join(' ')"
    for form, names in (
        ("any", "0 1 2 3 4"),
        ("steps", "0 2 3 4"),
        ("bare", "1"),
        ("new", "0 2 3 4"),
        ("dropped", ""),
        ("cut", "2"),
        ("unreadable", "3"),
    ):
        choose(browser, "form", form)
        assert browser.evaluate(listed) == names, form
    choose(browser, "form", "any")
    choose(browser, "sort", "longer")
    assert browser.evaluate(listed).startswith("2 ")
    choose(browser, "sort", "short")
    assert browser.evaluate(listed).startswith("4 ")
    choose(browser, "sort", "document")


@needs_browser
def test_likelihoods_of_options_stand_beside_each_other(browser: Browser, tmp_path: Path) -> None:
    both = [synthetic.samples(np.array([score])) for score in (0.0, 1.0)]
    for (row,), options, chosen in zip(both, ([-1.0, -2.5], [-3.0, -0.25]), ("fire", "snow"), strict=True):
        row |= {"loglikelihoods": options, "output": chosen, "target": "1", "tokens": 0, "finish": "scored"}
    opened(browser, two_cells(tmp_path, *both))
    cells = "[...document.querySelectorAll('.options tbody tr')].map(r => r.innerText.replace(/\\s+/g, ' ').trim())"
    assert browser.evaluate(cells) == ["0 fire −1.00 −3.00", "1 snow (target) −2.50 −0.25"]
    bold = "[...document.querySelectorAll('.options b')].map(b => b.textContent.trim())"
    assert browser.evaluate(bold) == ["−1.00", "−0.25"]


@needs_browser
@pytest.mark.parametrize(
    ("left", "right", "removed", "added"),
    [
        ("the sum is 63", "the sum is 64", "63", "64"),
        ("63", "Ben has 63", "", "Ben has "),
        ("same", "same", "", ""),
        ("", "漢 <b>", "", "漢 <b>"),
        ("a b c d", "a c d e", "b ", " e"),
    ],
)
def test_differences_of_two_answers_are_marked_by_word(
    browser: Browser, page: Path, left: str, right: str, removed: str, added: str
) -> None:
    opened(browser, page)
    found = browser.evaluate(f"differences({json.dumps(left)}, {json.dumps(right)})")
    assert ["".join(piece["text"] for piece in side) for side in found] == [left, right]
    marked = ["".join(piece["text"] for piece in side if piece["differs"]) for side in found]
    assert marked == [removed, added]


@needs_browser
def test_what_models_and_labels_say_is_text(browser: Browser, tmp_path: Path) -> None:
    right = np.arange(6) < 3
    rows = [synthetic.samples(scores) for scores in (right, ~right)]
    for row in rows[0] + rows[1]:
        row |= {"output": HOSTILE, "prompt": HOSTILE, "target": HOSTILE, "extracted": {HOSTILE: HOSTILE}}
    browser.console.clear()
    opened(browser, two_cells(tmp_path, *rows, label=HOSTILE))
    assert browser.evaluate("window.planted") is None
    assert browser.evaluate("list.items.length") == 6
    assert browser.evaluate("document.querySelector('.sides pre').textContent") == HOSTILE
    assert browser.console == []


@needs_browser
@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_never_scrolls_sideways_and_is_legible(
    browser: Browser, page: Path, width: int, colours: str
) -> None:
    browser.resize(width, 800)
    browser.colours(colours)
    opened(browser, page)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    sides = browser.evaluate(
        "getComputedStyle(document.querySelector('.sides')).gridTemplateColumns.split(' ').length"
    )
    assert sides == (1 if width < 700 else 2)
    faint = browser.evaluate(CONTRAST)
    assert faint == [], "text with less contrast than WCAG AA asks"
    browser.resize(1280, 900)
    browser.colours("light")


UNBREAKABLE = "Z" + "\u0301\u0350" * 150 + "W" * 200


@needs_browser
def test_nothing_is_too_long_for_the_page(browser: Browser, tmp_path: Path) -> None:
    rows = [synthetic.samples(scores) for scores in (np.arange(6) < 3, np.arange(6) >= 3)]
    for row in rows[0] + rows[1]:
        row |= {"subtask": UNBREAKABLE, "extracted": {"none": UNBREAKABLE}, "output": UNBREAKABLE}
    path = two_cells(tmp_path, *rows, label=UNBREAKABLE)
    for width in (390, 1280):
        browser.resize(width, 800)
        opened(browser, path)
        assert UNBREAKABLE in detail(browser)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.resize(1280, 900)


@needs_browser
def test_a_table_on_a_phone_leaves_room_for_its_numbers(browser: Browser, page: Path) -> None:
    browser.resize(390, 800)
    opened(browser, page)
    taken = browser.evaluate(
        "[...document.querySelectorAll('[id^=table-] th[scope=row]')].map(t => t.offsetWidth / t.closest('.scroll').clientWidth)"
    )
    assert 0 < max(taken) < 0.5
    cut = browser.evaluate(
        "[...document.querySelectorAll('.block span')].filter(s => s.getBoundingClientRect().right > innerWidth).length"
    )
    assert cut == 0, "titles of blocks are read without scrolling"
    browser.resize(1280, 900)


@needs_browser
def test_what_turns_the_direction_of_text_turns_nothing_but_itself(browser: Browser, tmp_path: Path) -> None:
    rows = [synthetic.samples(np.array([score])) for score in (0.0, 1.0)]
    for (row,) in rows:
        row |= {"extracted": {"none": "\u202eabc"}, "tokens": 12}
    opened(browser, two_cells(tmp_path, *rows))
    left = (
        "[...document.querySelectorAll('.sides p bdi')].slice(0, 2).map(e => e.getBoundingClientRect().left)"
    )
    reading, tokens = browser.evaluate(left)
    assert "12 tokens" in detail(browser)
    assert reading < tokens, "the reading, then the tokens, from left to right"


@needs_browser
def test_without_scripts_and_on_paper_the_page_has_no_dead_controls(browser: Browser, page: Path) -> None:
    shown = "['explorer', 'samples'].map(id => document.getElementById(id).checkVisibility())"
    opened(browser, page)
    assert browser.evaluate(shown) == [True, True]
    browser.media("print")
    assert browser.evaluate(shown) == [False, False]
    folded = "[...document.querySelectorAll('details dl')].map(e => e.getBoundingClientRect().height > 0)"
    assert browser.evaluate(folded) and all(browser.evaluate(folded)), "what is folded is printed"
    browser.media("screen")
    browser.scripts(False)
    browser.open(page)
    assert browser.evaluate(shown) == [False, True]
    text = browser.evaluate("document.body.innerText")
    assert "The browser of samples needs JavaScript" in text
    assert "The claims of the abstract" in text and "Accuracy in per cent" in text
    browser.scripts(True)


@needs_browser
def test_documents_beyond_the_limit_are_listed_and_their_file_is_named(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "TEXTS", 10)
    rows = [synthetic.samples(np.arange(30) % 5 == k) for k in range(2)]
    opened(browser, two_cells(tmp_path, *rows))
    assert count(browser) == "12 of 30 documents changed: 6 gained, 6 lost. 12 listed."
    assert "What is 0 + 0?" in detail(browser), "changed documents come first"
    press_on_list(browser, "End")
    assert re.search(r"results/cells/[0-9a-f]{64}/samples.jsonl", detail(browser))


def test_the_limit_is_shared_so_that_small_benchmarks_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "TEXTS", 100)
    sizes = [5, 500, 60, 0]
    assert [min(size, samples._cap(sizes, [1] * 4)) for size in sizes] == [5, 47, 47, 0]
    assert [min(size, samples._cap(sizes, [2] * 4)) for size in sizes] == [5, 22, 22, 0]


def test_missing_records_are_listed_and_the_report_is_made(tmp_path: Path) -> None:
    made = synthetic.write_run(tmp_path / "somewhere", conditions=MAIN, documents=5)
    (page,) = render(read_results(made, tmp_path), tmp_path / "out")["report"]
    text = page.read_text()
    assert "records are missing or damaged" in text
    assert "The run has no data for a figure." in text
