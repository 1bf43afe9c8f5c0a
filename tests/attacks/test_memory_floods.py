"""Clients that are let in and then claim, send or hold more than there is.

Each time the server's memory stays bounded, and a good client beside them is served.
"""

import asyncio
import contextlib
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc25519_tools.files.echo import ECHO_CALL_SERVICE
from rpc25519_tools.files.parts import (
    ARG_DOWNLOAD_REQUEST,
    ARG_PART_SUM,
    ARG_UPLOAD_NAME,
    DOWNLOAD_SERVICE,
    ECHO_FILE_SERVICE,
    UPLOAD_SERVICE,
)
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.constants import MAGIC, MAX_BODY_LEN
from rpc25519_tools.wire.digest import digest_text
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.attacks.floods import (
    MIB,
    client_of,
    frame_of,
    good_client,
    memory_of,
    need_descriptors,
    silent_sockets,
)
from tests.commands.hostile import hostile_client, request
from tests.helpers import SrvProcess, until, wait_until

#: What the tests let all clients hold together.
BUDGET = 64 * MIB
PARTS = frozenset(
    {CallType.DOWNLOAD_BEGIN, CallType.DOWNLOAD_MORE, CallType.DOWNLOAD_END}
)


@pytest.fixture
def tcp(certs: Path, tmp_path: Path) -> Iterator[SrvProcess]:
    options = ["-tcp", "-echo", "-readfile", str(tmp_path), "--max-memory", "64MiB"]
    with SrvProcess(*options, certs=certs) as srv:
        yield srv
        assert srv.process.poll() is None
        assert "Traceback" not in srv.stderr()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stored")


@pytest.fixture(scope="module")
def tls(certs: Path, stored: Path) -> Iterator[SrvProcess]:
    options = ["-echo", "-readfile", str(stored), "--max-memory", "64MiB"]
    with SrvProcess(*options, certs=certs) as srv:
        yield srv
        assert srv.process.poll() is None
        assert "Traceback" not in srv.stderr()


def claim(length: int) -> bytes:
    return MAGIC + b"\0" + length.to_bytes(8, "big")


@pytest.mark.parametrize("sent_len", [0, 200_000])
def test_claims_of_64_mib_from_500_connections(tcp: SrvProcess, sent_len: int) -> None:
    need_descriptors(600)

    async def scenario() -> None:
        async with good_client(tcp.address, None) as good:
            before, calls = memory_of(tcp), good.calls
            sent = claim(MAX_BODY_LEN) + bytes(sent_len)
            flood = silent_sockets(tcp.address, 500, sent)
            await asyncio.to_thread(flood.__enter__)
            await until(lambda: good.calls > calls + 30)
            growth = memory_of(tcp, "VmHWM") - before
            await asyncio.to_thread(flood.__exit__, None, None, None)
        assert growth < 2 * 500 * sent_len + 64 * MIB

    asyncio.run(scenario())


class Senders:
    """Connections in threads that send the same over and over, as fast as they can."""

    def __init__(self, address: str, count: int, data: bytes) -> None:
        host, port = address.split(":")
        self._sockets = [
            socket.create_connection((host, int(port))) for _ in range(count)
        ]
        self.sent_len = 0
        self._threads = [
            threading.Thread(target=self._send, args=(sock, data), daemon=True)
            for sock in self._sockets
        ]
        for thread in self._threads:
            thread.start()

    def _send(self, sock: socket.socket, data: bytes) -> None:
        view = memoryview(data)
        with contextlib.suppress(OSError):
            while True:
                for start in range(0, len(view), 256 * 1024):
                    sock.sendall(view[start : start + 256 * 1024])
                    self.sent_len += 256 * 1024

    def stop(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()


@pytest.mark.parametrize("service", ["customEcho", "nobody"])
def test_many_that_really_send_60_mib_each(tcp: SrvProcess, service: str) -> None:
    """They read no answers either, so each echo would stay in memory."""
    message = request(CallType.RPC, service, payload=bytes(60 * MIB))

    async def scenario() -> None:
        async with good_client(tcp.address, None) as good:
            before = memory_of(tcp)
            senders = await asyncio.to_thread(
                Senders, tcp.address, 60, frame_of(message)
            )
            await until(lambda: senders.sent_len > 3 * BUDGET or tcp_is_short())
            calls = good.calls
            await until(lambda: good.calls > calls + 100)
            growth = memory_of(tcp, "VmHWM") - before
            await asyncio.to_thread(senders.stop)
        # Beyond the budget: the favoured one's message, with its echo and the copies
        # that making and sending it takes, and for each connection what was being read
        # when memory ran out. All of it would be 3600 MiB, and its copies.
        assert growth < BUDGET + 5 * 64 * MIB + 60 * 2 * MIB

    def tcp_is_short() -> bool:
        return "hold more than" in tcp.stderr()

    asyncio.run(scenario())


@pytest.mark.parametrize("codec", [Codec.S2, Codec.LZ4, Codec.ZSTD_01])
def test_bombs_that_just_fit_a_message(tcp: SrvProcess, codec: Codec) -> None:
    message = request(CallType.RPC, "customEcho", payload=bytes(60 * MIB))
    packed = frame_of(message, codec)
    assert len(packed) < 4 * MIB

    async def scenario() -> None:
        async with good_client(tcp.address, None) as good:
            before = memory_of(tcp)
            flood = silent_sockets(tcp.address, 12, packed)
            await asyncio.to_thread(flood.__enter__)
            calls = good.calls
            await until(lambda: good.calls > calls + 20)
            growth = memory_of(tcp, "VmHWM") - before
            await asyncio.to_thread(flood.__exit__, None, None, None)
        # Two are unpacked while a third is answered; each is there as a message, as an
        # answer and as what is to be packed. All would be 2160 MiB.
        assert growth < BUDGET + 3 * 3 * 64 * MIB

    asyncio.run(scenario())


async def test_endless_header_maps_end_the_connection(
    tls: SrvProcess, client_identity: LoadedIdentity
) -> None:
    async with good_client(tls.address, client_identity):
        before = memory_of(tls)
        for count in (5_000, 20_000, 100_000):
            args = {f"{number:x}": "" for number in range(count)}
            async with hostile_client(tls.address, client_identity) as wire:
                await wire.send_unchecked(
                    request(CallType.RPC, "customEcho", args=args)
                )
                await wire.wait_gone()
        # As many as are allowed are taken.
        args = {f"{number:x}": "" for number in range(3000)}
        async with hostile_client(tls.address, client_identity) as wire:
            await wire.send(request(CallType.RPC, "customEcho", args=args))
            assert not (await wire.receive()).error
        growth = memory_of(tls) - before
    assert growth < 64 * MIB


async def test_streams_that_never_end_take_no_more_than_their_share(
    tls: SrvProcess, client_identity: LoadedIdentity, stored: Path
) -> None:
    part = bytes(256 * 1024)
    sum_text = digest_text(part)
    async with good_client(tls.address, client_identity) as good:
        before, calls = memory_of(tls, "VmHWM"), good.calls
        async with hostile_client(tls.address, client_identity) as wire:
            for number in range(400):
                for stream in range(8):
                    call_type = (
                        CallType.UPLOAD_MORE if number else CallType.UPLOAD_BEGIN
                    )
                    args = {ARG_UPLOAD_NAME: f"f{stream}", ARG_PART_SUM: sum_text}
                    message = request(
                        call_type,
                        UPLOAD_SERVICE,
                        args=args,
                        payload=part if number < 20 else b"",
                        part=number,
                        call_id=f"stream {stream}",
                    )
                    await wire.send(message)
            # And some that send nothing but their beginning.
            for stream in range(2000):
                await wire.send(
                    request(
                        CallType.REQUEST_BISTREAM,
                        ECHO_FILE_SERVICE,
                        call_id=f"idle {stream}",
                    )
                )
            await until(lambda: good.calls > calls + 20)
        growth = memory_of(tls, "VmHWM") - before
    assert growth < 96 * MIB
    wait_until(lambda: not list(stored.iterdir()))


async def test_one_call_too_many_is_answered_and_the_connection_goes_on(
    certs: Path, tmp_path: Path, client_identity: LoadedIdentity
) -> None:
    options = ["-readfile", str(tmp_path), "--max-calls", "3"]
    with SrvProcess(*options, certs=certs) as srv:
        async with hostile_client(srv.address, client_identity) as wire:
            payload = b"x"
            for stream in range(4):
                args = {
                    ARG_UPLOAD_NAME: f"f{stream}",
                    ARG_PART_SUM: digest_text(payload),
                }
                message = request(
                    CallType.UPLOAD_BEGIN,
                    UPLOAD_SERVICE,
                    args=args,
                    payload=payload,
                    call_id=f"stream {stream}",
                )
                await wire.send(message)
            reply = await wire.receive()
            assert reply.header.call_id == "stream 3"
            assert reply.error == "more than 3 calls at a time on one connection"
            cancel = Header(call_type=CallType.CANCEL_PREVIOUS, call_id="stream 0")
            await wire.send(Message(header=cancel))
            await wire.receive()
            await wire.send(request(CallType.RPC, "customEcho", call_id="again"))
            assert not (await wire.receive()).error
        await wire.wait_gone()


async def test_storms_of_cancels(
    tls: SrvProcess, client_identity: LoadedIdentity
) -> None:
    async with good_client(tls.address, client_identity) as good:
        before, calls = memory_of(tls), good.calls
        async with hostile_client(tls.address, client_identity) as wire:
            for number in range(3000):
                call_id = f"call {number}"
                cancel = Header(call_type=CallType.CANCEL_PREVIOUS, call_id=call_id)
                opening = request(
                    CallType.REQUEST_BISTREAM, ECHO_FILE_SERVICE, call_id=call_id
                )
                frames = frame_of(opening) + 5 * frame_of(Message(header=cancel))
                await wire.send_bytes(frames)
            answered: set[str] = set()
            while len(answered) < 3000:
                answered.add((await wire.receive()).header.call_id)
        growth = memory_of(tls) - before
    assert good.calls > calls
    assert growth < 32 * MIB


async def test_downloads_that_nobody_reads(
    certs: Path, tmp_path: Path, client_identity: LoadedIdentity
) -> None:
    """Each would hold four parts; read at last, all of them come whole."""
    count, size = 200, 4 * MIB
    (tmp_path / "big").write_bytes(os.urandom(size))
    with SrvProcess("-serve", str(tmp_path), certs=certs) as srv:
        async with (
            good_client(srv.address, client_identity) as good,
            hostile_client(srv.address, client_identity) as wire,
        ):
            before, calls = memory_of(srv), good.calls
            wire.transport.pause_reading()
            for number in range(count):
                message = request(
                    CallType.REQUEST_DOWNLOAD,
                    DOWNLOAD_SERVICE,
                    args={ARG_DOWNLOAD_REQUEST: "big"},
                    call_id=f"download {number}",
                )
                await wire.send(message)
            await until(lambda: good.calls > calls + 150)
            assert memory_of(srv, "VmHWM") - before < 64 * MIB
            wire.transport.resume_reading()
            received: Counter[str] = Counter()
            for _ in range(count):
                while (message := await wire.receive()).header.call_type in PARTS:
                    received[message.header.call_id] += len(message.payload)
                assert not message.error
            assert set(received.values()) == {size}
            assert len(received) == count
            assert memory_of(srv, "VmHWM") - before < 96 * MIB


async def test_downloads_on_many_connections_share_the_memory(
    certs: Path, tmp_path: Path, client_identity: LoadedIdentity
) -> None:
    (tmp_path / "big").write_bytes(os.urandom(8 * MIB))
    options = ["-serve", str(tmp_path), "--max-memory", "64MiB"]
    with SrvProcess(*options, certs=certs) as srv:
        async with (
            good_client(srv.address, client_identity) as good,
            contextlib.AsyncExitStack() as stack,
        ):
            before, calls = memory_of(srv), good.calls
            for _ in range(60):
                client = hostile_client(srv.address, client_identity)
                wire = await stack.enter_async_context(client)
                wire.transport.pause_reading()
                for number in range(4):
                    message = request(
                        CallType.REQUEST_DOWNLOAD,
                        DOWNLOAD_SERVICE,
                        args={ARG_DOWNLOAD_REQUEST: "big"},
                        call_id=f"download {number}",
                    )
                    await wire.send(message)
            await until(lambda: good.calls > calls + 150)
            growth = memory_of(srv, "VmHWM") - before
    # Each gets up to a part on its way whatever is counted. All would be 1200 MiB.
    assert growth < BUDGET + 60 * 2 * MIB


async def test_echoes_that_nobody_reads(
    tls: SrvProcess, client_identity: LoadedIdentity
) -> None:
    """What a handler waits to send is held, as what nobody has read is."""
    part = os.urandom(MIB)
    async with good_client(tls.address, client_identity) as good:
        before, calls = memory_of(tls), good.calls
        async with hostile_client(tls.address, client_identity) as wire:
            wire.transport.pause_reading()

            async def flood() -> None:
                for number in range(300):
                    for call_type in (CallType.REQUEST_BISTREAM, CallType.UPLOAD_MORE):
                        more = call_type is CallType.UPLOAD_MORE
                        message = request(
                            call_type,
                            ECHO_FILE_SERVICE,
                            payload=part if more else b"",
                            part=int(more),
                            call_id=f"echo {number}",
                        )
                        await wire.send(message)

            flooding = asyncio.create_task(flood())
            await until(lambda: good.calls > calls + 150)
            assert not flooding.done()
            flooding.cancel()
            await asyncio.wait([flooding])
        growth = memory_of(tls, "VmHWM") - before
    assert growth < 128 * MIB


async def test_connections_that_have_moved_much_keep_little(
    certs: Path, client_identity: LoadedIdentity
) -> None:
    """OpenSSL keeps as much for each as it ever held at a time."""
    count = 60
    async with contextlib.AsyncExitStack() as stack:
        srv = stack.enter_context(SrvProcess(certs=certs))
        clients = [
            await stack.enter_async_context(
                await client_of(srv.address, client_identity)
            )
            for _ in range(count)
        ]
        await clients[0].call(ECHO_CALL_SERVICE, bytes(2 * MIB))
        before = memory_of(srv)
        for client in clients:
            await client.call(ECHO_CALL_SERVICE, os.urandom(2 * MIB))
        assert memory_of(srv) - before < count * MIB // 2
