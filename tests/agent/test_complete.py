"""agent.complete: a request and its image make a complete specification, by Docker's rules."""

import pytest

from orchestra.agent.complete import PATH, complete
from orchestra.api.engine import CreateRequest
from orchestra.model.container import ContainerSpec, Image, ImageConfig
from orchestra.model.errors import Invalid
from orchestra.model.service import (
    Healthcheck,
    Mount,
    MountType,
    Port,
    RestartCondition,
    RestartPolicy,
)

CHECK = Healthcheck(("CMD", "probe"), interval=3.0)
CONFIG = ImageConfig(
    env=("A=image", "B=image"),
    entrypoint=("/entry",),
    cmd=("serve",),
    working_dir="/srv",
    user="web",
    labels={"from": "image", "both": "image"},
    volumes=("/data", "/cache/"),
    exposed_ports=("80/tcp", "53/udp"),
    stop_signal="SIGQUIT",
    healthcheck=CHECK,
)
IMAGE = Image("sha256:1", "sha256:2", ("web:latest",), config=CONFIG)


def made(image=IMAGE, entrypoint=None, cmd=None, body=None, **said):
    spec = ContainerSpec(
        image="web",
        image_id="",
        args=cmd or (),
        entrypoint=entrypoint or (),
        **{"working_dir": "", "stop_signal": "", **said},
    )
    request = CreateRequest("x", spec, entrypoint is not None, cmd is not None, body=body or {})
    return complete(request, image)


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "entry", "args"),
    [
        (None, None, ("/entry",), ("/entry", "serve")),
        (None, ("ls",), ("/entry",), ("/entry", "ls")),
        (("/mine",), None, ("/mine",), ("/mine",)),
        (("/mine",), ("a",), ("/mine",), ("/mine", "a")),
        (("",), ("a",), (), ("a",)),
        ((), ("a",), (), ("a",)),
        ((), None, (), ("serve",)),
    ],
)
def test_entrypoint_and_command_are_joined_as_docker_does(entrypoint, cmd, entry, args):
    spec = made(entrypoint=entrypoint, cmd=cmd)
    assert (spec.entrypoint, spec.args) == (entry, args)


def test_where_the_request_is_silent_the_image_speaks():
    spec = made()
    assert spec.env == (PATH, "A=image", "B=image")
    assert (spec.working_dir, spec.user, spec.stop_signal) == ("/srv", "web", "SIGQUIT")
    assert spec.healthcheck == CHECK
    assert [m.target for m in spec.mounts] == ["/data", "/cache/"]


def test_what_the_request_says_wins():
    spec = made(
        env=("A=mine", "PATH=/bin", "B"),
        labels={"both": "mine"},
        user="0",
        working_dir="/",
        stop_signal="SIGINT",
        healthcheck=Healthcheck(("NONE",)),
        mounts=(Mount(MountType.VOLUME, "/cache", "c"),),
    )
    assert spec.env == ("PATH=/bin", "A=mine")
    assert spec.labels == {"from": "image", "both": "mine"}
    assert (spec.working_dir, spec.user, spec.stop_signal) == ("/", "0", "SIGINT")
    assert spec.healthcheck == Healthcheck(("NONE",))
    assert [m.target for m in spec.mounts] == ["/cache", "/data"]


def test_timing_alone_applies_to_the_images_check():
    assert made(healthcheck=Healthcheck((), interval=1.0)).healthcheck == Healthcheck(
        ("CMD", "probe"), interval=1.0
    )


def test_publish_all_takes_every_exposed_port_once():
    body = {"HostConfig": {"PublishAllPorts": True}, "ExposedPorts": {"80/tcp": {}, "81/tcp": {}}}
    spec = made(body=body, ports=(Port(81, 8081),))
    assert [(p.target, p.published, p.protocol) for p in spec.ports] == [
        (81, 8081, "tcp"),
        (80, None, "tcp"),
        (53, None, "udp"),
    ]


def test_a_container_needs_something_to_run():
    with pytest.raises(Invalid, match="no command specified"):
        made(image=Image("sha256:1", "sha256:2", ()))


def test_automatic_removal_and_restarts_exclude_each_other():
    with pytest.raises(Invalid, match="AutoRemove"):
        made(auto_remove=True, restart=RestartPolicy(RestartCondition.ANY))
