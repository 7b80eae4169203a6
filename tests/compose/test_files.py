"""Several files: what -f, !reset, !override, extends and include make of them."""

from compose.cases import FOLDER, errors, loaded, projected

BASE = """
services:
  web:
    image: x
    command: serve
    environment: [A=1, B=2]
    ports: ['80:80', '81:81']
    volumes: ['/a:/data', '/b:/more']
    healthcheck: {test: [CMD, a], interval: 5s}
"""


def merged(over: str):
    files = {"a.yaml": BASE, "b.yaml": "services:\n  web:\n" + over}
    return loaded(files, names=("a.yaml", "b.yaml")).stack.services["web"]


def test_a_later_file_adds_and_changes() -> None:
    web = merged(
        "    environment: {B: 3, C: 4}\n    ports: ['81:81', '82:82']\n"
        "    volumes: ['/z:/data:ro']\n    healthcheck: {test: [CMD, b, c]}\n    command: [x, y]\n"
    )
    assert web.environment == {"A": "1", "B": "3", "C": "4"}
    assert [p.published for p in web.ports] == [80, 81, 82]
    assert [(m.source, m.read_only) for m in web.mounts] == [("/z", True), ("/b", False)]
    assert (web.healthcheck.test, web.healthcheck.interval) == (("CMD", "b", "c"), 5.0)
    assert web.command == ("x", "y")


def test_an_empty_attribute_over_another_says_nothing() -> None:
    web = merged("    environment:\n    image:\n    command:\n")
    assert (web.environment, web.image, web.command) == ({"A": "1", "B": "2"}, "x", None)


def test_reset_takes_away_and_override_replaces() -> None:
    web = merged(
        "    ports: !reset []\n    environment: {A: !reset null}\n"
        "    volumes: !override ['/q:/q']\n"
    )
    assert web.ports == () and web.environment == {"B": "2"}
    assert [m.source for m in web.mounts] == ["/q"]


def test_an_error_names_the_file_that_the_attribute_comes_from() -> None:
    files = {"a.yaml": BASE, "b.yaml": "services:\n  web:\n    networks: [front]\n"}
    [error] = errors(files, names=("a.yaml", "b.yaml"))
    assert error.startswith("b.yaml:3:16: services.web.networks.front:")


def test_merging_an_empty_file_changes_nothing() -> None:
    files = {"a.yaml": BASE, "b.yaml": "services: {}\n"}
    alone = loaded(files, names=("a.yaml",)).stack
    assert loaded(files, names=("a.yaml", "b.yaml")).stack == alone


def test_a_service_extends_another_along_a_chain_of_files() -> None:
    files = {
        "compose.yaml": "services: {web: {extends: {service: mid, file: sub/mid.yaml}, tty: true}}",
        "sub/mid.yaml": "services: {mid: {extends: {service: root, file: ../root.yaml}, "
        "volumes: ['./d:/d'], ports: !reset []}}",
        "root.yaml": "services: {root: {image: r, volumes: ['./e:/e'], ports: ['1:1']}}",
    }
    web = loaded(files).stack.services["web"]
    assert (web.image, web.tty, web.ports) == ("r", True, ())
    assert [m.source for m in web.mounts] == [f"{FOLDER}/e", f"{FOLDER}/sub/d"]


def test_services_that_extend_each_other_are_refused() -> None:
    text = "services: {a: {extends: b}, b: {extends: a, image: x}}"
    assert "services extend each other in a circle: a -> b -> a" in errors(text)[0]


def test_what_cannot_be_extended_is_named() -> None:
    assert "there is no service 'no' to extend" in errors("services: {a: {extends: no}}")[0]
    text = "services: {a: {extends: {service: x, file: no.yaml}}}"
    assert errors(text) == [
        "compose.yaml:1:16: services.a.extends: cannot read no.yaml: No such file or directory"
    ]


INNER = "services: {db: {image: 'pg:${V}', volumes: ['./d:/d'], environment: [FROM]}}"


def test_an_included_project_keeps_its_folder_and_variables() -> None:
    files = {
        "compose.yaml": "include: [sub/c.yaml]\nservices: {web: {image: 'x:${V}'}}",
        "sub/c.yaml": INNER,
        "sub/.env": "V=9\nFROM=inside",
    }
    services = loaded(files, {"V": "1"}).stack.services
    assert services["web"].image == "x:1" and services["db"].image == "pg:1"
    assert services["db"].environment == {"FROM": "inside"}
    assert services["db"].mounts[0].source == f"{FOLDER}/sub/d"
    assert loaded(files).stack.services["db"].image == "pg:9"


def test_an_include_names_several_files_a_directory_and_env_files() -> None:
    files = {
        "compose.yaml": "include:\n  - path: [sub/c.yaml, sub/more.yaml]\n"
        "    project_directory: .\n    env_file: other.env\nservices: {web: {image: x}}",
        "sub/c.yaml": INNER,
        "sub/more.yaml": "services: {db: {tty: true}}",
        "other.env": "V=2",
    }
    db = loaded(files).stack.services["db"]
    assert (db.image, db.tty, db.mounts[0].source) == ("pg:2", True, f"{FOLDER}/d")


def test_what_is_included_can_be_changed_and_extended() -> None:
    files = {
        "compose.yaml": "include: [sub/c.yaml]\n"
        "services: {db: {tty: true}, web: {extends: db, image: y}}",
        "sub/c.yaml": INNER,
    }
    services = projected(files).tree["services"]
    assert services["db"]["tty"] and services["db"]["image"] == "pg:"
    assert services["web"]["image"] == "y" and services["web"]["volumes"]


def test_files_that_include_each_other_are_refused() -> None:
    files = {
        "compose.yaml": "include: [a.yaml]\nservices: {web: {image: x}}",
        "a.yaml": "include: [compose.yaml]\nservices: {a: {image: x}}",
    }
    assert "files include each other in a circle: compose.yaml -> a.yaml -> " in errors(files)[0]


def test_an_included_file_that_is_missing_is_an_error_at_its_line() -> None:
    text = "services: {web: {image: x}}\ninclude:\n  - no.yaml\n"
    assert errors(text) == [
        "compose.yaml:3:5: include[0]: cannot read no.yaml: No such file or directory"
    ]
