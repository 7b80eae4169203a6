"""The loader: files to a stack, stage by stage.

read -> interpolate -> schema -> canonical -> include -> extends (per document) -> merge (of all)
-> profiles -> normalise -> consistency -> model values. A stage that finds errors finds all of
them, then loading ends. Pure: files come through `read`, variables through `env`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

from attrs import field, frozen

from orchestra.compose import consistency, dotenv, yaml
from orchestra.compose.canonical import Folder, canonical
from orchestra.compose.errors import ComposeError, ComposeErrors, Problems
from orchestra.compose.extends import Extending
from orchestra.compose.interpolate import BadTemplate, interpolate, substitute
from orchestra.compose.merge import clear, distinct, merge, without_nulls
from orchestra.compose.name import project_name
from orchestra.compose.normalise import (
    Read,
    normalise,
    resolve_variables,
    split_profiles,
)
from orchestra.compose.schema import validate
from orchestra.compose.stack import relative_binds, to_stack
from orchestra.compose.tree import Map, Path, Place, Seq, place_of
from orchestra.compose.yaml import Document
from orchestra.model.service import Stack

__all__ = ["ComposeError", "ComposeErrors", "Loaded", "Project", "SourceFile", "load", "project"]


@frozen
class SourceFile:
    """A compose file's absolute path and text."""

    path: str
    text: str


@frozen
class Project:
    """A loaded project before it becomes model values: the whole language, in long forms.

    `tree` has the sections of a compose file, everything implied filled in; `disabled` are the
    services that the active profiles leave out.
    """

    tree: Map
    disabled: Map
    warnings: tuple[str, ...] = ()


@frozen
class Loaded:
    """A stack as its files describe it.

    `relative_binds` are the bind mounts whose source was relative, which means a folder of the
    host the file is on: (service, target, source as written). `origins` says where each of the
    stack's files comes from: `config/NAME` -> {"file": PATH}, {"environment": VARIABLE} or
    {"content": TEXT}.
    """

    stack: Stack
    warnings: tuple[str, ...] = ()
    relative_binds: tuple[tuple[str, str, str], ...] = ()
    origins: Mapping[str, Mapping[str, str]] = field(factory=dict)


def load(
    files: Sequence[SourceFile],
    env: Mapping[str, str],
    *,
    project_name: str | None,
    project_directory: str,
    profiles: Sequence[str] = (),
    read: Read,
) -> Loaded:
    """Load a stack. Raises ComposeErrors with everything that is wrong, each with its place."""
    problems = Problems()
    loaded = _project(files, env, project_name, project_directory, profiles, read, problems)
    consistency.check(loaded.tree, loaded.disabled, problems)
    if not loaded.tree["services"] and not loaded.disabled:
        problems.at(Place(files[0].path if files else ""), (), "there are no services in it")
    stack = to_stack(loaded.tree, read, env, problems)
    problems.check()
    return Loaded(
        stack,
        tuple(problems.warnings),
        relative_binds(stack),
        {key: _origin(loaded.tree, key) for key in stack.files},
    )


def project(
    files: Sequence[SourceFile],
    env: Mapping[str, str],
    *,
    project_name: str | None,
    project_directory: str,
    profiles: Sequence[str] = (),
    read: Read,
) -> Project:
    """Load a consistent project of the whole language, also what orchestra does not honour yet."""
    problems = Problems()
    loaded = _project(files, env, project_name, project_directory, profiles, read, problems)
    consistency.check(loaded.tree, loaded.disabled, problems)
    problems.check()
    return Project(loaded.tree, loaded.disabled, tuple(problems.warnings))


def _origin(tree: Map, key: str) -> Mapping[str, str]:
    kind, _, name = key.partition("/")
    value: Map = tree[f"{kind}s"][name]
    return {k: str(value[k]) for k in ("file", "environment", "content") if k in value}


def _project(
    files: Sequence[SourceFile],
    env: Mapping[str, str],
    name: str | None,
    directory: str,
    profiles: Sequence[str],
    read: Read,
    problems: Problems,
) -> Project:
    documents = [(f, yaml.read(f.text, f.path, problems)) for f in files]
    problems.check()
    if not any(trees for _, trees in documents):
        problems.at(Place(files[0].path if files else ""), (), "the compose file is empty")
        problems.check()
    name = _name(documents, env, name, directory, problems)
    env = {**env, "COMPOSE_PROJECT_NAME": name}
    loading = _Loading(env, Folder(directory, env.get("HOME", "")), read, problems)
    tree = loading.merged(documents, ())
    if loading.broken:
        problems.check()
    active, disabled = split_profiles(tree, profiles)
    tree["services"] = active
    return Project(normalise(tree, name, directory, env, read, problems), disabled)


def _name(
    documents: Sequence[tuple[SourceFile, Sequence[Document]]],
    env: Mapping[str, str],
    given: str | None,
    directory: str,
    problems: Problems,
) -> str:
    """The project's name: asked for, of the environment, of the last file that has one, or of the
    directory."""
    wanted = asked = given or env.get("COMPOSE_PROJECT_NAME")
    place = Place(documents[0][0].path) if documents else Place()
    for _, trees in documents if not wanted else ():
        for document in trees:
            written = document.tree.get("name")
            if isinstance(written, str) and written:
                place = document.tree.places["name"]
                try:
                    wanted = substitute(written, env.get)
                except BadTemplate as error:
                    problems.at(place, ("name",), str(error))
    wanted = wanted or posixpath.basename(directory.rstrip("/"))
    name = project_name(wanted)
    if not name or (asked and name != asked):
        message = f"{wanted!r} is no project name: a-z, 0-9, _ and - only, a letter or digit first"
        problems.at(place, ("name",), message)
    return name


class _Loading:
    """Everything that is fixed while the files of one project directory are loaded."""

    def __init__(
        self, env: Mapping[str, str], folder: Folder, read: Read, problems: Problems
    ) -> None:
        self.env = env
        self.folder = folder
        self.read = read
        self.problems = problems
        self.extending = Extending(self._extended_file, problems)
        self.broken = False  # a part is missing: what else is wrong cannot be told

    def merged(
        self,
        documents: Sequence[tuple[SourceFile, Sequence[Document]]],
        chain: tuple[str, ...],
    ) -> Map:
        """All documents of all files as one; `chain` are the files that include these."""
        result = Map()
        for file, trees in documents:
            for document in trees:
                written = without_nulls(document.tree, result)
                tree = self._prepared(Document(written, document.resets), self.folder)
                if tree is None:
                    self.broken = True
                    continue
                errors = len(self.problems.errors)
                tree = self._with_included(tree, document.resets, (*chain, file.path))
                tree = self.extending.apply(tree, document.resets, file.path)
                self.broken |= len(self.problems.errors) > errors
                clear(result, document.resets)
                result = merge(result, distinct(tree))
        return result

    def _prepared(self, document: Document, folder: Folder) -> Map | None:
        """One document interpolated, checked against the schema and in long forms."""
        before = len(self.problems.errors)
        tree = interpolate(document.tree, self.env.get, self.problems)
        validate(tree, self.problems, frozenset(e.key for e in self.problems.errors[before:]))
        if "version" in tree:
            self.problems.warn(f"{tree.places['version'].file}: version is obsolete and ignored")
            del tree["version"]
        if len(self.problems.errors) > before:
            return None
        return canonical(tree, folder, self.problems)

    def _read_file(self, path: str, tree: Map, at: Path) -> list[Document] | None:
        try:
            text = self.read(path).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            self.problems.at(place_of(tree, at), at, f"cannot read {path}: {reason}")
            return None
        before = len(self.problems.errors)
        documents = yaml.read(text, path, self.problems)
        return documents if len(self.problems.errors) == before else None

    def _extended_file(self, path: str, tree: Map, at: Path) -> tuple[Map, tuple[Path, ...]] | None:
        """Another file that a service extends, relative to its own folder."""
        documents = self._read_file(path, tree, at)
        if documents is None:
            return None
        folder = Folder(posixpath.dirname(path), self.folder.home)
        result, resets = Map(), list[Path]()
        for document in documents:
            prepared = self._prepared(document, folder)
            if prepared is None:
                return None
            clear(result, document.resets)
            result = merge(result, distinct(prepared))
            resets += document.resets
        return result, tuple(resets)

    def _with_included(self, tree: Map, resets: tuple[Path, ...], chain: tuple[str, ...]) -> Map:
        """The document on top of everything that it includes."""
        base = Map()
        for index, entry in enumerate(tree.get("include") or Seq()):
            at: Path = ("include", index)
            entry = {"path": entry} if isinstance(entry, str) else entry
            included = self._included(entry, tree, at, chain)
            if included is not None:
                base = merge(included, base)
        tree.pop("include", None)
        if base:
            clear(base, resets)
            base.pop("name", None)
            tree = merge(base, tree)
        return tree

    def _included(
        self, entry: Mapping[str, object], tree: Map, at: Path, chain: tuple[str, ...]
    ) -> Map | None:
        """The project that one entry of `include` names; its paths are relative to its folder."""
        paths = _texts(entry.get("path"))
        if not paths:
            self.problems.on(tree, at, "'path' is missing")
            return None
        paths = [self.folder.resolve(p) for p in paths]
        for path in paths:
            if path in chain:
                cycle = " -> ".join([*chain[chain.index(path) :], path])
                self.problems.on(tree, at, f"files include each other in a circle: {cycle}")
                return None
        directory = str(entry.get("project_directory") or "")
        directory = self.folder.resolve(directory) if directory else posixpath.dirname(paths[0])
        documents = []
        for path in paths:
            read = self._read_file(path, tree, at)
            if read is None:
                return None
            documents.append((SourceFile(path, ""), read))
        env = self._included_environment(entry, directory, tree, at)
        inner = _Loading(env, Folder(directory, self.folder.home), self.read, self.problems)
        result = inner.merged(documents, chain)
        self.broken |= inner.broken
        services: Map = result.get("services") or Map()
        for name, service in services.items():
            services[name] = resolve_variables(service, env)
        return result

    def _included_environment(
        self, entry: Mapping[str, object], directory: str, tree: Map, at: Path
    ) -> Mapping[str, str]:
        """The including project's variables, then those of the entry's own env files."""
        named = [self.folder.resolve(p) for p in _texts(entry.get("env_file"))]
        env = dict(self.env)
        for path in named or [posixpath.join(directory, ".env")]:
            try:
                text = self.read(path).decode("utf-8-sig")
                values = dotenv.parse(text, env.get)
            except FileNotFoundError:
                if named:
                    self.problems.on(tree, at, f"env file {path} not found")
                continue
            except (OSError, UnicodeDecodeError, dotenv.BadEnvFile) as error:
                self.problems.on(tree, at, f"cannot read env file {path}: {error}")
                continue
            env = {**values, **env}
        return env


def _texts(value: object) -> list[str]:
    return [value] if isinstance(value, str) else [str(v) for v in value or ()]  # type: ignore[attr-defined]
