"""The bodies of create and exec calls, parsed into model values. Pure.

Clients send every field of their version, mostly unset: 0, "", null, -1 and empty lists mean so.
A field that is set and cannot be honoured is refused by name with the remedy, or, where the
container works without it, becomes a warning; nothing is dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict, evolve

from orchestra.api.engine import CreateRequest, EndpointWish, NetworkWish, UpdateWish
from orchestra.model.container import Container, ContainerSpec, ExecSpec, Limits
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

NAME = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")
NANO = 1_000_000_000

# Set to anything but unset, these are refused: (field, values that are fine, remedy).
REFUSED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("VolumesFrom", (), "name the volumes themselves with -v"),
    ("Links", (), "put both containers on one network: they find each other by name"),
    ("Devices", (), "use a privileged container where a device is needed"),
    ("DeviceRequests", (), "devices such as GPUs are not handed to containers yet"),
    ("DeviceCgroupRules", (), "use a privileged container where a device is needed"),
    ("PidMode", ("private",), "containers have a pid namespace of their own"),
    ("IpcMode", ("private", "shareable", "none"), "containers have an ipc namespace of their own"),
    ("UTSMode", ("private",), "set a hostname instead"),
    ("UsernsMode", ("host",), "user namespaces are not used"),
    ("CgroupnsMode", ("private",), "containers have a cgroup namespace of their own"),
    ("CgroupParent", (), "the agent chooses the cgroup"),
    ("Isolation", ("default",), "there is one kind of isolation on Linux"),
    ("VolumeDriver", ("local",), "use the local driver"),
    ("StorageOpt", (), "there is no size limit on a container's root"),
)
WARNED = (
    "BlkioWeight",
    "BlkioWeightDevice",
    "BlkioDeviceReadBps",
    "BlkioDeviceWriteBps",
    "BlkioDeviceReadIOps",
    "BlkioDeviceWriteIOps",
    "CpuRealtimePeriod",
    "CpuRealtimeRuntime",
    "KernelMemory",
    "MemorySwappiness",
    "OomKillDisable",
)
RUNTIMES = ("", "runc", "io.containerd.runc.v2")
LOG_DRIVERS = ("", "json-file", "local")


def create_request(name: str, body: Mapping[str, Any]) -> tuple[CreateRequest, list[str]]:
    """Parse a create call. Returns it with warnings; Invalid names the field."""
    if name and not NAME.fullmatch(name):
        raise Invalid(
            f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )
    if not body:
        raise Invalid("config cannot be empty in order to create a container")
    host = _object(body, "HostConfig")
    for field, fine, remedy in REFUSED:
        value = host.get(field)
        if _is_set(value) and value not in fine:
            raise Invalid(f"HostConfig.{field} {value!r} is not supported: {remedy}")
    if host.get("Runtime", "") not in RUNTIMES:
        raise Invalid(f"unknown or invalid runtime name: {host['Runtime']}; leave it out")
    logs = _object(host, "LogConfig")
    if logs.get("Type", "") not in LOG_DRIVERS:
        raise Invalid(
            f"logger: no log driver named {logs['Type']!r} is registered; json-file is served"
        )
    warnings = [f"HostConfig.{f} is not applied" for f in WARNED if _is_set(host.get(f))]
    auto_remove = bool(host.get("AutoRemove"))
    restart = _restart(_object(host, "RestartPolicy"))
    if auto_remove and restart.condition is not RestartCondition.NONE:
        raise Invalid("can't create 'AutoRemove' container with restart policy")
    network_mode = _text(host, "NetworkMode")
    network_mode = "bridge" if network_mode in ("", "default") else network_mode
    no_new_privileges, seccomp, notes = _security(_strings(host, "SecurityOpt"))
    spec = ContainerSpec(
        image=_text(body, "Image"),
        image_id="",
        args=_words(body, "Cmd"),
        entrypoint=_words(body, "Entrypoint"),
        env=_strings(body, "Env"),
        working_dir=_text(body, "WorkingDir"),
        user=_text(body, "User"),
        group_add=_strings(host, "GroupAdd"),
        hostname=_text(body, "Hostname"),
        domainname=_text(body, "Domainname"),
        labels={str(k): str(v) for k, v in _object(body, "Labels").items()},
        mounts=_mounts(body, host),
        tty=bool(body.get("Tty")),
        open_stdin=bool(body.get("OpenStdin")),
        stdin_once=bool(body.get("StdinOnce")),
        console_size=_console(host.get("ConsoleSize")),
        stop_signal=_text(body, "StopSignal"),
        stop_grace=float(_integer(body, "StopTimeout", 10)),
        cap_add=_strings(host, "CapAdd"),
        cap_drop=_strings(host, "CapDrop"),
        privileged=bool(host.get("Privileged")),
        read_only=bool(host.get("ReadonlyRootfs")),
        init=bool(host.get("Init")),
        no_new_privileges=no_new_privileges,
        seccomp=seccomp,
        limits=_limits(host),
        ulimits=_ulimits(host),
        sysctls={str(k): str(v) for k, v in _object(host, "Sysctls").items()},
        shm_size=_integer(host, "ShmSize", 0) or 64 << 20,
        oom_score_adj=_integer(host, "OomScoreAdj", 0) or None,
        network_mode=network_mode,
        ports=_ports(_object(host, "PortBindings")),
        extra_hosts=_strings(host, "ExtraHosts"),
        dns=_strings(host, "Dns"),
        dns_search=_strings(host, "DnsSearch"),
        dns_opt=_strings(host, "DnsOptions"),
        restart=restart,
        healthcheck=_healthcheck(_object(body, "Healthcheck")),
        auto_remove=auto_remove,
    )
    if not spec.image:
        raise Invalid("no image is named: Image is empty")
    request = CreateRequest(
        name=name.removeprefix("/"),
        spec=spec,
        entrypoint_given=body.get("Entrypoint") is not None,
        cmd_given=body.get("Cmd") is not None,
        networks=_networks(body, network_mode),
        port_ranges=_port_ranges(_object(host, "PortBindings")),
        body=body,
    )
    return request, warnings + notes


def exec_spec(body: Mapping[str, Any]) -> ExecSpec:
    """Parse the body of an exec's creation."""
    args = _words(body, "Cmd")
    if not args:
        raise Invalid("No exec command specified")
    return ExecSpec(
        args=args,
        env=_strings(body, "Env"),
        working_dir=_text(body, "WorkingDir"),
        user=_text(body, "User"),
        tty=bool(body.get("Tty")),
        stdin=bool(body.get("AttachStdin")),
        stdout=bool(body.get("AttachStdout")),
        stderr=bool(body.get("AttachStderr")),
        privileged=bool(body.get("Privileged")),
        console_size=_console(body.get("ConsoleSize")),
        detach_keys=_text(body, "DetachKeys"),
    )


def update_wish(body: Mapping[str, Any], container: Container) -> tuple[UpdateWish, list[str]]:
    """Parse an update of a container: what is not set stays. Returns it with warnings."""
    for field, _, remedy in REFUSED:
        if _is_set(body.get(field)):
            raise Invalid(f"{field} {body[field]!r} cannot be updated: {remedy}")
    warnings = [f"{f} is not applied" for f in WARNED if _is_set(body.get(f))]
    spec = container.spec
    said = {f: v for f, v in asdict(_limits(body)).items() if v not in (None, "")}
    if "cpus" in said:
        said |= {"cpu_period": None, "cpu_quota": None}
    elif {"cpu_period", "cpu_quota"} & said.keys():
        said["cpus"] = None
    limits = evolve(spec.limits, **said)
    if limits.memory and limits.memory_swap and 0 < limits.memory_swap < limits.memory:
        raise Invalid(
            "Memory limit should be smaller than already set memoryswap limit, update the "
            "memoryswap at the same time"
        )
    restart = spec.restart
    policy = _object(body, "RestartPolicy")
    if _text(policy, "Name"):
        restart = _restart(policy)
        if spec.auto_remove and restart.condition is not RestartCondition.NONE:
            raise Invalid("Restart policy cannot be updated because AutoRemove is enabled")
    host = {**(container.request.get("HostConfig") or {})}
    host |= {k: v for k, v in body.items() if k != "RestartPolicy" and _is_set(v)}
    if _text(policy, "Name"):
        host["RestartPolicy"] = dict(policy)
    return UpdateWish(limits, restart, host), warnings


def network_wish(body: Mapping[str, Any]) -> tuple[str, NetworkWish]:
    """Parse the body of a network's creation: its name, and what it shall be."""
    name, driver = _text(body, "Name"), _text(body, "Driver")
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", name):
        raise Invalid(f"invalid network name {name!r}: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    if driver not in ("", "default", "bridge"):
        raise Invalid(
            f"network driver {driver!r} is not served here: leave it out; networks over several "
            "nodes come with stacks (`orchestra up`)"
        )
    ipam = _object(body, "IPAM")
    if ipam.get("Config"):
        raise Invalid("IPAM.Config is not supported: the node chooses the subnet, leave it out")
    if _text(ipam, "Driver") not in ("", "default"):
        raise Invalid(f"IPAM.Driver {ipam['Driver']!r} is not supported: leave it out")
    for key, remedy in (
        ("EnableIPv6", "networks are IPv4"),
        ("Ingress", "every published port answers on every node anyway"),
        ("ConfigOnly", "make the network itself"),
    ):
        if body.get(key):
            raise Invalid(f"{key} is not supported: {remedy}")
    labels = {str(k): str(v) for k, v in _object(body, "Labels").items()}
    options = {str(k): str(v) for k, v in _object(body, "Options").items()}
    return name, NetworkWish(bool(body.get("Internal")), labels, options)


def _is_set(value: Any) -> bool:
    return value not in (None, "", 0, -1, [], {})


def _object(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = body.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Invalid(f"{key}: expected an object, got {value!r}")
    return value


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Invalid(f"{key}: expected a text, got {value!r}")
    return value


def _integer(body: Mapping[str, Any], key: str, default: int) -> int:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Invalid(f"{key}: expected a whole number, got {value!r}")
    return value


def _strings(body: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = body.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Invalid(f"{key}: expected a list of texts, got {value!r}")
    return tuple(value)


def _objects(body: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = body.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Invalid(f"{key}: expected a list of objects, got {value!r}")
    return value


def _words(body: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = body.get(key)
    return (value,) if isinstance(value, str) else _strings(body, key)


def _console(value: Any) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) for n in value):
        return (value[0], value[1])
    return (0, 0)


def _restart(body: Mapping[str, Any]) -> RestartPolicy:
    words = {
        "": RestartCondition.NONE,
        "no": RestartCondition.NONE,
        "always": RestartCondition.ANY,
        "unless-stopped": RestartCondition.UNLESS_STOPPED,
        "on-failure": RestartCondition.ON_FAILURE,
    }
    name, count = _text(body, "Name"), _integer(body, "MaximumRetryCount", 0)
    if name not in words:
        raise Invalid(f"invalid restart policy: unknown policy '{name}'")
    if count and words[name] is not RestartCondition.ON_FAILURE:
        raise Invalid(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
        )
    return RestartPolicy(condition=words[name], max_attempts=count or None)


def _security(options: Sequence[str]) -> tuple[bool, str, list[str]]:
    no_new_privileges, seccomp, warnings = False, "", []
    for option in options:
        key, _, value = option.replace(":", "=", 1).partition("=")
        if key == "no-new-privileges":
            no_new_privileges = value in ("", "true")
        elif key == "seccomp":
            seccomp = "" if value == "builtin" else option[len("seccomp=") :]
        elif key in ("label", "apparmor", "systempaths") and value in (
            "disable",
            "unconfined",
            "docker-default",
        ):
            warnings.append(f"security option {option} changes nothing here")
        else:
            raise Invalid(
                f"invalid --security-opt: {option!r}; no-new-privileges and seccomp= are served"
            )
    return no_new_privileges, seccomp, warnings


def _limits(host: Mapping[str, Any]) -> Limits:
    def amount(key: str) -> int | None:
        return _integer(host, key, 0) or None

    pids = amount("PidsLimit")
    nano = amount("NanoCpus")
    if nano and (amount("CpuQuota") or amount("CpuPeriod")):
        raise Invalid("Conflicting options: Nano CPUs and CPU Period or Quota cannot both be set.")
    memory, swap = amount("Memory"), amount("MemorySwap")
    if memory and memory < 6 << 20:
        raise Invalid("Minimum memory limit allowed is 6MB")
    if memory and swap and 0 < swap < memory:
        raise Invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
    return Limits(
        memory=memory,
        memory_swap=swap,
        memory_reservation=amount("MemoryReservation"),
        cpus=nano / NANO if nano else None,
        cpu_shares=amount("CpuShares"),
        cpu_period=amount("CpuPeriod"),
        cpu_quota=amount("CpuQuota"),
        cpuset_cpus=_text(host, "CpusetCpus"),
        cpuset_mems=_text(host, "CpusetMems"),
        pids=None if pids is not None and pids < 0 else pids,
    )


def _ulimits(host: Mapping[str, Any]) -> dict[str, Ulimit]:
    limits = {}
    for item in _objects(host, "Ulimits"):
        hard = _integer(item, "Hard", 0)
        limits[_text(item, "Name")] = Ulimit(_integer(item, "Soft", hard), hard)
    return limits


def _healthcheck(body: Mapping[str, Any]) -> Healthcheck | None:
    """None where nothing is said; an empty test with timings means the image's test."""
    test = _strings(body, "Test")
    seconds = {
        "interval": _integer(body, "Interval", 0) / NANO,
        "timeout": _integer(body, "Timeout", 0) / NANO,
        "start_period": _integer(body, "StartPeriod", 0) / NANO,
        "start_interval": _integer(body, "StartInterval", 0) / NANO,
    }
    given = {key: value for key, value in seconds.items() if value}
    retries = _integer(body, "Retries", 0)
    if not test and not given and not retries:
        return None
    if test and test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise Invalid(f"Unknown healthcheck type '{test[0]}'; CMD, CMD-SHELL and NONE are known")
    for key, value in given.items():
        if value < 0.001:
            raise Invalid(f"{key} in Healthcheck cannot be less than 1ms")
    return Healthcheck(test=test, retries=retries or 3, **given)


def _ports(bindings: Mapping[str, Any]) -> tuple[Port, ...]:
    ports = []
    for key in bindings:
        number, _, protocol = key.partition("/")
        protocol = protocol or "tcp"
        if not number.isdigit() or not 0 < int(number) < 65536 or protocol not in ("tcp", "udp"):
            raise Invalid(f"invalid port specification: {key!r}; expected PORT/tcp or PORT/udp")
        for wish in _objects(bindings, key) or [{}]:
            first, last = _span(_text(wish, "HostPort"))
            host = _text(wish, "HostIp")
            ports.append(
                Port(
                    target=int(number),
                    published=first if first == last else None,
                    protocol=protocol,
                    mode=PortMode.HOST,
                    host_ip="" if host == "0.0.0.0" else host,
                )
            )
    return tuple(ports)


def _port_ranges(bindings: Mapping[str, Any]) -> dict[int, tuple[int, int]]:
    """The spans that ports without a number of their own are to be chosen from, by their place."""
    wishes = [wish for key in bindings for wish in _objects(bindings, key) or [{}]]
    spans = (_span(_text(wish, "HostPort")) for wish in wishes)
    return {i: (a, b) for i, (a, b) in enumerate(spans) if a and b and a != b}


def _span(text: str) -> tuple[int | None, int | None]:
    """ "8080", "8000-8010"; (None, None) for nothing and "0", which mean any."""
    first, dash, last = text.partition("-")
    if not text or text == "0":
        return None, None
    numbers = (first, last if dash else first)
    if not all(n.isascii() and n.isdigit() and 0 < int(n) < 65536 for n in numbers):
        raise Invalid(
            f"invalid port specification: {text!r}; give a number, or two as FIRST-LAST "
            "(0 or nothing: any)"
        )
    if int(numbers[0]) > int(numbers[1]):
        raise Invalid(f"invalid port specification: {text!r}: the range ends before it begins")
    return int(numbers[0]), int(numbers[1])


def _networks(body: Mapping[str, Any], network_mode: str) -> dict[str, EndpointWish]:
    if network_mode in ("none", "host") or network_mode.startswith("container:"):
        return {}
    wishes = {}
    configs = _object(_object(body, "NetworkingConfig"), "EndpointsConfig")
    for name in configs:
        settings = _object(configs, name)
        wishes["bridge" if name == "default" else name] = EndpointWish(
            aliases=_strings(settings, "Aliases"),
            address=_text(_object(settings, "IPAMConfig"), "IPv4Address"),
            mac=_text(settings, "MacAddress"),
        )
    if network_mode not in wishes:
        # The network of --network comes first: it is eth0.
        wishes = {network_mode: EndpointWish(mac=_text(body, "MacAddress")), **wishes}
    return wishes


def _mounts(body: Mapping[str, Any], host: Mapping[str, Any]) -> tuple[Mount, ...]:
    mounts: dict[str, Mount] = {}

    def add(mount: Mount) -> None:
        if not mount.target.startswith("/"):
            raise Invalid(f"invalid mount path: '{mount.target}' mount path must be absolute")
        if mount.target in mounts:
            raise Invalid(f"Duplicate mount point: {mount.target}")
        mounts[mount.target] = mount

    for text in _strings(host, "Binds"):
        add(_bind(text))
    for item in _objects(host, "Mounts"):
        add(_mount(item))
    for target, options in _object(host, "Tmpfs").items():
        add(_tmpfs(target, str(options)))
    for target in _object(body, "Volumes"):
        if target not in mounts:
            add(Mount(MountType.VOLUME, target))
    return tuple(mounts.values())


def _bind(text: str) -> Mount:
    """`source:target[:options]` of `-v`; `target` alone is an anonymous volume."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts[:2]):
        raise Invalid(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        return Mount(MountType.VOLUME, parts[0])
    source, target = parts[:2]
    read_only, no_copy, propagation = False, False, ""
    for option in parts[2].split(",") if len(parts) == 3 else ():
        if option in ("ro", "rw"):
            read_only = option == "ro"
        elif option == "nocopy":
            no_copy = True
        elif option in ("private", "rprivate", "shared", "rshared", "slave", "rslave"):
            propagation = option
        elif option not in ("z", "Z", "cached", "delegated", "consistent", "default", ""):
            raise Invalid(f"invalid mode: {option} in volume specification '{text}'")
    if source.startswith("/"):
        return Mount(
            MountType.BIND,
            target,
            source,
            read_only=read_only,
            propagation=propagation,
            create_host_path=True,
        )
    if not NAME.fullmatch(source):
        raise Invalid(
            f'create {source}: "{source}" includes invalid characters for a local volume name, '
            'only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host '
            "directory, use absolute path"
        )
    return Mount(MountType.VOLUME, target, source, read_only=read_only, no_copy=no_copy)


def _mount(item: Mapping[str, Any]) -> Mount:
    kind, target, source = _text(item, "Type"), _text(item, "Target"), _text(item, "Source")
    read_only = bool(item.get("ReadOnly"))
    if kind == "bind":
        options = _object(item, "BindOptions")
        if not source.startswith("/"):
            raise Invalid(f"invalid mount config for type \"bind\": '{source}' is not absolute")
        return Mount(
            MountType.BIND,
            target,
            source,
            read_only=read_only,
            propagation=_text(options, "Propagation"),
            create_host_path=bool(options.get("CreateMountpoint")),
        )
    if kind == "volume":
        options = _object(item, "VolumeOptions")
        driver = _text(_object(options, "DriverConfig"), "Name")
        if driver not in ("", "local"):
            raise Invalid(f"volume driver {driver!r} is not served; use local")
        return Mount(
            MountType.VOLUME,
            target,
            source,
            read_only=read_only,
            no_copy=bool(options.get("NoCopy")),
            subpath=_text(options, "Subpath"),
        )
    if kind == "tmpfs":
        options = _object(item, "TmpfsOptions")
        return Mount(
            MountType.TMPFS,
            target,
            read_only=read_only,
            tmpfs_size=_integer(options, "SizeBytes", 0) or None,
            tmpfs_mode=_integer(options, "Mode", 0) or None,
        )
    raise Invalid(f"mount type {kind!r} is not served: use bind, volume or tmpfs")


_SIZES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def _tmpfs(target: str, options: str) -> Mount:
    size, mode, read_only = None, None, False
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        try:
            if key == "size":
                unit = _SIZES.get(value[-1:].lower(), 1)
                size = int(value[:-1] if unit > 1 else value) * unit
            elif key == "mode":
                mode = int(value, 8)
            elif key in ("ro", "rw"):
                read_only = key == "ro"
            elif key not in ("exec", "noexec", "suid", "nosuid", "dev", "nodev"):
                raise Invalid(f"invalid tmpfs option {option!r} for {target}")
        except ValueError:
            raise Invalid(f"invalid tmpfs option {option!r} for {target}") from None
    return Mount(MountType.TMPFS, target, read_only=read_only, tmpfs_size=size, tmpfs_mode=mode)
