"""A plan where the hub cannot be reached: the grid, after one try, and nothing written."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.files import ROOT

PLAN = [sys.executable, "-m", "pipeline", "plan", "experiment=paper", "families=[1.5b]"]


@contextlib.contextmanager
def listening(says: bytes | None) -> Iterator[tuple[str, list[socket.socket]]]:
    """A server that says this to whoever connects, or keeps silent: its address, and the connections that were made."""
    server, taken = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken.append(server.accept()[0])
                if says is not None:
                    taken[-1].sendall(says)
                    taken[-1].close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", taken
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()
    for connection in taken:
        connection.close()


def planned(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    cleared = {
        k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY") and k != "HF_HUB_OFFLINE"
    }
    environment = cleared | {"HF_HOME": str(folder / "hub")} | variables
    command = [*PLAN, f"results={folder / 'results'}"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def check_grid(ran: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert ran.returncode == 0, ran.stderr
    assert "+Vector+Think" in ran.stdout and "which of them are done (?) is unknown" in ran.stdout
    assert "the hub does not answer; check the network" in ran.stdout and ran.stderr == ""
    assert not list((folder / "results").glob("*"))


@pytest.mark.parametrize("says", [None, b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"])
@pytest.mark.parametrize("by_proxy", [False, True])
def test_a_hub_or_proxy_that_is_silent_or_out_of_order_is_asked_once(
    tmp_path: Path, says: bytes | None, by_proxy: bool
) -> None:
    with listening(says) as (address, taken):
        variables = (
            {"http_proxy": address, "HF_ENDPOINT": "http://hub.invalid"}
            if by_proxy
            else {"HF_ENDPOINT": address}
        )
        check_grid(planned(tmp_path, **variables), tmp_path)
        assert len(taken) == 1


def test_nobody_who_listens(tmp_path: Path) -> None:
    check_grid(planned(tmp_path, HF_ENDPOINT="http://127.0.0.1:9"), tmp_path)
