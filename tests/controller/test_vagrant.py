"""`vagrant ssh-config` read as nodes: what libvirt and VirtualBox print, and what is refused."""

from __future__ import annotations

import pytest

from orchestra.controller import vagrant
from orchestra.controller.home import as_seen_by_controller
from orchestra.model.errors import Invalid
from orchestra.model.node import InventoryNode

TWO = """\
Host node1
  HostName 127.0.0.1
  User vagrant
  Port 2222
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  PasswordAuthentication no
  IdentityFile "/home/me/my boxes/.vagrant/machines/node1/virtualbox/private_key"
  IdentitiesOnly yes
  LogLevel FATAL

Host node2
  HostName=192.168.121.7
  IdentityFile /first
  IdentityFile /second
"""


def test_each_machine_becomes_a_node() -> None:
    key = "/home/me/my boxes/.vagrant/machines/node1/virtualbox/private_key"
    assert vagrant.machines(TWO, "192.168.56.0/24") == [
        InventoryNode(
            "node1", "127.0.0.1", "vagrant", 2222, identity=key, underlay="192.168.56.0/24"
        ),
        InventoryNode(
            "node2", "192.168.121.7", "vagrant", 22, identity="/first", underlay="192.168.56.0/24"
        ),
    ]


def test_nothing_runs() -> None:
    assert vagrant.machines("# none\n", "eth1") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Host a\n HostName b\n ProxyCommand ssh x\n", "machine a is reached with proxycommand"),
        ("Host a\n User b\n", "machine a has no usable 'hostname'"),
        ("Host a\n HostName b\n Port many\n", "machine a has no usable"),
        ('Host a\n HostName "b\n', "line 2: No closing quotation"),
    ],
)
def test_what_cannot_be_understood_is_named(text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        vagrant.machines(text, "eth1")


def test_a_forwarded_port_is_only_for_the_operator() -> None:
    behind_nat = InventoryNode("a", "127.0.0.1", "vagrant", 2222, underlay="192.168.56.11")
    seen = as_seen_by_controller(behind_nat)
    assert (seen.address, seen.port, seen.user) == ("192.168.56.11", 22, "vagrant")
    plain = InventoryNode("a", "192.0.2.1", port=2222, underlay="192.168.56.11")
    assert (as_seen_by_controller(plain).address, as_seen_by_controller(plain).port) == (
        "192.0.2.1",
        2222,
    )
