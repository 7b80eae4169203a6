"""The grammar of environment files. Each row was also seen in Docker Compose v5.6.1."""

import pytest

from compose.cases import document, errors, loaded
from orchestra.compose.dotenv import BadEnvFile, parse, parse_raw

ROWS = {
    "A=1": {"A": "1"},
    "A= 1 ": {"A": "1"},
    'A="x y"': {"A": "x y"},
    "A='x y'": {"A": "x y"},
    'A="a\\nb"': {"A": "a\nb"},
    "A='a\\nb'": {"A": "a\\nb"},
    'A="a\\"b"': {"A": 'a"b'},
    "A='it\\'s'": {"A": "it's"},
    "A=a # c": {"A": "a"},
    "A=a#c": {"A": "a#c"},
    "A=#x": {"A": "#x"},
    'A="a" # c': {"A": "a"},
    'A="a#b"': {"A": "a#b"},
    "# c\n\nA=1": {"A": "1"},
    "export A=1": {"A": "1"},
    "A = 1": {"A": "1"},
    "A: 1": {"A": "1"},
    "A=b=c": {"A": "b=c"},
    "A=": {"A": ""},
    "A=$FOO": {"A": "foo"},
    'A="$FOO"': {"A": "foo"},
    "A='$FOO'": {"A": "$FOO"},
    'A="\\$FOO"': {"A": "$FOO"},
    "A=$$FOO": {"A": "$FOO"},
    "A=${X:-y}": {"A": "y"},
    "B=1\nA=$B": {"B": "1", "A": "1"},
    "FOO=bar\nA=$FOO": {"FOO": "bar", "A": "foo"},
    'A="multi\nline"\nB=2': {"A": "multi\nline", "B": "2"},
    "A=1\r\nB=2\r\n": {"A": "1", "B": "2"},
    "\ufeffA=1": {"A": "1"},
    "A.B=1\nA-C=2\nA[0]=3": {"A.B": "1", "A-C": "2", "A[0]": "3"},
    "FOO\nMISSING\nB=2": {"FOO": "foo", "B": "2"},
    "A=1\nA=2": {"A": "2"},
}


@pytest.mark.parametrize(("text", "values"), ROWS.items())
def test_a_file_gives_its_variables(text: str, values: dict[str, str]) -> None:
    assert parse(text, {"FOO": "foo"}.get) == values


@pytest.mark.parametrize(
    ("text", "line"),
    [("\nA B=1", 2), ('A="x', 1), ("A!=1", 1), ("=x", 1), ("A=1\nB=${FOO", 2)],
)
def test_what_is_no_variable_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(BadEnvFile) as caught:
        parse(text, {}.get)
    assert caught.value.line == line


def test_a_raw_file_is_taken_as_it_stands() -> None:
    text = '# c\nA="x" # y \nB=$FOO\nFOO\n'
    assert parse_raw(text, {"FOO": "foo"}.get) == {"A": '"x" # y ', "B": "$FOO", "FOO": "foo"}
    with pytest.raises(BadEnvFile):
        parse_raw("export A=1", {}.get)


def test_env_files_lie_below_environment_and_later_files_above_earlier() -> None:
    files = {
        "compose.yaml": """
services:
  web:
    image: x
    env_file: [one.env, {path: two.env, required: false}, {path: no.env, required: false}]
    environment: {C: own, D: }
""",
        "one.env": "A=1\nB=1\nC=1",
        "two.env": "B=2\nE=$A",
    }
    environment = loaded(files, {"D": "caller"}).stack.services["web"].environment
    assert environment == {"A": "1", "B": "2", "C": "own", "D": "caller", "E": "1"}


def test_an_env_file_that_is_missing_or_bad_is_an_error_at_its_line() -> None:
    files = {
        "compose.yaml": document("env_file:\n  - no.env\n  - b"),
        "b": "A=1\nB B=2",
    }
    assert errors(files) == [
        "compose.yaml:6:9: services.web.env_file[0]: env file no.env not found",
        "compose.yaml:7:9: services.web.env_file[1]: env file b, line 2: "
        "'B B=2': a name may not contain 'B' or blanks",
    ]
