"""What every page is made of: its style, its script with the hash that the policy names, and packed samples.

    text = fill("page.html", packs, experiment="micro", …)

A page is one file that works from disk: no outside script, style, font or picture, and a content security policy that
refuses any (and any script but its own). What models wrote is shown as text, never as markup.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from pipeline.files import sha256
from pipeline.report.figures.draw import Drawn
from pipeline.report.page.samples import Packs

_FOLDER = Path(__file__).parent
_SCRIPTS = ("diff.js", "list.js", "browser.js")


@dataclass(frozen=True)
class _Page:
    """What parts.html needs."""

    style: str
    script: str
    script_hash: str
    packs: Packs


@dataclass(frozen=True)
class Picture:
    """A figure for the template: both drawings as base64 of SVG."""

    name: str
    caption: str
    wide: str
    narrow: str


def pictures(drawn: Sequence[Drawn], captions: dict[str, str]) -> list[Picture]:
    """Figures as the template takes them."""
    return [
        Picture(figure.name, captions[figure.name], _base64(figure.wide), _base64(figure.narrow))
        for figure in drawn
    ]


def fill(template: str, packs: Packs, **known: object) -> bytes:
    """A page from its template; every text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    script = "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    page = _Page(style, script, _base64(bytes.fromhex(sha256(script.encode()))), packs)
    return environment.get_template(template).render(page=page, **known).encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
