"""Time limits of many calls, with one timer for most of them.

Nearly all calls of a program have the same time limit, so that their ends come in the
order in which they began. Those wait in one queue with one timer, and a call that ends
in time costs no more than a dictionary's entry. The others get timers of their own.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from rpc25519_tools.config import LONGEST_S
from rpc25519_tools.errors import LocalProtocolError

K = TypeVar("K")


def require_limit(timeout_s: object) -> None:
    """Make sure that a caller's time limit is one.

    Zero and less are limits that have passed already.

    Raises:
        LocalProtocolError: it is no number of seconds, or an absurd one.
    """
    if not isinstance(timeout_s, int | float) or not (
        -LONGEST_S <= timeout_s <= LONGEST_S
    ):
        raise LocalProtocolError(
            "a time limit must be a number of seconds up to 100 years, "
            f"not {timeout_s!r:.40}"
        )


class Deadlines(Generic[K]):
    """When each of many things must be done, on the loop's clock.

    Args:
        expired: called with each key whose time is over; it has been forgotten by then.
    """

    def __init__(self, expired: Callable[[K], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._expired = expired
        self._in_order: dict[K, float] = {}
        self._last_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        #: When it goes off. It cannot be asked: uvloop's is of another class, without
        #: ``when``, where its time has come already.
        self._timer_s = 0.0
        self._apart: dict[K, asyncio.TimerHandle] = {}

    def add(self, key: K, until_s: float) -> None:
        """Watch over ``key`` until the given time."""
        if not self._in_order or until_s >= self._last_s:
            self._in_order[key] = self._last_s = until_s
            if self._timer is None:
                self._look_at(until_s)
            elif len(self._in_order) == 1 and until_s < self._timer_s:
                self._timer.cancel()
                self._look_at(until_s)
        else:
            self._apart[key] = self._loop.call_at(until_s, self._expire_one, key)

    def discard(self, key: K) -> None:
        """Watch over ``key`` no more, if it is watched at all."""
        if self._in_order.pop(key, None) is None and self._apart:
            timer = self._apart.pop(key, None)
            if timer is not None:
                timer.cancel()

    def stop(self) -> None:
        """Watch over nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for timer in self._apart.values():
            timer.cancel()
        self._apart.clear()
        self._in_order.clear()

    def _look_at(self, until_s: float) -> None:
        self._timer_s = until_s
        self._timer = self._loop.call_at(until_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        over = []
        for key, until_s in self._in_order.items():
            if until_s > now_s:
                self._look_at(until_s)
                break
            over.append(key)
        for key in over:
            del self._in_order[key]
        for key in over:
            self._expired(key)

    def _expire_one(self, key: K) -> None:
        del self._apart[key]
        self._expired(key)
