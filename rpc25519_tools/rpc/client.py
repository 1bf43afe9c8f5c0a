"""The client: one connection, any number of calls on it at the same time.

A lost connection fails every waiting call at once, with the reason.
"""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from rpc25519_tools.config import Config
from rpc25519_tools.errors import (
    CallCancelledError,
    ConnectionLostError,
    DeadlineError,
    IncompleteTransferError,
    LocalProtocolError,
    NoSuchServiceError,
    RemoteCallError,
)
from rpc25519_tools.identity.store import LoadedIdentity, load_identity
from rpc25519_tools.rpc import client_core
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client_core import ClientCore
from rpc25519_tools.rpc.driver import Driver, now_ns
from rpc25519_tools.rpc.streams import NO_ARGS, IncomingStream, Part
from rpc25519_tools.transport.base import Receiver, Transport
from rpc25519_tools.transport.endpoint import TlsSettings, connect
from rpc25519_tools.wire.codecs import Codec, codec_from_name
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import Message

_NS_PER_S: Final = 1_000_000_000
#: Characters of a server's error text that are kept.
_ERROR_LEN: Final = 2000


@dataclass(slots=True)
class _Pending:
    """What waits for one call's messages."""

    reply: asyncio.Future[Message]
    incoming: IncomingStream | None


class Client:
    """A connection to a server. Make it with ``Client.connect``; close it when done."""

    def __init__(self, config: Config, transport: Transport) -> None:
        self._codec = codec_from_name(config.compression)
        #: Limit for the first answer to a call, in seconds.
        self.call_timeout_s = config.call_timeout_s
        #: A transfer fails when nothing moves for this long, in seconds.
        self.stall_timeout_s = config.stall_timeout_s
        #: Limit for storing an upload after its last part, in seconds.
        self.reply_timeout_s = config.reply_timeout_s
        self._pending: dict[str, _Pending] = {}
        self._driver = Driver(transport, self._message, self._closed)
        self._core = ClientCore(
            local=f"{transport.network}://{transport.local_address}",
            remote=f"{transport.network}://{config.address}",
            random_bytes=secrets.token_bytes,
        )

    @classmethod
    async def connect(
        cls, config: Config, identity: LoadedIdentity | None = None
    ) -> Self:
        """Load our keys, connect, and authenticate both ends.

        Args:
            config: where to and who we are.
            identity: our keys, where the caller has loaded them already.

        Raises:
            KeyFileError: our keys or certificates are missing or do not fit.
            ConnectFailedError, HandshakeError, DeadlineError: see ``connect``.
        """
        tls = None
        if config.network == "tls":
            if identity is None:
                identity = await asyncio.to_thread(
                    load_identity, config.certs_dir, config.key_name, config.passphrase
                )
            tls = TlsSettings(identity=identity, verify=config.verify_peer)
        made: list[Self] = []

        def accept(transport: Transport) -> Receiver:
            made.append(cls(config, transport))
            return made[0]._driver

        await connect(
            config.address,
            tls=tls,
            accept=accept,
            timeout_s=config.connect_timeout_s,
            local=config.local_address,
        )
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
        await self._driver.aclose()

    @property
    def transport(self) -> Transport:
        """The connection: addresses and who the server proved to be."""
        return self._driver.transport

    @property
    def has_heard(self) -> bool:
        """Whether anything at all has come from the server since the handshake."""
        return self._driver.has_received

    async def call(
        self,
        service_name: str,
        payload: Buffer,
        *,
        args: Mapping[str, str] = NO_ARGS,
        timeout_s: float | None = None,
    ) -> Message:
        """Call a service and wait for its reply.

        Args:
            service_name: the name that the server registered.
            payload: what to send.
            args: small named strings to send along.
            timeout_s: when to give up and cancel; None takes the Config's.

        Raises:
            RemoteCallError: the handler returned an error.
            NoSuchServiceError: the server does not offer the service.
            DeadlineError: no reply in time; the server has been told.
            ConnectionLostError, SecurityError: the connection is over.
        """
        if timeout_s is None:
            timeout_s = self.call_timeout_s
        start_ns = now_ns()
        stream = self._open(
            CallKind.RPC,
            service_name,
            payload,
            args,
            deadline_ns=start_ns + int(timeout_s * _NS_PER_S),
        )
        async with stream:
            try:
                async with asyncio.timeout(timeout_s):
                    await stream.begin()
                    return await stream.reply()
            except TimeoutError as exc:
                if isinstance(exc, DeadlineError):
                    raise
                raise DeadlineError(
                    f"no reply from {service_name!r} within {timeout_s:g} s"
                ) from exc

    async def send_one_way(
        self, service_name: str, payload: Buffer, *, args: Mapping[str, str] = NO_ARGS
    ) -> None:
        """Send a message that gets no answer.

        Raises:
            ConnectionLostError, SecurityError: the connection is over.
        """
        message = self._core.start(
            CallKind.ONE_WAY, service_name, now_ns=now_ns(), payload=payload, args=args
        )
        await self._driver.send(message, self._codec)

    async def stream(
        self,
        kind: CallKind,
        service_name: str,
        payload: Buffer = b"",
        *,
        args: Mapping[str, str] = NO_ARGS,
    ) -> "ClientStream":
        """Open an upload, a download or a bistream.

        Args:
            kind: UPLOAD, DOWNLOAD or BISTREAM.
            service_name: the name that the server registered.
            payload: the first part of an upload or bistream.
            args: small named strings to send along.

        Raises:
            ConnectionLostError, SecurityError: the connection is over.
        """
        stream = self._open(kind, service_name, payload, args)
        try:
            await stream.begin()
        except BaseException:
            stream.cancel()
            raise
        return stream

    def _open(
        self,
        kind: CallKind,
        service_name: str,
        payload: Buffer,
        args: Mapping[str, str],
        deadline_ns: int | None = None,
    ) -> "ClientStream":
        opening = self._core.start(
            kind,
            service_name,
            now_ns=now_ns(),
            payload=payload,
            args=args,
            deadline_ns=deadline_ns,
        )
        incoming = IncomingStream(self._driver) if kind.receives_parts else None
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        # A stream may be left without anybody asking for its reply.
        reply.add_done_callback(lambda f: f.cancelled() or f.exception())
        self._pending[opening.header.call_id] = _Pending(reply, incoming)
        return ClientStream(self, opening, reply, incoming)

    # For ClientStream.

    @property
    def core(self) -> ClientCore:
        """The open calls of this connection."""
        return self._core

    async def send(self, message: Message) -> None:
        """Pack and send with our codec."""
        await self._driver.send(message, self._codec)

    def cancel(self, call_id: str) -> None:
        """Forget a call and tell the server, unless it is over."""
        if call_id in self._pending:
            self._fail(call_id, CallCancelledError("the call was cancelled"))
        message = self._core.cancel(call_id, now_ns=now_ns())
        if message is not None:
            self._driver.send_now(message, self._codec)

    # Called by the driver.

    def _message(self, message: Message, codec: Codec) -> None:
        match self._core.receive(message):
            case None | client_core.PushReceived():
                pass  # nobody listens to pushes
            case client_core.ReplyReceived(call_id, reply):
                self._finish(call_id, reply)
            case client_core.PartReceived(call_id, part, last):
                incoming = self._pending[call_id].incoming
                assert incoming is not None
                incoming.feed(Part.of(part, last=last))
            case client_core.CallRefused(call_id, reason):
                self._fail(
                    call_id, NoSuchServiceError(f"not offered: {reason[:_ERROR_LEN]}")
                )
            case client_core.StreamBroken(call_id, reason):
                self._fail(call_id, IncompleteTransferError(reason))

    def _finish(self, call_id: str, message: Message) -> None:
        if message.error:
            self._fail(call_id, RemoteCallError(message.error[:_ERROR_LEN]))
            return
        pending = self._pending.pop(call_id)
        if pending.incoming is not None:
            pending.incoming.end()
        if not pending.reply.done():
            pending.reply.set_result(message)

    def _fail(self, call_id: str, error: Exception) -> None:
        pending = self._pending.pop(call_id)
        if pending.incoming is not None:
            pending.incoming.end(error)
        if not pending.reply.done():
            pending.reply.set_exception(error)

    def _closed(self, reason: Exception) -> None:
        for call_id in list(self._pending):
            self._fail(call_id, reason)


class ClientStream:
    """One open call: parts up, parts down, and in the end a reply.

    Iterate over it for the parts that come down. As an asynchronous context manager it
    cancels the call on leaving, unless the reply has come.
    """

    def __init__(
        self,
        client: Client,
        opening: Message,
        reply: asyncio.Future[Message],
        incoming: IncomingStream | None,
    ) -> None:
        self._client = client
        self._opening = opening
        self._call_id = opening.header.call_id
        self._reply = reply
        self._incoming = incoming

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __aiter__(self) -> IncomingStream:
        assert self._incoming is not None, "this kind of call receives no parts"
        return self._incoming

    @property
    def is_over(self) -> bool:
        """Whether the reply, or what came instead of it, is there."""
        return self._reply.done()

    async def begin(self) -> None:
        """Send the opening message."""
        await self._client.send(self._opening)

    async def send(
        self,
        payload: Buffer,
        *,
        args: Mapping[str, str] = NO_ARGS,
        last: bool = False,
    ) -> None:
        """Send the next part; wait while the server falls behind.

        Raises:
            RemoteCallError, NoSuchServiceError: the server ended the call early.
            LocalProtocolError: it did so without an error, or takes no parts.
            ConnectionLostError, SecurityError: the connection is over.
        """
        if self._reply.done():
            self._reply.result()
            raise LocalProtocolError("the server ended the call before its last part")
        part = self._client.core.next_part(
            self._call_id, now_ns=now_ns(), payload=payload, args=args, last=last
        )
        try:
            await self._client.send(part)
        except ConnectionLostError:
            if self._reply.done():
                self._reply.result()  # the server may have said why before it left
            raise

    async def reply(self) -> Message:
        """Wait for the reply.

        Raises:
            RemoteCallError: the handler returned an error.
            NoSuchServiceError: the server does not offer the service.
            ConnectionLostError, SecurityError: the connection is over.
        """
        return await asyncio.shield(self._reply)

    def cancel(self) -> None:
        """Give the call up; the server is told. Does nothing when it is over."""
        self._client.cancel(self._call_id)
