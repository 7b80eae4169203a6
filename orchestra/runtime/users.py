"""Who a container's process is: user texts resolved by the image's own passwd and group files.

The grammar is strict ("", "name", "uid", "user:group", "uid:gid", and mixes): a text that is
neither a whole decimal number nor a name in the file is refused, so that "1000:0x" or "-1" can
never become root by accident. Files are opened inside the container's root by fd and must be
regular. Stdlib only: the shim's children run it. Formats: passwd(5), group(5).
"""

from __future__ import annotations

import os

from orchestra.linux.syscalls import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

_HIGHEST = 0xFFFF_FFFE  # -1 means "unchanged" to setuid(2)
_FILE_LIMIT = 4 << 20


class UnknownUser(ValueError):
    """The text names no user or group of this image, or is no such text at all."""


class User:
    """A resolved identity; `home` is "/" where the image does not say."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid, self.gid, self.groups, self.home = uid, gid, groups, home


def resolve(root: int, text: str, additional: list[str]) -> User:
    """The identity for `text` in the image at the fd `root`, with groups of `additional`.

    Supplementary groups of the group file count unless a group is given explicitly, as with
    Docker. Raises UnknownUser.
    """
    passwd, group = _rows(root, "etc/passwd", 7), _rows(root, "etc/group", 4)
    name_text, colon, group_text = text.partition(":")
    if colon and not group_text:
        raise UnknownUser(f"user {text!r}: the group is missing")
    uid, gid, home, name = 0, 0, "/", ""
    if name_text:
        number = _number(name_text)
        row = next((r for r in passwd if r[0] == name_text), None)
        if row is None and number is not None:
            row = next((r for r in passwd if _number(r[2]) == number), None)
        if row is None and number is None:
            raise UnknownUser(
                f"unable to find user {name_text}: no matching entries in passwd file"
            )
    elif colon:
        raise UnknownUser(f"user {text!r}: the user is missing")
    else:
        number, row = 0, next((r for r in passwd if r[2] == "0"), None)
    if row is None:
        uid = number or 0
    else:
        name, uid, gid, home = row[0], _field(row[2]), _field(row[3]), row[5] or "/"
    groups = []
    if colon:
        gid = _group(group, group_text)
    elif name:
        groups = [_field(r[2]) for r in group if name in r[3].split(",")]
    for extra in additional:
        groups.append(_group(group, extra))
    return User(uid, gid, sorted(set(groups)), home)


def owner(root: int, uid: str, gid: str) -> tuple[int, int]:
    """Numbers for the owner of an injected file: names by the image's files."""
    user = resolve(root, uid or "0", [])
    return user.uid, _group(_rows(root, "etc/group", 4), gid or "0")


def _group(rows: list[list[str]], text: str) -> int:
    row = next((r for r in rows if r[0] == text), None)
    if row is not None:
        return _field(row[2])
    number = _number(text)
    if number is None:
        raise UnknownUser(f"unable to find group {text}: no matching entries in group file")
    return number


def _number(text: str) -> int | None:
    """A whole decimal number that setuid(2) takes, else None."""
    if text.isascii() and text.isdigit() and len(text) <= 10:
        value = int(text)
        return value if value <= _HIGHEST else None
    return None


def _field(text: str) -> int:
    number = _number(text)
    if number is None:
        raise UnknownUser(f"the image's passwd or group file holds {text!r} where a number must be")
    return number


def _rows(root: int, path: str, width: int) -> list[list[str]]:
    try:
        rules = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        fd = openat2(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, rules)
    except OSError:  # an image without the file has only numbers
        return []
    try:
        if os.fstat(fd).st_mode & 0o170000 != 0o100000:
            return []
        text = os.read(fd, _FILE_LIMIT).decode(errors="surrogateescape")
    finally:
        os.close(fd)
    rows = [line.strip().split(":") for line in text.splitlines() if not line.startswith("#")]
    return [row for row in rows if len(row) == width]
