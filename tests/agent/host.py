"""A scratch host for one agent: own network, mount and PID namespaces on this machine.

Killing its PID 1 takes everything of the host away at once, whatever a test left behind; that is
also how a power cut is played. What is left then are directories and cgroups, which `close`
removes.
"""

import contextlib
import hashlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
AGENT = (sys.executable, "-m", "orchestra.agent.main", "agent")


class Host:
    def __init__(self):
        self.root = Path(tempfile.mkdtemp(prefix="oag"))
        self.name = f"oag{uuid.uuid4().hex[:6]}"
        self.run = self.root / "run"
        self.state = self.root / "state"
        self.agent = None
        self.boot()

    def boot(self):
        """Bring the host up, without an agent."""
        self._unshare = subprocess.Popen(
            [
                "unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc",
                "sh", "-c", "mount -t tmpfs run /run && ip link set lo up && echo up && "
                "exec sleep infinity",
            ],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._unshare.stdout.readline() == b"up\n"
        self.init = _only_child(self._unshare.pid)

    def power_cut(self):
        """Take every process, wire and mount away; the disk stays, /run does not."""
        os.kill(self.init, signal.SIGKILL)
        self._unshare.wait()
        self._unshare.stdout.close()
        if self.agent:
            self.agent.wait()
        self.agent = None
        shutil.rmtree(self.run, ignore_errors=True)

    def enter(self, *command):
        """Return a command line that runs in the host's namespaces."""
        return ["nsenter", "-t", str(self.init), "-n", "-m", "-p", "--", *command]

    def start(self):
        """Start the agent and wait until its socket answers."""
        self.log = self.root / "agent.log"
        with open(self.log, "ab") as log:
            self.agent = subprocess.Popen(
                self.enter(
                    *AGENT,
                    *("--state", str(self.state), "--run", str(self.run)),
                    *("--fabric", self.name, "--cgroup-parent", self.name),
                ),
                stderr=log,
            )
        wait_until(self._answers, 20, lambda: f"no agent: {self.log.read_text()[-4000:]}")
        self.agent_pid = _only_child(self.agent.pid)

    def kill_agent(self, number=signal.SIGKILL):
        os.kill(self.agent_pid, number)
        self.agent.wait()
        self.agent = None

    def close(self):
        self.power_cut()
        wait_until(self._has_no_cgroups, 20, lambda: f"cgroups of {self.name} stay")
        shutil.rmtree(self.root)

    def _has_no_cgroups(self):
        """Remove them as far as the processes in them are gone; whether none is left."""
        # not `**`: others' groups vanish under a walk
        names = (f"{self.name}*", f"*/{self.name}*")
        left = [d for name in names for d in CGROUPS.glob(name) if d.is_dir()]
        for directory in left:
            _remove_cgroups(directory)
        return not left

    # --- HTTP ------------------------------------------------------------------------------

    @property
    def socket(self):
        return str(self.run / "agent.sock")

    def _answers(self):
        if self.agent.poll() is not None:
            raise AssertionError(self.log.read_text()[-4000:])
        try:
            return self.call("GET", "/_ping")[0] == 200
        except OSError:
            return False

    def call(self, method, path, body=None, raw=None):
        """One request: (status, parsed body or bytes)."""
        connection = _Connection(self.socket)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"} if raw is None else {}
            data = raw if raw is not None else (None if body is None else json.dumps(body))
            connection.request(method, path, data, headers if data is not None else {})
            response = connection.getresponse()
            content = response.read()
        if response.headers.get_content_type() == "application/json" and content:
            with contextlib.suppress(ValueError):
                return response.status, json.loads(content)
        return response.status, content

    def ok(self, method, path, body=None, **options):
        status, content = self.call(method, path, body, **options)
        assert status < 400, (method, path, status, content)
        return content

    def docker(self, *words, input=None, cli="", timeout=60):
        """Run the docker CLI against this host; the completed process."""
        return subprocess.run(
            [cli or docker_clis()[0], "-H", f"unix://{self.socket}", *words],
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "DOCKER_CONFIG": str(self.root / "docker")},
        )

    def load_busybox(self):
        self.ok("POST", "/images/load", raw=busybox_archive())

    def inspect(self, ref):
        return self.ok("GET", f"/containers/{ref}/json")

    def run_container(self, *command, name="", host=None, **body):
        """Create and start a busybox; its id."""
        made = self.ok(
            "POST",
            f"/containers/create?name={name}",
            {"Image": "busybox", "Cmd": list(command), "HostConfig": host or {}, **body},
        )
        self.ok("POST", f"/containers/{made['Id']}/start")
        return made["Id"]

    def state_of(self, ref):
        return self.inspect(ref)["State"]

    def pid_of(self, command):
        """The pid, as the host itself numbers them, of the process with this command line."""
        ps = subprocess.run(self.enter("ps", "-eo", "pid,args"), capture_output=True, text=True)
        for line in ps.stdout.splitlines():
            pid, _, args = line.strip().partition(" ")
            if args.strip() == command:
                return int(pid)
        raise LookupError(f"{command} does not run:\n{ps.stdout}")

    def logs_of(self, ref):
        """Everything that a container without terminal wrote, unframed."""
        data = self.ok("GET", f"/containers/{ref}/logs?stdout=1&stderr=1")
        out = b""
        while data:
            size = int.from_bytes(data[4:8], "big")
            out, data = out + data[8 : 8 + size], data[8 + size :]
        return out.decode()


def docker_clis():
    """The docker CLIs of this machine, of whatever age; at least one must be there."""
    found = [f"{d}/docker" for d in os.environ["PATH"].split(":") if os.path.isfile(f"{d}/docker")]
    assert found, "the docker CLI is missing: apt-get install docker.io"
    return list({os.path.realpath(path): path for path in reversed(found)}.values())


class _Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self._path)


def wait_until(happened, seconds, describe=lambda: "it did not happen"):
    """Poll for something that another process does; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (result := happened()):
        if time.monotonic() > end:
            raise AssertionError(describe())
        time.sleep(0.02)
    return result


def busybox_archive():
    """A docker-archive of one image, busybox:latest, made of the host's static busybox."""
    with open("/bin/busybox", "rb") as file:
        binary = file.read()
    applets = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True).stdout
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in ("bin", "tmp", "etc", "proc", "sys", "dev", "root"):
            tar.addfile(_entry(name, tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755))
        tar.addfile(_entry("bin/busybox", size=len(binary)), io.BytesIO(binary))
        for applet in applets.split():
            if applet != "busybox":
                link = _entry(f"bin/{applet}", tarfile.SYMTYPE)
                link.linkname = "busybox"
                tar.addfile(link)
        passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
        tar.addfile(_entry("etc/passwd", mode=0o644, size=len(passwd)), io.BytesIO(passwd))
    content = layer.getvalue()
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}"]},
        "history": [{"created_by": "busybox"}],
    }
    manifest = [{"Config": "config.json", "RepoTags": ["busybox:latest"], "Layers": ["layer.tar"]}]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in (
            ("layer.tar", content),
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            tar.addfile(_entry(name, size=len(data)), io.BytesIO(data))
    return archive.getvalue()


def _entry(name, kind=tarfile.REGTYPE, mode=0o755, size=0):
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size = kind, mode, size
    return entry


def _only_child(pid):
    def child():
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(text[0]) if text else None

    return wait_until(child, 10)


def _remove_cgroups(directory):
    for inner, _, _ in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(inner)


@contextlib.contextmanager
def running_host():
    """A host whose agent answers and has busybox; closed whatever happens."""
    host = Host()
    try:
        host.start()
        host.load_busybox()
        yield host
    finally:
        host.close()
