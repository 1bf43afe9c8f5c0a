"""One client of a server: feeds its messages to the core and runs the handlers.

Each call runs as a task of its own. Whatever a handler does (it fails, it never ends,
it sends without end), its caller gets an answer where one is due, and the connection
goes on; a peer that breaks the protocol loses its connection.
"""

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from contextvars import copy_context
from typing import Any, Final, Protocol

from rpc25519_tools.config import Config
from rpc25519_tools.errors import (
    CallCancelledError,
    ConnectionLostError,
    DeadlineError,
    DecodeError,
    HandlerError,
    IncompleteTransferError,
    LocalProtocolError,
    SecurityError,
)
from rpc25519_tools.identity.access import AccessPolicy
from rpc25519_tools.rpc import methods, server_core
from rpc25519_tools.rpc.calls import CANCELLED, EXPIRED, CallKind, RsyncStep
from rpc25519_tools.rpc.context import (
    CallContext,
    Cancellation,
    allowance_s,
    set_handled_until,
)
from rpc25519_tools.rpc.deadlines import Deadlines
from rpc25519_tools.rpc.driver import Driver, now_ns
from rpc25519_tools.rpc.failures import (
    CANCELLED_BY_CLIENT,
    SHUTTING_DOWN,
    described,
    failure,
    is_for_us,
    why_stopped,
)
from rpc25519_tools.rpc.handlers import Reply, as_reply, words_of
from rpc25519_tools.rpc.held import UNREAD_LIMIT_S, HeldWatch
from rpc25519_tools.rpc.liveness import KEEP_ALIVE, Liveness
from rpc25519_tools.rpc.memory import MemoryBudget
from rpc25519_tools.rpc.pace import Pace
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.running import RunningCall, begin_task
from rpc25519_tools.rpc.server_core import OpenCall, ServerCore
from rpc25519_tools.rpc.streams import (
    IncomingStream,
    OutgoingStream,
    Part,
)
from rpc25519_tools.rpc.turns import SendTurns, Turn
from rpc25519_tools.transport.base import Transport
from rpc25519_tools.wire.codecs import Codec, codec_from_name
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS, Message, header_len
from rpc25519_tools.wire.outgoing import payload_len

_log = logging.getLogger(__name__)

#: How long cancelled handlers may take to clean up, in seconds.
_CLEANUP_TIMEOUT_S: Final = 2.0
#: What a running call takes beside the message that began it.
_CALL_COST: Final = 2048
_TOO_MUCH_BEGUN: Final = (
    "the first messages of this connection's streams take too much memory together"
)
_UNREAD: Final = f"nobody has read this stream for {UNREAD_LIMIT_S:g} s"


class Owner(Protocol):
    """What a connection needs from its server."""

    @property
    def config(self) -> Config:
        """The server's settings."""

    @property
    def registry(self) -> Registry:
        """The services on offer."""

    @property
    def reveals_errors(self) -> bool:
        """Whether callers get the text of any error, or of those meant for them."""

    @property
    def access(self) -> AccessPolicy | None:
        """Who may do what; None where everybody may do everything."""

    @property
    def stopping(self) -> bool:
        """Whether no more calls may begin."""

    @property
    def memory(self) -> MemoryBudget:
        """What all connections hold."""

    @property
    def turns(self) -> asyncio.Semaphore:
        """Who may unpack."""

    def heard(self, connection: "Connection") -> None:
        """Note that the client has sent its first message."""

    def forget(self, connection: "Connection", reason: Exception) -> None:
        """Drop a connection that is over."""


class Connection:
    """One client's connection.

    Args:
        owner: the server.
        transport: the open connection.
    """

    def __init__(self, owner: Owner, transport: Transport) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._running: dict[OpenCall, RunningCall] = {}
        self._deadlines: Deadlines[OpenCall] = Deadlines(self._expire)
        self._held_len = 0
        #: Of that, what began streams: it stays until their ends, and nothing is
        #: gained by not reading on.
        self._kept_len = 0
        self._holding = False
        self._heard = False
        self._closes_when_idle = False
        self._closing: asyncio.Task[None] | None = None
        limits = owner.config.limits
        self._max_header_len = limits.max_header_len
        self._max_held_len = limits.max_connection_memory_len
        self.driver = Driver(
            transport,
            self._message,
            self._closed,
            max_message_len=limits.max_message_len,
            memory=owner.memory,
            turns=owner.turns,
        )
        self._send_turns = SendTurns(self.driver, self._max_held_len)
        self._core = ServerCore(
            local=f"{transport.network}://{transport.local_address}",
            remote=f"{transport.network}://{transport.remote_address}",
            default_codec=codec_from_name(owner.config.compression),
            offers=owner.registry.offers,
            max_calls=limits.max_calls,
        )
        self._liveness = Liveness(
            self.driver,
            owner.config,
            send_keepalive=self._send_keepalive,
            is_busy=self._is_busy,
        )
        self._held = HeldWatch(
            self.driver, send_keepalive=self._send_keepalive, unread=self._give_up
        )
        self.driver.on_held = self._held.begin

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks of all running calls."""
        return [running.its_task for running in self._running.values()]

    def idle_since(self) -> float:
        """Return when the client last did something; now, where it waits for us.

        In seconds, on the loop's clock.
        """
        return self._loop.time() if self._is_busy() else self.driver.moved_s()

    async def push(
        self,
        service_name: str,
        payload: Buffer,
        *,
        args: Mapping[str, str] = NO_ARGS,
        call_id: str = "",
        compress: bool = True,
    ) -> None:
        """Send a one-way message; see ``Server.push``."""
        message = self._core.push(
            service_name,
            now_ns=now_ns(),
            payload=payload,
            args=args,
            call_id=call_id,
            compress=compress,
        )
        await self._send(message)

    async def aclose(self, closer: asyncio.Task[Any] | None) -> None:
        """Cancel what still runs, send what is queued, and close.

        Args:
            closer: the task that wants it closed. If it is that of a handler, it is
                left alone, and the connection closes when it has been answered.
        """
        tasks, is_ours = [], False
        for running in self._running.values():
            task = running.its_task
            if task is closer:
                is_ours = self._closes_when_idle = True
                continue
            tasks.append(task)
            running.cancellation.set()
            task.cancel(SHUTTING_DOWN)
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=_CLEANUP_TIMEOUT_S)
            if stuck:  # behind a peer that does not read
                self.driver.abort(ConnectionLostError(SHUTTING_DOWN))
        if not is_ours:
            await self._close_driver()

    async def _close_driver(self) -> None:
        await self.driver.aclose(stall_s=_CLEANUP_TIMEOUT_S)

    # Called by the driver and by liveness.

    def _message(self, message: Message, codec: Codec) -> None:
        if not self._heard:
            self._heard = True
            self._owner.heard(self)
        size = header_len(message.header)
        if size > self._max_header_len:
            raise DecodeError(
                f"the header of a message has {size} bytes; the limit is "
                f"{self._max_header_len}"
            )
        event = self._core.receive(message, codec, now_ns=now_ns())
        match event:
            case None:
                pass
            case server_core.CallStarted():
                self._start(event.call, event.message, size)
            case server_core.PartReceived():
                incoming = self._incoming(event.call)
                if incoming is not None:
                    incoming.feed(Part.of(event.message, last=event.last))
            case server_core.StreamBroken():
                incoming = self._incoming(event.call)
                if incoming is not None:
                    incoming.end(IncompleteTransferError(event.reason))
            case server_core.CallCancelled():
                error = CallCancelledError(CANCELLED)
                self._stop(event.call, CANCELLED_BY_CLIENT, error)
            case server_core.MessageToSend():
                self.driver.send_now(event.message, self._core.codec)

    def _closed(self, reason: Exception) -> None:
        self._liveness.stop()
        self._held.stop()
        self._deadlines.stop()
        for running in list(self._running.values()):
            if running.incoming is not None:
                running.incoming.end(reason)
            running.cancellation.set()
            # Of a task that has yet to notice, only the last reason counts: that of a
            # client which cancels its call and leaves has to be the first.
            running.its_task.cancel(running.stopped or str(reason))
        self._owner.forget(self, reason)

    def _send_keepalive(self) -> None:
        self.driver.send_now(KEEP_ALIVE, self._core.codec)

    def _give_up(self) -> None:
        """End the streams that nobody reads: they hold up all else, also cancels."""
        for running in list(self._running.values()):
            if running.incoming is not None and running.incoming.is_unread:
                running.incoming.end(DeadlineError(_UNREAD))
                running.incoming.discard()

    def _is_busy(self) -> bool:
        """Tell whether a handler is at work, rather than waiting for the client."""
        return any(
            running.begun and not running.answering and not running.waits_for_client
            for running in self._running.values()
        )

    # Running calls.

    def _incoming(self, call: OpenCall) -> IncomingStream | None:
        running = self._running.get(call)
        return running.incoming if running is not None else None

    def _stop(self, call: OpenCall, reason: str, error: Exception) -> None:
        """Stop a handler: nobody wants its answer any more, or it is too late.

        Args:
            call: what it works on.
            reason: what its task is cancelled with.
            error: what it finds behind the parts of an rsync call that are here.
        """
        running = self._running.get(call)
        if running is None:
            return
        if call.kind.has_steps and running.incoming is not None:
            running.incoming.end(error)
        running.cancellation.set()
        running.stopped = running.stopped or reason
        if running.begun:
            running.its_task.cancel(running.stopped)

    def _expire(self, call: OpenCall) -> None:
        if self._running[call].answering:
            return
        call.expired = True
        self._stop(call, EXPIRED, DeadlineError(EXPIRED))

    def _start(self, call: OpenCall, opening: Message, header_size: int) -> None:
        incoming = None
        if call.kind.sends_parts:
            incoming = IncomingStream(
                self.driver,
                self._change_held,
                keeps_parts=call.kind.keeps_parts,
                has_steps=call.kind.has_steps,
            )
            incoming.feed(Part.of(opening, last=False))
        until_s = None
        if call.request.deadline_ns is not None:
            left_s = allowance_s(call.request, call.request.deadline_ns, now_ns)
            until_s = self._loop.time() + left_s
            call.expired = left_s <= 0
            self._deadlines.add(call, until_s)
        cost = len(opening.payload) + header_size + _CALL_COST
        running = RunningCall(incoming, Cancellation(), until_s, cost)
        self._running[call] = running
        if call.kind.has_parts:
            self._keep(running)
        self._change_held(cost)
        # In a context of its own: reading may go on in that of some handler.
        run = self._run(call, opening, running)
        try:
            running.task = begin_task(run, self._loop, self._context.copy())
        except KeyboardInterrupt as exc:
            # Not from here: uvloop would take it for a fault of the connection.
            self._loop.call_soon(_raise, exc)

    async def _run(
        self, call: OpenCall, opening: Message, running: RunningCall
    ) -> None:
        """Run the handler of one call and send what it returns."""
        running.begun = True
        # Where it begins at once, nobody else has been told of it yet.
        running.task = asyncio.current_task()
        incoming = running.incoming
        try:
            try:
                result = await self._handle(call, opening, running)
                reply = as_reply(result, call.request.service_name)
            except BaseException as exc:
                reason = self._why_failed(call, exc, running.task)
                if reason is None:
                    raise
                reply = failure(opening, call.kind, reason)
            if incoming is not None:
                incoming.discard()
            running.answering = True
            await self._answer(call, reply, opening)
        except (ConnectionLostError, SecurityError):
            pass  # nobody is there to be answered
        finally:
            if incoming is not None:
                incoming.discard()
            if running.until_s is not None:
                self._deadlines.discard(call)
            self._core.close(call)  # whatever became of its answer
            del self._running[call]
            self._kept_len -= running.kept_len
            self._change_held(-running.cost)
            if self._closes_when_idle and not self._running:
                self._closing = self._loop.create_task(self._close_driver())

    def _keep(self, running: RunningCall) -> None:
        """Count what begins a stream; refuse it where others have brought too much.

        One may bring as much as a message can be long.
        """
        if self._kept_len and self._kept_len + running.cost > self._max_held_len:
            running.refusal = _TOO_MUCH_BEGUN
        else:
            running.kept_len = running.cost
            self._kept_len += running.cost

    def _change_held(self, difference: int) -> None:
        """Count what calls and streams hold; read on only when that is bearable."""
        self._held_len += difference
        self.driver.change_held(difference)
        too_much = self._held_len - self._kept_len > self._max_held_len
        if too_much and not self._holding:
            self._holding = True
            self.driver.hold_reading()
        elif self._holding and not too_much:
            self._holding = False
            self.driver.release_reading()

    def _handle(
        self, call: OpenCall, opening: Message, running: RunningCall
    ) -> Awaitable[object]:
        """Return what runs the handler, to be awaited.

        Raises:
            CallCancelledError, DeadlineError: it need not run any more.
            AccessDeniedError: the client may not make this call.
        """
        if self._owner.stopping:
            raise HandlerError(SHUTTING_DOWN)
        if running.refusal:
            raise HandlerError(running.refusal)
        if call.cancelled:
            raise CallCancelledError(CANCELLED)
        if call.expired:
            raise DeadlineError(EXPIRED)
        transport, name = self.driver.transport, call.request.service_name
        context = CallContext(
            kind=call.kind,
            header=call.request,
            payload=opening.payload,
            peer=transport.peer,
            local_address=transport.local_address,
            remote_address=transport.remote_address,
            client=transport,
            until_s=running.until_s,
            cancellation=running.cancellation,
            access=self._owner.access,
        )
        set_handled_until(running.until_s)
        if context.access is not None:
            self._require_allowed(context, name)
        registry, incoming = self._owner.registry, running.incoming
        match call.kind:
            case CallKind.RPC:
                return registry.calls[name](context)
            case CallKind.NET_RPC:
                return methods.answer(
                    registry.methods, context, lambda exc: self._described(call, exc)
                )
            case CallKind.ONE_WAY:
                return registry.one_ways[name](context)
            case CallKind.UPLOAD:
                assert incoming is not None
                return registry.uploads[name](context, incoming)
            case CallKind.DOWNLOAD:
                return registry.downloads[name](context, self._outgoing(call))
            case CallKind.BISTREAM | CallKind.RSYNC_READ | CallKind.RSYNC_SEND:
                assert incoming is not None
                out = self._outgoing(call)
                return registry.two_way[call.kind][name](context, incoming, out)

    def _why_failed(
        self, call: OpenCall, exc: BaseException, task: asyncio.Task[Any] | None
    ) -> str | None:
        """Return what the caller learns; None for what is not meant for the call."""
        if isinstance(exc, asyncio.CancelledError):
            if self.driver.is_closed:
                return None
            return why_stopped(call, stopping=self._owner.stopping)
        # Any fault of a handler ends here.
        if isinstance(exc, Exception) or not is_for_us(exc, task):
            return self._described(call, exc)
        return None

    def _described(self, call: OpenCall, exc: BaseException) -> str:
        return described(
            exc, call.request.service_name, reveals=self._owner.reveals_errors
        )

    def _require_allowed(self, context: CallContext, name: str) -> None:
        """Refuse a call that its client may not make."""
        if context.kind is CallKind.NET_RPC:
            return  # names its method inside, and is checked where that is read
        if not self._owner.registry.checks_access(context.kind, name):
            context.require("call", name)

    def _outgoing(self, call: OpenCall) -> OutgoingStream:
        running = self._running[call]
        turn = running.turn = Turn(self._send_turns)
        pace = None if call.request.backpressure else Pace()
        pacing = asyncio.Lock()

        async def wait_for_pace(pace: Pace) -> None:
            """Wait until a part may go; who asks first goes first."""
            async with pacing:
                if delay_s := pace.delay_s(self._loop.time()):
                    await asyncio.sleep(delay_s)

        async def send_part(
            payload: Buffer,
            args: Mapping[str, str],
            last: bool,  # noqa: FBT001  # the signature of SendPart
            compress: bool,  # noqa: FBT001
            step: RsyncStep | None,
        ) -> None:
            if pace is not None:
                await wait_for_pace(pace)
            # Nothing is waited for from here on until the part is counted.
            part = self._core.part(
                call,
                now_ns=now_ns(),
                payload=payload,
                args=args,
                last=last,
                step=step,
                compress=compress,
            )
            if pace is not None:
                pace.sent(payload_len(part.payload), self._loop.time())
            running.sending += 1
            try:
                await self._send(part, counted=turn.is_taken)
            except BaseException:
                self._core.take_back(call, part)
                raise
            finally:
                running.sending -= 1

        return OutgoingStream(send_part, turn)

    async def _send(self, message: Message, *, counted: bool = False) -> None:
        """Send a message; what waits to be sent is held, unless it is counted."""
        if not self.driver.try_send(message, self._core.codec):
            await self._send_when_due(message, counted=counted)

    async def _send_when_due(self, message: Message, *, counted: bool = False) -> None:
        """Send a message that has to be packed elsewhere, or to wait for room."""
        held_len = 0 if counted else payload_len(message.payload)
        self._change_held(held_len)
        try:
            await self.driver.send(message, self._core.codec)
        finally:
            self._change_held(-held_len)

    async def _answer(self, call: OpenCall, reply: Reply, opening: Message) -> None:
        """Send the answer, or else a short one that says why it cannot be sent."""
        try:
            message = self._reply_message(call, reply)
            if message is not None:
                alone = len(self._running) == 1
                if not self.driver.try_send(message, self._core.codec, at_once=alone):
                    await self._send_when_due(message)
        except (ConnectionLostError, SecurityError):
            raise
        except Exception as exc:  # noqa: BLE001  # whatever packing meets in it
            text = words_of(exc)
            if not isinstance(exc, LocalProtocolError):
                name = call.request.service_name
                _log.error("the answer of %r cannot be sent", name, exc_info=exc)
                text = f"the answer cannot be sent: {type(exc).__name__}"
            message = self._reply_message(call, failure(opening, call.kind, text))
            if message is not None:
                await self._send(message)

    def _reply_message(self, call: OpenCall, reply: Reply) -> Message | None:
        return self._core.finish(
            call,
            now_ns=now_ns(),
            payload=reply.payload,
            args=reply.args,
            error=reply.error,
            subject=reply.subject,
            compress=reply.compress,
        )


def _raise(error: BaseException) -> None:
    raise error
