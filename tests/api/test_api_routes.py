"""The routes over real sockets: status, headers and order, as Docker's clients rely on them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from orchestra.api.client import EngineClient, NodeClient
from orchestra.model.container import ContainerStatus
from orchestra.model.errors import (
    Conflict,
    Failed,
    Forbidden,
    Invalid,
    NotFound,
    Unavailable,
)
from orchestra.wire.frames import frames

from .conftest import Served, served
from .toy_engine import FACTS


def run(test: Callable[[Served, EngineClient], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            async with served() as toy:
                client = EngineClient(toy.opener)
                await test(toy, client)
                await client.aclose()

    trio.run(main)


async def raw(toy: Served, request: str) -> tuple[str, bytes]:
    """Send one request as written and return (head, body)."""
    async with await trio.open_unix_socket(toy.path) as stream:
        await stream.send_all(request.replace("\n", "\r\n").encode() + b"\r\n")
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some()
        with trio.move_on_after(0.2):
            while chunk := await stream.receive_some():
                data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    return head.decode(), body


async def create(client: EngineClient, *words: str, name: str = "", **body: Any) -> str:
    value = {"Image": "busybox", "Cmd": list(words), **body}
    made = await client.json("POST", "/containers/create", query={"name": name}, value=value)
    return str(made["Id"])


def test_ping_carries_the_headers_that_clients_negotiate_by() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        for path in ("/_ping", "/v1.41/_ping"):
            head, body = await raw(toy, f"HEAD {path} HTTP/1.1\nHost: \nConnection: close\n")
            assert head.startswith("HTTP/1.1 200 OK")
            for header in (
                "Api-Version: 1.47",
                "Ostype: linux",
                "Docker-Experimental: false",
                "Builder-Version: 1",
                "Swarm: inactive",
                "Content-Length: 0",
                "Content-Type: text/plain; charset=utf-8",
                "Cache-Control: no-cache, no-store, must-revalidate",
            ):
                assert header in head
            assert body == b""
        _, body = await raw(toy, "GET /_ping HTTP/1.1\nHost: x\nConnection: close\n")
        assert body == b"OK"

    run(test)


@pytest.mark.parametrize(
    ("request_line", "status", "message"),
    [
        ("GET /nope", 404, "page not found"),
        ("PATCH /_ping", 404, "page not found"),
        ("GET /containers/x/json", 404, "No such container: x"),
        ("GET /images/x/json", 404, "No such image: x:latest"),
        ("GET /networks/x", 404, "network x not found"),
        ("GET /volumes/x", 404, "get x: no such volume"),
        ("GET /exec/x/json", 404, "No such exec instance: x"),
        ("GET /v1.48/info", 400, "client version 1.48 is too new. Maximum supported API version"),
        ("GET /v1.5/info", 400, "client version 1.5 is too old. Minimum supported API version"),
        ("GET /v1.24/containers/x/json", 404, "No such container: x"),
        ("GET /containers/json?filters={x", 400, "invalid filters"),
        ('GET /containers/json?filters={"bogus":["1"]}', 400, "invalid filter 'bogus'"),
        ("GET /containers/json?limit=x", 400, 'invalid value for "limit"'),
        ("POST /containers/x/wait?condition=gone", 400, 'invalid condition: "gone"'),
        ("GET /containers/x/stats", 404, "No such container: x"),
        ("POST /containers/x/update", 404, "No such container: x"),
        ("POST /commit", 501, "not served: POST /commit"),
        ("POST /build", 501, "not served: POST /build"),
        ("GET /swarm", 503, "This node is not a swarm manager"),
        ("GET /services/x", 503, "This node is not a swarm manager"),
        ("POST /images/create?fromImage=a&tag=1", 404, "cannot pull a:1"),
        ("POST /images/create?fromImage=a&tag=1", 404, "orchestra image load"),
    ],
)
def test_errors_have_docker_s_status_shape_and_words(
    request_line: str, status: int, message: str
) -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        head, body = await raw(toy, f"{request_line} HTTP/1.1\nHost: x\nConnection: close\n")
        lines = head.splitlines()
        assert lines[0].startswith(f"HTTP/1.1 {status} ")
        assert "Content-Type: application/json" in lines
        assert "Api-Version: 1.47" in lines
        assert list(json.loads(body)) == ["message"]
        assert message in json.loads(body)["message"]

    run(test)


def test_a_body_that_is_no_json_is_refused() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        with pytest.raises(Invalid, match="must be 'application/json'"):
            async with client.request("POST", "/containers/create", body=b"{}"):
                pass
        head, body = await raw(
            toy,
            "POST /containers/create HTTP/1.1\nHost: x\nContent-Type: application/json\n"
            "Content-Length: 2\n\n{x",
        )
        assert "400 Bad Request" in head
        assert b"no JSON" in body

    run(test)


def test_the_head_of_a_wait_comes_before_the_start_it_waits_for() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        container = await create(client, "exit", "7", HostConfig={"AutoRemove": True})
        query = {"condition": "removed"}
        async with client.request("POST", f"/containers/{container}/wait", query=query) as answer:
            assert answer.headers["transfer-encoding"] == "chunked"
            await client.json("POST", f"/containers/{container}/start")
            assert json.loads(await answer.read()) == {"StatusCode": 7}
        with pytest.raises(NotFound):
            await client.json("GET", f"/containers/{container}/json")

    run(test)


def test_a_waiter_that_hangs_up_leaves_nothing_behind() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        container = await create(client, "sleep")
        query = {"condition": "next-exit"}
        async with client.request("POST", f"/containers/{container}/wait", query=query):
            assert len(toy.engine.waiters) == 1
        while toy.engine.waiters:
            await trio.sleep(0.001)

    run(test)


def test_starting_and_stopping_twice_is_not_modified() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        container = await create(client, "sleep")
        for path, expected in (("start", 204), ("start", 304), ("stop", 204), ("stop", 304)):
            async with client.request("POST", f"/containers/{container}/{path}") as answer:
                assert answer.status == expected
                assert await answer.read() == b""

    run(test)


def test_attach_before_start_sees_everything_and_ends() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        container = await create(client, "both")
        query = {"stream": 1, "stdout": 1, "stderr": 1}
        stream = await client.hijack(f"/containers/{container}/attach", query=query)
        await client.json("POST", f"/containers/{container}/start")
        assert [f async for f in frames(stream)] == [(1, b"out\n"), (2, b"err\n")]
        await stream.aclose()

    run(test)


def test_a_half_close_ends_stdin_while_output_goes_on() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        container = await create(client, "cat", OpenStdin=True, StdinOnce=True)
        query = {"stream": 1, "stdin": 1, "stdout": 1, "stderr": 1}
        stream = await client.hijack(f"/containers/{container}/attach", query=query)
        await client.json("POST", f"/containers/{container}/start")
        block = b"0123456789abcdef" * 4096

        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                for _ in range(160):
                    await stream.send_all(block)
                await stream.send_eof()

            got = b"".join([data async for _, data in frames(stream)])
        assert got == block * 160
        await stream.aclose()

    run(test)


def test_a_vanished_client_of_a_silent_attach_is_noticed_after_its_half_close() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        container = await create(client, "sleep", OpenStdin=True)
        await client.json("POST", f"/containers/{container}/start")
        query = {"stream": 1, "stdin": 1, "stdout": 1}
        stream = await client.hijack(f"/containers/{container}/attach", query=query)
        await stream.send_eof()
        (attachment,) = toy.engine.attachments
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not attachment.closed
        await stream.aclose()
        while not attachment.closed:
            await trio.sleep(0.001)
        assert toy.engine.container(container).status is ContainerStatus.RUNNING

    run(test)


def test_detach_keys_in_two_writes_end_the_stream_and_not_the_process() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        container = await create(client, "cat", OpenStdin=True, Tty=True)
        await client.json("POST", f"/containers/{container}/start")
        query = {"stream": 1, "stdin": 1, "stdout": 1}
        stream = await client.hijack(f"/containers/{container}/attach", query=query)
        await stream.send_all(b"x\x10")
        assert await stream.receive_some() == b"x"
        await stream.send_all(b"\x11")
        assert await stream.receive_some() == b""
        await stream.aclose()
        assert toy.engine.container(container).status is ContainerStatus.RUNNING
        with pytest.raises(Invalid, match="Invalid detach keys"):
            await client.hijack(f"/containers/{container}/attach", query={"detachKeys": "ctrl-1,x"})

    run(test)


def test_an_exec_tells_its_code_as_soon_as_its_stream_ends() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        container = await create(client, "sleep")
        await client.json("POST", f"/containers/{container}/start")
        for words, output, code in (
            (["echo", "hi"], b"hi\n", 0),
            (["exit", "3"], b"", 3),
            (["nope"], b"executable file not found in $PATH\r\n", 127),
        ):
            value = {"Cmd": words, "AttachStdout": True, "AttachStderr": True}
            made = await client.json("POST", f"/containers/{container}/exec", value=value)
            path = f"/exec/{made['Id']}"
            stream = await client.hijack(f"{path}/start", value={"Detach": False, "Tty": False})
            got = b"".join([data async for _, data in frames(stream)])
            assert got.endswith(output)
            await stream.aclose()
            told = await client.json("GET", f"{path}/json")
            assert (told["Running"], told["ExitCode"]) == (False, code)

    run(test)


@pytest.mark.parametrize(
    ("version", "tty", "upgrade", "kind"),
    [
        ("v1.41", False, True, "raw-stream"),
        ("v1.42", False, True, "multiplexed-stream"),
        ("v1.47", True, True, "raw-stream"),
        ("v1.47", False, False, "raw-stream"),
    ],
)
def test_the_type_of_a_hijacked_stream(version: str, tty: bool, upgrade: bool, kind: str) -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        container = await create(client, "sleep", Tty=tty)
        switch = "Connection: Upgrade\nUpgrade: tcp\n" if upgrade else ""
        head, _ = await raw(
            toy,
            f"POST /{version}/containers/{container}/attach?stream=1&stdout=1 HTTP/1.1\n"
            f"Host: x\nContent-Length: 0\n{switch}",
        )
        assert head.splitlines()[0] == ("HTTP/1.1 101 UPGRADED" if upgrade else "HTTP/1.1 200 OK")
        assert f"Content-Type: application/vnd.docker.{kind}" in head
        assert "Api-Version: 1.47" in head

    run(test)


def test_logs_are_framed_timed_and_end_with_the_container() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        container = await create(client, "both")
        await client.json("POST", f"/containers/{container}/start")
        path = f"/containers/{container}/logs"
        query = {"stdout": 1, "stderr": 1, "follow": 1, "timestamps": 1}
        async with client.request("GET", path, query=query) as answer:
            assert answer.headers["content-type"].endswith("multiplexed-stream")
            lines = [f async for f in frames(answer)]
        assert [(s, d.partition(b"Z ")[2]) for s, d in lines] == [(1, b"out\n"), (2, b"err\n")]
        assert len(lines[0][1].partition(b" ")[0]) == len("2026-11-24T20:00:00.000000000Z")
        async with client.request("GET", path, query={"stderr": 1, "tail": 1}) as answer:
            assert [f async for f in frames(answer)] == [(2, b"err\n")]
        with pytest.raises(Invalid, match="at least one stream"):
            await client.json("GET", path)

    run(test)


def test_lists_filter_by_both_forms_and_never_show_null() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        assert await client.json("GET", "/containers/json") == []
        one = await create(client, "sleep", name="one", Labels={"a": "b", "c": ""})
        await create(client, "sleep", name="two", Labels={"a": "x"})
        await client.json("POST", f"/containers/{one}/start")
        for filters, names in (
            ({"label": {"a=b": True}}, ["/one"]),
            ({"label": ["a"]}, ["/two", "/one"]),
            ({"label": ["a=b", "c"]}, ["/one"]),
            ({"status": ["created"]}, ["/two"]),
            ({"name": ["^/o"]}, ["/one"]),
            ({"ancestor": ["busybox:latest"]}, ["/two", "/one"]),
            ({"ancestor": ["other"]}, []),
            ({"network": ["bridge"]}, ["/two", "/one"]),
        ):
            query = {"all": "True", "filters": json.dumps(filters)}
            rows = await client.json("GET", "/containers/json", query=query)
            assert [row["Names"][0] for row in rows] == names, filters
        (row,) = await client.json("GET", "/containers/json", query={"all": "false"})
        assert row["Ports"] == []
        assert row["Mounts"] == []

    run(test)


def test_names_clash_with_docker_s_sentence() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        first = await create(client, "sleep", name="one")
        with pytest.raises(Conflict, match=f'"/one" is already in use by container "{first}"'):
            await create(client, "sleep", name="one")
        with pytest.raises(NotFound, match="No such image: absent:latest"):
            await create(client, "sleep", Image="absent")

    run(test)


def test_a_program_that_cannot_run_fails_the_start() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        container = await create(client, "nosuch")
        with pytest.raises(Invalid, match="executable file not found"):
            await client.json("POST", f"/containers/{container}/start")

    run(test)


def test_events_stream_from_now_with_flat_labels() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        query = {"filters": json.dumps({"event": ["create", "die"]})}
        async with client.request("GET", "/events", query=query) as answer:
            chunks = aiter(answer)
            container = await create(client, "exit", "4", name="one")
            await client.json("POST", f"/containers/{container}/start")
            made, died = json.loads(await anext(chunks)), json.loads(await anext(chunks))
        assert (made["Action"], made["status"], made["id"]) == ("create", "create", container)
        assert died["Actor"]["Attributes"]["exitCode"] == "4"
        assert died["from"] == "busybox"

    run(test)


def test_images_load_save_tag_and_go() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        async def archive() -> Any:
            yield b"image "
            yield b"web:1"

        said = [v async for v in client.lines("POST", "/images/load", body=archive())]
        assert said == [{"stream": "Loaded image: web:1\n"}]
        with pytest.raises(Invalid, match="no image archive"):
            [v async for v in client.lines("POST", "/images/load", body=b"x" * 100_000)]
        async with client.request("GET", "/images/get", query={"names": "web:1"}) as answer:
            assert answer.headers["content-type"] == "application/x-tar"
            assert await answer.read() == b"image web:1"
        query = {"repo": "127.0.0.1:5000/a/web", "tag": "2"}
        await client.json("POST", "/images/web:1/tag", query=query)
        shown = await client.json("GET", "/images/127.0.0.1:5000/a/web:2/json")
        assert shown["RepoTags"] == ["web:1", "127.0.0.1:5000/a/web:2"]
        assert shown == await client.json("GET", "/images/127.0.0.1%3A5000%2Fa%2Fweb%3A2/json")
        gone = await client.json("DELETE", "/images/web:1")
        assert gone[-1] == {"Deleted": shown["Id"]}

    run(test)


def test_an_image_in_use_is_kept() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        await create(client, "sleep", name="user")
        with pytest.raises(Conflict, match="container user is using"):
            await client.json("DELETE", "/images/busybox")

    run(test)


def test_volumes_and_networks() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        assert await client.json("GET", "/volumes") == {"Volumes": [], "Warnings": None}
        made = await client.json("POST", "/volumes/create", value={"Name": "data", "Driver": ""})
        assert made["Name"] == "data"
        anonymous = await client.json("POST", "/volumes/create", value={})
        assert len(anonymous["Name"]) == 64
        with pytest.raises(Invalid, match="use local"):
            await client.json("POST", "/volumes/create", value={"Driver": "nfs"})
        await client.json("DELETE", "/volumes/data")
        names = [n["Name"] for n in await client.json("GET", "/networks")]
        assert names == ["bridge", "host", "none"]
        assert (await client.json("GET", "/networks/bbb"))["Name"] == "bridge"
        with pytest.raises(Failed, match="when creating the container"):
            await client.json("POST", "/networks/bridge/connect", value={"Container": "x"})

    run(test)


def test_the_node_protocol_in_model_values() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        node = NodeClient(toy.opener)
        assert await node.facts() == FACTS
        assert (await node.observed()).sequence == 1
        assert (await node.wait_observed(1, 0.05)).sequence == 1
        digests = {"cluster": "1", "tasks": "2"}
        assert await node.put_assignment(5, digests, {"tasks": []}) == ("cluster",)
        assert (await node.assignment_digests())[0] == 0
        assert await node.put_assignment(5, digests, {"cluster": {}, "tasks": []}) == ()
        assert await node.assignment_digests() == (5, digests)
        assert await node.assignment_bodies() == {"cluster": {}, "tasks": []}
        with pytest.raises(Conflict, match="below the stored 5"):
            await node.put_assignment(4, digests, {})
        assert (await node.wait_observed(1, 10)).applied == 5

        content = bytes(3 << 20)
        digest = "sha256:bbd05cf6097ac9b1f89ea29d2542c1b7b67ee46848393895f5a9e43fa1f621e5"
        assert await node.missing_blobs([digest]) == (digest,)

        async def chunks() -> Any:
            for start in range(0, len(content), 1 << 20):
                yield content[start : start + (1 << 20)]

        await node.put_blob(digest, chunks())
        assert await node.missing_blobs([digest]) == ()
        async with node.blob(digest) as received:
            assert b"".join([c async for c in received]) == content
        with pytest.raises(Invalid, match="digest is"):
            await node.put_blob("sha256:" + "0" * 64, chunks())
        with pytest.raises(NotFound):
            async with node.blob("sha256:" + "0" * 64):
                pass
        assert (await node.put_image(digest, ["web:1"])).names == ("web:1",)
        await node.aclose()

    run(test)


def test_a_server_that_goes_away_makes_its_callers_errors_unavailable() -> None:
    async def main() -> None:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                async with served() as toy:
                    node = NodeClient(toy.opener)

                    @nursery.start_soon
                    async def wait() -> None:
                        with pytest.raises(Unavailable, match="does not answer"):
                            await node.wait_observed(1, 100)

                    await trio.testing.wait_all_tasks_blocked(0.05)

    trio.run(main)


def test_stats_has_two_samples_at_once_or_one_each_second_and_zeros_when_nothing_runs() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        made = await create(client, "sleep", name="busy")
        idle = await client.json("GET", "/containers/busy/stats", query={"stream": False})
        assert idle["read"].startswith("0001") and idle["memory_stats"] == {}
        await client.json("POST", "/containers/busy/start")
        value = await client.json("GET", "/containers/busy/stats", query={"stream": False})
        now, before = value["cpu_stats"], value["precpu_stats"]
        share = (now["cpu_usage"]["total_usage"] - before["cpu_usage"]["total_usage"]) / (
            now["system_cpu_usage"] - before["system_cpu_usage"]
        )
        assert share * now["online_cpus"] == 0.5
        assert (value["name"], value["id"]) == ("/busy", made)
        assert value["memory_stats"]["limit"] == 8 << 30
        assert value["memory_stats"]["stats"] == {"inactive_file": 1 << 20}
        assert value["networks"]["eth0"]["tx_bytes"] == 20
        assert value["blkio_stats"]["io_service_bytes_recursive"] == [
            {"major": 8, "minor": 0, "op": "read", "value": 4096}
        ]
        once = {"stream": False, "one-shot": True}
        value = await client.json("GET", "/containers/busy/stats", query=once)
        assert value["preread"].startswith("0001")
        seen = []
        async for value in client.lines("GET", "/containers/busy/stats"):
            seen.append(value)
            if len(seen) == 2:
                break
        assert seen[0]["preread"].startswith("0001") and seen[1]["preread"] == seen[0]["read"]

    run(test)


def test_changes_and_sizes_come_in_dockers_shapes() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        await create(client, "true", name="writer")
        assert await client.json("GET", "/containers/writer/changes") == [
            {"Path": "/tmp", "Kind": 0},
            {"Path": "/tmp/new", "Kind": 1},
            {"Path": "/bin/ls", "Kind": 2},
        ]
        query = {"all": True, "size": True}
        (row,) = await client.json("GET", "/containers/json", query=query)
        assert (row["SizeRw"], row["SizeRootFs"]) == (100, 1100)
        disk = await client.json("GET", "/system/df")
        assert disk["Containers"][0]["SizeRw"] == 100 and disk["BuildCache"] == []
        assert [image["Containers"] for image in disk["Images"]] == [1]

    run(test)


def test_a_prune_takes_what_is_not_used_and_not_kept_by_a_filter() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        await create(client, "sleep", name="runs")
        await client.json("POST", "/containers/runs/start")
        kept = await create(client, "true", name="kept", Labels={"keep": "yes"})
        gone = await create(client, "true", name="gone")
        query = {"filters": json.dumps({"label!": ["keep"]})}
        done = await client.json("POST", "/containers/prune", query=query)
        assert done == {"ContainersDeleted": [gone], "SpaceReclaimed": 100}
        left = await client.json("GET", "/containers/json", query={"all": True})
        assert {row["Id"] for row in left} >= {kept} and len(left) == 2
        await client.json("POST", "/volumes/create", value={"Name": "named"})
        done = await client.json("POST", "/volumes/prune")
        assert done == {"VolumesDeleted": [], "SpaceReclaimed": 0}
        query = {"filters": json.dumps({"all": ["true"]})}
        done = await client.json("POST", "/volumes/prune", query=query)
        assert done == {"VolumesDeleted": ["named"], "SpaceReclaimed": 50}
        await client.json("POST", "/networks/create", value={"Name": "idle"})
        done = await client.json("POST", "/networks/prune")
        assert done == {"NetworksDeleted": ["idle"]}
        assert await client.json("POST", "/networks/prune") == {"NetworksDeleted": None}
        done = await client.json("POST", "/images/prune")
        assert done == {"ImagesDeleted": None, "SpaceReclaimed": 0}

    run(test)


def test_files_travel_as_tar_with_a_head_that_says_what_they_are() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        await create(client, "true", name="box")
        where = "/containers/box/archive?path=/etc/motd"
        head, body = await raw(toy, f"HEAD {where} HTTP/1.1\nHost: x\nConnection: close\n")
        (text,) = re.findall("X-Docker-Container-Path-Stat: (.*)\r\n", head)
        assert json.loads(base64.b64decode(text)) == {
            "name": "motd",
            "size": 5,
            "mode": 0o755 | 1 << 23,  # set-uid as Go has it
            "mtime": "2023-11-14T22:13:20Z",
            "linkTarget": "",
        }
        assert body == b""
        async with client.request("GET", where) as answer:
            assert await answer.read() == b"hello"
        query = {"path": "/new", "noOverwriteDirNonDir": True}
        async with client.request("PUT", "/containers/box/archive", query=query, body=b"tar"):
            pass
        assert toy.engine.unpacked == [("/new", True, False)]
        async with client.request("GET", "/containers/box/export") as answer:
            assert await answer.read() == b"everything"
        with pytest.raises(NotFound, match="Could not find the file /no in container box"):
            await client.json("GET", "/containers/box/archive", query={"path": "/no"})
        with pytest.raises(Invalid, match="path is empty"):
            await client.json("GET", "/containers/box/archive")

    run(test)


def test_networks_are_made_listed_and_removed_by_hand() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        value = {
            "Name": "mine",
            "Driver": "bridge",
            "Internal": True,
            "Labels": {"a": "b"},
            "IPAM": {"Driver": "default", "Config": []},
            "EnableIPv6": False,
            "CheckDuplicate": True,
        }
        made = await client.json("POST", "/networks/create", value=value)
        assert made["Warning"] == ""
        seen = await client.json("GET", "/networks/mine")
        assert (seen["Id"], seen["Driver"], seen["Internal"]) == (made["Id"], "bridge", True)
        assert seen["Labels"] == {"a": "b"} and seen["Created"] == "1970-01-01T00:00:01Z"
        for label, names in (("a=b", ["mine"]), ("a=c", [])):
            query = {"filters": json.dumps({"label": [label]})}
            found = await client.json("GET", "/networks", query=query)
            assert [n["Name"] for n in found] == names
        await client.json("DELETE", "/networks/mine")
        with pytest.raises(NotFound, match="network mine not found"):
            await client.json("GET", "/networks/mine")
        for name in ("bridge", "host"):
            with pytest.raises(Forbidden, match="pre-defined network and cannot be removed"):
                await client.json("DELETE", f"/networks/{name}")

    run(test)


def test_an_update_changes_what_it_names_and_keeps_the_rest() -> None:
    async def test(toy: Served, client: EngineClient) -> None:
        host = {"Memory": 64 << 20, "NanoCpus": 500_000_000, "PidsLimit": 50}
        await create(client, "sleep", name="box", HostConfig=host)
        value = {"Memory": 32 << 20, "MemorySwap": 32 << 20, "CpuShares": 0, "CpusetCpus": ""}
        assert await client.json("POST", "/containers/box/update", value=value) == {
            "Warnings": None
        }
        value = {"CpuQuota": 50000, "BlkioWeight": 10, "RestartPolicy": {"Name": "always"}}
        done = await client.json("POST", "/containers/box/update", value=value)
        assert done == {"Warnings": ["BlkioWeight is not applied"]}
        seen = (await client.json("GET", "/containers/box/json"))["HostConfig"]
        assert (seen["Memory"], seen["MemorySwap"], seen["PidsLimit"]) == (32 << 20, 32 << 20, 50)
        assert (seen["CpuQuota"], seen["RestartPolicy"]["Name"]) == (50000, "always")
        for value, message in (
            ({"Memory": 128 << 20}, "update the memoryswap at the same time"),
            ({"Devices": [{}]}, "Devices .* cannot be updated"),
            ({"RestartPolicy": {"Name": "odd"}}, "unknown policy 'odd'"),
        ):
            with pytest.raises(Invalid, match=message):
                await client.json("POST", "/containers/box/update", value=value)

    run(test)
