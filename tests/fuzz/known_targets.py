"""What a fuzzer can throw at lists of known keys; only our own errors come out."""

from rpc25519_tools.errors import PeerNotTrustedError
from rpc25519_tools.identity.known_peers import (
    HEADER,
    NO_KEYS,
    KeyList,
    Knowledge,
    KnownPeer,
    PeerRole,
    added,
    clean_address,
    clean_emails,
    format_list,
    parse_key,
    parse_list,
    removed,
)

_KEY = "9ZWZYQmC262jcpxETnEhHmuUDs4TdSWz5PXmXRYjyJoACSF29qs"


def known_list(data: bytes) -> None:
    """Read a list, judge by it, change it, and read what that makes."""
    _use(parse_list(data, "known"))


def denied_list(data: bytes) -> None:
    """Read a list of denied keys."""
    _use(parse_list(data, "denied", strict=True))


def known_peer_texts(data: bytes) -> None:
    """Write a peer with any address and e-mails: it stays one line, and one peer."""
    text = data.decode("utf-8", "surrogateescape")
    half = len(text) // 2
    peer = KnownPeer(
        address=clean_address(text[:half]),
        key_id=_KEY,
        emails=clean_emails(text[half:]),
    )
    (found,) = parse_list(added(NO_KEYS, [peer]), "list", strict=True).peers
    assert found == KnownPeer(
        address=peer.address, key_id=peer.key_id, emails=peer.emails, line=2
    )


def known_key_text(data: bytes) -> None:
    """Read what a user types for a key."""
    peer = parse_key(data.decode("utf-8", "surrogateescape"))
    if peer is not None:
        assert parse_key(peer.key_id) is not None


def _use(keys: KeyList) -> None:
    again = parse_list(format_list(keys.lines), "again")
    assert again.peers == keys.peers
    assert again.lines == (keys.lines or (HEADER,))
    for peer in keys.peers[:3]:
        fewer = parse_list(removed(keys, peer.key_id), "fewer")
        assert not fewer.with_key(peer.key_id)
        assert len(fewer.peers) == len(keys.peers) - len(keys.with_key(peer.key_id))
        more = parse_list(added(fewer, [peer]), "more")
        assert [(one.address, one.emails) for one in more.with_key(peer.key_id)] == [
            (peer.address, peer.emails)
        ]
    roles: tuple[PeerRole, ...] = ("client", "server")
    stranger = KnownPeer(address="127.0.0.1", key_id=_KEY, emails="")
    for role in roles:
        for locked in (False, True):
            knowledge = Knowledge(
                role=role, name="n", known=keys, denied=NO_KEYS, locked=locked
            )
            for peer in (stranger, *keys.peers[:3]):
                _judge(knowledge, peer)


def _judge(knowledge: Knowledge, peer: KnownPeer) -> None:
    refusal = ""
    try:
        knowledge.judge(peer)
    except PeerNotTrustedError as exc:
        refusal = str(exc)
    assert refusal.isprintable() or not refusal, repr(refusal)
