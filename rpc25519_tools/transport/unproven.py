"""What clients may have in memory that have not shown their keys yet (sans-IO).

Over plain TCP anybody can repeat a handshake that was seen on the way, and then begin a
sealed message of up to 64 MiB on as many connections as may be unproven. What comes of
such messages is bounded for all of them together, apart from everybody else's memory:
who has shown its key never waits for who has not.

Little is not counted: a client whose first message is short gets in, whatever goes on.
Where room is needed, one connection after the other is ended, until there is enough:

1. first whoever has been at its message longest, if that is longer than PATIENCE_S: one
   that has stopped in the middle, or sends drop by drop;
2. then the oldest one of the address that holds most, as at the gate: many connections
   from one address do not push out the only one of another.

One that would have to go for its own sake goes itself. Nobody waits.
"""

from collections.abc import Callable
from typing import Final

from rpc25519_tools.errors import ConnectionLostError

#: Memory for a message that is up to so long is not counted.
SMALL_LEN: Final = 64 * 1024
#: How long a first message may take where there is no room for all, in seconds: as
#: long as the handshake before it.
PATIENCE_S: Final = 10.0

_NO_ROOM: Final = (
    "messages of clients that have not shown their pre-shared key took too much memory"
)


class Share:
    """What one connection holds; made by ``UnprovenMemory.share``."""

    __slots__ = ("_give_way", "_memory", "held_len", "since_s", "site")

    def __init__(
        self,
        memory: "UnprovenMemory",
        site: str,
        give_way: Callable[[ConnectionLostError], None],
    ) -> None:
        self._memory = memory
        self._give_way = give_way
        #: The address that it comes from, as the gate writes it.
        self.site = site
        #: What is counted of it.
        self.held_len = 0
        #: When it began to hold that much that it is counted.
        self.since_s = 0.0

    def hold(self, held_len: int, now_s: float) -> None:
        """Make room for what the connection is about to hold, all in all, or note less.

        Args:
            held_len: bytes, without those that may be copied away from meanwhile.
            now_s: a clock that never goes back, in seconds.

        Raises:
            ConnectionLostError: there is no room; nothing is counted of it any more.
        """
        self._memory.change(self, held_len, now_s)

    def close(self) -> None:
        """Note that it holds nothing any more; doing so again changes nothing."""
        self._memory.change(self, 0, self.since_s)

    def give_way(self, error: ConnectionLostError) -> None:
        """End the connection."""
        self._give_way(error)


class _Site:
    """The shares of one address, in the order in which they began, and their sum."""

    __slots__ = ("held_len", "shares")

    def __init__(self) -> None:
        self.held_len = 0
        self.shares: dict[Share, None] = {}


class UnprovenMemory:
    """The sum of all shares, and who goes when it would be too much.

    Args:
        limit_len: how many bytes there may be. A connection whose message alone takes
            more cannot get it through.
    """

    def __init__(self, limit_len: int) -> None:
        self._limit_len = limit_len
        #: In the order in which they began.
        self._shares: dict[Share, None] = {}
        self._sites: dict[str, _Site] = {}
        #: Bytes that all of them hold.
        self.total_len = 0

    def share(
        self, site: str, give_way: Callable[[ConnectionLostError], None]
    ) -> Share:
        """Return the share of a new connection.

        Args:
            site: its address.
            give_way: ends it, with the reason given; called in the middle of another
                connection's ``hold``.
        """
        return Share(self, site, give_way)

    def change(self, share: Share, held_len: int, now_s: float) -> None:
        """See ``Share.hold``."""
        counted_len = held_len if held_len > SMALL_LEN else 0
        if counted_len == share.held_len:
            return
        if not counted_len:
            self._forget(share)
            return
        if not share.held_len:
            share.since_s = now_s
            self._shares[share] = None
            self._sites.setdefault(share.site, _Site()).shares[share] = None
        self._add(share, counted_len - share.held_len)
        while self.total_len > self._limit_len:
            victim = self._victim(now_s)
            self._forget(victim)
            error = ConnectionLostError(_NO_ROOM)
            if victim is share:
                raise error
            victim.give_way(error)

    def _victim(self, now_s: float) -> Share:
        oldest = next(iter(self._shares))
        if now_s - oldest.since_s > PATIENCE_S:
            return oldest
        most = max(self._sites.values(), key=lambda site: site.held_len)
        return next(iter(most.shares))

    def _add(self, share: Share, change: int) -> None:
        share.held_len += change
        self._sites[share.site].held_len += change
        self.total_len += change

    def _forget(self, share: Share) -> None:
        self._add(share, -share.held_len)
        del self._shares[share]
        site = self._sites[share.site]
        del site.shares[share]
        if not site.shares:
            del self._sites[share.site]
