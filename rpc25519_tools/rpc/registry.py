"""Which services a server offers.

A service has a kind, a name and a handler; ``handlers`` says what handlers may be. When
one raises, its caller gets the text of the error and the server logs it; neither the
connection nor other calls are harmed.

Methods of objects are a kind of their own, the net/rpc style: ``register``.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from rpc25519_tools.errors import ConfigError
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.handlers import (
    BistreamHandler,
    CallHandler,
    DownloadHandler,
    PlainBistreamHandler,
    PlainCallHandler,
    PlainDownloadHandler,
    PlainUploadHandler,
    UploadHandler,
    as_bistream_handler,
    as_call_handler,
    as_download_handler,
    as_upload_handler,
)
from rpc25519_tools.rpc.methods import Method, methods_of

_Call = TypeVar("_Call", bound=CallHandler | PlainCallHandler)
_Upload = TypeVar("_Upload", bound=UploadHandler | PlainUploadHandler)
_Download = TypeVar("_Download", bound=DownloadHandler | PlainDownloadHandler)
_Bistream = TypeVar("_Bistream", bound=BistreamHandler | PlainBistreamHandler)


def _require_name(name: object, decorator: str = "") -> None:
    """Raise ConfigError if what should be the name of a service is something else."""
    if isinstance(name, str):
        return
    if decorator and callable(name):
        raise ConfigError(
            f'the decorator needs a name: write @services.{decorator}("NAME")'
        )
    raise ConfigError(f"the name of a service must be text, not {name!r:.40}")


def _require_rsync(kind: object) -> None:
    """Raise ConfigError unless the kind is one of rsync calls."""
    if not (isinstance(kind, CallKind) and kind.has_steps):
        raise ConfigError(
            f"an rsync service is either RSYNC_READ or RSYNC_SEND, not {kind!r:.40}"
        )


class Registry:
    """The services of one or more servers, by kind and name.

    Each ``add_...`` has a decorator beside it::

        services = Registry()

        @services.call("greet")
        async def greet(context: CallContext) -> bytes:
            return b"hello, " + bytes(context.payload)

    Names that are empty or taken raise ConfigError, and so do handlers that cannot take
    the arguments of their kind.
    """

    def __init__(self) -> None:
        self.calls: dict[str, CallHandler] = {}
        self.one_ways: dict[str, CallHandler] = {}
        self.uploads: dict[str, UploadHandler] = {}
        self.downloads: dict[str, DownloadHandler] = {}
        #: What reads one stream and sends another, by the kind of call.
        self.two_way: dict[CallKind, dict[str, BistreamHandler]] = {
            CallKind.BISTREAM: {},
            CallKind.RSYNC_READ: {},
            CallKind.RSYNC_SEND: {},
        }
        self.methods: dict[str, Method] = {}

    def _names(self, kind: CallKind) -> Mapping[str, object]:
        match kind:
            case CallKind.RPC:
                return self.calls
            case CallKind.NET_RPC:
                return self.methods
            case CallKind.ONE_WAY:
                return self.one_ways
            case CallKind.UPLOAD:
                return self.uploads
            case CallKind.DOWNLOAD:
                return self.downloads
            case CallKind.BISTREAM | CallKind.RSYNC_READ | CallKind.RSYNC_SEND:
                return self.two_way[kind]

    def offers(self, kind: CallKind, name: str) -> bool:
        """Tell whether a service of that kind and name is registered."""
        return name in self._names(kind)

    def checks_access(self, kind: CallKind, name: str) -> bool:
        """Tell whether a service asks for its caller's rights itself.

        Its handler then has an attribute ``checks_access`` that is True, and calls
        ``context.require``. For all others the server asks whether ``call`` is allowed.
        """
        return getattr(self._names(kind)[name], "checks_access", False) is True

    def require_free(self, kind: CallKind, name: str) -> None:
        """Raise ConfigError if the name is none, empty or taken."""
        _require_name(name)
        if not name:
            raise ConfigError("a service needs a name")
        if self.offers(kind, name):
            raise ConfigError(f"service {name!r} is registered twice")

    def add_call(self, name: str, handler: CallHandler | PlainCallHandler) -> None:
        """Register a function that answers calls."""
        self.require_free(CallKind.RPC, name)
        self.calls[name] = as_call_handler(handler, name)

    def call(self, name: str) -> Callable[[_Call], _Call]:
        """Decorate a function that answers calls."""
        _require_name(name, "call")

        def decorate(handler: _Call) -> _Call:
            self.add_call(name, handler)
            return handler

        return decorate

    def add_one_way(self, name: str, handler: CallHandler | PlainCallHandler) -> None:
        """Register a function for messages without an answer."""
        self.require_free(CallKind.ONE_WAY, name)
        self.one_ways[name] = as_call_handler(handler, name)

    def one_way(self, name: str) -> Callable[[_Call], _Call]:
        """Decorate a function for messages without an answer."""
        _require_name(name, "one_way")

        def decorate(handler: _Call) -> _Call:
            self.add_one_way(name, handler)
            return handler

        return decorate

    def add_upload(
        self, name: str, handler: UploadHandler | PlainUploadHandler
    ) -> None:
        """Register a function that reads a stream and then answers."""
        self.require_free(CallKind.UPLOAD, name)
        self.uploads[name] = as_upload_handler(handler, name)

    def upload(self, name: str) -> Callable[[_Upload], _Upload]:
        """Decorate a function that reads a stream and then answers."""
        _require_name(name, "upload")

        def decorate(handler: _Upload) -> _Upload:
            self.add_upload(name, handler)
            return handler

        return decorate

    def add_download(
        self, name: str, handler: DownloadHandler | PlainDownloadHandler
    ) -> None:
        """Register a function that sends a stream."""
        self.require_free(CallKind.DOWNLOAD, name)
        self.downloads[name] = as_download_handler(handler, name)

    def download(self, name: str) -> Callable[[_Download], _Download]:
        """Decorate a function that sends a stream."""
        _require_name(name, "download")

        def decorate(handler: _Download) -> _Download:
            self.add_download(name, handler)
            return handler

        return decorate

    def add_bistream(
        self, name: str, handler: BistreamHandler | PlainBistreamHandler
    ) -> None:
        """Register a function that reads one stream and sends another."""
        self.require_free(CallKind.BISTREAM, name)
        self.two_way[CallKind.BISTREAM][name] = as_bistream_handler(handler, name)

    def bistream(self, name: str) -> Callable[[_Bistream], _Bistream]:
        """Decorate a function that reads one stream and sends another."""
        _require_name(name, "bistream")

        def decorate(handler: _Bistream) -> _Bistream:
            self.add_bistream(name, handler)
            return handler

        return decorate

    def add_rsync(
        self, kind: CallKind, name: str, handler: BistreamHandler | PlainBistreamHandler
    ) -> None:
        """Register a function that takes part in the steps of an rsync call.

        Args:
            kind: RSYNC_READ, where it sends the files, or RSYNC_SEND, where the client
                does. Both may be registered under one name.
            name: of the service.
            handler: takes what one of a bistream takes. Its first part is the opening
                one, of step REQUEST or OVERVIEW. However the call ends, the parts that
                have come can be read still, before the error; an ``async`` handler that
                is cancelled gets them from ``IncomingStream.take_ready``.

        Raises:
            ConfigError: the kind is another one.
        """
        _require_rsync(kind)
        self.require_free(kind, name)
        self.two_way[kind][name] = as_bistream_handler(handler, name)

    def rsync(self, kind: CallKind, name: str) -> Callable[[_Bistream], _Bistream]:
        """Decorate a function that takes part in the steps of an rsync call."""
        _require_rsync(kind)
        _require_name(name)

        def decorate(handler: _Bistream) -> _Bistream:
            self.add_rsync(kind, name, handler)
            return handler

        return decorate

    def register(self, service: object, name: str | None = None) -> None:
        """Offer the public methods of an object in the net/rpc style.

        Args:
            service: each public method with one annotated argument, and optionally a
                CallContext before it, is served as ``Name.method`` and, for Go
                callers, as ``Name.Method``.
            name: the name in front of the dot; the class's name where it is None.

        Raises:
            ConfigError: the name is taken, an annotation is missing or cannot be
                encoded, or there is no public method at all; or it is a class.
        """
        if isinstance(service, type):
            raise ConfigError(
                f"register an object, {service.__name__}(...), not its class"
            )
        if name is not None:
            _require_name(name)
        found = methods_of(service, name or type(service).__name__)
        for full_name in found:
            self.require_free(CallKind.NET_RPC, full_name)
        self.methods.update(found)
