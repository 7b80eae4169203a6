"""Docker's JSON shapes, pinned by golden values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from orchestra.api import render, render_host
from orchestra.api.words import duration, rfc3339, rfc3339_ns
from orchestra.model.assignment import AssignedNetwork
from orchestra.model.container import (
    Container,
    ContainerSpec,
    ContainerStatus,
    Endpoint,
    Exec,
    ExecSpec,
    Health,
    HealthStatus,
    Image,
    ImageConfig,
    Limits,
    LocalVolume,
    Probe,
)
from orchestra.model.event import Event
from orchestra.model.service import (
    Healthcheck,
    Mount,
    MountType,
    Port,
    RestartCondition,
    RestartPolicy,
    Ulimit,
)

GOLDEN = Path(__file__).parent / "golden"
NET = AssignedNetwork(id="c" * 64, name="front", subnet="10.18.0.0/16", gateway="10.18.0.1")
NETWORKS = {NET.id: NET}

SPEC = ContainerSpec(
    image="web:1",
    image_id="sha256:" + "a" * 64,
    args=("/entry", "serve", "two words"),
    entrypoint=("/entry",),
    env=("PATH=/bin", "A=b"),
    hostname="web",
    labels={"k": "v"},
    mounts=(
        Mount(MountType.BIND, "/etc/x", "/srv/x", read_only=True),
        Mount(MountType.VOLUME, "/data", "vol"),
        Mount(MountType.TMPFS, "/tmp"),
    ),
    limits=Limits(memory=64 << 20, cpus=0.5, pids=100),
    ulimits={"nofile": Ulimit(1024, 2048)},
    cap_add=("NET_ADMIN",),
    network_mode="front",
    endpoints=(Endpoint(NET.id, "front", "10.18.1.2", ("web", "w"), "02:42:0a:12:01:02"),),
    ports=(Port(80, 8080), Port(53, 5353, "udp", host_ip="127.0.0.1")),
    restart=RestartPolicy(RestartCondition.ON_FAILURE, max_attempts=3),
    healthcheck=Healthcheck(("CMD", "true"), interval=1.5),
)
CONTAINER = Container(
    id="d" * 64,
    name="web.1",
    created=1_700_000_000.5,
    spec=SPEC,
    status=ContainerStatus.RUNNING,
    pid=42,
    started=1_700_000_001.25,
    health=Health(HealthStatus.HEALTHY, 0, (Probe(1_700_000_002, 1_700_000_003, 0, "ok"),)),
    request={"ExposedPorts": {"80/tcp": {}, "90/tcp": {}}, "HostConfig": {"NetworkMode": "front"}},
    volumes={"/data": "vol"},
)
IMAGE = Image(
    id="sha256:" + "a" * 64,
    manifest_digest="sha256:" + "e" * 64,
    names=("web:1",),
    digests=("web@sha256:" + "e" * 64,),
    created=1_700_000_000.0,
    size=123,
    architecture="amd64",
    layers=("sha256:" + "1" * 64,),
    history=(
        {"created": "2023-11-14T22:13:20Z", "created_by": "ADD / /"},
        {"created_by": "CMD serve", "empty_layer": True},
    ),
    config=ImageConfig(
        env=("PATH=/bin",),
        cmd=("serve",),
        entrypoint=("/entry",),
        volumes=("/data",),
        exposed_ports=("80/tcp",),
        labels={"k": "v"},
    ),
)

PLACES = {"vol": "/var/lib/orchestra/volumes/vol/_data"}
RENDERED: dict[str, Any] = {
    "container_inspect_1.47": render.container_inspect(CONTAINER, NETWORKS, (1, 47), places=PLACES),
    "container_inspect_1.41": render.container_inspect(CONTAINER, NETWORKS, (1, 41), places=PLACES),
    "container_inspect_stopped": render.container_inspect(
        attrs.evolve(
            CONTAINER,
            status=ContainerStatus.EXITED,
            exit_code=7,
            pid=0,
            health=None,
            finished=1_700_000_009.0,
        ),
        NETWORKS,
        (1, 47),
        places=PLACES,
    ),
    "container_row": render.container_row(
        CONTAINER, 1_700_000_061.0, NETWORKS, (1, 47), places=PLACES
    ),
    "exec_inspect": render.exec_inspect(
        Exec("f" * 64, CONTAINER.id, ExecSpec(("ls", "-l"), user="nobody"), exit_code=0)
    ),
    "image_inspect_1.47": render_host.image_inspect(IMAGE, (1, 47)),
    "image_inspect_1.41": render_host.image_inspect(IMAGE, (1, 41)),
    "image_row_1.47": render_host.image_row(IMAGE, (1, 47)),
    "image_row_untagged_1.42": render_host.image_row(
        attrs.evolve(IMAGE, names=(), digests=()), (1, 42)
    ),
    "image_history": render_host.image_history(IMAGE),
    "network": render_host.network_value(NET, [CONTAINER]),
    "volume": render_host.volume_value(LocalVolume("vol", "/v/vol", 1_700_000_000.9, {"a": "b"})),
    "event": render_host.event_value(
        Event(
            "container",
            "die",
            "d" * 64,
            {"image": "web:1", "exitCode": "7"},
            1_700_000_000_000_000_001,
        )
    ),
}


@pytest.mark.parametrize("name", RENDERED)
def test_the_shape_is_the_recorded_one(name: str) -> None:
    path = GOLDEN / f"{name}.json"
    assert RENDERED[name] == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (61, "About a minute"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (5400, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (14 * 86400, "2 weeks"),
        (60 * 86400, "2 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_durations_are_worded_as_docker_words_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_times_cut_their_zeros_and_never_is_the_year_one() -> None:
    assert rfc3339(0) == "0001-01-01T00:00:00Z"
    assert rfc3339(1_700_000_000.5) == "2023-11-14T22:13:20.5Z"
    assert rfc3339(1_700_000_000) == "2023-11-14T22:13:20Z"
    assert rfc3339_ns(1_700_000_000_000_000_001) == "2023-11-14T22:13:20.000000001Z"
    assert rfc3339_ns(1_700_000_000_000_000_000) == "2023-11-14T22:13:20.000000000Z"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"status": ContainerStatus.CREATED}, "Created"),
        ({"health": None}, "Up About a minute"),
        ({}, "Up About a minute (healthy)"),
        ({"health": Health(HealthStatus.STARTING)}, "Up About a minute (health: starting)"),
        ({"status": ContainerStatus.PAUSED}, "Up About a minute (Paused)"),
        (
            {"status": ContainerStatus.EXITED, "exit_code": 3, "finished": 1_700_000_050.0},
            "Exited (3) 12 seconds ago",
        ),
        (
            {"status": ContainerStatus.RESTARTING, "exit_code": 1, "finished": 1_700_000_058.0},
            "Restarting (1) 4 seconds ago",
        ),
    ],
)
def test_the_status_column(changes: dict[str, Any], text: str) -> None:
    assert render.status_text(attrs.evolve(CONTAINER, **changes), 1_700_000_062.0) == text


if __name__ == "__main__":  # record anew; look at the difference before committing it
    GOLDEN.mkdir(exist_ok=True)
    for key, value in RENDERED.items():
        (GOLDEN / f"{key}.json").write_text(json.dumps(value, indent=1) + "\n")
