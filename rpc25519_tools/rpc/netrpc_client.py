"""Calls in the net/rpc style, as a client makes them.

They go out one after another. A Go server has one buffer for each connection's net/rpc
calls and mixes up those that overlap; calls of other kinds run beside them as ever.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeVar

from rpc25519_tools.errors import (
    DeadlineError,
    LocalProtocolError,
    RemoteCallError,
    RemoteProtocolError,
)
from rpc25519_tools.rpc.calls import ENDED, EXPIRED, CallKind
from rpc25519_tools.rpc.client_core import ClientCore
from rpc25519_tools.wire import records
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import NO_ARGS, Message
from rpc25519_tools.wire.netrpc import (
    NetRequest,
    decode_response,
    encode_request,
)

T = TypeVar("T")


#: Characters of a server's error text that are kept.
MAX_ERROR_LEN: Final = 2000


def error_of(text: str, reply: Message) -> Exception:
    """Return the exception for an error text of the server's, and what came with it."""
    if text == EXPIRED or (text == ENDED and reply.header.deadline_ns is not None):
        # Both sides watch the clock, and either may be the first to see it run out. A
        # call that we had cancelled would not wait for its reply any more.
        return DeadlineError("the deadline passed at the server")
    return RemoteCallError(
        text[:MAX_ERROR_LEN],
        reply_payload=reply.payload,
        reply_args=reply.header.args,
    )


class Caller(Protocol):
    """What is needed of a client."""

    call_timeout_s: float

    @property
    def core(self) -> ClientCore:
        """The open calls of the connection."""

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
        """Make one call without streams."""


class NetRpc:
    """The net/rpc calls of one client."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._turn = asyncio.Lock()

    async def call(
        self,
        service_method: str,
        argument: object,
        result_type: type[T],
        *,
        argument_type: Any = None,
        timeout_s: float | None = None,
    ) -> T:
        """Call a method of a registered object and wait for its result.

        Args:
            service_method: such as ``Arith.Add``.
            argument: a record, or any value that ``argument_type`` describes.
            result_type: what the result is decoded as.
            argument_type: how to encode the argument; its class where it is None.
            timeout_s: when both sides give up, waiting for earlier net/rpc calls of
                this client not included; None takes the Config's.

        Raises:
            RemoteCallError: the method returned an error, or there is no such method.
            LocalProtocolError: the name is no text, or the argument cannot be encoded.
            DecodeError: the result is not what ``result_type`` says.
            DeadlineError: no reply in time; the server has been told.
            ConnectionLostError, SecurityError: the connection is over.
        """
        if not isinstance(service_method, str):
            raise LocalProtocolError(
                f"the name of a method must be text, not {service_method!r:.40}"
            )
        packed = records.encode(argument, argument_type, struct_names=True)
        limit_s = self._caller.call_timeout_s if timeout_s is None else timeout_s
        async with self._turn:
            seq = self._caller.core.take_seqno()
            reply = await self._caller.round_trip(
                CallKind.NET_RPC,
                service_method,
                encode_request(NetRequest(service_method, seq, packed)),
                timeout_s=limit_s,
            )
        response = decode_response(reply.payload)
        if response.seq != seq:
            raise RemoteProtocolError("the answer to another net/rpc call came")
        if response.error:
            raise error_of(response.error, reply)
        return records.decode(result_type, response.result)

    def go(
        self,
        service_method: str,
        argument: object,
        result_type: type[T],
        *,
        argument_type: Any = None,
        timeout_s: float | None = None,
    ) -> asyncio.Task[T]:
        """Start a call; return the task that ends with its result.

        The arguments and errors are those of ``call``.
        """
        return asyncio.get_running_loop().create_task(
            self.call(
                service_method,
                argument,
                result_type,
                argument_type=argument_type,
                timeout_s=timeout_s,
            )
        )
