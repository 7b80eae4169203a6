"""One request as its endpoint sees it: names from the path, query values by Docker's rules, JSON.

Booleans: "", 0, no, false and none (in any case) are false, everything else is true. Filters come
in two JSON forms, `{"label":{"a=b":true}}` from Go and `{"label":["a=b"]}` from Python.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import parse_qs

from attrs import field, frozen

from orchestra.model.errors import Invalid
from orchestra.wire.message import BodyTooLarge, Request

JSON_LIMIT = 64 << 20

Filters = Mapping[str, tuple[str, ...]]


@frozen
class Call:
    request: Request
    names: Mapping[str, str]
    version: tuple[int, int]
    query: Mapping[str, list[str]] = field(init=False)

    @query.default
    def _parse_query(self) -> Mapping[str, list[str]]:
        return parse_qs(self.request.query, keep_blank_values=True, max_num_fields=1000)

    @property
    def name(self) -> str:
        """The name in the path; a container's leading slash is dropped."""
        return self.names["name"].removeprefix("/")

    def text(self, key: str, default: str = "") -> str:
        return self.query.get(key, [default])[-1]

    def texts(self, key: str) -> list[str]:
        return self.query.get(key, [])

    def flag(self, key: str, default: bool = False) -> bool:
        return flag(self.query[key][-1]) if key in self.query else default

    def integer(self, key: str) -> int | None:
        """None where it is absent or empty. Invalid where it is no whole number."""
        text = self.text(key).strip()
        if not text:
            return None
        try:
            return int(text)
        except ValueError:
            raise Invalid(f'invalid value for "{key}": {text!r} is not a whole number') from None

    def time(self, key: str) -> float:
        """Unix seconds with an optional fraction; 0 where it is absent."""
        text = self.text(key).strip()
        try:
            return max(0.0, float(text)) if text else 0.0
        except ValueError:
            raise Invalid(f'invalid value for "{key}": {text!r} is no Unix time') from None

    def filters(self, known: Collection[str]) -> Filters:
        """The `filters` parameter. Invalid for what is no JSON and for unknown keys."""
        return parse_filters(self.text("filters"), known)

    async def json(self) -> Any:
        """The JSON body, None where there is none. Invalid where it is something else."""
        try:
            body = await self.request.body.read(JSON_LIMIT)
        except BodyTooLarge as error:
            raise Invalid(str(error)) from None
        if not body.strip():
            return None
        kind = self.request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise Invalid(f"Content-Type specified ({kind}) must be 'application/json'")
        try:
            return json.loads(body)
        except ValueError as error:
            raise Invalid(f"the request's body is no JSON: {error}") from None

    async def object(self) -> dict[str, Any]:
        """The JSON body as an object, {} where there is none."""
        value = await self.json()
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise Invalid("the request's body must be a JSON object")
        return value


def flag(text: str) -> bool:
    """Docker's reading of a boolean."""
    return text.strip().lower() not in ("", "0", "no", "false", "none")


def parse_filters(text: str, known: Collection[str]) -> Filters:
    """Both JSON forms of filters as {key: values}."""
    if not text.strip():
        return {}
    try:
        data = json.loads(text)
    except ValueError as error:
        raise Invalid(f"invalid filters: no JSON: {error}") from None
    if not isinstance(data, dict):
        raise Invalid("invalid filters: expected a JSON object")
    filters = {}
    for key, values in data.items():
        if key not in known:
            raise Invalid(f"invalid filter '{key}'")
        if isinstance(values, str):
            values = [values]
        if not isinstance(values, (list, dict)):
            raise Invalid(f"invalid filter '{key}': expected an array or an object")
        filters[key] = tuple(str(value) for value in values)
    return filters
