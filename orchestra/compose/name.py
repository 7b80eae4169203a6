"""The project's name without the YAML: what `ps`, `logs` and `exec` need of the files.

Most files say their name in one plain line, or not at all. Those are recognised line by line, which
costs nothing beside reading the language; everything else is left to the loader. Law: a name that
is found here is the one that the loader would find. As a gift, a file with an error further down
does not keep `ps` from working.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping

# Lines that leave no doubt about what is a key of the top level and what is not.
_INSIDE = re.compile(r"(?:[ \t#].*)?")
_KEY = re.compile(
    r"""(?P<key>[A-Za-z_][\w.-]*):
        (?:[ ]+ (?P<value> "[^"\\]*" | '[^']*' | \{[ ]*\} | \[[ ]*\] | [\w.&][^"'{\[:#]* ))?
        [ ]* (?:[ ]\#.*)?""",
    re.VERBOSE,
)
_NAME = re.compile(r"""(?P<quote>["']?)(?P<name>[a-z][a-z0-9_-]*)(?P=quote)[ ]*""")
_NO_TEXT = frozenset({"true", "false", "null"})  # YAML 1.2, core schema


def project_name(text: str) -> str:
    """A project name made valid: lower case, only a-z, 0-9, `_` and `-`, begun by a letter."""
    return re.sub(r"[^a-z0-9_-]", "", text.lower()).lstrip("_-")


def plain_name(texts: Iterable[str], env: Mapping[str, str], directory: str) -> str:
    """The name of the project of the files with those `texts`; "" where they must be loaded.

    The order is the loader's: COMPOSE_PROJECT_NAME, the last file that has a name, `directory`.
    """
    asked = env.get("COMPOSE_PROJECT_NAME")
    if asked:
        return asked if project_name(asked) == asked else ""
    found = ""
    for text in texts:
        own = _own_name(text)
        if own is None:
            return ""
        found = own or found
    return found or project_name(posixpath.basename(directory.rstrip("/")))


def _own_name(text: str) -> str | None:
    """The name that a file gives itself, "" where it gives none, None where it is not plain."""
    found = ""
    for line in text.splitlines():
        if _INSIDE.fullmatch(line):
            continue
        key = _KEY.fullmatch(line)
        if key is None:
            return None
        if key["key"] == "name":
            name = _NAME.fullmatch(key["value"] or "")
            if name is None or found or (not name["quote"] and name["name"] in _NO_TEXT):
                return None
            found = name["name"]
    return found
