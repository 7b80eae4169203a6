"""Assigned tasks, the agent's death and the host's: what must come back and how."""

import json
import os
import signal
import subprocess

import pytest
from attrs import evolve

from orchestra.agent.network import task_container_id
from orchestra.model.assignment import (
    AssignedNetwork,
    AssignedTask,
    Assignment,
    ClusterNet,
    EndpointState,
    NetworkService,
    Peer,
    Published,
    digests,
    sections,
)
from orchestra.model.container import ContainerSpec, Endpoint
from orchestra.model.service import Mount, MountType, RestartCondition, RestartPolicy

from .host import AGENT, running_host, wait_until


@pytest.fixture
def host():
    """One for each test: they kill it."""
    with running_host() as host:
        yield host


def put(host, assignment):
    bodies = sections(assignment)
    return host.ok(
        "PUT",
        "/orchestra/v1/assignment",
        {"generation": assignment.generation, "digests": digests(bodies), "bodies": bodies},
    )


def observed(host):
    return host.ok("GET", "/orchestra/v1/observed")


def task_of(host, task="t1"):
    return {t["id"]: t for t in observed(host)["tasks"]}.get(task)


def reaches(host, state, task="t1"):
    return wait_until(
        lambda: (t := task_of(host, task)) and t["state"] == state and t,
        15,
        lambda: f"{observed(host)}\n{host.log.read_text()[-3000:]}",
    )


def assigned(host, generation, *tasks, addresses=("10.18.1.2", "10.18.1.3")):
    endpoints = tuple(EndpointState(t.id, t.slot, t.name, 1, a) for t, a in zip(tasks, addresses))
    service = NetworkService("shop", "web", "10.18.0.9", (), endpoints)
    network = AssignedNetwork(
        "n1", "shop_front", "10.18.0.0/16", "10.18.0.1", blocks={1: "10.18.1.0/24"},
        services=(service,) if tasks else (),
    )  # fmt: skip
    cluster = ClusterNet(
        "c1", "10.16.0.0/12", 77, self_index=1, peers=(Peer(1, "x", "one", "127.0.0.1"),)
    )
    published = (Published("tcp", 8081, 80, "shop_web", targets=addresses[: len(tasks)]),)
    return Assignment(generation, cluster, tasks, (network,), published if tasks else ())


def web(host, *args, number=1, **changes):
    image = host.ok("GET", "/images/busybox/json")["Id"]
    spec = ContainerSpec(
        image="busybox",
        image_id=image,
        args=args or ("sleep", "600"),
        env=("PATH=/bin",),
        endpoints=(Endpoint("n1", "shop_front", f"10.18.1.{number + 1}"),),
        network_mode="shop_front",
        stop_grace=0.1,
    )
    spec = evolve(spec, **changes)
    return AssignedTask(f"t{number}", "shop", "web", f"web.{number}", f"shop-web-{number}", spec)


def test_a_task_is_run_stopped_and_forgotten_as_assigned(host):
    task = web(host)
    assert put(host, assigned(host, 1, task)) == {"missing": []}
    seen = reaches(host, "running")
    assert seen["container"] == task_container_id("t1")
    assert host.inspect("shop-web-1")["Id"] == seen["container"]
    assert observed(host)["applied"] == 1
    put(host, assigned(host, 2, evolve(task, stop=True)))
    assert reaches(host, "shutdown")["final"]
    assert host.state_of("shop-web-1")["Status"] == "exited"
    put(host, assigned(host, 3))
    wait_until(lambda: host.call("GET", "/containers/shop-web-1/json")[0] == 404, 10)
    assert observed(host)["tasks"] == []


def test_sections_travel_only_once_and_generations_only_rise(host):
    assignment = assigned(host, 4, web(host))
    bodies = sections(assignment)
    announced = {"generation": 4, "digests": digests(bodies), "bodies": {}}
    missing = host.ok("PUT", "/orchestra/v1/assignment", announced)["missing"]
    assert sorted(missing) == sorted(bodies)
    put(host, assignment)
    assert host.ok("PUT", "/orchestra/v1/assignment", announced) == {"missing": []}
    status, body = host.call("PUT", "/orchestra/v1/assignment", {**announced, "generation": 3})
    assert status == 409 and "behind this node's 4" in body["message"]
    stored = host.state / "assignment.json"
    assert os.stat(stored).st_mode & 0o777 == 0o600
    assert json.loads(stored.read_text())["generation"] == 4


def test_a_restart_token_restarts_once(host):
    task = web(host)
    put(host, assigned(host, 1, task))
    first = reaches(host, "running")
    put(host, assigned(host, 2, evolve(task, restart_token=1)))
    wait_until(lambda: (t := task_of(host))["started"] > first["started"] and t, 10)
    again = reaches(host, "running")
    host.kill_agent()
    host.start()
    assert task_of(host)["started"] == again["started"]


def test_a_task_whose_image_is_not_here_waits_for_it_and_says_so(host):
    host.ok("DELETE", "/images/busybox")
    spec = ContainerSpec("busybox", "sha256:" + "1" * 64, ("sleep", "600"))
    put(host, assigned(host, 1, AssignedTask("t1", "shop", "web", "web.1", "shop-web-1", spec)))
    seen = reaches(host, "preparing")
    assert "busybox" in seen["error"] and not seen["final"]


def test_a_task_that_this_node_cannot_run_is_rejected_with_the_reason(host):
    task = web(host, mounts=(Mount(MountType.BIND, "/x", "/no/such/place"),))
    put(host, assigned(host, 1, task))
    seen = reaches(host, "rejected")
    assert "/no/such/place" in seen["error"] and seen["final"]


def test_a_crashed_task_comes_back_in_place_and_its_last_end_is_told(host):
    always = RestartPolicy(RestartCondition.ANY)
    put(host, assigned(host, 1, web(host, restart=always)))
    reaches(host, "running")
    subprocess.run(host.enter("kill", "-9", str(host.pid_of("sleep 600"))), check=True)
    task = wait_until(
        lambda: (t := task_of(host))["restarts"] == 1 and t["state"] == "running" and t, 10
    )
    # the run before it is still told of
    assert task["exit_code"] == 137
    assert 0 < task["finished"] <= task["started"]
    state = host.state_of("shop-web-1")
    assert (state["ExitCode"], state["FinishedAt"] > "2020") == (0, True)


def test_a_crash_without_policy_is_final_and_reported_with_its_code(host):
    put(host, assigned(host, 1, web(host, "sh", "-c", "exit 3")))
    seen = reaches(host, "failed")
    assert (seen["exit_code"], seen["final"]) == (3, True)


def test_the_observed_state_is_waited_for_not_polled(host):
    before = observed(host)["sequence"]
    path = f"/orchestra/v1/observed?after={before}&timeout=20"
    with subprocess.Popen(
        ["curl", "-sN", "--unix-socket", host.socket, f"http://d{path}"], stdout=subprocess.PIPE
    ) as curl:
        put(host, assigned(host, 1, web(host)))
        answer = json.loads(curl.communicate(timeout=20)[0])
    assert answer["sequence"] > before


def test_a_service_answers_at_its_virtual_address_name_and_published_port(host):
    serve = "while :; do echo -e 'HTTP/1.0 200 OK\\r\\n\\r\\nweb' | nc -l -p 80; done"
    put(host, assigned(host, 1, web(host, "sh", "-c", serve), web(host, number=2)))
    reaches(host, "running"), reaches(host, "running", "t2")

    def fetched():
        # not `wget -T`: Debian's static busybox crashes on it
        words = ("timeout", "2", "wget", "-qO-", "http://shop-web-1/")
        done = host.docker("exec", "shop-web-2", *words)
        return done.stdout == "web\n"

    wait_until(fetched, 10)
    done = host.docker("exec", "shop-web-2", "nslookup", "web", "127.0.0.11")
    assert "10.18.0.9" in done.stdout, done.stdout + done.stderr


def test_the_agents_death_touches_no_container_and_loses_no_exit(host):
    runs = host.run_container("sh", "-c", "while :; do echo tick; sleep 0.1; done", name="runs")
    host.run_container("sh", "-c", "while [ ! -e /tmp/end ]; do sleep 0.05; done; exit 6",
                       name="ends")  # fmt: skip
    host.run_container("sh", "-c", "trap : TERM; while :; do sleep 0.05; done", name="dies",
                       host={"AutoRemove": True})  # fmt: skip
    pids = {n: host.state_of(n)["Pid"] for n in ("runs", "ends", "dies")}
    host.kill_agent()
    ends = f"/proc/{pids['ends']}/root/tmp/end"
    subprocess.run(host.enter("touch", ends), check=True)
    subprocess.run(host.enter("kill", "-9", str(pids["dies"])), check=True)
    wait_until(lambda: subprocess.run(host.enter("kill", "-0", str(pids["ends"])),
                                      capture_output=True).returncode, 10)  # fmt: skip
    host.start()
    assert host.state_of("runs")["Pid"] == pids["runs"]
    state = wait_until(lambda: (s := host.state_of("ends"))["Status"] == "exited" and s, 10)
    assert state["ExitCode"] == 6
    wait_until(lambda: host.call("GET", "/containers/dies/json")[0] == 404, 10)
    assert host.docker("exec", runs, "echo", "there").stdout == "there\n"
    ticks = host.logs_of("runs").count("tick")
    wait_until(lambda: host.logs_of("runs").count("tick") > ticks, 10)
    host.ok("POST", "/containers/runs/stop?t=0")
    assert host.state_of("runs")["ExitCode"] == 137


def test_a_policy_acts_on_a_crash_that_happened_while_the_agent_was_away(host):
    host.run_container("sleep", "600", name="phoenix", host={"RestartPolicy": {"Name": "always"}})
    host.kill_agent(signal.SIGTERM)
    subprocess.run(host.enter("kill", "-9", str(host.pid_of("sleep 600"))), check=True)
    host.start()
    wait_until(lambda: (i := host.inspect("phoenix"))["RestartCount"] == 1
               and i["State"]["Running"], 5)  # fmt: skip


def test_a_second_agent_on_the_same_paths_is_refused(host):
    done = subprocess.run(
        [*host.enter("true")[:-1], *_agent(host)], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 1 and "another agent serves" in done.stderr


def _agent(host):
    return [*AGENT, "--state", str(host.state), "--run", str(host.run), "--fabric", host.name]


def test_a_reboot_brings_tasks_back_on_their_addresses_without_any_controller(host):
    put(host, assigned(host, 1, web(host), web(host, "sh", "-c", "exit 0", number=2)))
    reaches(host, "running")
    reaches(host, "complete", "t2")
    host.run_container("sleep", "700", name="mine", host={"RestartPolicy": {"Name": "always"}})
    host.run_container("sleep", "800", name="once")
    mine = host.inspect("mine")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    host.power_cut()
    host.boot()
    host.start()
    reaches(host, "running")
    assert task_of(host, "t2")["state"] == "complete"
    address = host.docker("exec", "shop-web-1", "ip", "-4", "addr", "show", "eth0").stdout
    assert "10.18.1.2/32" in address
    wait_until(lambda: host.state_of("mine")["Running"], 10)
    assert host.inspect("mine")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] == mine
    assert host.state_of("once")["Status"] == "exited"
