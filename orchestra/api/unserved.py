"""What Docker's API has and this engine has not (yet): refused by name, with the remedy."""

from __future__ import annotations

from orchestra.api.answers import Unserved
from orchestra.api.call import Call
from orchestra.api.table import Table
from orchestra.model.errors import Unavailable
from orchestra.wire.message import Response

NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect '
    "this node to swarm and try again."
)
SWARM = ("swarm", "nodes", "services", "tasks", "secrets", "configs")

BUILD = (
    "images cannot be built yet: build elsewhere, and load the result with `orchestra image load`"
)

ROUTES: tuple[tuple[str, str, str], ...] = (
    ("GET", "/containers/{name}/attach/ws", "attach over the hijacked connection instead"),
    ("POST", "/commit", BUILD),
    ("POST", "/build", BUILD),
    ("POST", "/build/prune", BUILD),
    ("POST", "/build/cancel", BUILD),
    ("POST", "/session", f"{BUILD}. Set DOCKER_BUILDKIT=0"),
    ("POST", "/grpc", f"{BUILD}. Set DOCKER_BUILDKIT=0"),
    ("POST", "/images/{name}/push", "save the image with `docker save` and load it elsewhere"),
    ("GET", "/images/search", "there is no registry to search"),
    ("GET", "/distribution/{name}/json", "there is no registry to ask"),
    ("POST", "/auth", "there is no registry to log in to"),
    ("POST", "/networks/{name}/connect", "name all networks when creating the container"),
    ("POST", "/networks/{name}/disconnect", "create the container anew without the network"),
    ("PUT", "/volumes/{name}", "cluster volumes belong to Swarm"),
)


def unserved_table() -> Table:
    """Routes that answer 501 naming themselves, and Swarm's, which answer 503 as Docker does."""
    table: Table = []
    for method, pattern, remedy in ROUTES:

        async def refuse(call: Call, text: str = f"{method} {pattern}: {remedy}") -> Response:
            raise Unserved(f"not served: {text}")

        table.append((method, pattern, refuse))

    async def no_manager(call: Call) -> Response:
        raise Unavailable(NOT_A_MANAGER)

    for word in SWARM:
        for method in ("GET", "POST", "DELETE"):
            table.append((method, f"/{word}", no_manager))
            table.append((method, f"/{word}/{{name}}", no_manager))
    return table
