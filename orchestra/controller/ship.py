"""Images reach their nodes before the tasks do.

For each node with tasks that wait for an image one shipment runs, all nodes side by side, only
blobs that the node lacks. Where it cannot be done the reason stands with the tasks, and it is
tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import trio
from attrs import evolve, frozen

from orchestra.controller.link import Link, Silence
from orchestra.image.images import Images
from orchestra.image.ship import Receiver
from orchestra.model.errors import OrchestraError, Unavailable
from orchestra.model.node import NodeState
from orchestra.plan.state import State, TaskRecord

log = logging.getLogger(__name__)

Ship = Callable[[Images, str, Sequence[str], Receiver, Callable[[int, int], None]], Awaitable[None]]

AGAIN = 3.0  # seconds before a failed shipment is tried again


@frozen
class Shipment:
    """An image on its way to a node; bytes count only what the node lacks.

    `trouble`: why it could not be brought there the last time; `hopeless` where trying again can
    only help after somebody did something about it (a full disk, say).
    """

    image: str
    node: str
    done: int = 0
    total: int = 0
    trouble: str = ""
    hopeless: bool = False

    def __str__(self) -> str:
        if self.trouble:
            return f"cannot ship {self.image} to {self.node}: {self.trouble}"
        size = f": {self.done / 1e6:.0f} of {self.total / 1e6:.0f} MB" if self.total else ""
        return f"shipping {self.image}{size}"

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 0.0


class Shipping:
    """The shipments that are under way.

    `moved` is called as bytes go out, `changed` when a shipment has ended one way or the other.
    """

    def __init__(
        self,
        images: Images,
        nursery: trio.Nursery,
        changed: Callable[[], None],
        moved: Callable[[], None],
        ship: Ship,
    ) -> None:
        self._images = images
        self._transfer = ship
        self._nursery = nursery
        self._changed = changed
        self._moved = moved
        self._shipments: dict[tuple[str, str], Shipment] = {}  # by node's name and manifest
        self._asked = trio.Event()  # a user wants what failed to be tried again

    def retry(self) -> None:
        """Try what failed again at once: the reason may be gone."""
        self._shipments = {k: s for k, s in self._shipments.items() if not s.trouble}
        self._asked.set()
        self._asked = trio.Event()

    def notes(self, state: State) -> dict[str, Shipment]:
        """What tasks wait for whose image is on its way, by task id."""
        out = {}
        for task in waiting(state):
            node = state.nodes.get(task.task.node)
            key = (node.name, task.assigned.image_manifest) if node else ("", "")
            if key in self._shipments:
                out[task.task.id] = self._shipments[key]
        return out

    def arrived(self, state: State, links: Mapping[str, Link]) -> list[str]:
        """Ids of tasks whose image is on their node now; shipments of the others are started."""
        out = []
        for task in waiting(state):
            link = links.get(task.task.node)
            if link is None or link.state is not NodeState.READY:
                continue
            manifest = task.assigned.image_manifest
            key = (link.node.name, manifest)
            if manifest in link.images:
                self._shipments.pop(key, None)
                out.append(task.task.id)
            elif key not in self._shipments:
                self._shipments[key] = Shipment(task.assigned.spec.image, link.node.name)
                self._nursery.start_soon(self._ship, link, manifest, key)
        return out

    async def _ship(self, link: Link, manifest: str, key: tuple[str, str]) -> None:
        shipment = self._shipments[key]

        def now(**changes: Any) -> None:
            nonlocal shipment
            shipment = self._shipments[key] = evolve(shipment, **changes)
            self._moved()

        def report(done: int, total: int) -> None:
            now(done=done, total=total)

        try:
            await self._transfer(self._images, manifest, [shipment.image], link.ask(), report)
            link.images.add(manifest)
        except Silence as error:
            hopeless = isinstance(error, OrchestraError) and not isinstance(error, Unavailable)
            trouble = str(error) or type(error).__name__
            now(trouble=trouble, hopeless=hopeless)
            log.warning("%s", shipment)
            with trio.move_on_after(AGAIN):
                await self._asked.wait()
        finally:
            if self._shipments.get(key) is shipment:  # not yet another attempt's
                del self._shipments[key]
            self._changed()


def waiting(state: State) -> Iterable[TaskRecord]:
    """Tasks that are not in their node's assignment because their image is not there yet."""
    return [t for t in state.tasks.values() if not t.released and not t.task.stop]
