"""The applications behind our sockets: an agent's and the controller's, and how they are served.

Docker's routes are answered with and without a version in the path; every reply carries the
headers that clients negotiate by. Errors of the model become HTTP errors here and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping

import trio
from attrs import evolve

from orchestra.api.answers import API_VERSION, COMMON, MIN_API_VERSION, failure
from orchestra.api.call import Call
from orchestra.api.cluster import Cluster
from orchestra.api.containers import ContainerRoutes
from orchestra.api.controller import ClusterRoutes
from orchestra.api.engine import Engine, Node
from orchestra.api.host import HostRoutes, PingRoutes
from orchestra.api.images import ImageRoutes
from orchestra.api.node import NodeRoutes
from orchestra.api.table import Table
from orchestra.api.unserved import unserved_table
from orchestra.model.errors import Invalid, NotFound
from orchestra.wire.message import App, Disconnected, Hijack, Request, Response
from orchestra.wire.router import Router
from orchestra.wire.server import serve_http

BACKLOG = 1024
_VERSIONED = re.compile(r"/v(\d+)\.(\d+)(/.*)")


def agent_app(engine: Engine, node: Node | None = None) -> App:
    """Docker's Engine API over `engine`, and the node protocol where there is a `node`."""

    def in_use() -> Mapping[str, str]:
        return {c.spec.image_id: f"container {c.name}" for c in engine.containers()}

    table = [
        *PingRoutes(lambda: engine.facts).table(),
        *ContainerRoutes(engine).table(),
        *ImageRoutes(engine.images, in_use).table(),
        *HostRoutes(engine).table(),
        *(NodeRoutes(engine, node).table() if node is not None else ()),
    ]
    return _app(table)


def controller_app(cluster: Cluster) -> App:
    """The controller's protocol, and Docker's image routes over the controller's store.

    An image that a stack names is in use: nodes that are given its tasks get it from here.
    """

    def in_use() -> Mapping[str, str]:
        return {
            need.id: f"stack {record.stack.name}"
            for record in cluster.stacks()
            for need in record.images.values()
        }

    table = [
        *PingRoutes(lambda: None).table(),
        *ImageRoutes(cluster.images, in_use).table(),
        *ClusterRoutes(cluster).table(),
    ]
    return _app(table)


def _app(table: Table) -> App:
    # Served routes come first: names match greedily, and "/images/search" is no image.
    router = Router([*_literal_first(table + unserved_table())])

    async def app(request: Request) -> Response | Hijack:
        reply: Response | Hijack
        try:
            version, path = split_version(request.path)
            found = router.find(request.method, path)
            if found is None:
                raise NotFound("page not found")
            endpoint, names = found
            reply = await endpoint(Call(request, names, version))
        except (Disconnected, trio.BrokenResourceError):
            raise
        except Exception as error:
            reply = failure(error)
        return evolve(reply, headers=(*COMMON, *reply.headers))

    return app


def _literal_first(table: Table) -> Table:
    """Patterns without names before those with: a literal path is never taken for a name."""
    return sorted(table, key=lambda row: "{" in row[1])


def split_version(path: str) -> tuple[tuple[int, int], str]:
    """Divide "/v1.41/info" into version and path; without one the highest is meant."""
    match = _VERSIONED.fullmatch(path)
    if match is None:
        return API_VERSION, path
    version = (int(match[1]), int(match[2]))
    text = f"{version[0]}.{version[1]}"
    if version > API_VERSION:
        raise Invalid(
            f"client version {text} is too new. Maximum supported API version is {{}}.{{}}".format(
                *API_VERSION
            )
        )
    if version < MIN_API_VERSION:
        lowest = "{}.{}".format(*MIN_API_VERSION)
        raise Invalid(
            f"client version {text} is too old. Minimum supported API version is {lowest}, "
            "please upgrade your client to a newer version"
        )
    return version, match[3]


async def serve_unix(
    path: str,
    app: App,
    *,
    mode: int = 0o600,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on the Unix socket at `path` until cancelled; the socket goes with it.

    The socket is bound aside and renamed into place, so that `path` only ever names one that
    listens; one left by a dead process is replaced.
    """
    temporary = f"{path}.{os.getpid()}"
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        await listener.bind(temporary)
        os.chmod(temporary, mode)
        listener.listen(BACKLOG)
        inode = os.stat(temporary).st_ino
        os.replace(temporary, path)
    except BaseException:
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    try:
        task_status.started()
        await serve_http([trio.SocketListener(listener)], app)
    finally:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == inode:  # not a successor's
                os.unlink(path)
