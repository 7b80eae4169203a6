"""The agent with its real runtime, image store and fabric, over its socket."""

import json
import subprocess
import threading
import time
import urllib.parse

import pytest

from .host import docker_clis, wait_until

pytestmark = pytest.mark.usefixtures("nothing_stays")


def events_of(host, container_id, since, until=None):
    filters = urllib.parse.quote(json.dumps({"container": [container_id]}))
    until = until or time.time()
    text = host.ok("GET", f"/events?since={since}&until={until}&filters={filters}")
    return [json.loads(line)["Action"] for line in text.decode().splitlines() if line.strip()]


def exited(host, ref):
    return wait_until(
        lambda: (s := host.state_of(ref))["Status"] == "exited" and s, 15, lambda: host.inspect(ref)
    )


def test_a_container_lives_from_create_to_destroy(host):
    since = time.time() - 0.001
    made = host.ok("POST", "/containers/create?name=life", {"Image": "busybox", "Cmd": ["cat"]})
    assert host.state_of("life")["Status"] == "created"
    assert host.call("POST", "/containers/life/start")[0] == 204
    exited(host, "life")  # stdin is closed
    host.run_container("sleep", "60", name="life2")
    state = host.state_of("life2")
    assert (state["Status"], state["Running"]) == ("running", True)
    assert host.call("POST", "/containers/life2/start")[0] == 304
    assert host.call("POST", "/containers/life2/stop?t=0")[0] == 204
    assert exited(host, "life2")["ExitCode"] == 137
    assert host.call("POST", "/containers/life2/stop")[0] == 304
    assert host.call("DELETE", "/containers/life")[0] == 204
    assert host.call("GET", "/containers/life/json")[0] == 404
    actions = events_of(host, made["Id"], since)
    assert [a for a in actions if a not in ("connect", "disconnect")] == [
        "create",
        "start",
        "die",
        "destroy",
    ]


def test_events_of_a_stop_come_in_dockers_order(host):
    since = time.time()
    container_id = host.run_container("sleep", "60", name="stopped")
    host.ok("POST", "/containers/stopped/restart?t=0")
    host.ok("POST", "/containers/stopped/kill")
    actions = events_of(host, container_id, since)
    assert [a for a in actions if a not in ("connect", "disconnect")] == [
        *("create", "start"),
        *("kill", "kill", "die", "stop", "start", "restart"),
        *("kill", "die"),
    ]


def test_a_grace_is_given_and_the_exit_code_kept(host):
    host.run_container("sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done",
                       name="graceful")  # fmt: skip
    wait_until(lambda: "up" in host.logs_of("graceful"), 10)
    host.ok("POST", "/containers/graceful/stop?t=10")
    assert host.state_of("graceful")["ExitCode"] == 7


def test_output_is_kept_per_stream_and_served_after_the_end(host):
    host.run_container("sh", "-c", "echo out; echo err >&2; exit 3", name="talker")
    assert exited(host, "talker")["ExitCode"] == 3
    assert sorted(host.logs_of("talker").split()) == ["err", "out"]
    data = host.ok("GET", "/containers/talker/logs?stderr=1")
    assert data == b"\x02\0\0\0\0\0\0\x04err\n"


@pytest.mark.parametrize("condition", ["not-running", "next-exit", "removed"])
def test_each_wait_ends_with_the_exit_code(host, condition):
    host.ok(
        "POST",
        "/containers/create?name=waited",
        {
            "Image": "busybox",
            "Cmd": ["sh", "-c", "exit 5"],
            "HostConfig": {"AutoRemove": condition == "removed"},
        },
    )
    answers = []
    if condition == "not-running":
        host.ok("POST", "/containers/waited/start")
        answers.append(host.ok("POST", "/containers/waited/wait"))
    else:
        command = (
            "curl -sN --unix-socket SOCK -X POST http://d/containers/waited/wait?condition="
            + condition
        )
        with subprocess.Popen(
            [*command.replace("SOCK", host.socket).split(), "-D", "/dev/stderr"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as curl:
            assert b"200" in curl.stderr.readline()  # the head comes before the end
            host.ok("POST", "/containers/waited/start")
            answers.append(json.loads(curl.communicate(timeout=20)[0]))
    assert answers[0]["StatusCode"] == 5


def test_a_wait_for_what_does_not_run_answers_at_once(host):
    host.ok("POST", "/containers/create?name=idle", {"Image": "busybox"})
    assert host.ok("POST", "/containers/idle/wait")["StatusCode"] == 0
    assert host.call("POST", "/containers/nothing/wait")[0] == 404


def test_names_clash_and_running_containers_are_not_removed(host):
    host.run_container("sleep", "60", name="taken")
    status, body = host.call("POST", "/containers/create?name=taken", {"Image": "busybox"})
    assert status == 409 and 'name "/taken" is already in use' in body["message"]
    status, body = host.call("DELETE", "/containers/taken")
    assert status == 409 and "stop the container before" in body["message"]
    status, body = host.call("POST", "/containers/create", {"Image": "absent:1"})
    assert (status, body["message"]) == (404, "No such image: absent:1")
    host.ok("POST", "/containers/taken/rename?name=free")
    host.ok("DELETE", "/containers/free?force=1")
    assert host.call("GET", "/containers/free/json")[0] == 404


def test_a_program_that_is_not_there_fails_the_start_with_127(host):
    host.ok("POST", "/containers/create?name=lost", {"Image": "busybox", "Cmd": ["/nowhere"]})
    status, body = host.call("POST", "/containers/lost/start")
    assert status >= 400 and "no such file or directory" in body["message"].lower()
    state = host.state_of("lost")
    assert (state["Status"], state["ExitCode"]) == ("created", 127)


def test_docker_run_prints_and_leaves_nothing(host):
    for cli in docker_clis():
        done = host.docker("run", "--rm", "busybox", "echo", "hi", cli=cli)
        assert (done.stdout, done.returncode) == ("hi\n", 0), done.stderr
        done = host.docker("run", "--rm", "-i", "busybox", "cat", input="ping", cli=cli)
        assert (done.stdout, done.returncode) == ("ping", 0), done.stderr
        done = host.docker("run", "--rm", "busybox", "sh", "-c", "exit 9", cli=cli)
        assert done.returncode == 9
        done = host.docker("run", "--rm", "busybox", "/nowhere", cli=cli)
        assert done.returncode == 127
        assert host.ok("GET", "/containers/json?all=1") == []


def test_docker_exec_runs_beside_the_program(host):
    host.run_container("sleep", "60", name="worker", Env=["COLOUR=blue"])
    done = host.docker("exec", "worker", "sh", "-c", "echo $COLOUR; exit 4")
    assert (done.stdout, done.returncode) == ("blue\n", 4)
    done = host.docker("exec", "-i", "worker", "cat", input="through")
    assert done.stdout == "through"
    assert host.docker("exec", "worker", "/nowhere").returncode in (126, 127)
    top = host.ok("GET", "/containers/worker/top")
    assert [row[-1] for row in top["Processes"]] == ["sleep 60"]


def test_a_crash_is_followed_by_a_restart_in_place(host):
    host.run_container(
        "sh", "-c", "date +%s%N >> /starts; sleep 0.2; exit 1", name="crasher",
        host={"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2}},
    )  # fmt: skip
    assert exited(host, "crasher")["ExitCode"] == 1
    assert host.inspect("crasher")["RestartCount"] == 2
    host.run_container("sleep", "600", name="phoenix", host={"RestartPolicy": {"Name": "always"}})
    before = host.state_of("phoenix")["Pid"]
    subprocess.run(host.enter("kill", "-9", str(host.pid_of("sleep 600"))), check=True)
    pid = wait_until(
        lambda: (s := host.state_of("phoenix"))["Running"] and s["Pid"] != before and s["Pid"], 2
    )
    assert pid
    host.ok("POST", "/containers/phoenix/stop?t=0")
    assert host.state_of("phoenix")["Status"] == "exited"


def test_health_is_probed_and_told(host):
    since = time.time()
    check = {
        "Test": ["CMD-SHELL", "echo probing; test -e /tmp/ok"],
        "Interval": 100_000_000,
        "Timeout": 5_000_000_000,
        "Retries": 2,
    }
    container_id = host.run_container("sleep", "60", name="patient", Healthcheck=check)
    assert host.state_of("patient")["Health"]["Status"] == "starting"
    wait_until(lambda: host.state_of("patient")["Health"]["Status"] == "unhealthy", 10)
    host.docker("exec", "patient", "touch", "/tmp/ok")
    wait_until(lambda: host.state_of("patient")["Health"]["Status"] == "healthy", 10)
    log = host.state_of("patient")["Health"]["Log"]
    assert log[-1]["ExitCode"] == 0 and log[-1]["Output"] == "probing\n" and len(log) <= 5
    told = [a for a in events_of(host, container_id, since) if a.startswith("health_status")]
    assert told == ["health_status: unhealthy", "health_status: healthy"]


def test_a_probe_that_hangs_is_ended_at_its_timeout(host):
    check = {
        "Test": ["CMD", "sleep", "77"],
        "Interval": 50_000_000,
        "Timeout": 100_000_000,
        "Retries": 1,
    }
    host.run_container("sleep", "60", name="hanging", Healthcheck=check)
    wait_until(lambda: host.state_of("hanging")["Health"]["Status"] == "unhealthy", 10)
    log = host.state_of("hanging")["Health"]["Log"]
    assert log[0]["ExitCode"] == -1 and "exceeded timeout" in log[0]["Output"]
    host.ok("DELETE", "/containers/hanging?force=1")
    with pytest.raises(LookupError):
        host.pid_of("sleep 77")


def test_anonymous_volumes_go_with_their_container_and_named_ones_stay(host):
    host.run_container(
        "sh", "-c", "echo kept > /named/file", name="writer",
        host={"Binds": ["data1:/named"]}, Volumes={"/anonymous": {}},
    )  # fmt: skip
    exited(host, "writer")
    names = {v["Name"] for v in host.ok("GET", "/volumes")["Volumes"]}
    assert "data1" in names and len(names) == 2
    assert host.call("DELETE", "/volumes/data1")[0] == 409
    host.ok("DELETE", "/containers/writer?v=1")
    assert [v["Name"] for v in host.ok("GET", "/volumes")["Volumes"]] == ["data1"]
    done = host.docker("run", "--rm", "-v", "data1:/d", "busybox", "cat", "/d/file")
    assert done.stdout == "kept\n"
    host.ok("DELETE", "/volumes/data1")


def test_containers_find_each_other_and_the_host_finds_published_ports(host):
    serve = "while :; do echo -e 'HTTP/1.0 200 OK\\r\\n\\r\\nhello' | nc -l -p 80; done"
    host.run_container(
        "sh", "-c", serve, name="server",
        host={"PortBindings": {"80/tcp": [{"HostPort": "8099"}]}},
    )  # fmt: skip
    done = host.docker("run", "--rm", "busybox", "wget", "-qO-", "http://server/")
    assert done.stdout == "hello\n", done.stderr

    def fetched():
        curl = ("curl", "-s", "--max-time", "2", "http://127.0.0.1:8099/")
        return subprocess.run(host.enter(*curl), capture_output=True, text=True).stdout

    assert wait_until(fetched, 10) == "hello\n"
    status, body = host.call(
        "POST",
        "/containers/create?name=second",
        {"Image": "busybox", "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "8099"}]}}},
    )
    status, body = host.call("POST", "/containers/second/start")
    assert status >= 400 and "port is already allocated" in body["message"]


def test_a_port_that_a_program_of_the_host_has_is_refused_with_its_name(host):
    holder = subprocess.Popen(
        host.enter("/bin/busybox", "nc", "-l", "-p", "8098"), stdin=subprocess.PIPE
    )
    try:
        listening = ("sh", "-c", "grep -i :1FA2 /proc/net/tcp /proc/net/tcp6")
        wait_until(
            lambda: subprocess.run(host.enter(*listening), capture_output=True).returncode == 0, 5
        )
        host.ok(
            "POST",
            "/containers/create?name=unlucky",
            {
                "Image": "busybox",
                "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "8098"}]}},
            },
        )
        status, body = host.call("POST", "/containers/unlucky/start")
        assert status >= 400 and "in use by" in body["message"], body
    finally:
        pid = host.pid_of("/bin/busybox nc -l -p 8098")
        subprocess.run(host.enter("kill", str(pid)), check=True)
        holder.wait()
        holder.stdin.close()


def test_many_starts_at_once_all_come_up(host):
    errors = []

    def start(numbers):
        try:
            for number in numbers:
                host.run_container("sleep", "60", name=f"many{number}")
        except AssertionError as error:
            errors.append(error)

    threads = [threading.Thread(target=start, args=(range(i, 24, 4),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    rows = host.ok("GET", "/containers/json")
    assert len(rows) == 24
    addresses = {r["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] for r in rows}
    assert len(addresses) == 24


def test_signals_reach_the_program_and_pause_stops_time(host):
    host.run_container("sh", "-c", "trap 'echo got' USR1; echo up; while :; do sleep 0.02; done",
                       name="listener")  # fmt: skip
    wait_until(lambda: "up" in host.logs_of("listener"), 10)
    host.ok("POST", "/containers/listener/kill?signal=USR1")
    wait_until(lambda: "got" in host.logs_of("listener"), 10)
    host.ok("POST", "/containers/listener/pause")
    assert host.state_of("listener")["Status"] == "paused"
    assert host.call("POST", "/containers/listener/exec", {"Cmd": ["true"]})[0] == 409
    host.ok("POST", "/containers/listener/unpause")
    assert host.call("POST", "/containers/listener/kill?signal=NOPE")[0] == 400


def test_running_out_of_memory_is_told_apart(host):
    since = time.time()
    container_id = host.run_container(
        "sh", "-c", "head -c 200m /dev/zero | tail", name="hungry",
        host={"Memory": 16 << 20, "MemorySwap": 16 << 20},
    )  # fmt: skip
    state = exited(host, "hungry")
    assert state["ExitCode"] != 0
    assert state["OOMKilled"], state
    assert "oom" in events_of(host, container_id, since)


def test_a_published_range_takes_the_first_free_port_and_p_publishes_what_is_exposed(host):
    holder = subprocess.Popen(
        host.enter("/bin/busybox", "nc", "-l", "-p", "8200"), stdin=subprocess.PIPE
    )
    try:
        listening = ("sh", "-c", "grep -i :2008 /proc/net/tcp /proc/net/tcp6")
        wait_until(
            lambda: subprocess.run(host.enter(*listening), capture_output=True).returncode == 0, 5
        )
        words = ("-p", "8200-8202:80", "busybox", "sleep", "60")
        for name, port in (("one", "8201"), ("two", "8202")):
            done = host.docker("run", "-d", "--name", name, *words)
            assert done.returncode == 0, done.stderr
            bound = host.inspect(name)["NetworkSettings"]["Ports"]["80/tcp"]
            assert {b["HostPort"] for b in bound} == {port}
        done = host.docker("run", "-d", *words)
        assert "no port of 8200-8202 is free" in done.stderr
    finally:
        pid = host.pid_of("/bin/busybox nc -l -p 8200")
        subprocess.run(host.enter("kill", str(pid)), check=True)
        holder.wait()
        holder.stdin.close()
    done = host.docker(
        "run", "-d", "-P", "--expose", "90", "--name", "all", "busybox", "sleep", "60"
    )
    assert done.returncode == 0, done.stderr
    told = host.docker("port", "all").stdout
    assert told.startswith("90/tcp -> 0.0.0.0:"), told


def test_a_volumes_mount_names_its_directory(host):
    host.run_container("sleep", "60", name="mounted", host={"Binds": ["data2:/d"]})
    (mount,) = host.inspect("mounted")["Mounts"]
    assert (mount["Name"], mount["Destination"]) == ("data2", "/d")
    assert mount["Source"] == host.ok("GET", "/volumes/data2")["Mountpoint"]
    (row,) = host.ok("GET", "/containers/json")
    assert row["Mounts"] == [mount]


def test_docker_stats_shows_what_a_container_uses(host):
    host.run_container("sh", "-c", "while :; do :; done", name="spinner")
    done = host.docker("stats", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}} {{.PIDs}}")
    name, share, processes = done.stdout.split()
    assert (name, processes) == ("spinner", "1"), done.stdout + done.stderr
    assert float(share.rstrip("%")) > 1
    value = host.ok("GET", "/containers/spinner/stats?stream=0&one-shot=1")
    assert value["memory_stats"]["usage"] > 0 and "eth0" in value["networks"]


def test_docker_diff_names_what_was_added_changed_and_deleted(host):
    script = "mkdir /made && echo x > /made/file && echo y >> /etc/passwd && rm /bin/vi"
    host.run_container("sh", "-c", script, name="changed", host={"Binds": ["data3:/mnt/data"]})
    exited(host, "changed")
    done = host.docker("diff", "changed")
    assert sorted(done.stdout.splitlines()) == [
        "A /made", "A /made/file", "C /bin", "C /etc", "C /etc/passwd", "D /bin/vi",
    ]  # fmt: skip


def test_what_is_not_used_is_pruned_and_counted(host):
    host.run_container("sh", "-c", "head -c 100000 /dev/zero > /big", name="ended")
    host.run_container("sleep", "60", name="stays", host={"Binds": ["data4:/d"]})
    exited(host, "ended")
    host.ok("POST", "/volumes/create", {"Name": "unused"})
    done = host.docker("system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}")
    assert done.stdout.splitlines()[:2] == ["Images 1 1", "Containers 2 1"], done.stderr
    done = host.ok("POST", "/containers/prune")
    assert done["SpaceReclaimed"] >= 100000 and len(done["ContainersDeleted"]) == 1
    assert host.state_of("stays")["Running"]
    filters = urllib.parse.quote(json.dumps({"all": ["true"]}))
    done = host.ok("POST", f"/volumes/prune?filters={filters}")
    assert "unused" in done["VolumesDeleted"] and "data4" not in done["VolumesDeleted"]
    assert host.docker("image", "prune", "-f").returncode == 0
    assert host.docker("network", "prune", "-f").returncode == 0


def test_limits_and_policy_of_a_running_container_are_updated_and_last(host):
    host.run_container("sleep", "600", name="grown", host={"Memory": 16 << 20})
    words = ("--memory", "64m", "--memory-swap", "96m", "--pids-limit", "33", "--restart", "always")
    done = host.docker("update", *words, "grown")
    assert done.returncode == 0, done.stderr
    value = host.ok("GET", "/containers/grown/stats?stream=0&one-shot=1")
    assert value["memory_stats"]["limit"] == 64 << 20 and value["pids_stats"]["limit"] == 33
    done = host.docker("update", "--memory", "32m", "--memory-swap", "32m", "grown")
    assert done.returncode == 0, done.stderr
    before = host.state_of("grown")["Pid"]
    subprocess.run(host.enter("kill", "-9", str(host.pid_of("sleep 600"))), check=True)
    wait_until(lambda: host.state_of("grown")["Pid"] not in (0, before), 10)
    value = host.ok("GET", "/containers/grown/stats?stream=0&one-shot=1")
    assert value["memory_stats"]["limit"] == 32 << 20 and value["pids_stats"]["limit"] == 33
    seen = host.inspect("grown")["HostConfig"]
    assert (seen["Memory"], seen["RestartPolicy"]["Name"]) == (32 << 20, "always")
    status, body = host.call("POST", "/containers/grown/update", {"CpusetCpus": "9999"})
    assert status == 400 and "cpuset.cpus" in body["message"]
    assert host.inspect("grown")["HostConfig"]["CpusetCpus"] == ""
