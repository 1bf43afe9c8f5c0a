"""Uploading a file: the client's side and the service."""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from functools import partial
from typing import Final

from rpc25519_tools.errors import IncompleteTransferError
from rpc25519_tools.files.atomic import open_remote_target
from rpc25519_tools.files.descriptors import PER_UPLOAD, OpenFiles, open_files
from rpc25519_tools.files.jail import Root, access_target
from rpc25519_tools.files.parts import (
    ARG_CLIENT_TOTAL_SUM,
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
    within,
)
from rpc25519_tools.files.record import TransferLog, TransferRecord
from rpc25519_tools.files.source import SourceFile
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.client_stream import ClientStream
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.streams import IncomingStream, Part
from rpc25519_tools.wire.greenpack import Buffer


async def upload_file(
    client: Client,
    source: SourceFile,
    remote_name: str,
    *,
    clobber: bool = True,
    progress: Progress | None = None,
) -> TransferSummary:
    """Send a file to the server's served directory.

    Args:
        client: an open connection.
        source: what to send, from its present position to its end.
        remote_name: the name that the file gets there.
        clobber: False asks the server not to replace an existing file. A Go server
            does not know this wish.
        progress: learns how many bytes have been sent.

    Raises:
        NoSuchServiceError: the server takes no uploads.
        RemoteCallError: the server refused or could not store the file.
        ChecksumError: the server stored something else.
        FileChangedError, LocalFileError: the source failed; nothing is stored.
        ConnectionLostError, DeadlineError, SecurityError: the connection failed.
    """
    clock = Stopwatch()
    first_args = {ARG_UPLOAD_NAME: remote_name}
    if not clobber:
        first_args[ARG_NO_CLOBBER] = "1"
    with naming_service("uploads", "-readfile"):
        async with PartReader(source) as reader:
            opening = open_with_first_part(
                client, CallKind.UPLOAD, UPLOAD_SERVICE, reader, first_args
            )
            async with await opening as stream:
                await send_other_parts(client, stream, reader, progress)
                step = stream.reply()
                reply = await within(
                    client.reply_timeout_s, "the server did not answer", step
                )
    args = reply.header.args
    return TransferSummary(
        name=remote_name,
        size_bytes=reader.taken_bytes,
        seconds=clock.seconds,
        digest=reader.total_sum,
        verified_by_peer=check_total(args, ARG_SERVER_TOTAL_SUM, reader.total_sum),
        clobber_refused=None if clobber else ARG_NO_CLOBBER in args,
    )


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
        self._root = root
        self._files = files
        self._clobber = clobber
        self._log = log

    async def __call__(self, context: CallContext, parts: IncomingStream) -> Reply:
        """Receive one file; the reply reports the sum of what was stored."""
        with (
            TransferRecord("upload", context, self._log) as record,
            contextlib.ExitStack() as reserved,
        ):
            name = context.header.args.get(ARG_UPLOAD_NAME, "")
            record.name = name
            context.require("write", access_target(name))
            files = self._files or open_files()
            reserved.enter_context(files.reserve(context.remote_address, PER_UPLOAD))
            clobber = self._clobber and ARG_NO_CLOBBER not in context.header.args
            open_target = partial(open_remote_target, self._root, name, clobber=clobber)
            async with PartWriter(open_target) as writer:
                last: Part | None = None
                async for part in parts:
                    batch = [part, *parts.take_ready()]
                    await writer.take(batch)
                    record.size_bytes = writer.received_bytes
                    last = batch[-1]
                if last is None or not last.last:
                    raise IncompleteTransferError("the upload has no last part")
                check_total(last.args, ARG_CLIENT_TOTAL_SUM, writer.total_sum)
                await writer.commit()
            record.digest = writer.total_sum
            text = f"stored {writer.received_bytes} bytes; "
            text += f"bytesWrit={writer.received_bytes};"
            args = {ARG_SERVER_TOTAL_SUM: writer.total_sum}
            if ARG_NO_CLOBBER in context.header.args:
                args[ARG_NO_CLOBBER] = "1"
            return Reply(payload=text.encode(), args=args)


def default_remote_name(local_path: str) -> str:
    """Return the name under which a local file is uploaded: its own."""
    return os.path.basename(local_path)
