"""nft's text for a fixed state equals the file beside this test, and the kernel takes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from attrs import evolve

from orchestra.fabric import ruleset
from orchestra.fabric.render import place
from orchestra.linux import netns
from orchestra.linux.nft import Nft
from orchestra.model.assignment import ClusterNet
from orchestra.model.fabric import FabricPort, FabricService, FabricState
from tests.fabric.lab import LOCAL, endpoint, state

PLACE = place("orchestra")
ALONE = FabricState(
    1,
    ClusterNet("c1", "10.16.0.0/12", 7001),
    (LOCAL,),
    (endpoint("one", "10.17.0.5", "bridge"),),
    ports=(
        FabricPort("tcp", 8080, 80, targets=("10.17.0.5",)),
        FabricPort("udp", 5353, 53, host_ip="127.0.0.1", targets=("10.17.0.5",)),
        FabricPort("tcp", 8081, 80, host_ip="192.0.2.1"),
    ),
)
CLUSTER = evolve(
    state(
        1,
        3,
        (endpoint("one", "10.18.1.2"),),
        targets=("10.18.1.2", "10.18.2.2", "10.18.3.2"),
        ports=(
            FabricPort("tcp", 8080, 80, targets=("10.18.1.2", "10.18.2.2")),
            FabricPort("tcp", 8081, 80),
        ),
    ),
    generation=7,
)
TEXTS = {
    "alone.fabric": ruleset.fabric_table(ALONE, PLACE),
    "alone.host": ruleset.host_table(ALONE, PLACE),
    "cluster.fabric": ruleset.fabric_table(CLUSTER, PLACE),
    "cluster.host": ruleset.host_table(CLUSTER, PLACE),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_rendered_text_is_the_agreed_one(name: str) -> None:
    file = Path(__file__).parent / "golden" / f"{name}.nft"
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(TEXTS[name])
    assert TEXTS[name] == file.read_text()


@pytest.mark.root
@pytest.mark.parametrize("name", TEXTS)
def test_the_rendered_text_loads(name: str) -> None:
    with netns.fresh() as space, Nft() as nft:
        nft.run(ruleset.replace(TEXTS[name], PLACE))
        nft.run(ruleset.replace(TEXTS[name], PLACE))
        listing = nft.table("inet", "orchestra")
    os.close(space)
    assert f"digest={ruleset.digest(TEXTS[name])}" in listing


def test_the_digest_is_that_of_the_rules_not_of_the_generation() -> None:
    later = evolve(CLUSTER, generation=8)
    assert ruleset.digest(ruleset.fabric_table(later, PLACE)) == ruleset.digest(
        TEXTS["cluster.fabric"]
    )
    other = evolve(CLUSTER, services=(FabricService("web", "10.18.0.10", ("10.18.1.2",)),))
    assert ruleset.digest(ruleset.fabric_table(other, PLACE)) != ruleset.digest(
        TEXTS["cluster.fabric"]
    )
