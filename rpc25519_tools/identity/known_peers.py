"""Reads, writes and judges by lists of known keys (``known_client_keys`` and the like).

The format and most rules are the reference's (SECURITY-WIRE.md, section 5; rpc25519
v1.6.8, hostkey.go). A list has a line for each key that was met or approved::

    # known_pub_keys file: address pubkey-identity-string
    127.0.0.1 pubkey@edwardsRPC-ed25519-b58c-9ZWZ...qs:client@example.org

No list: nothing is checked or recorded. A list that may be written: an unknown key is
let in and recorded, trust on first use. A read-only list: an unknown key is refused,
lockdown. Ours beyond the reference:

- a second list, ``NAME.denied``, names keys that are never let in. A Go program does
  not know it, and would lose a mark in the first list when it rewrites that;
- a server that was dialled at an address for which the list has other keys only is
  refused, locked or not: it may be somebody else. The line that approves such a key
  names the same address, or ``*`` for all.

Whatever a list contains, reading it returns, or raises KeyFileError that names the
line. This module knows no files: bytes in, bytes and verdicts out.
"""

import ipaddress
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Final, Literal, Self

import base58

from rpc25519_tools.errors import KeyFileError, PeerNotTrustedError
from rpc25519_tools.identity.certificate import PeerIdentity, key_id
from rpc25519_tools.identity.printable import printable

#: Whose keys a list holds.
PeerRole = Literal["client", "server"]

#: What a list begins with.
HEADER: Final = "# known_pub_keys file: address pubkey-identity-string"
#: What stands in front of the key in a line.
PREFIX: Final = "pubkey@edwardsRPC-ed25519-b58c-"
#: The address of a key that was approved for every address.
ANY_ADDRESS: Final = "*"
#: Whose list a name belongs to when nobody says otherwise, as in the reference.
DEFAULT_NAMES: Final[Mapping[PeerRole, str]] = {
    "client": "known_client_keys",
    "server": "known_server_keys",
}
#: Added to the name of a list, the name of the list of denied keys beside it.
DENIED_SUFFIX: Final = ".denied"

#: Twenty thousand lines of the usual 140 bytes are 3 MiB.
MAX_LIST_BYTES: Final = 8 << 20
MAX_LINES: Final = 20_000
MAX_LINE_BYTES: Final = 4096
#: Even with four bytes for each character, what we write is shorter than that.
_MAX_EMAILS_LEN: Final = 600
_MAX_ADDRESS_LEN: Final = 255
#: SECURITY-WIRE.md, section 4.
_KEY_ID_LEN: Final = 51

#: The white space of Go's unicode.IsSpace; Python's own has four characters more.
_FIELD: Final = re.compile(
    "[^\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPeer:
    """One line of a list, or a peer that may become one.

    Attributes:
        address: a host without its port, or ANY_ADDRESS.
        key_id: the key as 51 characters of base58check.
        emails: joined with commas, as far as the line has them.
        line: its number, from 1; 0 where it stands in no list.
    """

    address: str
    key_id: str
    emails: str
    line: int = 0

    @classmethod
    def of(cls, identity: PeerIdentity, address: str) -> Self:
        """Describe a peer in the words of a list, cleaned."""
        return cls(
            address=clean_address(address),
            key_id=identity.key_id,
            emails=clean_emails(",".join(identity.emails)),
        )

    def describe(self) -> str:
        """Return ``e-mails (key)``, escaped, for people and logs."""
        return f"{printable(self.emails) or 'no e-mail'} ({self.key_id})"

    def format(self) -> str:
        """Return the line, without its end."""
        return f"{self.address} {PREFIX}{self.key_id}:{self.emails}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyList:
    """A list that was read.

    Attributes:
        lines: all of them as they stand, whatever they are, without their ends.
        peers: what they say, in order; a key may stand under several addresses.
    """

    lines: tuple[str, ...] = ()
    peers: tuple[KnownPeer, ...] = ()
    _by_key: Mapping[str, list[KnownPeer]] = field(init=False, repr=False)
    _by_address: Mapping[str, list[KnownPeer]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the indices."""
        by_key: dict[str, list[KnownPeer]] = {}
        by_address: dict[str, list[KnownPeer]] = {}
        for peer in self.peers:
            by_key.setdefault(peer.key_id, []).append(peer)
            by_address.setdefault(_same(peer.address), []).append(peer)
        object.__setattr__(self, "_by_key", by_key)
        object.__setattr__(self, "_by_address", by_address)

    def with_key(self, wanted: str) -> Collection[KnownPeer]:
        """Return the lines of a key."""
        return self._by_key.get(wanted, ())

    def at(self, address: str) -> Collection[KnownPeer]:
        """Return the lines of an address; that of all addresses is one of its own."""
        return self._by_address.get(_same(address), ())


NO_KEYS: Final = KeyList()


def parse_list(content: bytes, name: str, *, strict: bool = False) -> KeyList:
    """Read a list.

    Args:
        content: all of the file.
        name: of the file, for errors.
        strict: refuse lines with a single word too, which the reference skips: in a
            list of denied keys a skipped line would let somebody in.

    Raises:
        KeyFileError: a line is broken, or there are too many; the text says which.
    """
    shown = printable(name)
    if len(content) > MAX_LIST_BYTES:
        raise KeyFileError(f"{shown} has more than {MAX_LIST_BYTES} bytes")
    raw_lines = content.removesuffix(b"\n").split(b"\n") if content else []
    if len(raw_lines) > MAX_LINES:
        raise KeyFileError(f"{shown} has more than {MAX_LINES} lines")
    lines, peers = [], []
    for number, raw_line in enumerate(raw_lines, 1):
        try:
            peer = _parse_line(raw_line, number, strict=strict)
        except ValueError as exc:
            raise KeyFileError(f"{shown} line {number}: {exc}") from exc
        lines.append(raw_line.decode("utf-8", "surrogateescape"))
        if peer is not None:
            peers.append(peer)
    return KeyList(lines=tuple(lines), peers=tuple(peers))


def _parse_line(raw_line: bytes, number: int, *, strict: bool) -> KnownPeer | None:
    if len(raw_line) > MAX_LINE_BYTES:
        raise ValueError(f"it has more than {MAX_LINE_BYTES} bytes")
    if b"\0" in raw_line:
        raise ValueError("it has a zero byte; is this a list of keys?")
    words = _FIELD.findall(raw_line.decode("utf-8", "surrogateescape"))
    if not words or words[0].startswith("#"):
        return None
    if len(words) == 1:
        if strict:
            raise ValueError("expected an address and a key")
        return None
    address, identity = words[:2]
    if not identity.startswith(PREFIX):
        raise ValueError(f"the second word does not begin with {PREFIX}")
    key_text, colon, rest = identity.removeprefix(PREFIX).partition(":")
    if not colon:
        raise ValueError("there is no ':' after the key")
    _check_key_id(key_text)
    emails = rest.partition(":")[0]
    return KnownPeer(address=address, key_id=key_text, emails=emails, line=number)


@lru_cache(maxsize=MAX_LINES)  # decoding is slow, and lists are read again when longer
def _check_key_id(text: str) -> None:
    """Check that a text is a key in base58check, with a good check sum."""
    try:
        if len(text) == _KEY_ID_LEN:
            decoded = base58.b58decode_check(text)
            if len(decoded) == 33 and key_id(decoded[1:]) == text:
                return
    except ValueError:
        pass
    raise ValueError("its key is misspelt (the check sum is wrong)")


def parse_key(text: str) -> KnownPeer | None:
    """Read a key as a user types it; return None if the text is something else.

    Takes 64 hexadecimal digits, 51 characters of base58check, and the whole of what
    stands in a list, with its e-mails.
    """
    if re.fullmatch("[0-9a-fA-F]{64}", text):
        found = key_id(bytes.fromhex(text))
        return KnownPeer(address=ANY_ADDRESS, key_id=found, emails="")
    key_text, _, emails = text.removeprefix(PREFIX).partition(":")
    try:
        _check_key_id(key_text)
    except ValueError:
        return None
    return KnownPeer(address=ANY_ADDRESS, key_id=key_text, emails=clean_emails(emails))


def clean_emails(text: str) -> str:
    """Make one word of e-mails that a peer has in its certificate.

    White space, colons, and what is not printable would end the word, or the line, and
    the rest could pass for another; each becomes ``_``.
    """
    return _clean(text[:_MAX_EMAILS_LEN], unwanted=":")


def clean_address(text: str) -> str:
    """Make one word of a host; nothing becomes ANY_ADDRESS."""
    cleaned = _clean(text[:_MAX_ADDRESS_LEN], unwanted="")
    return "_" + cleaned[1:] if cleaned.startswith("#") else cleaned or ANY_ADDRESS


def _clean(text: str, *, unwanted: str) -> str:
    return "".join(
        "_" if char.isspace() or not char.isprintable() or char in unwanted else char
        for char in text
    )


def _same(address: str) -> str:
    """Return the form in which addresses are compared."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address.lower().removesuffix(".")


def format_list(lines: Iterable[str]) -> bytes:
    """Return the content of a list; an empty one gets the header."""
    kept = list(lines) or [HEADER]
    return "".join(f"{line}\n" for line in kept).encode("utf-8", "surrogateescape")


def added(keys: KeyList, peers: Iterable[KnownPeer]) -> bytes:
    """Return the content of a list with more lines at its end; all others stay."""
    return format_list([*(keys.lines or (HEADER,)), *(one.format() for one in peers)])


def removed(keys: KeyList, key: str) -> bytes:
    """Return the content of a list without the lines of a key; all others stay."""
    gone = {peer.line for peer in keys.with_key(key)}
    return format_list(
        line for number, line in enumerate(keys.lines, 1) if number not in gone
    )


class Verdict(Enum):
    """Why a peer is let in."""

    UNCHECKED = "there is no list"
    KNOWN = "its key is in the list"
    FIRST_USE = "its key is new and is to be recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """What both lists say at one moment.

    Attributes:
        role: whose keys they hold.
        name: of the first list's file, as the user wrote it.
        known: None where there is no such file.
        denied: empty where there is none.
        locked: whether unknown keys are refused.
    """

    role: PeerRole
    name: str
    known: KeyList | None
    denied: KeyList
    locked: bool

    def judge(self, peer: KnownPeer) -> Verdict:
        """Decide about a peer whose certificate is good.

        Raises:
            PeerNotTrustedError: it is not to be let in; the text says what to do.
        """
        shown = printable(self.name)
        if self.denied.with_key(peer.key_id):
            raise PeerNotTrustedError(
                f"{peer.describe()} is denied in {shown}{DENIED_SUFFIX}"
            )
        if self.known is None:
            return Verdict.UNCHECKED
        listed = self.known.with_key(peer.key_id)
        if self.role == "server":
            self._check_address(peer, [one.address for one in listed])
        if listed:
            return Verdict.KNOWN
        if self.locked:
            raise PeerNotTrustedError(
                f"{peer.describe()} is not in {shown}, which is locked; to let it in: "
                f"{self._approving(peer.key_id)}"
            )
        return Verdict.FIRST_USE

    def _check_address(self, peer: KnownPeer, listed_at: list[str]) -> None:
        """Refuse a server that took the place of another one."""
        assert self.known is not None
        before = [*self.known.at(peer.address), *self.denied.at(peer.address)]
        places = {_same(address) for address in listed_at}
        if not before or places & {_same(peer.address), ANY_ADDRESS}:
            return
        host = shlex.quote(printable(peer.address))
        raise PeerNotTrustedError(
            f"THE SERVER'S KEY HAS CHANGED: {printable(peer.address)} is now "
            f"{peer.describe()}, and was {before[-1].describe()} according to "
            f"{printable(self.name)}. Somebody may be pretending to be it. If you "
            "know that the new key is right: "
            f"{self._approving(peer.key_id)} --address {host}"
        )

    def _approving(self, key: str) -> str:
        """Return the command that approves a key."""
        file = shlex.quote(printable(self.name))
        return f"rpc25519 known approve --file {file} {key}"
