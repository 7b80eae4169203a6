"""Seccomp profiles: rules over system call names, compiled to the kernel's classic BPF.

A profile is a default action and rules; a rule gives an action to names, maybe only where
arguments compare and where capabilities, architecture or kernel version fit. `compile_profile`
makes the program: a binary tree over syscall numbers, so that a call costs about nine comparisons
however long the list is. Calls of another ABI of the same machine (32-bit, x32) get ENOSYS: they
have tables of their own that we do not ship. Sources: seccomp(2), bpf(2)'s classic instructions,
libseccomp's meaning of SCMP_CMP_*.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen

from orchestra.linux.syscall_numbers import ARCHITECTURES, PROFILE_NAMES

_ALLOW, _ERRNO, _TRACE, _LOG = 0x7FFF_0000, 0x0005_0000, 0x7FF0_0000, 0x7FFC_0000
_TRAP, _KILL_THREAD, _KILL_PROCESS = 0x0003_0000, 0x0000_0000, 0x8000_0000
_LOAD, _JEQ, _JGE, _JGT, _AND, _JUMP, _RETURN = 0x20, 0x15, 0x35, 0x25, 0x54, 0x05, 0x06
_X32_BIT = 0x4000_0000

Instruction = tuple[int, int, int, int]


class InvalidProfile(ValueError):
    """A seccomp profile that cannot be understood; names the key."""


@frozen
class Condition:
    """Compare 64-bit argument `index` with `value`; masked: (argument & value) == value_two."""

    index: int
    op: str  # NE LT LE EQ GE GT MASKED_EQ
    value: int
    value_two: int = 0


@frozen
class SyscallRule:
    """`caps` all held, `without_caps` none held, else the rule is not there; same for the rest."""

    names: tuple[str, ...]
    action: int = _ALLOW
    conditions: tuple[Condition, ...] = ()
    caps: tuple[str, ...] = ()
    without_caps: tuple[str, ...] = ()
    arches: tuple[str, ...] = ()
    without_arches: tuple[str, ...] = ()
    min_kernel: tuple[int, int] = (0, 0)

    def applies(self, caps: frozenset[str], machine: str, kernel: tuple[int, int]) -> bool:
        arch = PROFILE_NAMES[machine][0]
        return (
            set(self.caps) <= caps
            and not set(self.without_caps) & caps
            and (not self.arches or arch in self.arches)
            and arch not in self.without_arches
            and kernel >= self.min_kernel
        )


@frozen
class Profile:
    default: int
    rules: tuple[SyscallRule, ...]


def deny(number: int) -> int:
    """The action that makes a call fail with errno `number`."""
    return _ERRNO | number


ALLOW = _ALLOW


@functools.lru_cache(maxsize=64)
def compile_profile(
    profile: Profile, caps: frozenset[str], machine: str, kernel: tuple[int, int]
) -> bytes:
    """The filter program for a process that will hold `caps` ("CAP_CHOWN").

    Names that the machine does not have are skipped: profiles list those of all machines. Raises
    InvalidProfile where we have no table for `machine` or the program is too long for the kernel.
    """
    if machine not in ARCHITECTURES:
        raise InvalidProfile(f"no table of system calls for {machine}")
    audit_arch, numbers = ARCHITECTURES[machine]
    by_number: dict[int, list[SyscallRule]] = {}
    for rule in profile.rules:
        if rule.applies(caps, machine, kernel):
            for name in rule.names:
                if name in numbers:
                    by_number.setdefault(numbers[name], []).append(rule)
    leaves: list[tuple[int, list[Instruction]]] = []
    following = 0
    for number in sorted(by_number):
        if number > following:
            leaves.append((following, _leaf([], profile.default)))
        leaves.append((number, _leaf(by_number[number], profile.default)))
        following = number + 1
    leaves.append((following, _leaf([], profile.default)))
    merged = leaves[:1]
    for start, body in leaves[1:]:
        if body != merged[-1][1]:
            merged.append((start, body))
    program = [
        (_LOAD, 0, 0, 4),
        (_JEQ, 1, 0, audit_arch),
        (_RETURN, 0, 0, deny(errno.ENOSYS)),
        (_LOAD, 0, 0, 0),
        (_JGE, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, deny(errno.ENOSYS)),
        *_tree(merged),
    ]
    if len(program) > 4096:
        raise InvalidProfile(f"the filter has {len(program)} instructions, the kernel takes 4096")
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def default_filter(caps: Iterable[str], profile: Profile) -> bytes:
    """Compile for the running machine and kernel."""
    return compile_profile(profile, frozenset(caps), os.uname().machine, running_kernel())


def running_kernel() -> tuple[int, int]:
    major, minor, *_ = os.uname().release.split("-")[0].split(".")
    return int(major), int(minor)


def _tree(leaves: Sequence[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """Binary search by number; jumps beyond a byte's reach go through an unconditional one."""
    if len(leaves) == 1:
        return leaves[0][1]
    middle = len(leaves) // 2
    low, high = _tree(leaves[:middle]), _tree(leaves[middle:])
    pivot = leaves[middle][0]
    if len(low) < 256:
        return [(_JGE, len(low), 0, pivot), *low, *high]
    return [(_JGE, 0, 1, pivot), (_JUMP, 0, 0, len(low)), *low, *high]


def _leaf(rules: Sequence[SyscallRule], default: int) -> list[Instruction]:
    """First rule whose conditions hold decides; an unconditional one ends the list."""
    body: list[Instruction] = []
    for rule in sorted(rules, key=lambda r: not r.conditions):
        if not rule.conditions:
            return [*body, (_RETURN, 0, 0, rule.action)]
        # Each condition falls through where it holds and jumps behind the return where not.
        tail: list[Instruction] = [(_RETURN, 0, 0, rule.action)]
        for condition in reversed(rule.conditions):
            tail = [*_compare(condition, len(tail)), *tail]
        body += tail
    return [*body, (_RETURN, 0, 0, default)]


def _compare(c: Condition, beyond: int) -> list[Instruction]:
    """Fall through where `c` holds, else skip `beyond` more instructions.

    The argument is two 32-bit words, little-endian in struct seccomp_data.
    """
    low_at = 16 + 8 * c.index
    high_at = low_at + 4
    low, high = c.value & 0xFFFF_FFFF, c.value >> 32
    if c.op == "MASKED_EQ":
        want_low, want_high = c.value_two & 0xFFFF_FFFF, c.value_two >> 32
        return [
            (_LOAD, 0, 0, high_at),
            (_AND, 0, 0, high),
            (_JEQ, 0, beyond + 3, want_high),
            (_LOAD, 0, 0, low_at),
            (_AND, 0, 0, low),
            (_JEQ, 0, beyond, want_low),
        ]
    load_high, load_low = (_LOAD, 0, 0, high_at), (_LOAD, 0, 0, low_at)
    if c.op == "EQ":
        return [load_high, (_JEQ, 0, beyond + 2, high), load_low, (_JEQ, 0, beyond, low)]
    if c.op == "NE":
        return [load_high, (_JEQ, 0, 2, high), load_low, (_JEQ, beyond, 0, low)]
    if c.op in ("GT", "GE"):
        jump = _JGT if c.op == "GT" else _JGE
        return [
            load_high,
            (_JGT, 3, 0, high),
            (_JEQ, 0, beyond + 2, high),
            load_low,
            (jump, 0, beyond, low),
        ]
    if c.op in ("LT", "LE"):  # not (argument >= value), not (argument > value)
        jump = _JGE if c.op == "LT" else _JGT
        return [
            load_high,
            (_JGT, beyond + 3, 0, high),
            (_JEQ, 0, 2, high),
            load_low,
            (jump, beyond, 0, low),
        ]
    raise InvalidProfile(f"unknown comparison {c.op!r}")


# --- a user's profile ------------------------------------------------------------------------

_ACTIONS = {
    "SCMP_ACT_ALLOW": _ALLOW,
    "SCMP_ACT_LOG": _LOG,
    "SCMP_ACT_TRAP": _TRAP,
    "SCMP_ACT_KILL": _KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": _KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": _KILL_PROCESS,
}


def parse_profile(text: str) -> Profile:
    """Read a profile in the JSON that Docker and the runtime specification use.

    Raises InvalidProfile naming the key. SCMP_ACT_NOTIFY is refused: nobody would listen.
    """
    try:
        body = json.loads(text)
    except ValueError as error:
        raise InvalidProfile(f"not JSON: {error}") from None
    if not isinstance(body, dict) or "defaultAction" not in body:
        raise InvalidProfile("defaultAction is missing")
    default = _action(body["defaultAction"], body.get("defaultErrnoRet"), "defaultAction")
    rules = []
    for index, raw in enumerate(body.get("syscalls") or ()):
        where = f"syscalls[{index}]"
        if not isinstance(raw, dict):
            raise InvalidProfile(f"{where}: expected an object")
        rules.append(_rule(raw, where))
    return Profile(default, tuple(rules))


def _rule(raw: Mapping[str, Any], where: str) -> SyscallRule:
    names = raw.get("names") or ([raw["name"]] if "name" in raw else [])
    includes, excludes = raw.get("includes") or {}, raw.get("excludes") or {}
    kernel = str(includes.get("minKernel") or "0.0").split(".")
    try:
        conditions = tuple(
            Condition(
                index=int(a["index"]),
                op=str(a["op"]).removeprefix("SCMP_CMP_"),
                value=int(a["value"]),
                value_two=int(a.get("valueTwo") or 0),
            )
            for a in raw.get("args") or ()
        )
        return SyscallRule(
            names=tuple(str(name) for name in names),
            action=_action(raw.get("action"), raw.get("errnoRet"), f"{where}.action"),
            conditions=conditions,
            caps=tuple(includes.get("caps") or ()),
            without_caps=tuple(excludes.get("caps") or ()),
            arches=tuple(includes.get("arches") or ()),
            without_arches=tuple(excludes.get("arches") or ()),
            min_kernel=(int(kernel[0]), int(kernel[1])),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InvalidProfile(f"{where}: {error}") from None


def _action(name: object, number: object, where: str) -> int:
    if name == "SCMP_ACT_ERRNO":
        return deny(errno.EPERM if number is None else int(str(number)))
    if name == "SCMP_ACT_TRACE":
        return _TRACE | (0 if number is None else int(str(number)))
    if name not in _ACTIONS:
        raise InvalidProfile(f"{where}: unknown action {name!r}")
    return _ACTIONS[str(name)]
