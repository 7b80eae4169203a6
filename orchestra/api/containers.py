"""The routes of containers and execs."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping

import trio
from attrs import frozen

from orchestra.api import render, render_stats, select
from orchestra.api.answers import answer, nothing, stream
from orchestra.api.call import Call
from orchestra.api.create import create_request, exec_spec, update_wish
from orchestra.api.engine import Engine, LogLine, LogOptions, Waiter
from orchestra.api.hijacked import conversation, key_sequence
from orchestra.api.table import Table
from orchestra.api.words import rfc3339_ns
from orchestra.model.assignment import AssignedNetwork
from orchestra.model.container import Container
from orchestra.model.errors import Conflict, Invalid, NotFound
from orchestra.wire.frames import frame
from orchestra.wire.jsonlines import json_line
from orchestra.wire.message import Headers, Hijack, Response

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
CONDITIONS = ("not-running", "next-exit", "removed")
TAR = "application/x-tar"
SAMPLE = 1.0  # seconds between two samples of `stats`


def stream_type(tty: bool, version: tuple[int, int]) -> str:
    """The media type of a container's streams; before 1.42 it does not tell frames from raw."""
    return MULTIPLEXED if not tty and version >= (1, 42) else RAW


@frozen
class ContainerRoutes:
    engine: Engine

    def table(self) -> Table:
        return [
            ("GET", "/containers/json", self.list),
            ("POST", "/containers/create", self.create),
            ("GET", "/containers/{name}/json", self.inspect),
            ("POST", "/containers/{name}/start", self.start),
            ("POST", "/containers/{name}/stop", self.stop),
            ("POST", "/containers/{name}/restart", self.restart),
            ("POST", "/containers/{name}/kill", self.kill),
            ("POST", "/containers/{name}/pause", self.pause),
            ("POST", "/containers/{name}/unpause", self.unpause),
            ("POST", "/containers/{name}/rename", self.rename),
            ("POST", "/containers/{name}/update", self.update),
            ("POST", "/containers/{name}/wait", self.wait),
            ("POST", "/containers/{name}/attach", self.attach),
            ("POST", "/containers/{name}/resize", self.resize),
            ("GET", "/containers/{name}/logs", self.logs),
            ("GET", "/containers/{name}/top", self.top),
            ("GET", "/containers/{name}/stats", self.stats),
            ("HEAD", "/containers/{name}/archive", self.archive_head),
            ("GET", "/containers/{name}/archive", self.archive_get),
            ("PUT", "/containers/{name}/archive", self.archive_put),
            ("GET", "/containers/{name}/export", self.export),
            ("GET", "/containers/{name}/changes", self.changes),
            ("POST", "/containers/prune", self.prune),
            ("POST", "/containers/{name}/exec", self.exec_create),
            ("DELETE", "/containers/{name}", self.remove),
            ("POST", "/exec/{name}/start", self.exec_start),
            ("POST", "/exec/{name}/resize", self.exec_resize),
            ("GET", "/exec/{name}/json", self.exec_inspect),
        ]

    def _networks(self) -> Mapping[str, AssignedNetwork]:
        return {network.id: network for network in self.engine.networks()}

    async def list(self, call: Call) -> Response:
        filters = dict(call.filters(select.CONTAINER_KEYS))
        if "ancestor" in filters:
            filters["ancestor"] = tuple(map(self._image_id, filters["ancestor"]))
        found = select.containers(
            self.engine.containers(), filters, call.flag("all"), call.integer("limit")
        )
        networks, now = self._networks(), time.time()
        rows = [
            render.container_row(
                c, now, networks, call.version, self._moved(c.spec.image, c), self._places()
            )
            for c in found
        ]
        if call.flag("size"):
            for row in rows:
                row["SizeRw"], row["SizeRootFs"] = await self.engine.sizes(row["Id"])
        return answer(rows)

    def _places(self) -> Mapping[str, str]:
        return {volume.name: volume.mountpoint for volume in self.engine.volumes()}

    def _image_id(self, ref: str) -> str:
        try:
            return self.engine.images.get(ref).id
        except NotFound:
            return ref

    def _moved(self, name: str, container: Container) -> str:
        """The image's id where its name now means another image, as `docker ps` shows it."""
        now = self._image_id(name)
        known = now.startswith("sha256:")
        return container.spec.image_id if known and now != container.spec.image_id else ""

    async def create(self, call: Call) -> Response:
        platform = call.text("platform")
        if platform and not platform.startswith("linux"):
            raise Invalid(f"platform {platform!r} is not served: containers here are linux")
        request, warnings = create_request(call.text("name"), await call.object())
        container_id, more = await self.engine.create(request)
        return answer({"Id": container_id, "Warnings": [*warnings, *more]}, 201)

    async def inspect(self, call: Call) -> Response:
        container = self.engine.container(call.name)
        value = render.container_inspect(
            container, self._networks(), call.version, places=self._places()
        )
        if call.flag("size"):
            value["SizeRw"], value["SizeRootFs"] = await self.engine.sizes(container.id)
        return answer(value)

    async def start(self, call: Call) -> Response:
        return nothing(204 if await self.engine.start(call.name) else 304)

    async def stop(self, call: Call) -> Response:
        timeout = call.integer("t")
        stopped = await self.engine.stop(
            call.name, None if timeout is None else float(timeout), call.text("signal")
        )
        return nothing(204 if stopped else 304)

    async def restart(self, call: Call) -> Response:
        timeout = call.integer("t")
        await self.engine.restart(
            call.name, None if timeout is None else float(timeout), call.text("signal")
        )
        return nothing()

    async def kill(self, call: Call) -> Response:
        await self.engine.kill(call.name, call.text("signal") or "SIGKILL")
        return nothing()

    async def pause(self, call: Call) -> Response:
        await self.engine.pause(call.name)
        return nothing()

    async def unpause(self, call: Call) -> Response:
        await self.engine.unpause(call.name)
        return nothing()

    async def rename(self, call: Call) -> Response:
        name = call.text("name")
        if not name:
            raise Invalid("Neither old nor new names may be empty")
        await self.engine.rename(call.name, name.removeprefix("/"))
        return nothing()

    async def update(self, call: Call) -> Response:
        container = self.engine.container(call.name)
        wish, warnings = update_wish(await call.object(), container)
        await self.engine.update(container.id, wish)
        return answer({"Warnings": warnings or None})

    async def remove(self, call: Call) -> Response:
        if call.flag("link"):
            raise Invalid("links are not served: a container cannot be unlinked")
        await self.engine.remove(call.name, force=call.flag("force"), volumes=call.flag("v"))
        return nothing()

    async def wait(self, call: Call) -> Response:
        condition = call.text("condition") or "not-running"
        if condition not in CONDITIONS:
            raise Invalid(f'invalid condition: "{condition}"')
        # Registered here, before the head of the answer is sent: on seeing that, clients start.
        return stream(_WaitBody(self.engine.wait(call.name, condition)))

    async def attach(self, call: Call) -> Hijack:
        container = self.engine.container(call.name)
        tty, stdin = container.spec.tty, call.flag("stdin")
        keys = key_sequence(call.text("detachKeys"))
        attachment = await self.engine.attach(
            container.id,
            stdin,
            call.flag("stdout"),
            call.flag("stderr"),
            call.flag("logs"),
            call.flag("stream"),
        )
        return Hijack(
            conversation(attachment, tty=tty, keys=keys if tty and stdin else b""),
            _stream_headers(call, tty),
        )

    async def resize(self, call: Call) -> Response:
        await self.engine.resize(call.name, *_size(call))
        return nothing(200)

    async def logs(self, call: Call) -> Response:
        options = LogOptions(
            stdout=call.flag("stdout"),
            stderr=call.flag("stderr"),
            follow=call.flag("follow"),
            since=call.time("since"),
            until=call.time("until"),
            tail=_tail(call.text("tail")),
        )
        if not (options.stdout or options.stderr):
            raise Invalid("Bad parameters: you must choose at least one stream")
        container = self.engine.container(call.name)
        tty = container.spec.tty
        lines = self.engine.logs(container.id, options)
        return stream(
            _log_body(lines, tty, call.flag("timestamps")), stream_type(tty, call.version)
        )

    async def top(self, call: Call) -> Response:
        if call.text("ps_args", "-ef") not in ("", "-ef"):
            raise Invalid("ps_args other than -ef are not served")
        titles, rows = await self.engine.top(call.name)
        return answer({"Titles": list(titles), "Processes": [list(row) for row in rows]})

    async def stats(self, call: Call) -> Response:
        container = self.engine.container(call.name)
        is_stream, one_shot = call.flag("stream", True), call.flag("one-shot")
        if is_stream:
            return stream(self._samples(container.id))
        before = None if one_shot else self.engine.usage(container.id)
        if before is not None:
            await trio.sleep(SAMPLE)
        now = self.engine.usage(container.id)
        return answer(render_stats.stats_value(container, now, before))

    async def _samples(self, container_id: str) -> AsyncIterator[bytes]:
        """One sample each second while the container exists; zeros while it does not run."""
        before = None
        while True:
            try:
                container, now = (
                    self.engine.container(container_id),
                    self.engine.usage(container_id),
                )
            except NotFound:
                return
            yield json_line(render_stats.stats_value(container, now, before))
            before = now
            await trio.sleep(SAMPLE)

    async def changes(self, call: Call) -> Response:
        found = await self.engine.changes(call.name)
        return answer([{"Path": path, "Kind": kind.value} for path, kind in found] or None)

    async def archive_head(self, call: Call) -> Response:
        found = await self.engine.path_stat(call.name, _path(call))
        return Response(200, render.path_stat_header(found))

    async def archive_get(self, call: Call) -> Response:
        path = _path(call)
        found = await self.engine.path_stat(call.name, path)
        head = (("Content-Type", TAR), *render.path_stat_header(found))
        return Response(200, head, self.engine.archive(call.name, path))

    async def archive_put(self, call: Call) -> Response:
        await self.engine.unpack(
            call.name,
            _path(call),
            aiter(call.request.body),
            keep_kinds=call.flag("noOverwriteDirNonDir"),
            as_user=call.flag("copyUIDGID"),
        )
        return nothing(200)

    async def export(self, call: Call) -> Response:
        container = self.engine.container(call.name)
        await self.engine.path_stat(container.id, "/")
        return stream(self.engine.archive(container.id, "/."), TAR)

    async def prune(self, call: Call) -> Response:
        filters = call.filters(select.PRUNE_KEYS)
        removed, reclaimed = [], 0
        for container in self.engine.containers():
            if container.task or not select.prunable(container, filters, time.time()):
                continue
            try:
                size, _ = await self.engine.sizes(container.id)
                await self.engine.remove(container.id)
            except (NotFound, Conflict):
                continue  # somebody removed or started it meanwhile
            removed.append(container.id)
            reclaimed += size
        return answer({"ContainersDeleted": removed or None, "SpaceReclaimed": reclaimed})

    async def exec_create(self, call: Call) -> Response:
        spec = exec_spec(await call.object())
        return answer({"Id": await self.engine.exec_create(call.name, spec)}, 201)

    async def exec_start(self, call: Call) -> Response | Hijack:
        body = await call.object()
        spec = self.engine.exec_inspect(call.name).spec
        tty = bool(body.get("Tty"))
        keys = key_sequence(spec.detach_keys)
        size = body.get("ConsoleSize")
        attachment = await self.engine.exec_start(call.name, bool(body.get("Detach")), tty)
        if attachment is None:
            return nothing(200)
        if tty and isinstance(size, list) and len(size) == 2 and all(size):
            await self.engine.exec_resize(call.name, int(size[0]), int(size[1]))
        return Hijack(
            conversation(attachment, tty=tty, keys=keys if tty and spec.stdin else b""),
            _stream_headers(call, tty),
        )

    async def exec_resize(self, call: Call) -> Response:
        await self.engine.exec_resize(call.name, *_size(call))
        return nothing(200)

    async def exec_inspect(self, call: Call) -> Response:
        return answer(render.exec_inspect(self.engine.exec_inspect(call.name)))


def _stream_headers(call: Call, tty: bool) -> Headers:
    kind = stream_type(tty, call.version) if call.request.upgrade else RAW
    return (("Content-Type", kind),)


def _size(call: Call) -> tuple[int, int]:
    rows, columns = call.integer("h"), call.integer("w")
    if rows is None or columns is None:
        raise Invalid("a terminal's size needs h and w")
    return rows, columns


def _path(call: Call) -> str:
    if not call.text("path"):
        raise Invalid("no path is named: path is empty")
    return call.text("path")


def _tail(text: str) -> int | None:
    """Everything for "all", "" and for what is no number, as Docker takes it."""
    return int(text) if text.isdigit() else None


class _WaitBody:
    """The answer of a wait: one JSON value, when it is known; a client that leaves unregisters."""

    def __init__(self, waiter: Waiter) -> None:
        self._waiter = waiter
        self._done = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._done:
            raise StopAsyncIteration
        code, error = await self._waiter.result()
        self._done = True
        value: dict[str, object] = {"StatusCode": code}
        if error:
            value["Error"] = {"Message": error}
        return json.dumps(value).encode() + b"\n"

    async def aclose(self) -> None:
        self._waiter.close()


async def _log_body(
    lines: AsyncIterator[LogLine], tty: bool, timestamps: bool
) -> AsyncIterator[bytes]:
    async for line in lines:
        data = line.data
        if timestamps:
            data = rfc3339_ns(line.time_ns).encode() + b" " + data
        yield data if tty else frame(line.stream, data)
