"""Which objects Docker's list filters select. Pure.

Keys of a filter are joined by AND, values of one key by OR, except `label`, where all must fit.
`label=key` means "has the label".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from attrs import evolve

from orchestra.api.call import Filters, flag
from orchestra.api.render import is_running
from orchestra.api.words import moment
from orchestra.model.assignment import AssignedNetwork
from orchestra.model.container import Container, ContainerStatus, Image, LocalVolume
from orchestra.model.errors import Invalid, NotFound
from orchestra.model.event import Event

CONTAINER_KEYS = frozenset(
    {
        "id",
        "name",
        "label",
        "status",
        "health",
        "ancestor",
        "before",
        "since",
        "exited",
        "publish",
        "expose",
        "volume",
        "network",
        "is-task",
        "isolation",
    }
)
PRUNE_KEYS = frozenset({"until", "label", "label!", "dangling", "all"})
IMAGE_KEYS = frozenset({"dangling", "label", "before", "since", "reference", "until"})
VOLUME_KEYS = frozenset({"dangling", "driver", "label", "name"})
NETWORK_KEYS = frozenset({"dangling", "driver", "id", "label", "name", "scope", "type"})
EVENT_KEYS = frozenset(
    {
        "config",
        "container",
        "daemon",
        "event",
        "image",
        "label",
        "network",
        "node",
        "plugin",
        "scope",
        "secret",
        "service",
        "type",
        "volume",
    }
)
BY_BEGINNING = ("health_status", "exec_create", "exec_start")


def has_labels(labels: Mapping[str, str], wanted: Iterable[str]) -> bool:
    """Whether all of "key" or "key=value" are among `labels`."""
    for text in wanted:
        key, equals, value = text.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def is_kept(created: float, labels: Mapping[str, str], filters: Filters, now: float) -> bool:
    """Whether the filters `until`, `label` and `label!` of a prune keep something from it."""
    if any(created >= moment(v, now) for v in filters.get("until", ())):
        return True
    if not has_labels(labels, filters.get("label", ())):
        return True
    return any(has_labels(labels, (text,)) for text in filters.get("label!", ()))


def prunable(container: Container, filters: Filters, now: float) -> bool:
    """Whether `docker container prune` removes it: it does not run and nothing keeps it."""
    status = container.status
    ended = status in (ContainerStatus.CREATED, ContainerStatus.EXITED, ContainerStatus.DEAD)
    return ended and not is_kept(container.created, container.spec.labels, filters, now)


def image_key(name: str) -> str:
    """An image's name with its tag."""
    last = name.rpartition("/")[2]
    return name if ":" in last or "@" in name else f"{name}:latest"


def containers(
    everything: Sequence[Container], filters: Filters, show_all: bool, limit: int | None
) -> list[Container]:
    """The containers of `docker ps`, newest first. Invalid for values that mean nothing."""
    statuses = filters.get("status", ())
    for status in statuses:
        if status not in {s.value for s in ContainerStatus}:
            raise Invalid(f"invalid filter 'status={status}'")
    ordered = sorted(everything, key=lambda c: (c.created, c.id), reverse=True)
    limited = limit is not None and limit > 0
    show_all = show_all or limited or any(filters.get(k) for k in ("status", "before", "since"))
    found = [c for c in ordered if (show_all or is_running(c)) and _fits(c, filters, ordered)]
    return found[:limit] if limited else found


def _fits(container: Container, filters: Filters, everything: Sequence[Container]) -> bool:
    tests: dict[str, Callable[[str], bool]] = {
        "id": lambda v: container.id.startswith(v),
        "name": lambda v: _name_fits(container.name, v),
        "status": lambda v: container.status.value == v,
        "health": lambda v: (container.health.status.value if container.health else "none") == v,
        "ancestor": lambda v: _is_from(container, v),
        "before": lambda v: container.created < _named(everything, v).created,
        "since": lambda v: container.created > _named(everything, v).created,
        "exited": lambda v: _exited(container, v),
        "publish": lambda v: _has_port(container, v, published=True),
        "expose": lambda v: _has_port(container, v, published=False),
        "volume": lambda v: any(
            v in (m.target, container.volumes.get(m.target, m.source))
            for m in container.spec.mounts
        ),
        "network": lambda v: (
            any(v in (e.network, e.network_name) for e in container.spec.endpoints)
            or container.spec.network_mode == v
        ),
        "is-task": lambda v: bool(container.task) == flag(v),
        "isolation": lambda v: v in ("", "default"),
    }
    for key, values in filters.items():
        if key == "label":
            if not has_labels(container.spec.labels, values):
                return False
        elif values and not any(tests[key](value) for value in values):
            return False
    return True


def _name_fits(name: str, pattern: str) -> bool:
    try:
        return bool(re.search(pattern, name) or re.search(pattern, f"/{name}"))
    except re.error as error:
        raise Invalid(f"invalid filter 'name={pattern}': {error}") from None


def _is_from(container: Container, image: str) -> bool:
    if container.spec.image_id.removeprefix("sha256:").startswith(image.removeprefix("sha256:")):
        return True
    return image_key(container.spec.image) == image_key(image)


def _exited(container: Container, code: str) -> bool:
    try:
        wanted = int(code)
    except ValueError:
        raise Invalid(f"invalid filter 'exited={code}'") from None
    return container.status is ContainerStatus.EXITED and container.exit_code == wanted


def _has_port(container: Container, text: str, published: bool) -> bool:
    number, _, protocol = text.partition("/")
    first, _, last = number.partition("-")
    if not first.isdigit() or (last and not last.isdigit()):
        raise Invalid(f"invalid filter: {text!r} is no port")
    wanted = range(int(first), int(last or first) + 1)
    ports = [(p.published if published else p.target, p.protocol) for p in container.spec.ports]
    if not published:
        for key in container.request.get("ExposedPorts") or ():
            target, _, proto = key.partition("/")
            ports.append((int(target), proto or "tcp"))
    return any(n in wanted and p == (protocol or "tcp") for n, p in ports)


def _named(everything: Sequence[Container], ref: str) -> Container:
    for container in everything:
        if ref == container.name or (ref and container.id.startswith(ref)):
            return container
    raise NotFound(f"No such container: {ref}")


def images(everything: Sequence[Image], filters: Filters, now: float) -> list[Image]:
    """The images of `docker images`, newest first; of `reference` their names that fit."""
    wanted = filters.get("reference", ())

    def find(ref: str) -> Image:
        for image in everything:
            if image_key(ref) in image.names or image.id.removeprefix("sha256:").startswith(ref):
                return image
        raise NotFound(f"No such image: {ref}")

    def fitting(image: Image) -> tuple[str, ...]:
        return tuple(n for n in image.names if any(reference_fits(n, w) for w in wanted))

    def fits(image: Image) -> bool:
        for key, values in filters.items():
            if not values:
                continue
            if key == "label" and not has_labels(image.config.labels, values):
                return False
            if key == "dangling" and flag(values[-1]) != (not image.names):
                return False
            if key == "reference" and not fitting(image):
                return False
            if key == "before" and not any(image.created < find(v).created for v in values):
                return False
            if key == "since" and not any(image.created > find(v).created for v in values):
                return False
            if key == "until" and not any(image.created < moment(v, now) for v in values):
                return False
        return True

    found = sorted(filter(fits, everything), key=lambda i: i.created, reverse=True)
    return [evolve(i, names=fitting(i)) for i in found] if wanted else found


def reference_fits(name: str, pattern: str) -> bool:
    """Whether an image's name fits `reference=`: with its tag, or any tag where none is given."""
    repository = name.rpartition(":")[0]
    return fnmatchcase(name, image_key(pattern)) or fnmatchcase(repository, pattern)


def volumes(
    everything: Sequence[LocalVolume], filters: Filters, used: frozenset[str]
) -> list[LocalVolume]:
    def fits(volume: LocalVolume) -> bool:
        for key, values in filters.items():
            if not values:
                continue
            if key == "label" and not has_labels(volume.labels, values):
                return False
            if key == "name" and not any(v in volume.name for v in values):
                return False
            if key == "driver" and "local" not in values:
                return False
            if key == "dangling" and flag(values[-1]) != (volume.name not in used):
                return False
        return True

    return sorted(filter(fits, everything), key=lambda v: v.name)


def network(value: Mapping[str, object], filters: Filters, used: frozenset[str]) -> bool:
    """Whether a rendered network fits; `used` holds the ids of networks with containers."""
    predefined = value["Name"] in ("bridge", "host", "none")
    tests: dict[str, Callable[[str], bool]] = {
        "id": lambda v: str(value["Id"]).startswith(v),
        "name": lambda v: v in str(value["Name"]),
        "driver": lambda v: value["Driver"] == v,
        "scope": lambda v: value["Scope"] == v,
        "type": lambda v: v == ("builtin" if predefined else "custom"),
        "dangling": lambda v: flag(v) == (value["Id"] not in used and not predefined),
    }
    labels = value["Labels"]
    if not has_labels(labels if isinstance(labels, dict) else {}, filters.get("label", ())):
        return False
    return all(
        any(tests[key](item) for item in values)
        for key, values in filters.items()
        if values and key != "label"
    )


def one_network(everything: Sequence[AssignedNetwork], ref: str) -> AssignedNetwork | None:
    """By id, then name, then the unique beginning of an id; Invalid where several fit."""
    for network in everything:
        if ref in (network.id, network.name):
            return network
    found = [n for n in everything if ref and n.id.startswith(ref)]
    if len(found) > 1:
        raise Invalid(f"network {ref} is ambiguous ({len(found)} matches found by id)")
    return found[0] if found else None


def event(value: Event, filters: Filters) -> bool:
    """Whether an event fits; actions with details fit by their beginning."""
    for key, values in filters.items():
        if not values:
            continue
        if key == "type":
            fits = value.type in values
        elif key == "scope":
            fits = "local" in values
        elif key == "event":
            word = value.action.partition(":")[0].strip()
            fits = value.action in values or (word in BY_BEGINNING and word in values)
        elif key == "label":
            fits = has_labels(value.attributes, values)
        elif key == "image":
            names = [value.attributes.get("image")]
            if value.type == "image":
                names += [value.id, value.attributes.get("name")]
            fits = any(name and image_key(name) == image_key(v) for name in names for v in values)
        else:
            name = value.attributes.get("name", "")
            fits = value.type == key and any(v == name or value.id.startswith(v) for v in values)
        if not fits:
            return False
    return True
