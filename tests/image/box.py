"""What the image tests share: archives made with the stdlib's tarfile, which is not our writer,
and a store driven from ordinary functions."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from orchestra.image.images import Images

TIME = 1_600_000_000
OCI = "application/vnd.oci.image"


def run(work: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
    """Run one coroutine function to its end; the test's time limit is pytest's."""
    return trio.run(work, *arguments)


async def stream(data: bytes, piece: int = 64 << 10) -> AsyncIterator[bytes]:
    for at in range(0, len(data), piece):
        yield data[at : at + piece]


def load(images: Images, data: bytes) -> Sequence[str]:
    names: Sequence[str] = run(images.load, stream(data))
    return names


def gathered(chunks: AsyncIterator[bytes]) -> bytes:
    async def gather() -> bytes:
        return b"".join([chunk async for chunk in chunks])

    data: bytes = run(gather)
    return data


# tars


@frozen
class Member:
    info: tarfile.TarInfo
    data: bytes = b""


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **more: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime = kind, len(data), TIME
    for key, value in more.items():
        setattr(info, key, value)
    return Member(info, data)


def file(name: str, data: bytes = b"content", **more: Any) -> Member:
    return member(name, data=data, **more)


def folder(name: str, **more: Any) -> Member:
    return member(name, tarfile.DIRTYPE, **{"mode": 0o755, **more})


def symlink(name: str, target: str) -> Member:
    return member(name, tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> Member:
    return member(name, tarfile.LNKTYPE, linkname=target)


def tar(*members: Member, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for one in members:
            archive.addfile(one.info, io.BytesIO(one.data))
    return buffer.getvalue()


# images


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def configuration(layers: Iterable[bytes], **config: Any) -> bytes:
    """An image configuration over uncompressed `layers`."""
    return as_json(
        {
            "created": "2020-09-13T12:26:40.123456789Z",
            "architecture": machine(),
            "os": "linux",
            "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"], **config},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
            "history": [{"created_by": "test"}],
        }
    )


def machine() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def docker_archive(
    layers: Sequence[bytes], names: Sequence[str] = ("demo:1",), **config: Any
) -> bytes:
    """An archive as Docker 20.10 saves it: layers in folders of their own, a configuration."""
    raw = configuration(layers, **config)
    config_name = f"{digest(raw)[7:]}.json"
    members = [file(config_name, raw)]
    paths = []
    for number, layer in enumerate(layers):
        paths.append(f"{number:064x}/layer.tar")
        members += [folder(f"{number:064x}/"), file(f"{number:064x}/VERSION", b"1.0")]
        members.append(file(paths[-1], layer))
    manifest = [{"Config": config_name, "RepoTags": list(names) or None, "Layers": paths}]
    members.append(file("manifest.json", as_json(manifest)))
    return tar(*members)


@frozen
class Blobs:
    """The blobs of an OCI layout being put together."""

    content: dict[str, bytes]

    @classmethod
    def empty(cls) -> Blobs:
        return cls({})

    def add(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        """Keep a blob; its descriptor."""
        name = digest(data)
        self.content[name] = data
        return {"mediaType": media_type, "digest": name, "size": len(data), **more}

    def image(
        self,
        layers: Sequence[bytes],
        pack: Callable[[bytes], bytes] | None = None,
        suffix: str = "",
        **config: Any,
    ) -> dict[str, Any]:
        """Keep an image, its layers packed by `pack`; the descriptor of its manifest."""
        raw = self.add(configuration(layers, **config), f"{OCI}.config.v1+json")
        packed = [pack(layer) if pack else layer for layer in layers]
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": raw,
            "layers": [self.add(layer, f"{OCI}.layer.v1.tar{suffix}") for layer in packed],
        }
        return self.add(as_json(manifest), f"{OCI}.manifest.v1+json")

    def index(self, *manifests: Mapping[str, Any]) -> dict[str, Any]:
        document = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json"}
        data = as_json({**document, "manifests": list(manifests)})
        return self.add(data, f"{OCI}.index.v1+json")

    def archive(self, *targets: Mapping[str, Any], name: str = "demo:1") -> bytes:
        """The layout as one tar; `name` goes to the first target ("": to none)."""
        lines = [dict(target) for target in targets]
        if name:
            lines[0]["annotations"] = {"org.opencontainers.image.ref.name": name}
        index = as_json({"schemaVersion": 2, "manifests": lines})
        members = [file("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')]
        for blob, data in self.content.items():
            members.append(file(f"blobs/{blob.replace(':', '/')}", data))
        return tar(*members, file("index.json", index))


def tree(root: str | Path) -> dict[str, tuple[Any, ...]]:
    """Everything below a folder: path -> kind, mode, owner, and content, target or device."""
    found: dict[str, tuple[Any, ...]] = {}
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            kind = status.st_mode & 0o170000
            content: Any = None
            if kind == 0o100000:
                content = Path(path).read_bytes()
            elif kind == 0o120000:
                content = os.readlink(path)
            elif kind in (0o020000, 0o060000):
                content = (os.major(status.st_rdev), os.minor(status.st_rdev))
            owner = (status.st_uid, status.st_gid)
            key = os.path.relpath(path, root)
            found[key] = (oct(kind), oct(status.st_mode & 0o7777), owner, content)
    return found


def leftovers(root: str | Path) -> list[str]:
    """What lies in a store's tmp, where only unfinished work may lie."""
    return sorted(os.listdir(Path(root, "tmp")))
