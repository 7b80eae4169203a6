"""Documents as trees that remember where each part was written.

The loader's stages pass one kind of data along: mappings (`Map`), sequences (`Seq`) and plain
scalars. `Map` and `Seq` are dict and list with one more attribute, the places of their entries, so
that every stage can use them as ordinary data (jsonschema too) and every error can still say file,
line and column, even of an entry that came out of a merge of three files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Path = tuple[str | int, ...]


class Place(NamedTuple):
    """Where something is written; `line` and `column` count from 1, 0 means the whole file."""

    file: str = ""
    line: int = 0
    column: int = 0


class Map(dict[str, Any]):
    """A mapping that knows where each of its keys is written."""

    __slots__ = ("places",)

    def __init__(
        self,
        items: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        places: dict[str, Place] | None = None,
    ) -> None:
        super().__init__(items)
        self.places: dict[str, Place] = {} if places is None else places


class Seq(list[Any]):
    """A sequence that knows where each of its items is written."""

    __slots__ = ("places",)

    def __init__(self, items: Iterable[Any] = (), places: list[Place] | None = None) -> None:
        super().__init__(items)
        self.places: list[Place] = [] if places is None else places


class Relative(str):
    """A path made absolute against the project's directory; `written` is the file's own text."""

    __slots__ = ("written",)
    written: str

    @classmethod
    def of(cls, absolute: str, written: str) -> Relative:
        path = cls(absolute)
        path.written = written
        return path


def spell(path: Path) -> str:
    """The key path as errors print it: `services.web.ports[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def place_of(tree: Any, path: Path) -> Place:
    """Where the deepest known part of `path` is written (an unknown key: its mapping's place)."""
    place = Place()
    for part in path:
        if isinstance(tree, Map) and isinstance(part, str):
            place = tree.places.get(part, place)
            tree = tree.get(part)
        elif isinstance(tree, Seq) and isinstance(part, int):
            place = tree.places[part] if part < len(tree.places) else place
            tree = tree[part] if part < len(tree) else None
        else:
            break
    return place


def copy(value: Any) -> Any:
    """A copy that shares no mapping or sequence with `value`."""
    if isinstance(value, Map):
        return Map({k: copy(v) for k, v in value.items()}, dict(value.places))
    if isinstance(value, Seq):
        return Seq([copy(v) for v in value], list(value.places))
    if isinstance(value, dict):
        return {k: copy(v) for k, v in value.items()}
    if isinstance(value, list):
        return [copy(v) for v in value]
    return value
