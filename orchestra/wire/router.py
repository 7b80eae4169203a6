"""Which endpoint answers a method and path; names in paths may hold slashes and colons.

Patterns are literal words and `{names}`: "/images/{name}/json". Docker's clients send image names
raw (`/images/127.0.0.1:5000/a/b/json`) as well as percent-encoded, so a name takes everything up
to the pattern's known last words; it is decoded only after matching.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Generic, TypeVar
from urllib.parse import unquote

Endpoint = TypeVar("Endpoint")

_NAME = re.compile(r"\{(\w+)\}")


def _compile(pattern: str) -> re.Pattern[str]:
    literals = _NAME.split(pattern)
    parts = [
        f"(?P<{text}>.+)" if index % 2 else re.escape(text) for index, text in enumerate(literals)
    ]
    return re.compile("".join(parts) + "/?")


class Router(Generic[Endpoint]):
    """A table of (method, pattern, endpoint); the first row that fits wins."""

    def __init__(self, table: Iterable[tuple[str, str, Endpoint]]) -> None:
        self._rows: dict[tuple[str, str], list[tuple[re.Pattern[str], Endpoint]]] = {}
        for method, pattern, endpoint in table:
            key = (method, _first_word(pattern))
            self._rows.setdefault(key, []).append((_compile(pattern), endpoint))

    def find(self, method: str, path: str) -> tuple[Endpoint, dict[str, str]] | None:
        """Return the endpoint and the decoded names, or None."""
        for pattern, endpoint in self._rows.get((method, _first_word(path)), ()):
            match = pattern.fullmatch(path)
            if match:
                return endpoint, {k: unquote(v) for k, v in match.groupdict().items()}
        return None


def _first_word(path: str) -> str:
    return path.split("/", 2)[1] if path.startswith("/") else ""
