"""Keep-alives, and the end of connections on which nothing moves any more.

One timer watches over a connection. It fires a few times in the shortest interval that
is set, and not at all where none is.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from rpc25519_tools.config import Config
from rpc25519_tools.errors import DeadlineError
from rpc25519_tools.rpc.driver import Driver
from rpc25519_tools.wire.message import CallType, Header, Message

#: A keep-alive says nothing but that we are there.
KEEP_ALIVE: Final = Message(header=Header(call_type=CallType.KEEP_ALIVE))
#: How often the timer fires in the shortest interval.
_LOOKS: Final = 4


class Liveness:
    """Watches one connection; made and stopped by whoever owns its driver.

    Args:
        driver: the connection.
        config: its ``keepalive_s``, ``read_timeout_s``, ``write_timeout_s`` and, if
            ``is_busy`` is given, ``idle_timeout_s`` count.
        send_keepalive: sends KEEP_ALIVE with the codec that is due.
        is_busy: whether a call is being worked on, which moves nothing meanwhile.
    """

    def __init__(
        self,
        driver: Driver,
        config: Config,
        *,
        send_keepalive: Callable[[], None],
        is_busy: Callable[[], bool] | None = None,
    ) -> None:
        self._driver = driver
        self._config = config
        self._send_keepalive = send_keepalive
        self._is_busy = is_busy
        self._loop = asyncio.get_running_loop()
        self._sent_len = 0
        # Apart from what else is sent: it must not make a connection look busy.
        self._keepalive_s = 0.0
        self._write_progress_s = self._idle_since_s = self._loop.time()
        #: When we last did not read.
        self._deaf_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        intervals = [config.keepalive_s, config.read_timeout_s, config.write_timeout_s]
        if is_busy is not None:
            intervals.append(config.idle_timeout_s)
        self._step_s = min(filter(None, intervals), default=0.0) / _LOOKS
        if self._step_s:
            self._timer = self._loop.call_later(self._step_s, self._look)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now_s = self._loop.time()
        fault = self._read_fault(now_s) or self._write_fault(now_s)
        fault = fault or self._idle_fault(now_s)
        if fault is not None:
            self._timer = None
            self._driver.abort(DeadlineError(fault))
            return
        if self._is_silent(now_s):
            self._keepalive_s = now_s
            self._send_keepalive()
        self._timer = self._loop.call_later(self._step_s, self._look)

    def _is_silent(self, now_s: float) -> bool:
        """Tell whether a keep-alive is due."""
        interval_s = self._config.keepalive_s
        # One would not arrive before what waits already, and others would follow it.
        if not interval_s or self._driver.unsent_len:
            return False
        sent_s = max(self._driver.last_sent_s, self._keepalive_s)
        return now_s - sent_s > interval_s - self._step_s

    def _read_fault(self, now_s: float) -> str | None:
        limit_s = self._config.read_timeout_s
        if not limit_s:
            return None
        if not self._driver.is_reading:
            # What we do not read cannot arrive.
            self._deaf_s = now_s
            return None
        if now_s - max(self._driver.last_received_s, self._deaf_s) < limit_s:
            return None
        return f"nothing was received for {limit_s:g} s"

    def _write_fault(self, now_s: float) -> str | None:
        limit_s = self._config.write_timeout_s
        sent_len = self._driver.sent_len
        if sent_len > self._sent_len or not self._driver.unsent_len:
            self._write_progress_s = now_s
        self._sent_len = sent_len
        if not limit_s or now_s - self._write_progress_s < limit_s:
            return None
        return f"the peer took nothing for {limit_s:g} s"

    def _idle_fault(self, now_s: float) -> str | None:
        limit_s = self._config.idle_timeout_s
        if not limit_s or self._is_busy is None:
            return None
        if self._is_busy():
            self._idle_since_s = now_s
        moved_s = max(self._driver.last_sent_s, self._driver.last_received_s)
        if now_s - max(moved_s, self._idle_since_s) < limit_s:
            return None
        return f"nothing moved for {limit_s:g} s"
