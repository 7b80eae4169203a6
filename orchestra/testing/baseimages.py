"""Base images made on the spot from Debian packages, so that nothing needs a registry.

`python -m orchestra.testing.baseimages --cache DIR NAME...` writes `DIR/NAME.tar`, an archive that
`orchestra image load` takes, and prints its path. A recipe names packages; they are downloaded and
unpacked with the libraries they depend on, without what only their installation scripts need, over
busybox as the userland: seconds, where a debootstrap takes minutes. What was made once is kept
under the digest of its recipe: remove the files to get newer packages.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path

import trio
from attrs import field, frozen

from orchestra.image.flow import push
from orchestra.image.images import Images
from orchestra.image.pack import pack

EPOCH = 1_700_000_000  # Unix seconds: no file of an image is newer, so that builds are alike
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What Debian's dependencies pull in for maintainer scripts, terminals' manuals and the like; the
# programs of a recipe do not load it.
_SCRIPTS_ONLY = frozenset(
    {
        "adduser",
        "cdebconf",
        "debconf",
        "dpkg",
        "gcc-12-base",
        "init-system-helpers",
        "install-info",
        "libelogind0",
        "libtirpc-common",
        "lsb-base",
        "mailcap",
        "media-types",
        "mime-support",
        "passwd",
        "perl",
        "perl-base",
        "readline-common",
        "sysvinit-utils",
        "tar",
        "usr-is-merged",
        "usrmerge",
    }
)
_UNWANTED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/locale",
    "usr/share/initramfs-tools",
    "lib/systemd",
    "etc/init.d",
    "etc/default",
    "etc/logrotate.d",
)
_FILES: Mapping[str, str] = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
        "www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n"
        "redis:x:999:999::/data:/usr/sbin/nologin\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "etc/group": (
        "root:x:0:\ndaemon:x:1:\ntty:x:5:\nwww-data:x:33:\nredis:x:999:\nnogroup:x:65534:\n"
    ),
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/resolv.conf": "",
}
_DIRECTORIES: Mapping[str, int] = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sbin": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "usr/bin": 0o755,
    "usr/sbin": 0o755,
    "usr/local/bin": 0o755,
    "var/tmp": 0o1777,
}


@frozen
class Recipe:
    """An image: its name, the packages whose programs it is made of, the configuration."""

    image: str
    packages: tuple[str, ...]
    changes: tuple[str, ...]
    finish: Callable[[Path], None] = lambda root: None
    unwanted: tuple[str, ...] = field(default=())


def _finish_redis(root: Path) -> None:
    data = root / "data"
    data.mkdir(mode=0o755)
    os.chown(data, 999, 999)


def _finish_python(root: Path) -> None:
    """Name the interpreter as people call it, and compile the library: starts take half as long."""
    versioned = next((root / "usr/bin").glob("python3.*"))
    for name in ("python3", "python"):
        link = root / "usr/bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(versioned.name)
    # One worker: the pool of more wants /dev/shm, which is not mounted here.
    compileall = ("/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode")
    _run("chroot", str(root), *compileall, "unchecked-hash", f"/usr/lib/{versioned.name}")


RECIPES: Mapping[str, Recipe] = {
    "busybox": Recipe("busybox:latest", (), (f"ENV {_PATH}", 'CMD ["sh"]')),
    "redis": Recipe(
        "redis:7",
        ("redis-server", "redis-tools"),
        (
            f"ENV {_PATH}",
            "EXPOSE 6379",
            "VOLUME /data",
            "WORKDIR /data",
            'CMD ["redis-server", "--protected-mode", "no"]',
        ),
        _finish_redis,
    ),
    "python": Recipe(
        "python:3-slim",
        ("python3.11-minimal", "libpython3.11-stdlib"),
        (f"ENV {_PATH} LANG=C.UTF-8", 'CMD ["python3"]'),
        _finish_python,
        ("usr/lib/python3.11/lib2to3", "usr/lib/python3.11/pydoc_data"),
    ),
    "debian": Recipe("debian:bookworm-slim", ("debootstrap",), (f"ENV {_PATH}", 'CMD ["bash"]')),
}


class CannotMake(Exception):
    """A base image could not be made; the text says why and what to do."""


def base_image(name: str, cache: Path) -> Path:
    """The archive of the image `name` (a key of RECIPES) below `cache`, made if it is not there."""
    recipe = RECIPES[name]
    archive, mark = cache / f"{name}.tar", cache / f"{name}.recipe"
    source = Path(__file__).read_bytes()
    key = hashlib.sha256(f"{os.uname().machine} {name}".encode() + source).hexdigest()
    if archive.exists() and mark.exists() and mark.read_text() == key:
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f"{name}-") as scratch:
        root = Path(scratch, "rootfs")
        root.mkdir(mode=0o755)
        if name == "debian":
            _debootstrap(root)
        else:
            _fill(root, recipe, Path(scratch))
        finished = Path(scratch, "image.tar")
        trio.run(_write_image, root, recipe, Path(scratch, "store"), finished)
        mark.unlink(missing_ok=True)
        finished.rename(archive)
    mark.write_text(key)
    return archive


async def _write_image(root: Path, recipe: Recipe, store: Path, archive: Path) -> None:
    images = Images(str(store))
    layer: AsyncIterator[bytes] = push(pack(str(root), root=True, clamp=EPOCH))
    await images.import_rootfs(layer, recipe.image, recipe.changes)
    async with await trio.open_file(archive, "wb") as file:
        async for piece in images.save([recipe.image]):
            await file.write(piece)


def _fill(root: Path, recipe: Recipe, scratch: Path) -> None:
    """A root file system of busybox and the recipe's packages."""
    downloads = scratch / "debs"
    downloads.mkdir()
    _download(["busybox-static", *closure(recipe.packages)], downloads)
    for package in sorted(downloads.glob("*.deb")):
        _run("dpkg-deb", "--extract", str(package), str(root))
    for path in (*_UNWANTED, *recipe.unwanted):
        shutil.rmtree(root / path, ignore_errors=True)
    for path, mode in _DIRECTORIES.items():
        (root / path).mkdir(parents=True, exist_ok=True)
        (root / path).chmod(mode)
    for path, text in _FILES.items():
        (root / path).write_text(text)
    for applet in _run(str(root / "bin/busybox"), "--list").split():
        _link_applet(root, applet)
    recipe.finish(root)


def _link_applet(root: Path, applet: str) -> None:
    """Let busybox serve `applet`, unless a package brought the real program."""
    folders = ("bin", "sbin", "usr/bin", "usr/sbin")
    if not any(os.path.lexists(root / folder / applet) for folder in folders):
        (root / "bin" / applet).symlink_to("busybox")


def closure(packages: Sequence[str]) -> list[str]:
    """`packages` and all that they depend on at run time, sorted; first alternatives only."""
    found: set[str] = set()
    asked = set(packages)
    while asked:
        found |= asked
        asked = set(_dependencies(sorted(asked))) - found - _SCRIPTS_ONLY
    return sorted(found)


def _dependencies(packages: Sequence[str]) -> Iterator[str]:
    """Parse apt-cache's "  Depends: NAME" and " |Depends: NAME" (more alternatives follow)."""
    switches = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    output = _apt("apt-cache", "depends", *(f"--no-{kind}" for kind in switches), *packages)
    first = True
    for line in output.splitlines():
        kind, colon, package = line.strip().partition(": ")
        if not colon or kind.lstrip("|") not in ("Depends", "PreDepends"):
            continue
        if first and not package.startswith("<"):
            yield package.partition(":")[0]
        first = not kind.startswith("|")


def _download(packages: Sequence[str], folder: Path) -> None:
    _apt("apt-get", "download", "-qq", *packages, folder=folder)


def _apt(*command: str, folder: Path | None = None) -> str:
    """Run an apt command; where package lists are missing or old, get them and try once more."""
    try:
        return _run(*command, folder=folder)
    except CannotMake:
        _run("apt-get", "update", "-qq")
        return _run(*command, folder=folder)


def _debootstrap(root: Path) -> None:
    _run("debootstrap", "--variant=minbase", "bookworm", str(root))
    for path in (*_UNWANTED, "var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / path, ignore_errors=True)
    for node in (root / "dev").iterdir():
        if not stat.S_ISDIR(node.lstat().st_mode):
            node.unlink()  # a container has its own


def _run(*command: str, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise CannotMake(
            f"{command[0]} is not on this host: base images are made from Debian packages, on "
            "Debian 12 (`apt-get install debootstrap dpkg`)"
        ) from None
    if done.returncode:
        reason = (done.stderr or done.stdout).strip()
        raise CannotMake(f"{' '.join(command)} failed: {reason[-2000:]}")
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="orchestra.testing.baseimages", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("/var/cache/orchestra"))
    parser.add_argument("names", nargs="+", choices=sorted(RECIPES), metavar="NAME")
    arguments = parser.parse_args(argv)
    if os.geteuid() != 0:
        print("base images hold files of several owners: run this as root", file=sys.stderr)
        return 1
    for name in arguments.names:
        try:
            print(base_image(name, arguments.cache), flush=True)
        except CannotMake as error:
            print(f"cannot make base image {name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
