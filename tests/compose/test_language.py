"""What the language says beyond shapes: contradictions, references, names, profiles (6.2)."""

import pytest

from compose.cases import document, errors, loaded, projected, service

ERRORS = {
    "scale: 2\ndeploy: {replicas: 3}": "services.web.scale: scale is 2 but deploy.replicas is 3",
    "cpus: 1\ndeploy: {resources: {limits: {cpus: '2'}}}": "services.web.cpus: cpus is 1 but",
    "mem_limit: 1g\ndeploy: {resources: {limits: {memory: 1m}}}": "services.web.mem_limit: ",
    "network_mode: host\nnetworks: [default]": "network_mode and networks exclude each other",
    "networks: [front]": "services.web.networks.front: network 'front' is not defined",
    "volumes: ['data:/d']": "services.web.volumes[0]: volume 'data' is not defined",
    "secrets: [key]": "services.web.secrets[0]: secret 'key' is not defined",
    "configs: [app]": "services.web.configs[0]: config 'app' is not defined",
    "depends_on: [bd]": "service 'bd' is not defined; did you mean \"db\"?",
    "depends_on: [web]": "service 'web' depends on itself",
    "container_name: one\ndeploy: {replicas: 2}": "2 replicas cannot share one container name",
    "stop_grace_period: '90'": "'90' is no duration; give a number with a unit",
    "mem_limit: 64x": "'64x' is no size; give a number with b, k, m, g or t",
    "ports: ['80:81-83']": "'80:81-83': the ranges differ in length",
    "ports: ['70000:80']": "no port or range of ports within 0-65535",
    "ports: ['80:80/http']": "the protocol must be tcp, udp or sctp, not 'http'",
    "ports: ['localhost:80:80']": "host_ip 'localhost' is no address",
    "volumes: ['/a::ro']": "'/a::ro': nothing between two colons",
    "tmpfs: /a\nvolumes: ['/b:/a']": "/a is mounted already, by tmpfs[0]",
    "extra_hosts: [a]": "'a' is no NAME=ADDRESS",
    "command: echo 'x": "the quote ' is not closed",
    "healthcheck: {test: [run]}": "must begin with CMD, CMD-SHELL or NONE, not 'run'",
    "environment: ['A =1']": "'A =1' does not begin with a name",
    "gpus: [{count: 1, device_ids: [a]}]": "count and device_ids exclude each other",
}


@pytest.mark.parametrize(("lines", "message"), ERRORS.items())
def test_a_contradiction_is_refused(lines: str, message: str) -> None:
    [error] = errors(document(lines, "  db: {image: y}\n"))[:1]
    assert message in error
    assert error.startswith("compose.yaml:")


def test_equal_values_in_both_places_are_fine() -> None:
    lines = "scale: 2\ncpus: 0.5\nmem_limit: 1g"
    lines += "\ndeploy: {replicas: 2, resources: {limits: {cpus: '0.50', memory: 1024m}}}"
    web = service(lines)
    assert (web.replicas, web.limits.cpus, web.limits.memory) == (2, 0.5, 1 << 30)


def test_a_circle_of_dependencies_is_refused_with_its_path() -> None:
    text = """
services:
  a: {image: x, depends_on: [b]}
  b: {image: x, depends_on: [c]}
  c: {image: x, depends_on: [a]}
"""
    assert errors(text) == [
        "compose.yaml:5:30: services.c.depends_on.a: "
        "services depend on each other in a circle: a -> b -> c -> a"
    ]


def test_a_chain_of_thousands_is_no_circle() -> None:
    lines = [f"  s{n}: {{image: x, depends_on: [s{n + 1}]}}" for n in range(3000)]
    text = "services:\n" + "\n".join(lines) + "\n  s3000: {image: x}\n"
    assert len(loaded(text).stack.services) == 3001


def test_a_service_needs_an_image() -> None:
    assert errors("services: {web: {init: true}}") == [
        "compose.yaml:1:12: services.web: has neither an image nor a build context"
    ]


def test_one_port_on_every_node_has_one_owner() -> None:
    ports = "  db: {image: y, ports: ['8080:1']}\n"
    [error] = errors(document("ports: ['8080:80']", ports))
    assert "port 8080/tcp is already published by service 'web'" in error
    on_hosts = "[{target: 80, published: 80, mode: host}]"
    rest = f"  db: {{image: y, ports: {on_hosts}}}\n"
    assert len(loaded(document(f"ports: {on_hosts}", rest)).stack.services) == 2


@pytest.mark.parametrize(
    ("written", "name"), [("My_Project", "my_project"), ("-x.Y z", "xyz"), ("${A:-b}", "b")]
)
def test_a_project_name_is_normalised(written: str, name: str) -> None:
    assert loaded(f"name: '{written}'\nservices: {{web: {{image: x}}}}").stack.name == name


def test_a_project_name_comes_from_the_option_then_the_environment_then_the_file() -> None:
    text, env = document(""), {"COMPOSE_PROJECT_NAME": "env"}
    assert loaded(text, env, project_name="option").stack.name == "option"
    assert loaded(text, env).stack.name == "env"
    assert loaded(text).stack.name == "demo"
    assert loaded("services: {web: {image: x}}", folder="/srv/My App").stack.name == "myapp"


@pytest.mark.parametrize("name", ["Zed", "a b", "_"])
def test_a_name_that_was_asked_for_must_be_right(name: str) -> None:
    assert "is no project name" in errors(document(""), project_name=name)[0]


def test_version_is_ignored_with_a_warning() -> None:
    result = loaded("version: '3.8'\n" + document(""))
    assert "version is obsolete and ignored" in result.warnings[0]


@pytest.mark.parametrize("text", ["", "# nothing\n", "name: x\n", "services: {}\n"])
def test_a_file_without_services_is_refused(text: str) -> None:
    assert len(errors(text)) == 1


PROFILES = """
services:
  web: {image: x, depends_on: {dev: {condition: service_started, required: false}}}
  dev: {image: x, profiles: [dev]}
  test: {image: x, profiles: [test, dev]}
"""


@pytest.mark.parametrize(
    ("active", "names"),
    [
        ((), ["web"]),
        (("dev",), ["web", "dev", "test"]),
        (("test",), ["web", "test"]),
        (("*",), ["web", "dev", "test"]),
    ],
)
def test_profiles_choose_services(active: tuple[str, ...], names: list[str]) -> None:
    services = loaded(PROFILES, profiles=active).stack.services
    assert list(services) == names
    assert [d.service for d in services["web"].depends_on] == ["dev"] * ("dev" in names)


def test_a_required_dependency_on_a_disabled_service_is_refused() -> None:
    text = "services: {web: {image: x, depends_on: [dev]}, dev: {image: x, profiles: [dev]}}"
    assert "service 'dev' is disabled; activate a profile of: dev" in errors(text)[0]


def test_a_disabled_service_need_not_make_sense() -> None:
    text = "services: {web: {image: x}, old: {profiles: [old], networks: [gone], env_file: no}}"
    assert list(loaded(text).stack.services) == ["web"]


def test_shared_namespaces_and_links_imply_dependencies() -> None:
    rest = "  db: {image: y}\n  vol: {image: y}\n"
    lines = "links: ['db:data']\nvolumes_from: ['vol:ro']\npid: service:db"
    depends = projected(document(lines, rest)).tree["services"]["web"]["depends_on"]
    assert depends == {
        "db": {"condition": "service_started", "required": True, "restart": True},
        "vol": {"condition": "service_started", "required": True},
    }
