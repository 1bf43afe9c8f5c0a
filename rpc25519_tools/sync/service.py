"""The server's side of syncs: one service that sends trees, and one that takes them.

They are registered under the same name, for the two kinds of rsync calls. A third, an
ordinary call, only tells that they are there: a server that knows nothing of them
refuses it at once, where a Go server would leave an rsync call unanswered.
"""

import contextlib
from typing import Final

from rpc25519_tools.errors import (
    IncompleteTransferError,
    UnsafePathError,
)
from rpc25519_tools.files.descriptors import OpenFiles, open_files
from rpc25519_tools.files.jail import Root
from rpc25519_tools.files.record import TransferLog, TransferRecord
from rpc25519_tools.files.workers import in_worker, open_in_worker
from rpc25519_tools.identity.access import Right
from rpc25519_tools.rpc.calls import CallKind, RsyncStep
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream
from rpc25519_tools.sync.attempts import Attempt, Attempts
from rpc25519_tools.sync.carrying import Mark
from rpc25519_tools.sync.channel import Channel
from rpc25519_tools.sync.observer import Silence
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.places import OpenPlace, open_place
from rpc25519_tools.sync.receiver import Receiver
from rpc25519_tools.sync.records import (
    ARG_DIRECTION,
    ARG_KIND,
    ARG_SINGLE,
    KIND_DIRECTORY,
    OFFER_SERVICE,
    SYNC_SERVICE,
    Overview,
    Request,
    decode_request,
    encode_overview,
)
from rpc25519_tools.sync.sender import Sender
from rpc25519_tools.sync.source import Source, served_source
from rpc25519_tools.sync.tree import KEPT_DIRS, Parts, Permit, Tree, split_path
from rpc25519_tools.sync.walk import Walk
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS

#: Descriptors of one sync: beside the directories files that others are made of, begun,
#: carried on with, and finished without a name.
_PER_SYNC: Final = KEPT_DIRS + 26
#: What a path takes beside its bytes, in a request and in what is chosen.
_PATH_COST: Final = 160


def add_sync_services(
    registry: Registry,
    *,
    read_root: Root | None,
    write_root: Root | None,
    log: TransferLog,
    privileged: bool = False,
    clobber: bool = True,
    files: OpenFiles | None = None,
) -> None:
    """Offer syncs, as far as there are directories for them.

    Args:
        registry: the server's services.
        read_root: what clients may pull from.
        write_root: what they may push to.
        log: learns how each sync ended.
        privileged: whether clients may set owners, set-uid bits and device files.
        clobber: whether what is there may be replaced or deleted.
        files: counts what is open; None: the count of the whole process.
    """
    if read_root is not None:
        sending = SendingService(read_root, log=log, files=files)
        registry.add_rsync(CallKind.RSYNC_READ, SYNC_SERVICE, sending)
    if write_root is not None:
        receiving = ReceivingService(
            write_root,
            log=log,
            privileged=privileged,
            clobber=clobber,
            files=files,
        )
        registry.add_rsync(CallKind.RSYNC_SEND, SYNC_SERVICE, receiving)
    if read_root is not None or write_root is not None:
        registry.add_call(OFFER_SERVICE, Offer(read_root, write_root))


class Offer:
    """Tells that there are syncs, which whoever may connect may know.

    To one who may use a path it also tells whether that is a directory. Copies need to
    know before they begin: what they mean must not change when they are tried again.

    Args:
        read_root: what clients may pull from.
        write_root: what they may push to.
    """

    #: Rights are looked up here.
    checks_access: Final = True

    def __init__(self, read_root: Root | None, write_root: Root | None) -> None:
        self._roots = {"pull": read_root, "push": write_root}

    async def __call__(self, context: CallContext) -> Reply:
        """Answer."""
        direction = context.header.args.get(ARG_DIRECTION, "")
        root = self._roots.get(direction)
        if root is None:
            return Reply()  # the sync itself will be refused
        path = split_path(bytes(context.payload))
        target = b"/".join(path).decode("utf-8", "surrogateescape")
        right: Right = "write" if direction == "push" else "read"
        if right == "write" or not context.may("list", f"/{target}"):
            context.require(right, f"/{target}")
        tree = Tree.served(root, _permit(context))
        is_there = await in_worker(tree.is_directory, path)
        return Reply(args={ARG_KIND: KIND_DIRECTORY} if is_there else NO_ARGS)


class _Counting(Silence):
    """Counts for the server's log."""

    def __init__(self, record: TransferRecord) -> None:
        self._record = record
        self._files = self._removed = self._failures = 0
        self._count()

    def _count(self) -> None:
        self._record.counts = f"{self._files} file{'s' if self._files != 1 else ''}"
        if self._removed:
            self._record.counts += f" {self._removed} deleted"
        if self._failures:
            self._record.counts += f" {self._failures} failed"

    def placed(self, path: Parts) -> None:
        """Count files."""
        self._files += 1
        self._count()

    def removed(self, paths: list[bytes]) -> None:
        """Count what was removed."""
        self._removed += len(paths)
        self._count()

    def moved(self, count: int) -> None:
        """Count bytes."""
        self._record.size_bytes += count

    def failed(self, path: Parts, note: str) -> None:
        """Count failures."""
        self._failures += 1
        self._count()


def _permit(context: CallContext) -> Permit | None:
    """Return what asks for the peer's rights; None where it has all."""
    if context.access is None:
        return None

    def may(right: Right, parts: Parts) -> bool:
        path = b"/".join(parts).decode("utf-8", "surrogateescape")
        return context.may(right, f"/{path}")

    return may


class SendingService:
    """Sends trees from beneath one directory.

    Args:
        root: the directory.
        log: learns how each sync ended.
        files: counts what is open; None: the count of the whole process.
    """

    #: Rights are looked up here, for each path.
    checks_access: Final = True

    def __init__(
        self, root: Root, *, log: TransferLog, files: OpenFiles | None = None
    ) -> None:
        self._root = root
        self._log = log
        self._files = files

    async def __call__(
        self, context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> Reply:
        """Take part in one pull."""
        with (
            TransferRecord("pull", context, self._log) as record,
            contextlib.ExitStack() as reserved,
        ):
            channel = Channel(out, parts)
            request, held_len = await _opening(channel, out, reserved)
            request.options.check()
            channel.keep_to(request.options.bandwidth)
            files = self._files or open_files()
            reserved.enter_context(files.reserve(context.remote_address, _PER_SYNC))
            record.name = ", ".join(map(_text, request.paths)) or "."
            permit = _permit(context)
            source = await in_worker(self._open, request, permit, context)
            start = None
            if request.start_at is not None:
                start = Mark(split_path(request.start_at))
            observer = _Counting(record)
            # Rules can take a while to make ready.
            walk = await in_worker(Walk, source, request.options, start=start)
            await channel.send(
                RsyncStep.OVERVIEW,
                encode_overview(Overview()),
                args={ARG_SINGLE: "1" if source.single else ""},
            )

            def hold(tables_len: int) -> None:
                out.turn.hold(held_len + tables_len)

            await Sender(channel, walk, observer, hold=hold).run()
            return Reply()

    def _open(
        self, request: Request, permit: Permit | None, context: CallContext
    ) -> Source:
        tree = Tree.served(self._root, permit)
        for path in request.paths:
            target = b"/".join(split_path(path)).decode("utf-8", "surrogateescape")
            if not context.may("list", f"/{target}"):
                context.require("read", f"/{target}")
        return served_source(tree, request.paths or (b"",), request.only)


class ReceivingService:
    """Takes trees beneath one directory.

    Args:
        root: the directory.
        log: learns how each sync ended.
        privileged: whether clients may set owners, set-uid bits and device files.
        clobber: whether what is there may be replaced or deleted.
        files: counts what is open; None: the count of the whole process.
    """

    #: Rights are looked up here, for each path.
    checks_access: Final = True

    def __init__(
        self,
        root: Root,
        *,
        log: TransferLog,
        privileged: bool,
        clobber: bool = True,
        files: OpenFiles | None = None,
    ) -> None:
        self._root = root
        self._log = log
        self._privileged = privileged
        self._clobber = clobber
        self._files = files
        self._attempts = Attempts()

    async def __call__(
        self, context: CallContext, parts: IncomingStream, out: OutgoingStream
    ) -> Reply:
        """Take part in one push."""
        with (
            TransferRecord("push", context, self._log) as record,
            contextlib.ExitStack() as reserved,
        ):
            channel = Channel(out, parts)
            request, _ = await _opening(channel, out, reserved)
            request.options.check()
            channel.keep_to(request.options.bandwidth)
            files = self._files or open_files()
            reserved.enter_context(files.reserve(context.remote_address, _PER_SYNC))
            record.name = _text(request.dest) or "."
            self._check_clobber(request.options)
            owner = b""
            if context.access is not None and context.peer is not None:
                owner = context.peer.public_key
            permit = _permit(context)

            connection = context.client
            attempt = Attempt(
                context.peer.public_key if context.peer else b"",
                lambda: connection is not None and connection.has_hung_up(),
            )

            async def receive() -> None:
                place = await open_in_worker(
                    lambda: self._open(request, permit, owner), OpenPlace.close
                )
                try:
                    receiver = await in_worker(
                        Receiver,
                        channel,
                        place.destination,
                        request.options,
                        _Counting(record),
                        report=True,
                        rename=place.rename,
                        privileged=self._privileged,
                        is_new=place.is_new,
                    )
                    attempt.job = receiver
                    await receiver.run()
                finally:
                    await in_worker(place.close)

            await self._attempts.run(request.run, attempt, receive)
            return Reply()

    def _check_clobber(self, options: SyncOptions) -> None:
        if self._clobber or (options.ignore_existing and not options.delete):
            return
        raise UnsafePathError(
            "this server neither replaces nor deletes (srv --no-clobber): push with "
            "--ignore-existing, and without --delete"
        )

    def _open(self, request: Request, permit: Permit | None, owner: bytes) -> OpenPlace:
        tree = Tree.served(self._root, permit)
        parts = split_path(request.dest)
        if parts and not tree.may("write", parts):
            raise UnsafePathError("writing there is not allowed")
        return open_place(
            tree,
            request.dest,
            request.options,
            single=request.single,
            privileged=self._privileged,
            area_at_root=True,
            owner=owner,
        )


async def _opening(
    channel: Channel, out: OutgoingStream, reserved: contextlib.ExitStack
) -> tuple[Request, int]:
    """Return what opens a sync, and about how many bytes its paths take.

    These are held by the connection, as far as limits go, until the stack is left.
    """
    part = await channel.receive_one()
    if part is None:
        raise IncompleteTransferError("the sync has no beginning")
    request, held_len = await in_worker(_read_request, part.payload)
    reserved.callback(out.turn.hold, 0)
    out.turn.hold(held_len)
    return request, held_len


def _read_request(payload: Buffer) -> tuple[Request, int]:
    request = decode_request(payload)
    paths = (*request.paths, *(request.only or ()))
    return request, sum(map(len, paths)) + _PATH_COST * len(paths)


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
