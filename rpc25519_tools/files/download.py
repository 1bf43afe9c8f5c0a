"""Downloading a file: the client's side and the service.

Beyond the Go programs, our service reports the sum of the whole file in its reply, and
our client compares it.

A download into a file carries on where an earlier one was cut: the client says how many
bytes it has and their sum, the service compares the beginning of its own file, and part
0 tells from where it sends on. Go servers, which do not look at that, begin anew.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from rpc25519_tools.errors import IncompleteTransferError, UnsafePathError
from rpc25519_tools.files.carry_on import is_network_failure
from rpc25519_tools.files.descriptors import PER_DOWNLOAD, OpenFiles, open_files
from rpc25519_tools.files.jail import Root, access_target, display_name
from rpc25519_tools.files.landing import (
    Landing,
    Prefix,
    hashing_limit_s,
    read_prefix,
)
from rpc25519_tools.files.parts import (
    ARG_DOWNLOAD_LEN,
    ARG_DOWNLOAD_NAME,
    ARG_DOWNLOAD_PATH,
    ARG_DOWNLOAD_REQUEST,
    ARG_KEPT_LEN,
    ARG_KEPT_SUM,
    ARG_PART_SUM,
    ARG_SERVER_TOTAL_SUM,
    ARG_START,
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
    open_sink: Callable[[], Sink] | Landing,
    *,
    progress: Progress | None = None,
) -> TransferSummary:
    """Fetch a file from the server's served directory.

    When the network fails, a landing keeps what has come, and another call with a new
    one carries on.

    Args:
        client: an open connection.
        remote_path: the file, relative to the served directory.
        open_sink: called, in a worker thread, when the server has begun to send;
            returns where the bytes go. Or a landing, which this function closes.
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
    async with contextlib.AsyncExitStack() as stack:
        args, kept, limit_s = {ARG_DOWNLOAD_REQUEST: remote_path}, None, 0.0
        if isinstance(open_sink, Landing):
            landing = await stack.enter_async_context(open_sink)
            kept = await landing.prefix()
        if kept is not None:
            args |= {ARG_KEPT_LEN: str(kept.size_bytes), ARG_KEPT_SUM: kept.sum}
            limit_s = hashing_limit_s(kept.size_bytes)
        opening = client.stream(CallKind.DOWNLOAD, DOWNLOAD_SERVICE, args=args)
        stream = await stack.enter_async_context(await opening)
        with naming_service("downloads", "-serve"):
            parts = await next_parts(client, stream, client.call_timeout_s + limit_s)
        if not parts:
            raise IncompleteTransferError("the server sent no part of the file")
        size_bytes = parse_size(parts[0].args, ARG_DOWNLOAD_LEN)
        begun = _begun(parts[0], kept, size_bytes)
        start_bytes = 0 if begun is None else begun.size_bytes
        open_here = (
            partial(open_sink.open, size_bytes, start_bytes)
            if isinstance(open_sink, Landing)
            else open_sink
        )
        async with PartWriter(
            open_here, begun=begun, keeps=is_network_failure
        ) as writer:
            await writer.check_space(size_bytes - start_bytes)
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
            if begun is not None and not verified:
                raise IncompleteTransferError(
                    "the server went on with a file and does not report its sum"
                )
            await writer.commit()
    return TransferSummary(
        name=remote_path,
        size_bytes=size_bytes,
        seconds=clock.seconds,
        digest=writer.total_sum,
        verified_by_peer=verified,
        carried_bytes=start_bytes,
    )


def _begun(part: Part, kept: Prefix | None, size_bytes: int) -> Prefix | None:
    """Return what need not be sent again, as part 0 says.

    Raises:
        IncompleteTransferError: the server goes on anywhere but behind what we have.
    """
    if ARG_START not in part.args:
        return None
    start_bytes = parse_size(part.args, ARG_START)
    if not start_bytes:
        return None
    if kept is None or start_bytes != kept.size_bytes or start_bytes > size_bytes:
        raise IncompleteTransferError(
            f"the server goes on at byte {start_bytes} of a file of {size_bytes}, "
            f"of which {0 if kept is None else kept.size_bytes} bytes are here"
        )
    return kept


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
                begun = await _same_prefix(source, context.header.args)
                start_bytes = 0 if begun is None else begun.size_bytes
                if begun is not None:
                    args[ARG_START] = str(start_bytes)
                async with PartReader(source, out.turn, begun=begun) as reader:
                    # Part 0 cannot be a stream's last: even an empty file has two.
                    await _send_next(reader, out, args, first=True)
                    over = False
                    while not over:
                        record.size_bytes = reader.taken_bytes - start_bytes
                        over = await _send_next(reader, out, args)
            finally:
                await in_worker(source.close)
            record.digest = reader.total_sum
            return Reply(args={ARG_SERVER_TOTAL_SUM: reader.total_sum})


async def _same_prefix(source: SourceFile, args: Mapping[str, str]) -> Prefix | None:
    """Read what the client has already, if it is the beginning of this file.

    Raises:
        IncompleteTransferError: the client announces no length.
        LocalFileError: reading failed.
    """
    if ARG_KEPT_LEN not in args or ARG_KEPT_SUM not in args:
        return None
    kept_bytes = parse_size(args, ARG_KEPT_LEN)
    if not 0 < kept_bytes <= (source.size_bytes or 0):
        return None
    try:
        begun = await read_prefix(source.read_into, kept_bytes)
    except IncompleteTransferError:  # it shrank just now
        begun = None
    if begun is not None and begun.sum == args[ARG_KEPT_SUM]:
        return begun
    await in_worker(source.rewind)
    return None


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
