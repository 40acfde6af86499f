"""The playground's server: a page on the loopback address, and four addresses that it asks.

    with listening(model, desk, port=7860) as address:
        desk.work()

GET /          the page (page.html, page.js, page.css: nothing from elsewhere)
GET /state     what can be chosen
GET /document?task=gsm8k&number=3
POST /ask      one row's answer: {"row": "vector", "prompt": "…"}, or {"alpha": 0.35, "task": "gsm8k", "document": 3}

Guards against other web pages in the same browser: it listens on 127.0.0.1 alone; a request whose Host is not this machine
is refused (DNS rebinding), so is one that another site sent (Origin, Sec-Fetch-Site), and a question must be JSON, for which
a browser asks leave first. It does not guard against other users of this machine, who can ask too.
"""

import json
import logging
import math
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.ask.choice import SWEPT
from pipeline.ask.desk import Desk
from pipeline.ask.session import Decoding, Session
from pipeline.errors import UserError

LOOPBACK = "127.0.0.1"
OURS = (LOOPBACK, "localhost")  # names of this machine that a Host header may have
LARGEST = 1 << 20  # bytes of a question
PATIENCE = 30.0  # seconds for a request to arrive
FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
log = logging.getLogger(__name__)


class Question(BaseModel):
    """What the page asks of one row."""

    model_config = ConfigDict(extra="forbid", strict=True)

    row: str | None = None
    alpha: float | None = None
    prompt: str | None = None
    task: str | None = None
    document: int = 0
    temperature: float = 0.0
    max_tokens: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Do nothing if it names one row and one thing to ask.

        Raises:
            UserError: saying what is expected.
        """
        if (self.row is None) == (self.alpha is None):
            raise UserError("expected a row or an alpha")
        if (self.prompt is None) == (self.task is None):
            raise UserError("expected a prompt or a task")
        if self.document < 0:
            raise UserError(f"document={self.document}: expected a number from 0")
        if not math.isfinite(self.alpha or 0.0):
            raise UserError(f"alpha={self.alpha}: expected a finite number")


class Refused(Exception):
    """A request that is not answered, with its status."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Server(ThreadingHTTPServer):
    """Threads read requests and write answers; the model is asked at the desk."""

    daemon_threads = True

    def __init__(self, model: Session, desk: Desk, port: int) -> None:
        self.model, self.desk = model, desk
        super().__init__((LOOPBACK, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone away is no error of ours."""
        log.debug("a request of %s ended early", client_address, exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version, sys_version = "playground", ""
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def _answer(self, method: Any) -> None:
        try:
            self._check_sender()
            body, kind = method(urllib.parse.urlsplit(self.path))
            status = HTTPStatus.OK
        except Refused as e:
            status, kind, body = e.status, "application/json", _json({"error": str(e)})
        except UserError as e:
            status, kind, body = HTTPStatus.BAD_REQUEST, "application/json", _json({"error": str(e)})
        except (
            Exception
        ):  # a request of one page must not end the playground for the others: told here and there
            log.exception("the playground could not answer %s", self.path.partition("?")[0])
            text = "the playground could not answer; its terminal says why"
            status, kind = HTTPStatus.INTERNAL_SERVER_ERROR, "application/json"
            body = _json({"error": text})
        if status is not HTTPStatus.OK:
            self.close_connection = True  # the rest of the request has not been read
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _check_sender(self) -> None:
        """Refuse what another web page may have sent."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or _name(hosts[0]) not in OURS:
            raise Refused(HTTPStatus.FORBIDDEN, f"Host: expected {' or '.join(OURS)}")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{hosts[0]}":
            raise Refused(HTTPStatus.FORBIDDEN, "Origin: expected this page")
        site = self.headers.get("Sec-Fetch-Site", "none")
        if site not in ("same-origin", "none") and urllib.parse.urlsplit(self.path).path != "/":
            raise Refused(HTTPStatus.FORBIDDEN, "Sec-Fetch-Site: expected this page")

    def _get(self, url: urllib.parse.SplitResult) -> tuple[bytes, str]:
        if url.path in FILES:
            name, kind = FILES[url.path]
            return (Path(__file__).parent / name).read_bytes(), kind
        model, desk = self.server.model, self.server.desk
        if url.path == "/state":
            return _json(state(model)), "application/json"
        if url.path == "/document":
            given = dict(urllib.parse.parse_qsl(url.query))
            task, number = given.get("task", ""), given.get("number", "")
            if not (number.isascii() and number.isdigit() and len(number) < 10):
                raise UserError(f"document={number:.40}: expected a number from 0")
            question, target = desk.do(lambda: model.document(task, int(number)))
            return _json({"question": question, "target": target}), "application/json"
        raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address")

    def _post(self, url: urllib.parse.SplitResult) -> tuple[bytes, str]:
        if url.path != "/ask":
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type: expected application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and int(length) <= LARGEST):
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {LARGEST} bytes")
        try:
            question = Question.model_validate_json(self.rfile.read(int(length)))
        except ValidationError as e:
            first = e.errors(include_url=False, include_context=False)[0]
            raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        question.check()
        answer = self.server.desk.do(lambda: answered(self.server.model, question))
        return _json(answer), "application/json"


def state(model: Session) -> dict[str, Any]:
    """What the page lets one choose."""
    return {
        "experiment": model.config.name,
        "family": model.family.config.label,
        "has_vector": model.family.vector_key is not None,
        "rows": [{"name": r.name, "label": r.label} for r in model.rows.values() if r.origin != SWEPT],
        "tasks": list(model.benchmarks),
    }


def answered(model: Session, question: Question) -> dict[str, Any]:
    """One row's answer, as the page shows it.

    Raises:
        UserError: for a row, task or document that is not there, or a question that does not fit.
    """
    if question.alpha is not None:
        row = model.at(question.alpha)
    elif question.row in model.rows:
        row = model.rows[question.row]
    else:
        raise UserError(f"row={question.row}: no such row")
    decoding = Decoding(question.temperature, max_tokens=question.max_tokens, seed=question.seed)
    started = time.monotonic()
    if question.task is None:
        answer, *_ = model.ask_row(row, question.prompt or "", decoding)
    else:
        own = decoding if question.temperature else None  # else as an evaluation asks it
        answer, *_ = model.ask_row_document(row, question.task, question.document, own)
    return asdict(answer) | {"seconds": round(time.monotonic() - started, 2)}


@contextmanager
def listening(model: Session, desk: Desk, port: int) -> Iterator[str]:
    """Listen beside this thread, and yield the page's address.

    Raises:
        UserError: if the port is taken.
    """
    try:
        server = Server(model, desk, port)
    except OSError as e:
        raise UserError(f"port={port}: {e.strerror}; choose another, as in port={port + 1}") from None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_address[1]}/"
    finally:
        desk.close()
        server.shutdown()
        server.socket.close()


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    name, colon, port = host.rpartition(":")
    return name.lower() if colon and port.isdigit() else host.lower()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
