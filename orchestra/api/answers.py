"""Replies in the shapes that every route shares, and the one table from errors to HTTP status."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from orchestra import __version__
from orchestra.model.codec import CodecError
from orchestra.model.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    OrchestraError,
    StartFailed,
    Unavailable,
)
from orchestra.wire.message import BodyTooLarge, Headers, Response

log = logging.getLogger(__name__)

API_VERSION = (1, 47)
MIN_API_VERSION = (1, 24)

JSON: Headers = (("Content-Type", "application/json"),)

COMMON: Headers = (
    ("Api-Version", "{}.{}".format(*API_VERSION)),
    ("Docker-Experimental", "false"),
    ("Ostype", "linux"),
    ("Server", f"Docker/{__version__} (linux)"),
)


class Unserved(OrchestraError):
    """A route or parameter of Docker's API that is known and not served (HTTP 501)."""


STATUS: tuple[tuple[type[Exception], int], ...] = (
    (Invalid, 400),
    (CodecError, 400),
    (BodyTooLarge, 400),
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (Unserved, 501),
    (Unavailable, 503),
)


def status_of(error: Exception) -> int:
    """The HTTP status of an error; 500 for what is nobody's fault but ours."""
    if isinstance(error, StartFailed):
        return 400 if error.exit_code in (126, 127) else 500
    return next((code for kind, code in STATUS if isinstance(error, kind)), 500)


def failure(error: Exception) -> Response:
    """The error as Docker's clients read it: exactly this content type, one key."""
    code = status_of(error)
    text = str(error)
    if code == 500 and not isinstance(error, OrchestraError):
        log.error("a request failed by a defect of ours", exc_info=error)
        text = f"internal error: {type(error).__name__}: {error}"
    return Response(code, JSON, json.dumps({"message": text}).encode() + b"\n")


def answer(value: Any, status: int = 200) -> Response:
    return Response(status, JSON, json.dumps(value, ensure_ascii=False).encode() + b"\n")


def nothing(status: int = 204) -> Response:
    return Response(status)


def stream(body: AsyncIterator[bytes], kind: str = "application/json") -> Response:
    return Response(200, (("Content-Type", kind),) if kind else (), body)
