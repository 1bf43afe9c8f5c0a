"""The tunnel as a transport: both ends, every fault, and peers that cheat."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rpc25519_tools.errors import (
    BadMagicError,
    ConnectionLostError,
    DeadlineError,
    DecryptionError,
    FrameTooLargeError,
    HandshakeError,
    KeyFileError,
    LocalProtocolError,
    PeerNotTrustedError,
    RemoteProtocolError,
)
from rpc25519_tools.identity.pre_shared_key import PreSharedKey
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.limits import Limits, Startups
from rpc25519_tools.transport import psk
from rpc25519_tools.transport.base import Receiver, Transport
from rpc25519_tools.transport.psk import PskTransport, safe_codec
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.constants import MAGIC, MAX_BODY_LEN
from rpc25519_tools.wire.framing import FrameDecoder
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.handshake import PREFIX_LEN
from tests.helpers import until
from tests.rpc.memory import MemoryTransport, Plan, memory_pair
from tests.transport.peers import DAY, NOW, Authority, dialled
from tests.transport.tunnels import (
    AUTHORITY,
    CLIENT,
    SERVER,
    WRONG_KEY,
    Ends,
    HandMade,
    Pair,
    frame,
    settings,
    tunnel_dial,
    tunnel_listener,
)

#: Of the hello of CLIENT and SERVER, whose certificates are about equally long.
ABOUT_HELLO_LEN = 800

Beside = tuple[HandMade, Ends, MemoryTransport]


def hand_made_client(
    identity: LoadedIdentity = CLIENT,
    *,
    key: PreSharedKey | None = None,
    changes: dict[str, bytes] | None = None,
    timeout_s: float = 10.0,
) -> Beside:
    """Return a client made by hand, and what its server, which is ours, makes of it."""
    server = Ends()
    made: list[HandMade] = []

    def answer(below: Transport) -> Receiver:
        return psk.open_tunnel(
            below,
            settings(SERVER),
            accept=server.accept,
            failed=server.fail,
            timeout_s=timeout_s,
        )

    def begin(below: Transport) -> Receiver:
        made.append(
            HandMade(
                below,
                side="client",
                identity=identity,
                key=key or settings(SERVER).key,
                changes=changes,
            )
        )
        return made[0]

    end, _ = memory_pair(Plan(), Plan(), begin, answer)
    return made[0], server, end


def hand_made_server(
    identity: LoadedIdentity = SERVER, *, changes: dict[str, bytes] | None = None
) -> tuple[list[HandMade], Ends]:
    """Return a server made by hand, once it is there, and what our client sees."""
    client = Ends()
    made: list[HandMade] = []

    def begin(below: Transport) -> Receiver:
        made.append(HandMade(below, side="server", identity=identity, changes=changes))
        return made[0]

    def dial(below: Transport) -> Receiver:
        return PskTransport(
            below,
            settings(CLIENT),
            side="client",
            accept=client.accept,
            failed=client.fail,
        )

    memory_pair(Plan(), Plan(), dial, begin)
    return made, client


# What goes right


@pytest.mark.parametrize("segments", [(), (1,), (7, 100, 3)])
async def test_frames_go_both_ways(segments: tuple[int, ...]) -> None:
    plan = Plan(segments=segments)
    pair = await Pair.make(up=plan, down=plan).opened()
    up = frame(b"to the server") + frame(b"x" * 3000)
    pair.client.one.transport.write([up])
    pair.server.one.transport.write([frame(b"to the client")])
    await until(lambda: len(pair.server.data) == len(up) and pair.client.data)
    assert pair.server.data == up
    assert pair.client.data == frame(b"to the client")


async def test_writes_may_be_cut_anywhere() -> None:
    pair = await Pair.make().opened()
    stream = frame(b"one") + frame(b"two" * 20_000) + frame(b"")
    whole = memoryview(stream)
    cuts = [0, 3, 16, 17, 200, 40_000, len(stream) - 5, len(stream)]
    pieces = [whole[a:b] for a, b in pairwise(cuts)]
    pair.client.one.transport.write(pieces[:3])
    for piece in pieces[3:]:
        pair.client.one.transport.write([piece])
    await until(lambda: len(pair.server.data) == len(stream))
    assert pair.server.data == stream
    assert len(FrameDecoder(bytearray(100)).receive_data(pair.server.data)) == 3


async def test_an_empty_body_is_a_message_too() -> None:
    pair = await Pair.make().opened()
    empty = MAGIC + bytes(9)
    pair.client.one.transport.write([empty, empty + frame(b"after")])
    await until(lambda: pair.server.data.endswith(b"after"))
    assert pair.server.data == empty + empty + frame(b"after")


async def test_what_fits_a_frame_but_no_envelope_ends_the_connection() -> None:
    pair = await Pair.make().opened()
    limit = MAX_BODY_LEN - 36
    header = MAGIC + b"\0" + (limit + 1).to_bytes(8, "big")
    pair.client.one.transport.write([header, b"begin"])
    assert isinstance(pair.client.error, LocalProtocolError)
    assert str(limit) in str(pair.client.error)
    await until(lambda: pair.server.is_over)
    assert not pair.server.data


async def test_nothing_of_it_is_readable_below() -> None:
    seen: list[bytes] = []
    pair = await Pair.make().opened()
    below = pair.client_end
    write = below.write

    def tap(buffers: Sequence[Buffer]) -> None:
        seen.extend(map(bytes, buffers))
        write(buffers)

    below.write = tap  # type: ignore[method-assign]  # for what goes through
    pair.client.one.transport.write([frame(b"secret words")])
    await until(lambda: pair.server.data)
    assert b"secret words" not in b"".join(seen)
    assert seen


async def test_what_is_known_of_the_peer() -> None:
    pair = await Pair.make().opened()
    for end, peer in ((pair.client, SERVER), (pair.server, CLIENT)):
        transport = end.one.transport
        assert transport.peer is not None
        assert transport.peer.emails == (f"{peer.name}@example.org",)
        assert "pre-shared key" in transport.security
        assert transport.network == "tcp"
        assert transport.fileno() == -1
    assert pair.client.one.transport.local_address == "127.0.0.1:50000"


async def test_back_pressure_passes_through() -> None:
    pair = await Pair.make().opened()
    pair.server.one.transport.pause_reading()
    assert pair.server_end.paused
    big = frame(b"b" * 3_000_000)
    pair.client.one.transport.write([big])
    assert pair.client.one.transport.unsent_len > len(big)
    await asyncio.sleep(0)
    assert not pair.server.data
    pair.server.one.transport.resume_reading()
    await until(lambda: len(pair.server.data) == len(big))
    assert pair.client.one.writable_calls == 1
    assert pair.client.one.transport.unsent_len == 0


async def test_an_orderly_end_is_passed_on() -> None:
    pair = await Pair.make().opened()
    pair.client.one.transport.write([frame(b"last words")])
    pair.client.one.transport.close()
    await pair.ended()
    assert pair.server.data == frame(b"last words")
    assert pair.server.one.error is None


async def test_a_server_of_ours_confirms_the_key_and_follows_any_codec() -> None:
    pair = await Pair.make().opened()
    for end in (pair.client, pair.server):
        for codec in Codec:
            assert safe_codec(end.one.transport, codec) is codec


async def test_a_server_of_go_gets_s2_or_nothing_packed() -> None:
    _, client = hand_made_server()
    await until(lambda: client.opened)
    for codec in Codec:
        safe = Codec.S2 if codec is Codec.S2 else Codec.NONE_ONCE
        assert safe_codec(client.one.transport, codec) is safe
    assert safe_codec(MemoryTransport(Plan(), "", ""), Codec.LZ4) is Codec.LZ4


# Keys and certificates


async def test_a_wrong_key_is_noticed_by_both_sides_at_once() -> None:
    pair = await Pair.make(client=settings(CLIENT, WRONG_KEY)).ended()
    assert isinstance(pair.client.error, DecryptionError)
    assert "another pre-shared key" in str(pair.client.error)
    assert not pair.client.opened
    assert isinstance(pair.server.error, DecryptionError)
    assert not pair.server.data


async def test_a_client_with_a_wrong_key_gets_nothing_in() -> None:
    client, server, _ = hand_made_client(key=WRONG_KEY)
    await until(lambda: client.sealer)
    client.send(client.sealed(frame(b"guess")))
    await until(lambda: server.is_over)
    assert isinstance(server.error, DecryptionError)
    assert not server.data


async def test_a_server_that_hangs_up_unheard_may_have_another_key() -> None:
    made, client = hand_made_server()
    await until(lambda: client.opened)
    made[0]._below.abort()
    await until(lambda: client.is_over)
    assert isinstance(client.error, HandshakeError)
    assert "pre-shared key is another one" in str(client.error)


CHEATS: list[tuple[str, Callable[[], LoadedIdentity], str]] = [
    ("expired", lambda: AUTHORITY.identity(begin=NOW - 2 * DAY, end=NOW - DAY), "exp"),
    (
        "not yet valid",
        lambda: AUTHORITY.identity(begin=NOW + timedelta(hours=1)),
        "not valid before",
    ),
    ("of a stranger", lambda: Authority.make().identity(trusts=AUTHORITY), "not"),
    ("self-signed", AUTHORITY.self_signed, "not"),
]


@pytest.mark.parametrize(("name", "make", "reason"), CHEATS)
async def test_bad_certificates_are_refused_by_both_sides(
    name: str, make: Callable[[], LoadedIdentity], reason: str
) -> None:
    cheat = make()
    client, server, _ = hand_made_client(cheat)
    await until(lambda: server.is_over and client.lost)
    _, ours = hand_made_server(cheat)
    await until(lambda: ours.is_over)
    for end in (server, ours):
        assert isinstance(end.error, PeerNotTrustedError), name
        assert reason in str(end.error)
        assert not end.opened


async def test_a_certificate_for_one_role_is_refused_in_the_other() -> None:
    _, server, _ = hand_made_client(AUTHORITY.identity(usages=("server",)))
    await until(lambda: server.is_over)
    _, client = hand_made_server(AUTHORITY.identity(usages=("client",)))
    await until(lambda: client.is_over)
    for end in (server, client):
        assert isinstance(end.error, PeerNotTrustedError)
        assert "usage" in str(end.error)
        assert not end.opened


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"ephemeral": bytes(32)}, HandshakeError, "all zero"),
        ({"signature": b"s" * 64}, HandshakeError, "signature"),
        ({"certificate_der": b"no certificate"}, PeerNotTrustedError, "no certif"),
    ],
)
async def test_bad_handshakes_are_refused_by_both_sides(
    changes: dict[str, bytes], kind: type[Exception], reason: str
) -> None:
    client, server, _ = hand_made_client(changes=changes)
    await until(lambda: server.is_over and client.lost)
    _, ours = hand_made_server(changes=changes)
    await until(lambda: ours.is_over)
    for end in (server, ours):
        assert isinstance(end.error, kind)
        assert reason in str(end.error)


async def test_a_key_of_small_order_is_refused() -> None:
    low = b"\x01" + bytes(31)
    changes = {"ephemeral": low, "signature": CLIENT.private_key.sign(low)}
    _, server, _ = hand_made_client(changes=changes)
    await until(lambda: server.is_over)
    assert isinstance(server.error, HandshakeError)
    assert "not usable" in str(server.error)


async def test_a_certificate_of_somebody_else_does_not_help() -> None:
    thief = LoadedIdentity(
        name="thief",
        certificate=CLIENT.certificate,
        private_key=Ed25519PrivateKey.generate(),
        ca=AUTHORITY.certificate,
    )
    _, server, _ = hand_made_client(thief)
    await until(lambda: server.is_over)
    assert "signature" in str(server.error)


def test_a_certificate_that_does_not_fit_is_refused_before_anything() -> None:
    with pytest.raises(KeyFileError, match="at most 641"):
        settings(AUTHORITY.identity("e" * 200))


# What happens on the way


@pytest.mark.parametrize("at", [0, 5, 7, 8, 30, 300, 700, ABOUT_HELLO_LEN - 60])
async def test_damage_in_a_handshake_ends_it(at: int) -> None:
    for up, down in (({at}, set()), (set(), {at})):
        pair = Pair.make(
            up=Plan(corrupt_at=frozenset(up)),
            down=Plan(corrupt_at=frozenset(down)),
        )
        await pair.ended()
        assert isinstance(pair.client.error, HandshakeError)
        assert not pair.client.opened
        assert not pair.server.data


@pytest.mark.parametrize("region", ["length", "low length", "nonce", "text", "tag"])
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_damage_of_a_message_ends_the_connection_without_data(
    region: str, direction: str
) -> None:
    pair = await Pair.make().opened()
    writer, reader = pair.client, pair.server
    end = pair.client_end
    if direction == "down":
        writer, reader, end = reader, writer, pair.server_end
    message = frame(b"fragile")
    at = {"length": 0, "low length": 7, "nonce": 10, "text": 25, "tag": 8 + 12 + 40}
    end.plan.corrupt_at = frozenset({end.delivered + at[region]})
    # The second one is there for a longer length to be filled.
    writer.one.transport.write([message, frame(b"x" * 400)])
    await until(lambda: reader.is_over)
    assert isinstance(reader.error, DecryptionError | FrameTooLargeError)
    assert reader.data == b""


@pytest.mark.parametrize("order", [(0, 0), (1, 0), (0, 2), (0, 1, 0)])
async def test_replayed_swapped_or_missing_messages_end_the_connection(
    order: tuple[int, ...],
) -> None:
    client, server, _ = hand_made_client()
    await until(lambda: client.sealer)
    frames = [frame(b"zero"), frame(b"one"), frame(b"two")]
    envelopes = [client.sealed(one) for one in frames]
    for number in order:
        client.send(envelopes[number])
    await until(lambda: server.is_over)
    assert isinstance(server.error, DecryptionError)
    assert server.data == b"".join(frames[number] for number in order[:-1])


async def test_a_message_sent_back_to_its_sender_ends_the_connection() -> None:
    made, client = hand_made_server()
    await until(lambda: client.opened)
    mirror = made[0]
    mirror.buffer_updated = lambda count: mirror.send(bytes(mirror._memory[:count]))  # type: ignore[method-assign]  # a mirror
    client.one.transport.write([frame(b"echo me")])
    await until(lambda: client.is_over)
    assert not client.data


@pytest.mark.parametrize("missing", [1, 20, 50])
async def test_an_end_inside_a_message_is_no_orderly_one(missing: int) -> None:
    client, server, end = hand_made_client()
    await until(lambda: client.sealer)
    client.send(client.sealed(frame(b"whole")))
    client.send(client.sealed(frame(b"half"))[:-missing])
    end.close()
    await until(lambda: server.is_over)
    assert isinstance(server.error, ConnectionLostError)
    assert server.data == frame(b"whole")


@pytest.mark.parametrize(
    ("length", "kind"),
    [
        (0, RemoteProtocolError),
        (27, RemoteProtocolError),
        (35, RemoteProtocolError),
        (64 << 20, FrameTooLargeError),
        ((1 << 64) - 1, FrameTooLargeError),
    ],
)
async def test_impossible_lengths_end_the_connection(
    length: int, kind: type[Exception]
) -> None:
    client, server, _ = hand_made_client()
    await until(lambda: client.sealer)
    client.send(length.to_bytes(8, "big"))
    await until(lambda: server.is_over)
    assert isinstance(server.error, kind)


async def test_silence_and_slow_drips_end_in_time() -> None:
    hello_stalls = Plan(stall_at=PREFIX_LEN + 10)
    drip = Plan(segments=(1,), stall_at=400)
    for plan in (Plan(stall_at=0), hello_stalls, drip):
        pair = Pair.make(up=plan, timeout_s=0.05)
        await pair.ended()
        assert "within 0.05 s" in str(pair.server.error)
        assert isinstance(pair.client.error, HandshakeError)


async def test_handshakes_are_bounded_in_number() -> None:
    limits = Limits(max_startups=Startups(start=2, rate=100, full=2))
    async with tunnel_listener(
        tls=None, tunnel=settings(SERVER), limits=limits
    ) as found:
        host, port = found.address.rsplit(":", 1)
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(5)]
        # The oldest ones make room; a client that shows who it is gets in beside them.
        good = await tunnel_dial(found.address, tls=None, tunnel=settings(CLIENT))
        await until(lambda: found.accepted)
        for reader, _ in silent[:3]:
            assert await reader.read() == b""
        assert len(found.accepted) == 1
        assert "too many clients in their handshake" in str(found.failures[0])
        good.transport.close()
        for _, writer in silent:
            writer.close()


# Over sockets


@pytest.mark.parametrize("tls", [False, True])
async def test_over_sockets(tls: bool) -> None:
    async with tunnel_listener(
        tls=SERVER if tls else None, tunnel=settings(SERVER)
    ) as found:
        recorder = await tunnel_dial(
            found.address, tls=CLIENT if tls else None, tunnel=settings(CLIENT)
        )
        big = frame(b"B" * 3_000_000)
        recorder.transport.write([big])
        await until(lambda: found.accepted)
        await until(lambda: len(found.accepted[0].data) == len(big))
        assert bytes(found.accepted[0].data) == big
        security = recorder.transport.security
        assert security.startswith("TLSv1.3" if tls else "plain TCP, inside it")
        assert "nothing is protected" not in security
        recorder.transport.close()
        await until(lambda: recorder.lost and found.accepted[0].lost)


async def test_both_layers_must_show_the_same_key() -> None:
    other = AUTHORITY.identity("other")
    async with tunnel_listener(tls=SERVER, tunnel=settings(SERVER)) as found:
        with pytest.raises(HandshakeError, match="refuses our certificate"):
            await tunnel_dial(found.address, tls=CLIENT, tunnel=settings(other))
        await until(lambda: found.failures)
        assert "another one inside" in str(found.failure)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_tunnel_on_one_side_only(tls: bool) -> None:
    server, client = (SERVER, CLIENT) if tls else (None, None)
    async with (
        tunnel_listener(tls=server, tunnel=settings(SERVER)) as found,
        dialled(found.address, client) as plain,
    ):
        plain.transport.write([frame(b"hello")])
        await until(lambda: plain.lost and found.failures)
        assert "does not use a pre-shared key" in str(found.failure)
        with pytest.raises(BadMagicError, match="uses a pre-shared key"):
            FrameDecoder(bytearray(100)).receive_data(plain.data)


async def test_a_silent_server_is_given_up() -> None:
    async with tunnel_listener(tls=None, tunnel=None) as found:
        with pytest.raises(DeadlineError, match="pre-shared-key handshake"):
            await tunnel_dial(
                found.address, tls=None, tunnel=settings(CLIENT), timeout_s=0.1
            )


async def test_a_listener_that_closes_ends_handshakes() -> None:
    async with (
        tunnel_listener(tls=None, tunnel=settings(SERVER)) as found,
        dialled(found.address, None) as plain,
    ):
        plain.transport.write([bytes(3)])
        await asyncio.sleep(0.01)
        found.close()
        await until(lambda: plain.lost)
