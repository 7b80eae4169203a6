"""Where registries are: which servers answer for a domain, in which order.

One configuration serves all that speaks to registries. It is JSON, and may be absent:

    {"docker.io": {"mirrors": ["https://mirror.example:5000"], "ca": "/etc/ssl/ours.pem"},
     "registry.local:5000": {"url": "http://registry.local:5000"}}

Without an entry a domain is its own server: https, but plain http for loopback addresses, as with
docker. `mirrors` are asked first and may fail; a name still means what the domain says it is, since
all content is verified by digest, but a mirror that lies about a tag can serve old content.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen

from orchestra.image.reference import DEFAULT_DOMAIN
from orchestra.model.errors import Invalid

CONFIGURATION = "/etc/orchestra/registries.json"
HUB_SERVER = "registry-1.docker.io"
_KEYS = {"url", "mirrors", "ca"}
_PORTS = {"https": 443, "http": 80}


@frozen
class Origin:
    """Scheme, host and port: what credentials are for, and what they never leave."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """As in a URL and a Host header: without the scheme's own port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@frozen
class Endpoint:
    """A server that answers for `domain`: its origin and the path before /v2/."""

    domain: str
    origin: Origin
    path: str = ""
    is_mirror: bool = False
    ca: str = ""  # a PEM file of further certificate authorities


def parse_origin(url: str) -> tuple[Origin, str]:
    """The origin and the rest (path and query) of an http or https URL; Invalid for others."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Invalid(f"{url!r:.300} is no URL: {error}") from None
    if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None:
        raise Invalid(f"{url!r:.300} is no URL of a registry: write https://HOST[:PORT]")
    rest = parts.path + (f"?{parts.query}" if parts.query else "")
    if not rest.isascii() or not rest.isprintable() or " " in rest:
        raise Invalid(f"{url!r:.300} is no URL: it has letters that a URL spells with %")
    return Origin(parts.scheme, parts.hostname, port or _PORTS[parts.scheme]), rest


class Registries:
    """The configuration; by default that of an absent file."""

    def __init__(self, entries: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._entries = entries or {}

    def endpoints(self, domain: str) -> tuple[Endpoint, ...]:
        """The servers to ask for `domain`, in turn: its mirrors, then its own."""
        entry = self._entries.get(domain, {})
        ca = entry.get("ca", "")
        found = []
        for url in entry.get("mirrors", ()):
            origin, path = parse_origin(url)
            found.append(Endpoint(domain, origin, path.rstrip("/"), True, ca))
        own, path = parse_origin(entry.get("url") or _own_url(domain))
        return (*found, Endpoint(domain, own, path.rstrip("/"), False, ca))


def _own_url(domain: str) -> str:
    if domain == DEFAULT_DOMAIN:
        return f"https://{HUB_SERVER}"
    origin, _ = parse_origin(f"http://{domain}")
    return f"http://{domain}" if origin.is_loopback else f"https://{domain}"


def read_registries(path: str = CONFIGURATION) -> Registries:
    """Read the configuration. Invalid names the file, the registry and what is wrong."""
    try:
        with open(path, "rb") as file:
            document = json.load(file)
    except FileNotFoundError:
        return Registries()
    except (OSError, ValueError) as error:
        raise Invalid(f"cannot read {path}: {error}") from None
    if not isinstance(document, dict):
        raise Invalid(f"cannot read {path}: it is not a JSON object")
    for domain, entry in document.items():
        try:
            _check(entry)
        except Invalid as error:
            raise Invalid(f"cannot read {path}: {domain}: {error}") from None
    return Registries(document)


def _check(entry: object) -> None:
    if not isinstance(entry, dict):
        raise Invalid("is not a JSON object")
    for key, value in entry.items():
        if key not in _KEYS:
            raise Invalid(f"unknown key {key!r}; known are {', '.join(sorted(_KEYS))}")
        urls = value if key == "mirrors" else [value]
        if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
            kind = "a list of strings" if key == "mirrors" else "a string"
            raise Invalid(f"{key} is not {kind}")
        for url in urls if key != "ca" else ():
            parse_origin(url)
