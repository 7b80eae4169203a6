"""Text to trees: YAML as compose reads it, not as PyYAML does.

libyaml's parser does the syntax; which plain word is a number, a boolean or null is decided here,
by YAML 1.2's core schema plus what compose files rely on: legacy octal (`0777`), `0b`, underscores
in numbers, dates as text. So `22:22`, `on` and `yes` stay strings. A key given twice is an error
that names both lines. `!reset` and `!override` are remembered as paths (`Document.resets`), which a
merge clears from what came before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from attrs import frozen

from orchestra.compose.errors import Problems
from orchestra.compose.tree import Map, Path, Place, Seq
from orchestra.compose.tree import spell as spell_path
from orchestra.compose.units import spell

# The same reading at a tenth of the speed where PyYAML was built without libyaml.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_DATE = re.compile(
    r"(\d{4})-(\d\d?)-(\d\d?)"
    r"(?:[Tt ](\d\d?):(\d\d?):(\d\d?)(?:\.(\d{1,9}))?(?:(Z)|([-+])(\d\d):(\d\d))?)?"
)
_BASES = {"0x": 16, "0X": 16, "0o": 8, "0O": 8, "0b": 2, "0B": 2}

# Mappings whose values are text.
_TEXTS = {"environment", "labels", "args", "annotations", "sysctls", "options", "driver_opts"}

# A document whose aliases unfold to more nodes than this is an attack, not a stack.
_MOST_NODES = 4_000_000


@frozen
class Document:
    """One YAML document; `resets` are the paths tagged !reset or !override."""

    tree: Map
    resets: tuple[Path, ...] = ()


class _Loader(_Base):  # type: ignore[misc]
    """The parser with every tag decision taken out: plain scalars are marked and read later."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return "plain" if implicit[0] else "str"
        return "collection"

    def descend_resolver(self, node: Any, index: Any) -> None: ...

    def ascend_resolver(self) -> None: ...


def read(text: str, file: str, problems: Problems) -> list[Document]:
    """Read all documents of `text`. Errors go to `problems` (a syntax error ends the reading)."""
    documents = []
    loader = _Loader(text.removeprefix("\ufeff"))
    try:
        while loader.check_node():
            builder = _Builder(file, problems)
            tree = builder.build(loader.get_node(), ())
            if builder.unfolded > _MOST_NODES:
                problems.at(Place(file), (), "aliases unfold to too many nodes")
            elif isinstance(tree, Map):
                documents.append(Document(tree, tuple(builder.resets)))
            elif tree is not None:
                problems.at(Place(file, 1, 1), (), "the top level must be a mapping")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file)
        context = f" ({error.context})" if error.context else ""
        problems.at(place, (), f"not valid YAML: {error.problem}{context}")
    except yaml.YAMLError as error:
        problems.at(Place(file), (), f"not valid YAML: {' '.join(str(error).split())}")
    finally:
        loader.dispose()
    return documents


class _Builder:
    """Nodes of one document to a tree."""

    def __init__(self, file: str, problems: Problems) -> None:
        self.file = file
        self.problems = problems
        self.resets: list[Path] = []
        self.unfolded = 0
        self._done: dict[int, tuple[Any, int]] = {}  # what each collection became, and its size
        self._open: set[int] = set()

    def place(self, node: Any) -> Place:
        mark = node.start_mark
        return Place(self.file, mark.line + 1, mark.column + 1)

    def build(self, node: Any, path: Path) -> Any:
        tag = node.tag
        if tag == "!reset":
            self.resets.append(path)
            return None
        if tag == "!override":
            self.resets.append(path)
            tag = "plain" if isinstance(node, yaml.ScalarNode) and node.style is None else "str"
        self.unfolded += 1
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, tag, path)
        key = id(node)
        if key in self._done:
            tree, size = self._done[key]
            self.unfolded += size
            return tree
        if key in self._open:
            self.problems.at(self.place(node), path, "an alias contains itself")
            return None
        self._open.add(key)
        before = self.unfolded
        build = self.mapping if isinstance(node, yaml.MappingNode) else self.sequence
        tree = build(node, path)
        self._open.discard(key)
        self._done[key] = (tree, self.unfolded - before)
        return tree

    def scalar(self, node: Any, tag: str, path: Path) -> Any:
        if tag in ("plain", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
            value = resolve(node.value)
            if isinstance(value, float) and (value != value or abs(value) == float("inf")):
                self.problems.at(self.place(node), path, f"{node.value} is not a JSON number")
                return None
            if len(path) > 3 and path[0] == "services" and path[-2] in _TEXTS:
                self.warn_of_number(value, node, path)
            return value
        if tag in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null"):
            if node.value not in _WORDS:
                self.problems.at(self.place(node), path, f"{node.value!r} is not what {tag} means")
            return _WORDS.get(node.value)
        return node.value

    def warn_of_number(self, value: Any, node: Any, path: Path) -> None:
        """Where text is wanted a number's own spelling is lost."""
        if type(value) in (int, float) and spell(value) != node.value:
            place = self.place(node)
            self.problems.warn(
                f"{place.file}:{place.line}: {spell_path(path)}: {node.value} is a number and "
                f"becomes {spell(value)}; quote it to keep it as it is written"
            )

    def sequence(self, node: Any, path: Path) -> Seq:
        result = Seq()
        for index, item in enumerate(node.value):
            value = self.build(item, (*path, index))
            if item.tag != "!reset":
                result.append(value)
                result.places.append(self.place(item))
        return result

    def mapping(self, node: Any, path: Path) -> Map:
        result, merged = Map(), []
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.at(self.place(key_node), path, "a key must be a string")
                continue
            key = self.scalar(key_node, key_node.tag, path)
            place = self.place(key_node)
            if key == "<<" and key_node.tag == "plain":
                merged.append((value_node, place))
                continue
            if not isinstance(key, str):
                self.problems.at(place, path, f"a key must be a string, not {key_node.value}")
                continue
            if key in result.places:
                first = result.places[key].line
                self.problems.at(
                    place, (*path, key), f"given twice; first on line {first}, again here"
                )
                continue
            # The place alone marks a key as given: one that is reset has no value.
            result.places[key] = place
            value = self.build(value_node, (*path, key))
            if value_node.tag != "!reset":
                result[key] = value
        for value_node, place in merged:
            for base in self.bases(value_node, path, place):
                for key, value in base.items():
                    if key not in result and key not in result.places:
                        result[key] = value
                        result.places[key] = base.places[key]
        return result

    def bases(self, node: Any, path: Path, place: Place) -> Iterator[Map]:
        """The mappings that a merge key names, the strongest first."""
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for one in nodes:
            value = self.build(one, path)
            if isinstance(value, Map):
                yield value
            elif value is not None:
                self.problems.at(place, (*path, "<<"), "must be a mapping or a list of mappings")


def resolve(text: str) -> Any:
    """The value of a plain (unquoted) scalar: None, bool, int, float or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    digits = text.replace("_", "")
    number = _integer(digits)
    if number is not None:
        return number
    if _FLOAT.fullmatch(digits):
        value = float(digits)
        return text if value in (float("inf"), float("-inf")) else value
    if _INFINITE.fullmatch(text):
        return float("nan") if "n" in text.lower()[:2] else float("inf")
    date = _DATE.fullmatch(text)
    return _timestamp(date) if date else text


def _integer(digits: str) -> int | None:
    """An integer in any of the bases that compose reads; a leading 0 means octal."""
    unsigned = digits.lstrip("+-") if digits[:1] in "+-" else digits
    if len(digits) - len(unsigned) > 1:
        return None
    base = _BASES.get(unsigned[:2])
    body = unsigned[2:] if base else unsigned
    if base is None:
        base = 8 if len(body) > 1 and body[0] == "0" else 10
    if digits == "-0":
        return None  # the float -0.0, as compose has it
    try:
        if not body.isascii() or not body.isalnum():
            return None
        number = int(body, base)
    except ValueError:
        return None
    if number >= 1 << 64 or (digits[0] == "-" and number > 1 << 63):
        return None  # beyond 64 bits: a float
    return -number if digits[0] == "-" else number


def _timestamp(date: re.Match[str]) -> str:
    """A YAML timestamp in the spelling that compose gives it."""
    year, month, day, hour, minute, second, fraction, _, sign, zh, zm = date.groups()
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return date.group(0)
    fraction = (fraction or "").rstrip("0")
    time = f"{int(hour or 0):02}:{int(minute or 0):02}:{int(second or 0):02}"
    zone = f"{sign}{zh}{zm} {sign}{zh}{zm}" if sign else "+0000 UTC"
    day_text = f"{year}-{int(month):02}-{int(day):02}"
    return f"{day_text} {time}{'.' + fraction if fraction else ''} {zone}"
