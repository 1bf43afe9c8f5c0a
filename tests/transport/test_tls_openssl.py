"""TLS with openssl as an independent client and server."""

import asyncio
import re
from pathlib import Path

import pytest
from OpenSSL import SSL

from rpc25519_tools.errors import ConnectionLostError, HandshakeError
from rpc25519_tools.identity.store import LoadedIdentity
from tests.helpers import until
from tests.transport.peers import (
    HYBRID_FROM,
    SUITE,
    Listening,
    OpensslServer,
    accepted,
    dialled,
    listening,
    s_client,
    write_pem,
)

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
