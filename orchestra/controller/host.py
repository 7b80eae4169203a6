"""What runs on a host while it becomes a node, or stops being one: sent there over SSH.

The pusher sends this file's text and a request on stdin, to any Python 3.11 as root, before
anything of ours is there: standard library only, no import of ours. Each request is idempotent
and answers with one line of JSON on stdout; ``{"error": ...}`` is a text for the user. Processes
are told apart by their pid namespace: a machine may carry a lab whose hosts are nodes too.
"""

import array
import base64
import contextlib
import ctypes
import ctypes.util
import fcntl
import http.client
import io
import json
import os
import platform
import pwd
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
from typing import Any

STATE = "/var/lib/orchestra"
RUN = "/run/orchestra"
IDENTITY = f"{STATE}/node.json"
AGENT_SOCKET = f"{RUN}/agent.sock"
KEPT_VERSIONS = 2  # the shim and the resolver may still run from the one before
CLONE_NEWNET = 0x40000000

# What needs which package, by package manager; a kernel feature has a module instead.
PACKAGES = {
    "nftables": {"apt-get": "libnftables1", "dnf": "nftables", "apk": "nftables"},
    "ssh-keygen": {"apt-get": "openssh-client", "dnf": "openssh", "apk": "openssh-keygen"},
    "pip": {"apt-get": "python3-pip", "dnf": "python3-pip", "apk": "py3-pip"},
}


class Refused(Exception):
    """Something the user must know and can mend."""


# --- looking ----------------------------------------------------------------------------------


def check(request: dict[str, Any]) -> dict[str, Any]:
    return {
        "python": sys.executable,
        "platform": [
            f"{sys.platform}-{platform.libc_ver()[0] or 'other'}",
            platform.machine(),
            f"{sys.version_info[0]}.{sys.version_info[1]}",
        ],
        "node": identity(),
        "interfaces": interfaces(),
        "versions": {role: versions(role) for role in ("agent", "controller")},
        "problems": problems(),
        "manager": package_manager(),
    }


def identity() -> Any:
    try:
        with open(IDENTITY) as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def interfaces() -> dict[str, str]:
    """The first IPv4 address of each interface (netdevice(7), SIOCGIFADDR), without loopback."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = array.array("B", struct.pack("16s24x", name.encode()[:15]))
            with contextlib.suppress(OSError):  # an interface without an address
                fcntl.ioctl(sock, 0x8915, request)
                found[name] = socket.inet_ntoa(request.tobytes()[20:24])
    return {name: address for name, address in found.items() if not address.startswith("127.")}


def versions(role: str) -> list[str]:
    directory = f"{STATE}/{role}"
    if not os.path.isdir(directory):
        return []
    return sorted(v for v in os.listdir(directory) if os.path.exists(f"{directory}/{v}/.complete"))


def package_manager() -> str:
    return next((m for m in ("apt-get", "dnf", "apk") if shutil.which(m)), "")


def problems() -> list[dict[str, str]]:
    """What the host lacks: {what, remedy, package}; package "" where it is the kernel's."""
    found = []

    def lacks(what: str, remedy: str, package: str = "") -> None:
        found.append({"what": what, "remedy": remedy, "package": package})

    for name in ("net", "mnt", "pid", "ipc", "uts", "cgroup"):
        if not os.path.exists(f"/proc/self/ns/{name}"):
            lacks(f"{name} namespaces", f"use a kernel with CONFIG_{name.upper()}_NS")
    if not overlay():
        lacks("the overlay file system", "modprobe overlay, or a kernel with CONFIG_OVERLAY_FS")
    missing = {"cpu", "memory", "pids"} - cgroup_controllers()
    if missing:
        names = ", ".join(sorted(missing))
        lacks(
            f"cgroup controllers {names}",
            "mount cgroups (v1 or v2) at /sys/fs/cgroup; on some boards memory needs the kernel "
            "argument cgroup_enable=memory",
        )
    for kind in probe_network():
        if kind == "libnftables":
            manager = package_manager()
            package = PACKAGES["nftables"].get(manager, "")
            remedy = f"{manager} install {package}" if package else "install nftables"
            lacks("libnftables.so.1 or the nft program", remedy, package)
        elif kind == "nftables":
            lacks("nftables in the kernel", "modprobe nf_tables, or a kernel with CONFIG_NF_TABLES")
        else:
            lacks(
                f"{kind} network devices",
                f"modprobe {kind} (package of extra kernel modules?), or a kernel with "
                f"CONFIG_{kind.upper()}",
            )
    return found


def overlay() -> bool:
    for attempt in range(2):
        with open("/proc/filesystems") as file:
            if "overlay" in file.read().split():
                return True
        if attempt == 0 and shutil.which("modprobe"):
            subprocess.run(["modprobe", "overlay"], capture_output=True, check=False)
    return False


def cgroup_controllers() -> set[str]:
    """Controllers of every mounted v1 hierarchy and of the v2 root."""
    found: set[str] = set()
    with open("/proc/mounts") as file:
        for line in file:
            _, target, kind, options = line.split(" ")[:4]
            if kind == "cgroup":
                found.update(options.split(","))
            elif kind == "cgroup2":
                with open(f"{target}/cgroup.controllers") as controllers:
                    found.update(controllers.read().split())
    return found


def probe_network() -> list[str]:
    """Try devices and nftables in a network namespace that goes away with a child process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        missing = []
        try:
            if ctypes.CDLL(None).unshare(CLONE_NEWNET) != 0:
                missing.append("net")
            else:
                missing += [k for k in ("veth", "vxlan") if not can_make_link(k)]
                missing += try_nftables()
            os.write(writing, json.dumps(missing).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    if not text:
        raise Refused("the check of the network features crashed")
    return list(json.loads(text))


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def can_make_link(kind: str) -> bool:
    """RTM_NEWLINK as in rtnetlink(7); the kernel loads a module for it by itself."""
    info = attribute(1, kind.encode())  # IFLA_INFO_KIND
    if kind == "vxlan":  # IFLA_INFO_DATA { IFLA_VXLAN_ID, IFLA_VXLAN_PORT }
        info += attribute(2, attribute(1, struct.pack("I", 7)) + attribute(15, b"\x21\x16"))
    body = struct.pack("BxHiII", 0, 0, 0, 0, 0) + attribute(18, info)  # IFLA_LINKINFO
    # type RTM_NEWLINK, flags REQUEST | ACK | EXCL | CREATE
    message = struct.pack("IHHII", 16 + len(body), 16, 0x605, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.bind((0, 0))
        sock.send(message)
        (error,) = struct.unpack_from("i", sock.recv(4096), 16)
    return bool(error == 0)


def nft(commands: str) -> bool:
    """Run nft commands through the library, else the program. FileNotFoundError without both."""
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError:
        done = subprocess.run(["nft", "-f", "-"], input=commands.encode(), capture_output=True)
        return done.returncode == 0
    library.nft_ctx_new.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.nft_ctx_new(0))
    library.nft_ctx_buffer_error(context)
    try:
        return bool(library.nft_run_cmd_from_buffer(context, commands.encode()) == 0)
    finally:
        library.nft_ctx_free(context)


def try_nftables() -> list[str]:
    try:
        works = nft(
            "add table inet probe\nadd chain inet probe c { type nat hook output priority 0; }"
        )
    except FileNotFoundError:
        return ["libnftables"]
    return [] if works else ["nftables"]


# --- installing -------------------------------------------------------------------------------


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
        os.sync()
        with open(f"{target}/.complete", "x"):
            pass
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return {}


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


def write_durably(path: str, text: str, mode: int = 0o600) -> None:
    fresh = f"{path}.new"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(fresh, path)


KEEPER = """\
#!/bin/sh
# Keeps the orchestra {role} running; started at boot on hosts without systemd.
cd /
mkdir -p {run}
echo $$ > {run}/{role}.keeper
exec </dev/null >{state}/{role}/log 2>&1
while :; do
    {python} -I "$(readlink -f {state}/{role}/current)" {words}
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


def start(request: dict[str, Any]) -> dict[str, Any]:
    """Make `version` the current one of `role`, (re)start it, wait until its socket answers.

    Only the role's own process ends: the containers, the shim and the resolver live on.
    """
    role, words = str(request["role"]), str(request["words"])
    directory = f"{STATE}/{role}"
    fresh = f"{directory}/current.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    os.symlink(str(request["version"]), fresh)
    os.rename(fresh, f"{directory}/current")
    values = {"role": role, "state": STATE, "run": RUN, "python": sys.executable, "words": words}
    if systemd():
        write_durably(unit_path(role), UNIT.format(**values), 0o644)
        run("systemctl", "daemon-reload")
        run("systemctl", "enable", "--quiet", f"orchestra-{role}.service")
        run("systemctl", "restart", f"orchestra-{role}.service")
    else:
        write_durably(f"{directory}/start", KEEPER.format(**values), 0o755)
        end(role_processes(role))
        if not keeper_runs(role):
            subprocess.Popen(
                [f"{directory}/start"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")},
            )
    answer = wait_for_answer(role, str(request["socket"]), str(request["path"]))
    prune(role, str(request["version"]))
    return {"answer": answer}


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise Refused(f"{' '.join(command)}: {done.stderr.decode().strip()}")


def systemd() -> bool:
    """As sd_booted(3)."""
    return os.path.isdir("/run/systemd/system")


def unit_path(role: str) -> str:
    return f"/etc/systemd/system/orchestra-{role}.service"


def keeper_runs(role: str) -> bool:
    pid = keeper(role)
    return pid is not None and f"{STATE}/{role}/start" in command_line(pid)


def keeper(role: str) -> "int | None":
    try:
        with open(f"{RUN}/{role}.keeper") as file:
            return int(file.read())
    except (FileNotFoundError, ValueError):
        return None


def command_line(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def own_processes() -> dict[int, list[str]]:
    """Command lines of the processes of this host, without those of hosts inside it."""
    here = os.stat("/proc/self/ns/pid").st_ino
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}/ns/pid").st_ino == here:
                    found[int(entry)] = command_line(int(entry))
    return found


def role_processes(role: str) -> list[int]:
    """The agent or controller itself: `python -I DIR WORD ...`, of whatever version."""
    return [
        pid
        for pid, words in own_processes().items()
        if len(words) > 3 and words[1] == "-I" and words[2].startswith(f"{STATE}/{role}/")
    ]


def end(pids: list[int], patience: float = 10.0) -> None:
    """Ask processes to end, then make them (pidfd_open(2))."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        handles = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(pid))
                os.kill(pid, number)
        deadline = time.monotonic() + patience
        for handle in handles:
            select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
            os.close(handle)
        pids = [pid for pid in pids if command_line(pid) not in ([], [""])]


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=10)
        self.unix_path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.unix_path)


def wait_for_answer(role: str, path: str, route: str, patience: float = 30.0) -> Any:
    deadline = time.monotonic() + patience
    while True:
        connection = UnixConnection(path)
        try:
            connection.request("GET", route)
            response = connection.getresponse()
            body = response.read()
            if response.status == 200:
                return json.loads(body)
            reason = f"{response.status} {body[:200].decode(errors='replace')}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(error)
        finally:
            connection.close()
        if time.monotonic() > deadline:
            raise Refused(
                f"the {role} does not answer ({reason}); its last words: {last_words(role)}"
            )
        time.sleep(0.02)


def last_words(role: str) -> str:
    if systemd():
        command = ["journalctl", "-u", f"orchestra-{role}", "-n", "5", "-o", "cat"]
        text = subprocess.run(command, capture_output=True, check=False).stdout
    else:
        try:
            with open(f"{STATE}/{role}/log", "rb") as file:
                text = file.read()[-4000:]
        except FileNotFoundError:
            text = b""
    return " | ".join(text.decode(errors="replace").strip().splitlines()[-5:]) or "none"


def prune(role: str, current: str) -> None:
    """Drop old versions, but for the one before: processes that outlive the agent run from it."""
    directory = f"{STATE}/{role}"
    old = [v for v in versions(role) if v != current]
    old.sort(key=lambda v: os.stat(f"{directory}/{v}/.complete").st_mtime, reverse=True)
    in_use = " ".join(" ".join(words) for words in own_processes().values())
    for version in old[KEPT_VERSIONS - 1 :]:
        if f"{directory}/{version}" not in in_use:
            shutil.rmtree(f"{directory}/{version}", ignore_errors=True)


# --- keys ---------------------------------------------------------------------------------------


def make_key(request: dict[str, Any]) -> dict[str, Any]:
    """Make the controller's SSH key on the host where it will live, once; its public line."""
    path = f"{STATE}/controller/id_ed25519"
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    if not os.path.exists(path):
        if not shutil.which("ssh-keygen"):
            package = PACKAGES["ssh-keygen"].get(package_manager(), "the OpenSSH client")
            raise Refused(f"ssh-keygen is missing; install {package}")
        comment = str(request["comment"])
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path)
    with open(f"{path}.pub") as file:
        return {"key": file.read().strip(), "path": path}


def authorize(request: dict[str, Any]) -> dict[str, Any]:
    """Let a key in as `user`; a line of the same comment (an older key) is replaced."""
    change_authorized(str(request["user"]), str(request["key"]).split()[2], str(request["key"]))
    return {}


def withdraw(request: dict[str, Any]) -> dict[str, Any]:
    """Take back every key with this comment."""
    change_authorized(str(request["user"]), str(request["comment"]), "")
    return {}


def change_authorized(user: str, comment: str, line: str) -> None:
    account = pwd.getpwnam(user)
    path = f"{account.pw_dir}/.ssh/authorized_keys"
    try:
        with open(path) as file:
            before = file.read().splitlines()
    except FileNotFoundError:
        before = []
    after = [known for known in before if known.split()[-1:] != [comment]]
    after += [line] if line else []
    if after == before:
        return
    if not os.path.isdir(os.path.dirname(path)):
        os.mkdir(os.path.dirname(path), 0o700)
        os.chown(os.path.dirname(path), account.pw_uid, account.pw_gid)
    write_durably(path, "\n".join(after) + "\n")
    os.chown(path, account.pw_uid, account.pw_gid)


def put_file(request: dict[str, Any]) -> dict[str, Any]:
    """Write a small file under our state directory."""
    path = f"{STATE}/{request['path']}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_durably(path, base64.b64decode(str(request["content"])).decode())
    return {}


# --- removing -----------------------------------------------------------------------------------


def stop(request: dict[str, Any]) -> dict[str, Any]:
    """End a role for good: its process, its unit or keeper, its versions."""
    role = str(request["role"])
    if os.path.exists(unit_path(role)):
        subprocess.run(["systemctl", "disable", "--now", f"orchestra-{role}"], capture_output=True)
        os.unlink(unit_path(role))
        run("systemctl", "daemon-reload")
    pid = keeper(role)
    if pid is not None and keeper_runs(role):
        end([pid])
    end(role_processes(role))
    if role == "agent":
        end_containers()
    for path in (f"{RUN}/{role}.keeper", f"{RUN}/{role}.sock", f"{RUN}/{role}.lock"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    shutil.rmtree(f"{STATE}/{role}", ignore_errors=True)
    return {}


def end_containers() -> None:
    """End what the agent leaves running: containers, shim, resolver, fabric, mounts, cgroups."""
    mark = f"{STATE}/agent/"
    helpers = [p for p, words in own_processes().items() if any(mark in w for w in words)]
    groups = cgroup_directories()
    inside = [pid for group in groups for pid in cgroup_pids(group)]
    end([pid for pid in helpers if pid not in inside], patience=2.0)
    for pid in {*inside, *(pid for group in groups for pid in cgroup_pids(group))}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for group in groups:
        remove_cgroup(group)
    unmount_below(STATE)
    unmount_below(RUN)
    unmount_below("/run/netns/orchestra")
    with contextlib.suppress(FileNotFoundError):
        os.unlink("/run/netns/orchestra")
    with contextlib.suppress(FileNotFoundError):  # no nft at all: no table of ours either
        nft("add table inet orchestra\ndelete table inet orchestra")


def cgroup_directories() -> list[str]:
    found = []
    with open("/proc/mounts") as file:
        for line in file:
            _, target, kind = line.split(" ")[:3]
            for name in ("orchestra", "orchestra-shim"):
                if kind in ("cgroup", "cgroup2") and os.path.isdir(f"{target}/{name}"):
                    found.append(f"{target}/{name}")
    return found


def cgroup_pids(directory: str) -> list[int]:
    found = []
    for path, _, _ in os.walk(directory):
        with contextlib.suppress(FileNotFoundError), open(f"{path}/cgroup.procs") as file:
            found += [int(line) for line in file.read().split()]
    return found


def remove_cgroup(directory: str, patience: float = 5.0) -> None:
    deadline = time.monotonic() + patience
    while os.path.isdir(directory):
        try:
            for path, _, _ in os.walk(directory, topdown=False):
                os.rmdir(path)
        except OSError as error:
            if time.monotonic() > deadline:
                raise Refused(f"cannot remove the cgroup {directory}: {error.strerror}") from None
            time.sleep(0.01)


def unmount_below(top: str) -> None:
    with open("/proc/self/mountinfo") as file:
        targets = [line.split(" ")[4] for line in file]
    libc = ctypes.CDLL(None)
    for target in reversed(targets):
        if target == top or target.startswith(f"{top}/"):
            libc.umount2(target.encode(), 2)  # MNT_DETACH


def uninstall(request: dict[str, Any]) -> dict[str, Any]:
    """Make the host a plain host again; volumes and images stay unless `purge`."""
    for role in ("controller", "agent"):
        stop({"role": role})
    keep = () if request.get("purge") else ("volumes", "images")
    for path in (STATE, RUN):
        for name in os.listdir(path) if os.path.isdir(path) else ():
            if path == RUN or name not in keep:
                remove_tree(f"{path}/{name}")
        with contextlib.suppress(OSError):  # something is kept, or it is a mount (a lab's disk)
            os.rmdir(path)
    return {}


def remove_tree(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


REQUESTS = {
    "check": check,
    "fetch": fetch,
    "unpack": unpack,
    "identify": identify,
    "start": start,
    "make_key": make_key,
    "authorize": authorize,
    "withdraw": withdraw,
    "put_file": put_file,
    "stop": stop,
    "uninstall": uninstall,
}


def serve() -> None:
    """Do the requests (one JSON line of stdin: a list), print one line with their answers."""
    requests = json.loads(sys.stdin.buffer.readline())
    answers = []
    os.umask(0o022)
    try:
        for request in requests:
            answers.append(REQUESTS[request["do"]](request))
    except Refused as error:
        answers.append({"error": str(error)})
    except OSError as error:
        answers.append({"error": f"{error.filename or 'a system call'}: {error.strerror}"})
    print(json.dumps(answers))
