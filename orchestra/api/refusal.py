"""An HTTP error answer back into the error it was; shared by both clients, imports little."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import urlencode

from orchestra.model.errors import (
    Conflict,
    Failed,
    Forbidden,
    Invalid,
    NotFound,
    OrchestraError,
    Unavailable,
)

ERRORS: Mapping[int, type[OrchestraError]] = {
    400: Invalid,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    503: Unavailable,
}


def refusal(status: int, body: bytes) -> OrchestraError:
    """The model's error for an answer of `status` >= 300, with the server's own words."""
    try:
        text = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        text = body.decode(errors="replace").strip() or f"the server answered {status}"
    return ERRORS.get(status, Failed)(text)


def target(path: str, query: Mapping[str, object]) -> str:
    """The path with its query; booleans become 1 and 0, None is left out."""
    values = {
        key: int(value) if isinstance(value, bool) else value
        for key, value in query.items()
        if value is not None
    }
    return f"{path}?{urlencode(values, doseq=True)}" if values else path
