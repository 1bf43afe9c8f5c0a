"""Datagrams in bulk over real sockets, and a port that many share."""

import asyncio
import contextlib
import select
import socket
from collections.abc import Iterator

import pytest

from rpc25519_tools.transport.udp_port import UdpPort, open_port, source_for
from rpc25519_tools.transport.udp_socket import UdpSocket
from tests.helpers import until

LOOPBACK = ("127.0.0.1", 0)


@contextlib.contextmanager
def sockets(count: int, family: int = socket.AF_INET) -> Iterator[list[UdpSocket]]:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with contextlib.ExitStack() as stack:
        made = [UdpSocket(family, (host, 0)) for _ in range(count)]
        for one in made:
            stack.callback(one.close)
        yield made


def taken(sock: UdpSocket, count: int) -> list[bytes]:
    """Take datagrams until there are so many."""
    found: list[bytes] = []
    while len(found) < count:
        ready, _, _ = select.select([sock], [], [], 5)
        assert ready, f"{len(found)} of {count} datagrams"
        found += [data for data, _ in sock.receive()[0]]
    return found


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("coalesces", [True, False])
def test_what_is_sent_at_a_time_arrives_one_by_one(
    family: int, coalesces: bool
) -> None:
    with sockets(2, family) as (ours, theirs):
        if not coalesces:
            ours._segments = theirs._coalesces = False
            theirs._try(socket.IPPROTO_UDP, 104, 0)
        sizes = [1452] * 40 + [700] + [1452] * 3 + [1, 9000, 9000, 9000, 20, 1200]
        sent = [bytes([number]) * size for number, size in enumerate(sizes)]
        result = ours.send([(data, theirs.address) for data in sent])
        assert result.count == len(sent)
        assert result.too_long == ()
        assert taken(theirs, len(sent)) == sent


def test_runs_have_one_size_and_one_target() -> None:
    here, there = ("127.0.0.1", 1), ("127.0.0.1", 2)
    sizes = [100, 100, 100, 40, 100, 200, 200]
    datagrams = [(bytes(size), here) for size in sizes]
    assert UdpSocket._run_len(datagrams, 0) == 4  # the last of a run may be shorter
    assert UdpSocket._run_len(datagrams, 4) == 1
    assert UdpSocket._run_len(datagrams, 5) == 2
    datagrams[1] = (datagrams[1][0], there)
    assert UdpSocket._run_len(datagrams, 0) == 1
    assert UdpSocket._run_len([(bytes(1452), here)] * 200, 0) == 44
    assert UdpSocket._run_len([(bytes(10), here)] * 200, 0) == 64


def test_nothing_is_fragmented() -> None:
    """What the device does not take in one piece is refused, not cut."""
    with sockets(2) as (ours, theirs):
        result = ours.send(
            [(bytes(65_507), theirs.address), (bytes(70_000), theirs.address)]
        )
        assert result.count == 2
        assert result.too_long == (70_000,)
        assert [len(one) for one in taken(theirs, 1)] == [65_507]


@pytest.mark.skipif(not hasattr(socket, "MSG_ERRQUEUE"), reason="Linux tells it")
def test_where_nobody_listens_is_told() -> None:
    with sockets(2) as (ours, theirs):
        gone = theirs.address
        theirs.close()
        ours.send([(b"anybody?", gone)])
        select.select([ours], [], [], 5)
        assert ours.receive() == ([], [gone])
        # And it can be used as before.
        with sockets(1) as (other,):
            ours.send([(b"hello", other.address)])
            assert taken(other, 1) == [b"hello"]


@pytest.mark.skipif(not hasattr(socket, "MSG_ERRQUEUE"), reason="Linux tells it")
def test_one_who_is_deaf_costs_others_no_datagram() -> None:
    """The system tells of an earlier datagram when the next one is to be sent."""
    with sockets(3) as (ours, theirs, other):
        gone = theirs.address
        theirs.close()
        for number in range(5):
            ours.send([(b"anybody?", gone)])
            select.select([ours], [], [], 5)
            assert ours.send([(b"%d" % number, other.address)]).count == 1
            assert taken(other, 1) == [b"%d" % number]
            assert ours.receive() == ([], [gone])
            # Nothing is left that would wake us again and again.
            assert select.select([ours], [], [], 0)[0] == []


# Ports.


class Taker:
    """A connection that keeps what comes for it."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.went_on = 0
        self.deaf: list[object] = []

    def take(self, datagrams: object) -> None:
        self.taken += [data for data, _ in datagrams]  # type: ignore[attr-defined]

    def go_on(self) -> None:
        self.went_on += 1

    def unreachable(self, endpoint: object) -> None:
        self.deaf.append(endpoint)

    def end_for_gap(self) -> None:
        raise AssertionError("no gaps here")


def first_byte(data: bytes) -> bytes | None:
    return data[:1] or None


async def test_datagrams_find_their_connection_and_strangers_the_listener() -> None:
    port = open_port(socket.AF_INET, LOOPBACK, first_byte, share=True).use()
    one, two, strange = Taker(), Taker(), []
    port.bind([b"a", b"A"], one)
    port.bind([b"b"], two)
    port.listen(lambda data, _: strange.append(data))
    with sockets(1) as (sender,):
        for data in (b"a1", b"b1", b"A2", b"x?", b"a3"):
            sender.send([(data, port.address)])
        await until(lambda: strange and len(one.taken) == 3)
        assert one.taken == [b"a1", b"A2", b"a3"]
        assert two.taken == [b"b1"]
        assert strange == [b"x?"]
        port.unbind([b"a"])
        sender.send([(b"a4", port.address)])
        await until(lambda: len(strange) == 2)
    port.release()


async def test_a_shared_port_is_closed_with_its_last_user() -> None:
    first = open_port(socket.AF_INET, LOOPBACK, first_byte, share=True).use()
    address = first.address
    second = open_port(socket.AF_INET, address, first_byte, share=True).use()
    assert second is first
    with pytest.raises(OSError, match="in use"):
        open_port(socket.AF_INET, address, first_byte, share=False)
    first.release()
    assert second.fileno() >= 0
    second.release()
    assert second.fileno() == -1
    third = open_port(socket.AF_INET, address, first_byte, share=True).use()
    assert third is not first
    third.release()


async def test_ports_of_their_own_are_not_shared() -> None:
    one = open_port(socket.AF_INET, LOOPBACK, first_byte, share=False).use()
    two = open_port(socket.AF_INET, LOOPBACK, first_byte, share=True).use()
    assert one.address != two.address
    one.release()
    two.release()


async def test_a_full_socket_keeps_what_is_sent_until_there_is_room() -> None:
    with sockets(1) as (target,):
        sock = UdpSocket(socket.AF_INET, LOOPBACK)
        port = UdpPort(sock, first_byte).use()
        link, plain, let = Taker(), sock.send, False

        def send(datagrams: object) -> object:
            from rpc25519_tools.transport.udp_socket import Sent

            return plain(datagrams) if let else Sent(0)  # type: ignore[arg-type]

        sock.send = send  # type: ignore[assignment]
        port.send(link, [(b"one", target.address), (b"two", target.address)])
        assert port.is_full
        port.send(link, [(b"three", target.address)])
        let = True
        assert not link.went_on
        await until(lambda: link.went_on == 1 and not port.is_full)
        assert taken(target, 3) == [b"one", b"two", b"three"]
        port.release()


async def test_the_source_address_is_known_also_when_bound_to_all() -> None:
    port = open_port(socket.AF_INET, ("0.0.0.0", 0), first_byte, share=False).use()
    source = source_for(socket.AF_INET, ("127.0.0.1", 9), port)
    assert source == ("127.0.0.1", port.address[1])
    port.release()
    await asyncio.sleep(0)
