"""Push and pull trees, over as many connections as it takes."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rpc25519_tools.errors import (
    IncompleteTransferError,
    NoSuchServiceError,
    Rpc25519Error,
    UnsafePathError,
)
from rpc25519_tools.files.carry_on import OnRetry, Progressed, with_retries
from rpc25519_tools.files.parts import naming_service, within
from rpc25519_tools.files.workers import in_worker, open_in_worker
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.client_stream import ClientStream
from rpc25519_tools.sync.carrying import Attempts, Mark
from rpc25519_tools.sync.channel import STALL_S, Channel, Pace, run_together
from rpc25519_tools.sync.observer import SyncObserver
from rpc25519_tools.sync.options import MAX_PATH_LEN, SyncOptions
from rpc25519_tools.sync.places import OpenPlace, open_local_place
from rpc25519_tools.sync.receiver import Receiver
from rpc25519_tools.sync.records import (
    ARG_DIRECTION,
    ARG_KIND,
    ARG_SINGLE,
    KIND_DIRECTORY,
    OFFER_SERVICE,
    SYNC_SERVICE,
    VERSION,
    Request,
    Totals,
    encode_request,
)
from rpc25519_tools.sync.sender import Sender
from rpc25519_tools.sync.source import Source, local_source, selection
from rpc25519_tools.sync.tree import Parts, split_path
from rpc25519_tools.sync.walk import Walk

#: Bytes of what names all attempts of a push.
_RUN_LEN: Final = 16

_SILENT: Final = "the server did not answer"

#: Makes a connection.
Connect = Callable[[], Awaitable[Client]]


@dataclass(slots=True, kw_only=True)
class SyncSettings:
    """What a sync needs beside its options.

    Attributes:
        retry_for_s: how long to go on without progress after a cut, in seconds.
        compress: whether contents may be packed.
        follow: whether a push follows symbolic links that are named themselves.
        on_retry: learns of each cut.
    """

    retry_for_s: float = 120.0
    compress: bool = True
    follow: bool = False
    on_retry: OnRetry | None = None


async def push(
    connect: Connect,
    paths: Sequence[bytes],
    dest: bytes,
    options: SyncOptions,
    observer: SyncObserver,
    settings: SyncSettings | None = None,
    *,
    only: Sequence[bytes] | None = None,
) -> Totals:
    """Send files and directories to the server's served directory.

    Args:
        connect: makes a connection; called again after a cut.
        paths: what to send; a slash at the end means what is in a directory.
        dest: where to, relative to the served directory.
        options: what to do.
        observer: learns what happens.
        settings: how to do it.
        only: send nothing but these paths, relative to the one of ``paths``.

    Returns:
        What the receiver reports, of all attempts together. After a cut a server may
        have removed more than that, and more than ``max_delete``: what it could not
        tell of any more.

    Raises:
        NoSuchServiceError: the server does not offer it.
        RemoteCallError: the server refused the sync as a whole.
        LocalFileError: a source is not there.
        ConnectionLostError, DeadlineError, SecurityError: the connection failed, and
            went on to for as long as the settings say.
    """
    settings = settings or SyncSettings()
    options.check()
    attempts = Attempts(options)
    run = os.urandom(_RUN_LEN)

    async def attempt(client: Client, done: Progressed) -> Totals:
        source = await in_worker(local_source, paths, only, follow=settings.follow)
        options = attempts.options
        request = Request(VERSION, options, (), dest, source.single, run=run)
        opening = client.rsync(
            CallKind.RSYNC_SEND, SYNC_SERVICE, encode_request(request), compress=False
        )
        async with opening as stream:
            return await _send(
                client, stream, source, options, observer, attempts, settings, done
            )

    return await with_retries(connect, attempt, settings.retry_for_s, settings.on_retry)


async def _send(
    client: Client,
    stream: ClientStream,
    source: Source,
    options: SyncOptions,
    observer: SyncObserver,
    attempts: Attempts,
    settings: SyncSettings,
    done: Progressed,
) -> Totals:
    channel = _channel(stream, settings, options)
    loop = asyncio.get_running_loop()

    def skip(path: Parts) -> None:  # the walk is in a thread of its own
        loop.call_soon_threadsafe(observer.skipped, path)

    walk = Walk(source, options, start=attempts.start, skipped=skip)
    sender = Sender(channel, walk, observer)
    result: list[Totals] = []

    async def run() -> None:
        result.append(await sender.run())
        await _reply_of(stream)

    try:
        await _with_offer(client, stream, run, ("pushes", "-readfile DIR"))
    except Rpc25519Error:
        if attempts.note(sender):
            done()
        raise
    return attempts.whole(result[0])


def _channel(
    stream: ClientStream, settings: SyncSettings, options: SyncOptions
) -> Channel:
    return Channel(
        stream,
        aiter(stream),
        pace=Pace(options.bandwidth),
        may_compress=settings.compress,
    )


async def _reply_of(stream: ClientStream) -> None:
    """Wait for the reply, which has nothing to say when all went well."""
    await within(STALL_S, _SILENT, stream.reply())


async def _with_offer(
    client: Client,
    stream: ClientStream,
    run: Callable[[], Awaitable[None]],
    names: tuple[str, str],
) -> None:
    """Do the work; fail at once if the server knows nothing of syncs.

    Args:
        client: the connection.
        stream: the call.
        run: does the work.
        names: of what the server has to offer, and of the option of ``srv`` for it.
    """

    async def ask() -> None:
        with _naming_syncs():
            await within(STALL_S, _SILENT, client.call(OFFER_SERVICE))

    async def work() -> None:
        with naming_service(*names):
            try:
                await run()
            except IncompleteTransferError:
                # The call has ended: its reply says why.
                await _reply_of(stream)
                raise

    await run_together(ask(), work())


def _asked_for(
    paths: Sequence[bytes], only: Sequence[bytes] | None
) -> frozenset[bytes] | None:
    """Return the names that may come into the destination; None: any, and its own.

    A server must not be able to send ``.bashrc`` to who has asked for ``report.pdf``.
    """
    if only is not None:
        return frozenset(selection(only))
    names = set()
    for path in paths or (b"",):
        try:
            parts = split_path(path)
        except UnsafePathError:
            continue  # the server will say so; nothing of that name may come
        if path.endswith((b"/", b"/.")) or not parts:
            return None
        names.add(parts[-1])
    return frozenset(names)


@contextlib.contextmanager
def _naming_syncs() -> Iterator[None]:
    """Say what is not on offer in the words of the command line."""
    try:
        yield
    except NoSuchServiceError as exc:
        raise NoSuchServiceError(
            "the server does not offer directories and delta sync (it is one of "
            "Go's, or srv was started without -serve DIR and -readfile DIR)"
        ) from exc


async def is_remote_directory(client: Client, path: bytes, direction: str) -> bool:
    """Ask a server whether a path is a directory there.

    Args:
        client: a connection.
        path: relative to the served directory.
        direction: ``pull`` for the directory that is given out, ``push`` for the one
            that is written to.

    Raises:
        NoSuchServiceError: the server does not offer syncs in this direction.
        RemoteCallError: we have no right to know.
    """
    with _naming_syncs():
        reply = await client.call(OFFER_SERVICE, path, args={ARG_DIRECTION: direction})
    return reply.header.args.get(ARG_KIND) == KIND_DIRECTORY


async def pull(
    connect: Connect,
    paths: Sequence[bytes],
    dest: bytes,
    options: SyncOptions,
    observer: SyncObserver,
    settings: SyncSettings | None = None,
    *,
    only: Sequence[bytes] | None = None,
) -> Totals:
    """Fetch files and directories from the server's served directory.

    Args:
        connect: makes a connection; called again after a cut.
        paths: what to fetch, relative to the served directory; a slash at the end
            means what is in a directory.
        dest: where to, on this machine.
        options: what to do.
        observer: learns what happens.
        settings: how to do it.
        only: fetch nothing but these paths, relative to the one of ``paths``.

    Returns:
        What was done, in all attempts together.

    Raises:
        NoSuchServiceError: the server does not offer it.
        RemoteCallError: the server refused the sync as a whole.
        LocalFileError: the destination cannot be written to.
        ConnectionLostError, DeadlineError, SecurityError: the connection failed, and
            went on to for as long as the settings say.
    """
    settings = settings or SyncSettings()
    options.check()
    attempts = Attempts(options)
    asked = _asked_for(paths, only)

    async def attempt(client: Client, done: Progressed) -> Totals:
        options = attempts.options
        start = attempts.start
        if start is not None and len(b"/".join(start.path)) > MAX_PATH_LEN:
            start = None
        request = Request(
            VERSION,
            options,
            tuple(paths),
            start_at=None if start is None else b"/".join(start.path),
            only=None if only is None else tuple(only),
        )
        opening = client.rsync(
            CallKind.RSYNC_READ, SYNC_SERVICE, encode_request(request), compress=False
        )
        async with opening as stream:
            receiving = _Receiving(dest, options, observer, start, asked)
            return await _receive(client, stream, receiving, attempts, settings, done)

    return await with_retries(connect, attempt, settings.retry_for_s, settings.on_retry)


@dataclass(frozen=True, slots=True)
class _Receiving:
    """What one attempt of a pull shall do."""

    dest: bytes
    options: SyncOptions
    observer: SyncObserver
    start: Mark | None
    asked: frozenset[bytes] | None


async def _receive(
    client: Client,
    stream: ClientStream,
    receiving: _Receiving,
    attempts: Attempts,
    settings: SyncSettings,
    done: Progressed,
) -> Totals:
    options = receiving.options
    channel = _channel(stream, settings, options)
    receivers: list[Receiver] = []
    result: list[Totals] = []

    async def run() -> None:
        first = await within(STALL_S, _SILENT, channel.receive_one())
        if first is None:
            raise IncompleteTransferError("the server sent nothing")
        single = first.args.get(ARG_SINGLE) == "1"
        place = await open_in_worker(
            lambda: open_local_place(receiving.dest, options, single=single),
            OpenPlace.close,
        )
        receiver = Receiver(
            channel,
            place.destination,
            options,
            receiving.observer,
            report=False,
            rename=place.rename,
            privileged=True,
            is_new=place.is_new,
            asked=None if place.rename is not None else receiving.asked,
            start=receiving.start,
        )
        receivers.append(receiver)
        try:
            result.append(await receiver.run())
        finally:
            await in_worker(place.close)
        await _reply_of(stream)

    try:
        await _with_offer(client, stream, run, ("pulls", "-serve DIR"))
    except Rpc25519Error:
        if receivers and attempts.note(receivers[0]):
            done()
        raise
    return attempts.whole(result[0])
