"""What all connections of a server may hold together (sans-IO).

Each connection has an account of what it holds: half a message that has come, packed
messages that wait, calls that run, parts that nobody has read, answers that have not
left. Little is not counted, so that short calls are served whatever else happens.

When the sum is over the limit, every connection that goes on to take more is not read
from until the sum is well below. That alone could stop everybody for ever, each with
half a message that cannot be finished, so:

- one connection at a time, the favoured one, goes on all the same. The sum is over the
  limit by what one connection may hold, and no more;
- meanwhile a peer for whom we wait and who moves next to nothing is ended: one that
  does not go on with its message, or does not take its answer;
- when nothing at all gets free for long, the connection that holds most is ended.

So memory is bounded, and whoever waits goes on in the end.
"""

from collections.abc import Callable
from typing import Final, Protocol

from rpc25519_tools.errors import DeadlineError

#: Connections that hold less are neither counted nor stopped.
SMALL_LEN: Final = 64 * 1024
#: Reading goes on when the sum is below this share of the limit.
_LOW_SHARE: Final = 0.75
#: While memory is short, a peer for whom we wait has to move this much ...
_PROGRESS_LEN: Final = 64 * 1024
#: ... in so many seconds. Modems did.
STALLED_S: Final = 5.0
#: The favoured connection changes after so many seconds, if it can.
_TURN_S: Final = 2.0
#: When nothing gets free for so many seconds, the largest connection is ended.
STARVED_S: Final = 30.0

_STALLED: Final = "the server is short of memory, and this peer did not go on"
_LARGEST: Final = "the server is out of memory, and this peer holds most of it"


class Holder(Protocol):
    """A connection, as accounts see it: a driver."""

    @property
    def memory_len(self) -> int:
        """Bytes that it holds."""

    @property
    def moved_len(self) -> int:
        """Bytes received and sent so far."""

    @property
    def is_mid_message(self) -> bool:
        """Whether a part of a message has come."""

    @property
    def waits_for_peer(self) -> bool:
        """Whether the peer has to go on with a message, or to take one."""

    def hold_reading(self) -> None:
        """Read and unpack no more."""

    def release_reading(self) -> None:
        """Take back one ``hold_reading``."""

    def abort(self, error: Exception) -> None:
        """End the connection."""


class Account:
    """What one connection holds; made by ``MemoryBudget.open``."""

    __slots__ = ("_budget", "_holder", "is_held", "mark", "used_len")

    def __init__(self, budget: "MemoryBudget", holder: Holder) -> None:
        self._budget = budget
        self._holder = holder
        #: What is counted of it.
        self.used_len = 0
        #: Whether it is not read from for lack of memory.
        self.is_held = False
        #: When it had last moved enough, and what it had moved by then.
        self.mark: tuple[float, int] | None = None

    @property
    def holder(self) -> Holder:
        """The connection."""
        return self._holder

    def update(self) -> None:
        """Count anew; to be called when the connection holds more, or less."""
        held_len = self._holder.memory_len
        if held_len < SMALL_LEN:
            held_len = 0
        if held_len != self.used_len:
            change = held_len - self.used_len
            self.used_len = held_len
            self._budget.changed(self, change)

    def may_take(self) -> bool:
        """Return whether a message may be unpacked now; if not, reading is held."""
        return self._budget.may_take(self)

    def close(self) -> None:
        """Forget the connection."""
        self._budget.close(self)


class MemoryBudget:
    """The sum of all accounts, and what happens when it is too much.

    Args:
        limit_len: how many bytes all connections together may hold.
        on_pressure: called when the first one has to wait; ``relieve`` has to be called
            about every second from then on, until it says that all is well.
    """

    def __init__(self, limit_len: int, on_pressure: Callable[[], None]) -> None:
        self._limit_len = limit_len
        self._low_len = int(limit_len * _LOW_SHARE)
        self._on_pressure = on_pressure
        self._accounts: dict[Account, None] = {}
        #: In the order in which they began to wait.
        self._held: dict[Account, None] = {}
        self._favoured: Account | None = None
        self._favoured_since: float | None = None
        self._freed_len = 0
        self._freed_mark: tuple[float, int] | None = None
        self._pressed = False
        #: Bytes that all connections hold.
        self.total_len = 0

    @property
    def held_count(self) -> int:
        """How many connections wait for memory."""
        return len(self._held)

    def open(self, holder: Holder) -> Account:
        """Return the account of a new connection."""
        account = Account(self, holder)
        self._accounts[account] = None
        return account

    def close(self, account: Account) -> None:
        """Forget a connection; doing so again changes nothing."""
        if self._accounts.pop(account, self) is self:
            return
        self._unhold(account)
        if account is self._favoured:
            self._favoured = None
        change, account.used_len = -account.used_len, 0
        self.changed(account, change)

    def changed(self, account: Account, change: int) -> None:
        """Take the change of an account; stop it, or let others go on."""
        self.total_len += change
        if change < 0:
            self._freed_len -= change
        if account is self._favoured and not account.used_len:
            self._favoured = None
        if self.total_len <= self._low_len:
            self._release_all()
        elif self.total_len > self._limit_len and change > 0:
            self._hold(account)
        self._favour_next()

    def may_take(self, account: Account) -> bool:
        """See ``Account.may_take``."""
        if self.total_len > self._limit_len:
            self._hold(account)
            self._favour_next()
        return not account.is_held

    def relieve(self, now: float) -> bool:
        """End whoever keeps the others waiting; return whether anybody waits still.

        Args:
            now: a clock that never goes back, in seconds.
        """
        for account in list(self._accounts):
            account.update()
        if self._held:
            self._end_stalled(now)
        if self._held:
            self._change_turn(now)
            self._end_largest(now)
        if self._held:
            return True
        self._pressed = False
        self._freed_mark = self._favoured_since = None
        for account in self._accounts:
            account.mark = None
        return False

    # Inside.

    def _hold(self, account: Account) -> None:
        if account.is_held or account is self._favoured:
            return
        account.is_held = True
        self._held[account] = None
        account.holder.hold_reading()
        if not self._pressed:
            self._pressed = True
            self._on_pressure()

    def _unhold(self, account: Account) -> None:
        if account.is_held:
            account.is_held = False
            del self._held[account]
            account.holder.release_reading()

    def _release_all(self) -> None:
        for account in list(self._held):
            self._unhold(account)

    def _favour_next(self) -> None:
        """Let the connection that has waited longest go on."""
        if self._favoured is None and self._held:
            self._favoured = next(iter(self._held))
            self._favoured_since = None
            self._unhold(self._favoured)

    def _change_turn(self, now: float) -> None:
        """Let the next one go on; not where each would add a message to the sum."""
        favoured = self._favoured
        if self._favoured_since is None:
            self._favoured_since = now
        if favoured is None or now - self._favoured_since < _TURN_S:
            return
        has_room = self.total_len <= self._limit_len or not favoured.used_len
        if has_room and not favoured.holder.is_mid_message:
            self._favoured = None
            self._favour_next()

    def _end_stalled(self, now: float) -> None:
        for account in list(self._accounts):
            if not account.used_len:
                continue
            moved_len = account.holder.moved_len
            if (
                account.mark is None
                or not account.holder.waits_for_peer
                or moved_len - account.mark[1] >= _PROGRESS_LEN
            ):
                account.mark = (now, moved_len)
            elif now - account.mark[0] >= STALLED_S:
                account.holder.abort(DeadlineError(_STALLED))

    def _end_largest(self, now: float) -> None:
        mark = self._freed_mark
        if mark is None or self._freed_len - mark[1] >= _PROGRESS_LEN:
            self._freed_mark = (now, self._freed_len)
        elif now - mark[0] >= STARVED_S:
            self._freed_mark = (now, self._freed_len)
            largest = max(self._accounts, key=lambda account: account.used_len)
            largest.holder.abort(DeadlineError(_LARGEST))
