"""What all tests share: coroutine tests, certificates, checks for what leaks."""

import asyncio
import inspect
import os
import signal
from collections.abc import Coroutine, Iterator
from pathlib import Path

import pytest

from tests.helpers import issue_certs, open_fds, until, wait_until

#: Longer than any test needs on a busy machine; a test that hangs fails.
ASYNC_TEST_TIMEOUT_S = 20.0


def pytest_configure() -> None:
    """Let signals arrive, also where a shell or nohup runs the tests without them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run ``async def`` tests; they fail when they leave a task or an error behind."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {
        name: pyfuncitem.funcargs[name] for name in names if name in pyfuncitem.funcargs
    }
    with asyncio.Runner(debug=True) as runner:
        runner.run(_run_test(pyfuncitem.obj(**arguments)))
    return True


async def _run_test(test: Coroutine[object, object, None]) -> None:
    unhandled: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    # On a busy machine anything is slow at times; asyncio's warnings of that would
    # come among the records that tests look at.
    loop.slow_callback_duration = ASYNC_TEST_TIMEOUT_S
    async with asyncio.timeout(ASYNC_TEST_TIMEOUT_S):
        await test

    def others() -> set[asyncio.Task[object]]:
        return asyncio.all_tasks() - {asyncio.current_task()}

    await until(lambda: not others(), timeout_s=5, what=lambda: f"end of {others()}")
    assert not unhandled, f"errors that nobody handled: {unhandled}"


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``ca.crt`` and the unprotected pairs ``node`` and ``client``."""
    return issue_certs(tmp_path_factory.mktemp("identity"), "node", "client")


@pytest.fixture(scope="session")
def other_certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same names as in ``certs``, but of another authority."""
    return issue_certs(tmp_path_factory.mktemp("other-identity"), "node", "client")


@pytest.fixture
def no_leaked_fds() -> Iterator[None]:
    """Fail a test after which more descriptors are open than before it."""
    before = open_fds()
    yield
    wait_until(
        lambda: len(open_fds()) <= len(before),
        timeout_s=5,
        what=lambda: f"these to be closed: {_described(open_fds() - before)}",
    )


def _described(fds: set[int]) -> list[str]:
    described = []
    for fd in sorted(fds):
        try:
            described.append(f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}")
        except OSError:
            described.append(f"{fd} (closed by now)")
    return described
