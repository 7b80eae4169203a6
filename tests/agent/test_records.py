"""State, containers' table, events: what is kept and how it is found again."""

import signal
import subprocess
import sys

import pytest
import trio

from orchestra.agent.containers import Containers, Wait
from orchestra.agent.events import KEPT, Events
from orchestra.agent.names import generate
from orchestra.agent.signals import signal_number
from orchestra.agent.state import Record, State
from orchestra.model.container import Container, ContainerSpec, ContainerStatus
from orchestra.model.errors import Conflict, Failed, Invalid, NotFound
from orchestra.plan.restart import Restarts

SPEC = ContainerSpec(image="busybox", image_id="sha256:0", args=("true",))


def record(container_id, name):
    return Record(Container(container_id, name, 1.0, SPEC), Restarts(0.2, (1.0,)), 3)


@pytest.fixture
def state(tmp_path):
    state = State(str(tmp_path / "agent.db"))
    yield state
    state.close()


def test_records_come_back_as_they_were_stored(state, tmp_path):
    state.save(record("a" * 64, "one"), record("b" * 64, "two"))
    state.delete(["b" * 64])
    state.set_setting("range", "10.16.0.0/12")
    again = State(str(tmp_path / "agent.db"))
    assert again.records() == [record("a" * 64, "one")]
    assert again.setting("range") == "10.16.0.0/12"
    assert again.setting("absent") == ""
    again.close()


WRITER = """
import sys
from orchestra.agent.state import State
state = State(sys.argv[1])
for i in range(10**6):
    state.set_setting("n", str(i))
    print(i, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path):
    path = str(tmp_path / "agent.db")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True
    ) as writer:
        for line in writer.stdout:
            if int(line) >= 50:
                writer.send_signal(signal.SIGKILL)
                break
        told = [int(line), *(int(rest) for rest in writer.stdout)][-1]
    state = State(path)
    assert int(state.setting("n")) >= told
    state.close()


def test_a_full_disk_is_an_error_with_the_reason_and_changes_nothing(state):
    containers = Containers(state, lambda: None)
    live = containers.add(record("a" * 64, "one"))
    state._db.execute("PRAGMA max_page_count=1")
    with pytest.raises(Failed, match="full"):
        containers.store(live, error="x" * 100_000)
    assert live.container.error == ""


def test_a_reference_is_an_id_a_name_or_the_beginning_of_an_id(state):
    containers = Containers(state, lambda: None)
    one = containers.add(record("ab" + "0" * 62, "one"))
    two = containers.add(record("ac" + "0" * 62, "ab"))
    assert containers.find("/one") is one
    assert containers.find("ab0") is one
    assert containers.find("ab") is two
    with pytest.raises(Invalid, match="multiple"):
        containers.find("a")
    with pytest.raises(NotFound, match="No such container: x"):
        containers.find("x")


def test_a_taken_or_malformed_name_is_refused(state):
    containers = Containers(state, lambda: None)
    live = containers.add(record("a" * 64, "one"))
    with pytest.raises(Conflict, match=r'"/one" is already in use by container "a+"'):
        containers.check_name("one")
    for name in ("x", "-ab", "a b", ""):
        with pytest.raises(Invalid):
            containers.check_name(name)
    containers.rename(live, "two")
    containers.check_name("one")


async def test_a_wait_is_registered_when_it_exists(state):
    containers = Containers(state, lambda: None)
    live = containers.add(record("a" * 64, "one"))
    exit, gone = Wait(live, "next-exit"), Wait(live, "removed")
    containers.store(live, status=ContainerStatus.EXITED, exit_code=3)
    live.settle("next-exit", "not-running")
    assert await exit.result() == (3, "")
    assert live.waits == {gone}
    gone.close()
    assert not live.waits


def publish(events, *actions):
    for action in actions:
        events.publish("container", action, "id", {})


async def collect(reader, count):
    found = []
    async for event in reader:
        found.append(event.action)
        if len(found) == count:
            break
    return found


async def test_a_reader_hears_everything_from_the_moment_it_asks():
    events = Events()
    publish(events, "before")
    reader = events.read()
    publish(events, "create", "start")
    assert await collect(reader, 2) == ["create", "start"]


async def test_a_replay_goes_over_into_the_live_stream_without_gap_or_repetition():
    events = Events()
    publish(events, *(str(i) for i in range(10)))
    found = []
    async with trio.open_nursery() as nursery:

        async def write():
            for i in range(10, 3000):
                publish(events, str(i))
                if i % 100 == 0:
                    await trio.lowlevel.checkpoint()

        nursery.start_soon(write)
        async for event in events.read(since=1.0):
            found.append(int(event.action))
            if len(found) == 3000:
                break
    assert found == list(range(3000))


async def test_a_replay_ends_where_it_was_told_to():
    events = Events()
    publish(events, "a", "b", "c")
    ring = [e async for e in events.read(since=1.0, until=2e9 - 1e9 + 1.0)]
    assert ring == []
    times = [e.time_ns for e in events._ring]
    middle = [e.action async for e in events.read(since=times[0] / 1e9 - 1, until=times[1] / 1e9)]
    assert set(middle) <= {"a", "b", "c"}
    assert times == sorted(set(times))


def test_the_ring_forgets_the_oldest():
    events = Events()
    publish(events, *(str(i) for i in range(KEPT + 5)))
    assert len(events._ring) == KEPT


@pytest.mark.parametrize(
    ("text", "number"),
    [("TERM", 15), ("SIGTERM", 15), ("sigkill", 9), ("9", 9), ("RTMIN+3", signal.SIGRTMIN + 3)],
)
def test_signals_by_name_and_number(text, number):
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["", "FOO", "0", "99", "RTMIN+99", "SIGFOO"])
def test_unknown_signals_are_refused(text):
    with pytest.raises(Invalid, match="Invalid signal"):
        signal_number(text)


def test_generated_names_are_free_names():
    taken = set()
    for _ in range(300):
        name = generate(taken)
        assert name not in taken
        taken.add(name)
