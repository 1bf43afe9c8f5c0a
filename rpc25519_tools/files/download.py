"""Downloading a file: the client's side and the service.

Beyond the Go programs, our service reports the sum of the whole file in its reply, and
our client compares it.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from rpc25519_tools.errors import IncompleteTransferError, UnsafePathError
from rpc25519_tools.files.descriptors import PER_DOWNLOAD, OpenFiles, open_files
from rpc25519_tools.files.jail import Root, access_target, display_name
from rpc25519_tools.files.parts import (
    ARG_DOWNLOAD_LEN,
    ARG_DOWNLOAD_NAME,
    ARG_DOWNLOAD_PATH,
    ARG_DOWNLOAD_REQUEST,
    ARG_PART_SUM,
    ARG_SERVER_TOTAL_SUM,
    DOWNLOAD_SERVICE,
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
from rpc25519_tools.files.sink import Sink
from rpc25519_tools.files.source import SourceFile, open_remote_source
from rpc25519_tools.files.workers import in_worker, open_in_worker
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.client_stream import ClientStream
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.streams import OutgoingStream, Part

_SILENT = "the server sent nothing"


async def download_file(
    client: Client,
    remote_path: str,
    open_sink: Callable[[], Sink],
    *,
    progress: Progress | None = None,
) -> TransferSummary:
    """Fetch a file from the server's served directory.

    Args:
        client: an open connection.
        remote_path: the file, relative to the served directory.
        open_sink: called, in a worker thread, when the server has begun to send;
            returns where the bytes go.
        progress: learns how many bytes have come.

    Raises:
        NoSuchServiceError: the server offers no downloads.
        RemoteCallError: it has no such file, or does not give it out.
        ChecksumError, IncompleteTransferError: what came is not the file; nothing
            is stored.
        LocalFileError: the file cannot be stored.
        ConnectionLostError, DeadlineError, SecurityError: the connection failed.
    """
    clock = Stopwatch()
    opening = client.stream(
        CallKind.DOWNLOAD, DOWNLOAD_SERVICE, args={ARG_DOWNLOAD_REQUEST: remote_path}
    )
    async with await opening as stream:
        with naming_service("downloads", "-serve"):
            parts = await next_parts(client, stream, client.call_timeout_s)
        if not parts:
            raise IncompleteTransferError("the server sent no part of the file")
        size_bytes = parse_size(parts[0].args, ARG_DOWNLOAD_LEN)
        async with PartWriter(open_sink) as writer:
            await writer.check_space(size_bytes)
            while parts:
                await _take(writer, parts, size_bytes, progress)
                parts = await next_parts(client, stream)
            reply = await within(client.stall_timeout_s, _SILENT, stream.reply())
            if writer.received_bytes != size_bytes:
                raise IncompleteTransferError(
                    f"the server sent {writer.received_bytes} bytes of a file of "
                    f"{size_bytes}"
                )
            verified = check_total(
                reply.header.args, ARG_SERVER_TOTAL_SUM, writer.total_sum
            )
            await writer.commit()
    return TransferSummary(
        name=remote_path,
        size_bytes=size_bytes,
        seconds=clock.seconds,
        digest=writer.total_sum,
        verified_by_peer=verified,
    )


async def next_parts(
    client: Client, stream: ClientStream, timeout_s: float | None = None
) -> list[Part]:
    """Return the parts that have come down; wait for one; none after the last one.

    Args:
        client: whose stall limit holds if ``timeout_s`` is None.
        stream: the open call.
        timeout_s: how long to wait, in seconds.

    Raises:
        DeadlineError: nothing came for too long.
        Rpc25519Error: what ended the stream early.
    """
    incoming = aiter(stream)
    limit_s = client.stall_timeout_s if timeout_s is None else timeout_s
    part = await within(limit_s, _SILENT, anext(incoming, None))
    return [] if part is None else [part, *incoming.take_ready()]


async def _take(
    writer: PartWriter,
    parts: Sequence[Part],
    size_bytes: int,
    progress: Progress | None,
) -> None:
    if writer.received_bytes + sum(len(part.payload) for part in parts) > size_bytes:
        raise IncompleteTransferError(
            f"the server sends more than the {size_bytes} bytes that it announced"
        )
    await writer.take(parts)
    if progress is not None:
        progress(writer.received_bytes, size_bytes)


def default_local_name(remote_path: str) -> str:
    """Return the name under which a download is stored: its own.

    Raises:
        UnsafePathError: the path has no last component to name a file after.
    """
    name = os.path.basename(remote_path)
    if name in ("", ".", "..") or "\0" in name:
        raise UnsafePathError(
            f"{display_name(remote_path)} does not end with a file name (choose one "
            "with -o)"
        )
    return name


class DownloadService:
    """Sends files from beneath one directory.

    Args:
        root: the directory.
        log: learns how each download ended.
        files: counts what is open; None: the count of the whole process.
    """

    #: Rights are looked up here, by the file's name, and not by the service's.
    checks_access: Final = True

    def __init__(
        self, root: Root, *, log: TransferLog, files: OpenFiles | None = None
    ) -> None:
        self._root = root
        self._log = log
        self._files = files

    async def __call__(self, context: CallContext, out: OutgoingStream) -> Reply:
        """Send one file; the reply reports the sum of what was sent."""
        with (
            TransferRecord("download", context, self._log) as record,
            contextlib.ExitStack() as reserved,
        ):
            path = context.header.args.get(ARG_DOWNLOAD_REQUEST, "")
            record.name = path
            context.require("read", access_target(path))
            files = self._files or open_files()
            reserved.enter_context(files.reserve(context.remote_address, PER_DOWNLOAD))
            source = await open_in_worker(
                lambda: open_remote_source(self._root, path), SourceFile.close
            )
            try:
                args = {
                    ARG_DOWNLOAD_LEN: str(source.size_bytes or 0),
                    ARG_DOWNLOAD_PATH: path,
                    ARG_DOWNLOAD_NAME: os.path.basename(path),
                }
                async with PartReader(source, out.turn) as reader:
                    # Part 0 cannot be a stream's last: even an empty file has two.
                    await _send_next(reader, out, args, first=True)
                    over = False
                    while not over:
                        record.size_bytes = reader.taken_bytes
                        over = await _send_next(reader, out, args)
            finally:
                await in_worker(source.close)
            record.digest = reader.total_sum
            return Reply(args={ARG_SERVER_TOTAL_SUM: reader.total_sum})


async def _send_next(
    reader: PartReader,
    out: OutgoingStream,
    args: Mapping[str, str],
    *,
    first: bool = False,
) -> bool:
    """Send the next part; keep no hold of it. Return whether it was the last one."""
    payload, part_sum = await reader.next()
    last = not payload and not first
    await out.send(payload, args={**args, ARG_PART_SUM: part_sum}, last=last)
    return last
