"""Whatever is in a compose file: it becomes a stack or errors with places, never anything else."""

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from compose.cases import document, loaded
from compose.test_attributes import CASES, ENV, REST
from orchestra.compose.errors import ComposeErrors
from orchestra.compose.schema import schema

WORDS = st.sampled_from(
    ["", "x", "80", "80:80", "8000-8001:80-81", "a=b", "./a:/b", "d:/d", "/a:/b:ro", "1s", "1g",
     "${A}", "${A:?no}", "${", "$$", "on", "3.10", "service:db", "no", "always:5", "CMD", "-1",
     "a.env", "../../x", "\0", "\u2028"]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers(-2, 70000) | st.floats(-1, 5) | WORDS
DEFINITIONS = schema()["definitions"]
KEYS = sorted(
    {key for definition in DEFINITIONS.values() for key in definition.get("properties", {})}
    | {"source", "target", "published", "condition", "soft", "hard", "subnet", "constraints"}
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYS, "db", "x-a", "A"]), inner, max_size=3)
    ),
    max_leaves=8,
)
SERVICE = st.dictionaries(
    st.sampled_from(sorted(DEFINITIONS["service"]["properties"])), VALUES, max_size=4
)
FILES = st.fixed_dictionaries(
    {"services": st.fixed_dictionaries({"db": SERVICE}, optional={"web": SERVICE})},
    optional={
        key: st.dictionaries(st.sampled_from(["a", "b"]), VALUES, max_size=2)
        for key in ("networks", "volumes", "configs", "secrets")
    },
)


def attempt(text: str, more: dict[str, str] | None = None) -> None:
    files = {"compose.yaml": text, **(more or {}), "a.env": "A=1"}
    try:
        loaded(files, ENV, names=("compose.yaml", *(more or ())))
    except ComposeErrors as errors:
        assert errors.errors and all(error.file and error.message for error in errors.errors)


@st.composite
def changed(draw: st.DrawFn) -> str:
    """A right file in which one value, somewhere, is another."""
    lines = draw(st.sampled_from([lines for lines, _ in CASES]))
    tree = yaml.load(document(lines, REST), yaml.BaseLoader)
    inner: Any = tree
    while True:
        keys = list(range(len(inner)) if isinstance(inner, list) else inner)
        key = draw(st.sampled_from(keys))
        deeper = inner[key]
        if not isinstance(deeper, (dict, list)) or not deeper or draw(st.booleans()):
            inner[key] = draw(SCALARS | VALUES)
            return yaml.safe_dump(tree)
        inner = deeper


@given(changed())
def test_a_right_file_with_one_other_value_is_a_stack_or_errors_with_places(text: str) -> None:
    attempt(text)


@given(FILES)
def test_any_document_is_a_stack_or_errors_with_places(document: dict[str, Any]) -> None:
    attempt(yaml.safe_dump(document))


@given(FILES, FILES)
def test_any_two_documents_merge_or_are_refused(one: dict[str, Any], two: dict[str, Any]) -> None:
    attempt(yaml.safe_dump(one), {"over.yaml": yaml.safe_dump(two)})


@given(st.text(st.sampled_from("a:- \n\t[]{}&*!|>'\"%@`#,?0x.<~"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    attempt(text)
    attempt(f"services:\n  web:\n    image: x\n    {text}")
