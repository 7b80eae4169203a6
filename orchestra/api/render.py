"""Containers and execs in Docker's JSON shapes. Pure; golden values in the tests pin them.

Lists and maps that clients index are never null; what Docker leaves null when unset stays null.
Every function takes the API version that the client speaks where the shape depends on it.
"""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from orchestra.api.engine import PathStat
from orchestra.api.words import duration, rfc3339
from orchestra.model.assignment import AssignedNetwork
from orchestra.model.container import (
    Container,
    ContainerSpec,
    ContainerStatus,
    Endpoint,
    Exec,
    Health,
)
from orchestra.model.service import Healthcheck, Mount, MountType, RestartCondition
from orchestra.wire.message import Headers

Version = tuple[int, int]
Networks = Mapping[str, AssignedNetwork]  # by id

RUNNING = (ContainerStatus.RUNNING, ContainerStatus.PAUSED, ContainerStatus.RESTARTING)
NANO = 1_000_000_000

MASKED_PATHS = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
]
READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def is_running(container: Container) -> bool:
    """Docker's sense of running: paused and waiting for a restart count."""
    return container.status in RUNNING


def command_words(spec: ContainerSpec) -> tuple[list[str], list[str]]:
    """(entrypoint, command) of a container."""
    cut = len(spec.entrypoint)
    return list(spec.args[:cut]), list(spec.args[cut:])


def command_text(spec: ContainerSpec) -> str:
    """The command as one line; words with blanks in quotes."""
    return " ".join(f"'{w}'" if not w or any(c.isspace() for c in w) else w for w in spec.args)


def status_text(container: Container, now: float) -> str:
    """The STATUS column of `docker ps`, which the server words."""
    status = container.status
    if status is ContainerStatus.CREATED:
        return "Created"
    if status is ContainerStatus.DEAD:
        return "Dead"
    if status is ContainerStatus.REMOVING:
        return "Removal In Progress"
    if status is ContainerStatus.RESTARTING:
        ago = duration(now - container.finished)
        return f"Restarting ({container.exit_code}) {ago} ago"
    if status is ContainerStatus.EXITED:
        ago = duration(now - container.finished)
        return f"Exited ({container.exit_code}) {ago} ago"
    text = f"Up {duration(now - container.started)}"
    if status is ContainerStatus.PAUSED:
        return f"{text} (Paused)"
    if container.health is not None:
        word = container.health.status.value
        text += " (health: starting)" if word == "starting" else f" ({word})"
    return text


def health(value: Health) -> dict[str, Any]:
    return {
        "Status": value.status.value,
        "FailingStreak": value.failing_streak,
        "Log": [
            {
                "Start": rfc3339(probe.started),
                "End": rfc3339(probe.finished),
                "ExitCode": probe.exit_code,
                "Output": probe.output,
            }
            for probe in value.log
        ],
    }


def state(container: Container) -> dict[str, Any]:
    status = container.status
    out: dict[str, Any] = {
        "Status": status.value,
        "Running": is_running(container),
        "Paused": status is ContainerStatus.PAUSED,
        "Restarting": status is ContainerStatus.RESTARTING,
        "OOMKilled": container.oom_killed,
        "Dead": status is ContainerStatus.DEAD,
        "Pid": container.pid if is_running(container) else 0,
        "ExitCode": container.exit_code,
        "Error": container.error,
        "StartedAt": rfc3339(container.started),
        "FinishedAt": rfc3339(container.finished),
    }
    if container.health is not None:
        out["Health"] = health(container.health)
    return out


def healthcheck(check: Healthcheck) -> dict[str, Any]:
    return {
        "Test": list(check.test),
        "Interval": round(check.interval * NANO),
        "Timeout": round(check.timeout * NANO),
        "Retries": check.retries,
        "StartPeriod": round(check.start_period * NANO),
        "StartInterval": round(check.start_interval * NANO),
    }


def config(container: Container) -> dict[str, Any]:
    spec, said = container.spec, container.request
    entrypoint, command = command_words(spec)
    exposed = {f"{port.target}/{port.protocol}" for port in spec.ports}
    exposed |= set(said.get("ExposedPorts") or ())
    out: dict[str, Any] = {
        "Hostname": spec.hostname or container.id[:12],
        "Domainname": spec.domainname,
        "User": spec.user,
        "AttachStdin": bool(said.get("AttachStdin")),
        "AttachStdout": bool(said.get("AttachStdout")),
        "AttachStderr": bool(said.get("AttachStderr")),
        "Tty": spec.tty,
        "OpenStdin": spec.open_stdin,
        "StdinOnce": spec.stdin_once,
        "Env": list(spec.env),
        "Cmd": command or None,
        "Image": spec.image,
        "Volumes": {t: {} for t in said.get("Volumes") or ()} or None,
        "WorkingDir": spec.working_dir,
        "Entrypoint": entrypoint or None,
        "OnBuild": None,
        "Labels": dict(spec.labels),
    }
    if exposed:
        out["ExposedPorts"] = {port: {} for port in sorted(exposed)}
    if spec.healthcheck is not None:
        out["Healthcheck"] = healthcheck(spec.healthcheck)
    if said.get("StopSignal") or spec.stop_signal != "SIGTERM":
        out["StopSignal"] = spec.stop_signal
    if said.get("StopTimeout") is not None:
        out["StopTimeout"] = said["StopTimeout"]
    return out


_RESTART_WORDS = {
    RestartCondition.NONE: "no",
    RestartCondition.ANY: "always",
    RestartCondition.UNLESS_STOPPED: "unless-stopped",
    RestartCondition.ON_FAILURE: "on-failure",
}


def host_config(container: Container, version: Version) -> dict[str, Any]:
    """What the create call said, over the defaults and what the specification says."""
    spec = container.spec
    limits = spec.limits
    said = {k: v for k, v in (container.request.get("HostConfig") or {}).items() if v is not None}
    mode = said.pop("NetworkMode", "") or spec.network_mode
    said.pop("ConsoleSize", None)
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in spec.ports:
        bindings.setdefault(f"{port.target}/{port.protocol}", []).append(
            {"HostIp": port.host_ip, "HostPort": str(port.published or "")}
        )
    out: dict[str, Any] = {
        "Binds": None,
        "ContainerIDFile": "",
        "LogConfig": {"Type": "json-file", "Config": {}},
        "NetworkMode": _network_mode(mode, version),
        "PortBindings": bindings,
        "RestartPolicy": {
            "Name": _RESTART_WORDS[spec.restart.condition],
            "MaximumRetryCount": spec.restart.max_attempts or 0,
        },
        "AutoRemove": spec.auto_remove,
        "VolumeDriver": "",
        "VolumesFrom": None,
        "ConsoleSize": list(spec.console_size),
        "CapAdd": list(spec.cap_add) or None,
        "CapDrop": list(spec.cap_drop) or None,
        "CgroupnsMode": "private",
        "Dns": list(spec.dns),
        "DnsOptions": list(spec.dns_opt),
        "DnsSearch": list(spec.dns_search),
        "ExtraHosts": list(spec.extra_hosts) or None,
        "GroupAdd": list(spec.group_add) or None,
        "IpcMode": "private",
        "Cgroup": "",
        "Links": None,
        "OomScoreAdj": spec.oom_score_adj or 0,
        "PidMode": "",
        "Privileged": spec.privileged,
        "PublishAllPorts": False,
        "ReadonlyRootfs": spec.read_only,
        "SecurityOpt": ["no-new-privileges"] if spec.no_new_privileges else None,
        "UTSMode": "",
        "UsernsMode": "",
        "ShmSize": spec.shm_size,
        "Runtime": "runc",
        "Isolation": "",
        "CpuShares": limits.cpu_shares or 0,
        "Memory": limits.memory or 0,
        "NanoCpus": round((limits.cpus or 0) * NANO),
        "CgroupParent": "",
        "BlkioWeight": 0,
        "BlkioWeightDevice": [],
        "BlkioDeviceReadBps": [],
        "BlkioDeviceWriteBps": [],
        "BlkioDeviceReadIOps": [],
        "BlkioDeviceWriteIOps": [],
        "CpuPeriod": limits.cpu_period or 0,
        "CpuQuota": limits.cpu_quota or 0,
        "CpuRealtimePeriod": 0,
        "CpuRealtimeRuntime": 0,
        "CpusetCpus": limits.cpuset_cpus,
        "CpusetMems": limits.cpuset_mems,
        "Devices": None,
        "DeviceCgroupRules": None,
        "DeviceRequests": None,
        "MemoryReservation": limits.memory_reservation or 0,
        "MemorySwap": limits.memory_swap or (limits.memory or 0) * 2,
        "MemorySwappiness": None,
        "OomKillDisable": None,
        "PidsLimit": limits.pids,
        "Ulimits": [
            {"Name": name, "Soft": limit.soft, "Hard": limit.hard}
            for name, limit in spec.ulimits.items()
        ]
        or None,
        "CpuCount": 0,
        "CpuPercent": 0,
        "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0,
        "MaskedPaths": [] if spec.privileged else MASKED_PATHS,
        "ReadonlyPaths": [] if spec.privileged else READONLY_PATHS,
    }
    if spec.init:
        out["Init"] = True
    if spec.sysctls:
        out["Sysctls"] = dict(spec.sysctls)
    unset: tuple[Any, ...] = ("", 0, -1, False, [], {})
    out.update({key: value for key, value in said.items() if value not in unset or key not in out})
    if out.get("MemorySwappiness") == -1:
        out["MemorySwappiness"] = None
    return out


def _network_mode(mode: str, version: Version) -> str:
    if mode in ("", "default", "bridge"):
        return "bridge" if version >= (1, 44) else "default"
    return mode


def mounts(container: Container, places: Mapping[str, str] = {}) -> list[dict[str, Any]]:
    """`Mounts`; `places` are the directories of volumes by name."""
    return [
        _mount(m, container.volumes.get(m.target, m.source), places) for m in container.spec.mounts
    ]


def _mount(mount: Mount, source: str, places: Mapping[str, str]) -> dict[str, Any]:
    out: dict[str, Any] = {"Type": mount.type.value}
    if mount.type is MountType.VOLUME:
        out |= {"Name": source, "Source": places.get(source, ""), "Driver": "local"}
    else:
        out["Source"] = source
    propagation = mount.propagation or ("rprivate" if mount.type is MountType.BIND else "")
    return out | {
        "Destination": mount.target,
        "Mode": "ro" if mount.read_only else "",
        "RW": not mount.read_only,
        "Propagation": propagation,
    }


def ports_map(container: Container) -> dict[str, list[dict[str, str]] | None]:
    """`NetworkSettings.Ports`: null for exposed only, IPv4 first; empty when stopped."""
    if not is_running(container):
        return {}
    exposed = sorted(container.request.get("ExposedPorts") or ())
    out: dict[str, list[dict[str, str]] | None] = dict.fromkeys(exposed)
    for port in container.spec.ports:
        key = f"{port.target}/{port.protocol}"
        addresses = [port.host_ip] if port.host_ip else ["0.0.0.0", "::"]
        out[key] = (out.get(key) or []) + [
            {"HostIp": address, "HostPort": str(port.published or "")} for address in addresses
        ]
    return out


def ports_list(container: Container) -> list[dict[str, Any]]:
    """`Ports` of the container list; an unpublished port has neither IP nor PublicPort."""
    out: list[dict[str, Any]] = []
    for key, bindings in ports_map(container).items():
        number, _, protocol = key.partition("/")
        private = {"PrivatePort": int(number), "Type": protocol or "tcp"}
        if bindings is None:
            out.append(private)
            continue
        for binding in bindings:
            public = int(binding["HostPort"] or 0)
            out.append({"IP": binding["HostIp"], **private, "PublicPort": public})
    return out


def endpoint_id(container_id: str, network: str) -> str:
    """Docker has an id for each wire; ours follows from what it joins."""
    return sha256(f"{container_id}/{network}".encode()).hexdigest()


def endpoint(
    container: Container, wire: Endpoint, network: AssignedNetwork | None, version: Version
) -> dict[str, Any]:
    up = is_running(container)
    aliases = [*wire.aliases]
    if version < (1, 45):
        aliases.append(container.id[:12])
    out: dict[str, Any] = {
        "IPAMConfig": None,
        "Links": None,
        "Aliases": aliases or None,
        "MacAddress": wire.mac if up else "",
        "DriverOpts": None,
        "NetworkID": wire.network,
        "EndpointID": endpoint_id(container.id, wire.network) if up else "",
        "Gateway": network.gateway if up and network else "",
        "IPAddress": wire.address if up else "",
        "IPPrefixLen": _prefix(network) if up and network else 0,
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
    }
    if version >= (1, 44):
        names = dict.fromkeys(
            (container.name, *wire.aliases, container.id[:12], container.spec.hostname)
        )
        user_defined = wire.network_name != "bridge"
        out["DNSNames"] = [name for name in names if name] if user_defined else None
    return out


def _prefix(network: AssignedNetwork) -> int:
    return int(network.subnet.partition("/")[2] or 0)


def endpoints(
    container: Container, networks: Networks, version: Version
) -> dict[str, dict[str, Any]]:
    out = {}
    for wire in container.spec.endpoints:
        network = networks.get(wire.network)
        name = wire.network_name or (network.name if network else wire.network)
        out[name] = endpoint(container, wire, network, version)
    if not out and container.spec.network_mode in ("host", "none"):
        mode = container.spec.network_mode
        out[mode] = endpoint(container, Endpoint(predefined_id(mode), mode), None, version)
    return out


def predefined_id(name: str) -> str:
    """The id of the networks `host` and `none`, which are the same on every node."""
    return sha256(f"network/{name}".encode()).hexdigest()


def network_settings(container: Container, networks: Networks, version: Version) -> dict[str, Any]:
    wires = endpoints(container, networks, version)
    bridge = wires.get("bridge", {})
    return {
        "Bridge": "",
        "SandboxID": sha256(f"sandbox/{container.id}".encode()).hexdigest(),
        "SandboxKey": "",
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "Ports": ports_map(container),
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": bridge.get("EndpointID", ""),
        "Gateway": bridge.get("Gateway", ""),
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "IPAddress": bridge.get("IPAddress", ""),
        "IPPrefixLen": bridge.get("IPPrefixLen", 0),
        "IPv6Gateway": "",
        "MacAddress": bridge.get("MacAddress", ""),
        "Networks": wires,
    }


def container_inspect(
    container: Container,
    networks: Networks,
    version: Version = (1, 47),
    execs: tuple[str, ...] = (),
    places: Mapping[str, str] = {},
) -> dict[str, Any]:
    """`GET /containers/{id}/json`; `places` are the directories of volumes by name."""
    spec = container.spec
    return {
        "Id": container.id,
        "Created": rfc3339(container.created),
        "Path": spec.args[0] if spec.args else "",
        "Args": list(spec.args[1:]),
        "State": state(container),
        "Image": spec.image_id,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": "",
        "Name": f"/{container.name}",
        "RestartCount": container.restart_count,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": list(execs) or None,
        "HostConfig": host_config(container, version),
        "GraphDriver": {"Name": "overlay2", "Data": None},
        "Mounts": mounts(container, places),
        "Config": config(container),
        "NetworkSettings": network_settings(container, networks, version),
    }


def container_row(
    container: Container,
    now: float,
    networks: Networks,
    version: Version = (1, 47),
    image: str = "",
    places: Mapping[str, str] = {},
) -> dict[str, Any]:
    """One entry of `GET /containers/json`; `image` where the tag has moved on to another one."""
    spec = container.spec
    return {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": image or spec.image,
        "ImageID": spec.image_id,
        "Command": command_text(spec),
        "Created": int(container.created),
        "Ports": ports_list(container),
        "Labels": dict(spec.labels),
        "State": container.status.value,
        "Status": status_text(container, now),
        "HostConfig": {"NetworkMode": _network_mode(spec.network_mode, version)},
        "NetworkSettings": {"Networks": endpoints(container, networks, version)},
        "Mounts": mounts(container, places),
    }


_GO_MODES = (
    (stat.S_ISDIR, 1 << 31),
    (stat.S_ISLNK, 1 << 27),
    (stat.S_ISBLK, 1 << 26),
    (stat.S_ISFIFO, 1 << 25),
    (stat.S_ISSOCK, 1 << 24),
    (stat.S_ISCHR, 1 << 26 | 1 << 21),
)
_GO_BITS = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))


def path_stat_header(found: PathStat) -> Headers:
    """The header that tells clients of `docker cp` what a path is; its mode is Go's os.FileMode."""
    mode = found.mode & 0o777
    mode |= sum(bit for test, bit in _GO_MODES if test(found.mode))
    mode |= sum(bit for flag, bit in _GO_BITS if found.mode & flag)
    value = {
        "name": found.name,
        "size": found.size,
        "mode": mode,
        "mtime": rfc3339(found.mtime),
        "linkTarget": found.link_target,
    }
    text = base64.b64encode(json.dumps(value).encode()).decode("ascii")
    return (("X-Docker-Container-Path-Stat", text),)


def exec_inspect(value: Exec) -> dict[str, Any]:
    """`GET /exec/{id}/json`; ExitCode is null while it runs or before it ran."""
    spec = value.spec
    process: dict[str, Any] = {
        "tty": spec.tty,
        "entrypoint": spec.args[0] if spec.args else "",
        "arguments": list(spec.args[1:]),
        "privileged": spec.privileged,
    }
    if spec.user:
        process["user"] = spec.user
    return {
        "ID": value.id,
        "Running": value.running,
        "ExitCode": value.exit_code,
        "ProcessConfig": process,
        "OpenStdin": spec.stdin,
        "OpenStderr": spec.stderr,
        "OpenStdout": spec.stdout,
        "CanRemove": False,
        "ContainerID": value.container,
        "DetachKeys": spec.detach_keys,
        "Pid": value.pid,
    }
