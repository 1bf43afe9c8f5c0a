"""The ``known`` subcommand: list, approve, deny, lock and unlock known keys."""

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ._errors import reporting_errors
from ._gostyle import GoStyleCommand, OneLineGroup
from ._options import NamedPath
from ._output import Talk, printable

if TYPE_CHECKING:
    from rpc25519_tools.identity.known_peers import Knowledge, KnownPeer, PeerRole
    from rpc25519_tools.identity.known_store import KnownStore

_F = TypeVar("_F", bound=Callable[..., Any])

_PROG = "rpc25519 known"


def _store_options(command: _F) -> _F:
    """Add which list is meant; the command gets it as one parameter, ``store``."""

    @functools.wraps(command)
    def wrapped(
        *args: Any, file: str | None, client: bool, server: bool, **kwargs: Any
    ) -> Any:
        if client + server + (file is not None) > 1:
            raise click.UsageError("give one of --file, --client and --server")
        with reporting_errors(_PROG):
            from rpc25519_tools.identity.known_peers import DEFAULT_NAMES
            from rpc25519_tools.identity.known_store import KnownStore

            role: PeerRole = "server" if server else "client"
            store = KnownStore(DEFAULT_NAMES[role] if file is None else file, role)
            return command(*args, store=store, **kwargs)

    options: Any = wrapped
    for option in (
        click.option(
            "--server", is_flag=True, help="The keys of servers: known_server_keys."
        ),
        click.option(
            "--client",
            is_flag=True,
            help="The keys of clients: known_client_keys. The default.",
        ),
        click.option(
            "--file",
            type=NamedPath(readable=False, dir_okay=False),
            metavar="PATH",
            help="The list, if it is not in the current directory.",
        ),
    ):
        options = option(options)
    return options  # type: ignore[no-any-return]  # as functools.wraps made it


_quiet_option = click.option(
    "--quiet", is_flag=True, help="Say nothing but warnings and errors."
)


@click.group(
    "known", cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"]}
)
def known() -> None:
    """List, approve and deny the keys of known peers.

    srv goes by known_client_keys and cli by known_server_keys, if they are there. While
    such a list is writable, each new key is let in and added (trust on first use);
    lock makes it read-only, and new keys are refused. Denied keys are in a second list,
    NAME.denied, and are never let in. A running server follows all changes, and cuts
    the connections of those that it would not let in any more.

    A PEER is a key (51 characters of base58check, 64 hexadecimal digits or the whole
    pubkey@ text), a certificate file, or an e-mail or address that stands in the lists
    with one key only.
    """


@known.command("list", cls=GoStyleCommand)
@_store_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_keys(store: "KnownStore", *, as_json: bool) -> None:
    """Print all known and denied keys, one a line."""
    knowledge = store.knowledge()
    if as_json:
        import json

        click.echo(json.dumps(_as_json(knowledge), indent=2))
        return
    Talk(prog=_PROG).say(f"{store.shown}: {_state(knowledge)}")
    for status, peer in _entries(knowledge):
        emails = peer.emails or "-"
        click.echo(printable(f"{status:6} {peer.key_id} {peer.address} {emails}"))


@known.command(cls=GoStyleCommand)
@click.argument("peer")
@click.option(
    "--address",
    metavar="HOST",
    help="Where the key is good, for a server whose key has changed: the host that "
    "clients dial, without a port. Default: as listed, or everywhere.",
)
@_store_options
@_quiet_option
def approve(
    store: "KnownStore", peer: str, address: str | None, *, quiet: bool
) -> None:
    """Let PEER in, even where the list is locked, and though it was denied."""
    from dataclasses import replace

    from rpc25519_tools.identity.known_peers import clean_address

    before = store.knowledge()
    found = _find(peer, before)
    if address is not None:
        found = replace(found, address=clean_address(address))
    changed = store.approve(found, everywhere=address is None)
    talk = Talk(prog=_PROG, quiet=quiet)
    what = "approved" if changed else "was approved already"
    talk.say(f"{found.describe()} {what} in {store.shown}")
    if before.known is None:
        talk.say(f"{store.shown} is new: {_state(store.knowledge())}")


@known.command(cls=GoStyleCommand)
@click.argument("peer")
@_store_options
@_quiet_option
def deny(store: "KnownStore", peer: str, *, quiet: bool) -> None:
    """Never let PEER in again, and cut its connections to a running srv."""
    found = _find(peer, store.knowledge())
    what = "denied" if store.deny(found) else "was denied already"
    Talk(prog=_PROG, quiet=quiet).say(f"{found.describe()} {what} in {store.shown}")


@known.command(cls=GoStyleCommand)
@_store_options
@_quiet_option
def lock(store: "KnownStore", *, quiet: bool) -> None:
    """Refuse all keys that are not in the list, by making it read-only."""
    store.lock()
    _say_state(store, quiet=quiet)


@known.command(cls=GoStyleCommand)
@_store_options
@_quiet_option
def unlock(store: "KnownStore", *, quiet: bool) -> None:
    """Let new keys in and add them to the list; make the list if there is none."""
    store.unlock()
    _say_state(store, quiet=quiet)


def _say_state(store: "KnownStore", *, quiet: bool) -> None:
    state = _state(store.knowledge())
    Talk(prog=_PROG, quiet=quiet).say(f"{store.shown}: {state}")


def _state(knowledge: "Knowledge") -> str:
    if knowledge.known is None:
        return "there is no such file; all keys but denied ones are let in, unrecorded"
    if knowledge.locked:
        return "locked; new keys are refused"
    return "writable; new keys are let in and added"


def _entries(knowledge: "Knowledge") -> "list[tuple[str, KnownPeer]]":
    known_peers = knowledge.known.peers if knowledge.known is not None else ()
    return [
        *(("known", peer) for peer in known_peers),
        *(("denied", peer) for peer in knowledge.denied.peers),
    ]


def _as_json(knowledge: "Knowledge") -> dict[str, object]:
    state = "locked" if knowledge.locked else "writable"
    return {
        "file": knowledge.name,
        "state": "absent" if knowledge.known is None else state,
        "keys": [
            {
                "status": status,
                "key": peer.key_id,
                "address": peer.address,
                "emails": peer.emails.split(",") if peer.emails else [],
                "line": peer.line,
            }
            for status, peer in _entries(knowledge)
        ],
    }


def _find(text: str, knowledge: "Knowledge") -> "KnownPeer":
    """Find the key that the user means.

    Raises:
        click.UsageError: the text is no key, or more than one key is meant by it.
        KeyFileError, PeerNotTrustedError: it is a file, but no usable certificate.
    """
    from rpc25519_tools.identity.known_peers import parse_key

    peer = parse_key(text)
    if peer is None and os.path.isfile(text):
        peer = _of_certificate(text)
    listed = [one for _, one in _entries(knowledge)]
    if peer is not None:
        same = [one for one in listed if one.key_id == peer.key_id]
        return same[0] if same else peer
    meant = {
        one.key_id: one
        for one in listed
        if text == one.address or text in one.emails.split(",")
    }
    if not meant:
        raise click.UsageError(
            f"{text!r} is no key, no certificate file, and not in the lists"
        )
    if len(meant) > 1:
        raise click.UsageError(
            f"{text!r} stands in the lists with {len(meant)} keys; give the key itself"
        )
    return next(iter(meant.values()))


def _of_certificate(path: str) -> "KnownPeer":
    from rpc25519_tools.identity.certificate import is_authority, peer_identity
    from rpc25519_tools.identity.known_peers import ANY_ADDRESS, KnownPeer
    from rpc25519_tools.identity.store import load_certificate

    certificate = load_certificate(path)
    if is_authority(certificate):
        raise click.UsageError(
            f"{printable(path)} is the certificate of an authority, whose key no peer "
            "shows; give the certificate or the key of the peer itself"
        )
    return KnownPeer.of(peer_identity(certificate), ANY_ADDRESS)
