"""Which services a server offers.

A service has a kind, a name and a handler. Handlers are coroutine functions, one type
for each kind. A handler's Rpc25519Error goes to its caller as text; any other exception
is logged by the server, and its caller learns of an internal error.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from rpc25519_tools.errors import ConfigError
from rpc25519_tools.identity.certificate import PeerIdentity
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.streams import NO_ARGS, IncomingStream, OutgoingStream
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import Header


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """What a handler knows about its call.

    Attributes:
        kind: how it was called.
        header: the header of the opening message; its addresses are the peer's claim.
        payload: what the opening message carried; for UPLOAD and BISTREAM that is
            also the first part of the stream.
        peer: who the peer proved to be; None where nothing was proved.
        local_address: our end of the connection, such as ``127.0.0.1:8443``.
        remote_address: the peer's end.
    """

    kind: CallKind
    header: Header
    payload: Buffer
    peer: PeerIdentity | None
    local_address: str
    remote_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a handler returns.

    Attributes:
        payload: the result.
        args: small named strings to send along.
        error: an error text to send beside the payload; empty for success.
    """

    payload: Buffer = b""
    args: Mapping[str, str] = field(default_factory=lambda: NO_ARGS)
    error: str = ""


CallHandler: TypeAlias = Callable[[CallContext], Awaitable[Reply]]
UploadHandler: TypeAlias = Callable[[CallContext, IncomingStream], Awaitable[Reply]]
DownloadHandler: TypeAlias = Callable[[CallContext, OutgoingStream], Awaitable[Reply]]
BistreamHandler: TypeAlias = Callable[
    [CallContext, IncomingStream, OutgoingStream], Awaitable[Reply]
]


class Registry:
    """The services of one server, by kind and name."""

    def __init__(self) -> None:
        self.calls: dict[str, CallHandler] = {}
        self.one_ways: dict[str, CallHandler] = {}
        self.uploads: dict[str, UploadHandler] = {}
        self.downloads: dict[str, DownloadHandler] = {}
        self.bistreams: dict[str, BistreamHandler] = {}

    def _names(self, kind: CallKind) -> Mapping[str, object]:
        match kind:
            case CallKind.RPC:
                return self.calls
            case CallKind.ONE_WAY:
                return self.one_ways
            case CallKind.UPLOAD:
                return self.uploads
            case CallKind.DOWNLOAD:
                return self.downloads
            case CallKind.BISTREAM:
                return self.bistreams

    def offers(self, kind: CallKind, name: str) -> bool:
        """Tell whether a service of that kind and name is registered."""
        return name in self._names(kind)

    def require_free(self, kind: CallKind, name: str) -> None:
        """Raise ConfigError if the name is empty or taken."""
        if not name:
            raise ConfigError("a service needs a name")
        if self.offers(kind, name):
            raise ConfigError(f"service {name!r} is registered twice")

    def add_call(self, name: str, handler: CallHandler) -> None:
        """Register a function that answers calls."""
        self.require_free(CallKind.RPC, name)
        self.calls[name] = handler

    def add_one_way(self, name: str, handler: CallHandler) -> None:
        """Register a function for messages without an answer."""
        self.require_free(CallKind.ONE_WAY, name)
        self.one_ways[name] = handler

    def add_upload(self, name: str, handler: UploadHandler) -> None:
        """Register a function that reads a stream and then answers."""
        self.require_free(CallKind.UPLOAD, name)
        self.uploads[name] = handler

    def add_download(self, name: str, handler: DownloadHandler) -> None:
        """Register a function that sends a stream."""
        self.require_free(CallKind.DOWNLOAD, name)
        self.downloads[name] = handler

    def add_bistream(self, name: str, handler: BistreamHandler) -> None:
        """Register a function that reads one stream and sends another."""
        self.require_free(CallKind.BISTREAM, name)
        self.bistreams[name] = handler
