"""The tiny init: PID 1 of a container that asks for one (`init: true`).

It forwards every signal to the one child it is told of, reaps all others, and ends with that
child's code. Python would cost a megabyte per container for this; a hand-assembled program of 150
bytes costs two pages. What follows are the assembler's listings (offset, bytes, instruction); the
bytes are taken from them and wrapped in the smallest static ELF file. The child's parts of the work
(its process group, the terminal, the signal mask) are done before exec, in `runtime.child`.
Sources: elf(5), rt_sigtimedwait(2), wait4(2).
"""

from __future__ import annotations

import os
import struct

_X86_64 = """
00 488b742410     mov rsi,QWORD PTR [rsp+0x10]  ; argv[1]: the pid to wait for, in decimal
05 4531e4         xor r12d,r12d
08 0fb606         movzx eax,BYTE PTR [rsi]
0b 83e830         sub eax,0x30
0e 780c           js 1c
10 456be40a       imul r12d,r12d,0xa
14 4101c4         add r12d,eax
17 48ffc6         inc rsi
1a ebec           jmp 8
1c 6aff           push 0xffffffffffffffff       ; a set of all signals
1e 4989e5         mov r13,rsp
21 31ff           xor edi,edi
23 4c89ee         mov rsi,r13
26 31d2           xor edx,edx
28 6a08           push 0x8
2a 415a           pop r10
2c 6a0e           push 0xe                      ; rt_sigprocmask(SIG_BLOCK, all)
2e 58             pop rax
2f 0f05           syscall
31 4c89ef         mov rdi,r13
34 31f6           xor esi,esi
36 31d2           xor edx,edx
38 6a08           push 0x8
3a 415a           pop r10
3c b880000000     mov eax,0x80                  ; rt_sigtimedwait(all, 0, 0, 8)
41 0f05           syscall
43 83f811         cmp eax,0x11                  ; SIGCHLD: reap
46 7410           je 58
48 85c0           test eax,eax
4a 7ee5           jle 31
4c 4489e7         mov edi,r12d
4f 89c6           mov esi,eax
51 6a3e           push 0x3e                     ; kill(child, signal)
53 58             pop rax
54 0f05           syscall
56 ebd9           jmp 31
58 6aff           push 0xffffffffffffffff       ; wait4(-1, &status, WNOHANG, 0)
5a 5f             pop rdi
5b 6a00           push 0x0
5d 4889e6         mov rsi,rsp
60 6a01           push 0x1
62 5a             pop rdx
63 4531d2         xor r10d,r10d
66 6a3d           push 0x3d
68 58             pop rax
69 0f05           syscall
6b 5f             pop rdi
6c 85c0           test eax,eax
6e 7ec1           jle 31
70 4439e0         cmp eax,r12d                  ; ours? else the next one
73 75e3           jne 58
75 89f8           mov eax,edi                   ; exit code, or 128 + signal
77 83e07f         and eax,0x7f
7a 7509           jne 85
7c c1ef08         shr edi,0x8
7f 400fb6ff       movzx edi,dil
83 eb06           jmp 8b
85 8db880000000   lea edi,[rax+0x80]
8b b8e7000000     mov eax,0xe7                  ; exit_group
90 0f05           syscall
"""

_AARCH64 = """
00 e10b40f9       ldr x1, [sp, #16]             ; argv[1]: the pid to wait for, in decimal
04 13008052       mov w19, #0x0
08 42018052       mov w2, #0xa
0c 20144038       ldrb w0, [x1], #1
10 00c00071       subs w0, w0, #0x30
14 64000054       b.mi 20
18 7302021b       madd w19, w19, w2, w0
1c fcffff17       b c
20 00008092       mov x0, #0xffffffffffffffff   ; a set of all signals
24 e00f1ff8       str x0, [sp, #-16]!
28 f4030091       mov x20, sp
2c 000080d2       mov x0, #0x0
30 e10314aa       mov x1, x20
34 020080d2       mov x2, #0x0
38 030180d2       mov x3, #0x8
3c e81080d2       mov x8, #0x87                 ; rt_sigprocmask(SIG_BLOCK, all)
40 010000d4       svc #0x0
44 e00314aa       mov x0, x20
48 010080d2       mov x1, #0x0
4c 020080d2       mov x2, #0x0
50 030180d2       mov x3, #0x8
54 281180d2       mov x8, #0x89                 ; rt_sigtimedwait(all, 0, 0, 8)
58 010000d4       svc #0x0
5c 1f440071       cmp w0, #0x11                 ; SIGCHLD: reap
60 00010054       b.eq 80
64 1f000071       cmp w0, #0x0
68 edfeff54       b.le 44
6c e103002a       mov w1, w0
70 e003132a       mov w0, w19
74 281080d2       mov x8, #0x81                 ; kill(child, signal)
78 010000d4       svc #0x0
7c f2ffff17       b 44
80 00008092       mov x0, #0xffffffffffffffff   ; wait4(-1, &status, WNOHANG, 0)
84 ff4300d1       sub sp, sp, #0x10
88 e1030091       mov x1, sp
8c 220080d2       mov x2, #0x1
90 030080d2       mov x3, #0x0
94 882080d2       mov x8, #0x104
98 010000d4       svc #0x0
9c e10340b9       ldr w1, [sp]
a0 ff430091       add sp, sp, #0x10
a4 1f000071       cmp w0, #0x0
a8 edfcff54       b.le 44
ac 1f00136b       cmp w0, w19                   ; ours? else the next one
b0 81feff54       b.ne 80
b4 20180072       ands w0, w1, #0x7f            ; exit code, or 128 + signal
b8 61000054       b.ne c4
bc 203c0853       ubfx w0, w1, #8, #8
c0 02000014       b c8
c4 00000211       add w0, w0, #0x80
c8 c80b80d2       mov x8, #0x5e                 ; exit_group
cc 010000d4       svc #0x0
"""

_MACHINES = {"x86_64": (62, _X86_64), "aarch64": (183, _AARCH64)}  # EM_X86_64, EM_AARCH64
_BASE = 0x40_0000


def init_program(machine: str = "") -> bytes:
    """An ELF executable for `machine` (this one if not said); argv[1] is the child's pid."""
    number, listing = _MACHINES[machine or os.uname().machine]
    code = b"".join(bytes.fromhex(line.split()[1]) for line in listing.strip().splitlines())
    size = 64 + 56 + len(code)
    header = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH",
        b"\x7fELF",
        2,  # 64 bits
        1,  # little-endian
        1,  # version
        0,  # System V
        2,  # ET_EXEC
        number,
        1,
        _BASE + 64 + 56,  # entry
        64,  # program headers follow
        0,
        0,
        64,
        56,
        1,
        0,
        0,
        0,
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)  # PT_LOAD, R+X
    return header + segment + code
