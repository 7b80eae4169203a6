"""The controller with three hosts in virtual time: real links and store, agents that run nothing.

Times in these tests are virtual, so they are exact and say what the design promises.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import evolve
from plan.build import service, stack

from orchestra.model.cluster import Progress, SlotPhase, StackPhase
from orchestra.model.errors import Conflict, Invalid, NotFound, Unavailable
from orchestra.model.node import Availability, NodeState
from orchestra.model.service import Dependency, Mount, MountType, Network
from orchestra.testing.sim.world import World, open_world

DATA = Mount(MountType.VOLUME, "/data", "data")
WEB = stack(service("web", replicas=3))
DB = stack(service("db", mounts=(DATA,)), name="base", volumes=("data",))

Story = Callable[[World], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """Runs a story in a world of three hosts."""

    def run(story: Story, nodes: int = 3) -> None:
        async def main() -> None:
            async with open_world(str(tmp_path), nodes) as world:
                await story(world)

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    return run


Play = Callable[..., None]


def state_of(world: World, name: str) -> NodeState:
    assert world.controller is not None
    return next(s.state for s in world.controller.nodes() if s.node.name == name)


async def until(found: Callable[[], object], limit: float = 60.0) -> float:
    """Wait until something is so; how many virtual seconds it took."""
    start = trio.current_time()
    with trio.fail_after(limit):
        while not found():
            await trio.sleep(0.01)
    return trio.current_time() - start


# --- nodes ---------------------------------------------------------------------------------


def test_a_dead_node_is_noticed_in_5_s_and_its_tasks_serve_elsewhere_in_10(
    play: Play,
) -> None:
    async def story(world: World) -> None:
        await world.up(WEB)
        world.hosts["node-2"].kill()
        assert await until(lambda: state_of(world, "node-2") is NodeState.DOWN) <= 5.0
        assert await until(lambda: len(world.running(reachable=True)) == 3) <= 5.0

    play(story)


def test_a_silent_agent_is_not_a_dead_node(play: Play) -> None:
    async def story(world: World) -> None:
        await world.up(WEB)
        before = world.running()
        world.hosts["node-2"].silence()
        await until(lambda: state_of(world, "node-2") is NodeState.NOT_READY)
        await trio.sleep(60.0)
        assert state_of(world, "node-2") is NodeState.NOT_READY
        assert world.running() == before
        world.hosts["node-2"].speak()
        await until(lambda: state_of(world, "node-2") is NodeState.READY)
        assert world.running() == before

    play(story)


def test_a_node_behind_a_cut_wire_goes_on_alone_and_ends_what_was_replaced(play: Play) -> None:
    async def story(world: World) -> None:
        await world.up(WEB)
        (mine,) = [slot for slot, host in world.running() if host == "node-2"]
        world.hosts["node-2"].cut()
        await until(lambda: len(world.running(reachable=True)) == 3)
        assert (mine, "node-2") in world.running()
        world.hosts["node-2"].heal()
        await until(lambda: (mine, "node-2") not in world.running())
        assert len(world.running()) == 3

    play(story)


def test_a_link_is_made_again_whatever_breaks_it(play: Play) -> None:
    async def story(world: World) -> None:
        await world.up(WEB)
        for host in world.hosts.values():
            for harm in (host.lose_streams, host.silence, host.lose_streams, host.speak):
                harm()
                await trio.sleep(0.5)
            host.cut()
            await trio.sleep(2.0)
            host.heal()
        await until(lambda: all(state_of(world, h) is NodeState.READY for h in world.hosts))
        await world.up(stack(service("web", replicas=3, command=("new",))))
        assert all(
            task.spec.args == ("new",)
            for host in world.hosts.values()
            for task in host.agent.running().values()
        )

    play(story)


def test_generations_on_the_nodes_rise_only(play: Play) -> None:
    async def story(world: World) -> None:
        seen: dict[str, list[int]] = {name: [] for name in world.hosts}
        for name, host in world.hosts.items():
            put = host.agent.put_assignment

            async def noted(generation, digests, bodies, name=name, put=put):  # type: ignore[no-untyped-def]
                seen[name].append(generation)
                return await put(generation, digests, bodies)

            host.agent.put_assignment = noted  # type: ignore[method-assign]
        await world.up(WEB)
        world.hosts["node-1"].kill()
        await trio.sleep(8.0)
        world.hosts["node-1"].boot()
        world.kill_controller()
        controller = await world.start_controller()
        await controller.scale("app", {"web": 5})
        assert await world.follow("app") is StackPhase.CONVERGED
        for generations in seen.values():
            assert len(generations) > 3
            assert generations == sorted(generations)
        last = {host.agent.generation for host in world.hosts.values()}
        assert len(last) == 1

    play(story)


# --- the store and the controller's life ---------------------------------------------------


def test_a_controller_that_died_goes_on_where_it_was(play: Play) -> None:
    async def story(world: World) -> None:
        await world.up(WEB)
        before = {i for host in world.hosts.values() for i in host.agent.running()}
        world.kill_controller()
        world.hosts["node-3"].kill()
        await trio.sleep(30.0)
        world.hosts["node-3"].boot()
        await world.start_controller()
        assert await world.follow("app") is StackPhase.CONVERGED
        after = {i for host in world.hosts.values() for i in host.agent.running()}
        # What node-3 ran ended with its power; FakeAgent starts nothing by itself at boot.
        assert len(after) == 3 and len(after & before) >= 2

    play(story)


def test_a_lost_store_stops_everything_until_it_is_adopted(play: Play) -> None:
    async def story(world: World) -> None:
        await world.up(WEB)
        before = world.running()
        world.kill_controller()
        controller = await world.start_controller(fresh_store=True)
        with pytest.raises(Conflict, match="orchestra cluster adopt"):
            await controller.apply(WEB)
        assert controller.info().orphaned_generation > 0
        await trio.sleep(20.0)
        assert world.running() == before
        told = await controller.adopt()
        assert "stack app, revision 1, 3 tasks" in told
        assert await world.follow("app") is StackPhase.CONVERGED
        assert world.running() == before
        plan = await controller.plan(WEB)
        assert not plan.actions

    play(story)


# --- stacks --------------------------------------------------------------------------------


def test_progress_tells_each_slots_phases_in_order(play: Play) -> None:
    async def story(world: World) -> None:
        assert world.controller is not None
        need = (Dependency("a"),)
        await world.controller.apply(stack(service("a"), service("b", depends_on=need)))
        phases: dict[str, list[SlotPhase]] = {"a.1": [], "b.1": []}
        last = Progress(0.0, "")
        async for last in world.controller.progress("app"):
            for slot in last.slots:
                phases[slot.slot].append(slot.phase)
        assert last.phase is StackPhase.CONVERGED
        assert (last.running, last.desired) == (2, 2)
        order = list(SlotPhase)
        assert phases["b.1"][0] is SlotPhase.WAITING
        for seen in phases.values():
            assert seen[-1] is SlotPhase.RUNNING
            assert [order.index(p) for p in seen] == sorted(order.index(p) for p in seen)

    play(story)


def test_a_task_that_fails_for_good_fails_the_stack_with_its_exit_code(play: Play) -> None:
    async def story(world: World) -> None:
        assert await world.up(stack(service("job", command=("exit", "3")))) is StackPhase.FAILED
        assert world.controller is not None
        lines = [line async for line in world.controller.progress("app")]
        assert "job.1 on node-1 failed (exit code 3)" in lines[-1].text

    play(story)


def test_a_network_without_an_address_left_is_said_to_be_full(play: Play) -> None:
    async def story(world: World) -> None:
        value = stack(service("web", replicas=14))
        small = Network("default", "small", subnet="192.168.9.0/26")
        assert world.controller is not None
        await world.controller.apply(evolve(value, networks={"default": small}))
        lines = [line async for line in world.controller.progress("app")]
        assert lines[-1].phase is StackPhase.FAILED
        assert "no address is free for node-1 in network small" in lines[-1].text
        generation = world.controller.info().generation
        await trio.sleep(10.0)
        assert world.controller.info().generation == generation  # nobody is kept busy with it

    play(story, nodes=1)


def test_removing_a_stack_takes_its_volumes_only_when_asked(play: Play) -> None:
    async def story(world: World) -> None:
        assert world.controller is not None
        await world.up(DB)
        home = next(h for h in world.hosts.values() if h.agent.volumes_held)
        await world.controller.remove_stack("base")
        assert await world.follow("base") is StackPhase.REMOVED
        assert home.agent.volumes_held == {"base_data"}
        await world.up(DB)
        assert [host for _, host in world.running()] == [home.name]
        await world.controller.remove_stack("base", volumes=True)
        assert await world.follow("base") is StackPhase.REMOVED
        assert not home.agent.volumes_held

    play(story)


def test_a_removal_with_volumes_waits_for_a_node_that_is_away(play: Play) -> None:
    async def story(world: World) -> None:
        assert world.controller is not None
        await world.up(DB)
        home = next(h for h in world.hosts.values() if h.agent.volumes_held)
        home.kill()
        await until(lambda: state_of(world, home.name) is NodeState.DOWN)
        await world.controller.remove_stack("base", volumes=True)
        await trio.sleep(10.0)
        async for line in world.controller.progress("base"):
            (slot,) = line.slots
            assert (slot.slot, slot.phase) == ("volume base_data", SlotPhase.WAITING)
            assert slot.text.startswith(f"{home.name} is down")
            break
        assert [r.stack.name for r in world.controller.stacks()] == ["base"]
        home.boot()
        assert await world.follow("base") is StackPhase.REMOVED
        assert not home.agent.volumes_held

    play(story)


def test_a_plan_that_was_shown_is_applied_or_refused(play: Play) -> None:
    async def story(world: World) -> None:
        assert world.controller is not None
        plan = await world.controller.plan(WEB)
        await world.controller.apply(DB)
        await world.follow("base")
        with pytest.raises(Conflict, match="plan again"):
            await world.controller.apply(WEB, plan.generation)
        plan = await world.controller.plan(WEB)
        await world.controller.apply(WEB, plan.generation)
        assert await world.follow("app") is StackPhase.CONVERGED

    play(story)


def test_wishes_that_cannot_be_are_refused_with_names(play: Play) -> None:
    async def story(world: World) -> None:
        controller = world.controller
        assert controller is not None
        await world.up(WEB)
        with pytest.raises(NotFound, match="no stack is called nope; the cluster runs: app"):
            controller.stack("nope")
        with pytest.raises(NotFound, match="stack app has no service db; it has: web"):
            await controller.scale("app", {"db": 1})
        with pytest.raises(Invalid, match="cannot scale web to -1 replicas"):
            await controller.scale("app", {"web": -1})
        with pytest.raises(NotFound, match="no node is called node-9; the cluster has: node-1"):
            await controller.set_availability("node-9", Availability.DRAIN)
        with pytest.raises(Conflict, match=r"cannot remove node node-1: it runs web\.\d"):
            await controller.remove_node("node-1")
        with pytest.raises(Invalid, match="service web has no image"):
            await controller.apply(stack(service("web", image="")))

    play(story)


def test_a_drained_node_can_be_removed_and_is_left_empty(play: Play) -> None:
    async def story(world: World) -> None:
        controller = world.controller
        assert controller is not None
        await world.up(WEB)
        await controller.set_availability("node-2", Availability.DRAIN)
        await until(lambda: not any(host == "node-2" for _, host in world.running()))
        await until(lambda: not world.hosts["node-2"].agent.tasks)
        await controller.remove_node("node-2")
        assert [s.node.name for s in controller.nodes()] == ["node-1", "node-3"]
        assert world.hosts["node-2"].agent.bodies["cluster"]["id"] == ""
        assert len(world.running()) == 3

    play(story)


def test_two_nodes_with_one_identity_are_told_apart(play: Play) -> None:
    async def story(world: World) -> None:
        controller = world.controller
        assert controller is not None
        await until(lambda: state_of(world, "node-3") is NodeState.READY)
        clone = world.hosts["node-3"]
        world.hosts["copy"] = clone
        with pytest.raises(Conflict, match="copy reports the same id as node-3"):
            await controller.put_node(evolve(clone.inventory, name="copy"))
        assert "copy" not in {s.node.name for s in controller.nodes()}
        del world.hosts["copy"]

    play(story)


def test_a_node_that_cannot_be_reached_is_not_added(play: Play) -> None:
    async def story(world: World) -> None:
        controller = world.controller
        assert controller is not None
        host = world.hosts["node-3"]
        await until(lambda: state_of(world, "node-3") is NodeState.READY)
        await controller.remove_node("node-3")
        host.kill()
        with pytest.raises(Unavailable, match="cannot add node node-3: node-3: no answer within"):
            await controller.put_node(host.inventory)
        host.boot()
        assert (await controller.put_node(host.inventory)).state is NodeState.READY

    play(story)


def test_there_is_nothing_to_adopt_while_the_store_knows_all(play: Play) -> None:
    async def story(world: World) -> None:
        assert world.controller is not None
        await world.up(WEB)
        assert await world.controller.adopt() == []

    play(story)


def test_a_removed_node_does_not_come_back_by_itself(play: Play) -> None:
    async def story(world: World) -> None:
        controller = world.controller
        assert controller is not None
        await until(lambda: state_of(world, "node-3") is NodeState.READY)
        world.hosts["node-3"].agent.put_assignment = _never  # type: ignore[method-assign]
        await controller.remove_node("node-3")
        await trio.sleep(10.0)
        assert [s.node.name for s in controller.nodes()] == ["node-1", "node-2"]

    play(story)


async def _never(*_: object) -> None:
    await trio.sleep_forever()
