"""A stand-in for the Hugging Face hub on a local socket: as much of it as downloading files of a commit takes.

A repository is answered as a model and as a data set alike.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class LocalHub:
    """Serves repositories (`org/name` to a directory), each with one commit; `fetched` are the files that were read."""

    url: str
    repositories: dict[str, Path]
    fetched: list[str] = field(default_factory=list)

    def environment(self, home: Path) -> dict[str, str]:
        """Variables with which a process talks to this hub, with an empty cache."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}


@contextmanager
def local_hub(**repositories: Path) -> Iterator[LocalHub]:
    """Run it; repository `org__name` is called `org/name`. Revisions are `main`, `v1` and the commit."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    server.hub = LocalHub(url, {name.replace("__", "/"): path for name, path in repositories.items()})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        hub: LocalHub = self.server.hub
        is_api = parts[:2] in (["api", "models"], ["api", "datasets"])
        parts = parts[1:] if parts[0] == "datasets" else parts
        repo, rest = "/".join(parts[2:4] if is_api else parts[:2]), parts[4:] if is_api else parts[2:]
        directory = hub.repositories.get(repo)
        if directory is None:
            return self._send(
                404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, body
            )
        if len(rest) > 1 and rest[1] not in {"main", "v1", COMMIT}:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "No revision"}, body)
        if is_api:
            return self._send(200, self._listing(repo, directory, rest), {"Content-Type": "application/json"}, body)
        name = "/".join(rest[2:])
        if not (directory / name).is_file():
            missing = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "No file", "X-Repo-Commit": COMMIT}
            return self._send(404, b"", missing, body)
        if body:
            hub.fetched.append(name)
        content = (directory / name).read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self._send(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT}, body)

    @staticmethod
    def _listing(repo: str, directory: Path, rest: list[str]) -> bytes:
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        names = [str(path.relative_to(directory)) for path in files]
        if rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "oid": "0" * 40, "size": path.stat().st_size, "path": name}
                for path, name in zip(files, names, strict=True)
            ]
            return json.dumps(entries).encode()
        return json.dumps({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}).encode()

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)
