"""Which services a server offers."""

from typing import Any

import pytest

from rpc25519_tools.blocking import BlockingClient
from rpc25519_tools.config import Address, Config, parse_address
from rpc25519_tools.errors import ConfigError
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.context import CallContext
from rpc25519_tools.rpc.handlers import Reply
from rpc25519_tools.rpc.reconnect import PersistentClient
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.rpc.server import Server

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
        case CallKind.RSYNC_READ | CallKind.RSYNC_SEND:
            registry.add_rsync(kind, name, handler)


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


class Maths:
    def half(self, number: int) -> int:
        return number // 2


@pytest.mark.parametrize("name", ["call", "one_way", "upload", "download", "bistream"])
def test_a_decorator_without_a_name_says_what_is_missing(name: str) -> None:
    decorator: Any = getattr(Registry(), name)
    with pytest.raises(ConfigError, match=rf'write @services\.{name}\("NAME"\)'):
        decorator(handler)
    for wrong in (5, None, b"name"):
        with pytest.raises(ConfigError, match="must be text"):
            decorator(wrong)


@pytest.mark.parametrize(
    "kind", [kind for kind in CallKind if kind is not CallKind.NET_RPC]
)
@pytest.mark.parametrize("name", [5, b"name", None])
def test_the_name_of_a_service_is_text(kind: CallKind, name: Any) -> None:
    with pytest.raises(ConfigError, match="must be text"):
        add(Registry(), kind, name)


@pytest.mark.parametrize(
    "kind", [kind for kind in CallKind if not kind.has_steps] + [4, "RSYNC_READ", None]
)
def test_an_rsync_service_has_one_of_two_kinds(kind: Any) -> None:
    registry = Registry()
    with pytest.raises(ConfigError, match="RSYNC_READ or RSYNC_SEND"):
        registry.add_rsync(kind, "service", handler)
    with pytest.raises(ConfigError, match="RSYNC_READ or RSYNC_SEND"):
        registry.rsync(kind, "service")


def test_an_rsync_service_can_be_decorated() -> None:
    registry = Registry()
    for kind in (CallKind.RSYNC_READ, CallKind.RSYNC_SEND):
        assert registry.rsync(kind, "service")(handler) is handler
        assert registry.offers(kind, "service")
        wrong: Any = handler
        with pytest.raises(ConfigError, match="must be text"):
            registry.rsync(kind, wrong)
    with pytest.raises(ConfigError, match="must take 3 arguments"):
        registry.add_rsync(CallKind.RSYNC_SEND, "other", lambda context: None)  # type: ignore[arg-type]  # on purpose


def test_objects_are_registered_not_their_classes() -> None:
    registry = Registry()
    with pytest.raises(ConfigError, match=r"register an object, Maths\(\.\.\.\)"):
        registry.register(Maths)
    wrong: Any = 5
    with pytest.raises(ConfigError, match="must be text, not 5"):
        registry.register(Maths(), wrong)
    registry.register(Maths())
    assert registry.offers(CallKind.NET_RPC, "Maths.half")


@pytest.mark.parametrize("wrong", [None, "services", Registry, {}])
def test_a_server_needs_a_registry(wrong: Any) -> None:
    config = Config(address=parse_address("127.0.0.1:0"), network="tcp")
    with pytest.raises(ConfigError, match="needs a Registry"):
        Server(config, wrong)


@pytest.mark.parametrize("wrong", [None, "127.0.0.1:1", Address("h", 1), Config])
async def test_everybody_needs_a_config(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="a Config is wanted"):
        await Client.connect(wrong)
    for make in (PersistentClient, lambda one: Server(one, Registry())):
        with pytest.raises(ConfigError, match="a Config is wanted"):
            make(wrong)


async def test_blocking_ends_need_a_config_too() -> None:
    wrong: Any = "127.0.0.1:1"
    with pytest.raises(ConfigError, match="a Config is wanted"):
        BlockingClient(wrong)
