"""A hub for tests: folders as models and data sets over HTTP on the loopback.

With commits, ranges, gates and cut connections.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin")


@dataclass
class Hub:
    """What is served, what goes wrong, and what was asked for."""

    models: dict[str, dict[str, Path]] = field(default_factory=dict)
    """Model id, or `datasets/` and the id of a data set → commit → folder."""
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    """(model id, branch or tag) → commit."""
    status: int = 200
    """401 or 403: every model is gated; 500: nothing works."""
    cuts: list[int] = field(default_factory=list)
    """Each one ends the next large download after so many bytes."""
    broken_bytes: bool = False
    """Send large files with their last byte changed."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, Range)."""
    sent: dict[str, int] = field(default_factory=dict)
    """File name → bytes of content sent."""

    def push(self, model_id: str, folder: Path, branch: str = "main") -> str:
        """Serve a folder as the newest commit of a branch; return the commit."""
        commit = hashlib.sha1(f"{folder}{len(self.models.get(model_id, ()))}".encode()).hexdigest()
        self.models.setdefault(model_id, {})[commit] = folder
        self.branches[model_id, branch] = commit
        return commit

    def gets(self, ending: str = "") -> list[str]:
        """Return the paths of files asked for with GET."""
        return [path for method, path, _ in self.requests if method == "GET" and path.endswith(ending)]

    def forget(self) -> None:
        """Forget what was asked for."""
        self.requests.clear()
        self.sent.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None: ...

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        words = path.strip("/").split("/")
        is_api = words[0] == "api"
        words = words[1:] if is_api else words
        words = words[1:] if words[0] == "models" else words
        length = 3 if words[0] == "datasets" else 2
        model_id, rest = "/".join(words[:length]), words[length:]
        if self.hub.status == 500:
            return self._fail(500)
        if model_id not in self.hub.models:
            return self._fail(401, "RepoNotFound")
        if self.hub.status in (401, 403) and not is_api:
            return self._fail(self.hub.status, "GatedRepo")
        commit = self._commit(model_id, rest[1] if len(rest) > 1 else "main")
        if commit is None:
            return self._fail(404, "RevisionNotFound")
        folder = self.hub.models[model_id][commit]
        if is_api and rest[:1] == ["tree"]:
            return self._json([_entry(folder, file) for file in _files(folder)])
        if is_api and rest[:1] == ["paths-info"]:
            asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
            return self._json([_entry(folder, folder / name) for name in asked if (folder / name).is_file()])
        if is_api:
            siblings = [{"rfilename": file.relative_to(folder).as_posix()} for file in _files(folder)]
            return self._json({"id": model_id, "modelId": model_id, "sha": commit, "siblings": siblings})
        file = folder / "/".join(rest[2:])
        if not file.is_file():
            return self._fail(404, "EntryNotFound", {"X-Repo-Commit": commit})
        return self._file(file, commit, with_body)

    def _commit(self, model_id: str, revision: str) -> str | None:
        if revision in self.hub.models[model_id]:
            return revision
        return self.hub.branches.get((model_id, revision))

    def _file(self, file: Path, commit: str, with_body: bool) -> None:
        content = file.read_bytes()
        wanted = self.headers.get("Range")
        first, _, last = (wanted or "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(content)) + 1, len(content))
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{_etag(file)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(end - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if with_body:
            self._send(file, content[start:end])

    def _send(self, file: Path, content: bytes) -> None:
        if file.suffix in LARGE and self.hub.broken_bytes:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if file.suffix in LARGE and self.hub.cuts:
            content = content[: self.hub.cuts.pop(0)]
            self.close_connection = True
        # Before it is written: whoever has read it all may look before this thread goes on.
        self.hub.sent[file.name] = self.hub.sent.get(file.name, 0) + len(content)
        self.wfile.write(content)

    def _json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _fail(self, status: int, code: str = "", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": code, "Content-Length": "0", **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()


def serve(hub: Hub) -> ThreadingHTTPServer:
    """Serve the hub in a thread of its own; `shutdown` and `server_close` end it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _etag(file: Path) -> str:
    algorithm = "sha256" if file.suffix in LARGE else "sha1"
    return hashlib.new(algorithm, file.read_bytes()).hexdigest()


def _entry(folder: Path, file: Path) -> dict:
    size = file.stat().st_size
    entry = {"type": "file", "path": file.relative_to(folder).as_posix(), "size": size, "oid": _etag(file)[:40]}
    if file.suffix in LARGE:
        entry["lfs"] = {"oid": _etag(file), "size": size, "pointerSize": 134}
    return entry
