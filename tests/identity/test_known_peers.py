"""Lists of known keys: the format, what is refused, and who is let in."""

import contextlib
import random
from collections.abc import Callable

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import KeyFileError, PeerNotTrustedError, Rpc25519Error
from rpc25519_tools.identity.certificate import PeerIdentity, key_id, peer_identity
from rpc25519_tools.identity.known_peers import (
    ANY_ADDRESS,
    HEADER,
    MAX_LINE_BYTES,
    MAX_LINES,
    MAX_LIST_BYTES,
    NO_KEYS,
    PREFIX,
    KeyList,
    Knowledge,
    KnownPeer,
    PeerRole,
    Verdict,
    added,
    clean_address,
    clean_emails,
    format_list,
    parse_key,
    parse_list,
    removed,
)
from tests.fuzz import known_targets
from tests.identity.samples import DATA, golden_certificate

GO_FILES = ["known_client_keys", "known_client_keys.old", "known_server_keys"]


#: Of the right length, with a good check sum, but the version byte is 254.
OTHER_VERSION = base58.b58encode_check(b"\xfe" + bytes(32)).decode()


def key(number: int) -> str:
    return key_id(number.to_bytes(32, "big"))


def peer(number: int, address: str = "10.0.0.1", emails: str = "a@b") -> KnownPeer:
    return KnownPeer(address=address, key_id=key(number), emails=emails)


def list_of(*peers: KnownPeer) -> KeyList:
    return parse_list(added(NO_KEYS, peers), "list")


def knowledge(
    known: KeyList | None,
    denied: KeyList = NO_KEYS,
    *,
    role: PeerRole = "client",
    locked: bool = False,
) -> Knowledge:
    return Knowledge(role=role, name="list", known=known, denied=denied, locked=locked)


# The format.


@pytest.mark.parametrize("name", GO_FILES)
def test_what_go_wrote_is_read_and_would_be_written_the_same(name: str) -> None:
    content = (DATA / name).read_bytes()
    keys = parse_list(content, name)
    assert format_list(keys.lines) == content
    assert added(NO_KEYS, keys.peers) == content


@pytest.mark.parametrize(
    ("name", "holders"),
    [
        ("known_client_keys", ["client", "second"]),
        ("known_client_keys.old", ["client"]),
        ("known_server_keys", ["node"]),
    ],
)
def test_go_and_we_write_the_same_of_a_certificate(
    name: str, holders: list[str]
) -> None:
    peers = [
        KnownPeer.of(peer_identity(golden_certificate(holder)), "127.0.0.1")
        for holder in holders
    ]
    assert added(NO_KEYS, peers) == (DATA / name).read_bytes()


def line_of(number: int, *, emails: str = "a@b") -> str:
    return f"{PREFIX}{key(number)}:{emails}"


@pytest.mark.parametrize(
    ("line", "address", "emails"),
    [
        (f"h {line_of(1)}", "h", "a@b"),
        (f"\t h \t {line_of(1)}\r", "h", "a@b"),
        (f"h {line_of(1)} and more # words", "h", "a@b"),
        (f"h\u2003{line_of(1)}", "h", "a@b"),
        (f"h\x1cx {line_of(1)}", "h\x1cx", "a@b"),  # no white space for Go
        (f"h {line_of(1, emails='')}", "h", ""),
        (f"h {line_of(1, emails='a@b:c:d')}", "h", "a@b"),
        (f"h {line_of(1, emails='é@b,c@d')}", "h", "é@b,c@d"),
        (f"::1 {line_of(1)}", "::1", "a@b"),
    ],
)
def test_lines_are_read_as_go_reads_them(line: str, address: str, emails: str) -> None:
    (found,) = parse_list(line.encode(), "list").peers
    assert found == KnownPeer(address=address, key_id=key(1), emails=emails, line=1)


@pytest.mark.parametrize(
    "line",
    ["", " \t", "#", f"# h {line_of(1)}", f"  #h {line_of(1)}", "word", line_of(1)],
)
def test_other_lines_mean_nothing_and_stay(line: str) -> None:
    keys = parse_list(f"{line}\nh {line_of(2)}".encode(), "list")
    assert [one.key_id for one in keys.peers] == [key(2)]
    assert added(keys, [peer(3)]).decode() == (
        f"{line}\nh {line_of(2)}\n10.0.0.1 {line_of(3)}\n"
    )
    assert removed(keys, key(2)).decode() == f"{line}\n"


def test_the_other_version_is_as_long_as_ours() -> None:
    assert len(OTHER_VERSION) == len(key(1))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"h {PREFIX}{key(1)}", "no ':' after the key"),
        (f"h {key(1)}:a@b", "does not begin with pubkey@"),
        ("h ssh-ed25519 AAAA", "does not begin with pubkey@"),
        (f"h {PREFIX}:a@b", "misspelt"),
        (f"h {PREFIX}{key(1)[:-1]}:a@b", "misspelt"),
        (f"h {PREFIX}{key(1)[:-1]}é:a@b", "misspelt"),
        (f"h {PREFIX}{key(1)[::-1]}:a@b", "misspelt"),
        (f"h {PREFIX}{'1' * 51}:a@b", "misspelt"),
        (f"h {PREFIX}{OTHER_VERSION}:a@b", "misspelt"),
        (f"h\0 {line_of(1)}", "zero byte"),
        (f"h {line_of(1)} {'x' * MAX_LINE_BYTES}", "more than 4096 bytes"),
    ],
)
def test_a_broken_line_is_named(line: str, reason: str) -> None:
    content = f"{HEADER}\nh {line_of(2)}\n{line}\nh {line_of(3)}\n"
    with pytest.raises(KeyFileError, match=f"^list line 3: .*{reason}"):
        parse_list(content.encode(), "list")


def test_a_denied_list_may_not_have_lines_that_are_skipped() -> None:
    parse_list(line_of(1).encode(), "list")
    with pytest.raises(KeyFileError, match=r"^list line 1: expected an address"):
        parse_list(line_of(1).encode(), "list", strict=True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"#" * (MAX_LIST_BYTES + 1), "more than 8388608 bytes"),
        (b"\n" * (MAX_LINES + 1), "more than 20000 lines"),
    ],
)
def test_lists_are_bounded(content: bytes, reason: str) -> None:
    with pytest.raises(KeyFileError, match=f"^list has {reason}"):
        parse_list(content, "list")


def test_a_name_cannot_steer_the_terminal() -> None:
    with pytest.raises(KeyFileError) as caught:
        parse_list(b"h x\n", "li\x1b[2Jst")
    assert str(caught.value).isprintable()


def test_an_empty_list_begins_with_the_header() -> None:
    assert format_list(()) == f"{HEADER}\n".encode()
    assert added(parse_list(b"", "list"), []) == f"{HEADER}\n".encode()
    (found,) = list_of(peer(1)).peers
    assert found.line == 2


@given(
    st.lists(
        st.tuples(st.integers(0, 2**256 - 1), st.text(), st.text(), st.booleans()),
        max_size=6,
    )
)
def test_what_is_written_is_read_again(
    entries: list[tuple[int, str, str, bool]],
) -> None:
    keys = NO_KEYS
    expected = []
    for number, address, emails, comment in entries:
        identity = PeerIdentity(
            public_key=number.to_bytes(32, "big"),
            emails=tuple(emails.split(",")),
            certificate_der=b"",
        )
        new = KnownPeer.of(identity, address)
        expected.append((new.address, new.key_id, new.emails))
        content = added(keys, [new])
        if comment:
            content += "# \ud800\x1b comment\n".encode("utf-8", "surrogatepass")
        keys = parse_list(content, "list", strict=True)
    assert [(one.address, one.key_id, one.emails) for one in keys.peers] == expected
    assert parse_list(format_list(keys.lines), "list") == (
        keys if keys.lines else parse_list(format_list(()), "list")
    )
    for _, gone, _ in expected:
        left = parse_list(removed(keys, gone), "list").peers
        assert [one.key_id for one in left] == [
            one for _, one, _ in expected if one != gone
        ]


@given(st.text())
def test_emails_and_addresses_become_one_harmless_word(text: str) -> None:
    emails, address = clean_emails(text), clean_address(text)
    assert emails.isprintable()
    assert address.isprintable()
    assert not set(emails) & {" ", ":", "\n"}
    assert len(emails) <= 600
    assert 1 <= len(address) <= 255
    assert address.split() == [address]
    assert not address.startswith("#")


def test_the_longest_line_that_we_write_can_be_read() -> None:
    identity = PeerIdentity(
        public_key=bytes(32), emails=("\U0001f511" * 5000,), certificate_der=b""
    )
    (found,) = list_of(KnownPeer.of(identity, "\U0001f511" * 5000)).peers
    assert (len(found.emails), len(found.address)) == (600, 255)


def test_a_hostile_email_cannot_add_a_line() -> None:
    forged = f"x@y\n9.9.9.9 {line_of(2)}"
    identity = PeerIdentity(
        public_key=bytes(32), emails=(forged, "Ann <a:b>"), certificate_der=b""
    )
    (found,) = list_of(KnownPeer.of(identity, "h")).peers
    assert found.emails.startswith("x@y_9.9.9.9_pubkey@edwardsRPC")
    assert found.emails.endswith(",Ann_<a_b>")
    assert clean_address("") == ANY_ADDRESS
    assert clean_address("#h") == "_h"


@pytest.mark.parametrize(
    ("text", "emails"),
    [
        (key(7), ""),
        (f"{7:064x}", ""),
        (f"{7:064X}", ""),
        (line_of(7), "a@b"),
        (f"{key(7)}:a@b", "a@b"),
    ],
)
def test_a_key_can_be_typed_in_several_ways(text: str, emails: str) -> None:
    assert parse_key(text) == KnownPeer(
        address=ANY_ADDRESS, key_id=key(7), emails=emails
    )


@pytest.mark.parametrize("text", ["", "a@b", key(7)[:-1], "07" * 31, f"{key(7)} x"])
def test_what_is_no_key_is_not_taken_for_one(text: str) -> None:
    assert parse_key(text) is None


FUZZED: list[Callable[[bytes], None]] = [
    known_targets.known_list,
    known_targets.denied_list,
    known_targets.known_peer_texts,
    known_targets.known_key_text,
]


@pytest.mark.parametrize("target", FUZZED)
def test_changed_lists_end_in_our_own_errors_only(
    target: Callable[[bytes], None],
) -> None:
    rng = random.Random(5)
    seed = (DATA / "known_client_keys").read_bytes() * 2
    for _ in range(300):
        data = bytearray(seed)
        for _ in range(rng.randrange(1, 6)):
            position = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[position] = rng.randrange(256)
                case 1:
                    data[position:position] = rng.choice([b" ", b"\n", b"\0", b"#"])
                case _:
                    del data[position : position + rng.randrange(60)]
        with contextlib.suppress(Rpc25519Error):
            target(bytes(data))


# Who is let in.


def test_without_a_list_nothing_is_checked() -> None:
    assert knowledge(None).judge(peer(1)) is Verdict.UNCHECKED


def test_a_new_key_is_for_recording_while_the_list_is_writable() -> None:
    assert knowledge(NO_KEYS).judge(peer(1)) is Verdict.FIRST_USE


def test_a_locked_list_refuses_a_new_key_and_says_how_to_approve_it() -> None:
    with pytest.raises(
        PeerNotTrustedError,
        match=rf"a@b \({key(2)}\) is not in list, which is locked; to let it in: "
        f"rpc25519 known approve --file list {key(2)}$",
    ):
        knowledge(list_of(peer(1)), locked=True).judge(peer(2))


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.2", "elsewhere"])
def test_a_listed_client_is_let_in_from_anywhere(locked: bool, address: str) -> None:
    found = knowledge(list_of(peer(1)), locked=locked)
    assert found.judge(peer(1, address)) is Verdict.KNOWN


@pytest.mark.parametrize("known", [None, NO_KEYS, list_of(peer(1))])
@pytest.mark.parametrize("locked", [False, True])
def test_a_denied_key_is_never_let_in(known: KeyList | None, locked: bool) -> None:
    found = knowledge(known, list_of(peer(1)), locked=locked)
    with pytest.raises(PeerNotTrustedError, match=r"is denied in list\.denied$"):
        found.judge(peer(1, "somewhere else"))


@pytest.mark.parametrize("locked", [False, True])
def test_a_server_with_another_key_than_before_is_an_alarm(locked: bool) -> None:
    found = knowledge(list_of(peer(1, "host", "old@x")), role="server", locked=locked)
    with pytest.raises(
        PeerNotTrustedError,
        match="^THE SERVER'S KEY HAS CHANGED: host is now a@b .*, and was old@x .* "
        "according to list. .* rpc25519 known approve --file list "
        f"{key(2)} --address host$",
    ):
        found.judge(peer(2, "host"))


@pytest.mark.parametrize(
    ("listed", "dialled"),
    [
        ("host", "HOST"),
        ("host", "host."),
        ("::1", "0:0:0:0:0:0:0:1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_an_address_is_known_in_another_spelling(listed: str, dialled: str) -> None:
    found = knowledge(list_of(peer(1, listed)), role="server")
    with pytest.raises(PeerNotTrustedError, match="HAS CHANGED"):
        found.judge(peer(2, dialled))
    assert found.judge(peer(1, dialled)) is Verdict.KNOWN


def test_a_known_server_cannot_take_the_place_of_another_one() -> None:
    found = knowledge(list_of(peer(1, "one"), peer(2, "two")), role="server")
    with pytest.raises(PeerNotTrustedError, match="HAS CHANGED: two is now"):
        found.judge(peer(1, "two"))


@pytest.mark.parametrize("address", ["two", ANY_ADDRESS])
def test_an_approved_key_is_no_alarm(address: str) -> None:
    keys = list_of(peer(1, "one"), peer(2, "two"), peer(1, address))
    assert knowledge(keys, role="server").judge(peer(1, "two")) is Verdict.KNOWN
    assert knowledge(keys, role="server").judge(peer(2, "two")) is Verdict.KNOWN


def test_denying_a_servers_key_does_not_open_its_place_for_others() -> None:
    found = knowledge(NO_KEYS, list_of(peer(1, "host")), role="server")
    with pytest.raises(PeerNotTrustedError, match="HAS CHANGED"):
        found.judge(peer(2, "host"))
    assert found.judge(peer(2, "other")) is Verdict.FIRST_USE


def test_what_a_peer_says_of_itself_cannot_steer_the_terminal() -> None:
    hostile = KnownPeer(address="h", key_id=key(2), emails="\x1b[2J\u202e")
    found = knowledge(list_of(peer(1, "h")), role="server", locked=True)
    with pytest.raises(PeerNotTrustedError) as caught:
        found.judge(hostile)
    assert str(caught.value).isprintable()
