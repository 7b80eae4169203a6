"""Model values survive the way through JSON, and what does not fit is named with its place."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st

from orchestra.model.cluster import Plan, Progress, StackRecord
from orchestra.model.codec import CodecError, from_json, tagged, to_json
from orchestra.model.node import ObservedTask, TaskState
from orchestra.model.service import Service, Stack


@tagged
@frozen
class Circle:
    radius: float


@tagged
@frozen
class Square:
    side: int = 1


@frozen
class Picture:
    name: str
    shapes: tuple[Circle | Square, ...] = ()
    points: Mapping[int, tuple[int, ...]] = field(factory=dict)
    data: bytes = b""
    parent: str | None = None
    flag: bool = False


PICTURE = Picture("p", (Circle(1.5), Square(2)), {7: (1, 2)}, b"\0\xff", None, True)


def test_a_value_comes_back_as_it_was() -> None:
    assert from_json(Picture, json.loads(json.dumps(to_json(PICTURE)))) == PICTURE
    assert to_json(PICTURE)["shapes"][0] == {"kind": "Circle", "radius": 1.5}


def test_newer_and_older_peers_understand_each_other() -> None:
    assert from_json(Picture, {"name": "p", "added_later": 7}) == Picture("p")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "Picture.name: missing"),
        ({"name": 7}, "Picture.name: expected str, got 7"),
        ({"name": "p", "flag": 1}, "Picture.flag: expected bool, got 1"),
        ({"name": "p", "shapes": [{"kind": "Line"}]}, r"Picture.shapes\[0\]"),
        ({"name": "p", "shapes": [{"kind": "Circle"}]}, r"Picture.shapes\[0\].radius: missing"),
        ({"name": "p", "points": {"blue": []}}, "Picture.points.blue"),
        ({"name": "p", "data": "%"}, "Picture.data: expected base64 text"),
        ({"name": "p", "shapes": "x"}, "Picture.shapes: expected an array, got 'x'"),
        ([], "Picture: expected"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(data: object, said: str) -> None:
    with pytest.raises(CodecError, match=said):
        from_json(Picture, data)


def test_a_boolean_is_no_number() -> None:
    with pytest.raises(CodecError, match=r"Square\.side: expected int, got True"):
        from_json(Square, {"side": True})
    assert from_json(Circle, {"radius": 2}) == Circle(2.0)


@pytest.mark.parametrize("kind", [Service, Stack, StackRecord, Plan, Progress, ObservedTask])
@given(data=st.data())
def test_every_value_of_the_api_survives(kind: type, data: st.DataObject) -> None:
    value = data.draw(st.builds(kind, **_fields(kind)))
    assert from_json(kind, json.loads(json.dumps(to_json(value)))) == value


def _fields(kind: type) -> dict[str, st.SearchStrategy[object]]:
    """Those fields that have no default, and some that have."""
    text = st.text(max_size=5)
    known: dict[type, dict[str, st.SearchStrategy[object]]] = {
        Service: {
            "name": text,
            "command": st.none() | st.lists(text, max_size=2).map(tuple),
            "environment": st.dictionaries(text, text, max_size=2),
            "stop_grace_period": st.floats(0, 1e9),
        },
        Stack: {"name": text, "services": st.dictionaries(text, st.builds(Service, text))},
        StackRecord: {
            "stack": st.builds(Stack, text),
            "revision": st.integers(),
            "updated": st.floats(0, 1),
        },
        Plan: {"generation": st.integers()},
        Progress: {"time": st.floats(0, 1e10), "text": text},
        ObservedTask: {"id": text, "state": st.sampled_from(TaskState)},
    }
    return known[kind]


def test_enums_are_written_by_value() -> None:
    assert to_json({TaskState.RUNNING: (TaskState.FAILED,)}) == {"running": ["failed"]}
