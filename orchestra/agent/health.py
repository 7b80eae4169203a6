"""The health check of one running container: probe, judge (`plan.health`), tell.

A probe is an exec like any other. It is bounded by the check's timeout, its process is killed
then; an output of any size costs no more memory than what is kept of it.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Mapping

import trio

from orchestra.agent.containers import Containers, Live
from orchestra.model.container import ExecSpec, Health, HealthStatus, Probe
from orchestra.model.errors import StartFailed
from orchestra.model.service import Healthcheck
from orchestra.plan.health import (
    OUTPUT_LIMIT,
    TIMED_OUT,
    after_probe,
    next_probe_at,
    probe_args,
)
from orchestra.runtime.runtime import Runtime

Publish = Callable[[str, str, str, Mapping[str, str]], None]


async def watch_health(
    live: Live, containers: Containers, runtime: Runtime, publish: Publish
) -> None:
    """Probe until `live.probes` is cancelled. Status changes are stored and told."""
    check = live.container.spec.healthcheck
    assert check is not None
    started = last = live.container.started
    with live.probes:
        while True:
            health = live.container.health or Health(HealthStatus.STARTING)
            due = next_probe_at(check, health, started=started, after=last)
            await trio.sleep(max(0.0, due - time.time()))
            probe = await _probe(live, check, runtime)
            last = probe.finished
            if not live.running:
                return
            new = after_probe(check, live.container.health or health, probe, started=started)
            if new.status is health.status:
                containers.show(live, health=new)
                continue
            containers.store(live, health=new)
            spec = live.container.spec
            attributes = {**spec.labels, "image": spec.image, "name": live.container.name}
            publish("container", f"health_status: {new.status.value}", live.id, attributes)


async def _probe(live: Live, check: Healthcheck, runtime: Runtime) -> Probe:
    started = time.time()
    output = bytearray()
    try:
        code = await _run(live.id, check, runtime, output)
    except StartFailed as error:
        output[:] = str(error).encode()
        code = error.exit_code
    return Probe(started, time.time(), code, output.decode(errors="replace"))


async def _run(container_id: str, check: Healthcheck, runtime: Runtime, output: bytearray) -> int:
    spec = ExecSpec(probe_args(check))
    process = await runtime.exec(container_id, secrets.token_hex(32), spec)
    code = TIMED_OUT
    try:
        with trio.move_on_after(check.timeout) as limit:
            async for _, data in process.attachment.output():
                output += data[: OUTPUT_LIMIT + 1 - len(output)]
            code = await process.wait()
        if limit.cancelled_caught:
            output[:] = f"Health check exceeded timeout ({check.timeout:g}s)".encode()
        return code
    finally:
        if code == TIMED_OUT:
            _kill(process.pid)
        with trio.CancelScope(shield=True):
            await process.attachment.aclose()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended in this very moment
