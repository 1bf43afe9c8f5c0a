"""Files as parts on the wire: what all three file services have in common.

A file travels in parts of 1 MiB, each with the BLAKE3 sum of its payload in the
argument ``blake3``, and ends with an extra empty part. The sums of the parts guard the
way; the sum of the whole, which both ends compute, guards the parts' order and number.

Reading, hashing and writing run in worker threads, one part ahead of the network.

Source: recorded exchanges ``upload-*``, ``download-*``, ``bistream-echo``.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeAlias, TypeVar

from rpc25519_tools.errors import (
    ChecksumError,
    DeadlineError,
    IncompleteTransferError,
    NoSuchServiceError,
)
from rpc25519_tools.files.atomic import AtomicFile
from rpc25519_tools.files.landing import Prefix
from rpc25519_tools.files.sink import PlainSink, Sink
from rpc25519_tools.files.source import SourceFile
from rpc25519_tools.files.workers import (
    AbandonableThread,
    finished,
    in_worker,
    open_in_worker,
)
from rpc25519_tools.rpc.streams import Part
from rpc25519_tools.rpc.turns import Turn
from rpc25519_tools.wire.buffers import BufferPool
from rpc25519_tools.wire.constants import PART_LEN
from rpc25519_tools.wire.digest import RunningDigest, digest_hex, digest_text
from rpc25519_tools.wire.greenpack import Buffer

#: Registered names of the Go programs' services.
UPLOAD_SERVICE: Final = "__fileUploader"
DOWNLOAD_SERVICE: Final = "__downloaderName"
ECHO_FILE_SERVICE: Final = "echoBistreamFunc"

#: Arguments of the Go programs.
ARG_PART_SUM: Final = "blake3"
ARG_UPLOAD_NAME: Final = "readFile"
ARG_SERVER_TOTAL_SUM: Final = "serverTotalBlake3sum"
ARG_DOWNLOAD_REQUEST: Final = "downloadRequestedPath"
ARG_DOWNLOAD_LEN: Final = "pathsize"
ARG_DOWNLOAD_PATH: Final = "path"
ARG_DOWNLOAD_NAME: Final = "filename"

#: How many parts of a file are read at a time, where there is room: each change of
#: threads costs as much as hashing a quarter of a part.
_PARTS_AHEAD: Final = 2

#: Our own additions, which Go programs do not look at: the sum of the whole file on an
#: upload's last part, the refusal to replace on its first, and its acknowledgement.
ARG_CLIENT_TOTAL_SUM: Final = "clientTotalBlake3sum"
ARG_NO_CLOBBER: Final = "noClobber"

#: Our own additions, for files that carry on: how many bytes of the file the receiver
#: has and their sum, on a download's request and on an upload's first part; where the
#: server goes on, on a download's part 0. Without the last the file comes from byte 0.
ARG_KEPT_LEN: Final = "keptBytes"
ARG_KEPT_SUM: Final = "keptBlake3sum"
ARG_START: Final = "startByte"

#: Learns how many bytes have passed so far, and how many there are (None: unknown).
Progress: TypeAlias = Callable[[int, int | None], None]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSummary:
    """What a transfer came to.

    Attributes:
        name: the file's name, as the other side knows it.
        size_bytes: length of the file.
        seconds: from the first step to the verified end.
        digest: the BLAKE3 sum of the whole file in the wire's text form.
        verified_by_peer: whether the peer reported the same sum; None when it
            reported none.
        carried_bytes: how many of the bytes an earlier attempt had brought already.
        clobber_refused: whether the server knew our wish not to replace anything;
            None when there was no such wish.
    """

    name: str
    size_bytes: int
    seconds: float
    digest: str
    verified_by_peer: bool | None
    carried_bytes: int = 0
    clobber_refused: bool | None = None

    @property
    def blake3_hex(self) -> str:
        """The sum in hex, as ``b3sum`` prints it."""
        return digest_hex(self.digest)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the seconds so far."""
        return time.monotonic() - self._start


class PartReader:
    """The parts of a source, read and hashed while the ones before are sent.

    Used as an asynchronous context manager, inside the source's own: leaving it waits
    until no thread reads the source any more.

    Args:
        source: what is read.
        turn: when parts may be held; None: always.
        begun: what was read from the source already; it counts, and is not handed out.
    """

    def __init__(
        self,
        source: SourceFile,
        turn: Turn | None = None,
        *,
        begun: Prefix | None = None,
    ) -> None:
        self._source = source
        self._turn = turn
        self._memory = BufferPool()
        self._total = RunningDigest() if begun is None else begun.digest
        self._thread = AbandonableThread() if source.size_bytes is None else None
        self._ready: deque[tuple[Buffer, str]] = deque()
        self._ahead: asyncio.Future[list[tuple[Buffer, str]]] | None = None
        #: Bytes of the file that were handed out so far, or came before.
        self.taken_bytes = 0 if begun is None else begun.size_bytes

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._thread.close()
        try:
            if self._ahead is not None:
                if self._thread is not None:
                    self._ahead.cancel()  # it may block for ever
                await finished(self._ahead)
        finally:
            if self._turn is not None:
                self._turn.give_up()

    @property
    def size_bytes(self) -> int | None:
        """Length of the source; None where it has none."""
        return self._source.size_bytes

    @property
    def total_sum(self) -> str:
        """The BLAKE3 sum of all that was read; of everything, after the last part."""
        return self._total.text()

    async def next(self) -> tuple[Buffer, str]:
        """Return the next part's payload and its sum; at the end, an empty payload.

        The payload's memory is used again once nothing refers to the payload.

        Raises:
            LocalFileError: reading failed.
            FileChangedError: the file is not what it was at the beginning.
            ConnectionLostError, SecurityError: there will be no turn any more.
        """
        if not self._ready:
            if self._ahead is None:
                if self._turn is not None:
                    self._memory = await self._turn.next()
                self._ahead = self._begin_reading()
            batch = await asyncio.shield(self._ahead)
            self._ahead = None
            self._ready.extend(batch)
            if batch[-1][0] and self._may_go_ahead:
                self._ahead = self._begin_reading()
        payload, part_sum = self._ready.popleft()
        self.taken_bytes += len(payload)
        return payload, part_sum

    def _begin_reading(self) -> "asyncio.Future[list[tuple[Buffer, str]]]":
        if self._thread is not None:
            return asyncio.ensure_future(self._thread.run(self._read, 1))
        count = _PARTS_AHEAD if self._may_go_ahead else 1
        if self._turn is not None:
            ready_len = sum(len(payload) for payload, _ in self._ready)
            self._turn.hold(ready_len + self._source.clip(count * PART_LEN))
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(None, self._read, count)

    @property
    def _may_go_ahead(self) -> bool:
        return self._turn is None or self._turn.may_go_ahead

    def _read(self, count: int) -> list[tuple[Buffer, str]]:
        """Read up to ``count`` parts; the last one of all is empty."""
        batch: list[tuple[Buffer, str]] = []
        for _ in range(count):
            # Fresh memory for each part would cost as much as reading it.
            wanted = self._source.clip(PART_LEN)
            memory = memoryview(self._memory.allocate(wanted))[:wanted]
            payload = memory[: self._source.read_into(memory)]
            if not payload:
                self._source.check_unchanged()
            self._total.update(payload)
            batch.append((payload, digest_text(payload)))
            if not payload:
                break
        return batch


class PartWriter:
    """Checks parts against their sums and writes them into a sink.

    Used as an asynchronous context manager: entering it opens the sink, leaving it
    aborts the sink, unless it was committed.

    Args:
        open_sink: called in a worker thread; returns where the bytes go.
        begun: what is in the sink already.
        keeps: tells whether a failure is one after which what has come shall be left
            to a later attempt, where the sink can do that.
    """

    def __init__(
        self,
        open_sink: Callable[[], Sink],
        *,
        begun: Prefix | None = None,
        keeps: Callable[[BaseException], bool] | None = None,
    ) -> None:
        self._open_sink = open_sink
        self._keeps = keeps
        self._opened: Sink | None = None
        self._thread: AbandonableThread | None = None
        self._total = RunningDigest() if begun is None else begun.digest
        #: Bytes of the file that were taken so far, or were there before.
        self.received_bytes = 0 if begun is None else begun.size_bytes

    async def __aenter__(self) -> Self:
        self._opened = await open_in_worker(self._open_sink, lambda one: one.abort())
        if isinstance(self._opened, PlainSink):
            self._thread = AbandonableThread()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._thread.close()
        sink = self._sink
        keeps = exc is not None and self._keeps is not None and self._keeps(exc)
        if keeps and isinstance(sink, AtomicFile):
            await in_worker(sink.keep)
        else:
            await in_worker(sink.abort)

    async def _run(self, step: Callable[[], None]) -> None:
        await (in_worker(step) if self._thread is None else self._thread.run(step))

    @property
    def _sink(self) -> Sink:
        assert self._opened is not None, "not entered"
        return self._opened

    async def check_space(self, size_bytes: int) -> None:
        """Raise LocalFileError if so many bytes cannot fit."""
        await in_worker(self._sink.check_space, size_bytes)

    @property
    def total_sum(self) -> str:
        """The BLAKE3 sum of what was taken so far."""
        return self._total.text()

    async def take(self, parts: Sequence[Part]) -> None:
        """Check some parts, in order, and write them.

        Raises:
            ChecksumError: a sum is wrong, or missing on any part but the first.
            LocalFileError: they cannot be written.
        """
        await self._run(partial(self._take_all, parts))
        self.received_bytes += sum(len(part.payload) for part in parts)

    def _take_all(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self._take(part)

    def _take(self, part: Part) -> None:
        expected = part.args.get(ARG_PART_SUM)
        if expected is None and part.number > 0:
            raise ChecksumError(f"part {part.number} carries no blake3 sum")
        if expected is not None and expected != digest_text(part.payload):
            raise ChecksumError(f"part {part.number} does not match its blake3 sum")
        self._total.update(part.payload)
        if part.payload:
            self._sink.write(part.payload)

    async def commit(self) -> None:
        """Give the verified file its final name.

        Raises:
            LocalFileError: that failed; the old file, if any, is untouched.
        """
        await self._run(self._sink.commit)


def check_total(args: Mapping[str, str], name: str, total_sum: str) -> bool | None:
    """Compare the sum of the whole file with the one that the peer reports.

    Returns:
        True when they are equal, None when the peer reports none.

    Raises:
        ChecksumError: they differ.
    """
    reported = args.get(name)
    if reported is None:
        return None
    if reported != total_sum:
        raise ChecksumError(
            "the file does not match its blake3 sum at the other end: "
            f"{total_sum} here, {reported[:80]!r} there"
        )
    return True


@contextlib.contextmanager
def naming_service(offer: str, option: str) -> Iterator[None]:
    """Turn the wire's refusal of a service into words for people.

    Args:
        offer: what the server does not do.
        option: the option of ``srv`` that would make it do so.
    """
    try:
        yield
    except NoSuchServiceError as exc:
        raise NoSuchServiceError(
            f"the server does not offer {offer} (srv has to be started with {option})"
        ) from exc


async def within(timeout_s: float, what: str, step: Awaitable[T]) -> T:
    """Wait for one step of a transfer, but not for ever.

    Raises:
        DeadlineError: it took longer than ``timeout_s``.
    """
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await step
    except TimeoutError as exc:
        if not limit.expired():
            raise
        raise DeadlineError(f"{what} for {timeout_s:g} s; gave up") from exc


def parse_size(args: Mapping[str, str], name: str) -> int:
    """Read a file's length as the peer announces it, in decimal.

    Raises:
        IncompleteTransferError: it is missing, or no length at all.
    """
    text = args.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise IncompleteTransferError(f"the peer announces no file size ({name})")
    return int(text)
