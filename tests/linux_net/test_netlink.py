"""rtnetlink by hand: what is written is read back, what is refused says why."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from orchestra.linux import netlink as nl
from orchestra.linux import netns
from orchestra.linux.netobjects import (
    Address,
    Forward,
    Neighbour,
    NetObject,
    Route,
    Rule,
    Veth,
    Vxlan,
)

pytestmark = pytest.mark.root

WIRE = Veth("t1", "02:6f:ff:00:00:01", 1450, "eth0", "02:42:0a:00:00:02")


@pytest.fixture
def spaces() -> Iterator[tuple[int, nl.Netlink, int, nl.Netlink]]:
    """Two namespaces with a pair of devices between them, numbered 7."""
    with netns.fresh() as here:
        mine = nl.Netlink()
    with netns.fresh() as there:
        theirs = nl.Netlink()
    mine.do(nl.new_veth(WIRE, there, index=7))
    theirs.do(nl.set_link(7, "eth0"), nl.set_link(1, "lo"))
    yield here, mine, there, theirs
    mine.close()
    theirs.close()
    os.close(here)
    os.close(there)


def test_a_pair_of_devices_has_the_wanted_names_numbers_and_addresses(spaces) -> None:
    _, mine, _, theirs = spaces
    here, there = mine.link("t1"), theirs.link("eth0")
    assert here and there
    assert (here.index, here.mac, here.mtu, here.up) == (7, WIRE.mac, 1450, True)
    assert (there.index, there.mac, there.mtu, there.up) == (7, WIRE.peer_mac, 1450, True)


def test_a_tunnel_is_made_in_another_namespace(spaces) -> None:
    _, mine, there, theirs = spaces
    mine.do(nl.new_vxlan(Vxlan("vx0", "02:6f:00:00:00:01", 1400, 7001, "192.0.2.1", 8470), there))
    made = theirs.link("vx0")
    assert made
    assert (made.kind, made.vni, made.local, made.port) == ("vxlan", 7001, "192.0.2.1", 8470)
    assert mine.link("vx0") is None


@pytest.mark.parametrize(
    "obj",
    [
        Address("eth0", "10.0.0.2/32"),
        Address("eth0", "169.254.1.1/32", scope="link"),
        Route("10.1.0.0/16", device="eth0", scope="link"),
        Route("10.2.0.0/24", device="eth0", via="169.254.1.1", onlink=True),
        Route("0.0.0.0/0", device="eth0", via="169.254.1.1", onlink=True, table=1002),
        Route("10.3.0.0/16", kind="unreachable"),
        Rule(2, 1002, 1002),
        Neighbour("eth0", "169.254.1.1", "02:6f:ff:00:00:01"),
    ],
    ids=str,
)
def test_an_object_is_read_as_it_was_written_and_goes_when_removed(spaces, obj: NetObject) -> None:
    theirs = spaces[3]
    base = found(theirs)
    index = 7 if getattr(obj, "device", "") else 0
    theirs.do(nl.put(obj, index))
    assert found(theirs) - base == {obj}
    theirs.do(nl.remove(obj, index))
    assert found(theirs) == base


def test_a_forwarding_entry_is_replaced_and_removed(spaces) -> None:
    _, mine, there, theirs = spaces
    mine.do(nl.new_vxlan(Vxlan("vx0", "02:6f:00:00:00:01", 1400, 7001, "192.0.2.1", 8470), there))
    link = theirs.link("vx0")
    assert link
    names = nl.device_names(theirs.links())
    for to in ("192.0.2.2", "192.0.2.3"):
        theirs.do(nl.put(Forward("vx0", "02:6f:00:00:00:02", to), link.index))
    last = Forward("vx0", "02:6f:00:00:00:02", "192.0.2.3")
    assert theirs.forwards(names) == [last]
    theirs.do(nl.remove(last, link.index))
    assert theirs.forwards(names) == []


def test_writing_replaces_what_has_the_key(spaces) -> None:
    theirs = spaces[3]
    theirs.do(nl.put(Route("10.2.0.0/24", device="eth0", via="169.254.1.1", onlink=True), 7))
    other = Route("10.2.0.0/24", device="eth0", via="169.254.1.9", onlink=True)
    theirs.do(nl.put(other, 7))
    assert other in found(theirs)
    assert len([o for o in found(theirs) if isinstance(o, Route)]) == 1


def test_a_refusal_names_the_object_and_the_kernels_reason(spaces) -> None:
    theirs = spaces[3]
    route = Route("10.9.0.0/16", device="eth0", via="10.8.8.8")
    with pytest.raises(nl.NetlinkError, match=r"cannot set route 10.9.0.0/16 via 10.8.8.8") as e:
        theirs.do(nl.put(route, 7))
    assert "Nexthop has invalid gateway" in str(e.value)


def test_a_batch_goes_on_after_a_refusal(spaces) -> None:
    theirs = spaces[3]
    routes = [
        Route(f"10.{n // 250}.{n % 250}.0/24", device="eth0", scope="link") for n in range(1200)
    ]
    requests = [nl.put(r, 7) for r in routes]
    requests[600] = nl.put(Route("10.99.0.0/16", device="eth0", via="10.8.8.8"), 7)
    verdicts = theirs.execute(requests)
    assert [i for i, v in enumerate(verdicts) if v] == [600]
    assert len(theirs.routes({7: "eth0"})) == 1199


def test_a_group_of_devices_goes_at_once(spaces) -> None:
    _, mine, there, _ = spaces
    for n in range(3):
        mine.do(nl.new_veth(Veth(f"t{n + 2}", f"02:6f:ff:00:00:0{n + 2}", 1450, f"eth{n + 1}",
                                 f"02:42:0a:00:00:0{n + 3}"), there))  # fmt: skip
    dead = [link for link in mine.links() if link.name in ("t2", "t3")]
    mine.do(*(nl.set_link(link.index, link.name, up=False, group=77) for link in dead))
    mine.do(nl.delete_group(77))
    assert {link.name for link in mine.links()} == {"lo", "t1", "t4"}


def found(netlink: nl.Netlink) -> set[NetObject]:
    names = nl.device_names(netlink.links())
    out: set[NetObject] = {a for a in netlink.addresses(names) if a.device != "lo"}
    out.update(netlink.routes(names))
    out.update(netlink.rules())
    out.update(netlink.neighbours(names))
    return out
