"""A small HTTP server that answers as an OpenAI-compatible endpoint does, or fails as one does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "judge-model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What to answer one request. ``status`` 0 closes the connection without an answer."""

    text: str | None = "Fine. [[7]]"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    body: bytes | None = None
    """Instead of a completion with ``text``."""


@dataclass(slots=True, kw_only=True)
class Endpoint:
    """A running server: what it was asked, and how many requests it held at once."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    held: int = 0
    most_held: int = 0


@contextmanager
def endpoint(answer: Callable[[int, dict[str, Any]], Reply]) -> Iterator[Endpoint]:
    """Serve on loopback; ``answer`` gets the number of the request, from 0 on, and its body."""
    state = Endpoint()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            known = self.path == "/v1/models"
            self._send(200 if known else 404, json.dumps({"data": [{"id": MODEL}, {"id": "other"}]}).encode(), {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(state.requests)
                state.requests.append(body)
                state.headers.append(dict(self.headers))
                state.held += 1
                state.most_held = max(state.most_held, state.held)
            reply = answer(number, body)
            time.sleep(reply.delay_s)
            with lock:
                state.held -= 1
            if reply.status == 0:
                self.close_connection = True
                return
            completion = {"choices": [{"message": {"role": "assistant", "content": reply.text}}]}
            self._send(
                reply.status, json.dumps(completion).encode() if reply.body is None else reply.body, reply.headers
            )

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield state
        server.shutdown()
        thread.join()
