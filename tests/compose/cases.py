"""What the compose tests share: files in memory, and the tables of real results beside the repo."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestra.compose.errors import ComposeErrors
from orchestra.compose.load import Loaded, Project, SourceFile, load, project

TABLES = Path(__file__).parents[3] / "shared" / "data" / "compose"
FOLDER = "/srv/demo"


def table(name: str) -> list[dict[str, Any]]:
    """The cases of one table; the calling module is skipped where there are none."""
    path = TABLES / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no table {path}", allow_module_level=True)
    return json.loads(path.read_text())


def reader(files: Mapping[str, str | bytes], folder: str = FOLDER):
    def read(path: str) -> bytes:
        for name, text in files.items():
            if path == f"{folder}/{name}":
                return text if isinstance(text, bytes) else text.encode()
        raise FileNotFoundError(2, "No such file or directory", path)

    return read


def _arguments(
    text: str | Mapping[str, str],
    env: Mapping[str, str] | None,
    names: tuple[str, ...],
    folder: str,
    more: dict[str, Any],
) -> tuple[list[SourceFile], Mapping[str, str], dict[str, Any]]:
    files = {"compose.yaml": text} if isinstance(text, str) else dict(text)
    sources = [SourceFile(f"{folder}/{name}", files[name]) for name in names]
    keywords = {"project_name": None, "project_directory": folder, "read": reader(files, folder)}
    return sources, env or {}, {**keywords, **more}


def loaded(
    text: str | Mapping[str, str],
    env: Mapping[str, str] | None = None,
    *,
    names: tuple[str, ...] = ("compose.yaml",),
    folder: str = FOLDER,
    **more: Any,
) -> Loaded:
    """Load files held in memory: one text, or name -> text of which `names` are given with -f."""
    sources, env, keywords = _arguments(text, env, names, folder, more)
    return load(sources, env, **keywords)


def projected(
    text: str | Mapping[str, str],
    env: Mapping[str, str] | None = None,
    *,
    names: tuple[str, ...] = ("compose.yaml",),
    folder: str = FOLDER,
    **more: Any,
) -> Project:
    """The same, without the last step to model values."""
    sources, env, keywords = _arguments(text, env, names, folder, more)
    return project(sources, env, **keywords)


def errors(text: str | Mapping[str, str], env: Mapping[str, str] | None = None, **more: Any):
    """The errors that loading raises, as lines without the folder."""
    with pytest.raises(ComposeErrors) as caught:
        loaded(text, env, **more)
    return str(caught.value).replace(f"{FOLDER}/", "").splitlines()


def service(lines: str, env: Mapping[str, str] | None = None, rest: str = "", **more: Any):
    """The one service `web` with image x and these further lines, as a model value."""
    return loaded(document(lines, rest), env, **more).stack.services["web"]


def document(lines: str, rest: str = "") -> str:
    inner = "".join(f"    {line}\n" for line in lines.splitlines())
    return f"name: demo\nservices:\n  web:\n    image: x\n{inner}{rest}"
