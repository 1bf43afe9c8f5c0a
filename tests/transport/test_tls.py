"""Handshakes with friends, strangers and openssl, and bytes through TLS."""

import asyncio
import contextlib
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from OpenSSL import SSL

from rpc25519_tools.errors import (
    BadMagicError,
    ConnectionLostError,
    DeadlineError,
    HandshakeError,
    PeerNotTrustedError,
)
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.limits import Limits
from rpc25519_tools.transport.base import (
    ENCRYPTED_LEN,
    WRITE_HIGH_WATER_LEN,
    scratch_buffer,
)
from rpc25519_tools.transport.tls import TlsTransport, tls_context
from rpc25519_tools.transport.tls_records import FastRecords
from rpc25519_tools.wire.constants import MIB
from rpc25519_tools.wire.framing import FrameDecoder
from tests.helpers import until
from tests.transport.peers import (
    DAY,
    NOW,
    Authority,
    Listening,
    OpensslServer,
    accepted,
    dialled,
    listening,
    s_client,
    write_pem,
)

SUITE = "TLS_CHACHA20_POLY1305_SHA256"
#: From this OpenSSL on there is X25519MLKEM768.
HYBRID_FROM = 0x30500000


# Friends.


async def test_both_ends_prove_who_they_are(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with listening(node) as found, dialled(found.address, client) as ours:
        theirs = await accepted(found)
        assert ours.transport.peer is not None
        assert ours.transport.peer.emails == ("node@example.org",)
        assert theirs.transport.peer is not None
        assert theirs.transport.peer.emails == ("client@example.org",)
        assert ours.transport.local_address == theirs.transport.remote_address
        assert ours.transport.remote_address == found.address
        assert {ours.transport.network, theirs.transport.network} == {"tcp"}


async def test_the_connection_is_tls_1_3_with_the_one_suite(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with listening(node) as found, dialled(found.address, client) as ours:
        theirs = await accepted(found)
        for end in (ours, theirs):
            version, suite, group = end.transport.security.split()
            assert (version, suite) == ("TLSv1.3", SUITE)
            if SSL.OPENSSL_VERSION_NUMBER >= HYBRID_FROM:
                assert group == "X25519MLKEM768"
            else:
                assert group == "x25519"


async def test_bytes_arrive_whole_both_ways(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    up, down = random.Random(1).randbytes(3 * MIB + 1), random.Random(2).randbytes(MIB)
    async with listening(node) as found, dialled(found.address, client) as ours:
        theirs = await accepted(found)
        ours.transport.write([up[:1], b"", memoryview(up)[1:]])
        theirs.transport.write([bytearray(down)])
        await until(lambda: len(theirs.data) >= len(up))
        await until(lambda: len(ours.data) >= len(down))
        assert theirs.data == up
        assert ours.data == down
        assert ours.transport.unsent_len == theirs.transport.unsent_len == 0


@pytest.mark.parametrize("first_len", [1, 16_000, 100_000])
async def test_a_chunk_of_records_arrives_whole_in_memory_that_all_share(
    node: LoadedIdentity, client: LoadedIdentity, first_len: int
) -> None:
    # 16,000 bytes are a part of a record, so that the next 64 KiB fill up four long
    # ones and bring a shorter one: more comes out than went in, while the rest of the
    # chunk still waits to be decrypted.
    lengths = ([16 * 1024] * 4 + [10_000]) * 6
    sent = [random.Random(3).randbytes(length) for length in lengths]
    async with listening(node) as found, dialled(found.address, client) as ours:
        theirs = await accepted(found)
        theirs.use(scratch_buffer())  # as a FrameDecoder does
        near, far = ours.transport, theirs.transport
        assert isinstance(near, TlsTransport)
        assert isinstance(far, TlsTransport)
        for record in sent:
            near._records.write(record)
        memory = memoryview(bytearray(ENCRYPTED_LEN))
        encrypted = memory[: near._records.take_encrypted(memory)]
        for piece in (encrypted[:first_len], encrypted[first_len:]):
            far.get_buffer(-1)[: len(piece)] = piece
            far.buffer_updated(len(piece))
        assert theirs.data == b"".join(sent)
        assert not theirs.lost


async def test_closing_sends_what_is_queued_and_ends_in_order(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with listening(node) as found, dialled(found.address, client) as ours:
        theirs = await accepted(found)
        ours.transport.write([bytes(8 * MIB)])
        assert ours.transport.unsent_len > 0
        ours.transport.close()
        ours.transport.close()
        ours.transport.write([b"too late"])
        await until(lambda: theirs.lost and ours.lost)
        assert len(theirs.data) == 8 * MIB
        assert theirs.error is None
        assert ours.error is None


async def test_aborting_drops_what_is_queued(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with listening(node) as found, dialled(found.address, client) as ours:
        theirs = await accepted(found)
        theirs.transport.pause_reading()
        ours.transport.write([bytes(32 * MIB)])
        assert ours.transport.unsent_len > 0
        ours.transport.abort()
        assert ours.transport.unsent_len == 0
        theirs.transport.resume_reading()
        await until(lambda: theirs.lost and ours.lost)
        assert len(theirs.data) < 32 * MIB


async def test_a_paused_reader_makes_the_writer_wait(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    async with listening(node) as found, dialled(found.address, client) as ours:
        theirs = await accepted(found)
        theirs.transport.pause_reading()
        ours.transport.write([bytes(32 * MIB)])
        await until(lambda: ours.transport.unsent_len < 32 * MIB)
        assert ours.transport.unsent_len > WRITE_HIGH_WATER_LEN
        assert ours.writable_calls == 0
        theirs.transport.resume_reading()
        await until(lambda: len(theirs.data) == 32 * MIB)
        assert ours.writable_calls == 1
        assert ours.transport.unsent_len == 0


@pytest.mark.parametrize("verified", ["client", "server", "neither"])
async def test_a_side_that_does_not_verify_takes_a_stranger(
    authority: Authority, verified: str
) -> None:
    stranger = Authority.make()
    ours, theirs = authority.identity("ours"), stranger.identity("theirs")
    server, client = (theirs, ours) if verified == "client" else (ours, theirs)
    if verified == "client":  # that is, the server checks its client
        server = stranger.identity("theirs", trusts=authority)
    if verified == "server":
        client = stranger.identity("theirs", trusts=authority)
    async with (
        listening(server, verify=verified == "client") as found,
        dialled(found.address, client, verify=verified == "server") as dialling,
    ):
        listened = await accepted(found)
        assert (dialling.transport.peer is not None) == (verified == "server")
        assert (listened.transport.peer is not None) == (verified == "client")
        dialling.transport.write([b"hello"])
        await until(lambda: listened.data == b"hello")


async def test_who_was_never_judged_is_not_let_in_whatever_openssl_says(
    authority: Authority,
) -> None:
    """Its settings alone would let anybody in who has no certificate."""
    server, client = authority.identity("server"), authority.identity("client")
    found = Listening()
    lenient = tls_context(server, side="server", verify=False)

    def accepting() -> TlsTransport:
        return TlsTransport(
            lenient,
            authorities=server.authorities,
            side="server",
            accept=found.accept,
            failed=found.fail,
        )

    loop = asyncio.get_running_loop()
    listener = await loop.create_server(accepting, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with dialled(f"127.0.0.1:{port}", client) as ours:
        await until(lambda: found.outcomes)
        assert "without a certificate" in str(found.failure)
        assert isinstance(found.failure, PeerNotTrustedError)
        await until(lambda: ours.lost)
    listener.close()


async def test_connections_of_one_client_share_what_they_can(
    node: LoadedIdentity, client: LoadedIdentity, authority: Authority
) -> None:
    again = replace(client, name="the same, loaded again")
    other = authority.identity("other")
    async with (
        listening(node) as found,
        dialled(found.address, client) as one,
        dialled(found.address, again) as two,
        dialled(found.address, other) as three,
        dialled(found.address, client, verify=False) as four,
    ):
        contexts = [end.transport._ssl.get_context() for end in (one, two, three, four)]  # type: ignore[attr-defined]
        assert contexts[0] is contexts[1]
        assert len({id(context) for context in contexts}) == 3
        await until(lambda: len(found.accepted) == 4)
        emails = {theirs.transport.peer.emails for theirs in found.accepted}  # type: ignore[union-attr]
        assert emails == {("client@example.org",), ("other@example.org",)}


# Strangers.


async def refused_server(server: LoadedIdentity, client: LoadedIdentity) -> str:
    """Connect to a server that must be refused; return the client's reason."""
    async with listening(server) as found:
        with pytest.raises(PeerNotTrustedError) as caught:
            async with dialled(found.address, client):
                pass
        await until(lambda: found.outcomes, what="the server to notice")
        assert isinstance(found.failure, HandshakeError)
        return str(caught.value)


async def refused_client(server: LoadedIdentity, client: LoadedIdentity) -> str:
    """Let a server refuse a client; return the server's reason."""
    async with listening(server) as found, dialled(found.address, client) as ours:
        ours.transport.write([b"a request, sent before the verdict is known"])
        await until(lambda: found.outcomes, what="the server's verdict")
        assert isinstance(found.failure, PeerNotTrustedError)
        await until(lambda: ours.lost, what="the client to hear the verdict")
        assert isinstance(ours.error, PeerNotTrustedError)
        assert str(ours.error).startswith("the server refused our certificate (")
        return str(found.failure)


async def test_a_client_refuses_a_server_of_another_authority(
    client: LoadedIdentity,
) -> None:
    reason = await refused_server(Authority.make().identity(), client)
    assert re.search("authority", reason), reason


async def test_a_server_refuses_a_client_of_another_authority(
    authority: Authority, node: LoadedIdentity
) -> None:
    stranger = Authority.make().identity(trusts=authority)
    reason = await refused_client(node, stranger)
    assert re.search("authority", reason), reason


async def test_a_self_signed_server_is_refused(
    authority: Authority, client: LoadedIdentity
) -> None:
    await refused_server(authority.self_signed(), client)


async def test_a_self_signed_client_is_refused(
    authority: Authority, node: LoadedIdentity
) -> None:
    await refused_client(node, authority.self_signed())


LIVES = {
    "expired": ((NOW - 3 * DAY, NOW - DAY), r"expired( on |$)"),
    "not valid yet": ((NOW + DAY, NOW + 2 * DAY), r"not valid (before |yet$)"),
}


@pytest.mark.parametrize("life", LIVES)
async def test_a_server_outside_its_life_is_refused(
    authority: Authority, client: LoadedIdentity, life: str
) -> None:
    (begin, end), text = LIVES[life]
    server = authority.identity(begin=begin, end=end)
    assert re.search(text, await refused_server(server, client))


@pytest.mark.parametrize("life", LIVES)
async def test_a_client_outside_its_life_is_refused(
    authority: Authority, node: LoadedIdentity, life: str
) -> None:
    (begin, end), text = LIVES[life]
    client = authority.identity(begin=begin, end=end)
    assert re.search(text, await refused_client(node, client))


@pytest.mark.parametrize("life", LIVES)
async def test_an_authority_outside_its_life_is_refused(life: str) -> None:
    (begin, end), text = LIVES[life]
    authority = Authority.make(begin=begin, end=end)
    reason = await refused_server(authority.identity("n"), authority.identity("c"))
    assert re.search(text, reason)
    assert "authority" in reason


async def test_a_certificate_for_clients_is_refused_as_a_server(
    authority: Authority, client: LoadedIdentity
) -> None:
    server = authority.identity(usages=("client",))
    reason = await refused_server(server, client)
    assert "does not allow use as a server" in reason


async def test_a_certificate_for_servers_is_refused_as_a_client(
    authority: Authority, node: LoadedIdentity
) -> None:
    client = authority.identity(usages=("server",))
    reason = await refused_client(node, client)
    assert "does not allow use as a client" in reason


# What does not speak TLS.


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(bytes.fromhex("b35d1839ac8e1d") + bytes(40), id="frame"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="http"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="ssh"),
    ],
)
async def test_a_client_that_speaks_no_tls_is_told_apart(
    node: LoadedIdentity, data: bytes
) -> None:
    async with listening(node) as found, dialled(found.address, None) as ours:
        ours.transport.write([data])
        await until(lambda: found.outcomes)
        assert str(found.failure) == (
            "the client does not speak TLS (give -tcp for plain TCP)"
        )
        await until(lambda: ours.lost)
        with pytest.raises(BadMagicError, match="the peer speaks TLS"):
            FrameDecoder(bytearray(100)).receive_data(ours.data)


async def test_a_server_that_speaks_no_tls_is_told_apart(
    client: LoadedIdentity,
) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    with pytest.raises(HandshakeError, match="the server does not speak TLS"):
        async with dialled(f"{host}:{port}", client):
            pass
    server.close()


async def test_a_server_that_hangs_up_on_tls_is_told_apart(
    client: LoadedIdentity,
) -> None:
    async with listening(None) as found:
        dialling = asyncio.create_task(dial_and_leave(found.address, client))
        await until(lambda: found.accepted)
        found.accepted[0].transport.close()
        with pytest.raises(HandshakeError, match="closed the connection during"):
            await dialling


async def dial_and_leave(address: str, identity: LoadedIdentity) -> None:
    async with dialled(address, identity):
        pass


async def test_a_client_that_says_nothing_is_given_up(node: LoadedIdentity) -> None:
    async with (
        listening(node, limits=Limits(handshake_timeout_s=0.05)) as found,
        dialled(found.address, None) as ours,
    ):
        await until(lambda: ours.lost, what="the server to hang up")
        assert str(found.failure) == "no TLS handshake within 0.05 s"


async def test_a_server_that_says_nothing_is_given_up(client: LoadedIdentity) -> None:
    async with listening(None) as found:
        with pytest.raises(DeadlineError, match=r"no answer from .* within 0\.1 s"):
            async with dialled(found.address, client, timeout_s=0.1):
                pass
        await until(lambda: found.accepted[0].lost, what="the client to hang up")


async def test_a_client_that_leaves_during_the_handshake_is_noted(
    node: LoadedIdentity,
) -> None:
    async with listening(node) as found:
        async with dialled(found.address, None) as ours:
            ours.transport.close()
            await until(lambda: ours.lost)
        await until(lambda: found.outcomes)
        assert "hung up without TLS handshake" in str(found.failure)


async def test_openssl_gets_no_more_of_a_handshake_than_it_may_have(
    node: LoadedIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps a first message until that is whole, however much it announces."""
    fed: list[int] = []
    feed = FastRecords.feed

    def counted(records: FastRecords, encrypted: memoryview) -> None:
        fed.append(len(encrypted))
        feed(records, encrypted)

    monkeypatch.setattr(FastRecords, "feed", counted)
    body = b"\x01" + (120_000).to_bytes(3, "big") + bytes(100_000)
    records = b"".join(
        b"\x16\x03\x01" + len(body[start : start + 16_384]).to_bytes(2, "big")
        + body[start : start + 16_384]
        for start in range(0, len(body), 16_384)
    )  # fmt: skip
    async with listening(node) as found:
        host, port = found.address.rsplit(":", 1)
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(records)
        await until(lambda: found.outcomes)
        assert "more than 32768 bytes" in str(found.failure)
        assert max(fed) <= 16 * 1024
        assert sum(fed) <= 48 * 1024
        writer.close()


async def test_handshakes_under_way_end_with_the_listener(
    node: LoadedIdentity, no_leaked_fds: None
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with listening(node) as found:
            peers = [
                await stack.enter_async_context(dialled(found.address, None))
                for _ in range(3)
            ]
        await until(lambda: all(peer.lost for peer in peers), what="their end")


async def test_refused_peers_do_not_outlive_the_listener(
    node: LoadedIdentity, no_leaked_fds: None
) -> None:
    reader, writer = None, None
    async with listening(node) as found:
        host, port = found.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\n\r\n" * 10)
        await until(lambda: found.failures)
    await reader.read()
    writer.close()
    await writer.wait_closed()


# openssl as an independent client.


async def s_client_to(
    found: Listening,
    identity: LoadedIdentity,
    folder: Path,
    *options: str,
    stdin: bytes = b"",
) -> str:
    files = write_pem(identity, folder)
    return await s_client(
        found.address, *files, "-servername", "localhost", *options, stdin=stdin
    )


@pytest.mark.parametrize("groups", ["X25519", "X25519:P-256"])
async def test_openssl_is_served_with_x25519(
    node: LoadedIdentity, client: LoadedIdentity, tmp_path: Path, groups: str
) -> None:
    async with listening(node) as found:
        said = await s_client_to(found, client, tmp_path, "-groups", groups)
        assert "Protocol version: TLSv1.3" in said or "TLSv1.3" in said
        assert SUITE in said
        theirs = await accepted(found)
        assert theirs.transport.security == f"TLSv1.3 {SUITE} x25519"
        await until(lambda: theirs.lost)
        assert theirs.error is None


@pytest.mark.parametrize(
    "suites",
    [
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384",
    ],
)
async def test_no_other_suite_is_accepted(
    node: LoadedIdentity, client: LoadedIdentity, tmp_path: Path, suites: str
) -> None:
    async with listening(node) as found:
        said = await s_client_to(found, client, tmp_path, "-ciphersuites", suites)
        assert "alert handshake failure" in said
        await until(lambda: found.outcomes)
        assert "no shared cipher" in str(found.failure)


async def test_the_one_suite_is_chosen_whatever_the_client_prefers(
    node: LoadedIdentity, client: LoadedIdentity, tmp_path: Path
) -> None:
    suites = f"TLS_AES_256_GCM_SHA384:{SUITE}"
    async with listening(node) as found:
        await s_client_to(found, client, tmp_path, "-ciphersuites", suites)
        theirs = await accepted(found)
        assert SUITE in theirs.transport.security


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_1"])
async def test_no_older_version_is_accepted(
    node: LoadedIdentity, client: LoadedIdentity, tmp_path: Path, version: str
) -> None:
    async with listening(node) as found:
        said = await s_client_to(
            found, client, tmp_path, version, "-cipher", "ALL:@SECLEVEL=0"
        )
        assert "alert protocol version" in said
        await until(lambda: found.outcomes)
        assert isinstance(found.failure, HandshakeError)


async def test_a_client_without_a_certificate_is_refused(
    node: LoadedIdentity,
) -> None:
    async with listening(node) as found:
        said = await s_client(found.address, "-servername", "localhost")
        await until(lambda: found.outcomes)
        assert str(found.failure) == "the client sent no certificate"
        assert "alert certificate required" in said or found.failures


async def test_a_session_cannot_be_resumed(
    node: LoadedIdentity, client: LoadedIdentity, tmp_path: Path
) -> None:
    session = str(tmp_path / "session.pem")
    async with listening(node) as found:
        said = []
        for number, option in enumerate(("-sess_out", "-sess_in")):
            talk = asyncio.create_task(
                s_client_to(found, client, tmp_path, option, session, "-ign_eof")
            )
            await until(lambda number=number: found.outcomes > number)  # type: ignore[misc]
            found.accepted[number].transport.close()
            said.append(await talk)
        # There was a ticket, for a session that the server does not keep.
        assert await asyncio.to_thread(Path(session).exists)
        assert "New, TLSv1.3" in said[1]
        assert "Reused" not in said[1]
        assert found.accepted[1].transport.peer is not None


# openssl as an independent server.


async def test_openssl_is_reached_as_localhost_with_one_suite(
    node: LoadedIdentity, client: LoadedIdentity, tmp_path: Path
) -> None:
    options = write_pem(node, tmp_path)
    async with (
        OpensslServer.running(*options, "-Verify", "1", "-tlsextdebug") as server,
        dialled(server.address, client) as ours,
    ):
        assert ours.transport.security == f"TLSv1.3 {SUITE} x25519"
        ours.transport.write([b"hello from our side\n"])
        await server.read_until("hello from our side")
        await server.write(b"and back\n")
        await until(lambda: ours.data == b"and back\n")
    assert re.search(
        r'"server name" \(id=0\), len=14\n.* \.+localhost\n', server.output
    )
    if SSL.OPENSSL_VERSION_NUMBER >= HYBRID_FROM:
        # X25519MLKEM768 comes first; its number is 11ec.
        offered = r'"supported_groups" \(id=10\), len=\d+\n0000 - 00 .. 11 ec '
        assert re.search(offered, server.output)


async def test_openssl_with_other_suites_only_is_refused(
    node: LoadedIdentity, client: LoadedIdentity, tmp_path: Path
) -> None:
    options = write_pem(node, tmp_path)
    async with OpensslServer.running(
        *options, "-ciphersuites", "TLS_AES_256_GCM_SHA384"
    ) as server:
        with pytest.raises(HandshakeError, match="handshake failure"):
            async with dialled(server.address, client):
                pass


async def test_an_old_openssl_is_refused(
    node: LoadedIdentity, client: LoadedIdentity, tmp_path: Path
) -> None:
    options = write_pem(node, tmp_path)
    async with OpensslServer.running(*options, "-tls1_2") as server:
        with pytest.raises(HandshakeError):
            async with dialled(server.address, client):
                pass


async def test_a_damaged_record_ends_the_connection(
    node: LoadedIdentity, client: LoadedIdentity
) -> None:
    """A relay changes one byte after the handshake."""
    async with listening(node) as found:
        host, port = found.address.split(":")
        spoil = asyncio.Event()

        async def pump(
            reader: asyncio.StreamReader,
            writer: asyncio.StreamWriter,
            *,
            spoilt: bool,
        ) -> None:
            while data := await reader.read(65_536):
                if spoilt and spoil.is_set():
                    data = data[:-1] + bytes((data[-1] ^ 1,))
                writer.write(data)
            writer.close()

        async def relay(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            onward = await asyncio.open_connection(host, int(port))
            await asyncio.gather(
                pump(reader, onward[1], spoilt=True),
                pump(onward[0], writer, spoilt=False),
                return_exceptions=True,
            )

        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        relay_host, relay_port = server.sockets[0].getsockname()
        async with dialled(f"{relay_host}:{relay_port}", client) as ours:
            theirs = await accepted(found)
            ours.transport.write([b"fine"])
            await until(lambda: theirs.data == b"fine")
            spoil.set()
            ours.transport.write([b"not fine"])
            await until(lambda: theirs.lost)
            assert isinstance(theirs.error, ConnectionLostError)
            assert theirs.data == b"fine"
        server.close()
