"""The client: one connection, any number of calls on it at the same time.

A lost connection fails every waiting call at once, with the reason. The deadline of the
call that a handler is working on holds for the calls that it makes itself.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from rpc25519_tools.config import Config, require_config
from rpc25519_tools.errors import (
    CallCancelledError,
    DeadlineError,
    IncompleteTransferError,
    LocalProtocolError,
    NoSuchServiceError,
)
from rpc25519_tools.identity.certificate import PeerIdentity
from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from rpc25519_tools.rpc import client_core
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client_core import ClientCore
from rpc25519_tools.rpc.client_stream import ClientStream
from rpc25519_tools.rpc.context import time_left_s
from rpc25519_tools.rpc.deadlines import Deadlines, require_limit
from rpc25519_tools.rpc.driver import Driver, now_ns
from rpc25519_tools.rpc.held import HeldWatch
from rpc25519_tools.rpc.known import KnownGuard, known_guard
from rpc25519_tools.rpc.liveness import KEEP_ALIVE, Liveness
from rpc25519_tools.rpc.netrpc_client import MAX_ERROR_LEN, NetRpc, error_of
from rpc25519_tools.rpc.pushes import Pushes, PushListener
from rpc25519_tools.rpc.streams import IncomingStream, Part
from rpc25519_tools.rpc.tunnels import load_tunnel
from rpc25519_tools.transport.base import Receiver, TlsSettings, Transport
from rpc25519_tools.transport.endpoint import connect
from rpc25519_tools.transport.psk import PskTransport, safe_codec
from rpc25519_tools.wire.codecs import Codec, codec_from_name
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS, Message

_NS_PER_S: Final = 1_000_000_000
#: Random bytes that are fetched at a time.
_STOCK_LEN: Final = 640
#: Which pair of keys is a client's own where its Config names none.
DEFAULT_KEY_NAME: Final = "client"


def load_own_identity(config: Config) -> LoadedIdentity:
    """Load a client's keys, as its Config says; may ask for a pass phrase.

    Raises:
        KeyFileError: see ``load_identity``.
    """
    return load_identity(
        config.certs_dir, config.key_name or DEFAULT_KEY_NAME, config.passphrase
    )


@dataclass(slots=True)
class _Pending:
    """What waits for one call's messages."""

    reply: asyncio.Future[Message]
    service_name: str
    incoming: IncomingStream | None
    limit_s: float | None


class Client:
    """A connection to a server. Make it with ``Client.connect``; close it when done.

    As an asynchronous context manager it is closed on leaving.
    """

    def __init__(self, config: Config, transport: Transport, name: str = "") -> None:
        #: What packs our messages: the Config's choice, if the server can bear it.
        self.codec = safe_codec(transport, codec_from_name(config.compression))
        self._loop = asyncio.get_running_loop()
        #: What the user calls this client.
        self.name = name
        #: Limit for the first answer to a call, in seconds.
        self.call_timeout_s = config.call_timeout_s
        #: A transfer fails when nothing moves for this long, in seconds.
        self.stall_timeout_s = config.stall_timeout_s
        #: Limit for storing an upload after its last part, in seconds.
        self.reply_timeout_s = config.reply_timeout_s
        self._pending: dict[str, _Pending] = {}
        #: What sends the first message of a call, while that has to wait.
        self._openings: dict[str, asyncio.Task[None]] = {}
        self._deadlines: Deadlines[str] = Deadlines(self._expire)
        self._driver = Driver(
            transport,
            self._message,
            self._closed,
            max_message_len=config.limits.max_message_len,
        )
        self._pushes = Pushes(self._driver)
        self._core = ClientCore(
            local=f"{transport.network}://{transport.local_address}",
            remote=f"{transport.network}://{config.address}",
            random_bytes=_random_source(),
        )
        self._liveness = Liveness(
            self._driver, config, send_keepalive=self._send_keepalive
        )
        self._known: KnownGuard | None = None
        self._held = HeldWatch(self._driver, send_keepalive=self._send_keepalive)
        self._driver.on_held = self._held.begin
        #: Calls in the net/rpc style.
        self.netrpc = NetRpc(self)

    @classmethod
    async def connect(
        cls, config: Config, identity: LoadedIdentity | None = None, *, name: str = ""
    ) -> Self:
        """Load our keys, connect, and authenticate both ends.

        Args:
            config: where to and who we are.
            identity: our keys, where the caller has loaded them already.
            name: for the user's own bookkeeping.

        Raises:
            KeyFileError: our keys, certificates or pre-shared key are missing or do
                not fit.
            ConnectFailedError, HandshakeError, DeadlineError: see ``connect`` of
                ``transport.endpoint``; PeerNotTrustedError, a HandshakeError, is also
                what a server meets that the list of known keys does not let in.
        """
        require_config(config)
        tls = tunnel = None
        known = known_guard(config, "server")
        if config.needs_identity:
            if identity is None:
                identity = await asyncio.to_thread(load_own_identity, config)
            if config.uses_tls:
                tls = TlsSettings(
                    identity=identity, verify=config.verify_peer, peer_check=known
                )
            tunnel = await load_tunnel(config.pre_shared_key_path, identity, known)
        made: list[Self] = []

        def accept(transport: Transport) -> Receiver:
            made.append(cls(config, transport, name))
            return made[0]._driver

        try:
            await connect(
                config.address,
                tls=tls,
                accept=accept,
                timeout_s=config.connect_timeout_s,
                local=config.local_address,
                http_connect=config.http_connect,
                tunnel=tunnel,
                quic=config.network == "quic",
                share_port=not config.no_share_port_quic,
            )
            made[0]._known = known
            made[0]._show_key()
            if known is not None:
                await known.aclose()
        except BaseException:
            for client in made:
                client.transport.abort()
            raise
        return made[0]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Send what is queued and close; waiting calls fail."""
        try:
            await self._driver.aclose()
        finally:
            if self._known is not None:
                await self._known.aclose()

    @property
    def transport(self) -> Transport:
        """The connection: addresses and who the server proved to be."""
        return self._driver.transport

    @property
    def local_address(self) -> str:
        """Our end of the connection, such as ``127.0.0.1:50000``."""
        return self.transport.local_address

    @property
    def peer(self) -> PeerIdentity | None:
        """Who the server proved to be; None where nothing was proved."""
        return self.transport.peer

    @property
    def is_down(self) -> bool:
        """Whether the connection is over, so that every call fails at once."""
        return self._driver.is_closed

    @property
    def has_heard(self) -> bool:
        """Whether anything at all has come from the server since the handshake."""
        return self._driver.has_received

    @property
    def sent_len(self) -> int:
        """Bytes that have left the process, before the transport encrypted them."""
        return self._driver.sent_len

    @property
    def received_len(self) -> int:
        """Bytes that have come, after the transport decrypted them."""
        return self._driver.received_len

    async def call(
        self,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        subject: str = "",
        timeout_s: float | None = None,
        call_id: str = "",
        compress: bool = True,
    ) -> Message:
        """Call a service and wait for its reply.

        Cancelling the call cancels the handler on the server.

        Args:
            service_name: the name that the server registered.
            payload: what to send.
            args: small named strings to send along.
            subject: free text to send along.
            timeout_s: when both sides give up; None takes the Config's. A handler's
                calls get no more than its own call has left.
            call_id: from ``new_call_id``, for a caller that listens to what the server
                pushes about this very call; each id serves once.
            compress: False sends this one message without compression.

        Raises:
            RemoteCallError: the handler returned an error.
            NoSuchServiceError: the server does not offer the service.
            DeadlineError: no reply in time; the server has been told.
            ConnectionLostError, SecurityError: the connection is over.
        """
        limit_s = self.call_timeout_s if timeout_s is None else timeout_s
        return await self.round_trip(
            CallKind.RPC,
            service_name,
            payload,
            args=args,
            subject=subject,
            timeout_s=limit_s,
            call_id=call_id,
            compress=compress,
        )

    def new_call_id(self) -> str:
        """Return a fresh id for one ``call``, known before the call is made."""
        return self._core.new_call_id()

    async def send_one_way(
        self,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        call_id: str = "",
        compress: bool = True,
    ) -> None:
        """Send a message that gets no answer.

        Args:
            service_name: the name that the server registered.
            payload: what to send.
            args: small named strings to send along.
            call_id: the conversation that it belongs to; a fresh one where empty.
            compress: False sends this one message without compression.

        Raises:
            ConnectionLostError, SecurityError: the connection is over.
        """
        message = self._core.start(
            CallKind.ONE_WAY,
            service_name,
            now_ns=now_ns(),
            payload=payload,
            args=args,
            call_id=call_id,
            compress=compress,
        )
        await self._driver.send(message, self.codec)

    def upload(
        self,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        timeout_s: float | None = None,
        compress: bool = True,
    ) -> ClientStream:
        """Return an upload, which ``async with`` opens: ``send`` parts, then ``reply``.

        Args:
            service_name: the name that the server registered.
            payload: the first part.
            args: small named strings to send along.
            timeout_s: limit for the whole call, from when it is opened; None for none,
                but for that of a handler's own call.
            compress: False sends this first message without compression; later parts
                say so for themselves.
        """
        return self._open(
            CallKind.UPLOAD, service_name, payload, args, timeout_s, compress=compress
        )

    def download(
        self,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        timeout_s: float | None = None,
        compress: bool = True,
    ) -> ClientStream:
        """Return a download, which ``async with`` opens: iterate over its parts.

        The arguments are those of ``upload``.
        """
        return self._open(
            CallKind.DOWNLOAD, service_name, payload, args, timeout_s, compress=compress
        )

    def bistream(
        self,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        timeout_s: float | None = None,
        compress: bool = True,
    ) -> ClientStream:
        """Return a bistream, which ``async with`` opens: send parts and iterate.

        The arguments are those of ``upload``. Read while you send: a peer whose own
        parts nobody reads may stop reading yours.
        """
        return self._open(
            CallKind.BISTREAM, service_name, payload, args, timeout_s, compress=compress
        )

    def rsync(
        self,
        kind: CallKind,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        timeout_s: float | None = None,
        compress: bool = True,
    ) -> ClientStream:
        """Return an rsync call, which ``async with`` opens: send parts and iterate.

        The first part is of step REQUEST or OVERVIEW, according to the kind; each later
        one names its step. When the call ends early, the parts that have come can be
        read still, before the error.

        A Go server ignores such a call: ask first whether it offers the like.

        Args:
            kind: RSYNC_READ, where the server is to send files; or RSYNC_SEND.
            service_name: the name that the server registered.
            payload: the first part.
            args: small named strings to send along.
            timeout_s: see ``upload``.
            compress: see ``upload``.

        Raises:
            LocalProtocolError: the kind is another one.
        """
        if not kind.has_steps:
            raise LocalProtocolError(f"{kind.name} is no kind of rsync call")
        return self._open(
            kind, service_name, payload, args, timeout_s, compress=compress
        )

    async def stream(
        self,
        kind: CallKind,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
        compress: bool = True,
    ) -> ClientStream:
        """Open an upload, a download, a bistream or an rsync call at once.

        Raises:
            ConnectionLostError, SecurityError: the connection is over.
        """
        stream = self._open(kind, service_name, payload, args, None, compress=compress)
        await stream.begin()
        return stream

    def listen(self, call_id: str | None = None) -> PushListener:
        """Listen for messages that the server sends of its own accord.

        Args:
            call_id: listen only for those that carry this call id.
        """
        return self._pushes.listen(call_id)

    # For calls of all kinds.

    @property
    def core(self) -> ClientCore:
        """The open calls of this connection."""
        return self._core

    async def send(self, message: Message) -> None:
        """Pack and send a message of an open call; wait while too much is unsent.

        Raises:
            ConnectionLostError, SecurityError: the connection is over.
            DeadlineError, CallError: the call was over before there was room.
        """
        at_once = len(self._pending) <= 1
        sending: asyncio.Task[None] | None = None
        try:
            if self._driver.try_send(message, self.codec, at_once=at_once):
                return
            call_id = message.header.call_id
            pending = self._pending.get(call_id)
            sending = self._loop.create_task(self._driver.send(message, self.codec))
            if not message.header.stream_part:  # later parts have a number
                self._openings[call_id] = sending
            waited_for: list[asyncio.Future[Any]] = [sending]
            if pending is not None:
                waited_for.append(pending.reply)
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not sending.cancelled():
                sending.result()
            elif pending is not None:
                pending.reply.result()
        except BaseException:
            if sending is None or not _has_sent(sending):
                self._core.take_back(message)
            raise
        finally:
            if sending is not None:
                sending.cancel()  # where it waits still, it sends nothing then
                if self._openings.get(message.header.call_id) is sending:
                    del self._openings[message.header.call_id]

    async def round_trip(
        self,
        kind: CallKind,
        service_name: str,
        payload: Buffer,
        *,
        args: Mapping[str, str] = NO_ARGS,
        subject: str = "",
        timeout_s: float,
        call_id: str = "",
        compress: bool = True,
    ) -> Message:
        """Make one call without streams; ``call`` says the rest."""
        limit_s = _inherited(timeout_s)
        assert limit_s is not None
        start_ns = now_ns()
        opening = self._core.start(
            kind,
            service_name,
            now_ns=start_ns,
            payload=payload,
            args=args,
            subject=subject,
            deadline_ns=start_ns + int(limit_s * _NS_PER_S),
            call_id=call_id,
            compress=compress,
        )
        call_id = opening.header.call_id
        reply: asyncio.Future[Message] = self._loop.create_future()
        self._pending[call_id] = _Pending(reply, service_name, None, limit_s)
        self._deadlines.add(call_id, self._loop.time() + limit_s)
        try:
            at_once = len(self._pending) <= 1
            if not self._driver.try_send(opening, self.codec, at_once=at_once):
                await self.send(opening)
            return await reply
        except BaseException:
            # Cancelled, or it could not be sent, or the answer is an error.
            if call_id in self._pending:
                reply.cancel()
                self.cancel(call_id)
            elif not reply.cancelled():
                reply.exception()  # or asyncio would say that nobody asked for it
            raise

    def cancel(self, call_id: str) -> None:
        """Forget a call and tell the server, unless it is over."""
        if call_id in self._pending:
            self._fail(call_id, CallCancelledError("the call was cancelled"))
        message = self._core.cancel(call_id, now_ns=now_ns())
        opening = self._openings.get(call_id)
        if opening is not None and opening.cancel():
            return  # the server has not heard of it, and will not
        if message is not None:
            self._driver.send_now(message, self.codec, hold_peer=False)

    def _open(
        self,
        kind: CallKind,
        service_name: str,
        payload: Buffer,
        args: Mapping[str, str],
        timeout_s: float | None,
        *,
        compress: bool,
    ) -> ClientStream:
        call_id = self._core.new_call_id()
        incoming = None
        if kind.receives_parts:
            incoming = IncomingStream(
                self._driver, keeps_parts=kind.keeps_parts, has_steps=kind.has_steps
            )
        reply: asyncio.Future[Message] = self._loop.create_future()
        # A stream may be left without anybody asking for its reply.
        reply.add_done_callback(lambda f: f.cancelled() or f.exception())

        def begin() -> Message:
            """Make the call one that is waited for; return its opening message."""
            limit_s = _inherited(timeout_s)
            start_ns, deadline_ns = now_ns(), None
            if limit_s is not None:
                deadline_ns = start_ns + int(limit_s * _NS_PER_S)
            opening = self._core.start(
                kind,
                service_name,
                now_ns=start_ns,
                payload=payload,
                args=args,
                deadline_ns=deadline_ns,
                call_id=call_id,
                compress=compress,
                backpressure=incoming is not None,
            )
            self._pending[call_id] = _Pending(reply, service_name, incoming, limit_s)
            if limit_s is not None:
                self._deadlines.add(call_id, self._loop.time() + limit_s)
            return opening

        return ClientStream(self, call_id, begin, reply, incoming)

    # Called by the driver, by timers and by liveness.

    def _message(self, message: Message, codec: Codec) -> None:
        event = self._core.receive(message)
        match event:
            case None:
                pass
            case client_core.ReplyReceived():
                self._finish(event.call_id, event.message)
            case client_core.PartReceived():
                incoming = self._pending[event.call_id].incoming
                assert incoming is not None
                incoming.feed(Part.of(event.message, last=event.last))
            case client_core.PushReceived():
                self._pushes.feed(event.message)
            case client_core.CallRefused():
                reason = f"not offered: {event.reason[:MAX_ERROR_LEN]}"
                self._fail(event.call_id, NoSuchServiceError(reason))
            case client_core.StreamBroken():
                self._fail(event.call_id, IncompleteTransferError(event.reason))

    def _finish(self, call_id: str, message: Message) -> None:
        if message.error:
            error = error_of(message.error, message)
            # The handler's parts came first, and count, as they do before a success.
            self._fail(call_id, error, after_parts=True)
            return
        pending = self._pending.pop(call_id)
        if pending.limit_s is not None:
            self._deadlines.discard(call_id)
        if pending.incoming is not None:
            pending.incoming.end()
        if not pending.reply.done():
            pending.reply.set_result(message)

    def _fail(
        self, call_id: str, error: Exception, *, after_parts: bool = False
    ) -> None:
        pending = self._pending.pop(call_id)
        if pending.limit_s is not None:
            self._deadlines.discard(call_id)
        if pending.incoming is not None:
            pending.incoming.end(error, after_parts=after_parts)
        if not pending.reply.done():
            pending.reply.set_exception(error)

    def _expire(self, call_id: str) -> None:
        pending = self._pending[call_id]
        text = f"no reply from {pending.service_name!r} within {pending.limit_s:.3g} s"
        self._fail(call_id, DeadlineError(text))
        self.cancel(call_id)

    def _show_key(self) -> None:
        """Show a server of ours, which waits for a message, that we have the key."""
        transport = self.transport
        if isinstance(transport, PskTransport) and transport.confirms:
            self._send_keepalive()

    def _send_keepalive(self) -> None:
        self._driver.send_now(KEEP_ALIVE, self.codec, hold_peer=False)

    def _closed(self, reason: Exception) -> None:
        self._liveness.stop()
        self._held.stop()
        self._deadlines.stop()
        for call_id in list(self._pending):
            self._fail(call_id, reason)
        self._pushes.end(reason)


def _has_sent(sending: asyncio.Task[None]) -> bool:
    return sending.done() and not sending.cancelled() and sending.exception() is None


def _random_source() -> Callable[[int], bytes]:
    """Return a source of random bytes that asks the system for many at a time."""
    stock = b""

    def take(count: int) -> bytes:
        nonlocal stock
        if len(stock) < count:
            stock = secrets.token_bytes(_STOCK_LEN + count)
        taken, stock = stock[:count], stock[count:]
        return taken

    return take


def _inherited(timeout_s: float | None) -> float | None:
    """Return the limit for a call that is made now: the shorter of two.

    Raises:
        DeadlineError: the handler that makes the call has no time left.
        LocalProtocolError: the limit is none.
    """
    if timeout_s is not None:
        require_limit(timeout_s)
    left_s = time_left_s()
    if left_s is None:
        return timeout_s
    if left_s <= 0:
        raise DeadlineError("no time is left for this call")
    return left_s if timeout_s is None else min(left_s, timeout_s)
