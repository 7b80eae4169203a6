"""The machines of a Vagrantfile become a cluster: real hosts, and the text Vagrant would print."""

from __future__ import annotations

import os

from tests.lab_user import LabUser


def printed(user: LabUser, *names: str) -> str:
    return "\n".join(
        f"Host {name}\n  HostName {user.address(name)}\n  User root\n  Port 22\n"
        f'  StrictHostKeyChecking no\n  IdentityFile "{user.key}"\n'
        for name in names
    )


def test_import_adds_every_machine_and_a_controller_and_may_be_repeated(user: LabUser) -> None:
    vagrant = user.scratch / "bin" / "vagrant"
    vagrant.parent.mkdir(exist_ok=True)
    config = printed(user, "node1", "node2")
    vagrant.write_text(f"#!/bin/sh\ntest \"$1\" = ssh-config && cat <<'E'\n{config}\nE\n")
    vagrant.chmod(0o755)
    path = {"PATH": f"{vagrant.parent}:{os.environ['PATH']}"}
    network = user.address("node1").rsplit(".", 1)[0] + ".0/24"
    command = ("cluster", "import-vagrant", str(user.scratch), "--underlay", network)
    try:
        said = user.inside(*command, env=path).stdout
        for name in ("node1", "node2"):
            assert f"{name}: {user.address(name)}, underlay {user.address(name)}\n" in said
        (cluster,) = user.json("cluster", "ls")
        assert (cluster["name"], cluster["current"], cluster["controller"]) == (
            "vagrant",
            True,
            "node1",
        )
        user.inside(*command, env=path)
        rows = user.inside("node", "ls").stdout
        assert rows.count(" ready ") == 2
    finally:
        user.inside("controller", "uninstall", code=None)


def test_a_network_that_no_machine_is_in_is_named_and_nothing_is_kept(user: LabUser) -> None:
    file = user.scratch / "ssh-config"
    file.write_text(printed(user, "node1"))
    said = user.refused_inside("cluster", "import-vagrant", "--ssh-config", str(file), code=2)
    assert "node1 has no address in the underlay subnet 192.168.56.0/24; it has eth0" in said
    assert user.traces("node1") == []
    assert user.json("cluster", "ls") == []


def test_a_folder_without_machines_or_vagrant_is_named(user: LabUser) -> None:
    empty = user.scratch / "none"
    empty.write_text("")
    said = user.refused("cluster", "import-vagrant", "--ssh-config", str(empty))
    assert "no machine of ./Vagrantfile runs; `vagrant up` starts them" in said
    said = user.refused("cluster", "import-vagrant", env={"PATH": "/nowhere"})
    assert "there is no vagrant: the command vagrant is missing" in said
