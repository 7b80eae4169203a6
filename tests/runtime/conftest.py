"""Fixtures: one busybox layer per session, a scratch node per test."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.box import Box, box, make_layer


@pytest.fixture(scope="session")
def layer() -> Iterator[Path]:
    path = Path(f"/tmp/orchestra-layer-{secrets.token_hex(4)}")
    path.mkdir()
    make_layer(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def node(layer: Path) -> Iterator[Box]:
    with box(layer) as made:
        yield made
