"""A stack as a compose file again: what `orchestra config` prints.

Long forms only, and only what differs from the defaults, so that loading the result gives the same
stack. Contents of secrets are never shown: `origins` of `Loaded` says where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestra.compose.units import spell_duration
from orchestra.model.service import (
    FileReference,
    Healthcheck,
    Mount,
    MountType,
    Port,
    Resources,
    RestartCondition,
    Service,
    ServiceMode,
    Stack,
    StackFile,
    UpdateConfig,
)

_Plain = dict[str, Any]
Origins = Mapping[str, Mapping[str, str]]

# Attributes that are the same in the file and in the model.
_SAME_WORDS = """
    image working_dir user group_add hostname domainname container_name labels expose
    network_mode stop_signal init tty stdin_open read_only privileged cap_add cap_drop
    security_opt sysctls dns dns_search dns_opt profiles environment
"""
_SAME = tuple(_SAME_WORDS.split())


def render(stack: Stack, origins: Origins | None = None) -> _Plain:
    """Return plain data (dicts, lists, scalars) that loads as `stack` again.

    A secret whose origin is not given cannot be loaded again: its content is withheld.
    """
    document: _Plain = {
        "name": stack.name,
        "services": {name: _service(s) for name, s in stack.services.items()},
        "networks": {
            key: _said(
                name=n.name,
                external=n.external,
                internal=n.internal,
                ipam={"config": [{"subnet": n.subnet}]} if n.subnet else None,
                labels=dict(n.labels),
            )
            for key, n in stack.networks.items()
        },
        "volumes": {
            key: _said(
                name=v.name,
                external=v.external,
                labels=dict(v.labels),
            )
            for key, v in stack.volumes.items()
        },
    }
    for kind in ("config", "secret"):
        document[f"{kind}s"] = {
            key.partition("/")[2]: _file(file, (origins or {}).get(key))
            for key, file in stack.files.items()
            if key.startswith(f"{kind}/")
        }
    plain: _Plain = _escaped({k: v for k, v in document.items() if v or k == "services"})
    return plain


def _said(**values: Any) -> _Plain:
    """Only what says something: no None, no empty text or list, no false switch."""
    return {k: v for k, v in values.items() if v or (v == 0 and v is not False)}


def _escaped(value: Any) -> Any:
    """Dollars doubled, as the file's language wants them."""
    if isinstance(value, dict):
        return {k: _escaped(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(v) for v in value]
    return str(value).replace("$", "$$") if isinstance(value, str) else value


def _file(file: StackFile, origin: Mapping[str, str] | None) -> _Plain:
    if origin:
        return dict(origin)
    if file.secret:
        return {"x-content": "withheld"}
    return {"content": file.content.decode("utf-8", "replace")}


def _service(service: Service) -> _Plain:
    value = _said(**{key: _plain(getattr(service, key)) for key in _SAME})
    # An empty command or entrypoint takes the image's away; None leaves it.
    for key in ("command", "entrypoint"):
        words = getattr(service, key)
        if words is not None:
            value[key] = list(words)
    value |= _said(
        ports=[_port(p) for p in service.ports],
        networks={
            n.network: _said(
                aliases=list(n.aliases),
                ipv4_address=n.ipv4_address,
                priority=n.priority or None,
            )
            or None
            for n in service.networks
        },
        volumes=[_mount(m) for m in service.mounts],
        configs=[_reference(r) for r in service.configs],
        secrets=[_reference(r) for r in service.secrets],
        depends_on={
            d.service: {"condition": d.condition.value, "required": d.required}
            for d in service.depends_on
        },
        healthcheck=_healthcheck(service.healthcheck),
        ulimits={k: {"soft": u.soft, "hard": u.hard} for k, u in service.ulimits.items()},
        shm_size=str(service.shm_size) if service.shm_size else None,
        extra_hosts=[h.replace(":", "=", 1) for h in service.extra_hosts],
        deploy=_deploy(service),
    )
    if service.stop_grace_period != 10.0:
        value["stop_grace_period"] = spell_duration(service.stop_grace_period)
    if service.restart.delay is None and service.restart.condition is not RestartCondition.NONE:
        word = {"any": "always"}.get(
            service.restart.condition.value, service.restart.condition.value
        )
        attempts = service.restart.max_attempts
        value["restart"] = f"{word}:{attempts}" if attempts else word
    return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _port(port: Port) -> _Plain:
    published = None if port.published is None else str(port.published)
    return _said(
        name=port.name,
        mode=port.mode.value,
        host_ip=port.host_ip,
        target=port.target,
        published=published,
        protocol=port.protocol,
        app_protocol=port.app_protocol,
    )


def _mount(mount: Mount) -> _Plain:
    value = _said(
        type=mount.type.value,
        source=mount.source,
        target=mount.target,
        read_only=mount.read_only,
    )
    if mount.type is MountType.BIND:
        value["bind"] = _said(propagation=mount.propagation)
        value["bind"]["create_host_path"] = mount.create_host_path
    elif mount.type is MountType.VOLUME:
        value |= _said(volume=_said(nocopy=mount.no_copy, subpath=mount.subpath))
    else:
        size = None if mount.tmpfs_size is None else str(mount.tmpfs_size)
        value |= _said(tmpfs=_said(size=size, mode=mount.tmpfs_mode))
    return value


def _reference(reference: FileReference) -> _Plain:
    return {
        "source": reference.source.partition("/")[2],
        "target": reference.target,
        "uid": reference.uid,
        "gid": reference.gid,
        "mode": f"0{reference.mode:o}",
    }


def _healthcheck(check: Healthcheck | None) -> _Plain | None:
    if check is None:
        return None
    if check.test == ("NONE",):
        return {"disable": True}
    return {
        "test": list(check.test),
        "interval": spell_duration(check.interval),
        "timeout": spell_duration(check.timeout),
        "retries": check.retries,
        "start_period": spell_duration(check.start_period),
        "start_interval": spell_duration(check.start_interval),
    }


def _deploy(service: Service) -> _Plain:
    restart = service.restart
    policy = None
    if restart.delay is not None:
        policy = _said(
            condition=restart.condition.value,
            delay=spell_duration(restart.delay),
            max_attempts=restart.max_attempts,
            window=spell_duration(restart.window),
        )
    placement = service.placement
    replicated = service.mode is ServiceMode.REPLICATED
    return _said(
        mode=None if replicated else service.mode.value,
        replicas=None if service.replicas == 1 else service.replicas,
        endpoint_mode=None if service.endpoint_mode == "vip" else service.endpoint_mode,
        labels=dict(service.deploy_labels),
        placement=_said(
            constraints=list(placement.constraints),
            preferences=[{"spread": p.removeprefix("spread=")} for p in placement.preferences],
            max_replicas_per_node=placement.max_replicas_per_node or None,
        ),
        resources=_said(
            limits=_resources(service.limits), reservations=_resources(service.reservations)
        ),
        restart_policy=policy,
        update_config=_update(service.update),
    )


def _resources(resources: Resources) -> _Plain:
    memory = None if resources.memory is None else str(resources.memory)
    return _said(cpus=resources.cpus, memory=memory, pids=resources.pids)


def _update(update: UpdateConfig | None) -> _Plain | None:
    if update is None:
        return None
    return _said(
        parallelism=update.parallelism,
        delay=spell_duration(update.delay),
        monitor=spell_duration(update.monitor),
        order=update.order.value if update.order else None,
    )
