"""A server's calls without a connection: what comes in, given by hand."""

from collections.abc import Callable

from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.server_core import (
    MAX_OPEN_CALLS,
    CallStarted,
    OpenCall,
    ServerCore,
    ServerEvent,
)
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.message import Header, Message


def new_core(
    default_codec: Codec = Codec.S2,
    offers: Callable[[CallKind, str], bool] = lambda kind, name: True,
    max_calls: int = MAX_OPEN_CALLS,
) -> ServerCore:
    return ServerCore(
        local="tcp://server",
        remote="tcp://client",
        default_codec=default_codec,
        offers=offers,
        max_calls=max_calls,
    )


def message(
    call_type: int, call_id: str = "id", *, part: int = 0, name: str = "service"
) -> Message:
    return Message(
        header=Header(
            call_type=call_type,
            call_id=call_id,
            seqno=7,
            stream_part=part,
            service_name=name,
            subject="subject",
            deadline_ns=99,
            sender="tcp://from",
            recipient="tcp://to",
        )
    )


def receive(core: ServerCore, one: Message) -> ServerEvent | None:
    return core.receive(one, Codec.NONE, now_ns=1)


def start(core: ServerCore, kind: CallKind, call_id: str = "id") -> OpenCall:
    event = receive(core, message(kind.value, call_id))
    assert isinstance(event, CallStarted)
    return event.call
