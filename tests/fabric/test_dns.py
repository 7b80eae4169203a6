"""The DNS codec: whatever arrives is answered or left, never an exception."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.fabric import dns

ADDRESSES = [socket.inet_aton(f"10.18.1.{n}") for n in range(1, 101)]


def query(name: str = "web", kind: int = dns.A, *, extra: bytes = b"", extras: int = 0) -> bytes:
    head = struct.pack(">HHHHHH", 0x1234, 0x0100, 1, 0, 0, extras)
    return head + (dns.wire(name) or b"\0") + struct.pack(">HH", kind, 1) + extra


def edns(size: int) -> bytes:
    return b"\0" + struct.pack(">HHIH", dns.OPT, size, 0, 0)


def ask(message: bytes) -> dns.Question:
    question = dns.parse(message)
    assert question is not None
    return question


def test_a_question_is_read_whatever_its_case() -> None:
    question = ask(query("Web.Shop"))
    assert question.name == b"\x03web\x04shop\0"
    assert question.type == dns.A
    assert question.size == 512


def test_edns_tells_how_large_an_answer_may_be_and_never_less_than_512() -> None:
    assert ask(query(extra=edns(1232), extras=1)).size == 1232
    assert ask(query(extra=edns(1), extras=1)).size == 512


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        query()[:16],
        query()[:-1],
        query()[:12] + b"\xc0\x0c\0\1\0\1",  # a pointer to itself
        query()[:12] + b"\x40" + bytes(80),  # a label of 64 bytes
        query()[:12] + (b"\x3f" + b"a" * 63) * 5 + b"\0\0\1\0\1",  # a name of 320 bytes
        query()[:2] + b"\x81\x80" + query()[4:],  # an answer
        query()[:4] + b"\0\2" + query()[6:],  # two questions
        query()[:-2] + b"\0\3",  # class CHAOS
    ],
)
def test_what_is_no_plain_question_is_none(broken: bytes) -> None:
    assert dns.parse(broken) is None


def test_an_answer_repeats_the_question_as_it_was_asked() -> None:
    message = query("WEB")
    reply = dns.answer(message, ask(message), ADDRESSES[:2])
    assert reply[:2] == message[:2]
    assert reply[12 : len(message)] == message[12:]
    assert struct.unpack(">HHHH", reply[4:12]) == (1, 2, 0, 0)
    assert reply.endswith(b"\0\0\0\5\0\4" + ADDRESSES[1])
    assert dns.code(reply) == dns.NOERROR


def test_an_answer_that_does_not_fit_is_cut_and_says_so() -> None:
    message = query()
    cut = dns.answer(message, ask(message), ADDRESSES, limit=512)
    assert len(cut) <= 512
    assert cut[2] & 0x02
    whole = dns.answer(message, ask(message), ADDRESSES)
    assert not whole[2] & 0x02
    assert struct.unpack_from(">H", whole, 6) == (100,)


def test_a_reply_belongs_to_a_query_by_id_and_question() -> None:
    message = query()
    good = dns.answer(message, ask(message), ADDRESSES[:1])
    assert dns.answers(message, good)
    assert not dns.answers(message, b"\0\0" + good[2:])
    assert not dns.answers(message, dns.answer(query("other"), ask(query("other")), []))
    assert not dns.answers(message, message)


def test_reverse_names_are_read_strictly() -> None:
    assert dns.reverse_address(dns.wire("2.1.18.10.in-addr.arpa") or b"") == b"\x0a\x12\x01\x02"
    for name in (
        "1.18.10.in-addr.arpa",
        "9.2.1.18.10.in-addr.arpa",
        "256.1.18.10.in-addr.arpa",
        "x.1.18.10.in-addr.arpa",
        "2.1.18.10.ip6.arpa",
    ):
        assert dns.reverse_address(dns.wire(name) or b"") is None


@given(st.binary(max_size=600))
def test_no_bytes_can_break_the_parser(message: bytes) -> None:
    question = dns.parse(message)
    if question is not None:
        assert question.end <= len(message)
        dns.reverse_address(question.name)
        reply = dns.answer(message, question, ADDRESSES, limit=question.size)
        assert len(reply) <= question.size
        assert dns.answers(message, reply)
    if len(message) >= 12:
        dns.answers(message, message[::-1])
        assert dns.code(dns.refusal(message, question, dns.SERVFAIL)) == dns.SERVFAIL


@given(
    st.lists(st.binary(min_size=1, max_size=63), max_size=4),
    st.integers(0, 65535),
    st.binary(max_size=40),
)
def test_every_well_formed_question_is_read(labels: list[bytes], kind: int, rest: bytes) -> None:
    name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    head = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0)
    message = head + name + struct.pack(">HH", kind, 1) + rest
    question = dns.parse(message)
    if len(name) <= 255:
        assert question is not None
        assert (question.name, question.type) == (name.lower(), kind)


@given(st.text(max_size=80))
def test_every_text_is_a_name_or_none(text: str) -> None:
    raw = dns.wire(text)
    if raw is not None:
        assert dns.parse(query()[:12] + raw + b"\0\1\0\1") is not None
