"""Images reach their nodes before the tasks do.

For each node with tasks that wait for an image one shipment runs, all nodes side by side, only
blobs that the node lacks. Where it cannot be done the reason stands with the tasks, and it is
tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import trio

from orchestra.controller.link import Link, Silence
from orchestra.image.images import Images
from orchestra.image.ship import Receiver
from orchestra.model.node import NodeState
from orchestra.plan.state import State, TaskRecord

log = logging.getLogger(__name__)

Ship = Callable[[Images, str, Sequence[str], Receiver, Callable[[int, int], None]], Awaitable[None]]

AGAIN = 3.0  # seconds before a failed shipment is tried again


class Shipping:
    """The shipments that are under way; `changed` is called as they advance."""

    def __init__(
        self, images: Images, nursery: trio.Nursery, changed: Callable[[], None], ship: Ship
    ) -> None:
        self._images = images
        self._transfer = ship
        self._nursery = nursery
        self._changed = changed
        self._texts: dict[tuple[str, str], str] = {}  # (node's name, manifest) -> how far

    def notes(self, state: State) -> dict[str, str]:
        """What to say of tasks that wait for their image, by task id."""
        out = {}
        for task in waiting(state):
            node = state.nodes.get(task.task.node)
            text = self._texts.get((node.name, task.assigned.image_manifest)) if node else None
            if text:
                out[task.task.id] = text
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
                self._texts.pop(key, None)
                out.append(task.task.id)
            elif key not in self._texts:
                self._texts[key] = f"shipping {task.assigned.spec.image}"
                self._nursery.start_soon(self._ship, link, task, key)
        return out

    async def _ship(self, link: Link, task: TaskRecord, key: tuple[str, str]) -> None:
        image, manifest = task.assigned.spec.image, task.assigned.image_manifest

        def report(done: int, total: int) -> None:
            text = f"shipping {image}: {done / 1e6:.0f} of {total / 1e6:.0f} MB"
            if total and text != self._texts.get(key):
                self._texts[key] = text
                self._changed()

        try:
            await self._transfer(self._images, manifest, [image], link.ask(), report)
            link.images.add(manifest)
        except Silence as error:
            log.warning("cannot ship %s to %s: %s", image, link.node.name, error)
            self._texts[key] = f"cannot ship {image} to {link.node.name}: {error}"
            self._changed()
            await trio.sleep(AGAIN)
        finally:
            self._texts.pop(key, None)
        self._changed()


def waiting(state: State) -> Iterable[TaskRecord]:
    """Tasks that are not in their node's assignment because their image is not there yet."""
    return [t for t in state.tasks.values() if not t.released and not t.task.stop]
