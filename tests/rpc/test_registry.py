"""Which services a server offers."""

import pytest

from rpc25519_tools.errors import ConfigError
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.registry import Registry

#: The kinds that single functions serve.
BY_FUNCTION = [kind for kind in CallKind if kind is not CallKind.NET_RPC]


async def handler(context: CallContext, *streams: object) -> Reply:
    return Reply()


def add(registry: Registry, kind: CallKind, name: str) -> None:
    match kind:
        case CallKind.NET_RPC:
            raise AssertionError("methods are registered by the object")
        case CallKind.RPC:
            registry.add_call(name, handler)
        case CallKind.ONE_WAY:
            registry.add_one_way(name, handler)
        case CallKind.UPLOAD:
            registry.add_upload(name, handler)
        case CallKind.DOWNLOAD:
            registry.add_download(name, handler)
        case CallKind.BISTREAM:
            registry.add_bistream(name, handler)


@pytest.mark.parametrize("kind", BY_FUNCTION)
def test_a_service_is_offered_under_its_kind_and_name_only(kind: CallKind) -> None:
    registry = Registry()
    add(registry, kind, "service")
    assert registry.offers(kind, "service")
    assert not registry.offers(kind, "Service")
    assert not any(
        registry.offers(other, "service") for other in CallKind if other is not kind
    )


@pytest.mark.parametrize("kind", BY_FUNCTION)
def test_a_name_is_registered_once_for_each_kind(kind: CallKind) -> None:
    registry = Registry()
    for each in BY_FUNCTION:
        add(registry, each, "service")
    with pytest.raises(ConfigError, match="'service' is registered twice"):
        add(registry, kind, "service")


@pytest.mark.parametrize("kind", BY_FUNCTION)
def test_a_service_needs_a_name(kind: CallKind) -> None:
    with pytest.raises(ConfigError, match="needs a name"):
        add(Registry(), kind, "")
