"""The routes of the host itself: ping, version, info, events, networks, volumes, plugins."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from attrs import frozen

from orchestra.api import render, render_host, select
from orchestra.api.answers import answer, nothing, stream
from orchestra.api.call import Call, Filters, flag
from orchestra.api.create import NAME, network_wish
from orchestra.api.engine import Engine
from orchestra.api.table import Table
from orchestra.model.errors import Conflict, Forbidden, Invalid, NotFound
from orchestra.model.event import Event
from orchestra.model.node import NodeFacts
from orchestra.wire.jsonlines import json_line
from orchestra.wire.message import Response

PREDEFINED = ("host", "none")


@frozen
class PingRoutes:
    """What every socket of ours answers; `facts` None where it is no node's."""

    facts: Callable[[], NodeFacts | None]

    def table(self) -> Table:
        return [
            ("GET", "/_ping", self.ping),
            ("HEAD", "/_ping", self.ping),
            ("GET", "/version", self.version),
        ]

    async def ping(self, call: Call) -> Response:
        headers = (
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Builder-Version", "1"),
            ("Swarm", "inactive"),
            ("Cache-Control", "no-cache, no-store, must-revalidate"),
            ("Pragma", "no-cache"),
        )
        return Response(200, headers, b"" if call.request.method == "HEAD" else b"OK")

    async def version(self, call: Call) -> Response:
        return answer(render_host.version_value(self.facts()))


@frozen
class HostRoutes:
    engine: Engine

    def table(self) -> Table:
        return [
            ("GET", "/info", self.info),
            ("GET", "/events", self.events),
            ("GET", "/plugins", self.plugins),
            ("GET", "/plugins/{name}/json", self.plugin),
            ("GET", "/networks", self.networks),
            ("GET", "/networks/{name}", self.network),
            ("GET", "/volumes", self.volumes),
            ("POST", "/volumes/create", self.volume_create),
            ("GET", "/volumes/{name}", self.volume),
            ("DELETE", "/volumes/{name}", self.volume_remove),
            ("POST", "/volumes/prune", self.volume_prune),
            ("POST", "/networks/create", self.network_create),
            ("DELETE", "/networks/{name}", self.network_remove),
            ("POST", "/networks/prune", self.network_prune),
            ("GET", "/system/df", self.disk),
        ]

    async def info(self, call: Call) -> Response:
        engine = self.engine
        images = len(engine.images.list())
        return answer(
            render_host.info_value(engine.facts, engine.containers(), images, time.time())
        )

    async def events(self, call: Call) -> Response:
        since, until = call.time("since"), call.time("until")
        if since and until and since > until:
            raise Invalid(f"`since` time ({since}) cannot be after `until` time ({until})")
        filters = call.filters(select.EVENT_KEYS)
        kind, before = _event_type(call.request.headers.get("accept", ""))
        body = _event_body(self.engine.events(since, until), filters, before)
        return stream(body, kind)

    async def plugins(self, call: Call) -> Response:
        return answer([])

    async def plugin(self, call: Call) -> Response:
        raise NotFound(f"plugin {call.name!r} not found")

    async def networks(self, call: Call) -> Response:
        filters = call.filters(select.NETWORK_KEYS)
        used = {e.network for c in self.engine.containers() for e in c.spec.endpoints}
        made = {n.id: n for n in self.engine.local_networks()}
        values = [render_host.network_value(n, made=made.get(n.id)) for n in self.engine.networks()]
        values += map(render_host.predefined_network, PREDEFINED)
        return answer([v for v in values if select.network(v, filters, frozenset(used))])

    async def network(self, call: Call) -> Response:
        found = select.one_network(self.engine.networks(), call.name)
        if found is not None:
            made = {n.id: n for n in self.engine.local_networks()}.get(found.id)
            return answer(render_host.network_value(found, self.engine.containers(), made))
        for name in PREDEFINED:
            value = render_host.predefined_network(name)
            if call.name in (name, value["Id"]):
                return answer(value)
        raise NotFound(f"network {call.name} not found")

    async def volumes(self, call: Call) -> Response:
        filters = call.filters(select.VOLUME_KEYS)
        used = {v for c in self.engine.containers() for v in c.volumes.values()}
        found = select.volumes(self.engine.volumes(), filters, frozenset(used))
        return answer({"Volumes": list(map(render_host.volume_value, found)), "Warnings": None})

    async def volume(self, call: Call) -> Response:
        return answer(render_host.volume_value(self.engine.volume(call.name)))

    async def volume_create(self, call: Call) -> Response:
        body = await call.object()
        name, driver = body.get("Name") or "", body.get("Driver") or "local"
        if driver != "local":
            raise Invalid(f"volume driver {driver!r} is not served; use local")
        if name and not NAME.fullmatch(name):
            raise Invalid(
                f'create {name}: "{name}" includes invalid characters for a local volume name, '
                'only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed'
            )
        labels, options = body.get("Labels") or {}, body.get("DriverOpts") or {}
        created = await self.engine.volume_create(name or secrets.token_hex(32), labels, options)
        return answer(render_host.volume_value(created), 201)

    async def volume_remove(self, call: Call) -> Response:
        await self.engine.volume_remove(call.name, force=call.flag("force"))
        return nothing()

    async def volume_prune(self, call: Call) -> Response:
        """Unused anonymous volumes; with `all=true`, and before API 1.42, the named ones too."""
        filters = call.filters(select.PRUNE_KEYS)
        every = call.version < (1, 42) or flag(filters.get("all", ("false",))[-1])
        used = {v for c in self.engine.containers() for v in c.volumes.values()}
        gone, reclaimed = [], 0
        for volume in self.engine.volumes():
            if volume.name in used or not (volume.anonymous or every):
                continue
            if select.is_kept(volume.created, volume.labels, filters, time.time()):
                continue
            try:
                size = await self.engine.volume_size(volume.name)
                await self.engine.volume_remove(volume.name)
            except (NotFound, Conflict):
                continue  # gone, or in use by now
            gone.append(volume.name)
            reclaimed += size
        return answer({"VolumesDeleted": gone, "SpaceReclaimed": reclaimed})

    async def network_create(self, call: Call) -> Response:
        name, wish = network_wish(await call.object())
        made = await self.engine.network_create(name, wish)
        return answer({"Id": made.id, "Warning": ""}, 201)

    async def network_remove(self, call: Call) -> Response:
        found = select.one_network(self.engine.networks(), call.name)
        if found is None:
            if call.name in PREDEFINED:
                raise Forbidden(f"{call.name} is a pre-defined network and cannot be removed")
            raise NotFound(f"network {call.name} not found")
        await self.engine.network_remove(found.id)
        return nothing()

    async def network_prune(self, call: Call) -> Response:
        """Networks that were made by hand and have no container, running or not."""
        filters = call.filters(select.PRUNE_KEYS)
        used = {e.network for c in self.engine.containers() for e in c.spec.endpoints}
        gone = []
        for made in self.engine.local_networks():
            if made.id in used or select.is_kept(made.created, made.labels, filters, time.time()):
                continue
            await self.engine.network_remove(made.id)
            gone.append(made.name)
        return answer({"NetworksDeleted": gone or None})

    async def disk(self, call: Call) -> Response:
        """What images, containers and volumes take on the disk."""
        engine, wanted = self.engine, set(call.texts("type"))
        containers, images = engine.containers(), engine.images.list()
        networks = {network.id: network for network in engine.networks()}
        places = {volume.name: volume.mountpoint for volume in engine.volumes()}
        value: dict[str, Any] = {
            "LayersSize": 0,
            "Images": [],
            "Containers": [],
            "Volumes": [],
            "BuildCache": [],
        }
        if not wanted or "image" in wanted:
            value["LayersSize"] = sum(image.size for image in images)
            for image in images:
                count = sum(c.spec.image_id == image.id for c in containers)
                row = render_host.image_row(image, call.version)
                value["Images"].append(row | {"Containers": count, "SharedSize": 0})
        if not wanted or "container" in wanted:
            for c in containers:
                own, whole = await engine.sizes(c.id)
                row = render.container_row(c, time.time(), networks, call.version, places=places)
                value["Containers"].append(row | {"SizeRw": own, "SizeRootFs": whole})
        if not wanted or "volume" in wanted:
            for volume in engine.volumes():
                count = sum(volume.name in c.volumes.values() for c in containers)
                usage = {"Size": await engine.volume_size(volume.name), "RefCount": count}
                value["Volumes"].append(render_host.volume_value(volume) | {"UsageData": usage})
        return answer(value)


def _event_type(accept: str) -> tuple[str, bytes]:
    """The media type of an event stream, and what stands before each value in it."""
    kinds = {part.partition(";")[0].strip() for part in accept.split(",")}
    for kind in ("application/jsonl", "application/x-ndjson"):
        if kind in kinds:
            return kind, b""
    return (
        ("application/json-seq", b"\x1e")
        if "application/json-seq" in kinds
        else (
            "application/json",
            b"",
        )
    )


async def _event_body(
    events: AsyncIterator[Event], filters: Filters, before: bytes
) -> AsyncIterator[bytes]:
    async for event in events:
        if select.event(event, filters):
            yield before + json_line(render_host.event_value(event))
