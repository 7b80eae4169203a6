"""Named namespaces and nftables in them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from orchestra.linux import netns, nft

pytestmark = pytest.mark.root


@pytest.fixture
def name() -> Iterator[str]:
    unique = f"orc-test-ns-{os.getpid()}"
    yield unique
    netns.delete_named(unique)


def here() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def test_a_named_namespace_is_found_by_its_name_and_by_ip_netns(name: str) -> None:
    home = here()
    made = netns.make_named(name)
    found = netns.open_named(name)
    assert found is not None
    assert os.fstat(found).st_ino == os.fstat(made).st_ino != home
    listing = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert name in listing.stdout
    with pytest.raises(FileExistsError):
        netns.make_named(name)
    os.close(made)
    os.close(found)
    netns.delete_named(name)
    assert netns.open_named(name) is None
    assert here() == home


def test_the_file_of_a_name_without_a_namespace_is_no_namespace(name: str) -> None:
    os.makedirs(netns.DIRECTORY, exist_ok=True)
    with open(netns.path(name), "w"):
        assert netns.open_named(name) is None
    os.close(netns.make_named(name))  # as after a crash between its two steps


def test_a_thread_returns_from_a_namespace_whatever_happens_there() -> None:
    home = here()
    with pytest.raises(ZeroDivisionError), netns.fresh() as made:
        assert here() == os.fstat(made).st_ino
        raise ZeroDivisionError
    assert here() == home


@pytest.mark.parametrize("way", ["library", "program"])
def test_nftables_applies_whole_texts_or_nothing(monkeypatch, way: str) -> None:
    if way == "program":
        monkeypatch.setattr(nft, "_LIBRARY", "libnosuch.so.1")
    with netns.fresh() as space, nft.Nft() as tables:
        before = tables.generation()
        assert tables.table("inet", "x") == ""
        tables.run("table inet x {\n set s { type ipv4_addr; elements = { 10.0.0.1 }; }\n}")
        assert tables.generation() == before + 1
        with pytest.raises(nft.NftError, match="No such file"):
            tables.run("add element inet x s { 10.0.0.2 }\nadd rule inet nosuch c accept")
        assert "10.0.0.1 }" in tables.table("inet", "x")
    os.close(space)


def test_a_missing_nftables_is_an_error_that_names_the_package(monkeypatch) -> None:
    monkeypatch.setattr(nft, "_LIBRARY", "libnosuch.so.1")
    monkeypatch.setattr(nft.shutil, "which", lambda *a, **k: None)
    with pytest.raises(nft.NftError, match="install the package nftables"):
        nft.Nft()
