"""A project to model values, and the refusal of what orchestra does not honour yet.

Nothing is ignored in silence: each attribute is read here, or refused by name with what to do
instead, or warned about where it changes nothing (`support.py` says which).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import evolve

from orchestra.compose import short
from orchestra.compose.consistency import check_published, replicas
from orchestra.compose.errors import Problems
from orchestra.compose.support import REFUSED, WARNED, WITHIN
from orchestra.compose.tree import Map, Path, Relative, place_of, spell
from orchestra.compose.units import byte_size, duration
from orchestra.compose.values import absolute, address, host_name, not_negative, wrong_values
from orchestra.model.service import (
    Dependency,
    DependencyCondition,
    FileReference,
    Healthcheck,
    Mount,
    MountType,
    Network,
    Placement,
    Port,
    PortMode,
    Resources,
    RestartCondition,
    RestartPolicy,
    Service,
    ServiceMode,
    ServiceNetwork,
    Stack,
    StackFile,
    Ulimit,
    UpdateConfig,
    UpdateOrder,
    Volume,
)

_RESTART = {
    "no": RestartCondition.NONE,
    "always": RestartCondition.ANY,
    "on-failure": RestartCondition.ON_FAILURE,
    "unless-stopped": RestartCondition.UNLESS_STOPPED,
}
# `d:/data` is one path to Docker Compose, on a Windows drive.
_DRIVE = {":": "; a volume's name has two characters or more"}
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


def to_stack(
    tree: Map, read: Callable[[str], bytes], env: Mapping[str, str], problems: Problems
) -> Stack:
    """Build the stack of a consistent project. What is refused goes to `problems`."""
    builder = _Builder(tree, problems)
    check_published(tree, problems)
    services = {
        name: service for name in tree["services"] if (service := builder.service(name)) is not None
    }
    files = {
        key: StackFile(key, content, key.startswith("secret/"))
        for key in dict.fromkeys(
            f.source for s in services.values() for f in (*s.configs, *s.secrets)
        )
        if (content := builder.content(key, read, env)) is not None
    }
    used_networks = {n.network for s in services.values() for n in s.networks}
    used_volumes = {
        m.source for s in services.values() for m in s.mounts if m.type is MountType.VOLUME
    }
    return Stack(
        name=tree["name"],
        services=services,
        networks={k: builder.network(k) for k in tree["networks"] if k in used_networks},
        volumes={k: builder.volume(k) for k in tree["volumes"] if k in used_volumes},
        files=files,
    )


def relative_binds(stack: Stack) -> tuple[tuple[str, str, str], ...]:
    """The binds whose source was written relative: (service, target, source as written)."""
    return tuple(
        (service.name, mount.target, mount.source.written)
        for service in stack.services.values()
        for mount in service.mounts
        if isinstance(mount.source, Relative)
    )


def _given(value: Any) -> bool:
    """Does the attribute say anything? Empty lists and false switches do not."""
    return value is not None and value is not False and value != "" and value != [] and value != {}


class _Builder:
    def __init__(self, tree: Map, problems: Problems) -> None:
        self.tree = tree
        self.problems = problems

    def refuse(self, path: Path, message: str = "is not supported yet; remove it") -> None:
        self.problems.on(self.tree, path, message)

    def warn(self, path: Path, message: str) -> None:
        place = place_of(self.tree, path)
        self.problems.warn(f"{place.file}:{place.line}: {spell(path)}: has no effect: {message}")

    def warn_labels(self, value: Map, path: Path) -> None:
        if value.get("labels"):
            self.warn((*path, "labels"), "labels are kept of services and containers only")

    def refuse_others(self, value: Mapping[str, Any], kind: str, path: Path) -> None:
        """Refuse the keys of `value` that are not honoured in a mapping of that kind."""
        allowed = WITHIN[kind].split()
        for key, inner in value.items():
            if key not in allowed and not key.startswith("x-") and _given(inner):
                self.refuse((*path, key))

    def choice(self, kind: Any, value: Any, default: Any, path: Path) -> Any:
        """The member of an enum that `value` names."""
        if value is None:
            return default
        try:
            return kind(value)
        except ValueError:
            known = ", ".join(m.value for m in kind)
            self.refuse(path, f"must be one of {known}, not {value!r}")
            return default

    # -- services -----------------------------------------------------------------------------

    def service(self, name: str) -> Service | None:
        path: Path = ("services", name)
        value: Map = self.tree["services"][name]
        before = len(self.problems.errors)
        for key, inner in value.items():
            if key in REFUSED and _given(inner):
                self.refuse((*path, key), f"is not supported: {REFUSED[key]}")
            elif key in WARNED:
                self.warn((*path, key), WARNED[key])
        for inner_path, message in wrong_values(value):
            self.refuse((*path, *inner_path), message)
        if len(self.problems.errors) > before:
            return None
        if not _NAME.fullmatch(name):
            self.refuse(path, "a service's name begins with a letter or digit")
        deploy: Map = value.get("deploy") or Map()
        self.refuse_others(deploy, "deploy", (*path, "deploy"))
        mode = self.choice(
            ServiceMode, deploy.get("mode"), ServiceMode.REPLICATED, (*path, "deploy", "mode")
        )
        service = Service(
            name=name,
            image=value.get("image") or "",
            command=_words(value.get("command")),
            entrypoint=_words(value.get("entrypoint")),
            environment=_known(value.get("environment")),
            working_dir=value.get("working_dir") or "",
            user=value.get("user") or "",
            group_add=tuple(value.get("group_add") or ()),
            hostname=value.get("hostname") or "",
            domainname=value.get("domainname") or "",
            container_name=value.get("container_name") or "",
            labels=dict(value.get("labels") or {}),
            deploy_labels=dict(deploy.get("labels") or {}),
            ports=tuple(self.ports(value, path)),
            expose=tuple(value.get("expose") or ()),
            networks=tuple(self.service_networks(value, path)),
            network_mode=self.network_mode(value, path),
            endpoint_mode=self.one_of(
                deploy.get("endpoint_mode") or "vip",
                ("vip", "dnsrr"),
                (*path, "deploy", "endpoint_mode"),
            ),
            mounts=tuple(self.mounts(value, path)),
            configs=tuple(self.files(value, "config", "/", path)),
            secrets=tuple(self.files(value, "secret", "/run/secrets/", path)),
            depends_on=tuple(self.dependencies(value, path)),
            healthcheck=self.healthcheck(value.get("healthcheck"), (*path, "healthcheck")),
            restart=self.restart(value, deploy, mode, path),
            stop_signal=value.get("stop_signal") or "",
            stop_grace_period=_seconds(value.get("stop_grace_period"), 10.0),
            init=bool(value.get("init")),
            tty=bool(value.get("tty")),
            stdin_open=bool(value.get("stdin_open")),
            read_only=bool(value.get("read_only")),
            privileged=bool(value.get("privileged")),
            cap_add=tuple(value.get("cap_add") or ()),
            cap_drop=tuple(value.get("cap_drop") or ()),
            security_opt=tuple(self.security_options(value, path)),
            sysctls=dict(value.get("sysctls") or {}),
            ulimits={k: _ulimit(v) for k, v in (value.get("ulimits") or {}).items()},
            shm_size=int(value["shm_size"]) if value.get("shm_size") else None,
            extra_hosts=tuple(self.extra_hosts(value, path)),
            dns=tuple(value.get("dns") or ()),
            dns_search=tuple(value.get("dns_search") or ()),
            dns_opt=tuple(value.get("dns_opt") or ()),
            mode=mode,
            replicas=replicas(value),
            placement=self.placement(deploy.get("placement") or {}),
            limits=self.resources(value, deploy, "limits", path),
            reservations=self.resources(value, deploy, "reservations", path),
            update=self.update(deploy.get("update_config"), (*path, "deploy", "update_config")),
            profiles=tuple(value.get("profiles") or ()),
        )
        self.check_pull_policy(value, path)
        return service if len(self.problems.errors) == before else None

    def one_of(self, value: str, allowed: Iterable[str], path: Path) -> str:
        if value not in allowed:
            self.refuse(path, f"must be one of {', '.join(allowed)}, not {value!r}")
        return value

    def check_pull_policy(self, value: Map, path: Path) -> None:
        """Images come from the cluster's own stores, so only policies that never ask elsewhere."""
        policy = value.get("pull_policy")
        if policy not in (None, "", "missing", "if_not_present", "never"):
            message = f"{policy!r} is not supported yet: images come from the cluster's store"
            self.refuse((*path, "pull_policy"), f"{message}; remove it")

    def network_mode(self, value: Map, path: Path) -> str:
        mode = value.get("network_mode") or ""
        if mode not in ("", "none", "host"):
            self.refuse((*path, "network_mode"), f"{mode!r} is not supported yet; use networks")
        return mode

    def dependencies(self, value: Map, path: Path) -> Iterable[Dependency]:
        for other, how in (value.get("depends_on") or {}).items():
            if how.get("restart") and "restart" in how.places:  # else it is implied
                self.refuse((*path, "depends_on", other, "restart"))
            if other in self.tree["services"]:  # else disabled, and not required
                yield Dependency(
                    other,
                    DependencyCondition(how.get("condition", "service_started")),
                    bool(how.get("required", True)),
                )

    def ports(self, value: Map, path: Path) -> Iterable[Port]:
        for index, port in enumerate(value.get("ports") or ()):
            at = (*path, "ports", index)
            published = str(port.get("published") or "")
            if "-" in published:
                self.refuse(at, f"a choice of published ports ({published}) is not supported yet")
                continue
            if not (published or "0").isdecimal() or int(published or 0) > 65535:
                self.refuse(at, f"{published!r} is no port within 1-65535")
                continue
            if not 0 < port["target"] < 65536:
                self.refuse(at, f"{port['target']} is no port within 1-65535")
            self.one_of(port["protocol"].lower(), short.PROTOCOLS, (*at, "protocol"))
            yield Port(
                target=port["target"],
                published=int(published or 0) or None,
                protocol=port["protocol"].lower(),
                mode=self.choice(PortMode, port.get("mode"), PortMode.INGRESS, (*at, "mode")),
                host_ip=port.get("host_ip", ""),
                name=port.get("name", ""),
                app_protocol=port.get("app_protocol", ""),
            )

    def service_networks(self, value: Map, path: Path) -> Iterable[ServiceNetwork]:
        for name, how in (value.get("networks") or {}).items():
            how = how or Map()
            self.refuse_others(how, "service network", (*path, "networks", name))
            yield ServiceNetwork(
                network=name,
                aliases=tuple(how.get("aliases") or ()),
                ipv4_address=how.get("ipv4_address") or "",
                priority=int(how.get("priority") or 0),
            )

    def mounts(self, value: Map, path: Path) -> Iterable[Mount]:
        for index, mount in enumerate(value.get("volumes") or ()):
            at = (*path, "volumes", index)
            try:
                kind = MountType(mount["type"])
            except ValueError:
                self.refuse((*at, "type"), f"{mount['type']!r} is not supported yet")
                continue
            self.refuse_others(mount, "mount", at)
            own: Map = mount.get(kind.value) or Map()
            self.refuse_others(own, kind.value, (*at, kind.value))
            if not mount["target"].startswith("/"):
                drive = "" if mount.get("source") else _DRIVE.get(mount["target"][1:2], "")
                message = f"the target {mount['target']!r} must be an absolute path{drive}"
                self.refuse(at, message)
            elif mount["target"] == "/":
                self.refuse(at, "the root itself cannot be a mount; give it a path below")
            if kind is MountType.TMPFS and mount.get("source"):
                self.refuse((*at, "source"), "a tmpfs has no source")
            yield Mount(
                type=kind,
                target=mount["target"],
                source=mount.get("source") or "",
                read_only=bool(mount.get("read_only")),
                propagation=self.one_of(
                    own.get("propagation") or "",
                    ("", *short.PROPAGATIONS),
                    (*at, "bind", "propagation"),
                ),
                create_host_path=kind is MountType.BIND and own.get("create_host_path", True),
                no_copy=bool(own.get("nocopy")),
                subpath=own.get("subpath") or "",
                tmpfs_size=byte_size(own["size"]) if own.get("size") else None,
                tmpfs_mode=own.get("mode"),
            )
        for index, text in enumerate(value.get("tmpfs") or ()):
            yield self.tmpfs(text, (*path, "tmpfs", index))

    def tmpfs(self, text: str, path: Path) -> Mount:
        """`TARGET[:size=64m,mode=1777]`"""
        target, _, options = text.partition(":")
        if wrong := absolute(target or "nothing"):
            self.refuse(path, wrong)
        mount = Mount(MountType.TMPFS, short.clean(target))
        for option in options.split(",") if options else ():
            key, _, value = option.partition("=")
            try:
                if key == "size":
                    mount = evolve(mount, tmpfs_size=byte_size(value))
                    if wrong := not_negative(mount.tmpfs_size):
                        self.refuse(path, wrong)
                elif key == "mode":
                    mount = evolve(mount, tmpfs_mode=int(value, 8))
                elif key == "ro":
                    mount = evolve(mount, read_only=True)
                elif key not in ("rw", "nosuid", "nodev", "noexec"):
                    self.refuse(path, f"the option {key!r} is not supported yet")
            except ValueError as error:
                self.refuse(path, f"{option!r}: {error}")
        return mount

    def files(self, value: Map, kind: str, folder: str, path: Path) -> Iterable[FileReference]:
        for file in value.get(f"{kind}s") or ():
            source = file.get("source")
            if not source:
                continue  # already said by the consistency checks
            target = file.get("target") or source
            if ".." in target.split("/"):
                self.refuse((*path, f"{kind}s"), f"the target {target!r} may not go up with '..'")
            yield FileReference(
                source=f"{kind}/{source}",
                target=target if target.startswith("/") else folder + target,
                uid=str(file.get("uid", "0")),
                gid=str(file.get("gid", "0")),
                mode=0o444 if file.get("mode") is None else file["mode"],
            )

    def healthcheck(self, value: Map | None, path: Path) -> Healthcheck | None:
        if not value:
            return None
        if value.get("disable"):
            return Healthcheck(("NONE",))
        if not value.get("test"):
            self.refuse(
                path, "changing the image's healthcheck without a test is not supported yet"
            )
            return None
        if list(value["test"]) in (["CMD"], ["CMD-SHELL"]):
            self.refuse((*path, "test"), f"{value['test'][0]} needs a command after it")
        check = Healthcheck(
            test=tuple(value["test"]),
            interval=_seconds(value.get("interval"), 30.0),
            timeout=_seconds(value.get("timeout"), 30.0),
            retries=int(value.get("retries") or 3),
            start_period=_seconds(value.get("start_period"), 0.0),
            start_interval=_seconds(value.get("start_interval"), 5.0),
        )
        # Docker's meaning: a duration of 0 asks for the default.
        return evolve(
            check,
            interval=check.interval or 30.0,
            timeout=check.timeout or 30.0,
            start_interval=check.start_interval or 5.0,
        )

    def restart(self, value: Map, deploy: Map, mode: ServiceMode, path: Path) -> RestartPolicy:
        """`deploy.restart_policy` where given (5 s delay), else `restart` (back-off)."""
        policy = deploy.get("restart_policy")
        at: Path = (*path, "deploy", "restart_policy", "condition")
        if policy is not None:
            condition = policy.get("condition") or "any"
            restart = RestartPolicy(
                condition=self.choice(
                    RestartCondition,
                    {"always": "any", "no": "none"}.get(condition, condition),
                    RestartCondition.ANY,
                    at,
                ),
                delay=_seconds(policy.get("delay"), 5.0),
                max_attempts=policy.get("max_attempts") or None,
                window=_seconds(policy.get("window"), 0.0),
            )
        else:
            at = (*path, "restart")
            word, _, count = (value.get("restart") or "no").partition(":")
            if (count and word != "on-failure") or (count and not count.isdecimal()):
                self.refuse(at, f"{value['restart']!r} is not on-failure[:N]")
                count = ""
            if word not in _RESTART:
                self.refuse(at, f"must be one of {', '.join(_RESTART)}, not {word!r}")
            restart = RestartPolicy(
                condition=_RESTART.get(word, RestartCondition.NONE),
                max_attempts=int(count) if count else None,
            )
        job = mode in (ServiceMode.REPLICATED_JOB, ServiceMode.GLOBAL_JOB)
        if job and restart.condition in (RestartCondition.ANY, RestartCondition.UNLESS_STOPPED):
            self.refuse(at, "a job ends: its restart condition must be none or on-failure")
        return restart

    def security_options(self, value: Map, path: Path) -> Iterable[str]:
        for index, option in enumerate(value.get("security_opt") or ()):
            key, _, setting = option.replace("=", ":", 1).partition(":")
            if (key, setting) in (("no-new-privileges", ""), ("no-new-privileges", "true")):
                yield "no-new-privileges:true"
            elif (key, setting) == ("seccomp", "unconfined"):
                yield "seccomp=unconfined"
            elif (key, setting) != ("no-new-privileges", "false"):
                self.refuse((*path, "security_opt", index), f"{option!r} is not supported yet")

    def extra_hosts(self, value: Map, path: Path) -> Iterable[str]:
        for index, entry in enumerate(value.get("extra_hosts") or ()):
            at = (*path, "extra_hosts", index)
            name, _, where = entry.partition("=")
            if where == "host-gateway":
                self.refuse(at, "host-gateway is not supported yet")
            elif wrong := host_name(name) or address(where):
                self.refuse(at, wrong)
            yield f"{name}:{where}"

    def placement(self, value: Mapping[str, Any]) -> Placement:
        return Placement(
            constraints=tuple(value.get("constraints") or ()),
            preferences=tuple(f"spread={p['spread']}" for p in value.get("preferences") or ()),
            max_replicas_per_node=value.get("max_replicas_per_node") or 0,
        )

    def resources(self, value: Map, deploy: Map, side: str, path: Path) -> Resources:
        own: Map = (deploy.get("resources") or {}).get(side) or Map()
        self.refuse_others(own, side, (*path, "deploy", "resources", side))
        names = {
            "limits": ("cpus", "mem_limit", "pids_limit"),
            "reservations": ("", "mem_reservation", ""),
        }
        cpus, memory, pids = (value.get(n) for n in names[side])
        cpus, memory = own.get("cpus", cpus), own.get("memory", memory)
        pids = own.get("pids", pids)
        return Resources(
            cpus=float(cpus) or None if cpus is not None else None,
            memory=int(memory) or None if memory is not None else None,
            pids=int(pids) if pids is not None and int(pids) > 0 else None,
        )

    def update(self, value: Map | None, path: Path) -> UpdateConfig | None:
        if value is None:
            return None
        self.refuse_others(value, "update", path)
        if value.get("failure_action") not in (None, "pause"):
            message = f"{value['failure_action']!r} is not supported yet; pause is"
            self.refuse((*path, "failure_action"), message)
        return UpdateConfig(
            parallelism=1 if value.get("parallelism") is None else value["parallelism"],
            delay=_seconds(value.get("delay"), 0.0),
            monitor=_seconds(value.get("monitor"), 5.0),
            # Swarm's meaning: an update_config without an order is stop-first.
            order=UpdateOrder(value.get("order") or "stop-first"),
        )

    # -- the other sections -------------------------------------------------------------------

    def network(self, key: str) -> Network:
        path: Path = ("networks", key)
        value: Map = self.tree["networks"][key]
        self.refuse_others(value, "network", path)
        if value.get("driver") not in (None, "", "default", "bridge", "overlay"):
            self.refuse((*path, "driver"), f"{value['driver']!r} is not supported yet")
        if value.get("enable_ipv4") is False:
            self.refuse((*path, "enable_ipv4"), "networks without IPv4 are not supported yet")
        ipam: Map = value.get("ipam") or Map()
        self.refuse_others(ipam, "ipam", (*path, "ipam"))
        if ipam.get("driver") not in (None, "", "default"):
            self.refuse((*path, "ipam", "driver"), f"{ipam['driver']!r} is not supported yet")
        pools = ipam.get("config") or ()
        for index, pool in enumerate(pools):
            self.refuse_others(pool, "subnet", (*path, "ipam", "config", index))
            if index:
                self.refuse(
                    (*path, "ipam", "config", index), "a second subnet is not supported yet"
                )
        self.warn_labels(value, path)
        if value.get("attachable"):
            message = "only the tasks of stacks join the cluster's networks"
            self.warn((*path, "attachable"), message)
        return Network(
            key=key,
            name=value["name"],
            external=bool(value.get("external")),
            internal=bool(value.get("internal")),
            subnet=(pools[0].get("subnet") or "") if pools else "",
            labels=dict(value.get("labels") or {}),
        )

    def volume(self, key: str) -> Volume:
        path: Path = ("volumes", key)
        value: Map = self.tree["volumes"][key]
        self.refuse_others(value, "top-level volume", path)
        if value.get("driver") not in (None, "", "default", "local"):
            self.refuse((*path, "driver"), f"{value['driver']!r} is not supported yet")
        self.warn_labels(value, path)
        return Volume(
            key=key,
            name=value["name"],
            external=bool(value.get("external")),
            labels=dict(value.get("labels") or {}),
        )

    def content(
        self, key: str, read: Callable[[str], bytes], env: Mapping[str, str]
    ) -> bytes | None:
        """The bytes of one config or secret."""
        kind, _, name = key.partition("/")
        path: Path = (f"{kind}s", name)
        value: Map | None = self.tree[f"{kind}s"].get(name)
        if value is None:
            return None  # undefined: already said by the consistency checks
        if value.get("external"):
            self.refuse((*path, "external"), f"external {kind}s are not supported yet")
            return None
        self.refuse_others(value, kind, path)
        if value.get("content") is not None:
            return str(value["content"]).encode()
        if value.get("environment"):
            text = env.get(value["environment"])
            if text is None:
                message = f"the variable {value['environment']} is not set"
                self.refuse((*path, "environment"), message)
            return text.encode() if text is not None else None
        if not value.get("file"):
            return None
        try:
            return read(value["file"])
        except OSError as error:
            self.refuse((*path, "file"), f"cannot read {value['file']}: {error.strerror or error}")
            return None


def _words(value: Any) -> tuple[str, ...] | None:
    return None if value is None else tuple(value)


def _known(value: Mapping[str, str | None] | None) -> dict[str, str]:
    """Variables with a value; one that the caller's environment lacks stays unset."""
    return {k: v for k, v in (value or {}).items() if v is not None}


def _seconds(text: Any, default: float) -> float:
    return default if text is None else duration(text)


def _ulimit(value: Any) -> Ulimit:
    if isinstance(value, Mapping):
        return Ulimit(int(value["soft"]), int(value["hard"]))
    return Ulimit(int(value), int(value))
