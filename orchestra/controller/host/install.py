"""Bringing a version of the agent or the controller to life, or back where it does not live.

A role's directory holds its versions, each unpacked wholly or not there, and `current`, a link to
the one that runs. systemd keeps it running where the host booted with it, else a shell loop does.
Law: a role that ran before a failed start runs again after it, from its old version.
"""

import contextlib
import ctypes
import http.client
import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from typing import Any

from orchestra.controller.host.look import identity, package_manager
from orchestra.controller.host.paths import (
    IDENTITY,
    RUN,
    STATE,
    Refused,
    versions,
    write_durably,
)
from orchestra.controller.host.processes import end, loops, of_role, own

KEPT_VERSIONS = 2  # the shim and the resolver may still run from the one before
PATIENCE = 180.0  # seconds for a role to answer: Python starts slowly on small boards
ATTEMPTS = 3  # times that a role's process may end before it is given up

LOOP = """\
#!/bin/sh
# Starts the orchestra {role} again whenever it ends; started at boot where no systemd is.
cd /
mkdir -p {run}
exec </dev/null >{state}/{role}/log 2>&1
while :; do
    {python} -I "$(readlink -f {state}/{role}/current)" {words}
    echo >> {run}/{role}.ends
    sleep 0.3
done
"""

UNIT = """\
[Unit]
Description=orchestra {role}
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=/bin/sh -c 'exec {python} -I "$$(readlink -f {state}/{role}/current)" {words}'
Restart=always
RestartSec=300ms
KillMode=process
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
OOMScoreAdjust=-900

[Install]
WantedBy=multi-user.target
"""


def fetch(request: dict[str, Any]) -> dict[str, Any]:
    """Install packages with the host's own package manager."""
    manager, packages = package_manager(), list(request["packages"])
    verb = ["add"] if manager == "apk" else ["install", "-y"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if manager == "apt-get":
        subprocess.run([manager, "update"], env=env, capture_output=True, check=False)
    done = subprocess.run(
        [manager, *verb, *packages], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        last = done.stdout.decode(errors="replace").strip().splitlines()[-3:]
        raise Refused(f"cannot install {' '.join(packages)}: {' '.join(last)}")
    return {}


def unpack(request: dict[str, Any]) -> dict[str, Any]:
    """Unpack an archive (the rest of stdin) as version `version` of `role`, all or nothing."""
    role, version = str(request["role"]), str(request["version"])
    target = f"{STATE}/{role}/{version}"
    data = sys.stdin.buffer.read()
    if os.path.exists(f"{target}/.complete"):
        return {}
    os.makedirs(STATE, mode=0o700, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    os.makedirs(target, mode=0o755)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            tar.extractall(target)
        if request.get("needs"):
            fetch_libraries(target, list(request["needs"]))
        sync(target)
        with open(f"{target}/.complete", "x"):
            pass
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return {}


def sync(path: str) -> None:
    """Bring everything of the file system of `path` to the disk (syncfs(2))."""
    handle = os.open(path, os.O_RDONLY)
    try:
        if ctypes.CDLL(None).syncfs(handle) != 0:
            raise Refused(f"cannot write {path} to the disk")
    finally:
        os.close(handle)


def fetch_libraries(target: str, needs: list[str]) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target]
    done = subprocess.run([*pip, *needs], capture_output=True)
    if done.returncode:
        raise Refused(
            f"cannot fetch {' '.join(needs)} for {sys.executable}: {done.stderr.decode().strip()}; "
            "the host needs pip (python3-pip) and a package index, or a Python like the pusher's"
        )


def identify(request: dict[str, Any]) -> dict[str, Any]:
    """Write the node's random id, once; the name may change."""
    known = identity() or {"id": secrets.token_hex(16)}
    if known.get("name") != request["name"]:
        os.makedirs(STATE, mode=0o700, exist_ok=True)
        known["name"] = request["name"]
        write_durably(IDENTITY, json.dumps(known))
    return dict(known)


def put_file(request: dict[str, Any]) -> dict[str, Any]:
    """Write a small file under our state directory."""
    path = f"{STATE}/{request['path']}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_durably(path, str(request["text"]))
    return {}


def start(request: dict[str, Any]) -> dict[str, Any]:
    """Make `version` the current one of `role`, (re)start it, wait until its socket answers.

    Only the role's own process ends: the containers, the shim and the resolver live on. Refused
    carries its last words where it does not answer; then the version before runs again.
    """
    role, words, version = str(request["role"]), str(request["words"]), str(request["version"])
    before = current(role)
    run_version(role, version, words)
    try:
        answer = wait_for_answer(role, str(request["socket"]), str(request["path"]))
    except Refused as error:
        if before in (None, version):
            raise
        run_version(role, str(before), words)
        raise Refused(f"{error}. Version {before} runs again") from None
    prune(role, version)
    return {"answer": answer}


def current(role: str) -> "str | None":
    try:
        return os.readlink(f"{STATE}/{role}/current")
    except FileNotFoundError:
        return None


def run_version(role: str, version: str, words: str) -> None:
    directory = f"{STATE}/{role}"
    fresh = f"{directory}/current.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    os.symlink(version, fresh)
    os.rename(fresh, f"{directory}/current")
    values = {"role": role, "state": STATE, "run": RUN, "python": sys.executable, "words": words}
    if systemd():
        write_durably(unit_path(role), UNIT.format(**values), 0o644)
        run("systemctl", "daemon-reload")
        run("systemctl", "enable", "--quiet", f"orchestra-{role}.service")
        run("systemctl", "restart", f"orchestra-{role}.service")
        return
    write_durably(f"{directory}/start", LOOP.format(**values), 0o755)
    end(of_role(role))
    if not loops(role):
        subprocess.Popen(
            [f"{directory}/start"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")},
        )


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise Refused(f"{' '.join(command)}: {done.stderr.decode().strip()}")


def systemd() -> bool:
    """As sd_booted(3)."""
    return os.path.isdir("/run/systemd/system")


def unit_path(role: str) -> str:
    return f"/etc/systemd/system/orchestra-{role}.service"


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self.unix_path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.unix_path)


def wait_for_answer(role: str, path: str, route: str) -> Any:
    """The role's JSON answer to GET `route`. Refused where it keeps ending, or is too slow."""
    deadline = time.monotonic() + PATIENCE
    before = endings(role)
    pause = 0.02
    while True:
        answer, reason = ask(path, route)
        if not reason:
            return answer
        if endings(role) - before > ATTEMPTS:
            raise Refused(f"the {role} keeps ending; its last words: {last_words(role)}")
        if time.monotonic() > deadline:
            raise Refused(
                f"the {role} does not answer ({reason}); its last words: {last_words(role)}"
            )
        time.sleep(pause)
        pause = min(2 * pause, 0.3)


def endings(role: str) -> int:
    """How often the role's process has ended by itself, counted by what keeps it running."""
    if systemd():
        command = ["systemctl", "show", "--property=NRestarts", "--value", f"orchestra-{role}"]
        text = subprocess.run(command, capture_output=True).stdout.decode().strip()
        return int(text) if text.isdigit() else 0
    try:
        with open(f"{RUN}/{role}.ends") as file:
            return len(file.read())
    except FileNotFoundError:
        return 0


def ask(path: str, route: str) -> tuple[Any, str]:
    """(the answer, "") or (None, why there is none)."""
    connection = UnixConnection(path)
    try:
        connection.request("GET", route)
        response = connection.getresponse()
        body = response.read()
        if response.status == 200:
            return json.loads(body), ""
        return None, f"{response.status} {body[:200].decode(errors='replace')}"
    except (OSError, http.client.HTTPException) as error:
        return None, getattr(error, "strerror", None) or str(error) or "no answer"
    finally:
        connection.close()


def last_words(role: str) -> str:
    if systemd():
        command = ["journalctl", "-u", f"orchestra-{role}", "-n", "8", "-o", "cat"]
        text = subprocess.run(command, capture_output=True, check=False).stdout
    else:
        try:
            with open(f"{STATE}/{role}/log", "rb") as file:
                text = file.read()[-4000:]
        except FileNotFoundError:
            text = b""
    return " | ".join(text.decode(errors="replace").strip().splitlines()[-5:]) or "none"


def prune(role: str, newest: str) -> None:
    """Drop old versions, but for the one before: processes that outlive the agent run from it."""
    directory = f"{STATE}/{role}"
    old = [v for v in versions(role) if v != newest]
    old.sort(key=lambda v: os.stat(f"{directory}/{v}/.complete").st_mtime, reverse=True)
    in_use = " ".join(" ".join(words) for words in own().values())
    for version in old[KEPT_VERSIONS - 1 :]:
        if f"{directory}/{version}" not in in_use:
            shutil.rmtree(f"{directory}/{version}", ignore_errors=True)
