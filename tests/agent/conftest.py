"""The agent's tests: `async def` tests run under trio."""

import functools
import inspect

import pytest
import trio


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    trio.run(functools.partial(pyfuncitem.obj, **{n: pyfuncitem.funcargs[n] for n in names}))
    return True
