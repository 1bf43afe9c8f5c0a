"""Deadlines for tests: requests that have one, and a loop whose clock stands still."""

import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.wire.message import Header, Message

_ids = itertools.count()


def request(
    kind: CallKind, name: str, *, created_ns: int | None, deadline_ns: int | None
) -> Message:
    return Message(
        header=Header(
            call_type=kind.value,
            call_id=f"call {next(_ids)}",
            service_name=name,
            created_ns=created_ns,
            deadline_ns=deadline_ns,
        )
    )


class FakeTimer:
    """What FakeLoop.call_at returns."""

    def __init__(self, when_s: float, callback: Callable[[], object]) -> None:
        self._when_s = when_s
        self.callback = callback
        self.live = True

    def when(self) -> float:
        return self._when_s

    def cancel(self) -> None:
        self.live = False


class FakeLoop:
    """An event loop of timers alone, whose time passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.timers: list[FakeTimer] = []

    def time(self) -> float:
        return self.now_s

    def call_at(
        self, when_s: float, callback: Callable[..., object], *args: object
    ) -> FakeTimer:
        timer = FakeTimer(when_s, lambda: callback(*args))
        self.timers.append(timer)
        return timer

    def call_later(
        self, delay_s: float, callback: Callable[..., object], *args: object
    ) -> FakeTimer:
        return self.call_at(self.now_s + delay_s, callback, *args)

    def live_timers(self) -> list[FakeTimer]:
        self.timers = [timer for timer in self.timers if timer.live]
        return self.timers

    def advance(self, to_s: float, *, late: bool = False) -> None:
        """Let time pass; ``late`` fires all timers at its end, as a busy loop does."""
        if late:
            self.now_s = to_s
        while True:
            due = [timer for timer in self.live_timers() if timer.when() <= to_s]
            if not due:
                break
            timer = min(due, key=FakeTimer.when)
            timer.live = False
            self.now_s = max(self.now_s, timer.when())
            timer.callback()
        self.now_s = to_s

    def patched(self, module: str) -> Any:
        """Return what makes this the running loop of a module."""
        return mock.patch(
            f"rpc25519_tools.rpc.{module}.asyncio.get_running_loop", return_value=self
        )
