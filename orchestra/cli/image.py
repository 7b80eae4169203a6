"""`orchestra image ...`: the cluster's images; with --host or --node those of one engine.

The cluster's store lives beside its controller. Nodes receive what their tasks need from there,
so an image is loaded once and no registry is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from orchestra.cli.engine import images
from orchestra.cli.table import ago, show
from orchestra.model.errors import Conflict, Failed, Invalid, NotFound, Unavailable

CHUNK = 1 << 20


def register(subparsers: Any) -> None:
    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = subparsers.add_parser(name, help=text, description=text)
        parser.add_argument("--node", metavar="NODE", help="the engine of this node")
        parser.set_defaults(run=run)
        return parser

    load = command("load", run_load, "load images from a docker or OCI archive")
    load.add_argument("-i", "--input", metavar="FILE", help="read FILE instead of stdin")
    load.add_argument("-q", "--quiet", action="store_true", help="no progress")
    rootfs = command("import", run_import, "make an image of a root file system's tar")
    rootfs.add_argument("-c", "--change", action="append", default=[], metavar="INSTRUCTION")
    rootfs.add_argument("-m", "--message", default="", help="comment in the history")
    rootfs.add_argument("file", metavar="ROOTFS.tar", help="the tar, - is stdin")
    rootfs.add_argument("name", metavar="NAME")
    listing = command("ls", run_ls, "list images")
    listing.add_argument("-q", "--quiet", action="store_true", help="ids only")
    listing.add_argument("--no-trunc", action="store_true", help="whole ids")
    listing.add_argument("--digests", action="store_true", help="digests of the manifests too")
    listing.add_argument(
        "-f", "--filter", action="append", default=[], metavar="KEY=VALUE",
        help="dangling, label, before, since, reference or until (several times)",
    )  # fmt: skip
    listing.add_argument("--format", choices=("table", "json"), default="table")
    listing.add_argument("reference", nargs="?", metavar="REPOSITORY[:TAG]")
    remove = command("rm", run_rm, "remove images or names")
    remove.add_argument("-f", "--force", action="store_true")
    remove.add_argument("names", nargs="+", metavar="IMAGE")
    tag = command("tag", run_tag, "give an image another name")
    tag.add_argument("source", metavar="IMAGE")
    tag.add_argument("target", metavar="NAME")
    inspect = command("inspect", run_inspect, "show all of images as JSON")
    inspect.add_argument("names", nargs="+", metavar="IMAGE")
    save = command("save", run_save, "write images to one archive that keeps every digest")
    save.add_argument("-o", "--output", metavar="FILE", help="write to FILE instead of stdout")
    save.add_argument("names", nargs="+", metavar="IMAGE")


def chunks(path: str | None, progress: bool) -> Iterator[bytes]:
    """The bytes of a file or of stdin; on a terminal with a progress bar."""
    if path in (None, "-"):
        while data := sys.stdin.buffer.read(CHUNK):
            yield data
        return
    assert path is not None
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below, opened here for its error
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}") from None
    with file:
        if progress and sys.stderr.isatty():
            yield from with_bar(file, path)
            return
        while data := file.read(CHUNK):
            yield data


def with_bar(file: Any, title: str) -> Iterator[bytes]:
    import os

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(os.path.basename(title), total=os.fstat(file.fileno()).st_size)
        while data := file.read(CHUNK):
            yield data
            progress.advance(task, len(data))


def run_load(args: argparse.Namespace) -> int:
    if args.input is None and sys.stdin.isatty():
        print("orchestra image load: give an archive with --input or on stdin", file=sys.stderr)
        return 2
    with about(args.input):
        for sentence in images(args).load(chunks(args.input, not args.quiet)):
            print(sentence)
    return 0


@contextmanager
def about(path: str | None) -> Iterator[None]:
    """Errors name the file: an archive's images have no names before all of it was read."""
    try:
        yield
    except (Failed, Invalid, Unavailable) as error:
        if path in (None, "-"):
            raise
        raise type(error)(f"{path}: {error}") from None


def run_import(args: argparse.Namespace) -> int:
    with about(args.file):
        body = chunks(args.file, True)
        print(images(args).import_rootfs(body, args.name, args.change, args.message))
    return 0


def short(identity: str) -> str:
    return identity.removeprefix("sha256:")[:12]


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def run_ls(args: argparse.Namespace) -> int:
    filters: dict[str, list[str]] = {}
    for text in args.filter:
        key, equals, value = text.partition("=")
        if not equals:
            raise Invalid(f"cannot filter by {text!r}: write KEY=VALUE, like dangling=true")
        filters.setdefault(key, []).append(value)
    if args.reference:
        filters.setdefault("reference", []).append(args.reference)
    found = images(args).images(filters)
    shown = (lambda identity: identity) if args.no_trunc else short
    if args.quiet:
        for identity in dict.fromkeys(image["Id"] for image in found):
            print(shown(identity))
        return 0
    rows = [row for image in found for row in rows_of(image)]
    if args.format == "table":
        for row in rows:
            row["image_id"] = shown(row.pop("id"))
            row["created"] = ago(row["created"])
            row["size"] = megabytes(row["size"])
    digest = ("digest",) if args.digests else ()
    show(rows, ("repository", "tag", *digest, "image_id", "created", "size"), args.format)
    return 0


def rows_of(image: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An image's rows: one for each name, `<none>` for an image without any."""
    digests = dict(text.rpartition("@")[::2] for text in image["RepoDigests"] or ())
    rows = []
    for name in image["RepoTags"] or ["<none>:<none>"]:
        repository, _, tag = name.rpartition(":")
        rows.append(
            {
                "repository": repository,
                "tag": tag,
                "digest": digests.get(repository, "<none>"),
                "id": image["Id"],
                "created": image["Created"],
                "size": image["Size"],
            }
        )
    return rows


def run_rm(args: argparse.Namespace) -> int:
    client = images(args)
    code = 0
    for name in args.names:
        try:
            gone = client.remove_image(name, args.force)
        except (NotFound, Conflict) as error:
            print(f"orchestra: {error}", file=sys.stderr)
            code = 1
            continue
        for entry in gone:
            for verb, what in entry.items():
                print(f"{verb}: {what}")
    return code


def run_tag(args: argparse.Namespace) -> int:
    repository, colon, tag = args.target.rpartition(":")
    if not colon or "/" in tag:  # the colon belongs to a registry's port
        repository, tag = args.target, ""
    images(args).tag(args.source, repository, tag)
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    client = images(args)
    print(json.dumps([client.image(name) for name in args.names], indent=2))
    return 0


def write(path: str, content: Iterable[bytes]) -> None:
    """Write a file whole or not at all."""
    import os

    partial = f"{path}.partial"
    try:
        with open(partial, "wb") as file:
            for data in content:
                file.write(data)
        os.replace(partial, path)
    except OSError as error:
        raise Failed(f"cannot write {path}: {error.strerror}") from None
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


def run_save(args: argparse.Namespace) -> int:
    content = images(args).save(args.names)
    if args.output:
        write(args.output, content)
        return 0
    if sys.stdout.isatty():
        print(
            "orchestra image save: will not write an archive to a terminal; use --output",
            file=sys.stderr,
        )
        return 2
    for data in content:
        sys.stdout.buffer.write(data)
    return 0
