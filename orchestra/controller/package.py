"""The archives that make a bare host a node or a controller: our modules and what they import.

An archive is a gzipped tar of one directory that Python runs as it is (`python3 -I DIR WORD`). Its
version is a digest of its sources, so equal sources are pushed to a host only once. It carries
compiled modules for the pusher's Python; compiled libraries (.so) ride along only in the native
form, for hosts of the pusher's platform. Law: the agent's archive holds no module of the
controller and none of its libraries.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import marshal
import os
import platform
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from attrs import frozen

import orchestra

AGENT_PACKAGES = (
    "agent",
    "api",
    "build",
    "fabric",
    "image",
    "linux",
    "model",
    "plan",
    "runtime",
    "wire",
)
AGENT_LIBRARIES = ("trio", "h11", "attrs")
AGENT_EXTRAS = ("isal", "backports.zstd")  # only in the native archive
# backports.zstd carries a second binding for Pythons without a C interface; ours has one.
UNUSED = ("backports/zstd/_cffi/",)
LEFT_OUT = ("tests", "_tests", "test", "__pycache__", "testing/lab")
ENTRY = "import sys\n\nfrom {module} import main\n\nsys.exit(main(sys.argv[1:]))\n"


@frozen
class Platform:
    """What compiled modules depend on; `system` names the C library too ("linux-glibc")."""

    system: str
    machine: str
    python: str  # "3.11"

    def __str__(self) -> str:
        return f"Python {self.python} on {self.system} {self.machine}"


@frozen
class Archive:
    version: str
    data: bytes  # tar.gz
    needs: tuple[str, ...] = ()  # libraries that the host must fetch itself


def own_platform() -> Platform:
    libc = platform.libc_ver()[0] or "other"
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return Platform(f"{sys.platform}-{libc}", platform.machine(), python)


def agent_archive(host: Platform) -> Archive:
    """The agent for a host of this platform; pure Python, plus faster codecs where they fit."""
    files = dict(_own_files(AGENT_PACKAGES))
    files |= _library_files(_closure(AGENT_LIBRARIES), native=False)
    if host == own_platform():
        files |= _library_files(_installed(AGENT_EXTRAS), native=True)
    return _archive("agent", files, "orchestra.agent.main")


def controller_archive(host: Platform) -> Archive:
    """The whole of orchestra with its libraries.

    For another platform than ours the libraries with compiled parts are left out and listed in
    `needs`: the host installs them itself.
    """
    files = dict(_own_files(None))
    libraries = _closure(("orchestra",)) - {"orchestra"}
    needs: tuple[str, ...] = ()
    if host != own_platform():
        compiled = {name for name in libraries if _is_compiled(name)}
        needs = tuple(f"{name}=={importlib.metadata.version(name)}" for name in sorted(compiled))
        libraries -= compiled
    files |= _library_files(libraries, native=True)
    archive = _archive("controller", files, "orchestra.cli.main")
    return Archive(archive.version, archive.data, needs)


def _own_files(packages: Iterable[str] | None) -> Iterator[tuple[str, bytes]]:
    root = Path(orchestra.__file__).parent
    tops = [root / p for p in packages] if packages is not None else [root]
    if packages is not None:
        yield "orchestra/__init__.py", (root / "__init__.py").read_bytes()
    for top in tops:
        for path in sorted(top.rglob("*")):
            name = str(PurePosixPath(path.relative_to(root.parent)))
            if path.suffix in (".py", ".json") and not _left_out(name):
                yield name, path.read_bytes()


def _left_out(name: str) -> bool:
    return name.startswith(UNUSED) or any(f"/{part}/" in f"/{name}" for part in LEFT_OUT)


def _closure(names: Iterable[str]) -> set[str]:
    """These distributions and all they require, as far as installed here.

    What is required but not installed is required on other platforms or Pythons only.
    """
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found or not _installed((name,)):
            continue
        found.add(name)
        for requirement in importlib.metadata.requires(name) or ():
            if "extra ==" not in requirement:
                waiting.append(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0])
    return found


def _installed(names: Iterable[str]) -> set[str]:
    found = set()
    for name in names:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
    return found


def _paths(name: str) -> Iterator[tuple[str, Path]]:
    distribution = importlib.metadata.distribution(name)
    for file in distribution.files or ():
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or ".dist-info" in path.parts[0]:
            continue
        if not _left_out(str(path)):
            yield str(path), Path(str(distribution.locate_file(file)))


def _is_compiled(name: str) -> bool:
    return any(".so" in path.suffixes for _, path in _paths(name))


def _library_files(names: Iterable[str], *, native: bool) -> dict[str, bytes]:
    wanted = {".py", ".json", ".so"} if native else {".py", ".json"}
    files = {}
    for name in sorted(names):
        for relative, path in _paths(name):
            if path.suffix in wanted:
                files[relative] = path.read_bytes()
    return files


def _archive(kind: str, files: Mapping[str, bytes], entry: str) -> Archive:
    files = {**files, "__main__.py": ENTRY.format(module=entry).encode()}
    digest = hashlib.sha256(sys.implementation.cache_tag.encode())
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    version = f"{orchestra.__version__}-{digest.hexdigest()[:12]}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orchestra"
    cached = cache / f"{kind}-{version}.tar.gz"
    try:
        return Archive(version, cached.read_bytes())
    except FileNotFoundError:
        data = _pack(files)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in sorted(cache.glob(f"{kind}-*.tar.gz"), key=_age)[:-3]:
        old.unlink(missing_ok=True)
    # Several nodes are added at once, each in a thread: every writer needs a name of its own.
    with tempfile.NamedTemporaryFile(dir=cache, prefix=f"{kind}-", delete=False) as fresh:
        fresh.write(data)
    os.rename(fresh.name, cached)
    return Archive(version, data)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _pack(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=6) as tar:
        for name in sorted(files):
            _add(tar, name, files[name])
            if name.endswith(".py"):
                source = PurePosixPath(name)
                compiled = f"__pycache__/{source.stem}.{sys.implementation.cache_tag}.pyc"
                with suppress(SyntaxError):  # template files of libraries; nobody imports them
                    _add(tar, str(source.parent / compiled), _compile(name, files[name]))
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))


def _compile(name: str, source: bytes) -> bytes:
    """A .pyc that is never checked against its source (PEP 552, unchecked hash)."""
    code = compile(source, name, "exec", dont_inherit=True)
    header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little")
    return header + importlib.util.source_hash(source) + marshal.dumps(code)
