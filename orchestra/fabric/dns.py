"""DNS messages, as far as a resolver for containers needs them: pure, bytes in, bytes out.

One question is read, an answer of A or PTR records is written by hand (1 us); everything else is
relayed as raw bytes and only its identity and question are compared. Nothing here trusts a byte:
a message that does not parse is None, never an exception. EDNS is read for the size it allows and
otherwise ignored (RFC 6891 lets a responder leave it out). Source: RFC 1035, sections 3 and 4.
Stdlib without attrs, because the resolver's memory is counted.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

A, PTR, OPT, ANY = 1, 12, 41, 255
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
TTL = 5
"""Seconds for which clients may keep an answer: tasks move."""
_IN = 1
_SMALLEST = 512  # what every client takes over UDP


class Question(NamedTuple):
    """`name` is lower-case wire format; `end` is where the question ends in the message."""

    name: bytes
    type: int
    end: int
    size: int  # the largest answer over UDP


def parse(message: bytes) -> Question | None:
    """The question of a plain query; None for what is no query with one question of class IN."""
    if len(message) < 17 or message[2] & 0xF8 or message[4:6] != b"\0\1":
        return None
    place = 12
    while True:
        if place >= len(message):
            return None
        length = message[place]
        if not length:
            break
        if length > 63:  # compression has nothing to point at in a first name
            return None
        place += length + 1
    end = place + 5
    if end > len(message) or place - 11 > 255:
        return None
    kind, group = struct.unpack_from(">HH", message, place + 1)
    if group != _IN:
        return None
    return Question(message[12 : place + 1].lower(), kind, end, _udp_size(message, end))


def _udp_size(message: bytes, end: int) -> int:
    """What an OPT record right behind the question allows (RFC 6891 section 6.2.3)."""
    counts, record = message[6:12], message[end : end + 11]
    if len(record) < 11 or counts[:4] != b"\0\0\0\0" or record[:3] != b"\0\0\x29":
        return _SMALLEST
    return max(_SMALLEST, int.from_bytes(record[3:5], "big"))


def answer(
    query: bytes, question: Question, addresses: Sequence[bytes], *, limit: int | None = None
) -> bytes:
    """A records; none of them is NODATA. Beyond `limit` bytes the answer is cut and says so."""
    records = [b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4" + a for a in addresses]
    return _reply(query, question, records, NOERROR, limit)


def pointer(query: bytes, question: Question, name: bytes, *, limit: int | None = None) -> bytes:
    """A PTR record; `name` is wire format."""
    record = b"\xc0\x0c" + struct.pack(">HHIH", PTR, _IN, TTL, len(name)) + name
    return _reply(query, question, [record], NOERROR, limit)


def refusal(query: bytes, question: Question | None, code: int) -> bytes:
    """An answer without records: `code` says why."""
    if question is None:
        flags = 0x8080 | (query[2] & 0x79) << 8 | code
        return query[:2] + struct.pack(">HHHHH", flags, 0, 0, 0, 0)
    return _reply(query, question, [], code, None)


def _reply(
    query: bytes, question: Question, records: list[bytes], code: int, limit: int | None
) -> bytes:
    flags = 0x8480 | (query[2] & 1) << 8 | code  # QR AA RA, RD as asked
    body = query[12 : question.end]
    if limit is not None:
        room = limit - 12 - len(body)
        size = 0
        for count, record in enumerate(records):
            size += len(record)
            if size > room:
                records, flags = records[:count], flags | 0x0200  # TC: ask again over TCP
                break
    head = query[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0)
    return head + body + b"".join(records)


def answers(query: bytes, reply: bytes) -> bool:
    """Tell whether `reply` belongs to `query`: its id, and its question whatever the case.

    A server that refuses may leave the question out.
    """
    if len(reply) < 12 or reply[:2] != query[:2] or not reply[2] & 0x80:
        return False
    question = parse(query)
    if question is None or reply[4:6] == b"\0\0":
        return True
    return reply[12 : question.end].lower() == query[12 : question.end].lower()


def code(reply: bytes) -> int:
    return reply[3] & 0x0F


def wire(name: str) -> bytes | None:
    """A dotted name as lower-case wire format; None if it is no name."""
    out = b""
    for label in name.lower().rstrip(".").split("."):
        raw = label.encode("utf-8", "surrogateescape")
        if not 0 < len(raw) < 64:
            return None
        out += bytes((len(raw),)) + raw
    return out + b"\0" if len(out) < 255 else None


def reverse_address(name: bytes) -> bytes | None:
    """The four bytes that a name below in-addr.arpa asks for, or None."""
    labels, place = [], 0
    while name[place]:
        labels.append(name[place + 1 : place + 1 + name[place]])
        place += name[place] + 1
    numbers = labels[:4]
    if labels[4:] != [b"in-addr", b"arpa"]:
        return None
    if not all(n.isdigit() and len(n) < 4 and int(n) < 256 for n in numbers):
        return None
    return bytes(int(n) for n in reversed(numbers))
