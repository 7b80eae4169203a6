"""The node's image store: the shared one, which here also tells what happens to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from orchestra.agent.events import Events
from orchestra.image.images import Images
from orchestra.model.container import Image

ACTIONS = {"Untagged": "untag", "Deleted": "delete"}


class NodeImages(Images):
    """Every change publishes Docker's event and calls `changed`: tasks may wait for an image."""

    def __init__(self, root: str, events: Events, changed: Callable[[], None]) -> None:
        super().__init__(root)
        self._events = events
        self._changed = changed

    async def load(self, chunks: AsyncIterator[bytes]) -> Sequence[str]:
        names = await super().load(chunks)
        for name in names:
            self._tell("load", name)
        return names

    async def import_rootfs(
        self, chunks: AsyncIterator[bytes], name: str, changes: Sequence[str], message: str = ""
    ) -> str:
        image_id = await super().import_rootfs(chunks, name, changes, message)
        self._tell("import", name or image_id)
        return image_id

    async def tag(self, ref: str, name: str) -> None:
        await super().tag(ref, name)
        self._tell("tag", name)

    async def put_image(self, manifest_digest: str, names: Sequence[str]) -> Image:
        image = await super().put_image(manifest_digest, names)
        for name in names:
            self._tell("pull", name)
        self._changed()
        return image

    async def remove(
        self, ref: str, force: bool = False, in_use: Mapping[str, str] | None = None
    ) -> Sequence[tuple[str, str]]:
        done = await super().remove(ref, force, in_use)
        for action, what in done:
            self._events.publish("image", ACTIONS[action], what, {"name": what})
        self._changed()
        return done

    def _tell(self, action: str, ref: str) -> None:
        image = self.get(ref)
        attributes = {**image.config.labels, "name": ref}
        self._events.publish("image", action, image.id, attributes)
        self._changed()
