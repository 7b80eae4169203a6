"""The node shim: fork server, parent of every container, holder of what must outlive the agent.

One per node, single-threaded, stdlib only; started apart from the agent (`runtime.spawn`) and left
alone by its restarts. It knows no policy: the agent sends complete descriptions (`runtime.bundle`)
in memory files, the shim clones, the child (`runtime.child`) does the work. What it keeps per
process is a pid, a pidfd and the fds to hold: FIFOs with undelivered output, the stdin writer, the
terminal's master; copies of all of them are with the keeper (`runtime.keeper`), from where the next
shim takes what a killed one left: strangers then, whose end is read off their pidfd. Exits stay on
record until the agent says `forget`.

Protocol 1, on a SEQPACKET socket: one JSON object per packet, fds as SCM_RIGHTS beside it, named
in order by `fds`. The shim greets with {"hello": 1, "pid": ..., "gate": true}; requests carry "n",
which replies repeat. Operations: start, exec, list, release, forget. Events: {"event": "exit"}. A
process has ended where its "time" is not 0; its "code" is null where nobody can know it.
A newer agent speaks an older shim's protocol; keys may be added, never change their meaning.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import time

if __name__ == "__main__":  # run as a file: its own tree is the only place to import from
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from orchestra.linux import syscalls as k
from orchestra.runtime import child
from orchestra.runtime.keeper import Kept

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROTOCOL = 1
_PACKET = 64 << 10
_MAX_FDS = 16
_PATIENCE = 5.0  # seconds for an agent to read
_FIRST = k.CLONE_NEWNS | k.CLONE_NEWPID | k.CLONE_NEWIPC | k.CLONE_NEWUTS


class Process:
    """One container's first process, or an exec in it. `id` is the container's or the exec's.

    `time` is that of its end, 0 while it runs; `ours` False: another shim started it.
    """

    __slots__ = ("asked_by", "code", "error", "held", "id", "ours", "pid", "pidfd", "time")

    def __init__(self, id_: str, pid: int, pidfd: int, held: dict[str, int]) -> None:
        self.id, self.pid, self.pidfd, self.held = id_, pid, pidfd, held
        self.ours = True
        self.code: int | None = None
        self.time = 0.0
        self.error: tuple[int, str] | None = None
        self.asked_by: tuple[socket.socket, int] | None = None


class Report:
    """The socket on which a child tells how far it got, until exec closes it."""

    __slots__ = ("about_to_exec", "process", "socket")

    def __init__(self, socket_: socket.socket, process: Process) -> None:
        self.socket, self.process, self.about_to_exec = socket_, process, False


class Shim:
    """The event loop and what it knows."""

    def __init__(self, listener: socket.socket, kept: Kept) -> None:
        self.listener, self.kept = listener, kept
        self.poll = select.epoll()
        self.agents: dict[int, socket.socket] = {}
        self.processes: dict[str, Process] = {}
        self.by_pidfd: dict[int, Process] = {}
        self.reports: dict[int, Report] = {}
        self.own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.boot = _boot_id()
        self.poll.register(listener.fileno(), select.EPOLLIN)

    def run(self) -> None:
        while True:
            for fd, _ in self.poll.poll():
                if fd == self.listener.fileno():
                    self._greet()
                elif fd in self.reports:  # before pidfds: a child's last words precede its end
                    self._read_report(fd)
                elif fd in self.agents:
                    self._read_agent(fd)
                elif fd in self.by_pidfd:
                    self._reap(fd)

    # --- what an earlier shim left

    def take_over(self, containers: str) -> None:
        """Go on with what the keeper has, and with what only its record in /run tells of."""
        for note, fds in self.kept.take_all():
            pidfd = fds.pop("pidfd", -1)
            process = Process(note["id"], note["pid"], pidfd, fds)
            process.ours, process.code, process.time = False, note["code"], note["time"]
            if pidfd >= 0 and not process.time:
                self._watch(process)
            else:
                self.processes[process.id] = process
        for container in os.listdir(containers) if os.path.isdir(containers) else ():
            if container not in self.processes:
                self._take_over_by_record(container, f"{containers}/{container}")
        self._keep_all()

    def _take_over_by_record(self, container: str, directory: str) -> None:
        """The keeper was killed too: what runs is found by its pid, what ended has no code."""
        try:
            with open(f"{directory}/process") as file:
                told = json.load(file)
        except (OSError, ValueError):  # it never came to that
            return
        process = Process(container, told["pid"], -1, {})
        process.ours = False
        pidfd = _pidfd_of(told) if told["boot"] == self.boot else -1
        if pidfd >= 0:
            process.pidfd = pidfd
            for name in ("stdout", "stderr"):
                if os.path.exists(f"{directory}/{name}"):
                    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
                    process.held[name] = os.open(f"{directory}/{name}", flags)
            self._watch(process)
        else:
            process.time = time.time()
            self.processes[container] = process

    # --- agents

    def _greet(self) -> None:
        agent, _ = self.listener.accept()
        agent.settimeout(_PATIENCE)  # for sending: we read only what is there
        self.agents[agent.fileno()] = agent
        self.poll.register(agent.fileno(), select.EPOLLIN)
        self._send(agent, {"hello": PROTOCOL, "pid": os.getpid(), "gate": True})

    def _read_agent(self, fd: int) -> None:
        agent = self.agents[fd]
        try:
            data, fds, _, _ = socket.recv_fds(agent, _PACKET, _MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            data, fds = b"", []
        if not data:
            self._drop(agent)
            return
        request = json.loads(data)
        named = dict(zip(request.get("fds", ()), fds))
        try:
            answer, out = getattr(self, "on_" + request["op"])(request, named, agent)
        except Exception as error:  # a request must never end the parent of every container
            for each in fds:
                _close(each)
            answer, out = {"error": f"{type(error).__name__}: {error}", "code": 125}, []
        if answer is not None:
            self._send(agent, {**answer, "n": request["n"]}, out)

    def _drop(self, agent: socket.socket) -> None:
        if agent.fileno() in self.agents:
            self.poll.unregister(agent.fileno())
            del self.agents[agent.fileno()]
            agent.close()

    def _send(self, agent: socket.socket, message: dict[str, Any], fds: list[int] = []) -> None:  # noqa: B006
        """An agent that is gone, or hangs and is left, misses nothing: `list` tells all again."""
        try:
            socket.send_fds(agent, [json.dumps(message).encode()], fds)
        except TimeoutError:
            self._drop(agent)
        except OSError:
            pass  # its end will be read

    # --- operations: (answer or None, fds to send along)

    def on_start(
        self, request: dict[str, Any], fds: dict[str, int], agent: socket.socket
    ) -> tuple[dict[str, Any] | None, list[int]]:
        """fds: payload, stdout, stderr; maybe stdin, stdin_writer, netns, cgroup, gate."""
        flags = _FIRST | (k.CLONE_NEWCGROUP if "cgroup" in fds else 0)
        keep = ("stdout", "stderr", "stdin_writer")
        process = self._spawn(request, fds, agent, flags, child.start, keep)
        found = {"pid": process.pid, "start": _start_time(process.pid), "boot": self.boot}
        _write_record(request["record"], found)
        return None, []

    def on_exec(
        self, request: dict[str, Any], fds: dict[str, int], agent: socket.socket
    ) -> tuple[dict[str, Any] | None, list[int]]:
        """fds: payload, target (the container's pidfd), stdin, stdout, stderr; maybe cgroup."""
        try:
            k.setns(fds["target"], k.CLONE_NEWPID)  # for children only; taken back at once
            try:
                self._spawn(request, fds, agent, 0, child.execute, ())
            finally:
                k.setns(self.own_pid_namespace, k.CLONE_NEWPID)
        except OSError as error:
            for fd in fds.values():
                _close(fd)
            return {"error": f"the container is not running ({error.strerror})", "code": 125}, []
        return None, []

    def _spawn(
        self,
        request: dict[str, Any],
        fds: dict[str, int],
        agent: socket.socket,
        flags: int,
        become: Any,
        keep: tuple[str, ...],
    ) -> Process:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid, pidfd = k.clone3(flags, fds.get("cgroup"))
        if pid == 0:
            ours.close()
            fds.setdefault("stdin", self.null)
            become(fds["payload"], fds, theirs)
            os._exit(125)
        theirs.close()
        held = {}
        for name, fd in fds.items():
            if name in keep:
                held[name] = fd
            else:
                os.close(fd)
        process = Process(request["id"], pid, pidfd, held)
        process.asked_by = (agent, request["n"])
        self._watch(process)
        self._keep(process)
        self.reports[ours.fileno()] = Report(ours, process)
        self.poll.register(ours.fileno(), select.EPOLLIN)
        return process

    def _watch(self, process: Process) -> None:
        self.processes[process.id] = process
        self.by_pidfd[process.pidfd] = process
        self.poll.register(process.pidfd, select.EPOLLIN)

    def _keep(self, process: Process) -> None:
        """Have the keeper hold what we hold of it; a new keeper is given everything."""
        if not self.kept.put(process.id, _describe(process), _fds(process)):
            self._keep_all()

    def _keep_all(self) -> None:
        for process in self.processes.values():
            self.kept.put(process.id, _describe(process), _fds(process))

    def on_list(
        self, request: dict[str, Any], fds: dict[str, int], agent: socket.socket
    ) -> tuple[dict[str, Any] | None, list[int]]:
        """One reply per process, then {"end": true}."""
        for process in self.processes.values():
            if process.asked_by is not None and process.error is not None:
                continue  # never became anything
            fds_ = _fds(process)
            message = {**_describe(process), "n": request["n"], "fds": list(fds_)}
            self._send(agent, message, list(fds_.values()))
        return {"end": True}, []

    def on_release(
        self, request: dict[str, Any], fds: dict[str, int], agent: socket.socket
    ) -> tuple[dict[str, Any] | None, list[int]]:
        """Close one held fd: the end of stdin."""
        process = self.processes.get(request["id"])
        if process and (fd := process.held.pop(request["name"], None)) is not None:
            _close(fd)
            self._keep(process)
        return {}, []

    def on_forget(
        self, request: dict[str, Any], fds: dict[str, int], agent: socket.socket
    ) -> tuple[dict[str, Any] | None, list[int]]:
        """The exit is in the agent's books and the output drained."""
        process = self.processes.get(request["id"])
        if process and process.time:
            self._remove(process)
        return {}, []

    # --- children

    def _read_report(self, fd: int) -> None:
        report = self.reports[fd]
        process = report.process
        try:
            data, fds, _, _ = socket.recv_fds(report.socket, _PACKET, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            data, fds = b"", []
        if data == child.MASTER:
            process.held["master"] = fds[0]
            self._keep(process)
        elif data == child.ABOUT_TO_EXEC:
            report.about_to_exec = True
        elif data[:1] == child.FAILED:
            code, text = json.loads(data[1:])
            process.error = (code, text)
        else:
            self.poll.unregister(fd)
            del self.reports[fd]
            report.socket.close()
            if process.error is None and not report.about_to_exec:
                process.error = (125, "killed while it was set up (is the memory limit too low?)")
            if process.error is None:
                self._started(process)
            elif process.time:
                self._not_started(process)

    def _started(self, process: Process) -> None:
        if process.asked_by is None:
            return
        agent, number = process.asked_by
        process.asked_by = None
        out = {name: fd for name, fd in process.held.items() if name == "master"}
        if process.pidfd >= 0:
            out["pidfd"] = process.pidfd
        self._send(agent, {"n": number, "pid": process.pid, "fds": list(out)}, list(out.values()))
        if process.time:
            self._tell_exit(process)

    def _not_started(self, process: Process) -> None:
        """Told only once the child is gone, so that its cgroup can be removed."""
        assert process.error is not None and process.asked_by is not None
        agent, number = process.asked_by
        code, text = process.error
        if agent.fileno() not in self.agents:  # gone; the next one may have seen it in a list
            process.error = process.asked_by = None
            self._tell_exit(process)
            return
        self._send(agent, {"n": number, "error": text, "code": code})
        self._remove(process)

    def _reap(self, fd: int) -> None:
        process = self.by_pidfd.pop(fd)
        self.poll.unregister(fd)
        process.code = _reaped(process) if process.ours else _code_of_stranger(process)
        process.time = time.time()
        if process.asked_by is not None:  # its report is still to be read
            if process.error is not None and not self._reporting(process):
                self._not_started(process)
            return
        self._tell_exit(process)

    def _reporting(self, process: Process) -> bool:
        return any(report.process is process for report in self.reports.values())

    def _tell_exit(self, process: Process) -> None:
        self._keep(process)
        for agent in list(self.agents.values()):
            self._send(agent, {"event": "exit", **_describe(process)})

    def _remove(self, process: Process) -> None:
        if self.processes.get(process.id) is process:
            del self.processes[process.id]
            if not self.kept.drop(process.id):
                self._keep_all()
        for fd in (*process.held.values(), process.pidfd):
            if fd >= 0:
                _close(fd)
        process.held, process.pidfd = {}, -1


def _reaped(process: Process) -> int:
    info = os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED)
    assert info is not None
    return info.si_status if info.si_code == os.CLD_EXITED else 128 + info.si_status


def _code_of_stranger(process: Process) -> int | None:
    """Whoever its parent is may be reaping it just now: between two states it tells nothing."""
    for _ in range(20):
        status = k.exit_status(process.pid, process.pidfd)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        time.sleep(0.001)
    return None


def _pidfd_of(told: dict[str, Any]) -> int:
    """A pidfd of exactly the process on record; -1 where it is gone."""
    try:
        pidfd = k.pidfd_open(told["pid"])
    except ProcessLookupError:
        return -1
    try:
        if _start_time(told["pid"]) == told["start"]:
            return pidfd
    except (FileNotFoundError, ProcessLookupError):
        pass
    os.close(pidfd)
    return -1


def _fds(process: Process) -> dict[str, int]:
    """Everything we hold of it, by name."""
    return dict(process.held) if process.pidfd < 0 else {**process.held, "pidfd": process.pidfd}


def _describe(process: Process) -> dict[str, Any]:
    return {"id": process.id, "pid": process.pid, "code": process.code, "time": process.time}


def _start_time(pid: int) -> int:
    """Clock ticks since boot at which `pid` began (proc_pid_stat(5), field 22)."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _write_record(path: str, body: dict[str, Any]) -> None:
    """Whole or not at all. A full /run must not stop the shim: then only memory knows."""
    try:
        with open(path + ".new", "w") as file:
            file.write(json.dumps(body))
        os.rename(path + ".new", path)
    except OSError as error:
        print(f"cannot write {path}: {error.strerror}", file=sys.stderr)


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError as error:
        print(f"closing fd {fd}: {error.strerror}", file=sys.stderr)


def main(argv: list[str]) -> None:
    """`shim --socket PATH --keeper PATH --containers DIR [--cgroup DIR]...`: serve for ever."""
    values = dict(zip(argv[::2], argv[1::2]))
    path = values["--socket"]
    cgroups = [v for key, v in zip(argv[::2], argv[1::2]) if key == "--cgroup"]
    for directory in cgroups:
        with open(f"{directory}/cgroup.procs", "w") as file:
            file.write("0")
    k.set_process_name(b"orchestra-shim")
    k.prctl(k.PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    gc.collect()
    gc.disable()  # nothing we do makes cycles; a collection would copy every shared page
    gc.freeze()
    kept = Kept(values["--keeper"])
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    new = path + ".new"
    if os.path.exists(new):
        os.unlink(new)
    listener.bind(new)
    os.chmod(new, 0o600)
    listener.listen(16)
    os.rename(new, path)  # who connects finds it listening
    if os.fork():  # the agent waits for this process only: the shim is nobody's child
        os._exit(0)
    os.setsid()
    listener.listen(16)  # again: now the kernel names us as its owner (SO_PEERCRED)
    shim = Shim(listener, kept)
    shim.take_over(values["--containers"])
    shim.run()


if __name__ == "__main__":
    main(sys.argv[1:])
