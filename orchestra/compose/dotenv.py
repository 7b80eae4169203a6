"""Environment files: `.env` beside the compose file and the `env_file` of services.

`KEY=value` lines; blank lines and `#` comments; `export` before the key; `:` may stand for `=`.
Unquoted values end at ` #` and are trimmed; double quotes know escapes; single quotes are
literal; both may span lines. Unquoted and double-quoted values are interpolated from the caller's
environment first, then from the file's own earlier keys. A key alone takes the caller's value.
Grammar: compose specification, env_file, and docs of `.env` syntax.
"""

from __future__ import annotations

import re

from orchestra.compose.interpolate import BadTemplate, Lookup, substitute

_KEY = re.compile(r"[A-Za-z0-9_.\-\[\]]+")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_ESCAPE = re.compile(r"\\([nrtabfv\"\\$])")


class BadEnvFile(ValueError):
    """The file cannot be read; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


def parse(text: str, lookup: Lookup) -> dict[str, str]:
    """Return the variables of an environment file in its order. Raises BadEnvFile."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    values: dict[str, str] = {}

    def known(name: str) -> str | None:
        value = lookup(name)
        return values.get(name) if value is None else value

    index = 0
    while index < len(text):
        end = text.find("\n", index)
        end = len(text) if end < 0 else end
        line = text[index:end]
        number = text.count("\n", 0, index) + 1
        stripped = line.lstrip()
        if not stripped or stripped.startswith("#"):
            index = end + 1
            continue
        start = index + len(line) - len(stripped)
        if exported := re.match(r"export\s+", stripped):
            start += exported.end()
        key, value_at = _read_key(text, start, end, number)
        if value_at is None:
            inherited = lookup(key)
            if inherited is not None:
                values[key] = inherited
            index = end + 1
            continue
        raw, quote, index = _read_value(text, value_at, end, number)
        try:
            values[key] = raw if quote == "'" else substitute(raw, known)
        except BadTemplate as error:
            raise BadEnvFile(number, f"{key}: {error}") from None
    return values


def parse_raw(text: str, lookup: Lookup) -> dict[str, str]:
    """`format: raw`: everything after the first `=` is the value, quotes and dollars too.

    A key alone takes the caller's value. Raises BadEnvFile.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        line = line.lstrip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not key or any(letter.isspace() for letter in key):
            raise BadEnvFile(number, f"{line!r}: a name may not contain blanks")
        inherited = None if equals else lookup(key)
        if equals or inherited is not None:
            values[key] = value if inherited is None else inherited
    return values


def _read_key(text: str, start: int, end: int, number: int) -> tuple[str, int | None]:
    """The key at `start` and where its value begins (None: the line has no value)."""
    match = _KEY.match(text, start, end)
    if not match:
        raise BadEnvFile(number, f"{text[start:end].strip()!r} does not begin with a name")
    rest = text[match.end() : end]
    blank = len(rest) - len(rest.lstrip())
    follows = rest[blank : blank + 1]
    if not follows or follows == "#":
        return match.group(), None
    if follows not in "=:":
        raise BadEnvFile(
            number, f"{text[start:end].strip()!r}: a name may not contain {follows!r} or blanks"
        )
    return match.group(), match.end() + blank + 1


def _read_value(text: str, start: int, end: int, number: int) -> tuple[str, str, int]:
    """The value's text ready for interpolation, its quote, and where the next line begins."""
    while start < end and text[start] in " \t":
        start += 1
    quote = text[start] if start < end and text[start] in "'\"" else ""
    if not quote:
        value = text[start:end]
        comment = re.search(r"\s#", value)
        return (value[: comment.start()] if comment else value).strip(), "", end + 1
    index = start + 1
    while index < len(text) and text[index] != quote:
        index += 2 if text[index] == "\\" else 1
    if index >= len(text):
        raise BadEnvFile(number, f"the quote {quote} is not closed")
    value = text[start + 1 : index]
    after = text.find("\n", index)
    after = len(text) if after < 0 else after
    if quote == '"':
        # An escaped dollar must survive the interpolation that follows.
        value = _ESCAPE.sub(
            lambda m: "$$" if m.group(1) == "$" else _ESCAPES.get(m.group(1), m.group(1)), value
        )
    else:
        value = value.replace("\\'", "'")
    return value, quote, after + 1
