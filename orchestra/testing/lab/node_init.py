"""A lab host's PID 1: makes the host's own view of the machine, then keeps it alive.

Run as ``python -I -S node_init.py SPEC`` by the lab; standard library only. It joins the host's
cgroups, leaves every namespace of the machine (network, mount, UTS, IPC, PID, cgroup), tells the
pid of its child on stdout, and that child becomes the host: it builds a root of its own disk with
the machine's /usr read-only in it, waits on stdin until its wire is there, starts sshd and
whatever was installed to start at boot, says ``up``, and reaps from then on. A power cut is
SIGKILL to it: the kernel then takes every process, mount and wire of the host away.

Law: after the pivot nothing of the machine's own file tree is reachable but /usr, read-only;
hence every import is at the top.
"""

import ctypes
import glob
import json
import os
import signal
import stat
import subprocess
import sys
import time
import traceback

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2

libc = ctypes.CDLL(None, use_errno=True)

DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "kmsg": (1, 11),
    "tty": (5, 0),
    "fuse": (10, 229),
    "net/tun": (10, 200),
}
# Directories of a merged or unmerged /usr; where the machine has a link, so has the host.
SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    result = libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    check(result, f"mount {kind or source} on {target}")


def join_cgroups(directories: list[str]) -> None:
    for directory in directories:
        with open(f"{directory}/cgroup.procs", "w") as procs:
            procs.write(str(os.getpid()))


def make_root(root: str) -> None:
    """Put the machine's programs, read-only, and fresh kernel file systems into `root`."""
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount(root, root, flags=MS_BIND)
    for name in ("usr", *SYSTEM):
        source, target = f"/{name}", f"{root}/{name}"
        if os.path.islink(source):
            if not os.path.lexists(target):
                os.symlink(os.readlink(source), target)
        elif os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
            mount(source, target, flags=MS_BIND)
            mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", f"{root}/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("tmpfs", f"{root}/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    mount("tmpfs", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    for name in ("sshd", "netns", "lock"):
        os.mkdir(f"{root}/run/{name}")
    make_devices(f"{root}/dev")


def make_devices(dev: str) -> None:
    mount("tmpfs", dev, "tmpfs", MS_NOSUID, "mode=755")
    for name, (major, minor) in DEVICES.items():
        os.makedirs(os.path.dirname(f"{dev}/{name}"), exist_ok=True)
        os.mknod(f"{dev}/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.chmod(f"{dev}/{name}", 0o600 if name == "kmsg" else 0o666)
    for name, kind, data in (
        ("pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("shm", "tmpfs", "mode=1777"),
        ("mqueue", "mqueue", ""),
    ):
        os.mkdir(f"{dev}/{name}")
        mount(kind, f"{dev}/{name}", kind, MS_NOSUID | MS_NOEXEC, data)
    for name, target in (
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ):
        os.symlink(target, f"{dev}/{name}")


def mount_cgroups(top: str, hierarchies: list[dict[str, str]], links: dict[str, str]) -> None:
    """Mount every hierarchy; the cgroup namespace makes the host's own cgroup its root.

    On a v2-only machine the root may not hold processes once it passes controllers on
    (cgroups(7), "no internal processes"): the host's own go to the leaf /init.
    """
    if any(h["directory"] for h in hierarchies):
        mount("tmpfs", top, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755")
    for hierarchy in hierarchies:
        target = os.path.join(top, hierarchy["directory"])
        os.makedirs(target, exist_ok=True)
        flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
        mount(hierarchy["kind"], target, hierarchy["kind"], flags, hierarchy["options"])
        if hierarchy["kind"] == "cgroup2" and not hierarchy["directory"]:
            os.makedirs(f"{target}/init", exist_ok=True)
            with open(f"{target}/init/cgroup.procs", "w") as procs:
                procs.write("1")
            with open(f"{target}/cgroup.controllers") as controllers:
                wanted = " ".join(f"+{c}" for c in controllers.read().split())
            with open(f"{target}/cgroup.subtree_control", "w") as control:
                control.write(wanted)
    for name, target in links.items():
        os.symlink(target, os.path.join(top, name))


def pivot(root: str) -> None:
    """Make `root` the root and let go of the old one (pivot_root(2), the `"."` form)."""
    os.chdir(root)
    check(libc.syscall(PIVOT_ROOT, b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount the old root")
    os.chdir("/")


PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]


def spawn(arguments: list[str]) -> int:
    return subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
        },
    ).pid


def start_sshd() -> int:
    return spawn(["/usr/sbin/sshd", "-D", "-e"])


def wait_for_sshd(pid: int) -> None:
    """sshd writes its pid file once it listens (sshd_config(5), PidFile)."""
    deadline = time.monotonic() + 20
    while not os.path.exists("/run/sshd.pid"):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended or time.monotonic() > deadline:
            raise RuntimeError(f"sshd did not start (status {status})")
        time.sleep(0.005)


def be_the_host(spec: dict[str, object], status: int) -> None:
    hostname = str(spec["name"]).encode()
    check(libc.sethostname(hostname, len(hostname)), "sethostname")
    root = str(spec["root"])
    make_root(root)
    mount_cgroups(f"{root}/sys/fs/cgroup", spec["hierarchies"], spec["links"])  # type: ignore[arg-type]
    pivot(root)
    if sys.stdin.readline().strip() != "wired":
        raise RuntimeError("the lab went away before the wire was there")
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    sshd = start_sshd()
    wait_for_sshd(sshd)
    for script in sorted(glob.glob("/var/lib/orchestra/*/start")):
        spawn([script])
    os.write(status, b"up\n")
    os.close(status)
    while True:
        ended, _ = os.wait()
        if ended == sshd:
            time.sleep(1)
            sshd = start_sshd()


def main() -> None:
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    os.setsid()
    os.umask(0o022)
    console = os.open(spec["console"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    status = os.dup(1)  # close-on-exec: no process of the host inherits it
    os.dup2(console, 1)
    os.dup2(console, 2)
    join_cgroups([h["cgroup"] for h in spec["hierarchies"]])
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP
    check(libc.unshare(flags | CLONE_NEWPID), "unshare")
    pid = os.fork()
    if pid:
        os.write(status, f"{pid}\n".encode())
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    try:
        be_the_host(spec, status)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main()
