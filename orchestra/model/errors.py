"""Errors that carry whose fault it is; the API maps each class to one HTTP status.

Every message says what could not be done, why, and what to do about it.
"""

from __future__ import annotations


class OrchestraError(Exception):
    """Base of the errors that a user may see as text."""


class Invalid(OrchestraError):
    """The request itself is wrong (HTTP 400, exit code 2 where it is usage)."""


class NotFound(OrchestraError):
    """The named object does not exist (HTTP 404)."""


class Conflict(OrchestraError):
    """The object's state forbids the request (HTTP 409)."""


class Forbidden(OrchestraError):
    """Refused on purpose (HTTP 403)."""


class Unavailable(OrchestraError):
    """Something this needs is away: a node, a kernel feature, a tool (HTTP 503)."""


class Failed(OrchestraError):
    """The attempt was made and failed (HTTP 500)."""


class StartFailed(Failed):
    """A container's process could not be started; `exit_code` is 126, 127 or 125 as in a shell."""

    def __init__(self, message: str, exit_code: int = 125) -> None:
        super().__init__(message)
        self.exit_code = exit_code
