"""What the Docker Engine routes call: the engine as the agent implements it.

Routes parse requests and render replies in Docker's shapes; everything that happens is behind
these protocols and speaks model values. References ("ref") are what a user may type: a full id, a
name, or the unique beginning of an id; NotFound, Conflict and Invalid carry the texts that clients
match (see the API notes in docs/api.md).
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from attrs import field, frozen

from orchestra.model.assignment import AssignedNetwork
from orchestra.model.container import (
    Container,
    ContainerSpec,
    Exec,
    ExecSpec,
    Image,
    Limits,
    LocalVolume,
)
from orchestra.model.event import Event
from orchestra.model.local_network import LocalNetwork
from orchestra.model.node import NodeFacts, Observed
from orchestra.model.service import RestartPolicy


@frozen
class CreateRequest:
    """A create call, parsed: what was said, not yet completed from the image.

    `spec` holds what the request says (args = Cmd, entrypoint = Entrypoint, "" and () where it is
    silent); the engine completes it with the image's configuration. `networks` maps network names
    to wished aliases and address. `port_ranges` are the spans, first to last, that ports without
    a number are to be chosen from. `body` is kept for inspect.
    """

    name: str
    spec: ContainerSpec
    entrypoint_given: bool
    cmd_given: bool
    networks: Mapping[str, EndpointWish] = field(factory=dict)
    port_ranges: Mapping[int, tuple[int, int]] = field(factory=dict)  # place in spec.ports
    body: Mapping[str, Any] = field(factory=dict)


@frozen
class EndpointWish:
    aliases: tuple[str, ...] = ()
    address: str = ""
    mac: str = ""


@frozen
class UpdateWish:
    """What a container's limits and policy shall be, whole; `host_config` is kept for inspect."""

    limits: Limits
    restart: RestartPolicy
    host_config: Mapping[str, Any]


@frozen
class NetworkWish:
    """What a call says of a network to be made; the node chooses its subnet."""

    internal: bool = False
    labels: Mapping[str, str] = field(factory=dict)
    options: Mapping[str, str] = field(factory=dict)


@frozen
class LogOptions:
    stdout: bool = True
    stderr: bool = True
    follow: bool = False
    since: float = 0.0  # Unix seconds, 0 = from the beginning
    until: float = 0.0  # 0 = no end
    tail: int | None = None  # None = everything


@frozen
class LogLine:
    """A line (or the unfinished end of one); `data` has its newline if the writer sent one."""

    stream: int  # 1 stdout, 2 stderr
    time_ns: int
    data: bytes


@frozen
class Traffic:
    """What one interface of a container received and sent since it was made."""

    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


@frozen
class Usage:
    """What a running container uses, at one moment. Nanoseconds, bytes, Unix seconds."""

    time: float
    host_cpu: int  # of all processors, idle time too
    host_cpus: int
    host_memory: int
    cpu_total: int = 0
    cpu_user: int = 0
    cpu_system: int = 0
    throttled_periods: int = 0
    memory: int = 0
    memory_limit: int = 0  # 0 = none
    memory_details: Mapping[str, int] = field(factory=dict)
    pids: int = 0
    pids_limit: int = 0  # 0 = none
    block_io: Sequence[tuple[int, int, str, int]] = ()  # major, minor, "read"|"write", bytes
    networks: Mapping[str, Traffic] = field(factory=dict)  # by interface


@frozen
class PathStat:
    """What a path in a container is; `mode` as in stat(2), `link_target` inside its root."""

    name: str
    size: int
    mode: int
    mtime: float
    link_target: str = ""


class Change(enum.Enum):
    """How a path of a container differs from its image; Docker's numbers."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


class Attachment(Protocol):
    """A client's connection to a container's or exec's streams."""

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield (1 stdout | 2 stderr, bytes); of a terminal everything is 1. Ends at the end."""
        ...

    async def write(self, data: bytes) -> None:
        """Send to the process's stdin; silently dropped where stdin is not open."""
        ...

    async def close_stdin(self) -> None:
        """The client's half-close: end of stdin for the process if it may end."""
        ...

    async def aclose(self) -> None:
        """The client is gone; the process lives on."""
        ...


class Waiter(Protocol):
    """Registered before it is awaited, so that no exit can slip between."""

    async def result(self) -> tuple[int, str]:
        """(exit code, error text or "")."""
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """One host's containers, images, volumes and networks."""

    facts: NodeFacts

    # containers
    def containers(self) -> Sequence[Container]: ...
    def container(self, ref: str) -> Container: ...
    async def create(self, request: CreateRequest) -> tuple[str, Sequence[str]]:
        """Return (id, warnings). NotFound("No such image: x:tag") where the image is absent."""
        ...

    async def start(self, ref: str) -> bool:
        """False where it runs already (304). StartFailed with the runtime's text."""
        ...

    async def stop(self, ref: str, timeout: float | None = None, signal: str = "") -> bool: ...
    async def restart(self, ref: str, timeout: float | None = None, signal: str = "") -> None: ...
    async def kill(self, ref: str, signal: str = "SIGKILL") -> None: ...
    async def pause(self, ref: str) -> None: ...
    async def unpause(self, ref: str) -> None: ...
    async def rename(self, ref: str, name: str) -> None: ...
    async def update(self, ref: str, wish: UpdateWish) -> None: ...
    async def remove(self, ref: str, force: bool = False, volumes: bool = False) -> None: ...
    def wait(self, ref: str, condition: str) -> Waiter:
        """condition: not-running, next-exit, removed."""
        ...

    async def attach(
        self, ref: str, stdin: bool, stdout: bool, stderr: bool, logs: bool, stream: bool
    ) -> Attachment: ...
    async def resize(self, ref: str, rows: int, columns: int) -> None: ...
    def logs(self, ref: str, options: LogOptions) -> AsyncIterator[LogLine]: ...
    async def top(self, ref: str) -> tuple[Sequence[str], Sequence[Sequence[str]]]: ...
    def usage(self, ref: str) -> Usage | None:
        """None where it does not run."""
        ...

    async def changes(self, ref: str) -> Sequence[tuple[str, Change]]:
        """What it changed in its image's files, by path; parents come with what is in them."""
        ...

    async def path_stat(self, ref: str, path: str) -> PathStat:
        """NotFound("Could not find the file ..."), Invalid for "x/" where x is no directory."""
        ...

    def archive(self, ref: str, path: str) -> AsyncIterator[bytes]:
        """The tar of a path; of "dir/." its content."""
        ...

    async def unpack(
        self,
        ref: str,
        path: str,
        chunks: AsyncIterator[bytes],
        keep_kinds: bool = False,
        as_user: bool = False,
    ) -> None:
        """Unpack a tar, maybe compressed, at a directory. `keep_kinds`: no directory is replaced
        by something else nor the reverse; `as_user`: all belongs to the container's user."""
        ...

    async def sizes(self, ref: str) -> tuple[int, int]:
        """Bytes of what it wrote itself, and of that and its image's layers together."""
        ...

    # exec
    async def exec_create(self, ref: str, spec: ExecSpec) -> str: ...
    async def exec_start(self, exec_id: str, detach: bool, tty: bool) -> Attachment | None:
        """None when detached. Where the program cannot be run, the attachment carries the text
        and the exec's exit code is 126 or 127."""
        ...

    def exec_inspect(self, exec_id: str) -> Exec: ...
    async def exec_resize(self, exec_id: str, rows: int, columns: int) -> None: ...

    # events
    def events(self, since: float = 0.0, until: float = 0.0) -> AsyncIterator[Event]: ...

    # images: see Images; volumes and networks
    images: Images

    def volumes(self) -> Sequence[LocalVolume]: ...
    async def volume_create(
        self, name: str, labels: Mapping[str, str], options: Mapping[str, str]
    ) -> LocalVolume: ...
    def volume(self, name: str) -> LocalVolume: ...
    async def volume_remove(self, name: str, force: bool = False) -> None: ...
    async def volume_size(self, name: str) -> int:
        """Bytes of the files in it."""
        ...

    def networks(self) -> Sequence[AssignedNetwork]: ...
    def local_networks(self) -> Sequence[LocalNetwork]:
        """Those of `networks` that were made by hand."""
        ...

    async def network_create(self, name: str, wish: NetworkWish) -> LocalNetwork:
        """Conflict for a name that is taken."""
        ...

    async def network_remove(self, network_id: str) -> None:
        """Forbidden where it is in use, or was not made by hand."""
        ...


class Images(Protocol):
    """An image store, as routes need it; `image.Images` is the implementation everywhere."""

    def list(self) -> Sequence[Image]: ...
    def get(self, ref: str) -> Image:
        """NotFound("No such image: ref")."""
        ...

    async def load(self, chunks: AsyncIterator[bytes]) -> Sequence[str]:
        """Load a docker-archive or OCI archive (maybe compressed); the loaded names, or ids."""
        ...

    def save(self, refs: Sequence[str]) -> AsyncIterator[bytes]:
        """One archive of the images; NotFound before the first byte."""
        ...

    async def import_rootfs(
        self, chunks: AsyncIterator[bytes], name: str, changes: Sequence[str], message: str = ""
    ) -> str:
        """Make a one-layer image from a root file system's tar; its id."""
        ...

    async def tag(self, ref: str, name: str) -> None: ...
    async def remove(
        self, ref: str, force: bool = False, in_use: Mapping[str, str] | None = None
    ) -> Sequence[tuple[str, str]]:
        """Return ("Untagged"|"Deleted", what) pairs. `in_use`: image id -> who uses it."""
        ...

    # what shipping needs (node protocol)
    def missing_blobs(self, digests: Sequence[str]) -> Sequence[str]: ...
    async def put_blob(self, digest: str, chunks: AsyncIterator[bytes]) -> None:
        """Store a blob after checking its digest; Invalid where it does not match."""
        ...

    def open_blob(self, digest: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]: ...
    async def put_image(self, manifest_digest: str, names: Sequence[str]) -> Image:
        """Make an image of blobs that are all there; unpacks its layers."""
        ...


class Node(Protocol):
    """The node protocol's side of the agent."""

    def observed(self) -> Observed: ...
    async def wait_observed(self, after: int, timeout: float) -> Observed:
        """Return at once where the sequence is beyond `after`, else at the next change."""
        ...

    def assignment_digests(self) -> tuple[int, Mapping[str, str]]: ...
    def assignment_bodies(self) -> Mapping[str, Any]: ...
    async def put_assignment(
        self, generation: int, digests: Mapping[str, str], bodies: Mapping[str, Any]
    ) -> Sequence[str]:
        """Store it durably and start reconciling; returns section names whose bodies it lacks
        (then nothing was stored). Conflict for a generation below the stored one."""
        ...
