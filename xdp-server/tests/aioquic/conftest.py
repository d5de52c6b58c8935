"""Where the server under test is, and how the asynchronous tests are run.

    CANVAS_HOST   default 127.0.0.1
    CANVAS_PORT   default 4433
    CANVAS_PID    the server's process id; without it the drain test is skipped
"""

import asyncio
import functools
import inspect
import os

import pytest

import canvas_client

TEST_TIMEOUT = 45.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run `async def` tests, each in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def body():
        await asyncio.wait_for(pyfuncitem.obj(**arguments), TEST_TIMEOUT)

    asyncio.run(body())
    return True


@pytest.fixture(scope="session")
def address():
    host = os.environ.get("CANVAS_HOST", "127.0.0.1")
    port = int(os.environ.get("CANVAS_PORT", "4433"))

    async def probe():
        async with canvas_client.connect(host, port, greet=False):
            pass

    try:
        asyncio.run(probe())
    except (OSError, asyncio.TimeoutError) as error:
        pytest.exit(f"no canvas server answers at {host}:{port} ({error!r})", returncode=2)
    return host, port


@pytest.fixture(scope="session")
def server_pid():
    pid = os.environ.get("CANVAS_PID")
    if not pid:
        pytest.skip("CANVAS_PID is not set")
    return int(pid)


@pytest.fixture(scope="session")
def connect(address):
    """`async with connect(flags=..., ...) as client:`"""
    return functools.partial(canvas_client.connect, *address)


@pytest.fixture(scope="session")
def free_painting(connect):
    """Skips the tests that paint a lot when the server has a cooldown."""

    async def probe():
        async with connect(flags=0) as client:
            return client.welcome.cooldown_ms

    cooldown = asyncio.run(probe())
    if cooldown:
        pytest.skip(f"the server has a cooldown of {cooldown} ms")
