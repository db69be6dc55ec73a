"""A Hub on this machine for tests: it answers what the real client asks, and fails when told to.

Large files are kept as Git LFS and come by a redirect to another host, as from a CDN: the same
server under the name localhost. It listens on 127.0.0.1 only.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

BLOCK = 2**18


@dataclass
class Repo:
    """The files of one commit, and the names that lead to it."""

    files: dict[str, bytes]
    commit: str
    branches: set[str] = field(default_factory=lambda: {"main"})


@dataclass
class Fault:
    """What goes wrong: where `matches` says so, as often as `times`."""

    matches: str  # "METHOD path" must hold this text
    status: int = 0  # answer with it, and with this code
    code: str = ""
    cut: int | None = None  # close the connection after so many bytes of the body, from its start
    pause: float = 0.0  # seconds before each block of the body
    change: Callable[[bytes], bytes] | None = None  # other bytes
    answer: Callable[[BaseHTTPRequestHandler], object] | None = None  # say something else
    times: int = 10**9


class HubServer:
    """Serves `repos`; `log` lists each request as "METHOD path"."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.with_token: list[str] = []  # those of the log that came with a token
        self.listing_only: dict[str, int] = {}  # more names for every listing, with their sizes
        self.precious = ""  # a path that answers may name
        self.closed = False
        self._lock = threading.Lock()
        handler = type("BoundHandler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        port = self._server.server_address[1]
        self.url, self.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"

    def close(self) -> None:
        self.closed = True  # which ends answers that have no end
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo: str, files: dict[str, bytes]) -> str:
        """Publishes a commit as main; returns it."""
        content = [name.encode() + hashlib.sha1(data).digest() for name, data in files.items()]
        commit = hashlib.sha1(b"".join(content)).hexdigest()
        self.repos[repo] = Repo(files, commit)
        return commit

    def fault(self, request: str) -> Fault | None:
        """The fault that strikes this request, if any; one use of it is spent."""
        with self._lock:
            for fault in self.faults:
                if fault.matches in request and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def paths(self, kind: str) -> list[str]:
        """The names of the files asked for with GET or HEAD, in order."""
        marked = [line for line in self.log if line.startswith(kind) and "/resolve/" in line]
        return [line.rsplit("/", 1)[1] for line in marked]


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[HubServer]:
    """A Hub that the client of this process and of others uses, with its cache under `home`."""
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_VERBOSITY", "error")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    verbosity = huggingface_hub.logging.get_verbosity()
    huggingface_hub.logging.set_verbosity_error()
    try:
        yield server
    finally:
        huggingface_hub.logging.set_verbosity(verbosity)
        server.close()


def without_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lets the client try again at once; the pauses that it would have made, in seconds."""
    pauses: list[float] = []
    clock = SimpleNamespace(**vars(time) | {"sleep": pauses.append})
    monkeypatch.setattr(file_download, "time", clock)
    return pauses


def is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Prints nothing: clients leave in the middle of an answer."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.0"  # a connection a request, so that none outlives its test

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.log.append(request)
        if "Authorization" in self.headers:
            self.hub.with_token.append(request)
        fault = self.hub.fault(request)
        if fault and fault.answer:
            with suppress(OSError):  # the client has enough
                fault.answer(self)
            return None
        if fault and fault.status:
            return self._refuse(fault.status, fault.code)
        parts = path.strip("/").split("/")
        if parts[0] == "cdn":
            repo = self.hub.repos["/".join(parts[1:3])]
            return self._send(repo.files[parts[-1]], {}, fault)
        api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if api else parts
        repo = self.hub.repos.get(f"{owner}/{name}")
        if repo is None:
            return self._refuse(404, "RepoNotFound")
        revision = "/".join(rest[1:] if api else rest[1:-1])
        if revision not in {repo.commit, *repo.branches}:
            return self._refuse(404, "RevisionNotFound")
        if api:
            return self._listing(f"{owner}/{name}", repo, fault)
        self._resolve(f"{owner}/{name}", repo, rest[-1], fault)

    def _listing(self, repo_id: str, repo: Repo, fault: Fault | None) -> None:
        siblings = []
        for name, data in repo.files.items():
            entry = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
            if is_lfs(name):
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        for name, size in self.hub.listing_only.items():
            siblings.append({"rfilename": name, "size": size, "blobId": "0" * 40})
        body = {"id": repo_id, "sha": repo.commit, "siblings": siblings}
        self._send(json.dumps(body).encode(), {"Content-Type": "application/json"}, fault)

    def _resolve(self, repo_id: str, repo: Repo, name: str, fault: Fault | None) -> None:
        data = repo.files.get(name)
        if data is None:
            return self._refuse(404, "EntryNotFound")
        headers = {"X-Repo-Commit": repo.commit}
        if not is_lfs(name):
            return self._send(data, headers | {"ETag": f'"{git_sha1(data)}"'}, fault)
        headers |= {
            "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Linked-Size": str(len(data)),
            "Location": f"{self.hub.cdn}/cdn/{repo_id}/{name}",
        }
        self._answer(302, headers, b"")

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, {"X-Error-Code": code} if code else {}, b"")

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _send(self, data: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        """The bytes, or the range asked for, block by block and with the fault there is."""
        if fault and fault.change:
            data = fault.change(data)
        wanted = self.headers.get("Range") if fault is None or fault.cut is None else None
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        end = len(data) if fault is None or fault.cut is None else min(start + fault.cut, len(data))
        with suppress(OSError):  # the client is gone: tests kill it
            for block in range(start, end, BLOCK):
                if fault:
                    time.sleep(fault.pause)
                self.wfile.write(data[block : min(block + BLOCK, end)])
