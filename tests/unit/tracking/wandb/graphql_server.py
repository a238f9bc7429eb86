"""A W&B server on the loopback, for saved views and for online runs."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import wandb

KEY = "a" * 40
_USER = {"id": "u", "username": "someone", "email": "", "admin": False, "entity": "team", "flags": "{}"}


class WandbServer:
    """Answers of the server, and a record of the requests."""

    def __init__(self) -> None:
        self.address = ""
        self.views: dict[str, dict[str, Any]] = {}
        """Saved views by their id."""
        self.projects = {"rlkl": "UHJvamVjdDp2MTpybGtsOnRlYW0="}
        """Internal ids of the projects that exist."""
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Name and variables of each GraphQL request."""

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        name = re.search(r"(?:query|mutation)\s+(\w+)", query)
        self.asked.append((name.group(1) if name else "", variables))
        if "upsertView" in query:
            key = variables.get("id") or f"id-{len(self.views)}"
            self.views[key] = variables
            project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
            return {"upsertView": {"view": {**variables, "id": key, "project": project}, "inserted": True}}
        if "GetProjects" in query:
            nodes = [
                {"id": key, "name": name, "entityName": "team", "createdAt": "2026-01-01T00:00:00Z"}
                | {"__typename": "Project", "isBenchmark": False, "user": None}
                for name, key in self.projects.items()
            ]
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"models": {"pageInfo": page, "edges": [{"node": node} for node in nodes]}}
        if "internalId" in query:
            key = self.projects.get(variables["projectName"])
            return {"project": None if key is None else {"internalId": key}}
        if "allViews" in query:
            found = [(key, view) for key, view in self.views.items() if view["name"] == variables["viewName"]]
            nodes = [{"id": key, "displayName": v["displayName"], "spec": v["spec"]} for key, v in found]
            return {"project": {"allViews": {"edges": [{"node": node} for node in nodes]}}}
        if "upsertBucket" in query:
            project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "team"}}
            bucket = {"id": "b", "name": variables["name"], "displayName": variables["displayName"]}
            bucket |= {"description": "", "config": "{}", "sweepName": None, "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in query:
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}
        if "notifyScriptableRunAlert" in query:
            return {"notifyScriptableRunAlert": {"success": True}}
        if "RunResumeStatus" in query:
            return {"model": None}
        return {"viewer": {**_USER, "teams": {"edges": []}, "apiKeys": {"edges": []}}}

    def requests(self, name: str) -> list[dict[str, Any]]:
        """The variables of the GraphQL requests of one name."""
        return [variables for asked, variables in self.asked if asked == name]

    def spec(self, key: str) -> dict[str, Any]:
        return json.loads(self.views[key]["spec"])


@contextmanager
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """Run the server, and point wandb of this process to it."""
    known = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            answer: dict[str, Any] = {}
            if self.path == "/graphql":
                asked = json.loads(body)
                answer = {"data": known.answer(asked["query"], asked.get("variables") or {})}
            self._send(json.dumps(answer).encode())

        def do_GET(self) -> None:
            self._send(b"{}")

        do_PUT = do_POST

        def _send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    known.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("WANDB_BASE_URL", known.address)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    wandb.teardown()  # it keeps the address and the key of an earlier start
    try:
        yield known
    finally:
        wandb.teardown()
        server.shutdown()
        server.server_close()
