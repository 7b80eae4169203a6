"""Frames, JSON lines and routes: pure, so tables and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.wire.frames import FrameDecoder, frame
from orchestra.wire.jsonlines import LineDecoder, json_line
from orchestra.wire.router import Router


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Divide `data` into pieces of the given sizes, and the rest."""
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def test_a_frame_is_stream_three_zeros_length_and_payload() -> None:
    assert frame(2, b"ab") == b"\x02\0\0\0\0\0\0\x02ab"


@given(
    st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=20))),
    st.lists(st.integers(0, 15), max_size=20),
)
def test_frames_survive_any_division(items: list[tuple[int, bytes]], sizes: list[int]) -> None:
    decoder = FrameDecoder()
    data = b"".join(frame(*item) for item in items)
    assert [f for piece in cut(data, sizes) for f in decoder.feed(piece)] == items
    assert decoder.complete


values = st.recursive(
    st.none() | st.integers() | st.text(), lambda s: st.dictionaries(st.text(), s, max_size=3)
)


@given(st.lists(values, max_size=5), st.lists(st.integers(0, 15), max_size=20))
def test_json_lines_survive_any_division(items: list[object], sizes: list[int]) -> None:
    decoder = LineDecoder()
    data = b"".join(map(json_line, items)).removesuffix(b"\r\n")
    found = [v for piece in cut(data, sizes) for v in decoder.feed(piece)]
    assert [*found, *decoder.end()] == items


ROUTES = Router(
    [
        ("GET", "/images/json", "list"),
        ("GET", "/images/{name}/json", "inspect"),
        ("DELETE", "/images/{name}", "remove"),
        ("GET", "/networks", "networks"),
    ]
)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/images/json", ("list", {})),
        ("GET", "/images/busybox/json", ("inspect", {"name": "busybox"})),
        ("GET", "/images/127.0.0.1:5000/a/b:1/json", ("inspect", {"name": "127.0.0.1:5000/a/b:1"})),
        ("GET", "/images/a%2Fb%3A1/json", ("inspect", {"name": "a/b:1"})),
        ("DELETE", "/images/a/json", ("remove", {"name": "a/json"})),
        ("GET", "/networks/", ("networks", {})),
        ("POST", "/images/json", None),
        ("GET", "/nothing", None),
        ("GET", "nothing", None),
        ("OPTIONS", "*", None),
    ],
)
def test_names_take_everything_up_to_the_known_last_word(
    method: str, path: str, expected: object
) -> None:
    assert ROUTES.find(method, path) == expected
