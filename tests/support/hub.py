"""A stand-in for the Hugging Face hub on this machine: what its libraries ask it, and no more."""

import hashlib
import json
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40


@dataclass
class Hub:
    """Repositories by kind and name, such as `datasets/org/name`, each file name -> content.

    Attributes:
        gated: names of repositories that nobody may read.
        stall: a file of which four fifths are sent, and then nothing, until `go_on` is set.
        broken: a file after four fifths of which the connection breaks, once.
        asked: method, path and range of each request.
    """

    repositories: Mapping[str, Mapping[str, bytes]]
    gated: frozenset[str] = frozenset()
    stall: str | None = None
    broken: str | None = None
    go_on: threading.Event = field(default_factory=threading.Event)
    stalled: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    address: str = ""

    def downloads(self) -> list[str]:
        """The files whose content was asked for."""
        return [path for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]


@contextmanager
def hub(repositories, **options):
    """Serves repositories while the block runs."""
    state = Hub(repositories, **options)

    class Handler(_Handler):
        hub = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.go_on.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body=b""):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        api = path.startswith("api/")
        kind, *rest = path.removeprefix("api/").split("/")
        if kind not in ("models", "datasets", "spaces"):
            kind, rest = "models", [kind, *rest]
        if len(rest) < 2:
            return self._send(404, b"")
        name, rest = "/".join(rest[:2]), rest[2:]
        files = self.hub.repositories.get(f"{kind}/{name}")
        if files is None:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if name in self.hub.gated and not api:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", COMMIT):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if not api:
            return self._file(files, "/".join(rest[2:]))
        match rest[:1]:
            case ["tree"]:
                under = "/".join(rest[2:])
                inside = [entry for entry in _entries(files) if entry["path"].startswith(under)]
                return self._json(inside) if inside else self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            case ["paths-info"]:
                wanted = parse_qs(body.decode()).get("paths") or json.loads(body or b"{}").get("paths", [])
                return self._json([entry for entry in _entries(files) if entry["path"] in wanted])
            case [] | ["revision"]:
                siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
                return self._json({"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
        return self._send(404, b"")

    def _file(self, files, name):
        if name not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        span = self.headers.get("Range")
        if not span:
            return self._send(200, content, headers, stall=name in (self.hub.stall, self.hub.broken))
        start = int(span.removeprefix("bytes=").split("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._send(206, content[start:], headers)

    def _json(self, data):
        self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _send(self, status, content, headers=None, *, stall=False):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if stall:
            most = len(content) * 4 // 5
            self.wfile.write(content[:most])
            self.wfile.flush()
            if self.hub.broken is not None:
                self.hub.broken = None
                self.close_connection = True
                return
            self.hub.stalled.set()
            self.hub.go_on.wait()
            content = content[most:]
        self.wfile.write(content)


def _entries(files):
    return [
        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for name, content in files.items()
    ]


@contextmanager
def online(monkeypatch, state):
    """Lets this process's libraries ask the stand-in, which tests otherwise forbid."""
    import datasets.config
    import evaluate.config
    import huggingface_hub.constants as constants
    from huggingface_hub import HfFileSystem

    HfFileSystem.clear_instance_cache()  # an instance remembers another stand-in
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", state.address)
        patch.setattr("transformers.utils.hub._hf_api", None)  # nor may this one
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", state.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setattr(datasets.config, name, False)
        patch.setattr(datasets.config, "HF_ENDPOINT", state.address)
        patch.setattr(evaluate.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
        patch.setattr(evaluate.config, "HUB_EVALUATE_URL", state.address + "/spaces/{path}/resolve/{revision}/{name}")
        yield


def answer_from(state):
    """Environment variables that make a new process ask the stand-in."""
    return {"HF_ENDPOINT": state.address, "HF_HUB_OFFLINE": "0"}
