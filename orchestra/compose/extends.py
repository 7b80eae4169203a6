"""`extends`: a service that begins as a copy of another, from this file or a further one.

The base is loaded with its own file's folder, so its relative paths mean what they meant there; a
chain is followed to its end, a cycle is refused with its path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestra.compose.errors import Problems
from orchestra.compose.merge import clear, merge_service
from orchestra.compose.tree import Map, Path, copy, place_of

# Loads another file's document in canonical form, with its resets; None where that failed.
LoadFile = Callable[[str, Map, Path], "tuple[Map, tuple[Path, ...]] | None"]


class Extending:
    """Resolves the `extends` of documents, each service once."""

    def __init__(self, load_file: LoadFile, problems: Problems) -> None:
        self._load_file = load_file
        self._problems = problems
        self._done: dict[tuple[str, str], Map | None] = {}
        self._files: dict[str, tuple[Map, tuple[Path, ...]] | None] = {}

    def apply(self, tree: Map, resets: tuple[Path, ...], file: str) -> Map:
        """Return the document with every `extends` carried out."""
        services = tree.get("services")
        if not isinstance(services, Map):
            return tree
        result = Map(tree, tree.places)
        result["services"] = Map(
            {name: self._service(tree, resets, file, name, ()) or Map() for name in services},
            services.places,
        )
        return result

    def _service(
        self,
        tree: Map,
        resets: tuple[Path, ...],
        file: str,
        name: str,
        chain: tuple[tuple[str, str], ...],
    ) -> Map | None:
        service: Map = tree["services"][name] or Map()
        extends = service.get("extends")
        if not extends:
            return service
        key = (file, name)
        if key in self._done:
            return self._done[key]
        path: Path = ("services", name, "extends")
        if key in chain:
            cycle = " -> ".join(n for _, n in (*chain[chain.index(key) :], key))
            self._problems.on(tree, path, f"services extend each other in a circle: {cycle}")
            return None
        base = self._base(tree, resets, file, extends, path, (*chain, key))
        result: Map | None = None
        if base is not None:
            base = copy(base)
            clear(Map({"services": Map({name: base})}), (p for p in resets if p[:2] == path[:2]))
            result = merge_service(base, service)
            result.pop("extends", None)
        self._done[key] = result
        return result

    def _base(
        self,
        tree: Map,
        resets: tuple[Path, ...],
        file: str,
        extends: Map,
        path: Path,
        chain: tuple[tuple[str, str], ...],
    ) -> Any:
        other = extends.get("file", file)
        if other != file:
            if other not in self._files:
                self._files[other] = self._load_file(other, tree, path)
            loaded = self._files[other]
            if loaded is None:
                return None
            base_tree, base_resets = loaded
        else:
            base_tree, base_resets = tree, resets
        wanted = extends["service"]
        if wanted not in (base_tree.get("services") or {}):
            where = f" in {other}" if other != file else ""
            self._problems.at(
                place_of(tree, path), path, f"there is no service {wanted!r}{where} to extend"
            )
            return None
        return self._service(base_tree, base_resets, other, wanted, chain)
