"""`docker cp`: files of running and resting containers, and what tries to get out of them."""

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from .host import wait_until

pytestmark = pytest.mark.usefixtures("nothing_stays")


@pytest.fixture(params=["running", "created", "exited"])
def box(host, request):
    """The name of a container in each state; its /srv is a link to /data, a volume is at /data."""
    script = "ln -s /data /srv; ln -s /etc /data/etc; ln -s ../../../../etc /up; echo ready; "
    script += "sleep 600" if request.param == "running" else "exit 0"
    options = {"Binds": ["boxdata:/data"]}
    host.run_container("sh", "-c", script, name="box", host=options)
    wait_until(lambda: "ready" in host.logs_of("box"), 10)
    if request.param != "running":
        wait_until(lambda: not host.state_of("box")["Running"], 10)
    if request.param == "created":
        host.ok("DELETE", "/containers/box?v=1")
        host.ok(
            "POST",
            "/containers/create?name=box",
            {"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": options},
        )
    return "box"


def tar_of(*entries):
    """A tar of (name, content | link target | None for a directory) entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content, *kind in entries:
            info = tarfile.TarInfo(name)
            info.mtime, info.uid, info.gid = 1_700_000_000, 7, 8
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o750
                tar.addfile(info)
            elif kind:
                info.type, info.linkname = kind[0], content
                tar.addfile(info)
            else:
                info.size, info.mode = len(content), 0o4755
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def put(host, name, path, data, **query):
    words = "".join(f"&{key}={value}" for key, value in query.items())
    return host.call("PUT", f"/containers/{name}/archive?path={path}{words}", raw=data)


def get(host, name, path):
    """{member's name: (TarInfo, content)} of a path."""
    data = host.ok("GET", f"/containers/{name}/archive?path={path}")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {m.name: (m, tar.extractfile(m).read() if m.isfile() else b"") for m in tar}


def test_what_was_copied_in_comes_out_as_it_was(host, box):
    data = tar_of(("made", None), ("made/file", b"content"), ("made/link", "file", tarfile.SYMTYPE),
                  ("made/again", "made/file", tarfile.LNKTYPE))  # fmt: skip
    assert put(host, box, "/root", data)[0] == 200
    found = get(host, box, "/root/made")
    assert list(found) == ["made", "made/again", "made/file", "made/link"]
    info, _ = found["made"]
    assert (info.mode, info.uid, info.gid, info.mtime) == (0o750, 7, 8, 1_700_000_000)
    again, content = found["made/again"]
    assert (again.mode, again.uid, again.mtime, content) == (0o4755, 7, 1_700_000_000, b"content")
    assert found["made/file"][0].islnk() and found["made/link"][0].linkname == "file"


def test_docker_cp_goes_both_ways_and_through_volumes(host, box, tmp_path):
    (tmp_path / "in").write_text("through\n")
    done = host.docker("cp", str(tmp_path / "in"), f"{box}:/data/copied")
    assert done.returncode == 0, done.stderr
    volume = host.ok("GET", "/volumes/boxdata")["Mountpoint"]
    assert Path(volume, "copied").read_text() == "through\n"
    done = host.docker("cp", f"{box}:/data/copied", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_text() == "through\n"
    done = host.docker("cp", f"{box}:/etc/.", str(tmp_path / "etc"))
    assert done.returncode == 0, done.stderr
    assert "root:x:0:0" in (tmp_path / "etc" / "passwd").read_text()
    done = host.docker("cp", f"{box}:/nowhere", str(tmp_path / "x"))
    assert done.returncode == 1 and "/nowhere" in done.stderr


def test_nothing_copied_in_lands_outside_of_the_container(host, box):
    """Links of the container and of the tar lead to the container's own places only."""
    marker = f"escaped-{os.getpid()}"
    assert put(host, box, "/", tar_of(("out", "/etc", tarfile.SYMTYPE)))[0] == 200
    assert put(host, box, "/out", tar_of((marker, b"x")))[0] == 200
    assert marker in {n.rpartition("/")[2] for n in get(host, box, "/etc")}
    status, body = put(host, box, "/", tar_of((f"../../../../../../tmp/{marker}", b"x")))
    assert status == 400 and "leads up" in body["message"]
    tries = tar_of(("deep", "../../../../../../tmp", tarfile.SYMTYPE), (f"deep/{marker}", b"x"))
    put(host, box, "/", tries)
    put(host, box, "/", tar_of(("hard", "../../../../etc/shadow", tarfile.LNKTYPE)))
    for directory in ("/etc", "/tmp", "/"):
        assert not os.path.exists(f"{directory}/{marker}")
    head = subprocess.run(host.enter("ls", "/tmp", "/etc"), capture_output=True, text=True)
    assert marker not in head.stdout


def test_kinds_are_kept_where_asked_and_missing_parents_are_made(host, box):
    assert put(host, box, "/", tar_of(("/etc/app/conf/c.txt", b"1")))[0] == 200
    assert get(host, box, "/etc/app/conf/c.txt")["c.txt"][1] == b"1"
    status, body = put(host, box, "/etc", tar_of(("app", b"file")), noOverwriteDirNonDir=1)
    assert status == 400 and "cannot overwrite directory 'app'" in body["message"]
    assert put(host, box, "/etc", tar_of(("app", b"file")))[0] == 200
    assert get(host, box, "/etc/app")["app"][1] == b"file"
    status, body = put(host, box, "/etc/app", tar_of(("x", b"")))
    assert status == 400 and "extraction point is not a directory" in body["message"]
    assert put(host, box, "/absent", tar_of(("x", b"")))[0] == 404


def test_copies_as_the_user_belong_to_it_and_read_only_roots_refuse(host):
    host.ok("POST", "/containers/create?name=owned", {"Image": "busybox", "User": "nobody"})
    assert put(host, "owned", "/tmp", tar_of(("mine", b"x")), copyUIDGID=1)[0] == 200
    assert get(host, "owned", "/tmp/mine")["mine"][0].uid == 65534
    options = {"ReadonlyRootfs": True, "Binds": ["rwdata:/data"]}
    body = {"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": options}
    host.ok("POST", "/containers/create?name=fixed", body)
    for start in (False, True):
        if start:
            host.ok("POST", "/containers/fixed/start")
        status, answer = put(host, "fixed", "/etc", tar_of(("x", b"")))
        assert status == 403 and "is read-only" in answer["message"]
        assert put(host, "fixed", "/data", tar_of(("x", b"")))[0] == 200


def test_a_container_is_exported_whole_and_nothing_stays_mounted(host):
    host.run_container("sh", "-c", "echo kept > /kept; mkfifo /pipe", name="whole")
    wait_until(lambda: not host.state_of("whole")["Running"], 10)
    data = host.ok("GET", "/containers/whole/export")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.extractfile("./kept").read() == b"kept\n"
        assert stat.S_IFMT(tar.getmember("./pipe").mode) == 0 and tar.getmember("./pipe").isfifo()
    mounts = subprocess.run(host.enter("cat", "/proc/mounts"), capture_output=True, text=True)
    assert str(host.state) not in mounts.stdout and "view-" not in mounts.stdout
    assert not list(host.run.glob("view-*"))
