"""The type of route tables: method, pattern, endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from orchestra.api.call import Call
from orchestra.wire.message import Hijack, Response

Endpoint = Callable[[Call], Awaitable[Response | Hijack]]
Table = list[tuple[str, str, Endpoint]]
