"""A JSON Schema compiled into one predicate: does this value fit, yes or no?

jsonschema explains violations well but walks slowly: for a file of a thousand services it would be
the largest part of loading. This compiles the keywords that our schema uses into closures; only a
value that does not fit is then walked again for words. A test holds the two against each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Fits = Callable[[Any], bool]

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}
# Keywords that say nothing about whether a value fits.
_SILENT = {"$schema", "title", "description", "definitions"}


def compile_schema(schema: Mapping[str, Any]) -> Fits:
    """Compile a draft-7 schema. Raises ValueError for a keyword that is not known here.

    `oneOf` counts as "any of": our forms exclude each other by type.
    """
    known: dict[str, Fits] = {}
    definitions = schema.get("definitions", {})

    def build(part: Mapping[str, Any]) -> Fits:
        if "$ref" in part:
            return reference(part["$ref"].rpartition("/")[2])
        keywords = part.keys() - _SILENT
        checks = [_KEYWORDS[k](part, build) for k in _KEYWORDS if k in keywords]
        if keywords & _PROPERTIES:
            checks.append(_properties(part, build))
        unknown = keywords - _KEYWORDS.keys() - _PROPERTIES
        if unknown:
            raise ValueError(f"keywords not compiled: {sorted(unknown)}")
        if len(checks) == 1:
            return checks[0]
        return lambda value: all(check(value) for check in checks)

    def reference(name: str) -> Fits:
        if name not in known:
            known[name] = lambda value: known[name](value)  # a definition may contain itself
            known[name] = build(definitions[name])
        return known[name]

    return build(schema)


_Build = Callable[[Mapping[str, Any]], Fits]
_PROPERTIES = {"properties", "patternProperties", "additionalProperties", "required"}


def _type(part: Mapping[str, Any], build: _Build) -> Fits:
    names = [part["type"]] if isinstance(part["type"], str) else part["type"]
    types = tuple(t for name in names for t in _TYPES[name])
    plain = bool in types
    whole = "integer" in names and "number" not in names

    def fits(value: Any) -> bool:
        if isinstance(value, types):
            # Python's booleans are integers, JSON's are not.
            return plain or not isinstance(value, bool)
        return whole and isinstance(value, float) and value.is_integer()

    return fits


def _enum(part: Mapping[str, Any], build: _Build) -> Fits:
    allowed = part["enum"]
    return lambda value: isinstance(value, str) and value in allowed


def _one_of(part: Mapping[str, Any], build: _Build) -> Fits:
    forms = [build(form) for form in part["oneOf"]]
    if len(forms) == 2:
        first, second = forms
        return lambda value: first(value) or second(value)
    return lambda value: any(form(value) for form in forms)


def _pattern(part: Mapping[str, Any], build: _Build) -> Fits:
    search = re.compile(part["pattern"]).search
    return lambda value: not isinstance(value, str) or search(value) is not None


def _minimum(part: Mapping[str, Any], build: _Build) -> Fits:
    limit = part["minimum"]
    return lambda value: not isinstance(value, (int, float)) or value >= limit


def _maximum(part: Mapping[str, Any], build: _Build) -> Fits:
    limit = part["maximum"]
    return lambda value: not isinstance(value, (int, float)) or value <= limit


def _items(part: Mapping[str, Any], build: _Build) -> Fits:
    fits = build(part["items"])
    return lambda value: not isinstance(value, list) or all(map(fits, value))


def _unique(part: Mapping[str, Any], build: _Build) -> Fits:
    return lambda value: not isinstance(value, list) or len(set(map(repr, value))) == len(value)


def _property_names(part: Mapping[str, Any], build: _Build) -> Fits:
    fits = build(part["propertyNames"])
    return lambda value: not isinstance(value, dict) or all(map(fits, value))


def _constant(answer: bool) -> Fits:
    return lambda value: answer


def _properties(part: Mapping[str, Any], build: _Build) -> Fits:
    """What is said about the keys of a mapping, in one pass over them."""
    known = {key: build(inner) for key, inner in part.get("properties", {}).items()}
    free = part.get("patternProperties", {})
    if any(inner for inner in free.values()):
        raise ValueError("only patternProperties without conditions are compiled")
    others = part.get("additionalProperties", True)
    other = _constant(others) if isinstance(others, bool) else build(others)
    patterns = [re.compile(pattern).search for pattern in free]
    required = part.get("required", ())

    def fits(value: Any) -> bool:
        if not isinstance(value, dict):
            return True
        for key in required:
            if key not in value:
                return False
        for key, inner in value.items():
            check = known.get(key)
            if check is not None:
                if not check(inner):
                    return False
            elif not any(search(key) for search in patterns) and not other(inner):
                return False
        return True

    return fits


_KEYWORDS: Mapping[str, Callable[[Mapping[str, Any], _Build], Fits]] = {
    "type": _type,
    "enum": _enum,
    "oneOf": _one_of,
    "pattern": _pattern,
    "minimum": _minimum,
    "maximum": _maximum,
    "items": _items,
    "uniqueItems": _unique,
    "propertyNames": _property_names,
}
