"""Texts that users write for the planner: constraints, templates, dependencies, ports, changes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from attrs import evolve

from orchestra.model.cluster import ImageNeed
from orchestra.model.container import ImageConfig
from orchestra.model.errors import Conflict, Invalid
from orchestra.model.service import (
    FileReference,
    Healthcheck,
    Mount,
    MountType,
    Placement,
    Port,
    PortMode,
    ServiceNetwork,
    StackFile,
)
from orchestra.plan import constraints
from orchestra.plan.check import check_stack
from orchestra.plan.expand import Place, expand
from orchestra.plan.forecast import forecast
from orchestra.plan.graph import dependents, start_order
from orchestra.plan.spec_hash import differences, fingerprint
from orchestra.plan.state import ImageFacts
from plan.build import MANIFEST, cluster, needs, record, service, settle, stack, with_stack

# --- constraints ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("node.labels.disk == ssd", True),
        ("node.labels.disk==SSD", True),
        ("node.labels.disk != ssd", False),
        ("node.labels.absent != ssd", True),
        ("node.labels.absent == ", True),
        ("node.hostname == node-1", True),
        ("node.hostname == host-1", True),
        ("node.name != node-1", False),
        ("node.role == worker", True),
        ("node.role == manager", False),
        ("node.platform.arch == x86_64", True),
        ("node.platform.os == linux", True),
        ("node.ip == 192.0.2.0/24", True),
        ("node.ip != 192.0.2.1", False),
        ("node.id == id-1", True),
    ],
)
def test_constraints_match_as_swarm_reads_them(text: str, matches: bool) -> None:
    _, view = cluster(nodes=1, labels={1: {"disk": "ssd"}})
    assert constraints.parse(text).matches(view.nodes["id-1"]) is matches


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("node.labels.disk = ssd", "not of the form"),
        ("node.labels.disk > 3", "not of the form"),
        ("node.disk == ssd", "unknown key node.disk; known are "),
        ("node.ip == here", "neither an address nor a prefix"),
    ],
)
def test_a_constraint_that_cannot_be_read_is_refused_with_the_stack(text: str, said: str) -> None:
    state, view = cluster()
    with pytest.raises(Invalid, match=said):
        check_stack(state, view, stack(service("web", placement=Placement((text,)))))


# --- dependencies --------------------------------------------------------------------------


def test_services_come_after_their_needs_and_by_name_where_order_is_free() -> None:
    app = stack(service("a", depends_on=needs("z")), service("b"), service("z"))
    assert start_order(app.services) == ("z", "a", "b")
    assert dependents(app.services)["z"] == {"a"}


def test_a_cycle_is_told_with_its_path() -> None:
    app = stack(
        service("a", depends_on=needs("b")),
        service("b", depends_on=needs("c")),
        service("c", depends_on=needs("b")),
    )
    with pytest.raises(Invalid, match="cycle: b -> c -> b"):
        start_order(app.services)


def test_a_long_chain_is_no_recursion() -> None:
    names = [f"s{i:05}" for i in range(5000)]
    chain = [service(n, depends_on=needs(before)) for before, n in pairwise(names)]
    assert start_order(stack(service(names[0]), *chain).services) == tuple(names)


# --- ports and networks --------------------------------------------------------------------


def refusal(*services_: object, name: str = "app") -> str:
    """What is said of a stack beside one that publishes 8080."""
    state, view = settle(
        *cluster(record(stack(service("web", ports=(Port(80, 8080),)), name="first")))
    )
    try:
        check_stack(state, view, stack(*services_, name=name))
    except (Conflict, Invalid) as error:
        return str(error)
    return ""


def test_one_port_of_all_nodes_has_one_owner() -> None:
    said = refusal(service("a", ports=(Port(81, 8080),)))
    assert said.startswith("cannot publish 8080/tcp for app/a: first/web publishes it already")
    assert not refusal(service("a", ports=(Port(81, 8080, "udp"),)))
    assert not refusal(service("web", ports=(Port(81, 8080),)), name="first")
    assert refusal(service("a", ports=(Port(81, 8080, mode=PortMode.HOST),)))
    assert refusal(service("a", ports=(Port(81, 8080, host_ip="192.0.2.1"),)))


def test_ports_on_different_addresses_of_a_node_do_not_clash() -> None:
    a = service("a", ports=(Port(81, 9000, host_ip="192.0.2.1"),))
    assert not refusal(a, service("b", ports=(Port(81, 9000, host_ip="192.0.2.2"),)))
    assert refusal(a, service("b", ports=(Port(81, 9000, host_ip="0.0.0.0"),)))


def test_a_container_that_was_started_by_hand_keeps_its_port() -> None:
    state, view = cluster()
    nodes = dict(view.nodes)
    observed = nodes["id-2"].observed
    assert observed is not None
    nodes["id-2"] = evolve(nodes["id-2"], observed=evolve(observed, ports=("tcp/8080",)))
    with pytest.raises(Conflict, match="8080/tcp for app/web on node-2: a container that was"):
        check_stack(
            state, evolve(view, nodes=nodes), stack(service("web", ports=(Port(80, 8080),)))
        )


def test_a_network_that_is_not_defined_is_refused() -> None:
    assert refusal(service("a", networks=(ServiceNetwork("back"),))) == (
        "service a: network back is not defined"
    )


# --- a container ---------------------------------------------------------------------------

PLACE = Place("task7", "web.3", 3, "id-1", "node-1", "host-1", "linux", "amd64")
IMAGE = ImageFacts(
    "sha256:" + "b" * 64,
    "amd64",
    "linux",
    ImageConfig(
        entrypoint=("/entry",),
        cmd=("serve",),
        env=("PATH=/bin", "A=image"),
        user="www",
        working_dir="/srv",
        volumes=("/cache",),
        healthcheck=Healthcheck(("CMD", "ping"), interval=7.0),
    ),
)


def container(**values: object):
    app = stack(service("web", **values), volumes=("data",))
    return expand(record(app), app.services["web"], PLACE, IMAGE, (), "hash")


def test_a_service_overrides_its_image_by_dockers_rules() -> None:
    assert container().args == ("/entry", "serve")
    assert container(command=("x",)).args == ("/entry", "x")
    assert container(entrypoint=("/other",)).args == ("/other",)
    assert container(entrypoint=(), command=("x",)).args == ("x",)
    plain = container()
    assert (plain.user, plain.working_dir) == ("www", "/srv")
    assert container(user="0").user == "0"
    assert set(container(environment={"A": "mine"}).env) == {"PATH=/bin", "A=mine"}


def test_nothing_to_run_is_an_error_that_says_what_to_give() -> None:
    app = stack(service("web", entrypoint=()))
    with pytest.raises(Invalid, match="give the service a `command`"):
        expand(record(app), app.services["web"], PLACE, IMAGE, (), "hash")


def test_health_checks_are_the_services_or_the_images() -> None:
    assert container().healthcheck == Healthcheck(("CMD", "ping"), interval=7.0)
    assert container(healthcheck=Healthcheck(("NONE",))).healthcheck is None
    assert container(healthcheck=Healthcheck((), interval=1.0)).healthcheck == Healthcheck(
        ("CMD", "ping"), interval=1.0
    )


def test_templates_are_filled_in_and_unknown_ones_refused() -> None:
    made = container(
        hostname="{{.Service.Name}}-{{.Task.Slot}}",
        environment={"AT": "{{ .Node.Hostname }} {{.Node.ID}} {{.Service.Labels.tier}}"},
        deploy_labels={"tier": "front"},
        mounts=(Mount(MountType.BIND, "/d", "/srv/{{.Task.Slot}}"),),
    )
    assert made.hostname == "web-3"
    assert "AT=host-1 id-1 front" in made.env
    assert made.mounts[0].source == "/srv/3"
    state, view = cluster()
    with pytest.raises(Invalid, match=r"unknown template \{\{.Node.Nmae\}\}; known are"):
        check_stack(state, view, stack(service("web", hostname="{{.Node.Nmae}}")))


def test_volumes_have_full_names_and_the_images_own_are_anonymous() -> None:
    mounts = container(mounts=(Mount(MountType.VOLUME, "/data", "data"),)).mounts
    assert [(m.source, m.target) for m in mounts] == [("app_data", "/data"), ("", "/cache")]
    mounts = container(mounts=(Mount(MountType.VOLUME, "/cache/", "data"),)).mounts
    assert len(mounts) == 1


def test_labels_say_whose_a_container_is() -> None:
    labels = container(labels={"own": "1"}).labels
    assert labels["own"] == "1"
    assert labels["com.docker.compose.project"] == "app"
    assert labels["com.docker.compose.service"] == "web"
    assert labels["com.orchestra.slot"] == "web.3"
    assert labels["com.orchestra.spec-hash"] == "hash"


# --- what counts as a change ---------------------------------------------------------------


def test_changes_are_named_key_by_key_with_both_values() -> None:
    old = record(stack(service("web", environment={"A": "1", "B": "2"}, command=("x",))))
    new = record(stack(service("web", environment={"A": "1", "B": "3"}, user="www")))
    found = differences(
        fingerprint(old, old.stack.services["web"]), fingerprint(new, new.stack.services["web"])
    )
    assert [str(d) for d in found] == [
        'command: ["x"] -> (unset)',
        "environment.B: 2 -> 3",
        "user: (unset) -> www",
    ]


def test_the_content_of_a_secret_counts_and_is_not_shown() -> None:
    def prints(content: bytes) -> dict[str, str]:
        use = (FileReference("secret/key", "/run/secrets/key"),)
        app = stack(
            service("web", secrets=use),
            files={"secret/key": StackFile("secret/key", content, True)},
        )
        return fingerprint(record(app), app.services["web"])

    (change,) = differences(prints(b"old secret"), prints(b"new secret"))
    assert change.key == "secrets.secret/key (content)"
    assert "secret" not in change.old + change.new


def test_the_same_tag_with_another_image_is_a_change() -> None:
    app = record(stack(service("web")))
    state, view = settle(*cluster(app))
    need = ImageNeed("busybox:latest", "sha256:" + "d" * 64, "sha256:" + "e" * 64)
    moved = evolve(app, images={"busybox:latest": need}, revision=2)
    state = evolve(state, images={**state.images, need.manifest: state.images[MANIFEST]})
    (first, *_) = forecast(with_stack(state, moved), view).actions
    assert "image (manifest): sha256:aaa" in str(first)
