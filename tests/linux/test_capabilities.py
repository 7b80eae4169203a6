"""Capability names, masks and the sets that containers get."""

from __future__ import annotations

import os

import pytest

from orchestra.linux import capabilities as c
from orchestra.linux.syscalls import PR_CAPBSET_DROP, capset, prctl
from tests.linux.test_seccomp import in_child

ALL = (1 << len(c.NAMES)) - 1


def test_names_and_numbers_are_the_kernels() -> None:
    for name, number in {"CHOWN": 0, "NET_ADMIN": 12, "SYS_ADMIN": 21, "SETFCAP": 31,
                         "AUDIT_READ": 37, "CHECKPOINT_RESTORE": 40}.items():  # fmt: skip
        assert c.number(name) == c.number(f"cap_{name}".lower()) == number
    assert c.names(c.mask(c.NAMES)) == [f"CAP_{name}" for name in c.NAMES]
    assert c.last() >= len(c.NAMES) - 1  # a newer kernel may know more
    assert c.mask(c.DEFAULT) == 0xA804_25FB
    with pytest.raises(c.UnknownCapability, match="unknown capability 'CAP_FLY'"):
        c.number("CAP_FLY")


@pytest.mark.parametrize(
    ("add", "drop", "privileged", "expected"),
    [
        ((), (), False, c.mask(c.DEFAULT)),
        (("NET_ADMIN",), (), False, c.mask([*c.DEFAULT, "NET_ADMIN"])),
        (("cap_net_admin",), ("CHOWN",), False, c.mask([*c.DEFAULT, "NET_ADMIN"]) & ~1),
        ((), ("ALL",), False, 0),
        (("CHOWN",), ("all",), False, 1),
        (("ALL",), (), False, ALL),
        (("ALL",), ("CAP_CHOWN",), False, ALL & ~1),
        (("CHOWN",), ("CHOWN",), False, c.mask(c.DEFAULT) & ~1),
        ((), (), True, ALL),
    ],
)
def test_what_is_added_and_dropped(
    add: tuple[str, ...], drop: tuple[str, ...], privileged: bool, expected: int
) -> None:
    assert c.wanted(add, drop, privileged, ALL) == expected


def test_what_the_host_lacks_is_refused_by_name_and_left_out_of_all() -> None:
    poor = ALL & ~c.mask(["SYS_MODULE", "KILL"])
    assert c.wanted(("ALL",), (), False, poor) == poor
    assert c.wanted((), (), True, poor) == poor
    assert c.wanted((), (), False, poor) == c.mask(c.DEFAULT) & poor
    with pytest.raises(c.UnknownCapability, match="cannot add capability CAP_SYS_MODULE"):
        c.wanted(("SYS_MODULE",), (), False, poor)
    with pytest.raises(c.UnknownCapability, match="unknown capability 'BOGUS'"):
        c.wanted((), ("BOGUS",), False, ALL)


@pytest.mark.root
def test_the_bounding_set_and_the_sets_of_a_process_are_read_and_set() -> None:
    def look() -> list[str]:
        prctl(PR_CAPBSET_DROP, c.number("SYS_MODULE"))
        c.bounding.cache_clear()
        left = c.bounding()
        capset(1 << 5, 1 << 5 | 1 << 40, 1 << 5)
        with open("/proc/self/status") as file:
            sets = [line.split()[1] for line in file if line[:6] in ("CapInh", "CapPrm", "CapEff")]
        return [f"{left:x}", *sets]

    left, *sets = in_child(look)  # type: ignore[misc]
    assert int(left, 16) == c.bounding() & ~c.mask(["SYS_MODULE"])
    assert sets == ["0000000000000020", "0000010000000020", "0000000000000020"]
    assert os.getpid()  # ours are as they were: it happened in a child
