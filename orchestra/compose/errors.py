"""What is wrong with a compose file: every error with its place, and all of them at once.

Stages add to one `Problems`; the loader raises them together as `ComposeErrors` at the end of a
stage that later ones rely on.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from attrs import frozen

from orchestra.compose.tree import Path, Place, place_of, spell

_NEAR = 0.5  # of difflib's ratio: two letters that changed places ("bd" for "db") have that much


@frozen
class ComposeError:
    """One error; `line` and `column` count from 1 (0: unknown), `key` is like `services.web`."""

    file: str
    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (place, self.key, self.message) if part)


class ComposeErrors(Exception):
    """The compose files cannot be loaded; `errors` says each reason, str() one line for each."""

    def __init__(self, errors: Sequence[ComposeError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(e) for e in self.errors))


def meant(word: str, known: Iterable[str]) -> str:
    """The end of a message about `word`: which of the `known` words was probably meant, or ""."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=_NEAR)
    return f'; did you mean "{near[0]}"?' if near else ""


class Problems:
    """Errors and warnings found so far."""

    def __init__(self) -> None:
        self.errors: list[ComposeError] = []
        self.warnings: list[str] = []

    def at(self, place: Place, path: Path, message: str) -> None:
        error = ComposeError(place.file, place.line, place.column, spell(path), message)
        if error not in self.errors:
            self.errors.append(error)

    def on(self, tree: object, path: Path, message: str) -> None:
        """An error on `path` within `tree`, a whole document."""
        self.at(place_of(tree, path), path, message)

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)

    def check(self) -> None:
        """Raise what was found so far, in the order of the files' lines."""
        if self.errors:
            order = {e.file: i for i, e in reversed(list(enumerate(self.errors)))}
            raise ComposeErrors(
                sorted(self.errors, key=lambda e: (order[e.file], e.line, e.column))
            )
