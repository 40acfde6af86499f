"""Repositories of the hub, as folders of its cache; one line for each way in which the hub may refuse.

    folder = fetch("Qwen/Qwen2.5-1.5B", None)
    folder.name                                 # the commit

The hub's own client downloads, asks again a few times where that can help, and takes nothing for whole that is not.
A hub that is silent, refuses, or breaks off is a `UserError` with its remedy, and never a wait without an end.
"""

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import UserError

ANSWERS_WITHIN = 3.0  # seconds that the hub has for each step of an answer, when it is asked once
GATEWAY = (407, 502, 503, 504)  # what a proxy says in the hub's place
_unreachable: ContextVar[bool] = ContextVar("unreachable", default=False)
_NETWORK = "check the network, or fill the cache (HF_HOME) on a machine that has one and set HF_HUB_OFFLINE=1"


def fetch(
    name: str,
    revision: str | None,
    kind: str = "model",
    patterns: list[str] | None = None,
    ignored: list[str] | None = None,
) -> Path:
    """The folder of a repository at a revision, downloaded where it is not in the cache; its name is the commit.

    Args:
        name: hub id.
        revision: branch, tag or commit; None is main.
        kind: "model" or "dataset".
        patterns: which files; None is all.
        ignored: which of them not.

    Raises:
        UserError: if the hub does not give it, with the remedy.
    """
    download = client().snapshot_download
    try:  # told not to look at the hub: 1.26 to 1.33 of its client ask it for the files of a commit even offline
        offline = client().constants.HF_HUB_OFFLINE or _unreachable.get()
        found = download(
            name,
            repo_type=kind,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=ignored,
            local_files_only=offline,
        )
        return Path(found)
    except Exception as error:  # the client's network library has exceptions of its own
        kind_of_error = Unreachable if _unreachable.get() else UserError
        raise kind_of_error(f"{name} at {revision or 'main'}: {_reason(error)}") from error


class Unreachable(UserError):
    """The hub does not answer, and what is asked of it is not in the cache."""


@contextmanager
def asked_once() -> Iterator[bool]:
    """Find out once whether the hub answers; inside, where it does not, only its cache is looked at.

    The client itself asks five times, a minute in all, which is right for a run and long for a plan.
    """
    token = _unreachable.set(not client().constants.HF_HUB_OFFLINE and not _answers())
    try:
        yield not _unreachable.get()
    finally:
        _unreachable.reset(token)


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Inside, repositories are fetched into the cache in `folder`."""
    constants = client().constants
    before, constants.HF_HUB_CACHE = constants.HF_HUB_CACHE, str(folder)
    try:
        yield
    finally:
        constants.HF_HUB_CACHE = before


def _answers() -> bool:
    """Whether the hub answers a request, whatever it says; by way of the proxy, where the environment names one."""
    request = urllib.request.Request(client().constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=ANSWERS_WITHIN).close()
    except urllib.error.HTTPError as e:
        return e.code not in GATEWAY
    except (OSError, ValueError, HTTPException):
        return False
    return True


@lru_cache
def client() -> ModuleType:
    """The module `huggingface_hub`, with requests that end: some of its own would wait for a silent hub for ever."""
    import huggingface_hub
    from huggingface_hub.utils._http import default_client_factory  # has hooks that must stay

    def bound(request: Any) -> None:  # of httpx or httpx2, by the version of the client
        limits = request.extensions.get("timeout", {})
        wait = huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT
        parts = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {part: limits.get(part) or wait for part in parts}

    def factory() -> Any:
        made = default_client_factory()
        made.event_hooks["request"].append(bound)
        return made

    huggingface_hub.set_client_factory(factory)
    return huggingface_hub


def is_silent() -> bool:
    """Whether the hub was found not to answer (`asked_once`)."""
    return _unreachable.get()


def refusal(error: BaseException) -> str | None:
    """Why the hub does not give what it was asked for, and what to do; None unless asking again would be in vain."""
    status = _status(_causes(error))
    if status in (401, 403):
        return (
            f"the hub refuses it ({status}): log in with `hf auth login` or HF_TOKEN, accept its terms on its page, and"
            " check the spelling"
        )
    if status == 404:
        return "the hub has no such repository or revision (404); check the spelling"
    return None


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def _status(chain: list[BaseException]) -> int | None:
    """The status that the hub answered, wherever it is in the chain of causes."""
    return next((r.status_code for e in chain if (r := getattr(e, "response", None)) is not None), None)


def _reason(error: BaseException) -> str:
    """What went wrong and what to do."""
    chain = _causes(error)
    status = _status(chain)
    text = " ".join(str(chain[-1] if len(chain) > 1 else error).split())[:160]
    if _unreachable.get():
        return f"not whole in the hub's cache, and the hub does not answer; {_NETWORK}"
    if client().constants.HF_HUB_OFFLINE:
        return "not whole in the hub's cache, and HF_HUB_OFFLINE=1 forbids a download; unset it, or fill the cache (HF_HOME)"
    if (refused := refusal(error)) is not None:
        return refused
    if status == 429:
        return "the hub was asked too often (429); wait some minutes, or log in with `hf auth login`"
    if status is not None and status >= 500:
        return f"the hub is out of order ({status}); run again later, whole files stay"
    if isinstance(chain[-1], OSError) and chain[-1].errno is not None and chain[-1].filename is not None:
        return f"cannot be stored ({text}); free space, or set HF_HOME to another disk"
    return f"the hub does not answer, or not to the end ({text}); run again; {_NETWORK}"
