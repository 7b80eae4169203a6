"""A small registry for tests, made with the stdlib's http.server: what it holds is put into it by
hand, and it misbehaves as it is told."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from attrs import frozen

from image.box import Blobs


@frozen
class Seen:
    """A request that came."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away in the middle, as some tests want; that is no news."""


class RegistryForTests:
    """Serves `blobs` (manifests too) and `tags`; what it was asked is in `seen`."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.blobs = Blobs.empty()
        self.tags: dict[str, str] = {}  # "repository:tag" -> digest
        self.types: dict[str, str] = {}  # digest -> the Content-Type it is served with
        self.seen: list[Seen] = []
        self.tokens = 0  # how many were given
        self.auth = ""  # "", basic, bearer
        self.users = {"me": "secret"}
        self.anonymous = False  # whether anyone gets a token
        self.refresh_token = ""
        self.valid: set[str] = set()
        self.realm = ""
        self.redirect: Callable[[str], str] = lambda path: ""
        self.cut_after: list[int] = []  # for each blob answer to come: bytes until it breaks
        self.failures: list[tuple[int, dict[str, str]]] = []  # answers to come instead
        self.ranges = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            def do_POST(self) -> None:
                server.answer(self)

            def log_message(self, *args: Any) -> None: ...

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
            self.scheme = "https"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._http.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    def paths(self, part: str = "") -> list[str]:
        return [seen.path for seen in self.seen if part in seen.path]

    def tag(self, name: str, descriptor: Mapping[str, Any]) -> None:
        self.tags[name] = descriptor["digest"]

    # answering

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        length = int(request.headers.get("Content-Length") or 0)
        form = parse_qs(request.rfile.read(length).decode())
        query = {**parse_qs(parts.query), **form}
        headers = {key.lower(): value for key, value in request.headers.items()}
        self.seen.append(Seen(request.command, parts.path, query, headers))
        if self.failures:
            status, more = self.failures.pop(0)
            self.send(request, status, b"", more)
        elif parts.path == "/token":
            self.token(request, query, headers)
        elif not self.allowed(headers):
            realm = self.realm or f"{self.url}/token"
            bearer = f'Bearer realm="{realm}",service="test",scope="repository:a:pull"'
            challenge = 'Basic realm="test"' if self.auth == "basic" else bearer
            self.error(request, 401, "UNAUTHORIZED", {"WWW-Authenticate": challenge})
        elif where := self.redirect(parts.path):
            self.send(request, 307, b"", {"Location": where})
        elif "/manifests/" in parts.path:
            self.manifest(request, *parts.path.removeprefix("/v2/").split("/manifests/"))
        else:
            self.blob(request, parts.path.rpartition("/")[2], headers.get("range", ""))

    def allowed(self, headers: Mapping[str, str]) -> bool:
        given = headers.get("authorization", "")
        if self.auth == "basic":
            return self.knows(given)
        return not self.auth or given.removeprefix("Bearer ") in self.valid

    def knows(self, basic: str) -> bool:
        pairs = {f"{user}:{password}" for user, password in self.users.items()}
        return base64.b64decode(basic.removeprefix("Basic ")).decode() in pairs

    def token(
        self,
        request: BaseHTTPRequestHandler,
        query: Mapping[str, list[str]],
        headers: Mapping[str, str],
    ) -> None:
        if request.command == "POST":
            fine = query.get("refresh_token") == [self.refresh_token]
        elif "authorization" in headers:
            fine = self.knows(headers["authorization"])
        else:
            fine = self.anonymous
        if not fine:
            self.error(request, 401, "UNAUTHORIZED", {})
            return
        self.tokens += 1
        self.valid.add(f"token{self.tokens}")
        self.send(request, 200, json.dumps({"token": f"token{self.tokens}"}).encode(), {})

    def manifest(self, request: BaseHTTPRequestHandler, repository: str, reference: str) -> None:
        digest = self.tags.get(f"{repository}:{reference}", reference)
        data = self.blobs.content.get(digest)
        if data is None:
            self.error(request, 404, "MANIFEST_UNKNOWN", {})
            return
        kind = self.types.get(digest) or json.loads(data).get("mediaType", "application/json")
        self.send(request, 200, data, {"Content-Type": kind, "Docker-Content-Digest": digest})

    def blob(self, request: BaseHTTPRequestHandler, digest: str, wanted: str) -> None:
        data = self.blobs.content.get(digest)
        if data is None:
            self.error(request, 404, "BLOB_UNKNOWN", {})
            return
        status, more = 200, {}
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            more = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            status, data = 206, data[start:]
        cut = self.cut_after.pop(0) if self.cut_after else len(data)
        self.send(request, status, data, more, cut)

    def error(
        self, request: BaseHTTPRequestHandler, status: int, code: str, more: Mapping[str, str]
    ) -> None:
        body = {"errors": [{"code": code, "message": "no"}]}
        self.send(request, status, json.dumps(body).encode(), more)

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        data: bytes,
        headers: Mapping[str, str],
        cut: int | None = None,
    ) -> None:
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(data[:cut])
        if cut is not None and cut < len(data):
            request.close_connection = True
