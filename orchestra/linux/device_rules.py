"""Which devices a container may use: cgroup rules for v1, an eBPF program for v2.

Containers hold CAP_MKNOD, so that without this every disk of the host would be theirs. The list is
data, written once; on v2 it becomes a program of type CGROUP_DEVICE (bpf(2), linux/bpf.h) that
answers 1 (allowed) or 0. Making a node is allowed for any device, opening it is not.
"""

from __future__ import annotations

import ctypes
import os
import struct

from orchestra.linux.syscalls import syscall

# (type, major, minor or None = any); access is read, write and mknod.
ALLOWED = (
    ("c", 1, 3),  # null
    ("c", 1, 5),  # zero
    ("c", 1, 7),  # full
    ("c", 1, 8),  # random
    ("c", 1, 9),  # urandom
    ("c", 5, 0),  # tty
    ("c", 5, 1),  # console
    ("c", 5, 2),  # ptmx
    ("c", 136, None),  # pts
)
ALLOWED_V1 = (
    "c *:* m",
    "b *:* m",
    *(f"{kind} {major}:{'*' if minor is None else minor} rwm" for kind, major, minor in ALLOWED),
)

_BPF_PROG_LOAD, _BPF_PROG_ATTACH = 5, 8
_PROG_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_BLOCK, _CHARACTER, _ACCESS_MKNOD = 1, 2, 1


def device_program() -> bytes:
    """The instructions, 8 bytes each: opcode, registers, jump offset, immediate.

    struct bpf_cgroup_dev_ctx is (access << 16 | type, major, minor), all 32 bits.
    """
    load, jump_unless, move, leave = 0x61, 0x55, 0xB7, 0x95
    code: list[tuple[int, int, int, int]] = [
        (load, 0x12, 0, 0),  # r2 = access and type
        (0xBF, 0x23, 0, 0),  # r3 = r2
        (0x57, 0x02, 0, 0xFFFF),  # r2 &= 0xffff: type
        (0x77, 0x03, 0, 16),  # r3 >>= 16: access
        (load, 0x14, 4, 0),  # r4 = major
        (load, 0x15, 8, 0),  # r5 = minor
        (jump_unless, 0x03, 2, _ACCESS_MKNOD),
        (move, 0x00, 0, 1),
        (leave, 0, 0, 0),
    ]
    for kind, major, minor in ALLOWED:
        body = [] if minor is None else [(jump_unless, 0x05, 2, minor)]
        body += [(move, 0x00, 0, 1), (leave, 0, 0, 0)]
        code.append((jump_unless, 0x02, len(body) + 1, _CHARACTER if kind == "c" else _BLOCK))
        code.append((jump_unless, 0x04, len(body), major))
        code += body
    code += [(move, 0x00, 0, 0), (leave, 0, 0, 0)]
    # In the registers byte the destination is the low half, the source the high one.
    return b"".join(
        struct.pack("=BBhi", op, (regs & 0xF) | (regs & 0xF0), offset, value)
        for op, regs, offset, value in code
    )


def attach_device_filter(directory: str) -> None:
    """Attach the program to the v2 cgroup `directory`; it lives as long as the group does."""
    program = device_program()
    code = ctypes.create_string_buffer(program, len(program))
    license_ = ctypes.create_string_buffer(b"GPL")
    load = struct.pack(
        "=IIQQIIQII16s",
        _PROG_TYPE_CGROUP_DEVICE,
        len(program) // 8,
        ctypes.addressof(code),
        ctypes.addressof(license_),
        0,  # log level
        0,  # log size
        0,  # log buffer
        0,  # kernel version
        0,  # flags
        b"orchestra_dev",
    )
    loaded = _bpf(_BPF_PROG_LOAD, load)
    try:
        group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _bpf(_BPF_PROG_ATTACH, struct.pack("=IIII", group, loaded, _ATTACH_CGROUP_DEVICE, 0))
        finally:
            os.close(group)
    finally:
        os.close(loaded)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return syscall("bpf", command, ctypes.byref(buffer), len(attributes))
