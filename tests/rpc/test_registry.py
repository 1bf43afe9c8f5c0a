"""Which services a server offers."""

import pytest

from rpc25519_tools.errors import ConfigError
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.registry import CallContext, Registry, Reply


async def handler(context: CallContext, *streams: object) -> Reply:
    return Reply()


def add(registry: Registry, kind: CallKind, name: str) -> None:
    match kind:
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


@pytest.mark.parametrize("kind", CallKind)
def test_a_service_is_offered_under_its_kind_and_name_only(kind: CallKind) -> None:
    registry = Registry()
    add(registry, kind, "service")
    assert registry.offers(kind, "service")
    assert not registry.offers(kind, "Service")
    assert not any(
        registry.offers(other, "service") for other in CallKind if other is not kind
    )


@pytest.mark.parametrize("kind", CallKind)
def test_a_name_is_registered_once_for_each_kind(kind: CallKind) -> None:
    registry = Registry()
    for each in CallKind:
        add(registry, each, "service")
    with pytest.raises(ConfigError, match="'service' is registered twice"):
        add(registry, kind, "service")


@pytest.mark.parametrize("kind", CallKind)
def test_a_service_needs_a_name(kind: CallKind) -> None:
    with pytest.raises(ConfigError, match="needs a name"):
        add(Registry(), kind, "")
