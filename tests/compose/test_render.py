"""`orchestra config` prints a compose file that means the same stack."""

import json

import pytest
import yaml
from attrs import evolve

from compose.cases import FOLDER, document, loaded, table
from compose.test_attributes import CASES, ENV, FILES, REST
from orchestra.compose.errors import ComposeErrors
from orchestra.compose.render import render
from orchestra.model.service import Stack


def again(stack: Stack, origins, env=None, files=None) -> Stack:
    """The stack after printing it as YAML and loading that."""
    text = yaml.safe_dump(render(stack, origins), sort_keys=False)
    return loaded({**(files or {}), "compose.yaml": text}, env, profiles=["*"]).stack


@pytest.mark.parametrize("lines", [lines for lines, _ in CASES])
def test_every_attribute_is_printed_so_that_it_loads_again(lines: str) -> None:
    text = document(lines, REST)
    text = text.replace("    image: x\n", "", 1) if lines.startswith("image") else text
    first = loaded({"compose.yaml": text, **FILES}, ENV, profiles=["*"])
    assert again(first.stack, first.origins, ENV, FILES) == first.stack


def test_documents_of_public_projects_are_printed_so_that_they_load_again() -> None:
    taken = 0
    for case in table("documents") + table("merges"):
        files, env = case["files"], {"HOME": "/srv", **case["env"]}
        names = ("compose.yaml",) if "compose.yaml" in files else tuple(sorted(files))
        try:
            first = loaded(files, env, names=names, profiles=["*"])
        except ComposeErrors:
            continue  # what is not honoured yet
        others = {name: text for name, text in files.items() if name not in names}
        assert again(first.stack, first.origins, env, others) == first.stack, case["case"]
        taken += 1
    assert taken > 150


def test_secrets_are_not_printed() -> None:
    first = loaded(document("secrets: [key]", REST), ENV)
    assert "withheld" in json.dumps(render(first.stack)["secrets"])
    assert render(first.stack, first.origins)["secrets"] == {"key": {"environment": "KEY"}}


def test_dollars_stay_dollars() -> None:
    first = loaded(document("command: [echo, $$HOME, '$${X}']\nlabels: {a: $$}"))
    assert first.stack.services["web"].command == ("echo", "$HOME", "${X}")
    assert again(first.stack, first.origins) == first.stack


def test_what_is_relative_to_the_folder_is_printed_in_full() -> None:
    first = loaded(document("volumes: ['./d:/d']"))
    assert render(first.stack)["services"]["web"]["volumes"][0]["source"] == f"{FOLDER}/d"
    assert first.relative_binds == (("web", "/d", "./d"),)
    assert evolve(first.stack) == again(first.stack, first.origins)
