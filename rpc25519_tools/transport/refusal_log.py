"""Few lines about many refusals, however many addresses they come from (sans-IO).

Whoever can open connections can make a server tell of each. So an address has some
lines at once, all of them together have so many, and the rest is counted: a line with a
count for each address that was told of, and one for all others.

Memory is bounded by _MOST_LINES addresses.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

#: Lines are counted for so many seconds.
REPORT_INTERVAL_S: Final = 10.0
#: All addresses together have so many lines at once in this time.
_MOST_LINES: Final = 50
#: An address has more than one only while there are fewer than this: what one does
#: again and again must not hide what the others do.
_MOST_REPEATS: Final = 25
#: Stands for all addresses that have no line of their own.
OTHERS: Final = "other addresses"


@dataclass(slots=True)
class _Told:
    """When an address first had a line, how many, and what it did beyond those."""

    since: float
    lines: int = 1
    reason: str = ""
    count: int = 0


class RefusalLog:
    """Turns a flood of refusals into a few lines.

    The first refusals of an address are told at once; what follows within
    REPORT_INTERVAL_S is counted, and told by ``due``.

    Args:
        at_once: how many of one address are told at once.
    """

    def __init__(self, at_once: int = 1) -> None:
        self._at_once = at_once
        #: In the order in which they had their first line.
        self._told: OrderedDict[str, _Told] = OrderedDict()
        #: Since when lines are counted, and how many there were.
        self._since = 0.0
        self._lines = 0

    @property
    def is_empty(self) -> bool:
        """Whether ``due`` need not be called any more."""
        return not self._told

    def note(self, site: str, reason: str, now: float) -> bool:
        """Note a refusal; return whether it is to be told at once.

        Args:
            site: the address.
            reason: what the line with the count says of the last one.
            now: a clock that never goes back, in seconds.
        """
        if now - self._since >= REPORT_INTERVAL_S:
            self._since, self._lines = now, 0
        told = self._told.get(site)
        if told is None and self._has_line():
            self._told[site] = _Told(now)
            self._lines += 1
            return True
        if told is None:
            told = self._told.setdefault(OTHERS, _Told(now))
        elif told.lines < self._at_once and self._lines < _MOST_REPEATS:
            told.lines += 1
            self._lines += 1
            return True
        told.reason = reason
        told.count += 1
        return False

    def _has_line(self) -> bool:
        """Tell whether one more address may have a line of its own."""
        addresses = len(self._told) - (OTHERS in self._told)
        return self._lines < _MOST_LINES and addresses < _MOST_LINES

    def due(self, now: float) -> list[tuple[str, str]]:
        """Return the addresses and texts of what was counted and is to be told now."""
        lines = []
        for site, told in list(self._told.items()):
            if now - told.since < REPORT_INTERVAL_S:
                break  # the others are younger
            del self._told[site]
            if told.count:
                lines.append((site, f"{told.count} more times: {told.reason}"))
                # Again quiet for a while, whatever else comes.
                self._told[site] = _Told(now, lines=self._at_once)
        return lines
