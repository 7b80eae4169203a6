"""Which servers answer for a registry, and who we are there."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from image.box import run
from orchestra.image.credentials import Credentials, CredentialStore, docker_config
from orchestra.image.registries import Registries, parse_origin, read_registries
from orchestra.image.registry import parse_challenge
from orchestra.model.errors import Invalid, Unavailable


@pytest.mark.parametrize(
    ("domain", "server"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("ghcr.io", "https://ghcr.io"),
        ("host.example:5000", "https://host.example:5000"),
        ("localhost", "http://localhost"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.3.0.1:5000", "http://127.3.0.1:5000"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("10.0.0.1", "https://10.0.0.1"),
    ],
)
def test_a_domain_is_its_own_server(domain: str, server: str) -> None:
    [endpoint] = Registries().endpoints(domain)
    assert str(endpoint.origin) == server and not endpoint.is_mirror


def test_mirrors_come_before_the_server(tmp_path: Path) -> None:
    path = tmp_path / "registries.json"
    entry = {"mirrors": ["https://m1/proxy/", "http://m2:5000"], "ca": "/ca.pem"}
    path.write_text(json.dumps({"docker.io": entry, "x.y": {"url": "http://z:80/base"}}))
    found = read_registries(str(path)).endpoints("docker.io")
    assert [(str(e.origin), e.path, e.is_mirror, e.ca) for e in found] == [
        ("https://m1", "/proxy", True, "/ca.pem"),
        ("http://m2:5000", "", True, "/ca.pem"),
        ("https://registry-1.docker.io", "", False, "/ca.pem"),
    ]
    [own] = read_registries(str(path)).endpoints("x.y")
    assert (str(own.origin), own.path) == ("http://z", "/base")


def test_an_absent_configuration_is_an_empty_one(tmp_path: Path) -> None:
    assert len(read_registries(str(tmp_path / "no")).endpoints("docker.io")) == 1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "cannot read .*registries.json: "),
        ("[]", "is not a JSON object"),
        ('{"a": 1}', "a: is not a JSON object"),
        ('{"a": {"mirror": []}}', "a: unknown key 'mirror'; known are ca, mirrors, url"),
        ('{"a": {"mirrors": "https://x"}}', "a: mirrors is not a list of strings"),
        ('{"a": {"ca": 1}}', "a: ca is not a string"),
        ('{"a": {"url": "ftp://x"}}', "a: 'ftp://x' is no URL of a registry"),
        ('{"a": {"mirrors": ["x:5000"]}}', "a: 'x:5000' is no URL of a registry"),
        ('{"a": {"url": "https://me:pw@x"}}', "is no URL of a registry"),
        ('{"a": {"url": "https://x:99999"}}', "is no URL: "),
        ('{"a": {"url": "https://x/a b"}}', "is no URL: it has letters"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(
    tmp_path: Path, document: str, message: str
) -> None:
    path = tmp_path / "registries.json"
    path.write_text(document)
    with pytest.raises(Invalid, match=message):
        read_registries(str(path))


def test_a_url_is_an_origin_and_a_rest() -> None:
    origin, rest = parse_origin("HTTPS://Host.Example/v2/x?y=1&z")
    assert (str(origin), rest) == ("https://host.example", "/v2/x?y=1&z")
    assert origin == parse_origin("https://host.example:443")[0]


def test_a_challenge_has_a_scheme_and_parameters() -> None:
    challenge = parse_challenge(
        'Bearer realm="https://auth.x/token", service=reg,scope="repository:a/b:pull,push",'
        'error="a \\"b\\""'
    )
    assert challenge.scheme == "bearer"
    assert challenge.parameters == {
        "realm": "https://auth.x/token",
        "service": "reg",
        "scope": "repository:a/b:pull,push",
        "error": 'a "b"',
    }


# credentials


def store(tmp_path: Path, document: Any) -> CredentialStore:
    path = tmp_path / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return CredentialStore(str(path))


def encoded(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize(
    ("key", "domain"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("ghcr.io", "ghcr.io"),
        ("https://ghcr.io/v2/", "ghcr.io"),
        ("host:5000", "host:5000"),
    ],
)
def test_credentials_are_found_by_the_registrys_host(tmp_path: Path, key: str, domain: str) -> None:
    found = run(store(tmp_path, {"auths": {key: encoded("me:se:cret")}}).find, domain)
    assert found == Credentials("me", "se:cret")
    assert "cret" not in repr(found)


def test_there_need_be_no_credentials(tmp_path: Path) -> None:
    known = {"auths": {"a": encoded("me:x"), "empty": {}}}
    for domain in ("b", "empty", "a:5000", "docker.io"):
        assert run(store(tmp_path, known).find, domain) is None
    assert run(CredentialStore(str(tmp_path / "no")).find, "a") is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "cannot read "),
        ("[]", "it is not a JSON object"),
        ({"auths": [1]}, "auths is not a JSON object"),
        ({"auths": {"a": {"auth": "%%%"}}}, "the entry of a is damaged; `docker login a`"),
        ({"credHelpers": {"a": "../../bin/sh"}}, "'../../bin/sh' is no name of a credential"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        run(store(tmp_path, document).find, "a")


def helper(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_a_helper_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = '{"ServerURL":"%s","Username":"me","Secret":"s"}'
    helper(tmp_path, "one", f"read url; test $1 = get && printf '{answer}' $url", monkeypatch)
    known = store(tmp_path, {"credHelpers": {"a": "one"}, "auths": {"a": {}}})
    assert run(known.find, "a") == Credentials("me", "s")
    assert run(known.find, "b") is None


def test_the_hub_has_a_name_of_its_own_at_helpers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = """echo '{"Username":"<token>","Secret":"t"}'"""
    script = f'test "$(cat)" = https://index.docker.io/v1/ && {answer}'
    helper(tmp_path, "hub", script, monkeypatch)
    found = run(store(tmp_path, {"credsStore": "hub"}).find, "docker.io")
    assert found == Credentials("", "", "t")


def test_a_helper_may_know_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, "empty", "echo credentials not found in native keychain; exit 1", monkeypatch)
    assert run(store(tmp_path, {"credsStore": "empty"}).find, "a") is None


@pytest.mark.parametrize("script", ["exit 3", "echo no", "echo '{}'", "echo '[]'"])
def test_a_helper_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    helper(tmp_path, "bad", script, monkeypatch)
    with pytest.raises(Unavailable, match="docker-credential-bad "):
        run(store(tmp_path, {"credsStore": "bad"}).find, "a")
    with pytest.raises(Unavailable, match="cannot run docker-credential-absent"):
        run(store(tmp_path, {"credsStore": "absent"}).find, "a")


def test_dockers_own_configuration_is_the_one() -> None:
    assert docker_config({"HOME": "/home/me"}) == "/home/me/.docker/config.json"
    assert docker_config({"DOCKER_CONFIG": "/x"}) == "/x/config.json"
