"""A library's report reaches a real server, unless a command of rlkl or a trainer of reward models runs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

REPORT = "from huggingface_hub.utils import send_telemetry; send_telemetry('trl/test', library_name='trl')"
COMMAND = "from rlkl.cli import main; main(['keys', 'seed'])"
SILENCE = "from rlkl.system.telemetry import silence_telemetry; silence_telemetry()"
LATE = "import huggingface_hub.constants; " + SILENCE
WAIT = "from huggingface_hub.utils._telemetry import _TELEMETRY_QUEUE; _TELEMETRY_QUEUE.join()"


@pytest.fixture(scope="module")
def reports() -> Iterator[tuple[str, list[str]]]:
    """Address of a server, and the paths that it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("before", "variables", "sent"),
    [
        ("", {}, True),
        (COMMAND, {}, False),
        (LATE, {}, False),
        (SILENCE, {"HF_HUB_DISABLE_TELEMETRY": "0", "DO_NOT_TRACK": "0"}, True),
    ],
    ids=["alone", "after a command", "library loaded before", "as the user wants"],
)
def test_reports_are_sent_only_if_the_user_asks_for_them(
    reports: tuple[str, list[str]], before: str, variables: dict[str, str], sent: bool
):
    address, paths = reports
    paths.clear()
    unwanted = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI")
    inherited = {name: value for name, value in os.environ.items() if name not in unwanted}
    subprocess.run(
        [sys.executable, "-c", f"{before}\n{REPORT}\n{WAIT}"],
        env={**inherited, "HF_ENDPOINT": address, **variables},
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert [path for path in paths if "telemetry" in path] == (["/api/telemetry/trl/test"] if sent else [])
