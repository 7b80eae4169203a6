"""Images, networks, volumes, events and the host itself in Docker's JSON shapes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from orchestra import __version__
from orchestra.api.answers import API_VERSION, MIN_API_VERSION
from orchestra.api.render import Version, endpoint_id, healthcheck, is_running, predefined_id
from orchestra.api.words import NEVER, rfc3339, rfc3339_ns
from orchestra.model.assignment import AssignedNetwork
from orchestra.model.container import Container, ContainerStatus, Image, ImageConfig, LocalVolume
from orchestra.model.event import Event
from orchestra.model.local_network import LocalNetwork
from orchestra.model.node import NodeFacts

ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


def image_config(config: ImageConfig) -> dict[str, Any]:
    out: dict[str, Any] = {
        "Hostname": "",
        "Domainname": "",
        "User": config.user,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "Tty": False,
        "OpenStdin": False,
        "StdinOnce": False,
        "Env": list(config.env),
        "Cmd": list(config.cmd) or None,
        "Image": "",
        "Volumes": {path: {} for path in config.volumes} or None,
        "WorkingDir": config.working_dir,
        "Entrypoint": list(config.entrypoint) or None,
        "OnBuild": list(config.onbuild) or None,
        "Labels": dict(config.labels) or None,
    }
    if config.exposed_ports:
        out["ExposedPorts"] = {port: {} for port in config.exposed_ports}
    if config.stop_signal:
        out["StopSignal"] = config.stop_signal
    if config.shell:
        out["Shell"] = list(config.shell)
    if config.healthcheck is not None:
        out["Healthcheck"] = healthcheck(config.healthcheck)
    return out


def image_inspect(image: Image, version: Version = API_VERSION) -> dict[str, Any]:
    """`GET /images/{name}/json`."""
    config = image_config(image.config)
    out: dict[str, Any] = {
        "Id": image.id,
        "RepoTags": list(image.names),
        "RepoDigests": list(image.digests),
        "Parent": "",
        "Comment": image.comment,
        "Created": rfc3339(image.created),
        "DockerVersion": "",
        "Author": image.author,
        "Config": config,
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size,
        "GraphDriver": {"Name": "overlay2", "Data": None},
        "RootFS": {"Type": "layers", "Layers": list(image.layers)},
        "Metadata": {"LastTagTime": NEVER},
    }
    if image.variant:
        out["Variant"] = image.variant
    if version < (1, 44):
        out["VirtualSize"] = image.size
    if version < (1, 45):
        out |= {"Container": "", "ContainerConfig": config}
    return out


def image_row(image: Image, version: Version = API_VERSION) -> dict[str, Any]:
    """One entry of `GET /images/json`."""
    names, digests = list(image.names), list(image.digests)
    if version < (1, 43):
        names = names or ["<none>:<none>"]
        digests = digests or ["<none>@<none>"]
    out: dict[str, Any] = {
        "Id": image.id,
        "ParentId": "",
        "RepoTags": names,
        "RepoDigests": digests,
        "Created": int(image.created),
        "Size": image.size,
        "SharedSize": -1,
        "Labels": dict(image.config.labels) or None,
        "Containers": -1,
    }
    if version < (1, 44):
        out["VirtualSize"] = image.size
    return out


def image_history(image: Image) -> list[dict[str, Any]]:
    """`GET /images/{name}/history`, newest first; inner layers have no id of their own.

    The store knows the size of the whole image only: it stands with the first step that made one.
    """
    out: list[dict[str, Any]] = []
    for step in reversed(image.history):
        out.append(
            {
                "Id": "<missing>",
                "Created": _unix(step.get("created", "")),
                "CreatedBy": step.get("created_by", ""),
                "Tags": None,
                "Size": 0,
                "Comment": step.get("comment", ""),
            }
        )
    if not out:
        out.append(
            {"Id": "", "Created": 0, "CreatedBy": "", "Tags": None, "Size": 0, "Comment": ""}
        )
        out[0]["Created"] = int(image.created)
    out[0] |= {"Id": image.id, "Tags": list(image.names) or None}
    out[-1]["Size"] = image.size
    return out


def _unix(text: str) -> int:
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except ValueError:
        return 0


def network_value(
    network: AssignedNetwork,
    containers: Sequence[Container] | None = None,
    made: LocalNetwork | None = None,
) -> dict[str, Any]:
    """A network; `containers` (running ones on it) are shown by inspection only. `made` is what
    is known besides of one that was made by hand."""
    members = {}
    prefix = network.subnet.partition("/")[2]
    for container in containers or ():
        for wire in container.spec.endpoints:
            if wire.network == network.id and is_running(container):
                members[container.id] = {
                    "Name": container.name,
                    "EndpointID": endpoint_id(container.id, network.id),
                    "MacAddress": wire.mac,
                    "IPv4Address": f"{wire.address}/{prefix}" if wire.address else "",
                    "IPv6Address": "",
                }
    local = network.name == "bridge"
    options = {"com.docker.network.bridge.name": "docker0"} if local else {}
    value = _network(
        network.name,
        network.id,
        driver="bridge" if local or not network.blocks else "overlay",
        ipam=[{"Subnet": network.subnet, "Gateway": network.gateway}] if network.subnet else [],
        internal=network.internal,
        members=members,
        options=made.options if made else options,
    )
    if made:
        value |= {"Created": rfc3339(made.created), "Labels": dict(made.labels)}
    return value


def predefined_network(name: str) -> dict[str, Any]:
    """The networks `host` and `none`, which always exist."""
    driver = "host" if name == "host" else "null"
    return _network(name, predefined_id(name), driver=driver)


def _network(
    name: str,
    network_id: str,
    *,
    driver: str,
    ipam: Sequence[Mapping[str, str]] = (),
    internal: bool = False,
    members: Mapping[str, Any] = {},
    options: Mapping[str, str] = {},
) -> dict[str, Any]:
    return {
        "Name": name,
        "Id": network_id,
        "Created": NEVER,
        "Scope": "local",
        "Driver": driver,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": list(ipam)},
        "Internal": internal,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": dict(members),
        "Options": dict(options),
        "Labels": {},
    }


def volume_value(volume: LocalVolume) -> dict[str, Any]:
    labels = dict(volume.labels)
    if volume.anonymous:
        labels.setdefault("com.docker.volume.anonymous", "")
    return {
        "CreatedAt": rfc3339_ns(int(volume.created) * 1_000_000_000, cut=True),
        "Driver": "local",
        "Labels": labels or None,
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Options": dict(volume.options) or None,
        "Scope": "local",
    }


def event_value(event: Event) -> dict[str, Any]:
    """An event under API 1.52: `status`, `id` and `from` stand for containers and images too."""
    out: dict[str, Any] = {}
    if event.type in ("container", "image"):
        out = {"status": event.action, "id": event.id}
        if event.type == "container":
            out["from"] = event.attributes.get("image", "")
    return out | {
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": event.id, "Attributes": dict(event.attributes)},
        "scope": "local",
        "time": event.time_ns // 1_000_000_000,
        "timeNano": event.time_ns,
    }


def version_value(facts: NodeFacts | None) -> dict[str, Any]:
    """`GET /version`."""
    api = "{}.{}".format(*API_VERSION)
    lowest = "{}.{}".format(*MIN_API_VERSION)
    kernel = facts.kernel if facts else ""
    architecture = facts.architecture if facts else ""
    return {
        "Platform": {"Name": "orchestra"},
        "Version": __version__,
        "ApiVersion": api,
        "MinAPIVersion": lowest,
        "Os": "linux",
        "Arch": architecture,
        "KernelVersion": kernel,
        "GitCommit": "",
        "GoVersion": "",
        "BuildTime": "",
        "Experimental": False,
        "Components": [
            {
                "Name": "Engine",
                "Version": __version__,
                "Details": {
                    "ApiVersion": api,
                    "MinAPIVersion": lowest,
                    "Arch": architecture,
                    "Os": "linux",
                    "KernelVersion": kernel,
                    "GitCommit": "",
                    "GoVersion": "",
                    "BuildTime": "",
                    "Experimental": "false",
                },
            }
        ],
    }


def info_value(
    facts: NodeFacts, containers: Sequence[Container], images: int, now: float
) -> dict[str, Any]:
    """`GET /info`."""
    paused = sum(c.status is ContainerStatus.PAUSED for c in containers)
    running = sum(is_running(c) for c in containers) - paused
    return {
        "ID": facts.id,
        "Name": facts.name or facts.hostname,
        "Containers": len(containers),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": len(containers) - running - paused,
        "Images": images,
        "Driver": "overlay2",
        "DriverStatus": [["Backing Filesystem", "overlay"]],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "null", "overlay"],
            "Authorization": None,
            "Log": ["json-file"],
        },
        "MemoryLimit": True,
        "SwapLimit": True,
        "CpuCfsPeriod": True,
        "CpuCfsQuota": True,
        "CPUShares": True,
        "CPUSet": True,
        "PidsLimit": True,
        "IPv4Forwarding": True,
        "Debug": False,
        "NFd": 0,
        "OomKillDisable": False,
        "NGoroutines": 0,
        "SystemTime": rfc3339(now),
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": str(facts.cgroup_version),
        "NEventsListener": 0,
        "KernelVersion": facts.kernel,
        "OperatingSystem": facts.os,
        "OSVersion": "",
        "OSType": "linux",
        "Architecture": ARCHITECTURES.get(facts.architecture, facts.architecture),
        "IndexServerAddress": "",
        "RegistryConfig": {"IndexConfigs": {}, "InsecureRegistryCIDRs": [], "Mirrors": []},
        "NCPU": int(facts.cpus),
        "MemTotal": facts.memory,
        "GenericResources": None,
        "DockerRootDir": "/var/lib/orchestra",
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Labels": [f"{key}={value}" for key, value in facts.labels.items()],
        "ExperimentalBuild": False,
        "ServerVersion": __version__,
        "Runtimes": {"runc": {"path": "orchestra"}},
        "DefaultRuntime": "runc",
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
        "LiveRestoreEnabled": True,
        "Isolation": "",
        "InitBinary": "",
        "ContainerdCommit": {"ID": "", "Expected": ""},
        "RuncCommit": {"ID": "", "Expected": ""},
        "InitCommit": {"ID": "", "Expected": ""},
        "SecurityOptions": ["name=seccomp,profile=builtin"],
        "Warnings": list(facts.problems) or None,
    }
