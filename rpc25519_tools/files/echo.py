"""Echo services, for trying a connection out: one call, or a file there and back."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final

from rpc25519_tools.errors import ChecksumError
from rpc25519_tools.files.download import next_parts
from rpc25519_tools.files.parts import (
    ARG_UPLOAD_NAME,
    ECHO_FILE_SERVICE,
    PartReader,
    PartWriter,
    Progress,
    Stopwatch,
    TransferSummary,
    naming_service,
    within,
)
from rpc25519_tools.files.record import TransferLog, TransferRecord
from rpc25519_tools.files.sink import Sink
from rpc25519_tools.files.source import SourceFile
from rpc25519_tools.files.upload import open_with_first_part, send_other_parts
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.client_stream import ClientStream
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream

#: The call service of the Go server; it appends a line with the time to the request.
ECHO_CALL_SERVICE: Final = "customEcho"
#: What the Go client sends there.
ECHO_REQUEST: Final = (
    "client says hello and requests this be echoed back with a timestamp!"
)


async def echo_file(
    client: Client,
    source: SourceFile,
    name: str,
    open_sink: Callable[[], Sink],
    *,
    progress: Progress | None = None,
) -> TransferSummary:
    """Send a file, take back what the server returns, and compare the two.

    Args:
        client: an open connection.
        source: what to send.
        name: what the server is told about the file.
        open_sink: called, in a worker thread, when the first part has come back.
        progress: learns how many bytes have come back.

    Raises:
        NoSuchServiceError: the server does not echo files.
        ChecksumError: what came back is not what was sent; nothing is stored.
        LocalFileError, FileChangedError: a local file failed.
        ConnectionLostError, DeadlineError, SecurityError: the connection failed.
    """
    clock = Stopwatch()
    async with PartReader(source) as reader:
        opening = open_with_first_part(
            client,
            CallKind.BISTREAM,
            ECHO_FILE_SERVICE,
            reader,
            {ARG_UPLOAD_NAME: name},
        )
        async with await opening as stream:
            # The server reads and writes in one task: it must be read while we send.
            sending = asyncio.create_task(
                send_other_parts(client, stream, reader, None)
            )
            receiving = asyncio.create_task(
                _receive_echo(client, stream, reader, open_sink, progress)
            )
            with naming_service("file echo", "-echo"):
                await _both(sending, receiving)
    return TransferSummary(
        name=name,
        size_bytes=reader.taken_bytes,
        seconds=clock.seconds,
        digest=reader.total_sum,
        verified_by_peer=True,
    )


async def _both(*tasks: asyncio.Task[None]) -> None:
    """Wait for all tasks; when one fails, stop the others and raise its error."""
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        failed = [task for task in tasks if task.done()]
        for task in failed:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # one error is raised; the others follow from it


async def _receive_echo(
    client: Client,
    stream: ClientStream,
    reader: PartReader,
    open_sink: Callable[[], Sink],
    progress: Progress | None,
) -> None:
    async with PartWriter(open_sink) as writer:
        parts = await next_parts(client, stream, client.call_timeout_s)
        while parts:
            await writer.take(parts)
            if progress is not None:
                progress(writer.received_bytes, reader.size_bytes)
            parts = await next_parts(client, stream)
        step = stream.reply()
        await within(client.stall_timeout_s, "the server did not answer", step)
        if writer.total_sum != reader.total_sum:
            raise ChecksumError("the server returned something else than was sent")
        await writer.commit()


async def echo_call(context: CallContext) -> Reply:
    """Answer a call with its request and a line that tells the server's time."""
    time = datetime.now().astimezone()
    line = f"\n with time customEcho sees this: '{time}'"
    return Reply(payload=bytes(context.payload) + line.encode())


class EchoFileService:
    """Sends every part of a stream back, unchanged.

    Args:
        log: learns how each echo ended.
    """

    def __init__(self, *, log: TransferLog) -> None:
        self._log = log

    async def __call__(
        self, context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> Reply:
        """Echo one file."""
        with TransferRecord("echo", context, self._log) as record:
            record.name = context.header.args.get(ARG_UPLOAD_NAME, "")
            async for part in parts:
                record.size_bytes += len(part.payload)
                await out.send(part.payload, args=part.args, last=part.last)
        return Reply()
