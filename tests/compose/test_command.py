"""`orchestra config` as a user types it: what is right is printed, what is wrong is told and
changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from orchestra.cli.main import main

RIGHT = """
services:
  web: {image: x, networks: [front], secrets: [key], volumes: ['data:/d']}
  db: {image: 'y:${TAG:-1}', networks: [front]}
networks: {front: {}}
volumes: {data: {}}
secrets: {key: {file: ./key.txt}}
"""
Config = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Config:
    """Run `orchestra config WORDS` in a folder `demo` with these files: code, stdout, stderr."""
    folder = tmp_path / "demo"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("COMPOSE_FILE", "COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES"):
        monkeypatch.delenv(name, raising=False)

    def run(files: dict[str, str], *words: str) -> tuple[int, str, str]:
        for name, text in files.items():
            (folder / name).write_text(text)
        code = main(["config", *words])
        out, err = capsys.readouterr()
        return code, out, err.replace(f"{folder}/", "")

    return run


def test_a_right_file_is_printed_as_one_that_loads_again(config: Config, tmp_path: Path) -> None:
    files = {"compose.yaml": RIGHT, "key.txt": "k", ".env": "TAG=7"}
    code, out, err = config(files)
    assert (code, err) == (0, "")
    assert yaml.safe_load(out)["services"]["db"]["image"] == "y:7"
    assert "withheld" not in out and str(tmp_path / "demo" / "key.txt") in out
    assert config({"compose.yaml": out}) == (0, out, "")


def test_the_same_as_json_and_as_lists(config: Config) -> None:
    files = {"compose.yaml": RIGHT, "key.txt": "k"}
    assert set(json.loads(config(files, "--format", "json")[1])["services"]) == {"web", "db"}
    assert config(files, "--services")[1] == "db\nweb\n"
    assert config(files, "--images")[1] == "x\ny:1\n"
    assert config(files, "--volumes")[1] == "data\n"
    assert config(files, "-q") == (0, "", "")


WRONG = {
    "an unknown key": (
        "services:\n  web:\n    image: x\n    prots: ['80:80']\n",
        'compose.yaml:4:5: services.web.prots: unknown key; did you mean "ports"?',
    ),
    "a circle of dependencies": (
        "services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: [a]}\n",
        "compose.yaml:3:30: services.b.depends_on.a: "
        "services depend on each other in a circle: a -> b -> a",
    ),
    "a network that is not defined": (
        "services:\n  web:\n    image: x\n    networks: [front]\nnetworks: {fornt: {}}\n",
        "compose.yaml:4:16: services.web.networks.front: "
        "network 'front' is not defined; did you mean \"fornt\"?",
    ),
    "a build": (
        "services:\n  web:\n    build: .\n",
        "compose.yaml:3:5: services.web.build: is not supported: images are not built yet: build "
        "it with another tool, then load it with `orchestra image load`, and name it with `image:`",
    ),
    "no YAML": ("services: {a: [}\n", "compose.yaml:1:16: not valid YAML: "),
    "nothing": ("", "compose.yaml: the compose file is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_told_with_its_place(config: Config, case: str) -> None:
    text, message = WRONG[case]
    code, out, err = config({"compose.yaml": text})
    assert (code, out) == (2, "")
    head, *lines = err.splitlines()
    assert head == "orchestra: the compose files have errors:"
    assert lines[0].startswith(message)


def test_all_errors_come_at_once_in_the_order_of_the_file(config: Config) -> None:
    text = "services:\n  web: {image: 5, tty: x}\n  db: {imag: y}\nvolumes: {d: {drivr: z}}\n"
    _, _, err = config({"compose.yaml": text})
    assert [line.split(": ")[1] for line in err.splitlines()[1:]] == [
        "services.web.image",
        "services.web.tty",
        "services.db.imag",
        "volumes.d.drivr",
    ]


def test_no_file_at_all_is_told(config: Config) -> None:
    code, _, err = config({})
    assert code == 1 and "there is no compose file in " in err and "name one with -f" in err


def test_warnings_go_beside_the_result(config: Config) -> None:
    code, out, err = config({"compose.yaml": "version: '3'\n" + RIGHT, "key.txt": "k"}, "-q")
    assert (code, out) == (0, "")
    assert err == "warning: compose.yaml: version is obsolete and ignored\n"
