"""plan.restart: Docker's back-off and Swarm's restart_policy as tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.model.service import RestartCondition, RestartPolicy
from orchestra.plan.restart import (
    FIRST_DELAY,
    LONGEST_DELAY,
    Restarts,
    next_start,
    starts_at_boot,
)

ALWAYS = RestartPolicy(RestartCondition.ANY)


FIRST = Restarts()


def decide(policy, restarts=FIRST, code=1, ran=1.0, stopped=False, at=1000.0):
    return next_start(
        policy,
        restarts,
        exit_code=code,
        started=at - ran,
        finished=at,
        stopped_by_user=stopped,
    )


@pytest.mark.parametrize(
    ("condition", "code", "stopped", "comes_back"),
    [
        (RestartCondition.NONE, 1, False, False),
        (RestartCondition.ON_FAILURE, 0, False, False),
        (RestartCondition.ON_FAILURE, 255, False, True),
        (RestartCondition.ANY, 0, False, True),
        (RestartCondition.UNLESS_STOPPED, 0, False, True),
        (RestartCondition.ANY, 1, True, False),
        (RestartCondition.UNLESS_STOPPED, 1, True, False),
        (RestartCondition.ON_FAILURE, 1, True, False),
    ],
)
def test_the_condition_decides_whether_it_comes_back(condition, code, stopped, comes_back):
    assert (decide(RestartPolicy(condition), code=code, stopped=stopped) is not None) == comes_back


def test_the_back_off_doubles_from_100_ms_to_a_minute():
    restarts, delays = Restarts(), []
    for _ in range(12):
        again = decide(ALWAYS, restarts)
        delays.append(again.at - 1000.0)
        restarts = again.restarts
    assert delays[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert delays[-1] == LONGEST_DELAY


def test_ten_seconds_of_running_start_the_back_off_anew():
    again = decide(ALWAYS, Restarts(delay=30.0), ran=10.0)
    assert again.at == pytest.approx(1000.0 + FIRST_DELAY)
    assert decide(ALWAYS, Restarts(delay=30.0), ran=9.9).at == pytest.approx(1060.0)


def test_on_failure_n_gives_up_after_n_restarts():
    policy = RestartPolicy(RestartCondition.ON_FAILURE, max_attempts=3)
    restarts, starts = Restarts(), 0
    while again := decide(policy, restarts):
        restarts, starts = again.restarts, starts + 1
    assert starts == 3


def test_a_fixed_delay_never_grows_and_attempts_count_within_the_window_only():
    policy = RestartPolicy(RestartCondition.ANY, delay=5.0, max_attempts=2, window=60.0)
    first = decide(policy, at=1000.0)
    second = decide(policy, first.restarts, at=1010.0)
    assert (first.at, second.at) == (1005.0, 1015.0)
    assert decide(policy, second.restarts, at=1020.0) is None
    assert decide(policy, second.restarts, at=1066.0) is not None


@given(st.lists(st.floats(0.0, 20.0), max_size=40))
def test_no_history_makes_the_delay_leave_its_bounds(runs):
    restarts = Restarts()
    for ran in runs:
        again = decide(ALWAYS, restarts, ran=ran)
        assert FIRST_DELAY - 1e-6 <= again.at - 1000.0 <= LONGEST_DELAY + 1e-6
        restarts = again.restarts


@pytest.mark.parametrize(
    ("condition", "running", "stopped", "comes_back"),
    [
        (RestartCondition.ANY, False, True, True),
        (RestartCondition.UNLESS_STOPPED, False, True, False),
        (RestartCondition.UNLESS_STOPPED, True, False, True),
        (RestartCondition.ON_FAILURE, True, False, True),
        (RestartCondition.ON_FAILURE, False, False, False),
        (RestartCondition.NONE, True, False, False),
    ],
)
def test_a_reboot_revives_by_policy(condition, running, stopped, comes_back):
    policy = RestartPolicy(condition)
    assert comes_back == starts_at_boot(
        policy, was_running=running, ever_started=True, stopped_by_user=stopped
    )
