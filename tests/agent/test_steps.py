"""agent.steps: assignment x containers -> steps, and what is reported of each task."""

import pytest
from attrs import evolve

from orchestra.agent.network import task_container_id
from orchestra.agent.state import Record
from orchestra.agent.steps import (
    CreateTask,
    Hindrance,
    RemoveTask,
    RestartTask,
    StartTask,
    StopTask,
    observed_tasks,
    steps,
)
from orchestra.model.assignment import AssignedTask, Assignment, ClusterNet
from orchestra.model.container import Container, ContainerSpec, ContainerStatus
from orchestra.model.node import TaskState

SPEC = ContainerSpec(image="busybox", image_id="sha256:0", args=("true",))
CLUSTER = ClusterNet("c", "10.16.0.0/12", 7)
TASK = AssignedTask("t1", "shop", "web", "web.1", "shop-web-1", SPEC)


def assignment(*tasks):
    return Assignment(5, CLUSTER, tasks)


def records(status, task=TASK, token=0, **fields):
    container_id = task_container_id(task.id)
    container = Container(container_id, task.name, 1.0, SPEC, status, task=task.id, **fields)
    return {container_id: Record(container, restart_token=token)}


STOP = evolve(TASK, stop=True)
AGAIN = evolve(TASK, restart_token=1)


@pytest.mark.parametrize(
    ("task", "status", "step"),
    [
        (TASK, None, CreateTask),
        (TASK, ContainerStatus.CREATED, StartTask),
        (TASK, ContainerStatus.RUNNING, None),
        (TASK, ContainerStatus.RESTARTING, None),
        (TASK, ContainerStatus.EXITED, None),
        (AGAIN, ContainerStatus.RUNNING, RestartTask),
        (AGAIN, ContainerStatus.EXITED, RestartTask),
        (AGAIN, ContainerStatus.REMOVING, None),
        (STOP, None, None),
        (STOP, ContainerStatus.RUNNING, StopTask),
        (STOP, ContainerStatus.RESTARTING, StopTask),
        (STOP, ContainerStatus.EXITED, None),
        (None, ContainerStatus.RUNNING, RemoveTask),
        (None, ContainerStatus.EXITED, RemoveTask),
    ],
)
def test_each_pair_of_task_and_container_has_its_step(task, status, step):
    tasks = (task,) if task else ()
    found = steps(assignment(*tasks), records(status) if status else {}, {})
    assert [type(s) for s in found] == ([step] if step else [])


def test_a_step_prints_what_it_does_and_why():
    (step,) = steps(assignment(TASK), {}, {})
    assert str(step) == "create web.1 (shop-web-1): generation 5 assigns it"
    (step,) = steps(assignment(), records(ContainerStatus.RUNNING), {})
    assert str(step) == "remove shop-web-1: not in generation 5"


def test_a_restart_that_was_obeyed_is_not_repeated():
    assert steps(assignment(AGAIN), records(ContainerStatus.RUNNING, token=1), {}) == []


def test_containers_that_nobody_assigned_are_never_touched():
    own = records(ContainerStatus.RUNNING, evolve(TASK, id=""))
    assert steps(assignment(), own, {}) == []


def test_ends_come_before_beginnings_because_they_free_ports_and_names():
    new = evolve(TASK, id="t2")
    kinds = [type(s) for s in steps(assignment(new), records(ContainerStatus.RUNNING), {})]
    assert kinds == [RemoveTask, CreateTask]


@pytest.mark.parametrize(
    ("task", "status", "fields", "state", "final"),
    [
        (TASK, ContainerStatus.CREATED, {}, TaskState.STARTING, False),
        (TASK, ContainerStatus.RUNNING, {}, TaskState.RUNNING, False),
        (TASK, ContainerStatus.PAUSED, {}, TaskState.RUNNING, False),
        (TASK, ContainerStatus.RESTARTING, {"exit_code": 1}, TaskState.FAILED, False),
        (TASK, ContainerStatus.EXITED, {"exit_code": 1}, TaskState.FAILED, True),
        (TASK, ContainerStatus.EXITED, {}, TaskState.COMPLETE, True),
        (STOP, ContainerStatus.EXITED, {"exit_code": 143}, TaskState.SHUTDOWN, True),
        (STOP, ContainerStatus.RUNNING, {}, TaskState.RUNNING, False),
        (TASK, ContainerStatus.CREATED, {"exit_code": 127, "error": "x"}, TaskState.FAILED, True),
    ],
)
def test_a_task_is_reported_by_what_its_container_does(task, status, fields, state, final):
    (seen,) = observed_tasks(assignment(task), records(status, **fields), {})
    assert (seen.state, seen.final) == (state, final)


def test_a_task_without_container_says_what_hinders_it():
    waiting = {"t1": Hindrance("waiting for image x", final=False)}
    (seen,) = observed_tasks(assignment(TASK), {}, waiting)
    assert (seen.state, seen.error, seen.final) == (
        TaskState.PREPARING,
        "waiting for image x",
        False,
    )
    assert steps(assignment(TASK), {}, waiting) == []
    (seen,) = observed_tasks(assignment(TASK), {}, {"t1": Hindrance("no such path", final=True)})
    assert (seen.state, seen.final) == (TaskState.REJECTED, True)
    (seen,) = observed_tasks(assignment(STOP), {}, {})
    assert (seen.state, seen.final) == (TaskState.SHUTDOWN, True)
