"""A Hugging Face hub on 127.0.0.1 that serves repositories made by tests.

It speaks as much of the hub's HTTP as ``huggingface_hub`` needs, as seen in that client's source
(hf_api.py, file_download.py, utils/_http.py):

    GET       /api/models/ID                   the default branch
    GET       /api/models/ID/revision/REV      a branch, tag or commit
    GET       /api/models/ID/tree/REV          the same files in another form
    GET HEAD  /ID/resolve/REV/FILE             small files; large ones (LFS) are redirected
    GET HEAD  /cdn/SHA256                      contents of large files

Faults are set per repository or file. Every request is recorded with the bytes that were sent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import importlib
import json
import os
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

__all__ = ["LoopbackHub", "Repository", "Request"]

_LARGE = (".safetensors", ".bin", ".pt", ".msgpack", ".h5", ".onnx", ".onnx_data")


@dataclasses.dataclass
class Repository:
    """A repository: commits, and the branches and tags that name them."""

    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    refs: dict[str, str] = dataclasses.field(default_factory=dict)
    gated: bool = False

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.refs.get(revision, revision)
        files = self.commits.get(commit)
        return None if files is None else (commit, files)


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that was answered; ``sent``: bytes of the body, without those of errors."""

    method: str
    path: str
    status: int
    range: str | None
    sent: int


@dataclasses.dataclass
class Fault:
    """What happens to requests for a path; ``times``: to how many of them."""

    times: int
    status: int = 0
    """Answer with this status."""
    keep: int = -1
    """Close the connection after so many bytes of the body."""
    silent: bool = False
    """Never answer; close the connection when the hub stops."""
    body: bytes | None = None
    """Answer with this instead."""


class LoopbackHub:
    """The server; a context manager.

    Attributes:
        requests: all requests since the start or :meth:`forget`.
        pauses: seconds that the client would have waited, see :meth:`client`.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.pauses: list[float] = []
        self.connections: set[socket.socket] = set()
        self._contents: dict[str, bytes] = {}
        self._faults: dict[tuple[str, str], Fault] = {}
        self._lost: set[str] = set()
        self._replaced: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self.stopped = threading.Event()
        hub = self

        class Bound(_Handler):
            def __init__(self, *arguments: Any) -> None:
                self.hub = hub
                super().__init__(*arguments)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = False
        self._server.block_on_close = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port; a second call does nothing."""
        if not self.stopped.is_set():
            self.stopped.set()
            self._server.shutdown()
            with self._lock:  # clients keep connections open for their next request
                for connection in self.connections:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
            self._server.server_close()
            self._thread.join()

    def add(
        self,
        name: str,
        folder: Path,
        *,
        commit: str,
        branch: str = "main",
        gated: bool = False,
    ) -> None:
        """Add a commit with the files of a directory; ``branch`` (or tag) names it."""
        repository = self.repositories.setdefault(name, Repository())
        repository.commits[commit] = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        repository.refs[branch] = commit
        repository.gated = gated
        for contents in repository.commits[commit].values():
            self._contents[hashlib.sha256(contents).hexdigest()] = contents

    def fail(
        self,
        part: str,
        *,
        times: int = 1 << 30,
        method: str = "GET",
        status: int = 0,
        keep: int = -1,
        silent: bool = False,
        body: bytes | None = None,
    ) -> None:
        """Set a fault for the requests whose path contains ``part``."""
        self._faults[method, part] = Fault(times, status, keep, silent, body)

    def lose(self, file: str) -> None:
        """Go on listing a file of all repositories, and have none."""
        self._lost.add(file)

    def mend(self) -> None:
        """Remove all faults."""
        self._faults.clear()
        self._lost.clear()
        self._replaced.clear()

    def replace(self, contents: bytes, others: bytes) -> None:
        """Send other contents in place of those of a file; its metadata stay."""
        self._replaced[hashlib.sha256(contents).hexdigest()] = others

    def forget(self) -> None:
        """Empty the record of requests."""
        with self._lock:
            self.requests.clear()

    def connected(self, connection: socket.socket, open_: bool) -> None:
        with self._lock:
            (self.connections.add if open_ else self.connections.discard)(connection)

    def record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for (of, part), fault in self._faults.items():
                if of == method and part in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def has_lost(self, file: str) -> bool:
        return file in self._lost

    def contents(self, sha256: str) -> bytes | None:
        """What is sent for a file with this hash."""
        return self._replaced.get(sha256, self._contents.get(sha256))

    def sent(self, part: str) -> int:
        """Bytes of bodies that were sent for the paths that contain ``part``."""
        with self._lock:
            return sum(each.sent for each in self.requests if part in each.path)

    def asked(self, part: str = "", method: str = "GET") -> list[str]:
        """Paths of the requests that contain ``part``."""
        with self._lock:
            found = [each for each in self.requests if each.method == method]
            return [each.path for each in found if part in each.path]

    def environment(self, home: Path) -> dict[str, str]:
        """Environment of a process whose client uses this hub, and caches below ``home``."""
        dropped = re.compile(
            r"HF_|HUGGINGFACE_|TRANSFORMERS_|.*_proxy$|WHISPER_OPT_", re.IGNORECASE
        )
        kept = {name: value for name, value in os.environ.items() if not dropped.match(name)}
        return {
            **kept,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "huggingface"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "*",
            "WHISPER_OPT_CACHE": str(home / "engines"),
        }

    @contextlib.contextmanager
    def client(self, cache: Path) -> Iterator[pytest.MonkeyPatch]:
        """Let the client of this process, which reads its environment once, use this hub.

        It does not wait between attempts: ``time.sleep`` only adds to :attr:`pauses`.
        """
        constants = importlib.import_module("huggingface_hub.constants")
        http = importlib.import_module("huggingface_hub.utils._http")
        with pytest.MonkeyPatch.context() as patch:
            for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
                patch.delenv(name, raising=False)
            patch.setenv("NO_PROXY", "*")
            patch.setattr(time, "sleep", self.pauses.append)
            patch.setattr(constants, "ENDPOINT", self.url)
            template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            patch.setattr(constants, "HF_HUB_CACHE", str(cache))
            patch.setattr(constants, "HF_HUB_OFFLINE", False)
            patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
            patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
            utils = importlib.import_module("huggingface_hub.utils")
            utils.disable_progress_bars()
            close = getattr(http, "close_session", None) or http.reset_sessions
            close()
            try:
                yield patch
            finally:
                close()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connected(self.connection, True)

    def finish(self) -> None:
        self.hub.connected(self.connection, False)
        super().finish()

    def log_message(self, *_: Any) -> None:
        """Requests are recorded, not printed."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urllib.parse.urlsplit(self.path).path  # a quoted slash is part of a revision
        fault = self.hub.fault(self.command, urllib.parse.unquote(path))
        if fault is not None and fault.silent:
            self._record(0, 0)
            self.hub.stopped.wait()
            self.close_connection = True
            return
        if fault is not None and fault.status:
            self._error(fault.status, None, "the hub has a fault")
            return
        if fault is not None and fault.body is not None:
            self._send(fault.body)
            return
        keep = fault.keep if fault is not None else -1
        if path.startswith("/cdn/"):
            contents = self.hub.contents(path.split("/")[2])
            if contents is None:
                self._error(404, None, "no such blob")
            else:
                self._send(contents, keep=keep)
            return
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        repository = None if match is None else self.hub.repositories.get(match.group(1))
        if match is None or repository is None:
            # to those who are not logged in the hub does not say which repositories exist
            self._error(401, "RepoNotFound", "Invalid username or password.")
            return
        revision = urllib.parse.unquote((match.group(3) if api else match.group(2)) or "main")
        found = repository.files(revision)
        if found is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif api:
            self._describe(match.group(1), *found, tree=match.group(2) == "tree", keep=keep)
        elif repository.gated:
            self._error(401, "GatedRepo", "Access to this model is restricted.")
        else:
            self._file(urllib.parse.unquote(match.group(3)), *found, keep=keep)

    def _describe(
        self, name: str, commit: str, files: Mapping[str, bytes], *, tree: bool, keep: int
    ) -> None:
        rows = []
        for file, contents in files.items():
            row: dict[str, Any] = {"size": len(contents)}
            lfs: dict[str, Any] = {"size": len(contents), "pointerSize": 134}
            sha256 = hashlib.sha256(contents).hexdigest()
            if tree:
                row.update(type="file", path=file, oid=_git_hash(contents))
                lfs["oid"] = sha256
            else:
                row.update(rfilename=file, blobId=_git_hash(contents))
                lfs["sha256"] = sha256
            if file.endswith(_LARGE):
                row["lfs"] = lfs
            rows.append(row)
        value = rows if tree else {"id": name, "modelId": name, "sha": commit, "siblings": rows}
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"}, keep=keep)

    def _file(self, file: str, commit: str, files: Mapping[str, bytes], *, keep: int) -> None:
        headers = {"X-Repo-Commit": commit}
        contents = files.get(file)
        if contents is None or self.hub.has_lost(file):
            self._error(404, "EntryNotFound", "Entry not found", headers)
        elif file.endswith(_LARGE):
            sha256 = hashlib.sha256(contents).hexdigest()
            headers["X-Linked-Size"] = str(len(contents))
            headers["X-Linked-ETag"] = f'"{sha256}"'
            # another host by name: the client must take the metadata from this answer
            headers["Location"] = f"http://localhost:{self.hub.port}/cdn/{sha256}/{file}"
            self._send(b"", headers, status=302)
        else:
            headers["ETag"] = f'"{_git_hash(contents)}"'
            sent = self.hub.contents(hashlib.sha256(contents).hexdigest()) or b""
            self._send(sent, headers, keep=keep)

    def _error(
        self,
        status: int,
        code: str | None,
        message: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        more = {"Content-Type": "application/json", "X-Error-Message": message, **(headers or {})}
        if code is not None:
            more["X-Error-Code"] = code
        self._send(json.dumps({"error": message}).encode(), more, status=status)

    def _send(
        self,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        status: int = 200,
        keep: int = -1,
    ) -> None:
        """Send a body, or the part of it that was asked for; break off after ``keep`` bytes."""
        more = {"Accept-Ranges": "bytes", **(headers or {})}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is not None and status == 200:
            start, stop = int(asked[1]), min(int(asked[2] or len(body) - 1), len(body) - 1) + 1
            more["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
            body, status = body[start:stop], 206
        self.send_response(status)
        for name, value in more.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        part = b"" if self.command == "HEAD" else body[: keep if keep >= 0 else len(body)]
        self._record(status, len(part) if status < 300 else 0)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(part)
            if 0 <= keep < len(body):
                self.close_connection = True
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

    def _record(self, status: int, sent: int) -> None:
        asked = self.headers.get("Range")
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.record(Request(self.command, path, status, asked, sent))


def _git_hash(contents: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(contents) + contents, usedforsecurity=False).hexdigest()
