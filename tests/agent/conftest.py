"""The agent's tests: `async def` tests run under trio, the others mostly ask a running agent."""

import functools
import inspect

import pytest
import trio

from .host import running_host


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    trio.run(functools.partial(pyfuncitem.obj, **{n: pyfuncitem.funcargs[n] for n in names}))
    return True


@pytest.fixture(scope="module")
def host():
    """An agent with busybox, shared by a module's tests."""
    with running_host() as host:
        yield host


@pytest.fixture
def nothing_stays(host):
    """The next test finds no container and no network of this one."""
    yield
    for row in host.ok("GET", "/containers/json?all=1"):
        host.call("DELETE", f"/containers/{row['Id']}?force=1&v=1")
    host.ok("POST", "/networks/prune")
