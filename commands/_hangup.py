"""What SIGHUP means to a server: read your files again, or your terminal is gone."""

import asyncio
import os
import signal
from collections.abc import Callable


class Hangups:
    """Tells a hang-up that an administrator sends from one that a terminal sends.

    Make it when the program starts, to see whether it has a terminal then.
    """

    def __init__(self) -> None:
        # Under nohup the program is to outlive its terminal.
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._had_terminal = not ignored and _has_terminal()

    def handle(self, reload: Callable[[], None], stop: Callable[[], None]) -> None:
        """Let SIGHUP call ``reload``; or ``stop``, when the terminal has gone."""

        def hung_up() -> None:
            if self._had_terminal and not _has_terminal():
                stop()
            else:
                reload()

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
