"""Real clients on a served engine: the docker CLI, docker-py, and our own blocking client."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

from orchestra.api.blocking import DockerClient
from orchestra.model.errors import Conflict, Invalid, NotFound, Unavailable

from .conftest import Served, unix


@pytest.fixture
def cli(toy: Served, tmp_path: Path) -> Any:
    """Run the docker CLI with these words; (exit code, stdout, stderr)."""

    def run(*words: str, stdin: bytes = b"") -> tuple[int, str, str]:
        done = subprocess.run(
            ["docker", "--host", f"unix://{toy.path}", *words],
            input=stdin,
            capture_output=True,
            timeout=20,
            env={**os.environ, "DOCKER_CONFIG": str(tmp_path)},
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return run


@pytest.fixture
def py(toy: Served) -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=f"unix://{toy.path}", timeout=20)
    yield client
    client.close()


def test_the_cli_runs_containers_and_passes_on_their_codes(cli: Any) -> None:
    assert cli("run", "--rm", "busybox", "echo", "hi there") == (0, "hi there\n", "")
    assert cli("run", "--rm", "busybox", "both") == (0, "out\n", "err\n")
    assert cli("run", "-i", "--rm", "busybox", "cat", stdin=b"input\n") == (0, "input\n", "")
    assert cli("run", "--rm", "busybox", "exit", "7")[0] == 7
    code, _, errors = cli("run", "--rm", "busybox", "nosuch")
    assert code == 127
    assert "executable file not found" in errors
    assert cli("ps", "-aq") == (0, "", "")


def test_the_cli_works_with_a_running_container(cli: Any) -> None:
    assert cli("run", "-d", "--name", "web", "busybox", "sleep")[0] == 0
    assert cli("ps", "--format", "{{.Names}} {{.Image}} {{.State}}")[1] == "web busybox running\n"
    assert cli("exec", "web", "echo", "inside") == (0, "inside\n", "")
    assert cli("exec", "-i", "web", "cat", stdin=b"piped") == (0, "piped", "")
    assert cli("exec", "web", "exit", "9")[0] == 9
    assert cli("exec", "web", "nope")[0] == 127
    assert "4242" in cli("top", "web")[1]
    code, _, errors = cli("rm", "web")
    assert code == 1
    assert "stop the container before removing" in errors
    assert cli("stop", "web") == (0, "web\n", "")
    assert cli("start", "web")[0] == 0
    assert cli("rm", "-f", "web") == (0, "web\n", "")
    assert cli("inspect", "web")[0] == 1


def test_the_cli_shows_versions_logs_images_and_networks(cli: Any) -> None:
    assert "API version:      1.47 (minimum version 1.24)" in cli("version")[1]
    assert "Swarm: inactive" in cli("info")[1]
    cli("run", "--name", "two", "busybox", "both")
    assert cli("logs", "two") == (0, "out\n", "err\n")
    assert cli("logs", "-n", "1", "-t", "two")[2].endswith("Z err\n")
    assert cli("images", "--format", "{{.Repository}}:{{.Tag}}")[1] == "busybox:latest\n"
    assert cli("network", "ls", "--format", "{{.Name}}")[1] == "bridge\nhost\nnone\n"
    code, _, errors = cli("pull", "alpine")
    assert code == 1
    assert "image load" in errors


def test_docker_py_runs_execs_and_loads(py: docker.DockerClient) -> None:
    assert py.ping()
    assert py.version()["ApiVersion"] == "1.47"
    assert py.containers.run("busybox", ["echo", "hello"], remove=True) == b"hello\n"
    container = py.containers.run("busybox", ["sleep"], detach=True, name="web")
    assert container.status in ("created", "running")
    assert container.exec_run(["both"], demux=True) == (0, (b"out\n", b"err\n"))
    assert [c.name for c in py.containers.list()] == ["web"]
    container.kill()
    assert container.wait()["StatusCode"] == 137
    container.remove()
    with pytest.raises(docker.errors.NotFound):
        py.containers.get("web")
    with pytest.raises(docker.errors.ImageNotFound):
        py.images.get("absent")
    with pytest.raises(docker.errors.ContainerError) as caught:
        py.containers.run("busybox", ["exit", "3"])
    assert caught.value.exit_status == 3
    assert [image.tags for image in py.images.load(b"image web:2")] == [["web:2"]]


def test_our_blocking_client_speaks_to_an_engine(toy: Served) -> None:
    client = DockerClient(unix(toy.path))
    value = {"Image": "busybox", "Cmd": ["count", "1000"]}
    container = client.json("POST", "/containers/create", query={"name": "nn"}, value=value)["Id"]
    client.json("POST", f"/containers/{container}/start")
    entries = list(client.logs("nn", follow=True))
    assert [e.data for e in entries] == [b"%d\n" % n for n in range(1000)]
    assert entries == sorted(entries, key=lambda e: e.time_ns)
    assert {e.stream for e in entries} == {1}
    assert [e.data for e in client.logs("nn", tail=2)] == [b"998\n", b"999\n"]
    assert client.inspect("nn")["State"]["ExitCode"] == 0
    assert [c["Names"] for c in client.containers(all=True, filters={"name": ["nn"]})] == [["/nn"]]
    assert list(client.load([b"image ", b"web:3"])) == ["Loaded image: web:3"]
    assert b"".join(client.save(["web:3"])) == b"image web:3"
    assert len(client.images()) == 2
    with pytest.raises(Invalid, match="no image archive"):
        list(client.load([b"x" * 100_000] * 50))
    with pytest.raises(NotFound, match="No such container: m"):
        client.inspect("m")
    with pytest.raises(Conflict, match="is not running"):
        client.exec_create("nn", ["echo"])


def test_our_blocking_client_execs_with_input_and_a_terminal(toy: Served) -> None:
    client = DockerClient(unix(toy.path))
    value = {"Image": "busybox", "Cmd": ["sleep"]}
    client.json("POST", "/containers/create", query={"name": "web"}, value=value)
    client.json("POST", "/containers/web/start")
    exec_id = client.exec_create("web", ["cat"], stdin=True)
    with client.exec_start(exec_id) as stream:
        stream.send(b"typed")
        stream.send_eof()
        assert list(stream.output()) == [(1, b"typed")]
    assert client.exec_inspect(exec_id)["ExitCode"] == 0
    exec_id = client.exec_create("web", ["echo", "tty"], tty=True)
    with client.exec_start(exec_id, tty=True, console_size=(24, 80)) as stream:
        assert list(stream.output()) == [(1, b"tty\n")]
    assert toy.engine.resized == [(exec_id, 24, 80)]


def test_a_socket_that_nobody_serves_passes_on_what_connect_says(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DockerClient(unix(f"{tmp_path}/none")).version()


def test_a_server_that_hangs_up_is_unavailable(tmp_path: Path) -> None:
    import socket
    import threading

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/s")
        listener.listen()

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(Unavailable, match="hung up"):
            DockerClient(unix(f"{tmp_path}/s")).version()
        thread.join()


def test_the_blocking_client_imports_neither_trio_nor_h11() -> None:
    code = (
        "import sys, orchestra.api.blocking; "
        "print([m for m in ('trio', 'h11', 'asyncio', 'http.client', 'asyncssh', 'yaml') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"[]\n"
