"""What clients' create calls mean, and what is refused of them by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra.api.create import REFUSED, create_request, exec_spec, network_wish
from orchestra.api.engine import EndpointWish
from orchestra.model.container import Limits
from orchestra.model.errors import Invalid
from orchestra.model.service import (
    Healthcheck,
    Mount,
    MountType,
    Port,
    PortMode,
    RestartCondition,
    RestartPolicy,
    Ulimit,
)

# As CLI 28 sends `docker run busybox`, shortened.
UNSET: dict[str, Any] = {
    "Hostname": "",
    "Domainname": "",
    "User": "",
    "AttachStdout": True,
    "Tty": False,
    "Env": None,
    "Cmd": ["true"],
    "Image": "busybox",
    "Volumes": {},
    "WorkingDir": "",
    "Entrypoint": None,
    "OnBuild": None,
    "Labels": {},
    "HostConfig": {
        "Binds": None,
        "ContainerIDFile": "",
        "LogConfig": {"Type": "", "Config": {}},
        "NetworkMode": "default",
        "PortBindings": {},
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "VolumesFrom": None,
        "ConsoleSize": [0, 0],
        "CapAdd": None,
        "CgroupnsMode": "",
        "Dns": [],
        "IpcMode": "",
        "PidMode": "",
        "Links": None,
        "OomScoreAdj": 0,
        "PublishAllPorts": False,
        "UTSMode": "",
        "ShmSize": 0,
        "Isolation": "",
        "MemorySwappiness": -1,
        "OomKillDisable": False,
        "PidsLimit": 0,
        "Ulimits": [],
        "BlkioDeviceReadBps": [],
        "Devices": [],
        "DeviceRequests": None,
    },
    "NetworkingConfig": {"EndpointsConfig": {"default": {"IPAMConfig": None, "Aliases": None}}},
}


NO_COPY = {"NoCopy": True}


def made(host: dict[str, Any] | None = None, **body: Any) -> Any:
    """The spec of a create call with some fields set."""
    full = {**UNSET, **body, "HostConfig": {**UNSET["HostConfig"], **(host or {})}}
    return create_request("", full)[0].spec


def test_everything_unset_is_plain_and_warns_of_nothing() -> None:
    request, warnings = create_request("/web", UNSET)
    assert warnings == []
    assert (request.name, request.cmd_given, request.entrypoint_given) == ("web", True, False)
    assert request.networks == {"bridge": EndpointWish()}
    spec = request.spec
    assert (spec.args, spec.network_mode, spec.shm_size) == (("true",), "bridge", 64 << 20)
    assert (spec.limits, spec.restart, spec.healthcheck) == (Limits(), RestartPolicy(), None)


def test_resources_restart_and_health() -> None:
    spec = made(
        {
            "Memory": 64 << 20,
            "NanoCpus": 1_500_000_000,
            "PidsLimit": 50,
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2},
            "Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": 20}],
            "SecurityOpt": ["no-new-privileges", "seccomp=unconfined"],
        },
        Healthcheck={"Test": ["CMD", "x"], "Interval": 1_000_000_000, "Retries": 5},
    )
    assert spec.limits == Limits(memory=64 << 20, cpus=1.5, pids=50)
    assert spec.restart == RestartPolicy(RestartCondition.ON_FAILURE, max_attempts=2)
    assert spec.ulimits == {"nofile": Ulimit(10, 20)}
    assert spec.no_new_privileges
    assert spec.seccomp == "unconfined"
    assert spec.healthcheck == Healthcheck(("CMD", "x"), interval=1.0, retries=5)


def test_ports_are_bound_on_this_host_only() -> None:
    bindings = {"80/tcp": [{"HostIp": "", "HostPort": "8080"}], "53/udp": [{"HostPort": ""}]}
    assert made({"PortBindings": bindings}).ports == (
        Port(80, 8080, mode=PortMode.HOST),
        Port(53, None, "udp", mode=PortMode.HOST),
    )


def test_mounts_of_every_spelling() -> None:
    spec = made(
        {
            "Binds": ["/srv:/a:ro", "vol:/b", "/c"],
            "Mounts": [
                {
                    "Type": "volume",
                    "Source": "v",
                    "Target": "/d",
                    "VolumeOptions": {"NoCopy": True},
                },
                {"Type": "tmpfs", "Target": "/e", "TmpfsOptions": {"SizeBytes": 9, "Mode": 448}},
            ],
            "Tmpfs": {"/f": "size=1m,mode=1777"},
        },
        Volumes={"/g": {}, "/a": {}},
    )
    assert spec.mounts == (
        Mount(MountType.BIND, "/a", "/srv", read_only=True, create_host_path=True),
        Mount(MountType.VOLUME, "/b", "vol"),
        Mount(MountType.VOLUME, "/c"),
        Mount(MountType.VOLUME, "/d", "v", no_copy=True),
        Mount(MountType.TMPFS, "/e", tmpfs_size=9, tmpfs_mode=0o700),
        Mount(MountType.TMPFS, "/f", tmpfs_size=1 << 20, tmpfs_mode=0o1777),
        Mount(MountType.VOLUME, "/g"),
    )


def test_the_network_of_the_container_comes_first() -> None:
    configs = {
        "back": {"Aliases": ["db"]},
        "front": {"IPAMConfig": {"IPv4Address": "10.18.0.9"}},
    }
    body = {**UNSET, "NetworkingConfig": {"EndpointsConfig": configs}}
    body["HostConfig"] = {**UNSET["HostConfig"], "NetworkMode": "net"}
    request, _ = create_request("", body)
    assert list(request.networks) == ["net", "back", "front"]
    assert request.networks["back"] == EndpointWish(aliases=("db",))
    assert request.networks["front"] == EndpointWish(address="10.18.0.9")


@pytest.mark.parametrize("mode", ["none", "host", "container:abc"])
def test_without_a_network_of_its_own_there_is_no_endpoint(mode: str) -> None:
    body = {**UNSET, "HostConfig": {"NetworkMode": mode}}
    assert create_request("", body)[0].networks == {}


@pytest.mark.parametrize("field", [field for field, _, _ in REFUSED])
def test_what_cannot_be_honoured_is_refused_by_name(field: str) -> None:
    with pytest.raises(Invalid, match=field):
        made({field: "something" if field != "PublishAllPorts" else True})


@pytest.mark.parametrize(
    ("host", "body", "text"),
    [
        ({}, {"Image": ""}, "no image is named"),
        ({"RestartPolicy": {"Name": "sometimes"}}, {}, "unknown policy 'sometimes'"),
        ({"AutoRemove": True, "RestartPolicy": {"Name": "always"}}, {}, "AutoRemove"),
        ({"LogConfig": {"Type": "syslog"}}, {}, "no log driver named 'syslog'"),
        ({"Memory": 1000}, {}, "Minimum memory limit"),
        ({"Binds": ["rel/path:/x"]}, {}, "use absolute path"),
        ({"Binds": ["/a:/x", "/b:/x"]}, {}, "Duplicate mount point: /x"),
        ({"Binds": ["/a:x"]}, {}, "must be absolute"),
        ({"Mounts": [{"Type": "npipe", "Target": "/x"}]}, {}, "'npipe' is not served"),
        ({"PortBindings": {"http/tcp": []}}, {}, "invalid port specification: 'http/tcp'"),
        ({"PortBindings": {"80/tcp": [{"HostPort": "a"}]}}, {}, "give a number"),
        ({"SecurityOpt": ["selinux=x"]}, {}, "invalid --security-opt"),
        ({}, {"Healthcheck": {"Test": ["RUN", "x"]}}, "Unknown healthcheck type 'RUN'"),
        ({}, {"Env": "A=b"}, "Env: expected a list of texts"),
    ],
)
def test_bad_values_name_themselves(host: dict[str, Any], body: dict[str, Any], text: str) -> None:
    with pytest.raises(Invalid, match=text.replace("'", ".")):
        made(host, **body)


@pytest.mark.parametrize("name", ["a", "-a", "a b", "a/b", "ä1"])
def test_names_are_of_dockers_alphabet(name: str) -> None:
    with pytest.raises(Invalid, match="Invalid container name"):
        create_request(name, UNSET)


@pytest.mark.parametrize(
    ("text", "port", "span"),
    [("8080", 8080, None), ("", None, None), ("0", None, None), ("8000-8010", None, (8000, 8010)),
     ("8000-8000", 8000, None)],
)  # fmt: skip
def test_a_host_port_is_a_number_a_range_or_any(text: str, port: int | None, span: object) -> None:
    bindings = {"53/udp": [{"HostPort": "53"}], "80/tcp": [{"HostPort": text}]}
    body = {**UNSET, "HostConfig": {**UNSET["HostConfig"], "PortBindings": bindings}}
    request, _ = create_request("", body)
    assert request.spec.ports[1].published == port
    assert dict(request.port_ranges) == ({} if span is None else {1: span})


@pytest.mark.parametrize("text", ["x", "8010-8000", "1-", "-1", "0-10", "70000", "1-70000"])
def test_a_host_port_that_is_none_is_refused(text: str) -> None:
    body = {**UNSET, "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": text}]}}}
    with pytest.raises(Invalid, match="invalid port specification"):
        create_request("", body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"Name": ""}, "invalid network name ''"),
        ({"Name": "../x"}, "invalid network name"),
        ({"Name": "n", "Driver": "overlay"}, "network driver 'overlay' is not served here"),
        ({"Name": "n", "IPAM": {"Config": [{"Subnet": "10.0.0.0/8"}]}}, "IPAM.Config is not"),
        ({"Name": "n", "IPAM": {"Driver": "x"}}, "IPAM.Driver 'x' is not supported"),
        ({"Name": "n", "EnableIPv6": True}, "EnableIPv6 is not supported"),
        ({"Name": "n", "Labels": []}, "Labels: expected an object"),
    ],
)
def test_a_network_that_cannot_be_made_is_refused_by_key(body: Any, message: str) -> None:
    with pytest.raises(Invalid, match=re.escape(message)):
        network_wish(body)


def test_an_exec_needs_a_command() -> None:
    with pytest.raises(Invalid, match="No exec command specified"):
        exec_spec({"Cmd": []})
    spec = exec_spec({"Cmd": ["ls"], "AttachStdin": True, "AttachStdout": True, "Tty": True})
    assert (spec.args, spec.stdin, spec.stdout, spec.stderr, spec.tty) == (
        ("ls",),
        True,
        True,
        False,
        True,
    )


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=5), s, max_size=3),
    max_leaves=5,
)


@settings(max_examples=1000)
@given(st.sampled_from([*UNSET, *UNSET["HostConfig"], "Mounts", "Tmpfs", "Healthcheck"]), anything)
def test_a_field_of_any_shape_is_taken_or_refused_but_never_a_defect(
    field: str, value: object
) -> None:
    body = {**UNSET, "HostConfig": dict(UNSET["HostConfig"])}
    (body if field in UNSET else body["HostConfig"])[field] = value
    if field == "HostConfig" and isinstance(value, dict):
        body["HostConfig"] = value
    try:
        create_request("", body)
    except Invalid:
        pass
