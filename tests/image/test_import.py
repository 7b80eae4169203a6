"""A root file system's tar becomes an image; `--change` is the Dockerfile's language."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from image.box import file, folder, leftovers, run, stream, tar, tree
from orchestra.image.changes import apply_changes
from orchestra.image.images import Images
from orchestra.model.container import ImageConfig
from orchestra.model.errors import Invalid
from orchestra.model.service import Healthcheck

ROOTFS = tar(folder("etc"), file("etc/os-release", b"x"))
BASE = ImageConfig(env=("A=1",), working_dir="/srv", labels={"k": "v"}, exposed_ports=("1/tcp",))

CHANGES: dict[str, dict[str, Any]] = {
    "CMD run it": {"cmd": ("/bin/sh", "-c", "run it")},
    'CMD ["run", "it"]': {"cmd": ("run", "it")},
    "CMD [run": {"cmd": ("/bin/sh", "-c", "[run")},
    'cmd ["x"]': {"cmd": ("x",)},
    'ENTRYPOINT ["/init"]': {"entrypoint": ("/init",)},
    "ENTRYPOINT exec top": {"entrypoint": ("/bin/sh", "-c", "exec top")},
    "ENV A=2 B='x y' C=\"z\"": {"env": ("A=2", "B=x y", "C=z")},
    "ENV B some  text": {"env": ("A=1", "B=some  text")},
    "ENV B=a=b": {"env": ("A=1", "B=a=b")},
    "ENV B=": {"env": ("A=1", "B=")},
    "EXPOSE 80 443/udp 8000-8002": {
        "exposed_ports": ("1/tcp", "80/tcp", "443/udp", "8000/tcp", "8001/tcp", "8002/tcp")
    },
    "EXPOSE 1/TCP": {"exposed_ports": ("1/tcp",)},
    "LABEL k=w more='a b'": {"labels": {"k": "w", "more": "a b"}},
    "USER 1000:1000": {"user": "1000:1000"},
    "VOLUME /data": {"volumes": ("/data",)},
    'VOLUME ["/a", "/b"]': {"volumes": ("/a", "/b")},
    "VOLUME /a /b": {"volumes": ("/a", "/b")},
    "WORKDIR /app": {"working_dir": "/app"},
    "WORKDIR sub": {"working_dir": "/srv/sub"},
    "STOPSIGNAL SIGQUIT": {"stop_signal": "SIGQUIT"},
    "STOPSIGNAL quit": {"stop_signal": "SIGQUIT"},
    "STOPSIGNAL 9": {"stop_signal": "9"},
    "STOPSIGNAL SIGRTMIN+3": {"stop_signal": "SIGRTMIN+3"},
    "HEALTHCHECK NONE": {"healthcheck": Healthcheck(("NONE",))},
    "HEALTHCHECK CMD curl -f localhost": {
        "healthcheck": Healthcheck(("CMD-SHELL", "curl -f localhost"))
    },
    'HEALTHCHECK --interval=1m30s --timeout=500ms --retries=5 CMD ["a", "b"]': {
        "healthcheck": Healthcheck(("CMD", "a", "b"), interval=90, timeout=0.5, retries=5)
    },
    "HEALTHCHECK --start-period=2s --start-interval=1s CMD x": {
        "healthcheck": Healthcheck(("CMD-SHELL", "x"), start_period=2, start_interval=1)
    },
    "ONBUILD RUN make": {"onbuild": ("RUN make",)},
}


@pytest.mark.parametrize("line", CHANGES)
def test_an_instruction_changes_what_it_names(line: str) -> None:
    changed = apply_changes(BASE, [line])
    for key in ("cmd", "entrypoint", "env", "exposed_ports", "labels", "user", "volumes",
                "working_dir", "stop_signal", "healthcheck", "onbuild"):  # fmt: skip
        wanted = CHANGES[line].get(key, getattr(BASE, key))
        assert getattr(changed, key) == wanted, key


def test_instructions_are_carried_out_in_order() -> None:
    changed = apply_changes(ImageConfig(), ["WORKDIR /a", "WORKDIR b", "ENV X=1", "ENV X=2"])
    assert (changed.working_dir, changed.env) == ("/a/b", ("X=2",))


REFUSED = {
    "": "'' is none of CMD, ENTRYPOINT",
    "RUN make": "'RUN' is none of CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL",
    "CMD": "CMD needs a value",
    "CMD [1]": "may hold strings only",
    "ENV A": "'A' has no value",
    "ENV =x": "'=x' is not KEY=value",
    "ENV A=1 B": "'B' is not KEY=value",
    "ENV A='x": "quotes do not match",
    "EXPOSE http": "'http' is no port",
    "EXPOSE 70000": "no range of ports",
    "EXPOSE 9-1": "no range of ports",
    "USER a b": "USER takes one word",
    "VOLUME data": "volume 'data' is no absolute path",
    "STOPSIGNAL SIGNOPE": "is no signal",
    "STOPSIGNAL 99": "is no signal number",
    "HEALTHCHECK curl": "HEALTHCHECK wants CMD",
    "HEALTHCHECK CMD": "HEALTHCHECK wants CMD",
    "HEALTHCHECK NONE x": "takes nothing else",
    "HEALTHCHECK --often CMD x": "'--often' has no value",
    "HEALTHCHECK --often=1 CMD x": "has no option --often",
    "HEALTHCHECK --interval=5 CMD x": "'5' is no duration",
    "HEALTHCHECK --retries=0 CMD x": "no number above 0",
    "ONBUILD ONBUILD RUN x": "ONBUILD may not hold",
    "ONBUILD FROM x": "ONBUILD may not hold",
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_wrong_instruction_is_refused_with_the_reason(line: str) -> None:
    with pytest.raises(Invalid) as caught:
        apply_changes(BASE, [line])
    assert str(caught.value).startswith(f"cannot apply change {line!r}")
    assert REFUSED[line] in str(caught.value)


def imported(images: Images, data: bytes, name: str, *changes: str, message: str = "") -> str:
    image: str = run(images.import_rootfs, stream(data), name, changes, message)
    return image


@pytest.mark.parametrize("packed", [ROOTFS, gzip.compress(ROOTFS)])
def test_a_root_file_system_becomes_an_image(tmp_path: Path, packed: bytes) -> None:
    images = Images(str(tmp_path))
    identity = imported(images, packed, "base:1", 'CMD ["x"]', "LABEL a=b", message="by hand")
    image = images.get("base:1")
    assert image.id == identity and image.names == ("base:1",)
    assert (image.config.cmd, image.config.labels) == (("x",), {"a": "b"})
    assert image.comment == "by hand" and image.size == len(ROOTFS)
    [layer] = images.lowers(identity)
    assert Path(layer, "etc/os-release").read_bytes() == b"x"


def test_a_root_file_system_may_stay_without_a_name(tmp_path: Path) -> None:
    images = Images(str(tmp_path))
    assert images.get(imported(images, ROOTFS, "")).names == ()


def test_the_layer_is_the_same_however_the_stream_arrives(tmp_path: Path) -> None:
    images = Images(str(tmp_path))
    data = tar(*[file(f"f{n}", bytes([n]) * 100_000) for n in range(30)])
    first = run(images.import_rootfs, stream(data, 1000), "a", ())
    second = run(images.import_rootfs, stream(data, 999_999), "b", ())
    blobs = [set(images.shipment(images.get(i).manifest_digest)) for i in (first, second)]
    assert len(blobs[0] & blobs[1]) == 1  # the layer; configurations have their own times


@pytest.mark.parametrize(
    ("data", "name", "change", "message"),
    [
        (b"", "base", "CMD x", "cannot import image base: the stream is empty"),
        (b"hello" * 300, "base", "CMD x", "cannot import image base: layer .*no tar archive"),
        (ROOTFS, "base", "RUN x", "cannot apply change"),
        (ROOTFS, "BASE", "CMD x", "invalid reference format"),
        (ROOTFS[:1100], "base", "CMD x", "ends early"),
        (gzip.compress(ROOTFS)[:-9], "base", "CMD x", "ends early"),
        (tar(file("../x")), "base", "CMD x", "cannot import image base: layer .*leaves the layer"),
    ],
)
def test_what_cannot_be_imported_leaves_nothing(
    tmp_path: Path, data: bytes, name: str, change: str, message: str
) -> None:
    images = Images(str(tmp_path))
    before = tree(tmp_path)
    with pytest.raises(Invalid, match=message):
        imported(images, data, name, change)
    assert tree(tmp_path) == before and leftovers(tmp_path) == []
