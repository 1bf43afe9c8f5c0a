"""TLS between friends: who is who, bytes both ways, the ends of connections."""

import asyncio
import random
from dataclasses import replace

import pytest
from OpenSSL import SSL

from rpc25519_tools.errors import PeerNotTrustedError
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport.base import (
    ENCRYPTED_LEN,
    WRITE_HIGH_WATER_LEN,
    scratch_buffer,
)
from rpc25519_tools.transport.tls import TlsTransport, tls_context
from rpc25519_tools.wire.constants import MIB
from tests.helpers import until
from tests.transport.peers import (
    HYBRID_FROM,
    SUITE,
    Authority,
    Listening,
    accepted,
    dialled,
    listening,
)


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
