"""Plain words in YAML mean what compose files rely on (rows of orchestration.md 6.1)."""

import pytest

from compose.cases import errors, loaded, projected, service
from orchestra.compose.errors import Problems
from orchestra.compose.tree import place_of
from orchestra.compose.yaml import read

VALUES = {
    "22:22": "22:22",
    "12:30:45": "12:30:45",
    "yes": "yes",
    "on": "on",
    "OFF": "OFF",
    "y": "y",
    "true": "true",
    "True": "true",
    "TRUE": "true",
    "1e3": "1000",
    "1.e3": "1000",
    "1e6": "1e+06",
    "0777": "511",
    "0o777": "511",
    "08": "8",
    "0b11": "3",
    "0x1F": "31",
    "-0x1F": "-31",
    "1_000": "1000",
    "+1": "1",
    "3.10": "3.1",
    "1.0": "1",
    "-0": "-0",
    "1.5e-7": "1.5e-07",
    "99999999999999999999": "1e+20",
    "18446744073709551615": "18446744073709551615",
    "1e400": "1e400",
    "2024-01-02": "2024-01-02 00:00:00 +0000 UTC",
    "2024-01-02T03:04:05+02:00": "2024-01-02 03:04:05 +0200 +0200",
    "2024-13-01": "2024-13-01",
    "=": "=",
    "!!str 12": "12",
    '"a\\tb"': "a\tb",
}


@pytest.mark.parametrize(("text", "value"), VALUES.items())
def test_an_environment_value_reads_as_compose_reads_it(text: str, value: str) -> None:
    assert service(f"environment:\n  K: {text}").environment == {"K": value}


@pytest.mark.parametrize("text", ["~", "null", ""])
def test_an_empty_environment_value_is_the_callers(text: str) -> None:
    lines = f"environment:\n  K: {text}"
    assert service(lines).environment == {}
    assert service(lines, {"K": "mine"}).environment == {"K": "mine"}


def test_an_empty_label_is_the_empty_text() -> None:
    assert service("labels: {a: null, b: ''}").labels == {"a": "", "b": ""}


@pytest.mark.parametrize("text", [".inf", "-.INF", ".nan"])
def test_what_json_has_no_number_for_is_refused(text: str) -> None:
    [error] = errors(f"services:\n  web:\n    image: x\n    environment:\n      K: {text}\n")
    assert error.startswith("compose.yaml:5:10: services.web.environment.K: ")


def test_a_key_given_twice_is_an_error_with_both_lines() -> None:
    text = "services:\n  web:\n    image: x\n    command: a\n    command: b\n"
    assert errors(text) == [
        "compose.yaml:5:5: services.web.command: given twice; first on line 4, again here"
    ]


def test_a_service_may_be_called_on() -> None:
    assert list(loaded("services: {on: {image: x}}").stack.services) == ["on"]


@pytest.mark.parametrize("key", ["1", "true", "null", "2024.5"])
def test_a_key_that_is_no_text_is_refused(key: str) -> None:
    [error] = errors(f"services: {{{key}: {{image: x}}}}")
    assert "a key must be a string" in error


def test_merge_keys_and_anchors_fill_in_what_is_missing() -> None:
    text = """
x-common: &common {A: 1, B: 2}
services:
  web:
    image: x
    environment: {<<: [*common, {B: 9, C: 3}], A: 0}
"""
    assert loaded(text).stack.services["web"].environment == {"A": "0", "B": "2", "C": "3"}


def test_an_alias_used_twice_is_two_values_that_share_nothing() -> None:
    text = """
x-labels: &labels {team: a}
services:
  one: {image: x, labels: *labels}
  two: {image: x, labels: *labels, extends: three}
  three: {image: x, labels: {more: b}}
"""
    services = loaded(text).stack.services
    assert services["one"].labels == {"team": "a"}
    assert services["two"].labels == {"team": "a", "more": "b"}


def test_an_alias_within_itself_is_refused() -> None:
    assert "an alias contains itself" in errors("x-a: &a [*a]\nservices: {web: {image: x}}")[0]


def test_aliases_that_unfold_without_end_are_refused() -> None:
    lines = ["x-0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 10):
        lines.append(f"x-{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    problems = Problems()
    assert read("\n".join(lines), "bomb.yaml", problems) == []
    assert "aliases unfold to too many nodes" in str(problems.errors[0])


@pytest.mark.parametrize("text", ["services: {a: [}", "a: b: c", "\tx: 1", "a: 'x"])
def test_a_syntax_error_has_a_place(text: str) -> None:
    [error] = errors(text)
    assert error.startswith("compose.yaml:") and "not valid YAML" in error


def test_several_documents_in_a_file_merge() -> None:
    text = "services: {web: {image: x}}\n---\nservices: {web: {init: true}, db: {image: y}}\n"
    services = loaded(text).stack.services
    assert services["web"].init and list(services) == ["web", "db"]


def test_every_node_knows_its_place() -> None:
    problems = Problems()
    [document] = read("a:\n  b:\n    - c\n    - d: 1\n", "f.yaml", problems)
    assert place_of(document.tree, ("a", "b", 1, "d")) == ("f.yaml", 4, 7)
    assert place_of(document.tree, ("a", "nope")) == ("f.yaml", 1, 1)


def test_extensions_are_free_everywhere() -> None:
    text = """
x-top: {any: [1, {thing: 2}]}
services: {web: {image: x, x-own: 1, deploy: {x-in: {a: b}, resources: {x-q: 1}}}}
networks: {default: {x-net: 1}, x-not-a-network: [1]}
"""
    assert projected(text).tree["x-top"] == {"any": [1, {"thing": 2}]}
    assert loaded(text).stack.services["web"].image == "x"
