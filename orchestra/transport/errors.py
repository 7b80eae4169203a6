"""Why a host or its socket cannot be reached; messages name the host and the remedy."""

from __future__ import annotations


class TransportError(Exception):
    """A stream to the other side cannot be had, or its connection is gone."""


class Unreachable(TransportError):
    """Nobody answers there, or not with SSH."""


class AuthenticationFailed(TransportError):
    """The host answers but does not let this user in."""


class HostKeyUnknown(TransportError):
    """No key is pinned for this host and nobody accepted the one it shows."""

    def __init__(self, message: str, key: str, fingerprint: str) -> None:
        super().__init__(message)
        self.key = key  # "ssh-ed25519 AAAA..."
        self.fingerprint = fingerprint  # "SHA256:..."


class HostKeyMismatch(TransportError):
    """The host shows another key than the pinned one."""

    def __init__(self, message: str, fingerprint: str, expected: str) -> None:
        super().__init__(message)
        self.fingerprint = fingerprint
        self.expected = expected


class ChannelRefused(TransportError):
    """The host is connected but would not open the socket or start the command."""
