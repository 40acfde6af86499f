"""The playground: a page on the loopback address in a real browser, what its server refuses, and its end by Ctrl-C."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main
from pipeline.files import ROOT
from tests.browser import BINARY, Browser

pytestmark = pytest.mark.engine
needs_browser = pytest.mark.skipif(BINARY is None, reason="no Chromium on this machine")
JSON = {"Content-Type": "application/json"}
HUGO = "Question: Hugo has 29 balls. Omar has 34 more balls than Hugo. How many balls do they have together?\nAnswer:"


@dataclass(frozen=True)
class Playground:
    """A playground as a process."""

    process: subprocess.Popen[str]
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer; `headers` may have a Host of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        given = {"Host": f"127.0.0.1:{self.port}"} | (headers or {})
        connection.putrequest(method, path, skip_host=True)
        for name, value in given.items():
            connection.putheader(name, value)
        if data is not None and "Content-Length" not in given:
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()

    def ask(self, **question: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.request("POST", "/ask", question, JSON)[2])
        return found


def started(folder: Path) -> Playground:
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "playground",
        "experiment=micro",
        f"results={folder}",
        "port=0",
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    found = re.fullmatch(r"the playground is at http://127\.0\.0\.1:(\d+)/ \(Ctrl-C ends it\)\n", line)
    assert found, line or process.stderr.read()[-3000:]
    return Playground(process, int(found[1]))


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    made = started(tmp_path_factory.mktemp("playground"))
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait()


@pytest.fixture
def page(playground: Playground) -> Iterator[Browser]:
    browser = Browser(1200, 900)
    browser.visit(playground.address)
    browser.wait_for("document.querySelectorAll('input[name=row]').length > 0")
    yield browser
    browser.close()


def choose(browser: Browser, name: str, value: str) -> None:
    """Set a control and tell the page, as a user does."""
    browser.evaluate(
        f"{{ const c = document.getElementById({name!r}); c.value = {json.dumps(value)};"
        " c.dispatchEvent(new Event('input')); c.dispatchEvent(new Event('change')); }"
    )


def ask(browser: Browser) -> list[dict[str, Any]]:
    """Press the button, and the columns of the answer once all are there."""
    count = browser.evaluate("document.querySelectorAll('section').length")
    browser.evaluate("document.getElementById('ask').click()")
    done = "[...document.querySelectorAll('section:first-child .quiet')].every(p => p.textContent.includes(' s'))"
    browser.wait_for(f"document.querySelectorAll('section').length > {count} && {done}", seconds=120)
    found: list[dict[str, Any]] = browser.evaluate(
        "[...document.querySelectorAll('section:first-child article')].map(a => ({label: a.querySelector('h2').innerText,"
        " text: a.querySelector('pre').textContent, facts: a.querySelector('p').innerText, right: a.className}))"
    )
    return found


@needs_browser
def test_a_document_is_asked_under_two_conditions_and_scored(page: Browser, playground: Playground) -> None:
    choose(page, "task", "gsm8k")
    choose(page, "number", "3")
    page.wait_for("document.getElementById('prompt').value.includes('Omar has 34 more')")
    assert page.evaluate("document.getElementById('expected').innerText").endswith("#### 93")
    bare, steered = ask(page)
    assert (bare["label"], steered["label"]) == ("Baseline", "α = 1")
    assert bare["text"] == playground.ask(row="baseline", task="gsm8k", document=3)["text"] != steered["text"]
    for column in (bare, steered):
        assert (
            column["right"] == ("right" if "score 1" in column["facts"] else "wrong")
            and "tokens" in column["facts"]
        )
    assert page.console == [] and all(url.startswith(playground.address) for url in page.requested)


@needs_browser
def test_the_slider_moves_the_weights_and_asks_again(page: Browser) -> None:
    choose(page, "prompt", HUGO)
    page.evaluate("document.querySelector('input[name=row]').click()")
    choose(page, "slider", "-1")
    (minus,) = ask(page)
    page.evaluate("document.getElementById('live').click()")
    choose(page, "slider", "1")
    page.wait_for("document.querySelector('section h2').innerText === 'α = 1'")
    page.wait_for("document.querySelector('section .quiet').innerText.includes(' s')", seconds=120)
    text = page.evaluate("document.querySelector('section pre').textContent")
    assert minus["label"] == "α = −1" and text.endswith("#### 63") and minus["text"] != text


@needs_browser
def test_a_mistake_is_shown_and_the_page_goes_on(page: Browser) -> None:
    page.evaluate("document.getElementById('ask').click()")
    page.wait_for("document.getElementById('error').innerText.includes('expected a text, found none')")
    assert page.evaluate("document.querySelector('section .quiet').innerText") == "not asked"
    choose(page, "prompt", HUGO)
    assert len(ask(page)) == 2 and page.evaluate("document.getElementById('error').innerText") == ""


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_is_not_wider_than_its_window(page: Browser, width: int) -> None:
    page.resize(width, 900)
    choose(page, "prompt", HUGO)
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@needs_browser
def test_what_a_model_writes_is_text_on_the_page(page: Browser) -> None:
    hostile = "<img src=x onerror=document.title='hit'><script>document.title='hit'</script>"
    page.evaluate(
        f"window.fetch = async () => new Response(JSON.stringify({{text: {hostile!r}, label: 'a', tokens: 1,"
        " finish: 'stop', score: null, seconds: 1}))"
    )
    choose(page, "prompt", hostile)
    assert ask(page)[0]["text"] == hostile
    assert page.evaluate("document.querySelectorAll('img, section script').length") == 0
    assert "hit" not in page.evaluate("document.title")


@needs_browser
def test_another_page_in_the_browser_can_neither_read_nor_ask(playground: Playground, tmp_path: Path) -> None:
    """A page from elsewhere: its origin is not the playground's."""
    browser = Browser(800, 600)
    (tmp_path / "other.html").write_text("<!doctype html><title>other</title>")
    browser.open(tmp_path / "other.html")
    question = json.dumps({"row": "baseline", "prompt": HUGO})
    for path, options in {
        "state": "{}",
        "document?task=gsm8k&number=1": "{}",
        "ask": f"{{method: 'POST', headers: {json.dumps(JSON)}, body: {json.dumps(question)}}}",
    }.items():
        fetched = f"fetch({(playground.address + path)!r}, {options}).then(r => r.text(), e => 'refused')"
        assert browser.evaluate(fetched) == "refused"
    browser.close()


def test_the_page_and_its_parts_allow_nothing_from_elsewhere(playground: Playground) -> None:
    for path in ("/", "/page.js", "/page.css", "/state"):
        status, headers, body = playground.request("GET", path)
        assert status == 200 and body and b"http" not in body.replace(b"http://www.w3.org", b"")
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert headers["X-Content-Type-Options"] == "nosniff" and "Access-Control-Allow-Origin" not in headers


QUESTION = {"row": "baseline", "prompt": HUGO}
REFUSED: dict[str, tuple[int, str, str, Any, dict[str, str]]] = {
    "a name that was rebound to this machine": (403, "GET", "/state", None, {"Host": "evil.example"}),
    "that name with our port": (403, "POST", "/ask", QUESTION, JSON | {"Host": "evil.example:80"}),
    "a name that begins like ours": (403, "GET", "/", None, {"Host": "localhost.evil.example"}),
    "no name": (403, "GET", "/", None, {"Host": ""}),
    "another site's form": (403, "POST", "/ask", QUESTION, JSON | {"Origin": "http://evil.example"}),
    "a page of a file": (403, "POST", "/ask", QUESTION, JSON | {"Origin": "null"}),
    "another program of this machine": (
        403,
        "POST",
        "/ask",
        QUESTION,
        JSON | {"Origin": "http://127.0.0.1:1"},
    ),
    "a picture of another site": (403, "GET", "/document", None, {"Sec-Fetch-Site": "cross-site"}),
    "a question that needs no leave": (415, "POST", "/ask", QUESTION, {"Content-Type": "text/plain"}),
    "a question without a kind": (415, "POST", "/ask", QUESTION, {}),
    "too long a question": (413, "POST", "/ask", b"", JSON | {"Content-Length": str(1 << 30)}),
    "a length that is none": (413, "POST", "/ask", b"", JSON | {"Content-Length": "-1"}),
    "an address of a file": (404, "GET", "/../../README.md", None, {}),
    "an address that is none": (404, "POST", "/", QUESTION, JSON),
    "another method": (501, "DELETE", "/ask", None, {}),
    "no JSON": (400, "POST", "/ask", b"{", JSON),
    "a list": (400, "POST", "/ask", [1], JSON),
    "an unknown key": (400, "POST", "/ask", QUESTION | {"rm": 1}, JSON),
    "a text for a number": (400, "POST", "/ask", QUESTION | {"seed": "1"}, JSON),
    "a row that is not there": (400, "POST", "/ask", QUESTION | {"row": "vectr"}, JSON),
    "two rows": (400, "POST", "/ask", QUESTION | {"alpha": 1.0}, JSON),
    "nothing asked": (400, "POST", "/ask", {"row": "baseline"}, JSON),
    "no number": (400, "POST", "/ask", b'{"alpha": NaN, "prompt": "a"}', JSON),
    "too large a number": (400, "POST", "/ask", {"alpha": 1e39, "prompt": "a"}, JSON),
    "a number of answers": (400, "POST", "/ask", QUESTION | {"samples": 10**9}, JSON),
    "a document that is not there": (
        400,
        "POST",
        "/ask",
        {"alpha": 1, "task": "gsm8k", "document": 10**9},
        JSON,
    ),
    "a document before the first": (400, "POST", "/ask", {"alpha": 1, "task": "gsm8k", "document": -1}, JSON),
    "a task that is not there": (400, "GET", "/document?task=x&number=1", None, {}),
    "a number that is none": (400, "GET", "/document?task=gsm8k&number=²", None, {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_is_refused_in_one_line_and_the_next_is_answered(playground: Playground, name: str) -> None:
    status, method, path, body, headers = REFUSED[name]
    found, _, answer = playground.request(method, path.replace("²", "%C2%B2"), body, headers)
    assert found == status
    if status != 501:
        assert json.loads(answer)["error"].strip()
    assert playground.request("GET", "/state")[0] == 200


def test_questions_of_several_at_once_are_answered_each_by_its_own_weights(playground: Playground) -> None:
    alone = {alpha: playground.ask(alpha=alpha, prompt=HUGO)["text"] for alpha in (-1.0, 0.0, 1.0)}
    assert len(set(alone.values())) > 1
    asked = [alpha for alpha in (1.0, -1.0, 0.0) * 4]
    with ThreadPoolExecutor(len(asked)) as many:
        answers = list(many.map(lambda alpha: playground.ask(alpha=alpha, prompt=HUGO), asked))
    assert [answer["text"] for answer in answers] == [alone[alpha] for alpha in asked]


def test_it_listens_on_the_loopback_address_alone(playground: Playground) -> None:
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{playground.port:04X}")
    ]
    assert listening == [f"0100007F:{playground.port:04X}"]


def test_a_port_that_is_taken_is_one_line(
    playground: Playground, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["playground", "experiment=micro", f"results={tmp_path}", f"port={playground.port}"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        said
        == f"error: port={playground.port}: Address already in use; choose another, as in port={playground.port + 1}"
    )


def test_ctrl_c_ends_it_with_who_still_waits(playground: Playground) -> None:
    """The last of this file: it ends the playground that the others use."""
    idle = socket.create_connection(("127.0.0.1", playground.port))  # a browser keeps its connection
    playground.process.send_signal(signal.SIGINT)
    out, err = playground.process.communicate(timeout=60)
    assert playground.process.returncode == 0 and out.strip() == "the playground has ended", err[-3000:]
    assert "Traceback" not in err
    idle.close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", playground.port), timeout=5)
