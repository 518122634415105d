"""A Hugging Face hub on the loopback: as much of its HTTP interface as makes, fills and reads repositories.

Weights come by Git LFS, which the hub's clients speak when HF_HUB_DISABLE_XET is set.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Branches, each with its files."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b""}})


@dataclass
class Hub:
    """What the server holds; a test may change it at any time."""

    token: str
    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    """By kind (`models`, `datasets`) and name."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """What was sent by LFS, by SHA-256."""
    full: bool = False
    """Refuse further blobs."""
    n_sent: int = 0
    """Blobs received."""


@contextmanager
def serve(token: str) -> Iterator[Hub]:
    """Run until the block ends."""
    hub = Hub(token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._answer(401, {"error": "Invalid username or password."})
        path = unquote(urlsplit(self.path).path)
        for pattern, method in _POST.items():
            if match := re.fullmatch(pattern, path):
                return getattr(self, method)(*match.groups(), body)
        return self._answer(404, {"error": f"no POST {path}"})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.hub.full:
            return self._answer(413, {"error": "storage limit reached"})
        assert hashlib.sha256(body).hexdigest() == self.path.removeprefix("/lfs/")
        self.hub.blobs[self.path.removeprefix("/lfs/")] = body
        self.hub.n_sent += 1
        return self._answer(200, {})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)", path):
            return self._tree(*match.groups())
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*match.groups())
        return self._answer(404, {"error": f"no GET {path}"})

    do_HEAD = do_GET

    def _create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        key = (wanted.get("type", "model") + "s", name)
        if key in self.hub.repositories:
            return self._answer(
                409, {"error": "You already created this repo", "url": f"{self.hub.url}/{name}"}
            )
        self.hub.repositories[key] = Repository(wanted["visibility"] == "private")
        return self._answer(200, {"url": f"{self.hub.url}/{name}"})

    def _branch(self, kind: str, name: str, branch: str, _: bytes) -> None:
        branches = self.hub.repositories[kind, name].branches
        if branch in branches:
            return self._answer(409, {"error": "Reference already exists"})
        branches[branch] = dict(branches["main"])
        return self._answer(200, {})

    def _preupload(self, _kind: str, _name: str, _branch: str, body: bytes) -> None:
        files = json.loads(body)["files"]
        large = re.compile(r".*\.(safetensors|parquet|model)")
        answers = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if large.fullmatch(file["path"]) else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        return self._answer(200, {"files": answers})

    def _lfs(self, _name: str, body: bytes) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append(wanted if wanted["oid"] in self.hub.blobs else {**wanted, "actions": upload})
        return self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, kind: str, name: str, branch: str, body: bytes) -> None:
        files = self.hub.repositories[kind, name].branches[branch]
        for operation in map(json.loads, body.splitlines()):
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        return self._answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/1", "commitOid": "1" * 40})

    def _card(self, _: bytes) -> None:
        return self._answer(200, {"errors": [], "warnings": []})

    def _tree(self, kind: str, name: str, branch: str) -> None:
        files = self._files(kind, name, branch)
        if files is None:
            return self._answer(404, {"error": "not found"}, {"X-Error-Code": "RevisionNotFound"})
        listed = [{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in files.items()]
        return self._answer(200, listed)

    def _file(self, name: str, branch: str, path: str) -> None:
        content = (self._files("models", name, branch) or {}).get(path)
        if content is None:
            return self._answer(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound"})
        commit = hashlib.sha1(branch.encode()).hexdigest()
        return self._send(
            200, content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        )

    def _files(self, kind: str, name: str, branch: str) -> dict[str, bytes] | None:
        repository = self.hub.repositories.get((kind, name))
        branches = repository.branches if repository else {}
        by_commit = {hashlib.sha1(known.encode()).hexdigest(): files for known, files in branches.items()}
        return branches.get(branch, by_commit.get(branch))

    def _answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        self._send(
            status, json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {})
        )

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


_POST = {
    r"/api/repos/create": "_create",
    r"/api/validate-yaml": "_card",
    r"/api/(models|datasets)/([^/]+/[^/]+)/branch/([^/]+)": "_branch",
    r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/([^/]+)": "_preupload",
    r"/api/(models|datasets)/([^/]+/[^/]+)/commit/([^/]+)": "_commit",
    r"/(?:datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch": "_lfs",
}
