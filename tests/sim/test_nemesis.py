"""A few seeds of harm in virtual time; `python -m orchestra.testing.sim` plays many more."""

from __future__ import annotations

import pytest

from orchestra.testing.sim.__main__ import play


@pytest.mark.parametrize("seed", [1, 8, 10])
def test_the_laws_hold_whatever_happens(seed: int) -> None:
    history = play(seed, steps=20)
    assert "mended, all nodes are ready" in "\n".join(history)


def test_a_seed_always_does_the_same() -> None:
    assert play(5, steps=4) == play(5, steps=4)
