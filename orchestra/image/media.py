"""OCI and Docker documents as values: descriptors, manifests, indexes, image configurations.

Bytes are parsed once, here at the edge, and kept: a digest names exact bytes, so a document is
never written again from its parsed form, and media types and fields we do not know are no error.
Documents that could be read as two things (a manifest that is also an index) are refused
(CVE-2021-41190). Sources: OCI image-spec 1.1 (manifest.md, image-index.md, config.md), Docker image
manifest version 2 schema 2.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen

from orchestra.image.digest import Digest
from orchestra.model.container import ImageConfig
from orchestra.model.errors import Invalid
from orchestra.model.service import Healthcheck

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})

MANIFEST_LIMIT = 4 << 20  # bytes; distribution-spec: a registry must take 4 MiB
CONFIG_LIMIT = 8 << 20  # bytes
LAYER_LIMIT = 500  # layers of one image; overlayfs takes 500 (fs/overlayfs/params.c)

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"

_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
}
_SECOND = 1_000_000_000
_SHOWN = 12  # platforms in a message


@frozen
class Platform:
    """GOOS, GOARCH and variant, as OCI writes platforms."""

    os: str = "linux"
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def host_platform() -> Platform:
    machine = os.uname().machine
    architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)


@frozen
class Descriptor:
    """What a document says about a blob; `document` is its JSON with all fields, known or not."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(factory=dict)
    platform: Platform | None = None
    document: Mapping[str, Any] = field(factory=dict, eq=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The descriptor's JSON, unknown fields included."""
        out = dict(self.document)
        out.update(mediaType=self.media_type, digest=str(self.digest), size=self.size)
        out.pop("annotations", None)
        if self.annotations:
            out["annotations"] = dict(self.annotations)
        return out


@frozen
class Manifest:
    """One image: its configuration and layers, lowest first; `raw` are the exact bytes."""

    raw: bytes = field(repr=False)
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@frozen
class Index:
    """A list of manifests, one per platform (and attestations, and nested indexes)."""

    raw: bytes = field(repr=False)
    media_type: str
    manifests: tuple[Descriptor, ...]


@frozen
class ImageDocument:
    """An image configuration; `document` holds all of it, `raw` its exact bytes."""

    raw: bytes = field(repr=False)
    platform: Platform
    created: float
    author: str
    comment: str
    diff_ids: tuple[Digest, ...]
    history: tuple[Mapping[str, Any], ...]
    config: ImageConfig
    document: Mapping[str, Any] = field(eq=False, repr=False)


def encode(document: Any) -> bytes:
    """JSON as we write it: compact, keys in the given order, UTF-8."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def decode(raw: bytes, what: str) -> Any:
    """Parse JSON; Invalid names `what`."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{what} is not JSON: {error}") from None


def parse_manifest(raw: bytes, what: str = "manifest") -> Manifest | Index:
    """Parse a manifest or an index of either family; Invalid where it is neither or both."""
    if len(raw) > MANIFEST_LIMIT:
        raise Invalid(f"{what} is larger than {MANIFEST_LIMIT} bytes")
    document = _object(decode(raw, what), what)
    media_type = _text(document, "mediaType", what)
    is_index, is_manifest = "manifests" in document, "config" in document or "layers" in document
    if is_index and is_manifest:
        raise Invalid(f"{what} is both a manifest and an index; refused (CVE-2021-41190)")
    if is_index:
        if media_type in MANIFEST_TYPES:
            raise Invalid(f"{what} calls itself {media_type} but lists manifests")
        items = _objects(document, "manifests", what)
        children = tuple(parse_descriptor(item, f"{what}: manifests") for item in items)
        return Index(raw, media_type or OCI_INDEX, children)
    if not is_manifest:
        raise Invalid(f"{what} is neither an image manifest nor an index")
    if media_type in INDEX_TYPES:
        raise Invalid(f"{what} calls itself {media_type} but has layers")
    config = parse_descriptor(_object(document.get("config"), f"{what}: config"), f"{what}: config")
    items = _objects(document, "layers", what)
    if len(items) > LAYER_LIMIT:
        raise Invalid(f"{what} has {len(items)} layers; overlayfs takes {LAYER_LIMIT} at most")
    layers = tuple(parse_descriptor(item, f"{what}: layers") for item in items)
    return Manifest(raw, media_type or OCI_MANIFEST, config, layers)


def parse_descriptor(document: Mapping[str, Any], what: str) -> Descriptor:
    size = document.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise Invalid(f"{what}: size {size!r} is not a number of bytes")
    platform = None
    if document.get("platform") is not None:
        parts = _object(document["platform"], f"{what}: platform")
        platform = Platform(
            _text(parts, "os", what),
            _text(parts, "architecture", what),
            _text(parts, "variant", what),
        )
    return Descriptor(
        _text(document, "mediaType", what),
        Digest(document.get("digest", "")),
        size,
        _texts(document, "annotations", what),
        platform,
        document,
    )


def select_platform(index: Index, wanted: Platform, what: str) -> Descriptor:
    """The index's entry for `wanted`: same architecture, best variant. Invalid names what it has.

    Entries of platform unknown/unknown are attestations; an index whose only image gives no
    platform is taken as it is.
    """
    images = [
        d for d in index.manifests if d.platform is None or d.platform.architecture != "unknown"
    ]
    fitting = [
        d
        for d in images
        if d.platform is not None
        and (d.platform.os, d.platform.architecture) == (wanted.os, wanted.architecture)
    ]
    for wish in (wanted.variant, ""):
        for descriptor in fitting:
            if descriptor.platform is not None and descriptor.platform.variant == wish:
                return descriptor
    if fitting:
        return fitting[0]
    if len(images) == 1 and images[0].platform is None:
        return images[0]
    platforms = list(dict.fromkeys(str(d.platform or "no platform") for d in images))
    more = ["..."] if len(platforms) > _SHOWN else []
    offered = ", ".join(platforms[:_SHOWN] + more) or "nothing"
    raise Invalid(f"{what} has no image for {wanted}; it offers {offered}")


def parse_image(raw: bytes, what: str = "image configuration") -> ImageDocument:
    """Parse an image configuration of either family (config.md; Docker's has the same shape)."""
    if len(raw) > CONFIG_LIMIT:
        raise Invalid(f"{what} is larger than {CONFIG_LIMIT} bytes")
    document = _object(decode(raw, what), what)
    rootfs = _object(document.get("rootfs"), f"{what}: rootfs")
    diff_ids = rootfs.get("diff_ids") or []
    if not isinstance(diff_ids, list):
        raise Invalid(f"{what}: rootfs.diff_ids is not a list")
    return ImageDocument(
        raw=raw,
        platform=Platform(
            _text(document, "os", what) or "linux",
            _text(document, "architecture", what),
            _text(document, "variant", what),
        ),
        created=parse_time(_text(document, "created", what)),
        author=_text(document, "author", what),
        comment=_text(document, "comment", what),
        diff_ids=tuple(Digest(d) for d in diff_ids),
        history=tuple(_objects(document, "history", what)),
        config=parse_config(document.get("config") or {}, f"{what}: config"),
        document=document,
    )


def parse_config(document: Any, what: str) -> ImageConfig:
    """The `config` object: defaults of containers made of the image."""
    document = _object(document, what)
    return ImageConfig(
        env=_words(document, "Env", what),
        entrypoint=_words(document, "Entrypoint", what),
        cmd=_words(document, "Cmd", what),
        working_dir=_text(document, "WorkingDir", what),
        user=_text(document, "User", what),
        labels=_texts(document, "Labels", what),
        volumes=tuple(_object(document.get("Volumes") or {}, f"{what}: Volumes")),
        exposed_ports=tuple(_object(document.get("ExposedPorts") or {}, f"{what}: ExposedPorts")),
        stop_signal=_text(document, "StopSignal", what),
        healthcheck=_healthcheck(document.get("Healthcheck"), f"{what}: Healthcheck"),
        shell=_words(document, "Shell", what),
        onbuild=_words(document, "OnBuild", what),
    )


def config_document(config: ImageConfig) -> dict[str, Any]:
    """The JSON of a `config` object; what is unset is left out. Inverse of parse_config."""
    out: dict[str, Any] = {
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Env": list(config.env),
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.cmd),
        "Volumes": {path: {} for path in config.volumes},
        "WorkingDir": config.working_dir,
        "Labels": dict(config.labels),
        "StopSignal": config.stop_signal,
        "Shell": list(config.shell),
        "OnBuild": list(config.onbuild),
    }
    check = config.healthcheck
    if check is not None:
        out["Healthcheck"] = {
            "Test": list(check.test),
            "Interval": int(check.interval * _SECOND),
            "Timeout": int(check.timeout * _SECOND),
            "StartPeriod": int(check.start_period * _SECOND),
            "StartInterval": int(check.start_interval * _SECOND),
            "Retries": check.retries,
        }
    return {key: value for key, value in out.items() if value}


def _healthcheck(document: Any, what: str) -> Healthcheck | None:
    """Docker's HealthConfig: durations in nanoseconds, 0 = the default; no test = inherit."""
    if document is None:
        return None
    document = _object(document, what)
    test = _words(document, "Test", what)
    if not test:
        return None
    default = Healthcheck(test)

    def seconds(key: str, otherwise: float) -> float:
        value = document.get(key) or 0
        if not isinstance(value, int) or value < 0:
            raise Invalid(f"{what}: {key} {value!r} is not a number of nanoseconds")
        return value / _SECOND if value else otherwise

    retries = document.get("Retries") or default.retries
    if not isinstance(retries, int):
        raise Invalid(f"{what}: Retries {retries!r} is not a number")
    return Healthcheck(
        test,
        interval=seconds("Interval", default.interval),
        timeout=seconds("Timeout", default.timeout),
        retries=retries,
        start_period=seconds("StartPeriod", default.start_period),
        start_interval=seconds("StartInterval", default.start_interval),
    )


def parse_time(text: str) -> float:
    """RFC 3339 to Unix seconds; 0.0 for "" and for Go's zero time. Invalid for anything else."""
    if not text or text.startswith("0001-01-01"):
        return 0.0
    head, dot, tail = text.partition(".")
    digits = tail.rstrip("Zz").split("+")[0].split("-")[0] if dot else ""
    whole = head + tail[len(digits) :]
    try:
        moment = datetime.datetime.fromisoformat(
            whole.replace("Z", "+00:00").replace("z", "+00:00")
        )
        fraction = float(f"0.{digits}") if digits else 0.0
        return moment.timestamp() + fraction
    except ValueError:
        raise Invalid(f"{text!r} is not a time of RFC 3339") from None


def format_time(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


# What JSON may say where, checked: null and absence mean empty, as Go's decoder reads them.


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Invalid(f"{what} is not a JSON object")
    return value


def _objects(document: Mapping[str, Any], key: str, what: str) -> list[Mapping[str, Any]]:
    items = document.get(key) or []
    if not isinstance(items, list):
        raise Invalid(f"{what}: {key} is not a list")
    return [_object(item, f"{what}: {key}") for item in items]


def _text(document: Mapping[str, Any], key: str, what: str) -> str:
    value = document.get(key) or ""
    if not isinstance(value, str):
        raise Invalid(f"{what}: {key} is not a string")
    return value


def _texts(document: Mapping[str, Any], key: str, what: str) -> Mapping[str, str]:
    value = _object(document.get(key) or {}, f"{what}: {key}")
    _all_text(value.values(), f"{what}: {key}")
    return value


def _words(document: Mapping[str, Any], key: str, what: str) -> tuple[str, ...]:
    value = document.get(key) or []
    if not isinstance(value, list):
        raise Invalid(f"{what}: {key} is not a list of strings")
    _all_text(value, f"{what}: {key}")
    return tuple(value)


def _all_text(values: Iterable[Any], what: str) -> None:
    if not all(isinstance(value, str) for value in values):
        raise Invalid(f"{what} holds something that is not a string")
