"""A lab of two nodes whose controller is the user's session, until a test installs another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab_user import LabUser

CACHE = Path(os.environ.get("ORCHESTRA_IMAGE_CACHE", "/var/cache/orchestra"))

STACK = """\
name: small
services:
  web:
    image: busybox
    command: ["sh", "-c", "echo $$HOSTNAME > /page; exec httpd -f -p 80 -h /"]
    deploy: {replicas: 2}
    ports: ["8088:80"]
    stop_grace_period: 1s
"""


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabUser]:
    user = LabUser(f"tk{os.getpid()}", tmp_path_factory.mktemp("cli"))
    (user.scratch / "compose.yaml").write_text(STACK)
    make = (sys.executable, "-m", "orchestra.testing.baseimages", "--cache", str(CACHE))
    subprocess.run([*make, "busybox"], check=True, timeout=110)
    try:
        user.lab("up", "--nodes", "2", "--no-controller")
        user("image", "load", "--input", str(CACHE / "busybox.tar"))
        yield user
    finally:
        user.lab("down", code=None)


@pytest.fixture
def up(lab: LabUser) -> Iterator[LabUser]:
    """The same with a stack of two containers that answer on port 8088."""
    lab("up", "--timeout", "80")
    yield lab
    lab("down")
