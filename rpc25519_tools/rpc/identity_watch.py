"""Keeps a running server's certificate up to date, and warns before it ends."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from rpc25519_tools.errors import Rpc25519Error
from rpc25519_tools.identity.status import EndReminder, end_warning
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.identity.watch import IdentityFiles

_log = logging.getLogger(__name__)


def warn_of_end(identity: LoadedIdentity) -> None:
    """Log that our certificate ends soon, if it does."""
    warning = end_warning(identity, datetime.now(UTC))
    if warning is not None:
        _log.warning("%s", warning)


class IdentityWatch:
    """Looks at the files of an identity now and then, in a worker thread.

    Files that do not fit each other are logged as a warning, once, and change nothing;
    so does the end of the certificate in use, once a day.

    Args:
        files: what to look at.
        use: called on the event loop with each new identity.
        interval_s: the time between two looks.
    """

    def __init__(
        self,
        files: IdentityFiles,
        use: Callable[[LoadedIdentity], None],
        *,
        interval_s: float,
    ) -> None:
        self.files = files
        self._use = use
        self._interval_s = interval_s
        self._asked = asyncio.Event()
        self._reminder = EndReminder(files.current, datetime.now(UTC))
        self._task = asyncio.create_task(self._run())

    def look_now(self) -> None:
        """Look at once, and tell also what has been told before."""
        self._asked.set()

    def close(self) -> None:
        """Look no more; what a look that runs still finds is dropped."""
        self._task.cancel()

    async def _run(self) -> None:
        # The first look comes at once: the files may have changed since they were
        # loaded.
        while True:
            asked = self._asked.is_set()
            self._asked.clear()
            await self._look(asked=asked)
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._asked.wait()
            except TimeoutError:
                pass

    async def _look(self, *, asked: bool) -> None:
        now = datetime.now(UTC)
        try:
            identity = await asyncio.to_thread(self.files.look, now, asked=asked)
            if identity is not None:
                self._use(identity)
        except Rpc25519Error as exc:
            _log.warning(
                "the changed certificate files are not used, the old ones stay in "
                "use: %s",
                exc,
            )
        except Exception:  # noqa: BLE001  # a defect must not end the watch
            _log.exception("looking at the certificate files failed")
        warning = self._reminder.due(self.files.current, datetime.now(UTC))
        if warning is not None:
            _log.warning("%s", warning)
