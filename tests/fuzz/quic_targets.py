"""QUIC: datagrams of strangers, and frames of clients that have a certificate.

Whatever comes, an engine ends its own connection at most, lets no stranger in, and says
in one line why.
"""

from rpc25519_tools.transport.quic_connection import FIRST_WINDOW_LEN
from rpc25519_tools.transport.quic_engine import QuicEngine
from rpc25519_tools.transport.quic_first import destination_of, first_packet
from tests.attacks.quic_client import (
    crypto_frame,
    initial,
    packet,
    stream_frame,
    varints,
)
from tests.fuzz.mutators import BYTES
from tests.fuzz.quic_seeds import hello, new_net, quic_seeds
from tests.fuzz.target import Target
from tests.transport.quic_net import CLIENT, Net, opened

_ID = b"12345678"
#: As much as fits into one datagram.
_MOST_LEN = 1000


def _sane(engine: QuicEngine, came_len: int, now: float) -> None:
    """Look at a server after a datagram of a stranger."""
    sent_len = sum(len(data) for data, _ in engine.outgoing(now))
    assert sent_len <= 3 * came_len, (sent_len, came_len)
    assert not engine.is_open
    assert engine.arrived == []
    if engine.error is not None:
        assert str(engine.error).isprintable()
        assert len(str(engine.error)) < 500


def _from_a_stranger(data: bytes) -> None:
    destination_of(data)
    first = first_packet(data)
    if first is None or not first.is_ours:
        return
    net = new_net()
    server = net._make_server(first.destination_id)
    server.receive(data, CLIENT, net.now)
    if server.has_received:
        _sane(server, len(data), net.now)


def _initial_frames(data: bytes) -> None:
    if data:
        _from_a_stranger(initial(data[:_MOST_LEN], destination_id=_ID))


def _hello(data: bytes) -> None:
    _from_a_stranger(initial(crypto_frame(0, data[:_MOST_LEN]), destination_id=_ID))


class _Friends:
    """A connection that is open, and another one where the fuzzer has ended it."""

    def __init__(self) -> None:
        self._net: Net | None = None

    def run(self, data: bytes) -> None:
        if not data or data[0] >= 64:
            return
        net = self._net
        if net is None or net.client.is_closed:
            net = self._net = new_net()
            opened(net)
            net.flush()
        server = net.server
        assert server is not None
        net.now += 0.01
        server.receive(packet(net.client, data), CLIENT, net.now)
        server.handle_timer(net.now)
        server.outgoing(net.now)
        assert server.gap_len <= FIRST_WINDOW_LEN
        held_len = sum(map(len, server.arrived))
        assert held_len <= FIRST_WINDOW_LEN
        assert len(server.ids) <= 10
        if server.is_closed:
            self._net = None
            if server.error is not None:
                assert str(server.error).isprintable()
                assert len(str(server.error)) < 500


def _frame_seeds() -> list[bytes]:
    return [
        b"\x01",
        stream_frame(0, b"hello") + stream_frame(5, b"world"),
        stream_frame(100, b"later"),
        b"\x02" + varints(3, 0, 1, 1, 0, 0),
        b"\x10" + varints(1 << 22) + b"\x11" + varints(0, 1 << 22),
        b"\x18" + varints(9, 1) + b"\x14" + bytes(36),
        b"\x19" + varints(3),
        b"\x1a12345678\x1b12345678",
        b"\x04" + varints(0, 7, 100),
        b"\x05" + varints(0, 7),
        b"\x1c" + varints(1, 2, 4) + b"text",
        b"\x1d" + varints(1, 4) + b"text",
        crypto_frame(0, b"\x04\0\0\x01x"),
        b"\x14" + varints(1) + b"\x15" + varints(0, 1) + b"\x16" + varints(1),
    ]


TARGETS = (
    Target(name="quic:datagram", run=_from_a_stranger, seeds=quic_seeds, max_len=1500),
    Target(
        name="quic:initial_frames",
        run=_initial_frames,
        seeds=lambda: [crypto_frame(0, hello()), *_frame_seeds()],
        mutators=BYTES,
        max_len=_MOST_LEN,
    ),
    Target(name="quic:hello", run=_hello, seeds=lambda: [hello()], max_len=_MOST_LEN),
    Target(
        name="quic:frames",
        run=_Friends().run,
        seeds=_frame_seeds,
        max_len=_MOST_LEN,
    ),
)
