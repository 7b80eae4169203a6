"""The volumes of a stack that was removed with `-v` are removed from their nodes.

It happens beside the loop; what fails is told and tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote

import trio

from orchestra.controller.link import Link, Silence
from orchestra.model.errors import NotFound

log = logging.getLogger(__name__)

AGAIN = 1.0  # seconds before a removal that failed is tried again


class Removals:
    """`removed` is called with the names of volumes that are gone; the store drops them then."""

    def __init__(self, nursery: trio.Nursery, removed: Callable[[Sequence[str]], None]) -> None:
        self._nursery = nursery
        self._removed = removed
        self.texts: dict[str, str] = {}  # by stack: what is being removed, or why it cannot be

    def begin(self, stack: str, volumes: Mapping[str, Sequence[Link]]) -> None:
        """Remove volumes, each from the nodes that hold it; no-op while that is under way."""
        if stack not in self.texts:
            self.texts[stack] = f"removing {', '.join(volumes)}"
            self._nursery.start_soon(self._remove, stack, volumes)

    async def _remove(self, stack: str, volumes: Mapping[str, Sequence[Link]]) -> None:
        gone: list[str] = []
        try:
            for volume, links in volumes.items():
                for link in links:
                    await _remove_from(link, volume)
                gone.append(volume)
        except Silence as error:
            self.texts[stack] = f"cannot remove volume {list(volumes)[len(gone)]}: {error}"
            log.warning("%s", self.texts[stack])
            self._removed(gone)
            await trio.sleep(AGAIN)
        finally:
            del self.texts[stack]
            self._removed(gone)


async def _remove_from(link: Link, volume: str) -> None:
    try:
        await link.ask().json("DELETE", f"/volumes/{quote(volume, safe='')}")
    except NotFound:
        log.info("volume %s is not on %s any more", volume, link.node.name)
