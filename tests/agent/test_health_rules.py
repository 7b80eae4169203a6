"""plan.health: Docker's rules of health checks as tables."""

import pytest

from orchestra.model.container import Health, HealthStatus, Probe
from orchestra.model.service import Healthcheck
from orchestra.plan.health import after_probe, at_start, next_probe_at, probe_args

CHECK = Healthcheck(("CMD", "true"), interval=30, retries=3, start_period=20, start_interval=2)


def probe(code, at=100.0, output=""):
    return Probe(at, at + 0.1, code, output)


def run(codes, *, started=0.0, at=100.0):
    health = at_start(CHECK)
    for code in codes:
        health = after_probe(CHECK, health, probe(code, at), started=started)
    return health


@pytest.mark.parametrize(
    ("test", "args"),
    [
        (("NONE",), ()),
        ((), ()),
        (("CMD", "a", "b"), ("a", "b")),
        (("CMD-SHELL", "a && b"), ("/bin/sh", "-c", "a && b")),
    ],
)
def test_the_probe_is_what_the_check_says(test, args):
    assert probe_args(Healthcheck(test)) == args
    assert (at_start(Healthcheck(test)) is None) == (args == ())


@pytest.mark.parametrize(
    ("codes", "status", "streak"),
    [
        ([0], HealthStatus.HEALTHY, 0),
        ([1, 1], HealthStatus.STARTING, 2),
        ([1, 1, 1], HealthStatus.UNHEALTHY, 3),
        ([0, 1, 1], HealthStatus.HEALTHY, 2),
        ([1, 1, 1, 0], HealthStatus.HEALTHY, 0),
        ([-1, -1, -1], HealthStatus.UNHEALTHY, 3),
    ],
)
def test_failures_in_a_row_count_and_one_success_heals(codes, status, streak):
    health = run(codes)
    assert (health.status, health.failing_streak) == (status, streak)


def test_failures_in_the_start_period_do_not_count_until_the_first_success():
    assert run([1] * 5, started=90.0).status is HealthStatus.STARTING
    assert run([0, 1, 1, 1], started=90.0).status is HealthStatus.UNHEALTHY


def test_probes_are_quick_only_while_starting_within_the_start_period():
    starting, healthy = at_start(CHECK), Health(HealthStatus.HEALTHY)
    assert next_probe_at(CHECK, starting, started=100, after=105) == 107
    assert next_probe_at(CHECK, starting, started=100, after=125) == 155
    assert next_probe_at(CHECK, healthy, started=100, after=105) == 135


def test_the_log_keeps_five_probes_and_4096_bytes_of_each():
    health = at_start(CHECK)
    for i in range(7):
        health = after_probe(CHECK, health, probe(0, float(i), "ä" * 5000), started=0.0)
    assert [p.started for p in health.log] == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert len(health.log[0].output.encode()) <= 4096 + 3
    assert health.log[0].output.endswith("...")
