"""Which failures are tried again, for how long, and how often."""

import asyncio
from collections.abc import Iterator
from typing import cast

import pytest

from rpc25519_tools.errors import (
    ChecksumError,
    ConnectFailedError,
    ConnectionLostError,
    DeadlineError,
    HandshakeCutError,
    LocalFileError,
    PeerNotTrustedError,
    RemoteCallError,
)
from rpc25519_tools.files.carry_on import Progressed, is_network_failure, with_retries
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.failures import SHUTTING_DOWN
from rpc25519_tools.rpc.reconnect import Backoff
from tests.helpers import until

QUICK = Backoff(first_s=0.001, longest_s=0.002)


class FakeClient:
    """A connection over which something has come, or nothing."""

    def __init__(self, *, has_heard: bool = True) -> None:
        self.has_heard = has_heard
        self.closed = False
        self.aborted = False
        self.transport = self

    def abort(self) -> None:
        self.aborted = True

    async def __aenter__(self) -> "FakeClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed = True


class Story:
    """What connecting and the job come to, one after the other.

    Each step is an exception, or what the job returns; a tuple is for connecting.
    """

    def __init__(self, *steps: object, has_heard: bool = True) -> None:
        self._steps: Iterator[object] = iter(steps)
        self._has_heard = has_heard
        self.clients: list[FakeClient] = []
        self.retries: list[tuple[Exception, float]] = []
        self._next: object = None
        self.progresses = False

    async def connect(self) -> Client:
        self._next = next(self._steps)
        if isinstance(self._next, tuple):
            raise self._next[0]
        self.clients.append(FakeClient(has_heard=self._has_heard))
        return cast("Client", self.clients[-1])

    async def job(self, client: Client, progressed: Progressed) -> object:
        assert cast("FakeClient", client) is self.clients[-1]
        if self.progresses:
            progressed()
        if isinstance(self._next, BaseException):
            raise self._next
        return self._next

    async def run(self, retry_for_s: float, backoff: Backoff = QUICK) -> object:
        def note(exc: Exception, wait_s: float) -> None:
            self.retries.append((exc, wait_s))

        try:
            return await with_retries(
                self.connect, self.job, retry_for_s, note, backoff=backoff
            )
        finally:
            assert all(client.closed for client in self.clients)


LOST = ConnectionLostError("lost")
CURABLE = [
    LOST,
    ConnectFailedError("nobody there"),
    DeadlineError("nothing moved"),
    HandshakeCutError("cut"),
    RemoteCallError(SHUTTING_DOWN),
]
LASTING = [
    PeerNotTrustedError("who is that"),
    ChecksumError("wrong"),
    LocalFileError("disk full"),
    RemoteCallError("no such file"),
    ValueError("a defect"),
]


@pytest.mark.parametrize("failure", CURABLE, ids=repr)
async def test_failures_of_the_network_are_tried_again(failure: Exception) -> None:
    assert is_network_failure(failure)
    story = Story(LOST, failure, (failure,), "done")
    assert await story.run(60) == "done"
    assert [exc for exc, _ in story.retries] == [LOST, failure, failure]
    assert story.clients[0].aborted is True
    assert story.clients[-1].aborted is False


@pytest.mark.parametrize("failure", LASTING, ids=repr)
async def test_other_failures_are_not(failure: Exception) -> None:
    assert not is_network_failure(failure)
    for steps in ((failure,), (LOST, failure), (LOST, (failure,))):
        story = Story(*steps)
        with pytest.raises(type(failure)) as caught:
            await story.run(60)
        assert caught.value is failure
        assert len(story.retries) == len(steps) - 1


@pytest.mark.parametrize("step", [LOST, DeadlineError("no answer")])
async def test_a_connection_that_never_says_anything_is_a_mistake(
    step: Exception,
) -> None:
    story = Story(step, has_heard=False)
    with pytest.raises(type(step)):
        await story.run(60)
    assert story.retries == []


async def test_a_first_attempt_that_does_not_connect_fails() -> None:
    story = Story((ConnectFailedError("nobody there"),))
    with pytest.raises(ConnectFailedError):
        await story.run(60)
    assert story.retries == []


async def test_nothing_is_tried_again_where_that_is_not_wanted() -> None:
    story = Story(LOST)
    with pytest.raises(ConnectionLostError):
        await story.run(0)
    assert story.retries == []


async def test_it_is_given_up_in_time() -> None:
    story = Story(*[LOST] * 1000)
    with pytest.raises(ConnectionLostError):
        await story.run(0.1, Backoff(first_s=0.01, longest_s=0.01, jitter=0))
    assert 2 < len(story.retries) <= 10


async def test_time_begins_when_a_failure_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A peer that has died may be noticed late, as over QUIC."""
    loop = asyncio.get_running_loop()
    clock, late_s = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: clock() + late_s)

    class LateStory(Story):
        async def job(self, client: Client, progressed: Progressed) -> object:
            nonlocal late_s
            late_s = 2.0
            return await super().job(client, progressed)

    story = LateStory(LOST, "done")
    assert await story.run(1) == "done"
    assert len(story.retries) == 1


async def test_progress_extends_the_time_and_begins_the_waits_anew() -> None:
    story = Story(*[LOST] * 30, "done")
    story.progresses = True
    backoff = Backoff(first_s=0.01, longest_s=1.0, jitter=0)
    assert await story.run(0.05, backoff) == "done"
    assert [wait_s for _, wait_s in story.retries] == [0.01] * 30


async def test_waits_grow_without_progress() -> None:
    story = Story(*[LOST] * 4, "done")
    assert await story.run(60, Backoff(first_s=0.001, longest_s=0.005, jitter=0))
    waits = [wait_s for _, wait_s in story.retries]
    assert waits == [0.001, 0.002, 0.004, 0.005]


async def test_cancelled_while_it_waits() -> None:
    story = Story(*[LOST] * 4)
    task = asyncio.create_task(story.run(600, Backoff(first_s=300, longest_s=300)))
    await until(lambda: story.retries)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
