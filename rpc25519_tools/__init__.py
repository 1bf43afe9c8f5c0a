"""Secure RPC and file transfer with your own ed25519 certificates.

Wire-compatible with the Go package rpc25519 v1.6.8. What most programs need is here;
``rpc25519_tools.blocking`` has the same for programs without asyncio,
``rpc25519_tools.greenpack`` the encoding of records, ``rpc25519_tools.errors`` every
exception. The layers below are described in ``docs/architecture.md``.

Importing this package loads nothing heavy: each name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rpc25519_tools.config import Address, Config, parse_address
    from rpc25519_tools.identity.access import AccessPolicy
    from rpc25519_tools.identity.access_store import AccessFile
    from rpc25519_tools.identity.certificate import PeerIdentity
    from rpc25519_tools.limits import Limits, Startups
    from rpc25519_tools.rpc.calls import CallKind, RsyncStep
    from rpc25519_tools.rpc.client import Client
    from rpc25519_tools.rpc.client_stream import ClientStream
    from rpc25519_tools.rpc.context import CallContext, time_left_s, without_deadline
    from rpc25519_tools.rpc.handlers import PlainIncoming, PlainOutgoing, Reply
    from rpc25519_tools.rpc.pushes import PushListener
    from rpc25519_tools.rpc.reconnect import Backoff, PersistentClient
    from rpc25519_tools.rpc.registry import Registry
    from rpc25519_tools.rpc.server import Server, ServerObserver
    from rpc25519_tools.rpc.streams import IncomingStream, OutgoingStream, Part
    from rpc25519_tools.sync.hashes import (
        RsyncChunk,
        RsyncDiff,
        RsyncHashes,
        diff,
        summarize_bytes,
        summarize_file,
    )
    from rpc25519_tools.transport.base import Transport
    from rpc25519_tools.wire.message import Header, Message

__version__ = "0.1.0"

__all__ = [
    "AccessFile",
    "AccessPolicy",
    "Address",
    "Backoff",
    "CallContext",
    "CallKind",
    "Client",
    "ClientStream",
    "Config",
    "Header",
    "IncomingStream",
    "Limits",
    "Message",
    "OutgoingStream",
    "Part",
    "PeerIdentity",
    "PersistentClient",
    "PlainIncoming",
    "PlainOutgoing",
    "PushListener",
    "Registry",
    "Reply",
    "RsyncChunk",
    "RsyncDiff",
    "RsyncHashes",
    "RsyncStep",
    "Server",
    "ServerObserver",
    "Startups",
    "Transport",
    "__version__",
    "diff",
    "parse_address",
    "summarize_bytes",
    "summarize_file",
    "time_left_s",
    "without_deadline",
]

_MODULES = {
    "config": ("Address", "Config", "parse_address"),
    "identity.access": ("AccessPolicy",),
    "identity.access_store": ("AccessFile",),
    "identity.certificate": ("PeerIdentity",),
    "limits": ("Limits", "Startups"),
    "rpc.calls": ("CallKind", "RsyncStep"),
    "rpc.client": ("Client",),
    "rpc.client_stream": ("ClientStream",),
    "rpc.context": ("CallContext", "time_left_s", "without_deadline"),
    "rpc.handlers": ("PlainIncoming", "PlainOutgoing", "Reply"),
    "rpc.pushes": ("PushListener",),
    "rpc.reconnect": ("Backoff", "PersistentClient"),
    "rpc.registry": ("Registry",),
    "rpc.server": ("Server", "ServerObserver"),
    "rpc.streams": ("IncomingStream", "OutgoingStream", "Part"),
    "sync.hashes": (
        "RsyncChunk",
        "RsyncDiff",
        "RsyncHashes",
        "diff",
        "summarize_bytes",
        "summarize_file",
    ),
    "transport.base": ("Transport",),
    "wire.message": ("Header", "Message"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
