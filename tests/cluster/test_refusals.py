"""Bad input, as a user meets it: what is said, and that nothing half-done remains."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from cluster.conftest import Lab, Stack, lab_process, make_rootfs

pytestmark = pytest.mark.timeout(240)

SLEEPER = "image: busybox\n    command: sleep 1000\n    stop_grace_period: 500ms"
IMAGES = "/var/lib/orchestra/images"


def test_an_unknown_key_is_named_with_its_place(app: Stack) -> None:
    app.write("services:\n  web:\n    image: busybox\n    imag: nginx\n")
    said = app.refused("up", code=2)
    assert f"{app.folder}/compose.yaml:5:5: services.web.imag" in said
    app.nothing_is_there()


def test_a_cycle_of_dependencies_is_shown(app: Stack) -> None:
    app.write(
        f"services:\n  a:\n    {SLEEPER}\n    depends_on: [b]\n"
        f"  b:\n    {SLEEPER}\n    depends_on: [c]\n  c:\n    {SLEEPER}\n    depends_on: [a]\n"
    )
    said = app.refused("up", code=2)
    assert "cycle" in said
    assert "a -> b -> c -> a" in said
    app.nothing_is_there()


def test_an_undefined_network_is_named(app: Stack) -> None:
    app.write(f"services:\n  web:\n    {SLEEPER}\n    networks: [back]\n")
    said = app.refused("up", code=2)
    assert "services.web.networks" in said
    assert "back" in said and "not defined" in said
    app.nothing_is_there()


def test_two_services_cannot_publish_one_port(app: Stack) -> None:
    app.write(
        f"services:\n  a:\n    {SLEEPER}\n    ports: ['7070:80']\n"
        f"  b:\n    {SLEEPER}\n    ports: ['7070:80']\n"
    )
    said = app.refused("up", code=2)
    assert "services.b.ports[0]: port 7070/tcp is already published by service 'a'" in said
    app.nothing_is_there()


def test_a_port_of_another_stack_is_refused_with_its_name(
    make_stack: Callable[[str], Stack],
) -> None:
    first, second = make_stack("first"), make_stack("second")
    for stack in (first, second):
        stack.write(f"services:\n  web:\n    {SLEEPER}\n    ports: ['7071:80']\n")
    first.up()
    said = second.refused("up")
    assert "cannot publish 7071/tcp for second/web: first/web publishes it already" in said
    assert "remove stack first" in said
    assert "is not up" in second("ps").stderr


def test_a_port_that_a_program_of_a_node_has_is_told_with_the_program(app: Stack, lab: Lab) -> None:
    app.write(f"services:\n  web:\n    {SLEEPER}\n    ports: ['7072:80']\n")
    script = (
        "import socket, time; s = socket.create_server(('', 7072)); print(flush=True); s.accept()"
    )
    with lab_process(lab, "node3", "python3", "-c", script):
        said = app.refused("up", "--timeout", "60")
        assert "on node3: cannot publish 7072 for service app/web: in use by python3 (pid" in said
        assert "stop it or choose another port" in said
        assert "cannot publish 7072" in app("plan").stdout
        assert "cannot publish 7072" in app.refused("up", "--timeout", "60")
    app.up()
    assert app("plan", "--check").stdout == "app: nothing to do\n"


def test_host_ports_that_run_out_are_counted(app: Stack) -> None:
    app.write(
        """
        services:
          web:
            image: busybox
            command: sleep 1000
            stop_grace_period: 500ms
            ports:
              - {target: 80, published: 7073, mode: host}
            deploy: {replicas: 4}
        """
    )
    said = app.refused("up", "--timeout", "60")
    assert "cannot place web.4: " in said
    assert "no node has host port tcp/7073 free: 3 of 3 lack it" in said
    assert {t["node"] for t in app.tasks().values() if t["node"]} == {"node1", "node2", "node3"}


def test_a_constraint_that_nothing_satisfies_is_explained_for_every_node(app: Stack) -> None:
    app.write(
        """
        services:
          db:
            image: busybox
            command: sleep 1000
            stop_grace_period: 500ms
            deploy:
              placement: {constraints: ["node.labels.disk == nvme"]}
          big:
            image: busybox
            command: sleep 1000
            stop_grace_period: 500ms
            deploy:
              placement: {constraints: ["node.labels.disk == ssd"]}
              resources: {reservations: {memory: 900G}}
        """
    )
    plan = app("plan", code=0).stdout
    assert "cannot place db.1: no node satisfies node.labels.disk==nvme: 3 of 3 lack it" in plan
    said = app.refused("up", "--timeout", "60")
    assert "cannot place db.1: no node satisfies node.labels.disk==nvme: 3 of 3 lack it" in said
    assert "cannot place big.1: no node fits: " in said
    assert "2 of 3 lack node.labels.disk==ssd (node1, node3)" in said
    assert "1 of 3 have less than 921600 MiB of memory unreserved (node2)" in said
    assert not any(t["container"] for t in app.tasks().values())
    assert "no node satisfies" in app("ps").stdout


def test_an_image_found_nowhere_names_both_ways_out(app: Stack) -> None:
    app.write("services:\n  web:\n    image: nowhere/app:7\n")
    said = app.refused("up")
    assert "image nowhere/app:7 is neither in the controller's store nor on any node" in said
    assert "orchestra image load" in said and "docker -H ssh://NODE load" in said
    app.nothing_is_there()


SICK = """
services:
  web:
    image: busybox
    command: sh -c 'echo cannot reach the database; exec sleep 1000'
    stop_grace_period: 500ms
    healthcheck:
      test: [CMD-SHELL, "echo connection refused; exit 3"]
      interval: 200ms
      retries: {retries}
  fine:
    image: busybox
    command: sleep 1000
    stop_grace_period: 500ms
"""


def test_up_fails_when_a_health_check_does_and_shows_the_last_lines(app: Stack) -> None:
    app.write(SICK.format(retries=2))
    done = app("up", "--timeout", "80", code=1)
    assert "is unhealthy: its health check ended with 3: connection refused" in done.stderr
    assert "    | web.1: cannot reach the database" in done.stderr
    assert "up in" not in done.stdout
    assert app.tasks()["web.1"]["health"] == "unhealthy"
    assert "connection refused" in app("ps").stdout


def test_a_program_that_is_not_there_fails_with_its_name(app: Stack) -> None:
    app.write("services:\n  web:\n    image: busybox\n    command: nosuchprogram --now\n")
    said = app.refused("up", "--timeout", "60")
    assert re.search(r"web.1 on node\d failed \(exit code 127; .*nosuchprogram", said)


def test_a_bind_source_that_a_node_lacks_is_named(app: Stack) -> None:
    app.write(
        """
        services:
          web:
            image: busybox
            command: sleep 1000
            volumes:
              - type: bind
                source: /no/such/folder
                target: /data
                bind: {create_host_path: false}
        """
    )
    said = app.refused("up", "--timeout", "60")
    assert re.search(r"web.1 on node\d failed \(.*/no/such/folder", said)


def test_up_ends_at_its_timeout_and_says_what_is_missing(app: Stack) -> None:
    app.write(SICK.format(retries=10_000))
    done = app("up", "--timeout", "10", code=124)
    assert "timed out after 10 s waiting for stack app" in done.stderr
    assert "web.1: starting on node" in done.stderr
    assert "    | web.1: cannot reach the database" in done.stderr
    assert "fine.1:" not in done.stderr


def test_a_full_disk_of_a_node_is_named_and_healed_when_there_is_room(app: Stack, lab: Lab) -> None:
    tar = lab.scratch / "big.tar"
    make_rootfs(tar, megabytes=12)
    lab.orchestra("image", "import", str(tar), "big:1", "--change", "CMD sleep 1000")
    app.write(
        """
        services:
          big:
            image: big:1
            command: ["/bin/busybox", "sleep", "1000"]
            stop_grace_period: 500ms
            deploy:
              placement: {constraints: ["node.name == node3"]}
        """
    )
    lab.on(
        "node3",
        f"mount -t tmpfs -o size=4m tmpfs {IMAGES} && cd {IMAGES} && "
        "mkdir -p tmp blobs/sha256 blobs/sha512 layers",
    )
    try:
        said = app.refused("up", "--timeout", "60")
        assert "big.1: cannot ship big:1 to node3: " in said
        assert "remove unused images (`image rm`) or enlarge the file system" in said
        assert "no logs" not in said
        assert lab.on("node3", f"ls {IMAGES}/tmp") == ""
        assert not app.tasks()["big.1"]["container"]
    finally:
        lab.on("node3", f"umount {IMAGES}")
    app.up()
    assert app.tasks()["big.1"]["state"] == "running"
