"""A Hugging Face Hub on the loopback: accounts, repositories, uploads of files and commits."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_tokenOfTheTestAccount"


class Hub:
    """Repositories, and the files in them, by name."""

    def __init__(self) -> None:
        self.address = ""
        self.is_private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []

    def get(self, path: str) -> tuple[int, Any]:
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "me", "orgs": []}
        repo = path.removeprefix("/api/models/").removesuffix("/revision/main")
        if repo not in self.is_private:
            return 404, {"error": "Repository not found"}
        return 200, {"id": repo, "private": self.is_private[repo], "tags": [], "downloads": 0, "likes": 0}

    def post(self, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = asked["name"] if "organization" not in asked else f"{asked['organization']}/{asked['name']}"
            repo = repo if "/" in repo else f"me/{repo}"
            self.is_private.setdefault(repo, bool(asked.get("private")) or asked.get("visibility") == "private")
            self.files.setdefault(repo, {})
            return {"url": f"{self.address}/{repo}", "name": repo, "id": "1"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            large = (".safetensors", ".parquet", ".png")
            modes = [{"path": n, "uploadMode": "lfs" if n.endswith(large) else "regular"} for n in names]
            return {"files": [{**mode, "shouldIgnore": False} for mode in modes]}
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            upload = [{"upload": {"href": f"{self.address}/blob/{o['oid']}", "header": {}}} for o in wanted]
            objects = [{**one, "actions": action} for one, action in zip(wanted, upload, strict=True)]
            return {"transfer": "basic", "objects": objects}
        found = re.fullmatch(r"/api/models/(.+)/commit/main", path)
        assert found, path
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.files[found[1]][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.files[found[1]][value["path"]] = self.blobs[value["oid"]]
        return {"commitUrl": f"{self.address}/{found[1]}/commit/abc", "commitOid": "a" * 40}


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the hub. Requests without the token of the test account are refused."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.requests.append(f"GET {self.path}")
            known = self.headers["Authorization"] == f"Bearer {TOKEN}"
            status, answer = hub.get(self.path.partition("?")[0]) if known else (401, {"error": "Invalid token"})
            self._send(status, answer, {"X-Error-Code": "RepoNotFound"} if status == 404 else {})

        def do_POST(self) -> None:
            hub.requests.append(f"POST {self.path}")
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            self._send(200, hub.post(self.path.partition("?")[0], body), {})

        def do_PUT(self) -> None:
            hub.blobs[self.path.rpartition("/")[2]] = self._body()
            self._send(200, {}, {})

        def _body(self) -> bytes:
            if self.headers["Content-Length"]:
                return self.rfile.read(int(self.headers["Content-Length"]))
            chunks: list[bytes] = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def _send(self, status: int, answer: Any, headers: dict[str, str]) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
