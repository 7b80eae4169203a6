"""Image references as users type them, and the one name each of them means.

``busybox``, ``library/busybox``, ``docker.io/busybox`` and ``index.docker.io/library/busybox`` are
one repository: a reference is parsed into its canonical parts, and shown in the short, familiar
form. The grammar is that of the distribution project's reference.go (domain, path, tag, digest).
"""

from __future__ import annotations

import re

from attrs import evolve, frozen

from orchestra.image.digest import Digest
from orchestra.model.errors import Invalid

DEFAULT_DOMAIN = "docker.io"
_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
_NAME_LIMIT = 255

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?", re.ASCII)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}", re.ASCII)


@frozen
class Reference:
    """A repository (`domain`, `path`) and what in it: a tag, a digest, both or neither ("")."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        """The full name without tag and digest: "docker.io/library/busybox"."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_repository(self) -> str:
        """The short name without tag and digest: "busybox"."""
        if self.domain != DEFAULT_DOMAIN:
            return self.repository
        short = self.path.removeprefix(_OFFICIAL)
        return self.path if "/" in short else short

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def familiar(self) -> str:
        """As people write it: "busybox:latest"."""
        return self.familiar_repository + self._suffix()

    def canonical(self) -> str:
        """In full: "docker.io/library/busybox:latest"."""
        return self.repository + self._suffix()

    def tagged(self) -> Reference:
        """With the tag "latest" where neither tag nor digest was given."""
        return self if self.tag or self.digest else evolve(self, tag="latest")

    def __str__(self) -> str:
        return self.familiar()


def parse_reference(text: str) -> Reference:
    """Parse what a user typed. Invalid names the part that is wrong.

    Neither tag nor digest is added: see :meth:`Reference.tagged`.
    """
    name, _, digest = text.partition("@")
    if "@" in text:
        try:
            Digest(digest)
        except Invalid as error:
            raise _invalid(text, str(error)) from None
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    name = head + slash + last
    if colon and not _TAG.fullmatch(tag):
        raise _invalid(text, f"{tag!r} is no tag (letters, digits, '_', '.', '-', at most 128)")
    if _IDENTIFIER.fullmatch(name):
        raise _invalid(text, "64 hexadecimal digits are an image's id, not a name")
    domain, path = _divide(name)
    if not _DOMAIN.fullmatch(domain):
        raise _invalid(text, f"{domain!r} is no registry host")
    if not _PATH.fullmatch(path):
        if path.lower() != path and _PATH.fullmatch(path.lower()):
            raise _invalid(text, f"repository name must be lower-case: {path.lower()!r}")
        raise _invalid(text, f"{path!r} is no repository name")
    if len(domain) + 1 + len(path) > _NAME_LIMIT:
        raise _invalid(text, f"the name is longer than {_NAME_LIMIT} characters")
    return Reference(domain, path, tag, digest)


def _divide(name: str) -> tuple[str, str]:
    """Tell a registry host from a first path component as the docker client does."""
    first, slash, rest = name.partition("/")
    is_host = slash and (
        "." in first or ":" in first or first == "localhost" or first.lower() != first
    )
    domain, path = (first, rest) if is_host else (DEFAULT_DOMAIN, name)
    if domain == _LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and path and "/" not in path:
        path = _OFFICIAL + path
    return domain, path


def _invalid(text: str, reason: str) -> Invalid:
    return Invalid(f"invalid reference format: {text!r:.300}: {reason}")
