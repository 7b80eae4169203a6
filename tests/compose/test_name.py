"""The name of a project that is read off its files is the one that loading them gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from compose.cases import FOLDER, loaded
from orchestra.compose.find import load_project, name_of_project
from orchestra.compose.name import plain_name

BODY = "services:\n  web:\n    image: x\n"
DIRECTORY = FOLDER.rstrip("/").rpartition("/")[2]


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ("", DIRECTORY),
        ("name: shop\n", "shop"),
        ("# name: no\nname: shop # the shop\n", "shop"),
        ('version: "3.8"\nname: "shop"\n', "shop"),
        ("name: 'true'\n", "true"),
        ("x-common: &common\n  name: inner\nname: shop-2_b\n", "shop-2_b"),
        ("volumes: {}\nname:   shop   \n", "shop"),
    ],
)
def test_a_plain_name_is_read_off(head: str, name: str) -> None:
    assert plain_name([head + BODY], {}, FOLDER) == name
    assert loaded(head + BODY).stack.name == name


@pytest.mark.parametrize(
    "head",
    [
        "name: ${SHOP:-shop}\n",
        "name: Shop\n",
        "name: true\n",
        "name: 7\n",
        "name: a\nname: b\n",
        "name: >\n  shop\n",
        "name:\n  shop\n",
        'x-a: "\nname: b"\n',
        "x-a: {b:\nname: c}\n",
        '"name": shop\n',
        "? name\n: shop\n",
        "---\n",
        "<<: {name: shop}\n",
        "name: &a shop\n",
        "name: !str shop\n",
        "name: shop: b\n",
        "name : shop\n",
    ],
)
def test_what_is_not_plain_is_left_to_the_loader(head: str) -> None:
    assert plain_name([head + BODY], {}, FOLDER) == ""


def test_the_last_file_with_a_name_counts_and_the_environment_counts_more() -> None:
    files = ["name: a\n" + BODY, "name: b\n", BODY]
    assert plain_name(files, {}, FOLDER) == "b"
    assert plain_name(files, {"COMPOSE_PROJECT_NAME": "c"}, FOLDER) == "c"
    assert plain_name(files, {"COMPOSE_PROJECT_NAME": "Not Valid"}, FOLDER) == ""


def test_an_error_further_down_does_not_hide_the_name() -> None:
    assert plain_name(["name: shop\nservices:\n  web: [unclosed\n"], {}, FOLDER) == "shop"


@pytest.mark.parametrize(
    ("files", "arguments", "environ"),
    [
        ({"compose.yaml": BODY}, {}, {}),
        ({"compose.yaml": "name: a\n" + BODY, "compose.override.yaml": "name: b\n" + BODY}, {}, {}),
        ({"compose.yaml": BODY, ".env": "COMPOSE_PROJECT_NAME=dotted\n"}, {}, {}),
        ({"compose.yaml": BODY}, {}, {"COMPOSE_PROJECT_NAME": "outside"}),
        ({"other/a.yaml": BODY}, {"files": ["other/a.yaml"]}, {}),
        ({"a.yaml": "name: named\n" + BODY, ".env": "COMPOSE_FILE=a.yaml\n"}, {}, {}),
        ({"compose.yaml": BODY, "x.env": "COMPOSE_PROJECT_NAME=x\n"}, {"env_files": ["x.env"]}, {}),
        ({"deep/compose.yaml": BODY}, {"project_directory": "deep"}, {}),
        ({"compose.yaml": "name: ${NAME:-fall}\n" + BODY}, {}, {}),
    ],
)
def test_the_quick_name_is_the_loaded_one(
    files: dict[str, str],
    arguments: dict[str, list[str]],
    environ: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "Some.Project"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    given = {"files": [], "project_directory": None, "env_files": [], **arguments}
    quick = name_of_project(**given, environ=environ)
    whole = load_project(**given, project_name=None, profiles=[], environ=environ).stack.name
    assert quick in (whole, "")
    assert quick or "$" in files["compose.yaml"]
