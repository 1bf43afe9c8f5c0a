"""Uploading a file: the client's side and the service.

An upload carries on where an earlier one was cut; see ``kept_uploads.py``.
"""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from functools import partial
from typing import Final

from rpc25519_tools.errors import (
    CallError,
    DeadlineError,
    IncompleteTransferError,
    RemoteCallError,
    Rpc25519Error,
)
from rpc25519_tools.files.carry_on import is_network_failure
from rpc25519_tools.files.descriptors import (
    PER_AREA,
    PER_UPLOAD,
    OpenFiles,
    open_files,
)
from rpc25519_tools.files.jail import Root, access_target
from rpc25519_tools.files.kept_uploads import (
    ARG_FITS,
    ARG_START_OVER,
    ARG_TRANSFER_ID,
    ARG_UPLOAD_LEN,
    KEPT_UPLOADS_SERVICE,
    KeptUploads,
)
from rpc25519_tools.files.landing import (
    CARRY_MIN_LEN,
    Landing,
    Prefix,
    hashing_limit_s,
    read_prefix,
)
from rpc25519_tools.files.parts import (
    ARG_CLIENT_TOTAL_SUM,
    ARG_KEPT_LEN,
    ARG_KEPT_SUM,
    ARG_NO_CLOBBER,
    ARG_PART_SUM,
    ARG_SERVER_TOTAL_SUM,
    ARG_UPLOAD_NAME,
    UPLOAD_SERVICE,
    PartReader,
    PartWriter,
    Progress,
    Stopwatch,
    TransferSummary,
    check_total,
    naming_service,
    parse_size,
    within,
)
from rpc25519_tools.files.record import TransferLog, TransferRecord
from rpc25519_tools.files.source import SourceFile
from rpc25519_tools.files.workers import in_worker
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.client_stream import ClientStream
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.failures import CANCELLED_BY_CLIENT
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.streams import IncomingStream, Part
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS


async def upload_file(
    client: Client,
    source: SourceFile,
    remote_name: str,
    *,
    clobber: bool = True,
    progress: Progress | None = None,
    transfer_id: str = "",
    is_repeated: bool = False,
) -> TransferSummary:
    """Send a file to the server's served directory.

    What a server of ours has kept of an earlier attempt is not sent again.

    Args:
        client: an open connection.
        source: what to send, from its present position to its end.
        remote_name: the name that the file gets there.
        clobber: False asks the server not to replace an existing file. A Go server
            does not know this wish.
        progress: learns how many bytes have been sent.
        transfer_id: from ``new_transfer_id``, the same for all attempts of one
            transfer: the server then does not wait for the connection of the one
            before.
        is_repeated: whether an attempt before this one was cut, so that it is worth
            while to wait for what the server has before anything is sent.

    Raises:
        NoSuchServiceError: the server takes no uploads.
        RemoteCallError: the server refused or could not store the file.
        ChecksumError: the server stored something else.
        FileChangedError, LocalFileError: the source failed; nothing is stored.
        ConnectionLostError, DeadlineError, SecurityError: the connection failed.
    """
    upload = _Upload(client, source, remote_name, clobber, progress, transfer_id)
    return await upload.run(is_repeated=is_repeated)


class _Upload:
    """One upload of a client: perhaps a question or two, and the parts."""

    def __init__(
        self,
        client: Client,
        source: SourceFile,
        remote_name: str,
        clobber: bool,  # noqa: FBT001  # private
        progress: Progress | None,
        transfer_id: str,
    ) -> None:
        self._clock = Stopwatch()
        self._client = client
        self._source = source
        self._name = remote_name
        self._clobber = clobber
        self._progress = progress
        self._id = transfer_id

    async def run(self, *, is_repeated: bool) -> TransferSummary:
        size_bytes = self._source.size_bytes
        if size_bytes is None or size_bytes < CARRY_MIN_LEN:
            summary = await self._send(None)
            assert summary is not None
            return summary
        # The question and part 0 travel together, so that asking costs no wait. A
        # server that has something does not store part 0 before it knows.
        asking = asyncio.create_task(self._ask())
        summary = None
        try:
            if not is_repeated or not await asking:
                summary = await self._send(None, asking)
        finally:
            asking.cancel()
            await asyncio.wait([asking])
            asking.cancelled() or asking.exception()
        if summary is not None:
            return summary
        begun = await self._fitting(asking.result())
        if begun is not None:
            try:
                summary = await self._send(begun)
            except RemoteCallError as exc:
                if ARG_START_OVER not in exc.reply_args:
                    raise
        if summary is None:
            await in_worker(self._source.rewind)
            summary = await self._send(None)
        assert summary is not None
        return summary

    async def _ask(self) -> int:
        """Return how much the server has of the file; 0 if it cannot tell."""
        reply = await self._question()
        if reply is None or ARG_KEPT_LEN not in reply:
            return 0
        with contextlib.suppress(IncompleteTransferError):
            kept_bytes = parse_size(reply, ARG_KEPT_LEN)
            if CARRY_MIN_LEN <= kept_bytes <= (self._source.size_bytes or 0):
                return kept_bytes
        return 0

    async def _question(
        self, more: Mapping[str, str] = NO_ARGS, limit_s: float = 0.0
    ) -> Mapping[str, str] | None:
        args = {ARG_UPLOAD_NAME: self._name, ARG_TRANSFER_ID: self._id, **more}
        try:
            reply = await self._client.call(
                KEPT_UPLOADS_SERVICE,
                args=args,
                timeout_s=self._client.call_timeout_s + limit_s,
            )
        except CallError:
            return None  # also of Go servers; the upload itself says what is wrong
        except DeadlineError:
            if self._client.is_down:
                raise
            return None
        return reply.header.args

    async def _fitting(self, kept_bytes: int) -> Prefix | None:
        """Return the beginning of the source if the server has exactly that."""
        await in_worker(self._source.rewind)
        begun = await read_prefix(self._source.read_into, kept_bytes)
        claim = {ARG_KEPT_LEN: str(kept_bytes), ARG_KEPT_SUM: begun.sum}
        reply = await self._question(claim, hashing_limit_s(kept_bytes))
        return begun if reply is not None and reply.get(ARG_FITS) == "1" else None

    async def _send(
        self, begun: Prefix | None, asking: "asyncio.Task[int] | None" = None
    ) -> TransferSummary | None:
        """Upload what comes after ``begun``; None: the server has something."""
        client, clobber = self._client, self._clobber
        args = {ARG_UPLOAD_NAME: self._name}
        if self._source.size_bytes is not None:
            args[ARG_UPLOAD_LEN] = str(self._source.size_bytes)
        if self._id:
            args[ARG_TRANSFER_ID] = self._id
        if begun is not None:
            args |= {ARG_KEPT_LEN: str(begun.size_bytes), ARG_KEPT_SUM: begun.sum}
        if not clobber:
            args[ARG_NO_CLOBBER] = "1"
        start_bytes = 0 if begun is None else begun.size_bytes
        with naming_service("uploads", "-readfile"):
            async with PartReader(self._source, begun=begun) as reader:
                opening = open_with_first_part(
                    client, CallKind.UPLOAD, UPLOAD_SERVICE, reader, args
                )
                async with await opening as stream:
                    if asking is not None and await _answer(asking, stream):
                        return None
                    await send_other_parts(client, stream, reader, self._progress)
                    step = stream.reply()
                    reply = await within(
                        client.reply_timeout_s, "the server did not answer", step
                    )
        got = reply.header.args
        return TransferSummary(
            name=self._name,
            size_bytes=reader.taken_bytes,
            seconds=self._clock.seconds,
            digest=reader.total_sum,
            verified_by_peer=check_total(got, ARG_SERVER_TOTAL_SUM, reader.total_sum),
            carried_bytes=start_bytes,
            clobber_refused=None if clobber else ARG_NO_CLOBBER in got,
        )


async def _answer(asking: "asyncio.Task[int]", stream: ClientStream) -> int:
    """Wait for the answer to a question, or until the call is over."""
    over = asyncio.ensure_future(stream.reply())
    try:
        await asyncio.wait([asking, over], return_when=asyncio.FIRST_COMPLETED)
        return asking.result() if asking.done() else 0
    finally:
        over.cancel()
        await asyncio.wait([over])
        over.cancelled() or over.exception()


async def open_with_first_part(
    client: Client,
    kind: CallKind,
    service_name: str,
    reader: PartReader,
    first_args: Mapping[str, str],
) -> ClientStream:
    """Open an upload or bistream; its opening message is part 0 of the source."""
    payload, part_sum = await reader.next()
    args = {**first_args, ARG_PART_SUM: part_sum}
    return await client.stream(kind, service_name, payload, args=args)


async def send_other_parts(
    client: Client, stream: ClientStream, reader: PartReader, progress: Progress | None
) -> None:
    """Send all parts after the first, up to the empty last one."""
    payload: Buffer = b"more"
    while payload:
        if progress is not None:
            progress(reader.taken_bytes, reader.size_bytes)
        payload, part_sum = await _next_unless_over(reader, stream)
        args = {ARG_PART_SUM: part_sum}
        if not payload:
            args[ARG_CLIENT_TOTAL_SUM] = reader.total_sum
        step = stream.send(payload, args=args, last=not payload)
        await within(client.stall_timeout_s, "the server took nothing", step)


async def _next_unless_over(
    reader: PartReader, stream: ClientStream
) -> tuple[Buffer, str]:
    """Read the next part, but do not wait for a pipe when the call is over already."""
    if reader.size_bytes is not None:
        return await reader.next()
    reading = asyncio.ensure_future(reader.next())
    over = asyncio.ensure_future(stream.reply())
    try:
        await asyncio.wait([reading, over], return_when=asyncio.FIRST_COMPLETED)
        if over.done():
            await over  # raises what ended the call, if it was an error
        return await reading
    finally:
        for task in (reading, over):
            task.cancel()
        await asyncio.wait([reading, over])
        for task in (reading, over):
            task.cancelled() or task.exception()


class UploadService:
    """Stores what clients upload, beneath one directory.

    Args:
        root: the directory.
        clobber: whether an existing file may be replaced.
        log: learns how each upload ended.
        files: counts what is open; None: the count of the whole process.
    """

    #: Rights are looked up here, by the file's name, and not by the service's.
    checks_access: Final = True

    def __init__(
        self,
        root: Root,
        *,
        clobber: bool,
        log: TransferLog,
        files: OpenFiles | None = None,
    ) -> None:
        #: What is left of uploads that were cut; a service to be registered, too.
        self.kept = KeptUploads(root, clobber=clobber, files=files)
        self._files = files
        self._log = log

    async def __call__(self, context: CallContext, parts: IncomingStream) -> Reply:
        """Receive one file; the reply reports the sum of what was stored."""
        with (
            TransferRecord("upload", context, self._log) as record,
            contextlib.ExitStack() as reserved,
        ):
            given = context.header.args
            name = given.get(ARG_UPLOAD_NAME, "")
            record.name = name
            context.require("write", access_target(name))
            files = self._files or open_files()
            size_bytes = _announced(given)
            count = PER_UPLOAD
            if size_bytes is not None and size_bytes >= CARRY_MIN_LEN:
                count += PER_AREA
            reserved.enter_context(files.reserve(context.remote_address, count))
            reserved.enter_context(self.kept.running(context, name))
            clobber = ARG_NO_CLOBBER not in given
            async with self.kept.landing(name, clobber=clobber) as landing:
                begun, first = None, list[Part]()
                if ARG_KEPT_LEN in given:
                    begun = await self.kept.take(landing, context)
                    if begun is None:
                        text = "the beginning of the file is not here any more"
                        record.failure = text
                        return Reply(error=text, args={ARG_START_OVER: "1"})
                elif count > PER_UPLOAD:
                    first = await self._begin_anew(landing, parts, record)
                start_bytes = 0 if begun is None else begun.size_bytes
                open_target = partial(landing.open, size_bytes, start_bytes)
                async with PartWriter(
                    open_target, begun=begun, keeps=_is_cut
                ) as writer:
                    last = await _take_all(writer, first, parts, record)
                    check_total(last.args, ARG_CLIENT_TOTAL_SUM, writer.total_sum)
                    await writer.commit()
            record.digest = writer.total_sum
            text = f"stored {writer.received_bytes} bytes; "
            text += f"bytesWrit={writer.received_bytes};"
            args = {ARG_SERVER_TOTAL_SUM: writer.total_sum}
            if ARG_NO_CLOBBER in context.header.args:
                args[ARG_NO_CLOBBER] = "1"
            return Reply(payload=text.encode(), args=args)

    async def _begin_anew(
        self, landing: Landing, parts: IncomingStream, record: TransferRecord
    ) -> list[Part]:
        """Wait for a part that shows that the client does not want to carry on.

        It sends part 0 before it knows that there is something to carry on with, and
        then cancels, and comes back.

        Returns:
            The parts that had to be taken for that.

        Raises:
            asyncio.CancelledError: it has done so.
        """
        first: list[Part] = []
        try:
            if await self.kept.look(landing):
                while len(first) < 2 and (part := await anext(parts, None)):
                    first.append(part)
        except asyncio.CancelledError as exc:
            record.is_withdrawn = not _is_cut(exc)
            raise
        return first


def _announced(args: Mapping[str, str]) -> int | None:
    """Return the length of the file, if the client says it.

    Raises:
        IncompleteTransferError: what it says is no length.
    """
    return parse_size(args, ARG_UPLOAD_LEN) if ARG_UPLOAD_LEN in args else None


def _is_cut(exc: BaseException) -> bool:
    """Tell whether an upload has ended without its client's wish."""
    if isinstance(exc, asyncio.CancelledError):
        return exc.args[:1] != (CANCELLED_BY_CLIENT,)
    return is_network_failure(exc)


async def _take_all(
    writer: PartWriter, first: list[Part], parts: IncomingStream, record: TransferRecord
) -> Part:
    """Write all parts; return the last one.

    Raises:
        IncompleteTransferError: there is none that says so.
        ChecksumError, LocalFileError: as ``PartWriter.take``.
    """
    start_bytes = writer.received_bytes
    batch = first
    try:
        while True:
            if batch:
                await writer.take(batch)
                record.size_bytes = writer.received_bytes - start_bytes
                if batch[-1].last:
                    return batch[-1]
            part = await anext(parts, None)
            if part is None:
                raise IncompleteTransferError("the upload has no last part")
            batch = [part, *parts.take_ready()]
    except asyncio.CancelledError as exc:
        if _is_cut(exc):
            with contextlib.suppress(Rpc25519Error):
                await writer.take(parts.take_ready())  # it need not come again
        raise


def default_remote_name(local_path: str) -> str:
    """Return the name under which a local file is uploaded: its own."""
    return os.path.basename(local_path)
