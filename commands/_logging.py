"""What the engine and asyncio log, as warnings of one line each."""

import logging

from ._errors import debugging
from ._output import Talk
from ._peerlines import PeerLines, peer_name

#: The same warning is shown once in so many seconds; asyncio repeats some endlessly.
_REPEAT_S = 10.0
_REMEMBERED = 100


class TalkHandler(logging.Handler):
    """Prints log records as warnings; tracebacks only when debugging."""

    def __init__(self, talk: Talk) -> None:
        super().__init__(logging.WARNING)
        self._talk = talk
        self._last: dict[str, float] = {}
        self._about_peers = PeerLines(talk.warn)

    def flush(self) -> None:
        """Print what was only counted so far."""
        self._about_peers.flush()

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        # asyncio describes the objects involved on further lines.
        text = record.getMessage().split("\n", 1)[0]
        refusal = record.__dict__.get("refusal")
        if refusal is not None:  # see CallContext.require
            who = peer_name(record.__dict__["address"], record.__dict__["peer"])
            self._about_peers.tell(who, text, refusal)
            return
        if record.created - self._last.get(text, -_REPEAT_S) < _REPEAT_S:
            return
        if len(self._last) > _REMEMBERED:
            self._last.clear()
        self._last[text] = record.created
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            text += f" ({type(error).__name__}: {error})"
            if debugging():
                import traceback

                traceback.print_exception(error)
        self._talk.warn(text)


def log_to(talk: Talk) -> TalkHandler:
    """Send the log of the whole process to ``talk``."""
    handler = TalkHandler(talk)
    logging.getLogger().handlers[:] = [handler]
    return handler
