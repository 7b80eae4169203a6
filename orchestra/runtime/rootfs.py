"""A container's file system: what is mounted where, made by the child between clone and exec.

The order: overlay root; /proc, /dev, /sys and their kin as detached mounts that are complete before
they are attached; the user's mounts; files; masks. Every target is an fd resolved inside the root
(`linux.mounts`), nothing is looked up by a host path that the image could bend, and each mask is
looked at again after it was put. Stdlib only. `bundle` is documented in `runtime.bundle`.
Sources: runtime-spec 1.3 "Default Filesystems", Docker's defaults, runc's advisories of 2021-2026.
"""

from __future__ import annotations

import base64
import os
import stat

from orchestra.linux import mounts as m
from orchestra.linux.syscalls import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    mount,
    openat2,
    pivot_root_here,
)
from orchestra.runtime.copyup import copy_up
from orchestra.runtime.users import owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orchestra.runtime.bundle import MountPart, StartPart

MASKED = (
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
)
MASKED_IN_SYS = ("devices/virtual/powercap", "firmware")
READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_NODES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
_SAFE = m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOEXEC
_INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


class SetupFailed(Exception):
    """The container cannot be made as described; the text says what and why."""


class Root:
    """The new root while it is being furnished: `fd` is its top, `scratch` a private tmpfs."""

    def __init__(self, bundle: StartPart) -> None:
        self.bundle = bundle
        self.sources = [_open_source(part) for part in bundle["mounts"]]
        # From here on nothing that we mount reaches the host; its new mounts still reach binds.
        mount("", "/", "", m.MS_REC | m.MS_SLAVE)
        top = f"{bundle['run_directory']}/root"
        scratch = m.new_filesystem("tmpfs", {"mode": "0755"}, _SAFE)
        at = os.open(f"{bundle['run_directory']}/scratch", os.O_PATH | os.O_DIRECTORY)
        m.attach(scratch, at)
        os.close(at)
        self.scratch = scratch
        layers = [os.open(p, os.O_PATH | os.O_DIRECTORY) for p in bundle["lowers"]]
        upper = os.open(bundle["upper"], os.O_PATH | os.O_DIRECTORY)
        work = os.open(bundle["work"], os.O_PATH | os.O_DIRECTORY)
        m.overlay(top, layers, upper, work)
        for fd in (*layers, upper, work):
            os.close(fd)
        self.fd = os.open(top, os.O_PATH | os.O_DIRECTORY)

    def furnish(self) -> None:
        """Mount everything but the masks."""
        self._proc()
        self._dev()
        self._sys()
        order = sorted(
            range(len(self.sources)),
            key=lambda i: len(m.components(self.bundle["mounts"][i]["target"])),
        )
        for index in order:
            part = self.bundle["mounts"][index]
            try:
                self._user_mount(part, self.sources[index])
            except OSError as error:
                raise SetupFailed(f"mount {part['target']}: {_text(error)}") from None
        self._files()

    def _proc(self) -> None:
        self.proc = m.new_filesystem("proc", {}, _SAFE)
        for name, value in self.bundle["sysctls"].items():
            path = "sys/" + name.replace(".", "/")
            try:
                fd = openat2(self.proc, path, os.O_WRONLY, _KERNEL_FILES)
                try:
                    os.write(fd, value.encode())
                finally:
                    os.close(fd)
            except OSError as error:
                raise SetupFailed(f"sysctl {name}={value}: {_text(error)}") from None
        self._attach_plain(self.proc, "proc")

    def _dev(self) -> None:
        dev = m.new_filesystem("tmpfs", {"mode": "0755", "size": "64m"}, m.MOUNT_ATTR_NOSUID)
        self.dev = dev
        for name, major, minor in _NODES:
            os.mknod(name, 0o666 | stat.S_IFCHR, os.makedev(major, minor), dir_fd=dev)
        for name, leads_to in _LINKS:
            os.symlink(leads_to, name, dir_fd=dev)
        for name in ("pts", "shm", "mqueue"):
            os.mkdir(name, 0o755, dir_fd=dev)
        if self.bundle["tty"]:
            os.close(os.open("console", os.O_CREAT | os.O_CLOEXEC, 0o620, dir_fd=dev))
        if self.bundle["privileged"]:
            self._host_devices()
        self._attach_plain(dev, "dev")
        pts = {"newinstance": None, "ptmxmode": "0666", "mode": "0620", "gid": "5"}
        self.pts = m.new_filesystem("devpts", pts, m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NOEXEC)
        shm = {"mode": "1777", "size": str(self.bundle["shm_size"])}
        for name, tree in (
            ("pts", self.pts),
            ("shm", m.new_filesystem("tmpfs", shm, _SAFE)),
            ("mqueue", m.new_filesystem("mqueue", {}, _SAFE)),
        ):
            target = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=dev)
            m.attach(tree, target)
            os.close(target)

    def _host_devices(self) -> None:
        """Privileged: every device node of the host's /dev, at the same name."""
        for directory, below, names in os.walk("/dev"):
            relative = os.path.relpath(directory, "/dev")
            if relative == ".":
                below[:] = [d for d in below if d not in ("pts", "shm", "mqueue", "fd")]
            for name in names:
                info = os.lstat(f"{directory}/{name}")
                path = name if relative == "." else f"{relative}/{name}"
                if not stat.S_ISCHR(info.st_mode) and not stat.S_ISBLK(info.st_mode):
                    continue
                if path in ("console", "ptmx") or path in {n for n, _, _ in _NODES}:
                    continue
                parent = m.make_directory(self.dev, os.path.dirname(path))
                os.mknod(name, info.st_mode, info.st_rdev, dir_fd=parent)
                os.chown(name, info.st_uid, info.st_gid, dir_fd=parent)
                os.close(parent)

    def _sys(self) -> None:
        read_only = 0 if self.bundle["privileged"] else m.MOUNT_ATTR_RDONLY
        self.sys = m.new_filesystem("sysfs", {}, _SAFE | read_only)
        self._attach_plain(self.sys, "sys")
        target = openat2(self.sys, "fs/cgroup", os.O_PATH | os.O_DIRECTORY, _KERNEL_FILES)
        try:
            controllers = self.bundle["cgroup_mounts"]
            if controllers == ["cgroup2"]:
                m.attach(m.new_filesystem("cgroup2", {}, _SAFE | read_only), target)
                return
            top = m.new_filesystem("tmpfs", {"mode": "0755"}, _SAFE)
            for name in controllers:
                os.mkdir(name, 0o755, dir_fd=top)
            m.attach(top, target)
            for name in controllers:
                fd = os.open(name, os.O_PATH | os.O_DIRECTORY, dir_fd=top)
                m.attach(m.new_filesystem("cgroup", {name: None}, _SAFE | read_only), fd)
                os.close(fd)
            m.set_attributes(top, read_only)
        finally:
            os.close(target)

    def _attach_plain(self, tree: int, name: str) -> None:
        try:
            target = m.open_plain(self.fd, name)
        except OSError as error:
            raise SetupFailed(
                f"the image's /{name} is not a directory of its own: {_text(error)}"
            ) from None
        m.attach(tree, target)
        os.close(target)

    def _user_mount(self, part: MountPart, source: int) -> None:
        kind, target_path = part["type"], part["target"]
        if not m.components(target_path):
            raise SetupFailed("the root itself cannot be a mount's target")
        if kind == "tmpfs":
            options = {"mode": f"{part['mode']:o}"}
            if part["size"]:
                options["size"] = str(part["size"])
            read_only = m.MOUNT_ATTR_RDONLY if part["read_only"] else 0
            tree = m.new_filesystem("tmpfs", options, _SAFE | read_only)
            target = m.make_directory(self.fd, target_path)
        else:
            tree = source
            if stat.S_ISDIR(os.fstat(source).st_mode):
                target = m.make_directory(self.fd, target_path)
                if kind == "volume" and part["copy"]:
                    copy_up(target, source)
            else:
                target = m.make_file(self.fd, target_path)
        m.attach(tree, target)
        os.close(target)
        os.close(tree)

    def _files(self) -> None:
        """Injected files live in the scratch tmpfs: secrets never touch a disk of the container."""
        for index, part in enumerate(self.bundle["files"]):
            uid, gid = owner(self.fd, part["uid"], part["gid"])
            content = base64.b64decode(part["content"])
            self.inject(str(index), part["target"], content, part["mode"], m.MOUNT_ATTR_RDONLY)
            os.chown(str(index), uid, gid, dir_fd=self.scratch)

    def inject(
        self, name: str, target_path: str, content: bytes, mode: int, attributes: int = 0
    ) -> None:
        """Mount a file with this content onto the path, which is made where it is missing."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self.scratch)
        with open(fd, "wb") as file:
            file.write(content)
            os.fchmod(fd, mode)
        tree = m.clone(self.scratch, name)
        m.set_attributes(tree, _SAFE | attributes, m.MS_PRIVATE)
        target = m.make_file(self.fd, target_path)
        m.attach(tree, target)
        os.close(target)
        os.close(tree)

    def mask(self) -> None:
        """Hide and protect what the kernel shows of the host in /proc and /sys; then check it."""
        os.mkdir("empty", 0o555, dir_fd=self.scratch)
        for top, names in ((self.proc, MASKED), (self.sys, MASKED_IN_SYS)):
            for name in names:
                self._mask_one(top, name)
        for name in READ_ONLY:
            target = _kernel_file(self.proc, name)
            if target is not None:
                tree = m.clone(target, recursive=True)
                m.set_attributes(tree, m.MOUNT_ATTR_RDONLY, m.MS_PRIVATE, recursive=True)
                m.attach(tree, target)
                os.close(tree)
                os.close(target)
        self._mask_throttles()

    def _mask_throttles(self) -> None:
        """Timing of the CPU's heat tells of the neighbours (thermal_throttle of each CPU)."""
        cpus = _kernel_file(self.sys, "devices/system/cpu")
        if cpus is None:
            return
        os.close(cpus)
        for cpu in range(os.cpu_count() or 1):
            self._mask_one(self.sys, f"devices/system/cpu/cpu{cpu}/thermal_throttle")

    def _mask_one(self, top: int, name: str) -> None:
        target = _kernel_file(top, name)
        if target is None:
            return
        if stat.S_ISDIR(os.fstat(target).st_mode):
            tree = m.clone(self.scratch, "empty")
            m.set_attributes(tree, _SAFE | m.MOUNT_ATTR_RDONLY, m.MS_PRIVATE)
            expected = os.fstat(tree)
        else:
            tree = m.clone(self.dev, "null")
            expected = os.fstat(tree)
            if expected.st_rdev != os.makedev(1, 3):
                raise SetupFailed(f"masking {name}: /dev/null is not the null device")
        m.attach(tree, target)
        seen = openat2(top, name, os.O_PATH, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
        found = os.fstat(seen)
        if (found.st_dev, found.st_ino) != (expected.st_dev, expected.st_ino):
            raise SetupFailed(f"masking {name}: something else is mounted there")
        for fd in (tree, target, seen):
            os.close(fd)

    def console(self, slave: int) -> None:
        """Bind the terminal's end onto /dev/console, from fd to fd."""
        tree = m.clone(slave)
        target = os.open("console", os.O_PATH | os.O_NOFOLLOW, dir_fd=self.dev)
        m.attach(tree, target)
        os.close(tree)
        os.close(target)

    def enter(self) -> None:
        """Make it the root and drop the host's; afterwards only fds lead out."""
        os.fchdir(self.fd)
        pivot_root_here()
        if self.bundle["read_only"]:
            top = os.open("/", os.O_PATH | os.O_DIRECTORY)
            m.set_attributes(top, m.MOUNT_ATTR_RDONLY)
            os.close(top)


_KERNEL_FILES = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV


def working_directory(path: str) -> int:
    """Open (making it) the working directory inside the root; magic links are refused.

    The caller changes into it and must still see a path that starts at the root.
    """
    top = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        return m.make_directory(top, path)
    except OSError as error:
        raise SetupFailed(f"working directory {path}: {_text(error)}") from None
    finally:
        os.close(top)


def _kernel_file(top: int, name: str) -> int | None:
    """O_PATH fd of a file of procfs or sysfs itself; None where this kernel has none."""
    try:
        return openat2(top, name, os.O_PATH, _KERNEL_FILES)
    except FileNotFoundError:
        return None


def _open_source(part: MountPart) -> int:
    """A detached clone of a bind's or volume's source, taken before propagation is cut."""
    if part["type"] == "tmpfs":
        return -1
    path = part["source"]
    if part["create"]:
        os.makedirs(path, 0o755, exist_ok=True)
    try:
        top = os.open(path, os.O_PATH)
        try:
            if part["subpath"]:
                below = openat2(top, part["subpath"], os.O_PATH, RESOLVE_BENEATH)
                os.close(top)
                top = below
            tree = m.clone(top, recursive=part["type"] == "bind")
        finally:
            os.close(top)
    except OSError as error:
        raise SetupFailed(f"mount {part['target']}: source {path}: {_text(error)}") from None
    kind = m.PROPAGATION[part["propagation"] or "rprivate"]
    recursive = bool(kind & m.MS_REC)
    m.set_attributes(tree, 0, kind & ~m.MS_REC, recursive)
    if part["read_only"]:
        m.set_attributes(tree, m.MOUNT_ATTR_RDONLY, 0, recursive=True)
    return tree


def _text(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
