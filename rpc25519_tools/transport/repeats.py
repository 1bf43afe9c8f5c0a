"""Handshakes of a pre-shared key's tunnel that somebody else has used before (sans-IO).

Whoever sees a client's handshake on plain TCP can send it again. That opens nothing,
but each one costs a server signatures and a place among the unproven. So a server
remembers those it has taken, and takes none twice.
"""

from typing import Final

#: How many are remembered, some two megabytes; the oldest are forgotten. Only holders
#: of a certificate can make new ones.
_MOST: Final = 16_384


class SeenHandshakes:
    """The handshakes that a listener has taken, known by their fresh keys."""

    def __init__(self) -> None:
        self._seen: dict[bytes, None] = {}

    def __contains__(self, ephemeral: bytes) -> bool:
        return ephemeral in self._seen

    def add(self, ephemeral: bytes) -> None:
        """Remember a handshake whose signature is good."""
        self._seen[ephemeral] = None
        if len(self._seen) > _MOST:
            del self._seen[next(iter(self._seen))]
