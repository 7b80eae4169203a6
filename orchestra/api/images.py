"""The routes of images; the controller's socket serves them for its own store too."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from attrs import frozen

from orchestra.api import render_host, select
from orchestra.api.answers import answer, nothing, stream
from orchestra.api.call import Call, flag
from orchestra.api.engine import Images
from orchestra.api.table import Table
from orchestra.model.errors import Conflict, Invalid, NotFound
from orchestra.wire.jsonlines import json_line
from orchestra.wire.message import Response

TAR = "application/x-tar"


@frozen
class ImageRoutes:
    """`in_use` tells image id -> who uses it: "container web", "stack shop"."""

    images: Images
    in_use: Callable[[], Mapping[str, str]]

    def table(self) -> Table:
        return [
            ("GET", "/images/json", self.list),
            ("POST", "/images/create", self.create),
            ("POST", "/images/load", self.load),
            ("GET", "/images/get", self.save),
            ("GET", "/images/{name}/get", self.save),
            ("GET", "/images/{name}/json", self.inspect),
            ("GET", "/images/{name}/history", self.history),
            ("POST", "/images/{name}/tag", self.tag),
            ("POST", "/images/prune", self.prune),
            ("DELETE", "/images/{name}", self.remove),
        ]

    async def list(self, call: Call) -> Response:
        filters = call.filters(select.IMAGE_KEYS)
        found = select.images(self.images.list(), filters, time.time())
        return answer([render_host.image_row(image, call.version) for image in found])

    async def inspect(self, call: Call) -> Response:
        return answer(render_host.image_inspect(self.images.get(call.names["name"]), call.version))

    async def history(self, call: Call) -> Response:
        return answer(render_host.image_history(self.images.get(call.names["name"])))

    async def create(self, call: Call) -> Response:
        source = call.text("fromSrc")
        if not source:
            name, tag = call.text("fromImage"), call.text("tag")
            if not name:
                raise Invalid("one of fromImage and fromSrc is needed")
            full = f"{name}@{tag}" if tag.startswith("sha256:") else f"{name}:{tag or 'latest'}"
            raise NotFound(
                f"cannot pull {full}: this engine cannot fetch from registries yet. Load the image "
                "with `orchestra image load` (or `docker load`) from a file that `docker save` "
                "wrote, or make one with `orchestra image import`"
            )
        if source != "-":
            raise Invalid("fromSrc must be -: send the file system's tar as the request's body")
        repository, tag = call.text("repo"), call.text("tag")
        name = f"{repository}:{tag}" if repository and tag else repository
        image = await self.images.import_rootfs(
            aiter(call.request.body), name, call.texts("changes"), call.text("message")
        )
        return stream(_lines([{"status": image}]))

    async def load(self, call: Call) -> Response:
        names = await self.images.load(aiter(call.request.body))
        return stream(_lines([{"stream": _loaded(name)} for name in names]))

    async def save(self, call: Call) -> Response:
        refs = [call.names["name"]] if "name" in call.names else call.texts("names")
        if not refs:
            raise Invalid("no image is named: names is empty")
        return stream(self.images.save(refs), TAR)

    async def tag(self, call: Call) -> Response:
        repository, tag = call.text("repo"), call.text("tag")
        if not repository:
            raise Invalid("no new name is given: repo is empty")
        await self.images.tag(call.names["name"], f"{repository}:{tag}" if tag else repository)
        return nothing(201)

    async def remove(self, call: Call) -> Response:
        gone = await self.images.remove(call.names["name"], call.flag("force"), self.in_use())
        return answer([{verb: what} for verb, what in gone])

    async def prune(self, call: Call) -> Response:
        """Images without a name, or with `dangling=false` all that no container uses."""
        filters = call.filters(select.PRUNE_KEYS)
        every = not flag(filters.get("dangling", ("true",))[-1])
        gone: list[tuple[str, str]] = []
        reclaimed, used = 0, self.in_use()
        for image in self.images.list():
            if image.id in used or (image.names and not every):
                continue
            if select.is_kept(image.created, image.config.labels, filters, time.time()):
                continue
            try:
                gone += await self.images.remove(image.id, True, used)
            except (NotFound, Conflict):
                continue  # gone, or in use by now
            reclaimed += image.size
        rows = [{verb: what} for verb, what in gone]
        return answer({"ImagesDeleted": rows or None, "SpaceReclaimed": reclaimed})


def _loaded(name: str) -> str:
    """The sentence that docker-py and others parse."""
    kind = "Loaded image ID" if name.startswith("sha256:") else "Loaded image"
    return f"{kind}: {name}\n"


async def _lines(values: Sequence[object]) -> AsyncIterator[bytes]:
    for value in values:
        yield json_line(value)
