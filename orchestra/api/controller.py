"""The controller's routes: `api.cluster.Cluster` one to one, in model values as JSON.

The tunnel gives the raw stream to an agent's socket: whoever can speak to the controller can use
the whole Docker API of every node through it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import trio
from attrs import frozen

from orchestra.api.answers import answer, nothing, stream
from orchestra.api.call import Call
from orchestra.api.cluster import Cluster
from orchestra.api.table import Table
from orchestra.model.codec import from_json, to_json
from orchestra.model.errors import Invalid
from orchestra.model.node import Availability, InventoryNode
from orchestra.model.service import Stack
from orchestra.wire.jsonlines import json_line
from orchestra.wire.message import Hijack, Response

PREFIX = "/orchestra/v1"


@frozen
class ClusterRoutes:
    cluster: Cluster

    def table(self) -> Table:
        return [
            ("GET", f"{PREFIX}/info", self.info),
            ("GET", f"{PREFIX}/nodes", self.nodes),
            ("PUT", f"{PREFIX}/nodes/{{name}}", self.put_node),
            ("DELETE", f"{PREFIX}/nodes/{{name}}", self.remove_node),
            ("POST", f"{PREFIX}/nodes/{{name}}/availability", self.set_availability),
            ("POST", f"{PREFIX}/nodes/{{name}}/labels", self.set_labels),
            ("POST", f"{PREFIX}/nodes/{{name}}/tunnel", self.tunnel),
            ("GET", f"{PREFIX}/stacks", self.stacks),
            ("GET", f"{PREFIX}/stacks/{{name}}/tasks", self.tasks),
            ("GET", f"{PREFIX}/stacks/{{name}}/progress", self.progress),
            ("GET", f"{PREFIX}/stacks/{{name}}", self.stack),
            ("DELETE", f"{PREFIX}/stacks/{{name}}", self.remove_stack),
            ("POST", f"{PREFIX}/stacks/{{name}}/scale", self.scale),
            ("POST", f"{PREFIX}/stacks/{{name}}/stop", self.stop_services),
            ("POST", f"{PREFIX}/stacks/{{name}}/start", self.start_services),
            ("POST", f"{PREFIX}/stacks/{{name}}/restart", self.restart_services),
            ("POST", f"{PREFIX}/image-needs", self.image_needs),
            ("POST", f"{PREFIX}/plan", self.plan),
            ("POST", f"{PREFIX}/apply", self.apply),
            ("GET", f"{PREFIX}/events", self.events),
            ("POST", f"{PREFIX}/adopt", self.adopt),
        ]

    async def info(self, call: Call) -> Response:
        return answer(to_json(self.cluster.info()))

    async def nodes(self, call: Call) -> Response:
        return answer(to_json(tuple(self.cluster.nodes())))

    async def put_node(self, call: Call) -> Response:
        node = from_json(InventoryNode, await call.object(), "node")
        if node.name != call.name:
            raise Invalid(f"the body names node {node.name!r}, the path {call.name!r}")
        return answer(to_json(await self.cluster.put_node(node)))

    async def remove_node(self, call: Call) -> Response:
        await self.cluster.remove_node(call.name, force=call.flag("force"))
        return nothing()

    async def set_availability(self, call: Call) -> Response:
        value = (await call.object()).get("availability")
        await self.cluster.set_availability(
            call.name, from_json(Availability, value, "availability")
        )
        return nothing()

    async def set_labels(self, call: Call) -> Response:
        labels = await call.object()
        if not all(value is None or isinstance(value, str) for value in labels.values()):
            raise Invalid("labels must be texts, or null to remove one")
        await self.cluster.set_labels(call.name, labels)
        return nothing()

    async def tunnel(self, call: Call) -> Hijack:
        if not call.request.upgrade:
            raise Invalid("a tunnel needs `Connection: Upgrade` and `Upgrade: tcp`")
        agent = await self.cluster.open_agent(call.name)

        async def run(client: trio.abc.HalfCloseableStream) -> None:
            await join(client, agent)

        return Hijack(run)

    async def stacks(self, call: Call) -> Response:
        return answer(to_json(tuple(self.cluster.stacks())))

    async def stack(self, call: Call) -> Response:
        return answer(to_json(self.cluster.stack(call.name)))

    async def remove_stack(self, call: Call) -> Response:
        await self.cluster.remove_stack(call.name, volumes=call.flag("volumes"))
        return nothing()

    async def tasks(self, call: Call) -> Response:
        return answer(to_json(tuple(self.cluster.tasks(call.name))))

    async def progress(self, call: Call) -> Response:
        self.cluster.stack(call.name)  # an unknown one must be an error, not an empty stream
        return stream(_json_body(self.cluster.progress(call.name)))

    async def scale(self, call: Call) -> Response:
        replicas = await call.object()
        if not all(type(count) is int and count >= 0 for count in replicas.values()):
            raise Invalid("scale takes a number of replicas for each service")
        await self.cluster.scale(call.name, replicas)
        return nothing()

    async def stop_services(self, call: Call) -> Response:
        await self.cluster.stop_services(call.name, await _services(call))
        return nothing()

    async def start_services(self, call: Call) -> Response:
        await self.cluster.start_services(call.name, await _services(call))
        return nothing()

    async def restart_services(self, call: Call) -> Response:
        await self.cluster.restart_services(call.name, await _services(call))
        return nothing()

    async def image_needs(self, call: Call) -> Response:
        needs = await self.cluster.image_needs(from_json(Stack, await call.object(), "stack"))
        return answer(to_json(tuple(needs)))

    async def plan(self, call: Call) -> Response:
        return answer(to_json(await self.cluster.plan(from_json(Stack, await call.object()))))

    async def apply(self, call: Call) -> Response:
        body = await call.object()
        stack = from_json(Stack, body.get("stack"), "stack")
        generation = body.get("generation")
        return answer({"generation": await self.cluster.apply(stack, generation)})

    async def events(self, call: Call) -> Response:
        return stream(_json_body(self.cluster.events()))

    async def adopt(self, call: Call) -> Response:
        return answer({"adopted": list(await self.cluster.adopt())})


async def _services(call: Call) -> list[str]:
    services = (await call.object()).get("services") or []
    if not isinstance(services, list) or not all(isinstance(s, str) for s in services):
        raise Invalid("services must be a list of names")
    return services


async def _json_body(values: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async for value in values:
        yield json_line(to_json(value))


async def join(one: trio.abc.HalfCloseableStream, two: trio.abc.HalfCloseableStream) -> None:
    """Pass bytes and half-closes both ways until both directions ended, then close `two`."""

    async def copy(
        source: trio.abc.HalfCloseableStream,
        sink: trio.abc.HalfCloseableStream,
        scope: trio.CancelScope,
    ) -> None:
        try:
            while data := await source.receive_some(256 << 10):
                await sink.send_all(data)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            scope.cancel()  # one end is gone: what the other still says reaches nobody

    async with two:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy, one, two, nursery.cancel_scope)
            await copy(two, one, nursery.cancel_scope)
            # The server's end is the end of a tunnel: a client need not close its side first.
            nursery.cancel_scope.cancel()
