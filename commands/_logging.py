"""What the engine and asyncio log, as warnings of one line each."""

import logging
import os

from ._errors import DEBUG_VARIABLE
from ._output import Talk


class TalkHandler(logging.Handler):
    """Prints log records as warnings; tracebacks only when debugging."""

    def __init__(self, talk: Talk) -> None:
        super().__init__(logging.WARNING)
        self._talk = talk

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        # asyncio describes the objects involved on further lines.
        text = record.getMessage().split("\n", 1)[0]
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            text += f" ({type(error).__name__}: {error})"
            if os.environ.get(DEBUG_VARIABLE, "") not in {"", "0"}:
                import traceback

                traceback.print_exception(error)
        self._talk.warn(text)


def log_to(talk: Talk) -> None:
    """Send the log of the whole process to ``talk``."""
    root = logging.getLogger()
    root.handlers[:] = [TalkHandler(talk)]
