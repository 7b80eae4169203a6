"""A small registry for tests, made with the stdlib's http.server: what it holds is put into it by
hand, and it misbehaves as it is told. And a client's place: a store, a configuration, logins."""

from __future__ import annotations

import base64
import itertools
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from attrs import frozen

from image.box import Blobs, machine, run
from image.box import digest as digest_of
from orchestra.image.credentials import CredentialStore
from orchestra.image.images import Images
from orchestra.image.media import Platform
from orchestra.image.pull import Puller
from orchestra.image.push import Pusher
from orchestra.image.registries import Registries


@frozen
class Seen:
    """A request that came."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]


def body_of(request: BaseHTTPRequestHandler) -> Iterator[bytes]:
    """The body of a request, in chunks or with a length."""
    if request.headers.get("Transfer-Encoding") != "chunked":
        yield request.rfile.read(int(request.headers.get("Content-Length") or 0))
        return
    while size := int(request.rfile.readline(), 16):
        yield request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()


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
        self.uploads: dict[str, bytes] = {}
        self.numbers = itertools.count()
        self.mountable: dict[str, bytes] = {}  # blobs of its other repositories
        self.forgets = False  # whether an upload is gone when its line breaks
        self.renames = ""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            do_POST = do_HEAD = do_PUT = do_PATCH = do_DELETE = do_GET

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
        query = parse_qs(parts.query)
        if parts.path == "/token" and request.command == "POST":
            query |= parse_qs(b"".join(body_of(request)).decode())
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
        elif "/uploads/" in parts.path:
            self.upload(request, parts.path, query)
        elif request.command == "PUT":
            self.put_manifest(request, *parts.path.removeprefix("/v2/").split("/manifests/"))
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

    def upload(
        self, request: BaseHTTPRequestHandler, path: str, query: Mapping[str, list[str]]
    ) -> None:
        if request.command == "POST":
            if query.get("mount", [""])[0] in self.mountable:
                digest = query["mount"][0]
                self.blobs.content[digest] = self.mountable[digest]
                self.send(request, 201, b"", {"Location": f"/v2/x/blobs/{digest}"})
                return
            self.uploads[name := f"upload{next(self.numbers)}"] = b""
            self.send(request, 202, b"", {"Location": f"{path}{name}?state=a"})
            return
        name = path.rpartition("/")[2]
        if name not in self.uploads:
            self.error(request, 404, "BLOB_UPLOAD_UNKNOWN", {})
            return
        here = {"Location": f"{path}?state=b"}
        if request.command == "DELETE":
            del self.uploads[name]
            self.send(request, 204, b"", {})
        elif request.command == "PATCH":
            cut = self.cut_after.pop(0) if self.cut_after else None
            for piece in body_of(request):
                self.uploads[name] += piece[:cut]
                if cut is not None and (cut := cut - len(piece)) < 0:
                    if self.forgets:
                        del self.uploads[name]
                    request.close_connection = True
                    request.connection.close()
                    return
            self.send(request, 202, b"", {**here, "Range": f"0-{len(self.uploads[name]) - 1}"})
        elif request.command == "GET":
            last = max(0, len(self.uploads[name]) - 1)
            self.send(request, 204, b"", {**here, "Range": f"0-{last}"})
        elif digest_of(self.uploads[name]) != query["digest"][0]:
            self.error(request, 400, "DIGEST_INVALID", {})
        else:
            self.blobs.content[query["digest"][0]] = self.uploads.pop(name)
            self.send(request, 201, b"", {})

    def put_manifest(
        self, request: BaseHTTPRequestHandler, repository: str, reference: str
    ) -> None:
        raw = b"".join(body_of(request))
        kind = request.headers["Content-Type"]
        document = json.loads(raw)
        for blob in (document["config"], *document["layers"]):
            if len(self.blobs.content.get(blob["digest"], b"")) != blob["size"]:
                self.error(request, 400, "MANIFEST_BLOB_UNKNOWN", {})
                return
        target = self.blobs.add(raw, kind)
        self.types[target["digest"]] = kind
        self.tag(f"{repository}:{reference}", target)
        self.send(request, 201, b"", {"Docker-Content-Digest": self.renames or target["digest"]})

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
        if request.command == "HEAD":
            return
        request.wfile.write(data[:cut])
        if cut is not None and cut < len(data):
            request.close_connection = True


class Place:
    """A store, and what its pulls use."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = Images(str(root / "store"))
        self.registries: dict[str, Any] = {}
        self.config = root / "config.json"
        self.platform = Platform("linux", machine())
        self.reports: list[tuple[str, int, int]] = []

    def pull(self, name: str) -> Any:
        puller = Puller(
            self.images,
            Registries(self.registries),
            CredentialStore(str(self.config)),
            self.platform,
        )
        return run(puller.pull, name, lambda *line: self.reports.append(line))

    def push(self, name: str) -> str:
        pusher = Pusher(self.images, Registries(self.registries), CredentialStore(str(self.config)))
        digest: str = run(pusher.push, name, lambda *line: self.reports.append(line))
        return digest

    def login(self, host: str, user: str = "me", password: str = "secret", **more: str) -> None:
        auth = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.config.write_text(json.dumps({"auths": {host: {"auth": auth, **more}}}))
