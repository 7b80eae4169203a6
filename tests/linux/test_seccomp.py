"""The seccomp compiler: its programs are run by an interpreter here, and by the kernel itself."""

from __future__ import annotations

import base64
import ctypes
import errno
import json
import mmap
import os
import socket
import struct
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra.linux import capabilities
from orchestra.linux.seccomp import (
    ALLOW,
    Condition,
    InvalidProfile,
    Profile,
    SyscallRule,
    compile_profile,
    default_filter,
    deny,
    parse_profile,
)
from orchestra.linux.seccomp_default import DEFAULT_PROFILE
from orchestra.linux.syscall_numbers import ARCHITECTURES
from orchestra.linux.syscalls import PR_SET_NO_NEW_PRIVS, load_seccomp, prctl

DOCKERS = Path("/work/shared/data/seccomp/default.json")
MACHINE = "x86_64"
X86_64, NUMBERS = ARCHITECTURES[MACHINE]
KERNEL = (6, 1)
NO_SUCH_CALL = deny(errno.ENOSYS)


def decide(program: bytes, number: int, args: tuple[int, ...] = (), arch: int = X86_64) -> int:
    """What the kernel would return: classic BPF over struct seccomp_data (seccomp(2))."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *args, *[0] * (6 - len(args)))
    instructions = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, yes, no, k = instructions[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif code == 0x54:
            accumulator &= k
        elif code == 0x05:
            at += k
        elif code == 0x06:
            return k
        else:
            compare = {0x15: int.__eq__, 0x35: int.__ge__, 0x25: int.__gt__}[code]
            at += yes if compare(accumulator, k) else no


def compiled(
    *rules: SyscallRule, default: int = deny(1), caps: frozenset[str] = frozenset()
) -> bytes:
    return compile_profile(Profile(default, rules), caps, MACHINE, KERNEL)


# --- decisions ---------------------------------------------------------------------------------

HOLDS: dict[str, Callable[[int, int, int], bool]] = {
    "NE": lambda a, v, _: a != v,
    "LT": lambda a, v, _: a < v,
    "LE": lambda a, v, _: a <= v,
    "EQ": lambda a, v, _: a == v,
    "GE": lambda a, v, _: a >= v,
    "GT": lambda a, v, _: a > v,
    "MASKED_EQ": lambda a, v, two: a & v == two,
}
WORDS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, 2, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, 2 << 32, (1 << 64) - 1]),
)
CONDITIONS = st.builds(Condition, st.integers(0, 5), st.sampled_from(sorted(HOLDS)), WORDS, WORDS)
RULES = st.builds(
    SyscallRule,
    st.lists(st.sampled_from(sorted(NUMBERS)), min_size=1, max_size=6).map(tuple),
    st.sampled_from([ALLOW, deny(13), deny(99), 0x8000_0000]),
    st.lists(CONDITIONS, max_size=3).map(tuple),
)


def expected(profile: Profile, name: str, args: tuple[int, ...]) -> int:
    """The meaning: the first rule with conditions that all hold, else the one without any."""
    for with_conditions in (True, False):
        for rule in profile.rules:
            if name in rule.names and bool(rule.conditions) == with_conditions:
                held = (HOLDS[c.op](args[c.index], c.value, c.value_two) for c in rule.conditions)
                if all(held):
                    return rule.action
    return profile.default


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_program_decides_as_its_profile_says(data: st.DataObject) -> None:
    profile = Profile(deny(1), tuple(data.draw(st.lists(RULES, max_size=8))))
    program = compile_profile(profile, frozenset(), MACHINE, KERNEL)
    named = sorted({name for rule in profile.rules for name in rule.names}) or ["read"]
    name = data.draw(st.sampled_from([*named, "read"]))
    values = [c.value for rule in profile.rules for c in rule.conditions]
    near = st.sampled_from([(v + d) % (1 << 64) for v in values or [0] for d in (-1, 0, 1)])
    args = tuple(data.draw(st.one_of(near, WORDS)) for _ in range(6))
    assert decide(program, NUMBERS[name], args) == expected(profile, name, args)


@pytest.mark.parametrize("op", sorted(HOLDS))
def test_arguments_are_compared_with_all_their_64_bits(op: str) -> None:
    rule = SyscallRule(("ioctl",), conditions=(Condition(2, op, 5 << 32 | 7, 5 << 32 | 3),))
    program = compiled(rule)
    for high in (0, 4, 5, 6, 0xFFFF_FFFF):
        for low in (0, 3, 6, 7, 8, 0xFFFF_FFFF):
            value = high << 32 | low
            wanted = ALLOW if HOLDS[op](value, 5 << 32 | 7, 5 << 32 | 3) else deny(1)
            assert decide(program, NUMBERS["ioctl"], (9, 9, value)) == wanted


def test_every_number_is_decided_also_those_between_and_beyond_the_known() -> None:
    every_second = tuple(sorted(NUMBERS)[::2])
    program = compiled(SyscallRule(every_second))
    allowed = {NUMBERS[name] for name in every_second}
    for number in [*range(1200), 0x3FFF_FFFF]:
        assert decide(program, number) == (ALLOW if number in allowed else deny(1)), number


def test_a_call_of_another_architecture_or_of_x32_does_not_exist() -> None:
    program = compiled(SyscallRule(tuple(NUMBERS)), default=ALLOW)
    for arch in (0x4000_0003, 0xC000_00B7, 0):  # i386, aarch64, none
        assert decide(program, 1, arch=arch) == NO_SUCH_CALL
    assert decide(program, 0x4000_0000 | NUMBERS["write"]) == NO_SUCH_CALL
    assert decide(program, 0xFFFF_FFFF - (1 << 32)) == NO_SUCH_CALL  # -1, as a tracer would set it


def test_rules_are_there_only_with_their_capability_machine_and_kernel() -> None:
    rules = (
        SyscallRule(("chroot",), caps=("CAP_SYS_CHROOT",)),
        SyscallRule(("clone3",), action=deny(38), without_caps=("CAP_SYS_ADMIN",)),
        SyscallRule(("modify_ldt",), arches=("amd64",)),
        SyscallRule(("kcmp",), without_arches=("amd64",)),
        SyscallRule(("ptrace",), min_kernel=(6, 2)),
    )
    plain, able = (
        compiled(*rules),
        compiled(*rules, caps=frozenset({"CAP_SYS_CHROOT", "CAP_SYS_ADMIN"})),
    )
    assert decide(plain, NUMBERS["chroot"]) == deny(1)
    assert decide(able, NUMBERS["chroot"]) == ALLOW
    assert decide(plain, NUMBERS["clone3"]) == deny(38)
    assert decide(able, NUMBERS["clone3"]) == deny(1)
    assert decide(plain, NUMBERS["modify_ldt"]) == ALLOW
    assert decide(plain, NUMBERS["kcmp"]) == deny(1)
    assert decide(plain, NUMBERS["ptrace"]) == deny(1)
    newer = compile_profile(Profile(deny(1), rules), frozenset(), MACHINE, (6, 2))
    assert decide(newer, NUMBERS["ptrace"]) == ALLOW


def test_the_default_program_is_short_and_a_call_costs_few_steps() -> None:
    caps = capabilities.names(capabilities.mask(capabilities.DEFAULT))
    program = compile_profile(DEFAULT_PROFILE, frozenset(caps), MACHINE, KERNEL)
    assert len(program) // 8 < 400  # the kernel takes 4096
    with pytest.raises(InvalidProfile, match="the kernel takes 4096"):
        long = tuple(Condition(0, "EQ", value) for value in range(1500))
        compiled(*(SyscallRule(("read",), conditions=(c,)) for c in long))


# --- profiles ----------------------------------------------------------------------------------


@pytest.mark.skipif(not DOCKERS.exists(), reason="the shared test data is not on this machine")
@pytest.mark.parametrize("machine", sorted(ARCHITECTURES))
@pytest.mark.parametrize(
    "added",
    [(), ("SYS_ADMIN",), ("SYS_PTRACE", "SYSLOG"), tuple(capabilities.NAMES)],
    ids=["default", "admin", "ptrace", "all"],
)
def test_the_default_profile_decides_as_dockers(machine: str, added: tuple[str, ...]) -> None:
    caps = frozenset(capabilities.names(capabilities.mask([*capabilities.DEFAULT, *added])))
    arch, numbers = ARCHITECTURES[machine]
    ours = compile_profile(DEFAULT_PROFILE, caps, machine, KERNEL)
    theirs = compile_profile(parse_profile(DOCKERS.read_text()), caps, machine, KERNEL)
    arguments = [(), (8,), (0x20008,), (3,), (38,), (39,), (40,), (41,), (0x1000_0000,), (1 << 40,)]
    for name, number in numbers.items():
        for args in arguments:
            mine, docker = (decide(p, number, args, arch) for p in (ours, theirs))
            assert mine == docker, (name, args)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not JSON"),
        ("[]", "defaultAction is missing"),
        ('{"defaultAction": "SCMP_ACT_BOGUS"}', "defaultAction: unknown action 'SCMP_ACT_BOGUS'"),
        ('{"defaultAction": "SCMP_ACT_NOTIFY"}', "unknown action 'SCMP_ACT_NOTIFY'"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [3]}', r"syscalls\[0\]: expected an obj"),
        (
            '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"], "action": "Y"}]}',
            r"syscalls\[0\].action: unknown action 'Y'",
        ),
    ],
)
def test_a_profile_that_is_none_is_refused_by_key(text: str, told: str) -> None:
    with pytest.raises(InvalidProfile, match=told):
        parse_profile(text)


def test_an_unknown_comparison_or_machine_is_refused() -> None:
    with pytest.raises(InvalidProfile, match="unknown comparison 'ALMOST'"):
        compiled(SyscallRule(("read",), conditions=(Condition(0, "ALMOST", 1),)))
    with pytest.raises(InvalidProfile, match="no table of system calls for vax"):
        compile_profile(DEFAULT_PROFILE, frozenset(), "vax", KERNEL)


# --- the kernel --------------------------------------------------------------------------------


def in_child(body: Callable[[], object]) -> object:
    """Run `body` in a forked child, which a filter may bind for good; its result as JSON."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(body()).encode())
        except BaseException:
            os.write(writer, json.dumps(traceback.format_exc()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        told = answer.read()
    os.waitpid(pid, 0)
    return json.loads(told)


def under(program: bytes, body: Callable[[], object]) -> object:
    def bound() -> object:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        load_seccomp(program)
        return body()

    return in_child(bound)


def failure(number: int, *args: int) -> int:
    """errno of a raw call, 0 where it works."""
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.syscall(number, *map(ctypes.c_long, args)) < 0 else 0


needs_x86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86_64 has these numbers")


@needs_x86
def test_the_kernel_takes_the_program_and_obeys_it() -> None:
    def calls() -> list[int]:
        return [
            failure(NUMBERS["getppid"]),
            failure(NUMBERS["personality"], 0xFFFF_FFFF),
            failure(NUMBERS["personality"], 0x0080_0000),
            failure(NUMBERS["dup"], 0),
            failure(0x4000_0000 | NUMBERS["getppid"]),
        ]

    program = compiled(
        SyscallRule(("getppid",), action=deny(errno.EXDEV)),
        SyscallRule(("personality",), deny(errno.EFBIG), (Condition(0, "EQ", 0x0080_0000),)),
        default=ALLOW,
    )
    assert in_child(calls) == [0, 0, 0, 0, errno.ENOSYS]
    assert under(program, calls) == [errno.EXDEV, 0, errno.EFBIG, 0, errno.ENOSYS]


@needs_x86
def test_a_32_bit_call_of_a_64_bit_process_does_not_exist() -> None:
    def call() -> int:
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(bytes.fromhex("53 b814000000 cd80 5b c3"))  # eax = getpid of i386; int 0x80
        address = ctypes.addressof(ctypes.c_char.from_buffer(code))
        return ctypes.CFUNCTYPE(ctypes.c_int)(address)()

    without = in_child(call)
    if not isinstance(without, int) or without <= 0:
        pytest.skip(f"this kernel has no 32-bit calls at all: {without}")
    assert under(compiled(default=ALLOW), call) == -errno.ENOSYS


def test_the_default_filter_refuses_what_it_should_and_lets_programs_live() -> None:
    def calls() -> dict[str, int]:
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        names = ("unshare", "mount", "keyctl", "add_key", "bpf", "kexec_load", "io_uring_setup")
        found = {name: failure(ARCHITECTURES[os.uname().machine][1][name]) for name in names}
        found["clone3"] = failure(435, 0, 0)
        found["code"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with socket.socket() as here:
            found["socket"] = here.bind(("127.0.0.1", 0)) or 0
        try:
            socket.socket(socket.AF_ALG)
        except OSError as error:
            found["AF_ALG"] = error.errno or 0
        return found

    caps = capabilities.names(capabilities.mask(capabilities.DEFAULT))
    program = default_filter(caps, DEFAULT_PROFILE)
    refused = ("unshare", "mount", "keyctl", "add_key", "bpf", "kexec_load", "io_uring_setup")
    assert under(program, calls) == {
        **dict.fromkeys([*refused, "AF_ALG"], errno.EPERM),
        "clone3": errno.ENOSYS,
        "code": 7,
        "socket": 0,
    }


def test_a_compiled_filter_is_the_same_bytes_every_time() -> None:
    caps = frozenset({"CAP_CHOWN"})
    compile_profile.cache_clear()
    first = compile_profile(DEFAULT_PROFILE, caps, MACHINE, KERNEL)
    compile_profile.cache_clear()
    assert base64.b64encode(compile_profile(DEFAULT_PROFILE, caps, MACHINE, KERNEL)) == (
        base64.b64encode(first)
    )
