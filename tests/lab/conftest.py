"""A lab without a cluster: hosts only, for what needs no agent."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab_user import LabUser


@pytest.fixture(scope="package")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabUser]:
    user = LabUser(f"tl{os.getpid()}", tmp_path_factory.mktemp("lab"))
    try:
        user.lab("up", "--nodes", "2", "--bare")
        yield user
    finally:
        user.lab("down", code=None)
