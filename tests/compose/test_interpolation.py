"""Variables in the file's text: every form, and what the errors say."""

from typing import Any

import pytest

from compose.cases import document, errors, loaded, service, table
from orchestra.compose.interpolate import BadTemplate, substitute

CASES = table("templates")


@pytest.mark.parametrize("case", CASES, ids=lambda c: repr(c["template"])[:40])
def test_a_template_gives_what_docker_compose_gives(case: dict[str, Any]) -> None:
    if not case["ok"]:
        with pytest.raises(BadTemplate):
            substitute(case["template"], case["env"].get)
    else:
        # The table holds what `config` prints, with dollars doubled.
        assert substitute(case["template"], case["env"].get).replace("$", "$$") == case["value"]


def test_a_required_variable_that_is_missing_names_key_variable_and_reason() -> None:
    text = "services:\n  web:\n    image: 'x:${TAG:?need a tag, like ${EXAMPLE}}'\n"
    assert errors(text, {"EXAMPLE": "1.2"}) == [
        "compose.yaml:3:5: services.web.image: "
        "required variable TAG has no value: need a tag, like 1.2"
    ]


def test_all_bad_templates_are_reported_at_once() -> None:
    text = document("command: '${'\nlabels: ['${a b}', '${OK:-fine}']\nuser: '${N?}'")
    assert [line.split(": ")[1] for line in errors(text)] == [
        "services.web.command",
        "services.web.labels[0]",
        "services.web.user",
    ]


def test_an_unset_variable_is_empty_and_warned_about() -> None:
    result = loaded("services: {web: {image: 'x${TAG}'}}")
    assert result.stack.services["web"].image == "x"
    assert result.warnings == ("the variable TAG is not set; it counts as empty",)


def test_text_becomes_the_type_of_its_attribute() -> None:
    web = service(
        "init: '${YES}'\ntty: 'on'\ndeploy: {replicas: '${N}'}\n"
        "healthcheck: {test: a, retries: '7'}",
        {"N": "4", "YES": "true"},
    )
    assert (web.init, web.tty, web.replicas, web.healthcheck.retries) == (True, True, 4, 7)


def test_a_boolean_of_yaml_1_1_is_taken_with_a_warning() -> None:
    result = loaded(document("init: yes"))
    assert result.stack.services["web"].init
    assert result.warnings[0].endswith('"yes" for a boolean is not YAML 1.2; write true')


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("deploy: {replicas: '${N}'}", "'many' is not a whole number"),
        ("init: '${N}'", "'many' is not a boolean; write true or false"),
        ("tty: '1'", "'1' is not a boolean; write true or false"),
        ("cpus: '${N}'", "'many' is not a number"),
    ],
)
def test_text_of_the_wrong_type_is_refused(line: str, message: str) -> None:
    [error] = errors(document(line), {"N": "many"})
    assert error.endswith(message)


def test_keys_are_not_interpolated() -> None:
    assert service("labels: {'$A': '$A'}", {"A": "b"}).labels == {"$A": "b"}


def test_the_project_name_is_a_variable() -> None:
    text = "name: ${N:-my-app}\nservices: {web: {image: '${COMPOSE_PROJECT_NAME}'}}"
    assert loaded(text).stack.services["web"].image == "my-app"
