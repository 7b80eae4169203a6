"""From a folder and its environment to a loaded stack: the one impure module of the loader.

Finds the compose files (`-f`, COMPOSE_FILE, or the default names here or in a parent folder, with
their override file), the project directory, `.env` and the profiles, as Docker Compose does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestra.compose import dotenv
from orchestra.compose.errors import ComposeError, ComposeErrors
from orchestra.compose.name import plain_name
from orchestra.model.errors import NotFound

if TYPE_CHECKING:
    from orchestra.compose.load import Loaded

DEFAULT_FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
OVERRIDE_FILES = (
    "compose.override.yaml",
    "compose.override.yml",
    "docker-compose.override.yaml",
    "docker-compose.override.yml",
)


def load_project(
    files: Sequence[str],
    *,
    project_name: str | None,
    project_directory: str | None,
    profiles: Sequence[str],
    env_files: Sequence[str],
    environ: Mapping[str, str],
) -> Loaded:
    """Load the project that the arguments (of a command line) and the current folder mean.

    `-` among `files` is standard input. Raises ComposeErrors; NotFound where there is no file.
    """
    from orchestra.compose.load import SourceFile, load

    paths, directory, env = _locate(files, project_directory, env_files, environ)
    chosen = list(profiles) or [p for p in env.get("COMPOSE_PROFILES", "").split(",") if p]
    return load(
        [SourceFile("<stdin>" if path == "-" else path, _text(path)) for path in paths],
        env,
        project_name=project_name,
        project_directory=directory,
        profiles=chosen,
        read=_read,
    )


def name_of_project(
    files: Sequence[str],
    *,
    project_directory: str | None,
    env_files: Sequence[str],
    environ: Mapping[str, str],
) -> str:
    """The name that `load_project` would find, in a fraction of its time; "" = load and see.

    Raises NotFound where there is no file.
    """
    paths, directory, env = _locate(files, project_directory, env_files, environ)
    if "-" in paths:  # can be read only once
        return ""
    return plain_name(map(_text, paths), env, directory)


def _locate(
    files: Sequence[str],
    project_directory: str | None,
    env_files: Sequence[str],
    environ: Mapping[str, str],
) -> tuple[list[str], str, dict[str, str]]:
    """The compose files, the project directory and the variables that are meant."""
    here = os.getcwd()
    given = _absolute(project_directory, here) if project_directory else ""
    # COMPOSE_FILE and COMPOSE_PROFILES may stand in .env, which lies beside the files.
    env = _environment(env_files, given or _base_folder(files, environ, here), environ)
    paths = [_absolute(f, here) for f in files] or _from_variable(env, here)
    paths = paths or _default_files(given or here)
    first = paths[0]
    directory = given or (here if first == "-" else os.path.dirname(first))
    if not files and directory != here and not given:
        env = _environment(env_files, directory, environ)
    return paths, directory, env


def _base_folder(files: Sequence[str], environ: Mapping[str, str], here: str) -> str:
    """The folder whose `.env` counts: that of the first file."""
    named = [_absolute(f, here) for f in files] or _from_variable(environ, here)
    if named and named[0] != "-":
        return os.path.dirname(named[0])
    try:
        return here if named else os.path.dirname(_default_files(here)[0])
    except NotFound:
        return here


def _absolute(path: str, here: str) -> str:
    return path if path == "-" else os.path.normpath(os.path.join(here, path))


def _from_variable(env: Mapping[str, str], here: str) -> list[str]:
    separator = env.get("COMPOSE_PATH_SEPARATOR") or os.pathsep
    return [_absolute(p, here) for p in env.get("COMPOSE_FILE", "").split(separator) if p]


def _default_files(folder: str) -> list[str]:
    """The default file in `folder` or the nearest parent that has one, and its override file."""
    current = folder
    while True:
        for name in DEFAULT_FILES:
            path = os.path.join(current, name)
            if os.path.isfile(path):
                over = (os.path.join(current, o) for o in OVERRIDE_FILES)
                return [path, *[o for o in over if os.path.isfile(o)][:1]]
        parent = os.path.dirname(current)
        if parent == current:
            raise NotFound(
                f"there is no compose file in {folder} nor above it; "
                f"make a compose.yaml or name one with -f"
            )
        current = parent


def _environment(
    env_files: Sequence[str], folder: str, environ: Mapping[str, str]
) -> dict[str, str]:
    """The caller's environment on top of the env files (`--env-file`, COMPOSE_ENV_FILES, .env)."""
    named = list(env_files) or [p for p in environ.get("COMPOSE_ENV_FILES", "").split(",") if p]
    values: dict[str, str] = {}

    def known(key: str) -> str | None:
        return environ.get(key, values.get(key))

    for path in named or [os.path.join(folder, ".env")]:
        try:
            text = _read(os.path.abspath(path)).decode("utf-8-sig")
            values.update(dotenv.parse(text, known))
        except FileNotFoundError:
            if named:
                raise NotFound(f"there is no env file {path}") from None
        except dotenv.BadEnvFile as error:
            raise ComposeErrors([ComposeError(path, error.line, 1, "", str(error))]) from None
    return {**values, **environ}


def _text(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else _read(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise NotFound(f"there is no compose file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ComposeErrors([ComposeError(path, 0, 0, "", f"cannot read it: {error}")]) from None


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
