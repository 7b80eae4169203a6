"""The controller's protocol from the CLI's client to a cluster, over a real socket."""

from __future__ import annotations

import pytest

from orchestra.api.blocking import ClusterClient
from orchestra.model.cluster import Progress, StackPhase
from orchestra.model.errors import Conflict, Invalid, NotFound, Unavailable
from orchestra.model.node import Availability, InventoryNode
from orchestra.model.service import Service, Stack, StackFile

from .conftest import ServedCluster, unix

NODE = InventoryNode("node-1", "10.0.0.1", labels={"disk": "ssd"})
STACK = Stack(
    "book",
    services={"web": Service("web", image="web:1", command=("serve",))},
    files={"secret/key": StackFile("secret/key", b"\0\xff", secret=True)},
)


@pytest.fixture
def client(cluster: ServedCluster) -> ClusterClient:
    return ClusterClient(unix(cluster.path))


def test_nodes_are_put_listed_and_told(cluster: ServedCluster, client: ClusterClient) -> None:
    assert client.info() == cluster.cluster.info()
    assert client.put_node(NODE).node == NODE
    client.set_availability("node-1", Availability.DRAIN)
    assert [n.availability for n in client.nodes()] == [Availability.DRAIN]
    client.set_labels("node-1", {"a": "b", "disk": None})
    client.remove_node("node-1", force=True)
    assert cluster.cluster.told == [
        ("set_labels", "node-1", {"a": "b", "disk": None}),
        ("remove_node", "node-1", True),
    ]
    with pytest.raises(Invalid, match="the body names node"):
        client.json("PUT", "/orchestra/v1/nodes/other", value={"name": "x", "address": "y"})


def test_a_stack_is_planned_applied_and_followed(
    cluster: ServedCluster, client: ClusterClient
) -> None:
    plan = client.plan(STACK)
    assert "environment.A: 1 -> 2" in str(plan.actions[0])
    assert [n.image for n in client.image_needs(STACK)] == ["web:1"]
    with pytest.raises(NotFound, match="no stack book"):
        client.tasks("book")
    with pytest.raises(NotFound, match="no stack book"):
        list(client.progress("book"))
    assert client.apply(STACK, plan.generation) == 2
    with pytest.raises(Conflict, match="moved on to generation 2"):
        client.apply(STACK, plan.generation)
    assert client.stack("book").stack == STACK
    assert [r.stack.name for r in client.stacks()] == ["book"]
    assert [t.slot for t in client.tasks("book")] == ["web.1"]
    assert list(client.progress("book")) == [
        Progress(1.0, "starting", running=0, desired=1),
        Progress(2.0, "done", StackPhase.CONVERGED, running=1, desired=1),
    ]
    client.scale("book", {"web": 3})
    client.stop_services("book", ["web"])
    client.start_services("book", [])
    client.restart_services("book", ["web"])
    client.remove_stack("book", volumes=True)
    assert cluster.cluster.told == [
        ("scale", "book", {"web": 3}),
        ("stop", "book", ("web",)),
        ("start", "book", ()),
        ("restart", "book", ("web",)),
        ("remove_stack", "book", True),
    ]
    assert next(client.events()).action == "ready"
    assert client.adopt() == ("stack guestbook, revision 3",)


def test_bad_values_name_their_place(client: ClusterClient) -> None:
    with pytest.raises(Invalid, match="availability"):
        client.json("POST", "/orchestra/v1/nodes/n/availability", value={"availability": "x"})
    with pytest.raises(Invalid, match="number of replicas"):
        client.json("POST", "/orchestra/v1/stacks/s/scale", value={"web": -1})
    with pytest.raises(Invalid, match="stack"):
        client.json("POST", "/orchestra/v1/apply", value={})


def test_a_tunnel_reaches_a_nodes_engine_with_everything_it_can(
    cluster: ServedCluster, client: ClusterClient
) -> None:
    engine = client.engine("node-1")
    assert engine.version()["ApiVersion"] == "1.47"
    value = {"Image": "busybox", "Cmd": ["sleep"]}
    engine.json("POST", "/containers/create", query={"name": "web"}, value=value)
    engine.json("POST", "/containers/web/start")
    exec_id = engine.exec_create("web", ["cat"], stdin=True)
    with engine.exec_start(exec_id) as stream:
        stream.send(b"x" * 1_000_000)
        stream.send_eof()
        assert b"".join(data for _, data in stream.output()) == b"x" * 1_000_000
    assert engine.exec_inspect(exec_id)["ExitCode"] == 0
    with pytest.raises(Unavailable, match="node node-2 is down"):
        client.engine("node-2").version()
    with pytest.raises(Invalid, match="Upgrade"):
        client.json("POST", "/orchestra/v1/nodes/node-1/tunnel")


def test_the_controllers_own_store_has_docker_s_image_routes(client: ClusterClient) -> None:
    assert list(client.images.load([b"image web:1"])) == ["Loaded image: web:1"]
    assert client.images.image("web:1")["RepoTags"] == ["web:1"]
    client.images.tag("web:1", "web", "2")
    assert client.images.import_rootfs([b"tar"], "base:1").startswith("sha256:")
    client.images.remove_image("web:2")
    assert {t for i in client.images.images() for t in i["RepoTags"]} == {
        "busybox:latest",
        "base:1",
    }
