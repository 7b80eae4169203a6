"""First light, from the outside: the guestbook on three hosts answers, heals and changes."""

from __future__ import annotations

import re
import threading

import pytest

from tests.acceptance.conftest import Cluster

pytestmark = pytest.mark.timeout(240)
NODES = ("node1", "node2", "node3")


def pages(cluster: Cluster, count: int) -> list[str]:
    """`count` pages, evenly from all nodes."""
    found = []
    for address in cluster.addresses:
        found += cluster.get(address, count // len(cluster.addresses))
    return found


def test_every_node_answers_and_all_web_containers_serve(guestbook: Cluster) -> None:
    found = pages(guestbook, 60)
    assert {re.search(r"served by: (\S+)", p)[1] for p in found} == {"web.1", "web.2", "web.3"}


def test_the_visit_counter_rises_by_exactly_the_requests(guestbook: Cluster) -> None:
    numbers = [int(re.search(r"visitor (\d+)", p)[1]) for p in pages(guestbook, 60)]
    assert sorted(numbers) == list(range(min(numbers), min(numbers) + 60))


def test_the_page_shows_the_clients_own_address(guestbook: Cluster) -> None:
    own = guestbook.client("sh", "-c", "ip -4 -o addr show scope global").split()[3].split("/")[0]
    assert {re.search(r"your address: (\S+)", p)[1] for p in pages(guestbook, 9)} == {own}


def test_a_second_up_has_nothing_to_do(guestbook: Cluster) -> None:
    assert "nothing to do" in guestbook.orchestra("up").stdout


def test_a_changed_environment_replaces_exactly_the_web_tasks(guestbook: Cluster) -> None:
    file = guestbook.folder / "compose.yaml"
    text = file.read_text()
    before = {t["slot"]: t["task"] for t in guestbook.tasks()}
    try:
        file.write_text(text.replace("GREETING: Welcome", "GREETING: Hello"))
        plan = guestbook.orchestra("plan").stdout
        assert guestbook.orchestra("plan", "--check", code=3).stdout == plan
        for slot in ("web.1", "web.2", "web.3"):
            assert f"replace {slot}" in plan
        assert "environment.GREETING: Welcome -> Hello" in plan
        assert "redis" not in plan and "worker" not in plan
        guestbook.orchestra("up", "--timeout", "120")
        after = {t["slot"]: t["task"] for t in guestbook.tasks()}
        assert {s for s in after if after[s] != before.get(s)} == {"web.1", "web.2", "web.3"}
        assert "Hello, visitor" in guestbook.get(guestbook.addresses[0])[0]
    finally:
        file.write_text(text)
        guestbook.orchestra("up", "--timeout", "120")


def test_the_worker_cannot_reach_web_by_name_or_address(guestbook: Cluster) -> None:
    address = next(iter(guestbook.tasks("web")[0]["addresses"].values()))
    script = (
        "import socket\n"
        f"for host in ('web', {address!r}):\n"
        "    try:\n"
        "        socket.create_connection((host, 8080), 2)\n"
        "        print('reached', host)\n"
        "    except OSError as e: print('refused', host)\n"
    )
    out = guestbook.orchestra("exec", "-T", "worker", "python3", "-c", script).stdout
    assert out.split("\n")[:2] == ["refused web", f"refused {address}"]


def test_a_killed_web_process_is_replaced_in_place(guestbook: Cluster) -> None:
    before = next(t for t in guestbook.tasks("web") if t["slot"] == "web.2")
    killed = float(guestbook.on(before["node"], f"{KILL % before['container']}; date +%s.%N"))
    now = guestbook.wait_for(
        "web.2 is back",
        lambda: next(
            (
                t
                for t in guestbook.tasks("web")
                if t["slot"] == "web.2"
                and t["restarts"] > before["restarts"]
                and t["health"] == "healthy"
            ),
            None,
        ),
    )
    assert now["task"] == before["task"]
    assert now["restarts"] == before["restarts"] + 1
    print(f"web.2 runs again {now['started'] - killed:.3f} s after its kill")
    assert now["started"] > before["started"]


# In the node's own view of its processes: the one whose cgroup is the container's.
KILL = "kill -9 $(grep -l %s /proc/[0-9]*/cgroup | head -1 | cut -d/ -f3)"
KILL_AGENT = "kill -9 $(pgrep -f '[o]rchestra/agent/[^ ]* agent$')"
KILL_SHIM = "kill -9 $(pgrep -f '[o]rchestra.runtime.shim')"


class Load:
    """Requests from the client to one node, one after another, until told to stop."""

    def __init__(self, cluster: Cluster, address: str) -> None:
        self.cluster, self.address = cluster, address
        self.answers: list[str] = []
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.stopped.is_set():
            self.answers += self.cluster.get(self.address, 50)

    def __enter__(self) -> Load:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopped.set()
        self.thread.join()


def containers(cluster: Cluster) -> dict[str, tuple[str, int]]:
    return {t["slot"]: (t["container"], t["restarts"]) for t in cluster.tasks()}


@pytest.mark.parametrize(
    "script", [KILL_AGENT, f"{KILL_AGENT}; {KILL_SHIM}"], ids=["agents", "agents and shims"]
)
def test_death_of_our_processes_under_load_costs_no_container_request_or_log_line(
    guestbook: Cluster, script: str
) -> None:
    before = containers(guestbook)
    logged = requests_logged(guestbook)
    with Load(guestbook, guestbook.addresses[0]) as load:
        for node in NODES:
            guestbook.on(node, script)
        guestbook.wait_until_ready()
    # A request that fails raises in Load.get, so each answer that was asked for is here, in order.
    numbers = [int(re.search(r"visitor (\d+)", page)[1]) for page in load.answers]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert containers(guestbook) == before
    assert requests_logged(guestbook) == logged + len(numbers)


def requests_logged(cluster: Cluster) -> int:
    return cluster.orchestra("logs", "--no-log-prefix", "web").stdout.count('"GET / ')


def test_logs_of_all_nodes_are_merged_in_time_order(guestbook: Cluster) -> None:
    pages(guestbook, 9)
    lines = guestbook.orchestra("logs", "-t", "web").stdout.splitlines()
    times = [line.split("| ", 1)[1].split(" ", 1)[0] for line in lines]
    assert times == sorted(times)
    assert {line.split("|")[0].strip() for line in lines} >= {"web.1", "web.2", "web.3"}


def test_exec_passes_on_the_exit_code(guestbook: Cluster) -> None:
    guestbook.orchestra("exec", "-T", "web", "sh", "-c", "exit 7", code=7)
    out = guestbook.orchestra("exec", "-T", "--index", "3", "web", "hostname").stdout
    assert out == "web.3\n"


def test_scale_adds_and_removes_replicas(guestbook: Cluster) -> None:
    guestbook.orchestra("scale", "web=4")
    assert len(guestbook.tasks("web")) == 4
    guestbook.orchestra("scale", "web=3")
    assert {t["slot"] for t in guestbook.tasks("web")} == {"web.1", "web.2", "web.3"}


def test_stopped_services_start_again_on_the_same_addresses(guestbook: Cluster) -> None:
    before = {t["slot"]: t["addresses"] for t in guestbook.tasks("worker")}
    guestbook.orchestra("stop", "worker")
    assert [t["state"] for t in guestbook.tasks("worker")] != ["running"]
    guestbook.orchestra("start", "worker")
    now = guestbook.wait_for(
        "the worker runs",
        lambda: {
            t["slot"]: t["addresses"] for t in guestbook.tasks("worker") if t["state"] == "running"
        },
    )
    assert now == before
