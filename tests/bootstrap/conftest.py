"""Three plain hosts with sshd, and a user who knows no cluster yet."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.lab_user import LabUser


@pytest.fixture(scope="package")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabUser]:
    user = LabUser(f"tb{os.getpid()}", tmp_path_factory.mktemp("bootstrap"))
    try:
        user.lab("up", "--nodes", "3", "--bare")
        yield user
    finally:
        user.lab("down", code=None)


@pytest.fixture
def user(hosts: LabUser) -> Iterator[LabUser]:
    """The same with nothing left of the test before: plain hosts, no cluster."""
    yield hosts
    for cluster in hosts("cluster", "ls", "-q").stdout.split():
        nodes = hosts.inside("node", "ls", "-q", "--cluster", cluster, code=None).stdout.split()
        for node in nodes:
            hosts.inside("node", "rm", "--purge", "--force", "--cluster", cluster, node, code=None)
        hosts("cluster", "rm", cluster)
    shutil.rmtree(hosts.scratch / "config", ignore_errors=True)
