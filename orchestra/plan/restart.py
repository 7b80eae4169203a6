"""When a container that ended is started again on its node.

One pure decision with two sources of delay: `restart:` backs off exponentially as Docker does
(100 ms, doubling to one minute, forgotten after ten seconds of running), `deploy.restart_policy`
waits a fixed time and counts attempts within a window. What must be remembered between two
decisions is the value `Restarts`; time is an argument.
"""

from __future__ import annotations

from attrs import frozen

from orchestra.model.service import RestartCondition, RestartPolicy

FIRST_DELAY = 0.1
LONGEST_DELAY = 60.0
STEADY = 10.0  # seconds of running after which the back-off starts anew


@frozen
class Restarts:
    """What is remembered of a container's restarts in place."""

    delay: float = 0.0  # the last back-off, seconds; 0 = none yet
    times: tuple[float, ...] = ()  # when attempts that count were made, oldest first


@frozen
class Restart:
    """Start again at `at` (Unix seconds) and remember `restarts` from then on."""

    at: float
    restarts: Restarts


def next_start(
    policy: RestartPolicy,
    restarts: Restarts,
    *,
    exit_code: int,
    started: float,
    finished: float,
    stopped_by_user: bool,
) -> Restart | None:
    """Return the next start, or None where the end is final.

    An exit code that nobody saw counts as a failure: the caller passes a code other than 0.
    """
    if stopped_by_user or not _wanted(policy.condition, exit_code):
        return None
    times = restarts.times
    if policy.window > 0:
        times = tuple(t for t in times if t > finished - policy.window)
    if policy.max_attempts and len(times) >= policy.max_attempts:
        return None
    if policy.delay is not None:
        delay, backoff = policy.delay, 0.0
    else:
        steady = finished - started >= STEADY
        last = 0.0 if steady else restarts.delay
        delay = backoff = min(last * 2 or FIRST_DELAY, LONGEST_DELAY)
    at = finished + delay
    counted = (*times, at)[-policy.max_attempts :] if policy.max_attempts else ()
    return Restart(at, Restarts(backoff, counted))


def starts_at_boot(
    policy: RestartPolicy, *, was_running: bool, ever_started: bool, stopped_by_user: bool
) -> bool:
    """Whether a container comes back after its host was rebooted (`was_running` before that).

    As Docker documents it, `always` revives even what a user had stopped; the others do not.
    """
    if policy.condition is RestartCondition.ANY:
        return ever_started
    if policy.condition is RestartCondition.UNLESS_STOPPED:
        return ever_started and not stopped_by_user
    return policy.condition is RestartCondition.ON_FAILURE and was_running


def _wanted(condition: RestartCondition, exit_code: int) -> bool:
    if condition is RestartCondition.NONE:
        return False
    return condition is not RestartCondition.ON_FAILURE or exit_code != 0
