"""What a server notes about each transfer."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeAlias

from rpc25519_tools.files.parts import Stopwatch
from rpc25519_tools.rpc.context import CallContext

#: Takes a record when its transfer is over.
TransferLog: TypeAlias = "Callable[[TransferRecord], None]"


class TransferRecord:
    """One transfer; as a context manager it reports itself at the end.

    Attributes:
        kind: ``upload``, ``download``, ``echo``, ``push`` or ``pull``.
        context: the call.
        name: the file's name as the client gave it; not to be printed raw.
        size_bytes: payload bytes that passed.
        counts: what else there is to count, in words; empty for a single file.
        seconds: how long it took; set at the end.
        digest: the BLAKE3 sum of the whole file, when it was reached.
        failure: why it failed; None when it did not.
        is_withdrawn: whether it shall not be reported: it comes again in another call.
    """

    def __init__(self, kind: str, context: CallContext, log: TransferLog) -> None:
        self.kind = kind
        self.context = context
        self.name = ""
        self.size_bytes = 0
        self.counts = ""
        self.seconds = 0.0
        self.digest = ""
        self.failure: str | None = None
        self.is_withdrawn = False
        self._log = log
        self._clock = Stopwatch()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.seconds = self._clock.seconds
        if isinstance(exc, asyncio.CancelledError):
            # Whoever cancels a handler says why.
            self.failure = str(exc.args[0]) if exc.args else "cancelled"
        elif exc is not None:
            self.failure = str(exc) or type(exc).__name__
        if not self.is_withdrawn:
            self._log(self)
