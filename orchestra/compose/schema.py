"""Does a document have the shape of a compose file? Our JSON Schema says so; this words the errors.

The schema (`schemas/compose.json`, draft 7) is one file for editors and for us. A compiled
predicate finds the documents that are right; only the others are walked with jsonschema, which is
imported then. Every violation is reported, an unknown key with the key that was probably meant.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from orchestra.compose.errors import Problems, meant
from orchestra.compose.shape import Fits, compile_schema
from orchestra.compose.tree import Map, Path, spell

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_WORDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "empty",
}


@functools.cache
def schema() -> dict[str, Any]:
    """Our JSON Schema of a compose file."""
    text = importlib.resources.files("orchestra.compose").joinpath("schema.json").read_text("utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


@functools.cache
def _fits() -> Fits:
    return compile_schema(schema())


def validate(tree: Map, problems: Problems, told: frozenset[str] = frozenset()) -> None:
    """Add every violation of the schema in `tree` to `problems`, but for keys in `told`: of these
    it is known already that they are wrong."""
    if _fits()(tree):
        return
    from jsonschema import Draft7Validator

    # Named on purpose: the version is ours to choose, not the document's. What is right is left
    # out, so that one bad service among many costs a search for words only there.
    validator = Draft7Validator(schema())
    errors = list(validator.iter_errors(_suspects(tree))) or validator.iter_errors(tree)
    for error in errors:
        for path, message in _explain(error, tuple(error.absolute_path)):
            if spell(path) not in told:
                problems.on(tree, path, message)


def _suspects(tree: Map) -> dict[str, Any]:
    """The document without its services that fit on their own."""
    services = tree.get("services")
    if not isinstance(services, Map):
        return tree
    definitions = schema()["definitions"]
    fits = compile_schema({**definitions["service"], "definitions": definitions})
    wrong = {name: service for name, service in services.items() if not fits(service)}
    return {**tree, "services": wrong}


def _explain(error: ValidationError, path: Path) -> Iterable[tuple[Path, str]]:
    """The words for one violation, each with the path it is about."""
    kind: Any = error.validator
    instance: Any = error.instance
    rule: Any = error.validator_value
    if kind in ("oneOf", "anyOf"):
        yield from _explain_choice(error, path)
    elif kind == "additionalProperties" and isinstance(error.schema, dict):
        known = error.schema.get("properties", {})
        for key in instance:
            if key not in known and not key.startswith("x-"):
                yield (*path, key), f"unknown key{meant(key, known)}"
    elif kind == "required":
        for key in rule:
            if key not in instance:
                yield path, f"{key!r} is missing"
                break
    elif kind == "type":
        kinds = [rule] if isinstance(rule, str) else list(rule)
        yield path, f"must be {_either(_WORDS[k] for k in kinds)}, not {_kind(instance)}"
    elif kind == "enum":
        yield path, f"must be {_either(map(str, rule))}, not {instance!r}"
    elif kind == "pattern":
        yield path, f"{instance!r} does not match {rule}"
    elif kind in ("minimum", "maximum"):
        yield path, f"must be at {'least' if kind == 'minimum' else 'most'} {rule}, not {instance}"
    elif kind == "uniqueItems":
        doubles = sorted({str(i) for i in instance if instance.count(i) > 1})
        yield path, f"names {', '.join(doubles)} twice"
    else:
        yield path, error.message


def _explain_choice(error: ValidationError, path: Path) -> Iterable[tuple[Path, str]]:
    """Of a choice of forms, explain the one whose kind was written."""
    branches: dict[int, list[ValidationError]] = {}
    for inner in error.context or ():
        branches.setdefault(int(inner.relative_schema_path[0]), []).append(inner)
    for inners in branches.values():
        # A form is meant when the value itself has its type: what is wrong lies further in.
        if not any(e.validator == "type" and not e.relative_path for e in inners):
            for inner in inners:
                yield from _explain(inner, (*path, *inner.relative_path))
            return
    kinds: list[str] = []
    for inners in branches.values():
        for inner in inners:
            if inner.validator == "type" and not inner.relative_path:
                rule: Any = inner.validator_value
                kinds += [rule] if isinstance(rule, str) else list(rule)
    forms = _either(_WORDS[k] for k in dict.fromkeys(kinds))
    yield path, f"must be {forms}, not {_kind(error.instance)}"


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return f"the string {value!r}" if isinstance(value, str) else f"the number {value}"


def _either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
