"""Values to JSON and back, driven by the type hints of frozen attrs classes.

This is the only place that knows how model values look on the wire and on disk. Mappings keep
their keys, tuples become arrays, enums their value, bytes base64 text; a class marked with
:func:`tagged` carries ``"kind"`` so that a union of such classes can be told apart. Unknown keys
are ignored on reading (a newer peer may send more), absent ones take the class's default: that is
what lets neighbouring minor versions work together.
"""

from __future__ import annotations

import base64
import enum
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs

T = TypeVar("T")


class CodecError(ValueError):
    """A JSON document does not have the shape of the class it should become."""


def tagged(cls: type[T]) -> type[T]:
    """Mark an attrs class as a member of a union: its JSON carries ``"kind": <class name>``."""
    cls.__kind__ = cls.__name__  # type: ignore[attr-defined]
    return cls


@functools.cache
def _fields(cls: type) -> tuple[tuple[str, Any, bool], ...]:
    hints = typing.get_type_hints(cls)
    return tuple(
        (a.name, hints[a.name], a.default is attrs.NOTHING)
        for a in attrs.fields(cls)
        if a.init and not a.name.startswith("_")
    )


_PLAIN = frozenset((str, bool, int, float, type(None)))


def to_json(value: Any) -> Any:
    """Return `value` as plain JSON data (dicts, lists, strings, numbers, booleans, None)."""
    cls: Any = type(value)
    return value if cls in _PLAIN else _encoder(cls)(value)


@functools.cache
def _encoder(cls: Any) -> Callable[[Any], Any]:
    """How values of exactly this class are written; found once, because records are many."""
    if issubclass(cls, enum.Enum):
        return lambda value: value.value
    if issubclass(cls, (str, int, float)):
        return lambda value: value
    if issubclass(cls, bytes):
        return lambda value: base64.b64encode(value).decode("ascii")
    if issubclass(cls, Mapping):
        return lambda value: {str(to_json(k)): to_json(v) for k, v in value.items()}
    if issubclass(cls, (list, tuple, set, frozenset)):
        return lambda value: [to_json(v) for v in value]
    if not attrs.has(cls):
        raise CodecError(f"cannot encode {cls.__name__}")
    names = tuple(name for name, _, _ in _fields(cls))
    kind = getattr(cls, "__kind__", None)

    def encode(value: Any) -> Any:
        out: dict[str, Any] = {"kind": kind} if kind else {}
        for name in names:
            item = getattr(value, name)
            out[name] = item if type(item) in _PLAIN else to_json(item)
        return out

    return encode


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """Build a `cls` from plain JSON data.

    Raises CodecError naming the place (`where`, then key by key) and what was expected there.
    """
    return typing.cast(T, _decode(cls, data, where or getattr(cls, "__name__", "value")))


def _decode(hint: Any, data: Any, where: str) -> Any:
    if hint is Any:
        return data
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(hint), data, where)
    if origin is tuple:
        args = typing.get_args(hint)
        if not isinstance(data, list):
            raise CodecError(f"{where}: expected an array, got {data!r}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_decode(args[0], v, f"{where}[{i}]") for i, v in enumerate(data))
        if len(args) != len(data):
            raise CodecError(f"{where}: expected {len(args)} items, got {len(data)}")
        return tuple(_decode(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, data)))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        key, item = typing.get_args(hint)
        if not isinstance(data, dict):
            raise CodecError(f"{where}: expected an object, got {data!r}")
        return {_key(key, k, where): _decode(item, v, f"{where}.{k}") for k, v in data.items()}
    if origin is frozenset:
        (item,) = typing.get_args(hint)
        return frozenset(_decode(item, v, where) for v in data)
    if hint is type(None):
        if data is not None:
            raise CodecError(f"{where}: expected null")
        return None
    if isinstance(hint, type):
        return _decode_class(hint, data, where)
    if hasattr(hint, "__supertype__"):
        return _decode(hint.__supertype__, data, where)
    raise CodecError(f"{where}: no decoder for {hint!r}")


def _key(hint: Any, text: str, where: str) -> Any:
    try:
        return int(text) if hint is int else text
    except ValueError:
        raise CodecError(f"{where}.{text}: expected a number as key") from None


def _decode_union(args: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in args:
        return None
    members = [a for a in args if a is not type(None)]
    if isinstance(data, dict) and "kind" in data:
        for member in members:
            if getattr(member, "__kind__", None) == data["kind"]:
                return _decode(member, data, where)
    errors = []
    for member in members:
        if getattr(member, "__kind__", None):
            continue
        try:
            return _decode(member, data, where)
        except CodecError as error:
            errors.append(str(error))
    raise CodecError(errors[0] if errors else f"{where}: unknown kind in {data!r}")


def _decode_class(cls: type, data: Any, where: str) -> Any:
    if attrs.has(cls):
        if not isinstance(data, dict):
            raise CodecError(f"{where}: expected an object, got {data!r}")
        values = {}
        for name, hint, required in _fields(cls):
            if name in data:
                values[name] = _decode(hint, data[name], f"{where}.{name}")
            elif required:
                raise CodecError(f"{where}.{name}: missing")
        return cls(**values)
    if issubclass(cls, enum.Enum):
        try:
            return cls(data)
        except ValueError:
            allowed = ", ".join(str(m.value) for m in cls)
            raise CodecError(f"{where}: {data!r} is none of {allowed}") from None
    if cls is bytes:
        try:
            return base64.b64decode(data, validate=True)
        except (TypeError, ValueError):
            raise CodecError(f"{where}: expected base64 text") from None
    if cls is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if (isinstance(data, bool) and cls is not bool) or not isinstance(data, cls):
        raise CodecError(f"{where}: expected {cls.__name__}, got {data!r}")
    return data
