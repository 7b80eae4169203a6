"""The schema and its words: every violation at once, each with place, path and a suggestion."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from compose.cases import document, errors, projected, table
from orchestra.compose.errors import Problems
from orchestra.compose.schema import schema
from orchestra.compose.shape import compile_schema
from orchestra.compose.yaml import read

DOCUMENTS = table("documents")


def test_the_schema_is_valid_draft_7_and_published_in_schemas() -> None:
    Draft7Validator.check_schema(schema())
    published = Path(__file__).parents[2] / "schemas" / "compose.json"
    assert json.loads(published.read_text()) == schema()


def test_an_unknown_key_is_named_with_the_one_that_was_meant() -> None:
    text = "services:\n  web:\n    image: x\n    prots: ['80:80']\n    deploy:\n      replcas: 2\n"
    assert errors(text) == [
        'compose.yaml:4:5: services.web.prots: unknown key; did you mean "ports"?',
        'compose.yaml:6:7: services.web.deploy.replcas: unknown key; did you mean "replicas"?',
    ]


MESSAGES = {
    "image: 1": "services.web.image: must be a string, not the number 1",
    "volumes: x": "services.web.volumes: must be a list, not the string 'x'",
    "environment: x": "services.web.environment: must be a mapping or a list, not the string 'x'",
    "environment: {A: {b: c}}": "services.web.environment.A: must be a string, a number, "
    "true or false or empty, not a mapping",
    "command: {a: b}": "services.web.command: must be a string, empty or a list, not a mapping",
    "ports: [{target: 80, porto: x}]": "services.web.ports[0].porto: unknown key",
    "ports: [[80]]": "services.web.ports[0]: must be a whole number, a string or a mapping, "
    "not a list",
    "depends_on: {db: {}}": "services.web.depends_on.db: 'condition' is missing",
    "depends_on: {db: {condition: up}}": "services.web.depends_on.db.condition: must be "
    "service_started, service_healthy or service_completed_successfully, not 'up'",
    "stop_grace_period: 90": "services.web.stop_grace_period: must be a string, not the number 90",
    "volumes: [{type: blind, target: /a}]": "services.web.volumes[0].type: must be bind, "
    "volume, tmpfs, cluster, npipe or image, not 'blind'",
    "scale: -1": "services.web.scale: must be at least 0, not -1",
    "security_opt: [a, a]": "services.web.security_opt: names a twice",
    "container_name: a": "services.web.container_name: 'a' does not match",
    "healthcheck:": "services.web.healthcheck: must be a mapping, not empty",
}


@pytest.mark.parametrize(("line", "message"), MESSAGES.items())
def test_a_violation_is_worded(line: str, message: str) -> None:
    text = "services:\n  web:\n    imag: x\n    " + line + "\n"
    text = text.replace("    imag: x\n", "" if line.startswith("image") else "    image: x\n")
    [error] = errors(text)
    assert message in error
    assert error.startswith(f"compose.yaml:{3 if line.startswith('image') else 4}:")


def test_a_name_of_a_service_is_checked_though_its_content_is_fine() -> None:
    assert "'we b' does not match" in errors("services: {'we b': {image: x}}")[0]


def test_errors_of_several_files_come_together() -> None:
    files = {"a.yaml": "services: {web: {imge: x}}", "b.yaml": "services: {web: {tty: 5}}"}
    lines = errors(files, names=("a.yaml", "b.yaml"))
    assert [line.split(":")[0] for line in lines] == ["a.yaml", "b.yaml"]


@pytest.mark.parametrize("case", DOCUMENTS, ids=lambda c: c["case"])
def test_the_compiled_schema_agrees_with_jsonschema(case: dict) -> None:
    for text in case["files"].values():
        for doc in read(text, "f", Problems()):
            tree = json.loads(json.dumps(doc.tree))
            assert compile_schema(schema())(tree) == Draft7Validator(schema()).is_valid(tree)


SCALARS = st.sampled_from([None, True, 0, -1, 1.5, 2.0, "x", "80", "", [], ["a"], ["a", "a"], {}])
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abx"), inner, max_size=2)
    ),
    max_leaves=4,
)
KEYS = st.sampled_from([*schema()["definitions"]["service"]["properties"], "x-a", "nope"])


@given(st.dictionaries(KEYS, VALUES, max_size=3))
def test_the_compiled_schema_agrees_on_any_service(service: dict) -> None:
    tree = {"services": {"web": service}}
    assert FITS(tree) == VALIDATOR.is_valid(tree)


FITS, VALIDATOR = compile_schema(schema()), Draft7Validator(schema())


def test_nothing_of_jsonschema_is_needed_for_a_right_file() -> None:
    assert projected(document("tty: true")).tree["services"]["web"]["tty"] is True
