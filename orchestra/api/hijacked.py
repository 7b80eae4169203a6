"""A client's raw connection joined to a container's streams: attach and exec.

The client's half-close ends stdin and nothing else; the end of output ends the stream. A client
that vanished is noticed although it sends nothing. With a terminal the detach keys end the
connection while the process lives on.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import trio

from orchestra.api.engine import Attachment
from orchestra.model.errors import Invalid
from orchestra.wire.frames import frame
from orchestra.wire.vanish import vanished

DEFAULT_KEYS = "ctrl-p,ctrl-q"

_CONTROL = re.compile(r"ctrl-([a-z@\[\]\\^_])")


def key_sequence(text: str) -> bytes:
    """Parse detach keys: characters and ctrl- + a..z @ [ \\ ] ^ _, by commas."""
    keys = bytearray()
    for word in (text or DEFAULT_KEYS).split(","):
        control = _CONTROL.fullmatch(word)
        if control:
            keys.append(ord(control[1].upper()) & 0x1F)
        elif len(word) == 1 and word.isascii():
            keys.append(ord(word))
        else:
            raise Invalid(f"Invalid detach keys ({text}) provided")
    return bytes(keys)


class KeyWatch:
    """Find the key sequence in typed input; holds back only what may still become it."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return (bytes to pass on, whether the sequence was completed)."""
        passed = bytearray()
        for byte in data:
            self._held += bytes((byte,))
            while self._held and not self._keys.startswith(self._held):
                passed.append(self._held[0])
                self._held = self._held[1:]
            if self._held == self._keys:
                self._held = b""
                return bytes(passed), True
        return bytes(passed), False


def conversation(
    attachment: Attachment, *, tty: bool, keys: bytes = b""
) -> Callable[[trio.abc.HalfCloseableStream], Awaitable[None]]:
    """The function that runs a hijacked connection over `attachment`, and closes that."""

    async def run(stream: trio.abc.HalfCloseableStream) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_input, stream, attachment, keys, nursery.cancel_scope)
                await _output(stream, attachment, tty)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await attachment.aclose()

    return run


async def _input(
    stream: trio.abc.HalfCloseableStream,
    attachment: Attachment,
    keys: bytes,
    scope: trio.CancelScope,
) -> None:
    watch = KeyWatch(keys) if keys else None
    try:
        while data := bytes(await stream.receive_some(65536)):
            detached = False
            if watch is not None:
                data, detached = watch.feed(data)
            if data:
                await attachment.write(data)
            if detached:
                scope.cancel()
                return
    except trio.BrokenResourceError:
        scope.cancel()
        return
    await attachment.close_stdin()
    await vanished(stream)
    scope.cancel()


async def _output(stream: trio.abc.HalfCloseableStream, attachment: Attachment, tty: bool) -> None:
    try:
        async for number, data in attachment.output():
            await stream.send_all(data if tty else frame(number, data))
    except trio.BrokenResourceError:
        return  # the reader is gone
