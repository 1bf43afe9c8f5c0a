"""Methods of objects as services, in the manner of Go's net/rpc.

A method takes one argument, or a CallContext and one argument, and returns its result.
Annotations say how both are encoded; see ``rpc25519_tools.greenpack``. It may be async
or plain; a plain one runs in a worker thread. An exception becomes the call's error.
"""

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rpc25519_tools.errors import ConfigError, DecodeError, Rpc25519Error
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply, is_async, run_in_thread
from rpc25519_tools.wire import records
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.netrpc import (
    NO_RESULT,
    NetRequest,
    NetResponse,
    decode_request,
    encode_response,
)
from rpc25519_tools.wire.record_types import go_name

_NOTHING: Final = type(None)
_BY_POSITION: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
#: What is not even looked at: asking for its value may do anything.
_PROPERTIES: Final = (property, functools.cached_property)


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a registered object.

    Attributes:
        function: the bound method.
        wants_context: whether it takes a CallContext before its argument.
        argument_type: what its argument is decoded as.
        result_type: what its result is encoded as; ``NoneType`` for no result.
    """

    function: Callable[..., Any]
    wants_context: bool
    argument_type: Any
    result_type: Any

    async def __call__(self, context: CallContext, argument: object) -> object:
        """Run it, in a thread if it is a plain method."""
        args = (context, argument) if self.wants_context else (argument,)
        if is_async(self.function):
            result: Awaitable[object] = self.function(*args)
            return await result
        return await run_in_thread(context, self.function, *args)


def methods_of(service: object, name: str) -> dict[str, Method]:
    """Return the public methods of an object by their full names.

    ``sleep_milli`` is found as ``Name.sleep_milli`` and ``Name.SleepMilli``.

    Raises:
        ConfigError: see ``Registry.register``.
    """
    if not name or "." in name:
        raise ConfigError(f"{name!r} cannot be the name of a service")
    found: dict[str, Method] = {}
    for attribute, member in inspect.getmembers_static(service):
        if attribute.startswith("_") or isinstance(member, _PROPERTIES):
            continue
        function = getattr(service, attribute)
        if not inspect.isroutine(function):
            continue
        method = _method(function, f"{name}.{attribute}")
        for spelling in {attribute, go_name(attribute)}:
            if f"{name}.{spelling}" in found:
                raise ConfigError(f"{name}.{spelling} stands for two methods")
            found[f"{name}.{spelling}"] = method
    if not found:
        raise ConfigError(f"{type(service).__name__} has no public methods to offer")
    return found


def _method(function: Callable[..., Any], full_name: str) -> Method:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = list(inspect.signature(function).parameters.values())
    except (NameError, TypeError, ValueError) as exc:
        raise ConfigError(f"{full_name}: its annotations are of no use: {exc}") from exc
    wants_context = len(parameters) == 2 and hints.get(parameters[0].name) in (
        CallContext,
        CallContext | None,
    )
    if len(parameters) != 1 + wants_context or parameters[-1].kind not in _BY_POSITION:
        raise ConfigError(
            f"{full_name} must take one argument, or a CallContext and one argument"
        )
    argument_name = parameters[-1].name
    for what in (argument_name, "return"):
        if what not in hints:
            raise ConfigError(f"{full_name}: {what!r} has no annotation")
    records.check_type(hints[argument_name])
    if hints["return"] is not _NOTHING:
        records.check_type(hints["return"])
    return Method(function, wants_context, hints[argument_name], hints["return"])


async def answer(
    methods: Mapping[str, Method],
    context: CallContext,
    describe: Callable[[Exception], str],
) -> Reply:
    """Run the method that a net/rpc request names, and make its response.

    Args:
        methods: the registered ones, by their full names.
        context: the call; its payload is the request.
        describe: turns what a method raised into the text for its caller.

    Raises:
        DecodeError: the payload is no request; there is no response to such.
    """
    request = decode_request(context.payload)
    method = methods.get(request.service_method)
    error, result = "", NO_RESULT
    if method is None:
        error = _unknown(methods, request.service_method)
    else:
        try:
            context.require("call", request.service_method)
            argument = records.decode(method.argument_type, request.argument)
            value = await method(context, argument)
            if method.result_type is not _NOTHING:
                result = records.encode(value, method.result_type, struct_names=True)
        except DecodeError as exc:
            error = str(exc)
        except Exception as exc:  # noqa: BLE001  # any fault of a method ends here
            error = describe(exc)
    return _response(request, error, result)


def _response(request: NetRequest, error: str, result: bytes) -> Reply:
    name, seq = request.service_method, request.seq
    return Reply(payload=encode_response(NetResponse(name, seq, error, result)))


def failed(payload: Buffer, error: str) -> Reply:
    """Return the response to a request whose method was stopped.

    Args:
        payload: the request.
        error: what its caller is told.
    """
    try:
        request = decode_request(payload)
    except Rpc25519Error:
        return Reply(error=error)
    return _response(request, error, NO_RESULT)


def _unknown(methods: Mapping[str, Method], name: str) -> str:
    """Say what there is not, in a Go server's words."""
    service, dot, _ = name.rpartition(".")
    if not dot:
        return f"rpc: service/method request ill-formed: {name}"
    known = any(other.startswith(f"{service}.") for other in methods)
    return f"rpc: can't find {'method' if known else 'service'} {name}"
