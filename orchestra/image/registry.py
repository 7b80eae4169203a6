"""One server of a registry as its client sees it: authorised requests, manifests and blobs.

Laws: credentials go to the server they are for (and to the token service it names), never along a
redirect to another origin and never from https to http; what is read is checked against the digest
that names it by the caller; a line that breaks in the middle of a blob is taken up where it broke.
Sources: OCI distribution-spec 1.1, Docker's token authentication (docs.docker.com, "Token
Authentication Specification"), RFC 9110 (ranges, redirects), RFC 6750.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import TypeVar, cast
from urllib.parse import urlencode, urljoin

import trio
from attrs import frozen

from orchestra.image.credentials import Credentials
from orchestra.image.digest import Digest
from orchestra.image.media import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MANIFEST_LIMIT,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
)
from orchestra.image.registries import Endpoint, Origin, parse_origin
from orchestra.model.errors import Forbidden, Invalid, NotFound, Unavailable
from orchestra.wire.client import Answer, HttpClient
from orchestra.wire.message import BodyTooLarge, Headers, WireError

T = TypeVar("T")

ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))
CONNECT = 20.0  # seconds until a server has to take a connection
SILENCE = 60.0  # seconds that a server may say nothing
TRIES = 5  # in a row, of what may pass: broken lines, 429, 5xx
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds; doubled each time
_REDIRECTS = 5
_ERROR_LIMIT = 64 << 10  # bytes of an error's body
_TOKEN_LIMIT = 1 << 20
_REFUSED, _PASSING = (401, 403), (408, 425, 429, 500, 502, 503, 504)
_PARAMETER = re.compile(r'([a-zA-Z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


class Busy(Unavailable):
    """The server may do better later; `pause` is how long it asks us to wait (seconds)."""

    def __init__(self, message: str, pause: float = 0.0) -> None:
        super().__init__(message)
        self.pause = pause


@frozen
class Challenge:
    """A WWW-Authenticate header: its scheme in lower case, and its parameters."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenge(text: str) -> Challenge:
    scheme, _, rest = text.strip().partition(" ")
    parameters = {
        match[1].lower(): re.sub(r"\\(.)", r"\1", match[2]) if match[3] is None else match[3]
        for match in _PARAMETER.finditer(rest)
    }
    return Challenge(scheme.lower(), parameters)


class RegistryServer:
    """Requests to one endpoint, with `credentials` (None: as anyone). To be closed."""

    def __init__(self, endpoint: Endpoint, credentials: Credentials | None = None) -> None:
        self._endpoint = endpoint
        self._credentials = credentials
        self._clients: dict[Origin, HttpClient] = {}
        self._authorization: dict[str, str] = {}  # by repository: a header's value
        self._tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return str(self._endpoint.origin)

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    # what there is to read

    async def manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        """The bytes of a manifest or index, and the media type that the server gives it.

        `reference` is a tag or a digest, which the content then has. NotFound, Forbidden, Invalid,
        Unavailable.
        """

        async def read() -> tuple[bytes, str]:
            accept = (("Accept", ACCEPT),)
            async with self.ask(
                "GET", repository, f"manifests/{reference}", headers=accept
            ) as answer:
                try:
                    with trio.fail_after(SILENCE):
                        raw = await answer.read(MANIFEST_LIMIT)
                except BodyTooLarge:
                    raise Invalid(f"{self}: manifest {reference} is larger than 4 MiB") from None
            named = reference if ":" in reference else answer.headers.get("docker-content-digest")
            if named and Digest.of(raw, Digest(named).algorithm) != named:
                raise Invalid(f"{self}: the manifest that came is not {named}")
            kind = answer.headers.get("content-type", "").partition(";")[0].strip()
            return raw, kind

        return await self.patiently(read)

    async def blob(self, repository: str, blob: Descriptor) -> AsyncGenerator[bytes, None]:
        """A blob's bytes as they come; whoever takes them verifies the digest.

        Invalid as soon as there are more than its descriptor says. To be closed (aclosing).
        """
        done, tries = 0, 0
        while True:
            try:
                start = (("Range", f"bytes={done}-"),) if done else ()
                async with self.ask(
                    "GET", repository, f"blobs/{blob.digest}", headers=start
                ) as answer:
                    skip = _skipped(answer, done)
                    pieces = aiter(answer)
                    while True:
                        with trio.fail_after(SILENCE):
                            piece = await anext(pieces, b"")
                        if not piece:
                            break
                        piece, skip = piece[skip:], max(0, skip - len(piece))
                        done += len(piece)
                        if done > blob.size:
                            raise Invalid(
                                f"{self}: blob {blob.digest} has more than the {blob.size} bytes "
                                "that its manifest says"
                            )
                        if piece:
                            tries = 0
                            yield piece
                if done < blob.size:
                    raise Unavailable(f"{self}: blob {blob.digest} ends early, after {done} bytes")
                return
            except MAY_PASS as error:
                tries = await self.pause(tries, error)

    # patience

    async def patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work`, again where what stopped it may pass; Unavailable where it does not."""
        tries = 0
        while True:
            try:
                return await work()
            except MAY_PASS as error:
                tries = await self.pause(tries, error)

    async def pause(self, tries: int, error: Exception) -> int:
        """Wait before the next try; raises Unavailable where there have been enough."""
        tries += 1
        if tries >= TRIES:
            raise self._unavailable(error) from None
        asked = error.pause if isinstance(error, Busy) else 0.0
        await trio.sleep(min(LONGEST_PAUSE, max(asked, FIRST_PAUSE * 2 ** (tries - 1))))
        return tries

    def _unavailable(self, error: Exception) -> Unavailable:
        if isinstance(error, Unavailable):
            return error
        if isinstance(error, trio.TooSlowError):
            return Unavailable(f"{self} says nothing")
        if isinstance(error, ssl.SSLCertVerificationError):
            return Unavailable(
                f"{self}: its certificate is not trusted ({error.verify_message}); give its "
                "authority as `ca` in registries.json"
            )
        return Unavailable(f"cannot reach {self}: {error}")

    # requests

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        repository: str,
        where: str,
        *,
        headers: Headers = (),
        body: bytes | Callable[[], AsyncGenerator[bytes, None]] = b"",
        fine: tuple[int, ...] = (200, 206),
    ) -> AsyncIterator[Answer]:
        """The answer, whose status is one of `fine`: authorised, redirects of reads followed.

        `where` is a path below the repository ("blobs/sha256:...") or what `located` gave.
        """
        origin, target = self._endpoint.origin, where
        if where.startswith(("http:", "https:")):
            origin, target = parse_origin(where)
        else:
            target = f"{self._endpoint.path}/v2/{repository}/{where}"
            if self._endpoint.is_mirror:
                target += "?" + urlencode({"ns": self._endpoint.domain})
        asked = False
        for _ in range(_REDIRECTS + 2):
            own = origin == self._endpoint.origin
            known = self._authorization.get(repository) if own else None
            authorization = (("Authorization", known),) if known else ()
            async with AsyncExitStack() as stack:
                patience = trio.CancelScope(deadline=trio.current_time() + SILENCE)
                content: bytes | AsyncIterator[bytes] = b""
                if isinstance(body, bytes):
                    content = body
                else:
                    pieces = await stack.enter_async_context(aclosing(body()))
                    content = _prolonging(patience, pieces)
                with patience:
                    answer = await stack.enter_async_context(
                        self._client(origin).request(
                            method, target, headers=(*headers, *authorization), body=content
                        )
                    )
                if patience.cancelled_caught:
                    raise trio.TooSlowError
                if answer.status in fine:
                    yield answer
                    return
                if answer.status in (301, 302, 303, 307, 308) and method in ("GET", "HEAD"):
                    there = self.located(answer, f"{origin}{target}")
                    origin, target = parse_origin(there)
                    continue
                text = await _error_text(answer)
                challenge = answer.headers.get("www-authenticate")
            if answer.status == 401 and own and challenge and not asked:
                asked = True
                self._authorization[repository] = await self._authorise(
                    parse_challenge(challenge), repository
                )
                continue
            raise self._error(answer, repository, text)
        raise Invalid(f"{self}: {repository}/{where} is redirected in circles")

    def located(self, answer: Answer, asked: str = "") -> str:
        """The URL of an answer's Location; `asked` is the URL that it answers."""
        here = asked or f"{self._endpoint.origin}/"
        there = urljoin(here, answer.headers.get("location", ""))
        if here.startswith("https:") and not there.startswith("https:"):
            raise Invalid(f"{self} redirects from https to {there}: refused")
        return there

    def _error(self, answer: Answer, repository: str, text: str) -> Exception:
        said = f"{answer.status} {text}".rstrip()
        if answer.status == 404:
            return NotFound(f"{self} has no such thing in {repository} ({said})")
        if answer.status in _REFUSED:
            remedy = (
                "its credentials in docker's config.json do not allow it"
                if self._credentials
                else f"`docker login {self._endpoint.domain}` may help"
            )
            return Forbidden(f"{self} refuses access to {repository} ({said}): {remedy}")
        if answer.status in _PASSING:
            after = answer.headers.get("retry-after", "")
            return Busy(f"{self} is busy ({said})", float(after) if after.isdecimal() else 0.0)
        return Unavailable(f"{self} answers {said}")

    # who we are

    async def _authorise(self, challenge: Challenge, repository: str) -> str:
        """The Authorization that answers a challenge (RFC 7617, RFC 6750)."""
        if challenge.scheme == "basic":
            if self._credentials is None or not self._credentials.user:
                raise Forbidden(
                    f"{self} wants a user and a password: `docker login {self._endpoint.domain}`"
                )
            return self._credentials.basic()
        if challenge.scheme != "bearer" or "realm" not in challenge.parameters:
            raise Unavailable(f"{self} wants {challenge.scheme!r}, which we do not speak")
        return f"Bearer {await self._token(challenge, repository)}"

    async def _token(self, challenge: Challenge, repository: str) -> str:
        """Ask the token service that the server names."""
        origin, target = parse_origin(challenge.parameters["realm"])
        if origin.scheme == "http" and self._endpoint.origin.scheme == "https":
            raise Invalid(f"{self} sends us to {origin} for a token, without https: refused")
        query = {"service": challenge.parameters.get("service", ""), "client_id": "orchestra"}
        scope = challenge.parameters.get("scope") or f"repository:{repository}:pull"
        who = self._credentials
        if who is not None and who.identity_token:
            form = {**query, "scope": scope, "grant_type": "refresh_token"}
            form["refresh_token"] = who.identity_token
            body = urlencode(form).encode()
            kind = ("Content-Type", "application/x-www-form-urlencoded")
            request = self._client(origin).request("POST", target, headers=(kind,), body=body)
        else:
            asked = urlencode([*query.items(), *(("scope", part) for part in scope.split())])
            target += ("&" if "?" in target else "?") + asked
            headers = (("Authorization", who.basic()),) if who is not None else ()
            request = self._client(origin).request("GET", target, headers=headers)
        with trio.fail_after(SILENCE):
            async with request as answer:
                if answer.status != 200:
                    text = await _error_text(answer)
                    if answer.status in (*_REFUSED, 400):
                        raise Forbidden(
                            f"{origin} gives no token for {repository} ({answer.status} {text}): "
                            f"`docker login {self._endpoint.domain}` may help"
                        )
                    raise self._error(answer, repository, text)
                raw = await answer.read(_TOKEN_LIMIT)
        try:
            document = json.loads(raw)
            token = document.get("token") or document["access_token"]
        except (ValueError, KeyError, AttributeError):
            raise Unavailable(f"{origin} answers no token for {repository}") from None
        if not isinstance(token, str) or not token.isprintable():
            raise Unavailable(f"{origin} answers no token for {repository}")
        return token

    # connections

    def _client(self, origin: Origin) -> HttpClient:
        if origin not in self._clients:
            opener = cast(
                "Callable[[], Awaitable[trio.abc.HalfCloseableStream]]", partial(self._open, origin)
            )  # a TLS stream cannot be half-closed; only upgrades, of which there is none, need it
            self._clients[origin] = HttpClient(opener, origin.netloc)
        return self._clients[origin]

    async def _open(self, origin: Origin) -> trio.abc.Stream:
        with trio.fail_after(CONNECT):
            try:
                plain = await trio.open_tcp_stream(origin.host, origin.port)
            except OSError as error:
                if self._endpoint.is_mirror:  # there is another server to ask: no second try
                    raise self._unavailable(error) from None
                raise
            if origin.scheme == "http":
                return plain
            try:
                stream = trio.SSLStream(
                    plain, self._context(), server_hostname=origin.host, https_compatible=True
                )
                await stream.do_handshake()
            except BaseException as error:
                await trio.aclose_forcefully(plain)
                cause = error.__cause__
                if isinstance(cause, ssl.SSLCertVerificationError):
                    raise self._unavailable(cause) from None
                raise
            return stream

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            if self._endpoint.ca:
                try:
                    self._tls.load_verify_locations(self._endpoint.ca)
                except OSError as error:
                    raise Invalid(
                        f"cannot read {self._endpoint.ca}, the `ca` of {self._endpoint.domain}: "
                        f"{error.strerror or error}"
                    ) from None
        return self._tls


MAY_PASS = (WireError, OSError, trio.TooSlowError, trio.BrokenResourceError, Busy)


async def _prolonging(
    patience: trio.CancelScope, pieces: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    """Pass a body on; as long as it is taken there is no silence."""
    async for piece in pieces:
        patience.deadline = trio.current_time() + SILENCE
        yield piece


def _skipped(answer: Answer, done: int) -> int:
    """How many bytes of the body we have already: a server need not know ranges."""
    if not done or answer.status == 206:
        start = answer.headers.get("content-range", f"bytes {done}-")
        if not re.match(rf"bytes {done}-", start):
            raise Unavailable(f"the server answers {start!r:.100} to a range from {done}")
        return 0
    return done


async def _error_text(answer: Answer) -> str:
    """What the server says of an error: the messages of the protocol's JSON, else nothing."""
    try:
        with trio.fail_after(SILENCE):
            document = json.loads(await answer.read(_ERROR_LIMIT))
        parts = [f"{e.get('code', '')} {e.get('message', '')}".strip() for e in document["errors"]]
    except (BodyTooLarge, ValueError, KeyError, TypeError, AttributeError):
        return ""
    return "".join(letter for letter in "; ".join(parts)[:500] if letter.isprintable())
