"""What a health check's probes say of a container, and when the next probe is due.

Docker's rules, pure: a success makes it healthy at once; `retries` failures in a row make it
unhealthy; failures within the start period do not count until the first success. The record keeps
the last five probes, each with the first 4096 bytes of its output.
"""

from __future__ import annotations

from attrs import evolve

from orchestra.model.container import Health, HealthStatus, Probe
from orchestra.model.service import Healthcheck

OUTPUT_LIMIT = 4096  # bytes of a probe's output that are kept
LOG_LENGTH = 5
TIMED_OUT = -1  # the exit code of a probe that was ended at its timeout


def probe_args(check: Healthcheck | None) -> tuple[str, ...]:
    """Return the probe's argv, () where there is no check ("NONE" switches the image's off)."""
    if check is None or not check.test or check.test[0] == "NONE":
        return ()
    if check.test[0] == "CMD-SHELL":
        return ("/bin/sh", "-c", " ".join(check.test[1:]))
    return check.test[1:]


def at_start(check: Healthcheck | None) -> Health | None:
    """Return the health of a container that has just started."""
    return Health(HealthStatus.STARTING) if probe_args(check) else None


def after_probe(check: Healthcheck, health: Health, probe: Probe, *, started: float) -> Health:
    """Return the health once `probe` ended; `started` is the container's start, Unix seconds."""
    log = (*health.log, evolve(probe, output=_cut(probe.output)))[-LOG_LENGTH:]
    if probe.exit_code == 0:
        return Health(HealthStatus.HEALTHY, 0, log)
    in_start_period = probe.started - started < check.start_period
    if health.status is HealthStatus.STARTING and in_start_period:
        return evolve(health, log=log)
    streak = health.failing_streak + 1
    status = HealthStatus.UNHEALTHY if streak >= max(1, check.retries) else health.status
    return Health(status, streak, log)


def next_probe_at(check: Healthcheck, health: Health, *, started: float, after: float) -> float:
    """Return when the next probe is due, `after` being the end of the last one or the start."""
    quick = health.status is HealthStatus.STARTING and after - started < check.start_period
    return after + (check.start_interval if quick else check.interval)


def _cut(output: str) -> str:
    data = output.encode()
    if len(data) <= OUTPUT_LIMIT:
        return output
    return data[:OUTPUT_LIMIT].decode(errors="ignore") + "..."
